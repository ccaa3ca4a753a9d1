"""Tuned configurations as a file: what was found fastest for which call, on which machine, and how much faster.

One file holds the entries of one op for one GPU ("nvidia-h200") or for one compute capability ("sm_90"):

    {
    "schema": 1,
    "checksum": BLAKE2b-256, hexadecimal, of the canonical JSON of all but itself,
    "op": "attention",
    "target": "nvidia-h200",
    "entries": [
    {"key": {"bias": "none", "dtype": "bfloat16", …}, "config": {"blocks": {…}, …}, "provenance": {"gpu": …, …}},
    …
    ]}

A file comes from a disk that others write to. Whatever its bytes, it is read as what was once written or refused with a
`RecordError`: there is nothing between, for an entry that was guessed at would choose how a kernel is compiled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from ..engine.errors import PadlessError
from .device import slugify
from .key import FACTS, Key

__all__ = [
    "LARGEST_FILE",
    "MOST_ENTRIES",
    "SCHEMA",
    "Entry",
    "Provenance",
    "Record",
    "RecordError",
    "Tiling",
    "check_names",
    "decode",
    "encode",
    "read_record",
]

SCHEMA = 1
"""Version of the file's layout; raised when a reader of the older one would misunderstand a file."""

MOST_ENTRIES = 4096
"""Entries of one file: some hundred models on each of several versions of Triton."""

LARGEST_FILE = 16 * 2**20
"""Bytes; more than `MOST_ENTRIES` of the longest entries that are allowed."""

_WORD = re.compile(r"[a-z0-9_]{1,40}", re.ASCII)
_OP = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
_TARGET = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*|sm_[1-9][0-9]{1,3}", re.ASCII)
_BLOCK = re.compile(r"[A-Z][A-Z0-9_]{0,31}", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{16}", re.ASCII)
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,79}", re.ASCII)
_NAME = re.compile(r"[ -~]{1,100}", re.ASCII)
_CHECKSUM = re.compile(r"[0-9a-f]{64}", re.ASCII)

_LONGEST_US = 1e9


class RecordError(PadlessError):
    """A file of tuned configurations, or an entry of one, that is not to be trusted; says what is wrong with it."""


@dataclass(frozen=True)
class Tiling:
    """A configuration in plain values, as `Config` of the kernels has them.

    Attributes:
        blocks: names and values of the kernel's constants, in the order of their names.
        num_warps: warps of 32 threads a program has, a power of two.
        num_stages: tiles in flight.
        max_registers: registers a thread may have; None leaves that to the compiler.

    Raises:
        RecordError: a value of another type or out of any kernel's range.
    """

    blocks: tuple[tuple[str, int], ...]
    num_warps: int
    num_stages: int
    max_registers: int | None = None

    def __post_init__(self) -> None:
        if len(self.blocks) > 16:
            raise RecordError(f"blocks: expected at most 16, found {len(self.blocks)}")
        for name, value in self.blocks:
            _check_text("block", name, _BLOCK)
            _check_whole(name, value, 0, 2**20)
        if [name for name, _ in self.blocks] != sorted({name for name, _ in self.blocks}):
            raise RecordError("blocks: expected each name once, in their order")
        _check_whole("num_warps", self.num_warps, 1, 64)
        if self.num_warps & (self.num_warps - 1):
            raise RecordError(f"num_warps: expected a power of two, found {self.num_warps}")
        _check_whole("num_stages", self.num_stages, 1, 32)
        if self.max_registers is not None:
            _check_whole("max_registers", self.max_registers, 1, 1024)


