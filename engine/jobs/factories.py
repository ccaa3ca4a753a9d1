"""What loads the task of a job, in this process or in a worker: the model by its name, and the options; picklable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ..loading import How
    from .task import JobTask

__all__ = ["AnsweringJob", "EmbeddingJob", "TaskFactory"]


class TaskFactory(Protocol):
    """Loads a model on a device; one that goes to other processes can be pickled."""

    def __call__(self, device: str, dtype: str, /) -> JobTask: ...


@dataclass(frozen=True)
class EmbeddingJob:
    """Loads the model of an `EmbeddingTask`.

    Attributes:
        model: folder, or org/name.
        backend: "auto", or the implementation every op must use.
        options: of `EmbeddingOptions`, by name.
        deterministic: as of `padless.load`.
        require_kernels: as of `padless.load`.
    """

    model: str
    backend: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    deterministic: bool = False
    require_kernels: bool = False

    def __call__(self, device: str, dtype: str) -> JobTask:
        """The loaded task.

        Raises:
            PadlessError: no such model, device, dtype or option.
        """
        from ..errors import OptionError
        from ..loading import load
        from .embedding import EmbeddingOptions, EmbeddingTask

        encoder = load(self.model, task="embedding", **_how(self, device, dtype))
        try:
            return EmbeddingTask(encoder, EmbeddingOptions(**self.options))
        except TypeError as error:
            raise OptionError(f"embedding: {str(error).rpartition(' ')[2]}: no such option") from None


@dataclass(frozen=True)
class AnsweringJob:
    """Loads the model of an `AnsweringTask`.

    Attributes:
        model: folder, or org/name.
        task: "text-classification", ...
        backend: "auto", or the implementation every op must use.
        options: of the task's calls.
        deterministic: as of `padless.load`.
        require_kernels: as of `padless.load`.
    """

    model: str
    task: str
    backend: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    deterministic: bool = False
    require_kernels: bool = False

    def __call__(self, device: str, dtype: str) -> JobTask:
        """The loaded task.

        Raises:
            PadlessError: no such model, device, dtype or option.
        """
        from ..loading import load
        from .answering import AnsweringTask

        loaded = load(self.model, task=self.task, **_how(self, device, dtype))
        return AnsweringTask(loaded, self.options)


def _how(job: EmbeddingJob | AnsweringJob, device: str, dtype: str) -> How:
    """What `padless.load` is told beside model and task."""
    return {
        "device": device,
        "dtype": dtype,
        "backend": job.backend,
        "deterministic": job.deterministic,
        "require_kernels": job.require_kernels,
    }
