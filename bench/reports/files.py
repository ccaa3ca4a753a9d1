"""Reports as they begin and as they get onto the disk, the same for all commands of `bench`."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from ...engine.errors import InputError
from .report import KINDS

__all__ = ["check_folders", "frame", "write_json", "writing"]

File = str | os.PathLike[str]


def frame(kind: str, machine: Mapping[str, Any], **content: Any) -> dict[str, Any]:
    """A report: what `report.py` asks of all of them, and then what is its own.

    Args:
        kind: of `report.KINDS`; written in the newest schema.
        machine: where it was made.
        content: what was found.
    """
    written = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"schema": KINDS[kind][-1], "kind": kind, "written": written, "machine": machine, **content}


def check_folders(*paths: File | None) -> None:
    """Refuse files whose folder is not there, before minutes of work and not after; None is no file.

    Raises:
        InputError: one of them cannot be written.
    """
    for path in paths:
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise InputError(f"{path}: cannot be written, there is no folder {Path(path).parent}")


def write_json(report: Mapping[str, Any], path: File) -> None:
    """Write a report.

    Raises:
        InputError: the disk refuses.
    """
    with writing(path) as file:
        file.write(json.dumps(report, indent=1) + "\n")


@contextmanager
def writing(path: File) -> Iterator[TextIO]:
    """A file to write text to, line ends as they are given.

    Raises:
        InputError: the disk refuses.
    """
    try:
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise InputError(f"{path}: cannot be written, {error.strerror or error}") from error
