"""Going on with a job: its committed shards are checked, and what came after them is removed.

A committed shard that is missing or changed stops the job: something other than padless, or a failing disk, has been
there, and doing it again in silence would hide that.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import JobError
from .durable import TEMPORARY_SUFFIX, append_durably, writing
from .layout import ERRORS, SHARDS, SUMMARY, part_index, part_name
from .manifest import ShardRecord, read_shards, whole_lines_bytes

__all__ = ["committed_shards", "remove_parts", "remove_uncommitted"]

_REMEDY = "restore it, or begin anew with --overwrite"


def committed_shards(folder: Path, rows_per_shard: int, *, digests: bool) -> list[ShardRecord]:
    """The committed shards, in order, each found to be as it was written.

    Args:
        folder: the output folder.
        rows_per_shard: of the job.
        digests: read every shard and compare its digest; otherwise sizes only.

    Raises:
        JobError: naming the file that is missing or changed.
    """
    shards = read_shards(folder)
    for index, shard in enumerate(shards):
        if (shard.name, shard.first_row) != (part_name(index), index * rows_per_shard):
            raise JobError(f"{folder / SHARDS}: line {index + 1} is of {shard.name}, expected {part_name(index)}")
    for shard in shards:
        _check_size(folder / shard.name, shard.bytes)
    if digests:
        for shard in shards:
            _check_digest(folder / shard.name, shard.blake2b)
    recorded = shards[-1].errors_bytes if shards else 0
    path = folder / ERRORS
    length = path.stat().st_size if path.exists() else 0
    if length < recorded:
        raise JobError(f"{path}: has {length:,} bytes, expected at least {recorded:,}; {_REMEDY}")
    return shards


def remove_uncommitted(folder: Path, shards: Sequence[ShardRecord]) -> None:
    """Bring the folder back to what it was when the last of `shards` was committed. The caller holds its lock.

    Raises:
        JobError: if the disk refuses.
    """
    with writing(folder):
        for path in sorted(folder.iterdir()):
            if path.name.endswith(TEMPORARY_SUFFIX):
                path.unlink()
        remove_parts(folder, len(shards))
        (folder / SUMMARY).unlink(missing_ok=True)
    for name, length in ((SHARDS, whole_lines_bytes(folder)), (ERRORS, shards[-1].errors_bytes if shards else 0)):
        append_durably(folder / name, "")  # creates it where the first run did not come so far
        with writing(folder / name), (folder / name).open("rb+") as handle:
            handle.truncate(length)
            os.fsync(handle.fileno())


def remove_parts(folder: Path, committed: int) -> None:
    """Remove the files of the shards behind the committed ones, whole or not.

    Raises:
        OSError: if the disk refuses.
    """
    for path in sorted(folder.iterdir()):
        index = part_index(path)
        if index is not None and index >= committed:
            path.unlink()


def _check_size(path: Path, expected: int) -> None:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise JobError(f"{path}: is missing, expected a shard of {expected:,} bytes; {_REMEDY}") from None
    except OSError as error:
        raise JobError(f"{path}: cannot be read ({error.strerror})") from error
    if found != expected:
        raise JobError(f"{path}: has {found:,} bytes, expected {expected:,}; {_REMEDY}")


def _check_digest(path: Path, expected: str) -> None:
    try:
        with path.open("rb") as handle:
            found = hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=32)).hexdigest()
    except OSError as error:
        raise JobError(f"{path}: cannot be read ({error.strerror})") from error
    if found != expected:
        raise JobError(f"{path}: does not have the digest that {SHARDS} tells, it was changed; {_REMEDY}")
