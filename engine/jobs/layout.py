"""The output folder of a job: the names in it, and who may write there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import JobError
from .durable import TEMPORARY_SUFFIX, writing

__all__ = ["ERRORS", "MANIFEST", "SHARDS", "SUMMARY", "check_output", "claim_output", "part_name"]

MANIFEST = "manifest.json"
SHARDS = "shards.jsonl"
ERRORS = "errors.jsonl"
SUMMARY = "summary.json"

_PART = re.compile(r"part-\d{5,}\.parquet")


def part_name(index: int) -> str:
    """File name of shard `index`, counted from 0."""
    return f"part-{index:05d}.parquet"


def claim_output(folder: Path, inputs: Sequence[Path], *, overwrite: bool) -> None:
    """Make `folder` an empty output folder, creating it where it is missing.

    Args:
        folder: where the job will write.
        inputs: the job's input files, which must lie elsewhere.
        overwrite: remove the files of an earlier job; files that no job writes are never touched.

    Raises:
        JobError: if `folder` is a file, holds a job (without `overwrite`), an input, or anything no job writes.
    """
    found = check_output(folder, inputs, overwrite=overwrite)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # The manifest goes first: there must never be one that describes files already removed.
        for path in sorted(found, key=lambda path: path.name != MANIFEST):
            path.unlink()


def check_output(folder: Path, inputs: Sequence[Path], *, overwrite: bool) -> list[Path]:
    """The checks of `claim_output`, changing nothing; returns the files it would remove."""
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise JobError(f"{folder}: is a file, expected a folder for the output")
    with writing(folder):
        found = sorted(folder.iterdir())
    for path in inputs:
        if path.resolve().parent == folder.resolve():
            raise JobError(f"{folder}: holds the input {path.name}, expected another folder for the output")
    foreign = [path.name for path in found if not _is_ours(path)]
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise JobError(f"{folder}: holds files that are not a job's ({', '.join(foreign[:3])}{more}), expected none")
    if found and not overwrite:
        state = "already holds a job" if (folder / MANIFEST).exists() else f"holds {found[0].name} but no {MANIFEST}"
        raise JobError(f"{folder}: {state}, expected an empty folder (or --overwrite)")
    return found


def _is_ours(path: Path) -> bool:
    name = path.name.removesuffix(TEMPORARY_SUFFIX)
    return (name in (MANIFEST, SHARDS, ERRORS, SUMMARY) or _PART.fullmatch(name) is not None) and path.is_file()
