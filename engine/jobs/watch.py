"""Input files while a job reads them: one that changes or vanishes stops the job before anything of it is committed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from .inputs.input_file import InputFile

__all__ = ["InputWatch"]


class InputWatch:
    """Remembers size and time of change of the inputs, as they are when it is made."""

    def __init__(self, inputs: Sequence[InputFile]) -> None:
        stamps = [(file, _stamp(file.path)) for file in inputs if file.rereadable]
        self._seen = [(file, stamp) for file, stamp in stamps if stamp is not None]

    def check(self) -> None:
        """Compare with what is there now.

        Raises:
            InputError: naming the first file that is gone or no longer the same.
        """
        for file, seen in self._seen:
            now = _stamp(file.path)
            if now is None:
                raise InputError(f"{file.name}: vanished while the job read it")
            if now != seen:
                raise InputError(f"{file.name}: changed while the job read it")


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
