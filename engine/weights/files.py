"""Which files a checkpoint is made of, and how they are opened: nothing outside the folder, nothing that is not a file.

A folder from a stranger may hold links, pipes and indexes that name anything. What is read here is bounded in bytes and
in Python objects before it is parsed.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from reprlib import Repr
from typing import Any

from ..errors import WeightsError

__all__ = [
    "INDEX_NAME",
    "MOST_TENSORS",
    "PICKLED_INDEX_NAME",
    "PICKLED_NAME",
    "WEIGHTS_NAME",
    "Checkpoint",
    "find_checkpoint",
    "inside",
    "listed",
    "one_line",
    "open_file",
    "parse_object",
    "shown",
]

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
PICKLED_NAME = "pytorch_model.bin"
PICKLED_INDEX_NAME = "pytorch_model.bin.index.json"

MOST_SHARDS = 10_000
MOST_TENSORS = 50_000
"""In all shards together; the largest encoders have a few thousand."""

MOST_JSON_BYTES = 6 * 2**20
MOST_JSON_VALUES = 300_000
"""Bytes and values of a header or an index. A tensor takes about 120 bytes and 12 values in a header, 90 bytes and two
values in an index. Together they keep what the parser builds below 100 MB, which is tested at the limits."""

LONGEST_NAME = 1_000
MOST_NAMES_LISTED = 20

LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Checkpoint:
    """The files of a checkpoint, all checked to lie where they may.

    Attributes:
        source: the file that error messages about the whole checkpoint name.
        paths: the files with tensors, in the order of their names.
        weight_map: the index's tensor -> file name; None for a checkpoint in one file.
        pickled: the files are written by `torch.save`.
    """

    source: Path
    paths: tuple[Path, ...]
    weight_map: dict[str, str] | None = None
    pickled: bool = False


def find_checkpoint(folder: Path, *, pickled: bool = False) -> Checkpoint:
    """The checkpoint in `folder`: `model.safetensors`, else its sharded form, else, only if asked for, pickled files.

    Raises:
        WeightsError: there is none, or only a pickled one that was not asked for; a file is missing or not allowed.
    """
    names = [(WEIGHTS_NAME, INDEX_NAME, "safetensors")]
    if pickled:
        names.append((PICKLED_NAME, PICKLED_INDEX_NAME, "bin"))
    for single, index, suffix in names:
        if os.path.lexists(folder / single):
            return Checkpoint(folder / single, (inside(folder, single),), pickled=suffix == "bin")
        if os.path.lexists(folder / index):
            return _sharded(folder, index, suffix)
    present = sorted(path.name for path in folder.glob("*.bin") if path.name.startswith("pytorch_model"))
    if present and not pickled:
        raise WeightsError(
            f"{folder / present[0]}: a pickled checkpoint, which can run code when it is read; expected "
            f"{WEIGHTS_NAME}: 'padless convert' writes it, and runs nothing"
        )
    expected = ", ".join(name for pair in names for name in pair[:2])
    raise WeightsError(f"{folder}: holds no weights; expected {expected.replace(', ', ' or ')}")


def _sharded(folder: Path, index_name: str, suffix: str) -> Checkpoint:
    index = folder / index_name
    with open_file(inside(folder, index_name)) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > MOST_JSON_BYTES:
            raise WeightsError(f"weight index {index}: {size:,} bytes, expected at most {MOST_JSON_BYTES:,}")
        try:
            weight_map = parse_object(stream.read(size)).get("weight_map")
        except ValueError as error:
            raise WeightsError(f"weight index {index}: {error}") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"weight index {index}: weight_map: expected an object with an entry per tensor")
    if len(weight_map) > MOST_TENSORS:
        raise WeightsError(f"weight index {index}: {len(weight_map):,} tensors, expected at most {MOST_TENSORS:,}")
    shard_name = re.compile(rf"[A-Za-z0-9._-]+\.{suffix}", re.ASCII)
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not shard_name.fullmatch(shard):
            raise WeightsError(
                f"weight index {index}: tensor {shown(tensor)}: expected the name of a .{suffix} file "
                f"in the same folder, got {shown(shard)}"
            )
    shards = sorted(set(weight_map.values()))
    if len(shards) > MOST_SHARDS:
        raise WeightsError(f"weight index {index}: {len(shards):,} shards, expected at most {MOST_SHARDS:,}")
    paths: dict[tuple[int, int], Path] = {}
    for shard in shards:
        path = inside(folder, shard, named_by=index_name)
        status = path.stat()
        other = paths.setdefault((status.st_dev, status.st_ino), path)
        if other is not path:
            raise WeightsError(f"weight index {index}: shards {other.name} and {shard} are the same file")
    return Checkpoint(index, tuple(paths.values()), weight_map, pickled=suffix == "bin")


def inside(folder: Path, name: str, *, named_by: str | None = None) -> Path:
    """The path of a file of the checkpoint, refused where a link leads out of the folder.

    The Hugging Face cache is let through: a file of `snapshots/<commit>` links to `blobs` beside `snapshots`, and that
    may link to `blobs/xx` of the whole cache.
    """
    path = folder / name
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):
        why = f"though {named_by} names it" if named_by else "the link leads nowhere"
        raise WeightsError(f"{path}: no such file, {why}") from None
    home = folder.resolve()
    allowed = [real.parent == home]
    for snapshot in (home, *home.parents[:2]):
        if snapshot.parent.name == "snapshots":
            repository = snapshot.parent.parent
            allowed.append(real.parent == repository / "blobs")
            allowed.append(real.parent.parent == repository.parent / "blobs")
    if not any(allowed):
        raise WeightsError(f"{path}: a link that leads out of the model folder, to {real}")
    return path


@contextmanager
def open_file(path: Path) -> Iterator[FileIO]:
    """Open a regular file for reading; anything else is refused, and a pipe without waiting for its writer.

    Raises:
        WeightsError: the file cannot be opened, is not a regular file, or is a Git LFS pointer.
    """
    try:
        stream = FileIO(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from None
    with stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise WeightsError(f"{path}: cannot be read (not a regular file)")
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            raise WeightsError(f"{path}: a Git LFS pointer, not the weights; fetch them with 'git lfs pull'")
        stream.seek(0)
        yield stream


def parse_object(text: bytes) -> dict[str, Any]:
    """Parse a JSON object that is known to have at most `MOST_JSON_BYTES` bytes.

    Raises:
        ValueError: too many values, not UTF-8, not JSON, not an object, or a name that is given twice or too long.
    """
    values = sum(text.count(mark) for mark in (b",", b":", b"[", b"{"))
    if values > MOST_JSON_VALUES:
        raise ValueError(f"{values:,} values, expected at most {MOST_JSON_VALUES:,}")
    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("not JSON that can be read (nested too deep)") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}, line {error.lineno})") from None
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, got {shown(found)}")
    return found


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {shown(twice)} is given twice")
    if any(len(name) > LONGEST_NAME for name in found):
        raise ValueError(f"a name of more than {LONGEST_NAME:,} characters")
    for text in (*found, *(value for value in found.values() if isinstance(value, str))):
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(f"{shown(text)} is not Unicode text")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"not JSON ({name})")


_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def shown(value: object) -> str:
    """A value of a file on a few characters, however long or deep it is."""
    return _SHORT.repr(value)


def listed(names: Sequence[str]) -> str:
    """The first names, fit for one line, and how many more there are."""
    first = ", ".join(name if name.isprintable() else repr(name) for name in names[:MOST_NAMES_LISTED])
    return first if len(names) <= MOST_NAMES_LISTED else f"{first} and {len(names) - MOST_NAMES_LISTED} more"


def one_line(error: BaseException) -> str:
    """What an error says, on one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
