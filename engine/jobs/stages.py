"""Where the time of a job goes."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["Stages"]

NOTICEABLE = 0.1
"""A stage limits a job if the others wait for it for more than this part of the time."""


@dataclass(slots=True)
class Stages:
    """Seconds by stage. Stages run side by side, so that their sum is more than the job takes.

    Attributes:
        read: in the reading thread.
        tokenise: in the tokenising thread.
        compute: packing, model, copying back, added up over the threads that compute.
        write: in the writing thread, and committing shards.
        wait_read: in which nothing was handed to the model because rows were missing.
        wait_tokenise: the same, because tokens were missing.
        wait_write: the same, because results were not written yet or a shard was being committed.
    """

    read: float = 0.0
    tokenise: float = 0.0
    compute: float = 0.0
    write: float = 0.0
    wait_read: float = 0.0
    wait_tokenise: float = 0.0
    wait_write: float = 0.0

    def add(self, other: Stages) -> None:
        """Add the seconds of another process."""
        for stage in fields(self):
            setattr(self, stage.name, getattr(self, stage.name) + getattr(other, stage.name))

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage, and of waiting for any of them."""
        wait = self.wait_read + self.wait_tokenise + self.wait_write
        stages = {"read": self.read, "tokenise": self.tokenise, "compute": self.compute, "write": self.write}
        return {name: round(value, 6) for name, value in {**stages, "wait": wait}.items()}

    def waited_for(self) -> dict[str, float]:
        """Seconds that the model waited for each of the other stages."""
        waits = {"read": self.wait_read, "tokenise": self.wait_tokenise, "write": self.wait_write}
        return {name: round(value, 6) for name, value in waits.items()}

    def limit(self, seconds: float) -> str:
        """The stage that limits a job of so many seconds: the one waited for, or "compute"."""
        name, waited = max(self.waited_for().items(), key=lambda item: item[1])
        return name if waited > NOTICEABLE * seconds else "compute"
