"""The output folder of a job: the names in it, and who may write there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import JobError
from .durable import TEMPORARY_SUFFIX, writing

__all__ = ["ERRORS", "LOCK", "MANIFEST", "SHARDS", "SUMMARY", "check_output", "claim_output", "part_index", "part_name"]

MANIFEST = "manifest.json"
SHARDS = "shards.jsonl"
ERRORS = "errors.jsonl"
SUMMARY = "summary.json"
LOCK = ".lock"

_PART = re.compile(r"part-(\d{5,})\.parquet")


def part_name(index: int) -> str:
    """File name of shard `index`, counted from 0."""
    return f"part-{index:05d}.parquet"


def part_index(path: Path) -> int | None:
    """Number of the shard that has this name, whole or still temporary; None for other files."""
    found = _PART.fullmatch(path.name.removesuffix(TEMPORARY_SUFFIX))
    return None if found is None else int(found[1])


def claim_output(folder: Path, inputs: Sequence[Path], *, overwrite: bool) -> None:
    """Make `folder` an empty output folder. The caller holds its lock.

    Args:
        folder: where the job will write.
        inputs: the job's input files, which must lie elsewhere.
        overwrite: remove the files of an earlier job; files that no job writes are never touched.

    Raises:
        JobError: if `folder` is a file, holds a job (without `overwrite`), an input, or anything no job writes.
    """
    found = check_output(folder, inputs, overwrite=overwrite)
    with writing(folder):
        # The manifest goes first: there must never be one that describes files already removed.
        for path in sorted(found, key=lambda path: path.name != MANIFEST):
            path.unlink()


def check_output(folder: Path, inputs: Sequence[Path], *, overwrite: bool, resume: bool = False) -> list[Path]:
    """The checks of `claim_output`, changing nothing; returns the files it would remove.

    Args:
        folder: where the job will write.
        inputs: the job's input files.
        overwrite: an earlier job is no reason to refuse.
        resume: an earlier job with a manifest is no reason to refuse; whether it is the same job is seen later.
    """
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise JobError(f"{folder}: is a file, expected a folder for the output")
    with writing(folder):
        found = sorted(path for path in folder.iterdir() if path.name != LOCK)
    for path in inputs:
        if path.resolve().parent == folder.resolve():
            raise JobError(f"{folder}: holds the input {path.name}, expected another folder for the output")
    foreign = [path.name for path in found if not _is_ours(path)]
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise JobError(f"{folder}: holds files that are not a job's ({', '.join(foreign[:3])}{more}), expected none")
    # Temporary files alone are what a job leaves that was killed before it had written its manifest.
    whole = [path.name for path in found if not path.name.endswith(TEMPORARY_SUFFIX)]
    has_manifest = MANIFEST in whole
    if whole and not overwrite and not (resume and has_manifest):
        state = "already holds a job" if has_manifest else f"holds {whole[0]} but no {MANIFEST}"
        remedy = "an empty folder, --resume or --overwrite" if has_manifest else "an empty folder (or --overwrite)"
        raise JobError(f"{folder}: {state}, expected {remedy}")
    return found


def _is_ours(path: Path) -> bool:
    name = path.name.removesuffix(TEMPORARY_SUFFIX)
    return (name in (MANIFEST, SHARDS, ERRORS, SUMMARY) or part_index(path) is not None) and path.is_file()
