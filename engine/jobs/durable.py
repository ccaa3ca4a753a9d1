"""Writes that survive a power cut: a file appears whole under its name or not at all, an append is on disk or absent.

The order everywhere: write under a temporary name in the same folder, fsync, rename, fsync the folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import JobError

__all__ = ["TEMPORARY_SUFFIX", "append_durably", "commit", "temporary", "write_durably", "writing"]

TEMPORARY_SUFFIX = ".tmp"


def temporary(path: Path) -> Path:
    """The name under which `path` is written until it is whole."""
    return path.with_name(path.name + TEMPORARY_SUFFIX)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block (disk full, quota, read-only) into a JobError that names the file."""
    try:
        yield
    except OSError as error:
        raise JobError(f"{path}: cannot be written ({error.strerror or error})") from error


def commit(path: Path) -> None:
    """Give the finished temporary file its name, lastingly. The temporary file must be closed.

    Raises:
        JobError: if the disk refuses.
    """
    with writing(path):
        with temporary(path).open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary(path).replace(path)
        _sync_folder(path.parent)


def write_durably(path: Path, content: str) -> None:
    """Write a whole small file, atomically.

    Raises:
        JobError: if the disk refuses; the old file, if any, is then untouched.
    """
    try:
        with writing(path):
            temporary(path).write_text(content, encoding="utf-8", newline="\n")
        commit(path)
    except JobError:
        temporary(path).unlink(missing_ok=True)
        raise


def append_durably(path: Path, content: str) -> int:
    """Append to a file, creating it where it is missing, and return its new length in bytes.

    A cut in the middle leaves a torn tail; whoever reads the file goes by a length or a line end recorded elsewhere.

    Raises:
        JobError: if the disk refuses.
    """
    with writing(path):
        is_new = not path.exists()
        with path.open("ab") as handle:
            handle.write(content.encode("utf-8"))
            handle.flush()
            os.fsync(handle.fileno())
            length = handle.tell()
        if is_new:
            _sync_folder(path.parent)
    return length


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # a folder cannot be opened there, and a rename is journalled
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