@dataclass(frozen=True)
class Provenance:
    """Where an entry comes from.

    Attributes:
        gpu: the GPU's name as torch gives it ("NVIDIA H200"); None, as the next one and both times, where the entry was
            chosen by a rule and not measured.
        multiprocessors: of that GPU.
        sm: compute capability times ten; None off NVIDIA hardware.
        torch: version.
        triton: version.
        driver: version of the GPU's driver; None where it could not be found out.
        kernel_hash: what `autotune/kernel_hash.py` says of the kernel's source, 16 hexadecimal digits.
        us: microseconds of one call with this configuration, the median.
        default_us: the same with the configuration that is used where nothing was measured.

    Raises:
        RecordError: a value of another type or out of its range.
    """

    gpu: str | None
    multiprocessors: int | None
    sm: int | None
    torch: str
    triton: str
    driver: str | None
    kernel_hash: str
    us: float | None
    default_us: float | None

    def __post_init__(self) -> None:
        measured = (self.gpu, self.multiprocessors, self.us, self.default_us)
        if any(value is None for value in measured):
            if any(value is not None for value in measured):
                raise RecordError("provenance: expected gpu, multiprocessors, us and default_us, or none of them")
        else:
            _check_text("gpu", self.gpu, _NAME)
            _check_whole("multiprocessors", self.multiprocessors, 1, 100_000)
            _check_microseconds("us", self.us)
            _check_microseconds("default_us", self.default_us)
        if self.sm is not None:
            _check_whole("sm", self.sm, 10, 9999)
        _check_text("torch", self.torch, _VERSION)
        _check_text("triton", self.triton, _VERSION)
        if self.driver is not None:
            _check_text("driver", self.driver, _VERSION)
        _check_text("kernel_hash", self.kernel_hash, _HASH)


@dataclass(frozen=True)
class Entry:
    """The configuration found for one key.

    Raises:
        RecordError: a fact that is unknown or of another type.
    """

    key: Key
    tiling: Tiling
    provenance: Provenance

    def __post_init__(self) -> None:
        for name, value in self.key:
            expected = FACTS.get(name)
            if expected is str:
                _check_text(name, value, _WORD)
            elif expected is int:
                _check_whole(name, value, 1, 2**31 - 1)
            elif expected is None or value is not True:
                raise RecordError(f"key: expected facts of {', '.join(FACTS)}, found {_describe(name)}")
        if [name for name, _ in self.key] != sorted({name for name, _ in self.key}):
            raise RecordError("key: expected each fact once, in the order of their names")
        if "dtype" not in dict(self.key):
            raise RecordError("key: expected a dtype, found none")

    @property
    def identity(self) -> tuple[object, ...]:
        """What two entries of one file must not have in common: of those the later one replaces the other."""
        found = self.provenance
        return self.key, found.gpu, found.sm, found.multiprocessors, found.triton, found.kernel_hash


@dataclass(frozen=True)
class Record:
    """One file.

    Attributes:
        target: the slug of a GPU's name ("nvidia-h200"), or "sm_90".
        op: name of the op, a key of the dispatch table.
        entries: the oldest first.

    Raises:
        RecordError: an entry that is not of this target, two of one identity, or too many.
    """

    target: str
    op: str
    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        check_names(self.target, self.op)
        if len(self.entries) > MOST_ENTRIES:
            raise RecordError(f"entries: expected at most {MOST_ENTRIES}, found {len(self.entries)}")
        for entry in self.entries:
            found = entry.provenance
            name = "nothing measured" if found.gpu is None else slugify(found.gpu)
            if self.target.startswith("sm_"):
                name = f"sm_{found.sm}"
            if name != self.target:
                raise RecordError(f"entries: expected those of {self.target}, found one of {name}")
        if len({entry.identity for entry in self.entries}) < len(self.entries):
            raise RecordError("entries: found two of the same key, GPU, triton and kernel hash")


def check_names(target: str, op: str) -> None:
    """Refuse what is no name of a target or an op, and so no part of a path.

    Raises:
        RecordError: either is not.
    """
    _check_text("target", target, _TARGET)
    _check_text("op", op, _OP)


def encode(record: Record) -> bytes:
    """The file's content: one line an entry, so that people can read and compare it."""
    body = {"schema": SCHEMA, "op": record.op, "target": record.target, "entries": list(map(_tree, record.entries))}
    head = {"schema": SCHEMA, "checksum": _checksum(body), "op": record.op, "target": record.target}
    lines = [f'"{name}": {json.dumps(value)},' for name, value in head.items()]
    entries = ",\n".join(map(json.dumps, body["entries"]))
    return ("{\n" + "\n".join(lines) + f'\n"entries": [\n{entries}\n]}}\n').encode("ascii")


