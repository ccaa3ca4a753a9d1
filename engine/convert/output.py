"""The folder that a conversion makes: it appears whole under its name, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import OptionError, WeightsError

__all__ = ["Workplace", "new_folder"]


@dataclass(frozen=True)
class Workplace:
    """Where a conversion works, on the disk of its output.

    Attributes:
        model: becomes the output.
        scratch: for files that are needed on the way.
    """

    model: Path
    scratch: Path


def _check_free(out: Path) -> None:
    """Refuse a name that is taken.

    Raises:
        OptionError: there is a file, or a folder that is not empty.
    """
    try:
        if out.is_dir() and not any(out.iterdir()):
            return
        if not os.path.lexists(out):
            return
    except OSError as error:
        raise OptionError(f"{out}: not a folder for the output ({error.strerror or error})") from None
    found = "a folder that is not empty" if out.is_dir() else "a file"
    raise OptionError(f"{out}: is {found}, expected a new or empty folder for the output")


@contextmanager
def new_folder(out: Path) -> Iterator[Workplace]:
    """Lend an empty folder, and give it the name `out` once the block has ended well; otherwise nothing is left.

    Raises:
        OptionError: the name is taken, by a file or a folder that is not empty.
        WeightsError: the disk refuses.
    """
    _check_free(out)
    target = out.expanduser().absolute()
    try:
        home = next(parent for parent in target.parents if parent.is_dir())
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=home))
    except OSError as error:
        raise WeightsError(f"{out}: cannot be written ({error.strerror or error})") from None
    try:
        place = Workplace(work / "model", work / "scratch")
        place.model.mkdir()
        place.scratch.mkdir()
        yield place
        for path in (*place.model.rglob("*"), place.model):
            _sync(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        place.model.rename(target)  # takes the place of an empty folder
        _sync(target.parent)
    except OSError as error:
        raise WeightsError(f"{error.filename or out}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