def decode(content: bytes) -> Record:
    """The record that `encode` made these bytes of.

    Raises:
        RecordError: they are of no record; nothing else is raised, whatever the bytes.
    """
    try:
        tree = json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
        return _record_of(tree)
    except UnicodeDecodeError as error:
        raise RecordError(f"not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise RecordError(f"not JSON ({error.msg}, line {error.lineno})") from None
    except (ValueError, RecursionError) as error:
        # An integer of thousands of digits, or brackets nested thousands deep.
        raise RecordError(f"not JSON that can be read ({type(error).__name__})") from None


def read_record(path: Path, target: str, op: str, *, follow_symlinks: bool = True) -> Record | None:
    """The record in a file, None where there is no such file.

    Args:
        path: the file.
        target: what the file must be of.
        op: the same.
        follow_symlinks: whether the file itself may be a link, as installers make them.

    Raises:
        RecordError: there is something of this name, but it cannot be read (its cause is then the OSError), is larger
            than any record, is none, or is one of another target or op.
    """
    # A pipe of this name would otherwise wait for somebody to write into it.
    flags = os.O_NONBLOCK | (0 if follow_symlinks else os.O_NOFOLLOW)
    try:
        with open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags)) as handle:
            if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
                raise RecordError(f"{path}: not a regular file")
            content = handle.read(LARGEST_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(content) > LARGEST_FILE:
        raise RecordError(f"{path}: expected at most {LARGEST_FILE:,} bytes, found more")
    try:
        record = decode(content)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from None
    if (record.target, record.op) != (target, op):
        raise RecordError(f"{path}: expected {op} for {target}, found {record.op} for {record.target}")
    return record


def _record_of(tree: Any) -> Record:
    schema = _object("file", tree).get("schema")
    if type(schema) is not int or schema != SCHEMA:
        raise RecordError(f"schema: expected {SCHEMA}, found {_describe(schema)}")
    _object("file", tree, ("schema", "checksum", "op", "target", "entries"))
    _check_text("checksum", tree["checksum"], _CHECKSUM)
    if _checksum({name: value for name, value in tree.items() if name != "checksum"}) != tree["checksum"]:
        raise RecordError("checksum: is not that of the content")
    if not isinstance(tree["entries"], list):
        raise RecordError(f"entries: expected a list, found {_describe(tree['entries'])}")
    return Record(tree["target"], tree["op"], tuple(map(_entry_of, tree["entries"])))


def _entry_of(tree: Any) -> Entry:
    _object("entry", tree, ("key", "config", "provenance"))
    config = _object("config", tree["config"], tuple(field.name for field in fields(Tiling)))
    blocks = tuple(sorted(_object("blocks", config["blocks"]).items()))
    provenance = _object("provenance", tree["provenance"], tuple(field.name for field in fields(Provenance)))
    key = tuple(sorted(_object("key", tree["key"]).items()))
    return Entry(key, Tiling(**{**config, "blocks": blocks}), Provenance(**provenance))


def _tree(entry: Entry) -> dict[str, Any]:
    tiling, provenance = asdict(entry.tiling), asdict(entry.provenance)
    return {"key": dict(entry.key), "config": {**tiling, "blocks": dict(entry.tiling.blocks)}, "provenance": provenance}


def _checksum(body: dict[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(canonical.encode("ascii"), digest_size=32).hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RecordError("expected each name of an object once, found one twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise RecordError(f"expected finite numbers, found {name}")


def _object(what: str, tree: Any, expected: tuple[str, ...] | None = None) -> dict[str, Any]:
    """`tree`, which must be an object, and of these fields where they are named."""
    if not isinstance(tree, dict):
        raise RecordError(f"{what}: expected a JSON object, found {_describe(tree)}")
    if expected is not None and tree.keys() != set(expected):
        name = min(tree.keys() ^ set(expected))
        raise RecordError(f"{what}: {_describe(name)}: {'unknown' if name in tree else 'missing'}")
    return tree


def _check_text(what: str, value: object, pattern: re.Pattern[str]) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise RecordError(f"{what}: expected a text like {pattern.pattern}, found {_describe(value)}")


def _check_whole(what: str, value: object, least: int, most: int) -> None:
    """Refuse all but whole numbers of a range; True is none."""
    if type(value) is not int or not least <= value <= most:
        raise RecordError(f"{what}: expected a whole number of {least} to {most}, found {_describe(value)}")


def _check_microseconds(what: str, value: object) -> None:
    if type(value) not in (int, float) or not 0 < value <= _LONGEST_US:  # pyright: ignore[reportOperatorIssue]
        raise RecordError(f"{what}: expected microseconds above 0, found {_describe(value)}")


def _describe(value: object) -> str:
    """A value in one short line; a container only by its kind, for a deep one cannot be spelled out."""
    if isinstance(value, str | int | float | None):
        return ascii(value[:40] if isinstance(value, str) else value)[:60]
    return {dict: "an object", list: "a list"}.get(type(value), type(value).__name__)
