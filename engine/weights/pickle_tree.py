"""What a pickle describes, found without carrying it out: tables, lists and numbers, and where its tensors lie.

Python's own unpickler imports and calls whatever a file names. Here the operations are walked by hand: nothing is
imported and nothing is called, so a hostile file can at worst describe nonsense. What a checkpoint is made of becomes
plain Python; every other object, such as the state of a random generator, becomes an `Unknown` that keeps its name.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from .files import shown

__all__ = ["MOST_OPERATIONS", "MOST_PICKLE_BYTES", "Namespace", "PickleTree", "TensorPiece", "Unknown", "read_pickle"]

MOST_PICKLE_BYTES = 2**20
MOST_OPERATIONS = 200_000
"""A tensor takes about 35 operations and 150 bytes; the state of Python's random generator 1,250 operations."""

MOST_DIMENSIONS = 64
MOST_INTEGER_BITS = 64

STORAGES = {
    "torch DoubleStorage": ("F64", 8),
    "torch FloatStorage": ("F32", 4),
    "torch HalfStorage": ("F16", 2),
    "torch BFloat16Storage": ("BF16", 2),
    "torch LongStorage": ("I64", 8),
    "torch IntStorage": ("I32", 4),
    "torch ShortStorage": ("I16", 2),
    "torch CharStorage": ("I8", 1),
    "torch ByteStorage": ("U8", 1),
    "torch BoolStorage": ("BOOL", 1),
}
"""Name in the pickle -> safetensors' name of the dtype, and bytes of a value."""

LITERALS = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    )
)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Namespace(dict[str, Any]):
    """The attributes of an `argparse.Namespace`."""


@dataclass(frozen=True, eq=False)
class Unknown:
    """An object that was not made.

    Attributes:
        name: module and name of what the pickle wanted called.
    """

    name: str


@dataclass(frozen=True, eq=False)
class Storage:
    """A run of values outside the pickle.

    Attributes:
        key: what the container knows it by.
        dtype: safetensors' name.
        itemsize: bytes of a value.
        numel: how many values.
    """

    key: str
    dtype: str
    itemsize: int
    numel: int


@dataclass(frozen=True, eq=False)
class TensorPiece:
    """A tensor, as a part of a storage.

    Attributes:
        storage: where its values are.
        first: index of its first value there.
        shape: its sizes.
        strides: values from one index to the next, per dimension.
    """

    storage: Storage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes its values take."""
        return self.numel * self.storage.itemsize


@dataclass(frozen=True, eq=False)
class Global:
    """Something the pickle wants imported, by module and name."""

    name: str


@dataclass
class PickleTree:
    """One pickle, walked.

    Attributes:
        root: what it describes: dict, list, tuple, str, bytes, int, float, bool, None, `TensorPiece` or `Unknown`.
        storages: key -> the storage; a container may have others.
    """

    root: Any = None
    storages: dict[str, Storage] = field(default_factory=dict)


def read_pickle(stream: BytesIO, allowed: frozenset[str] | None = None) -> PickleTree:
    """Walk the next pickle of `stream`, to behind its end.

    Args:
        stream: at most `MOST_PICKLE_BYTES` of a file, or a little more.
        allowed: the only modules and names that may be in it; None: any, all that are not known become `Unknown`.

    Raises:
        ValueError: it is cut short, uses an operation that torch.save does not, is too long, or names what is not
            allowed.
    """
    machine = _Machine(allowed)
    for count, (operation, argument, _) in enumerate(pickletools.genops(stream)):
        if count >= MOST_OPERATIONS:
            raise ValueError(f"a pickle of more than {MOST_OPERATIONS:,} operations")
        machine.step(operation.name, argument)
    machine.tree.root = machine.pop()
    return machine.tree


class _Machine:
    """The stack and the memo of an unpickler that only describes.

    Keys are strings and small integers alone, so that nothing deep is ever hashed; nothing walks a value's depth.
    """

    def __init__(self, allowed: frozenset[str] | None) -> None:
        self.tree = PickleTree()
        self.allowed = allowed
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Carry one operation over to the description."""
        if name in ("PROTO", "FRAME", "STOP"):
            return
        if name in LITERALS:
            large = isinstance(argument, int) and argument.bit_length() > MOST_INTEGER_BITS
            self.stack.append(Unknown("an integer of many digits") if large else argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.top()
        elif name in ("BINGET", "LONG_BINGET"):
            if argument not in self.memo:
                raise ValueError("a broken pickle (it asks for what it has not kept)")
            self.stack.append(self.memo[argument])
        elif name == "MARK":
            self.marked.append(self.stack)
            self.stack = []
        elif name in ("EMPTY_TUPLE", "TUPLE", *TUPLES):
            made = self.tuple_of(name)  # which puts back the stack of before the mark
            self.stack.append(made)
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET"):
            self.stack.append({} if name == "EMPTY_DICT" else [] if name == "EMPTY_LIST" else Unknown("a set"))
        elif name == "FROZENSET":
            self.since_mark()
            self.stack.append(Unknown("a set"))
        elif name in ("APPEND", "APPENDS", "ADDITEMS", "SETITEM", "SETITEMS"):
            self.fill(name)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self.stack.append(self.named(argument))
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            if name == "NEWOBJ_EX":
                self.pop()
            arguments, called = self.pop(), self.pop()
            self.stack.append(_made(called, arguments))
        elif name == "BUILD":
            state, built = self.pop(), self.top()
            if isinstance(built, Namespace) and isinstance(state, dict):
                built.update((key, value) for key, value in state.items() if isinstance(key, str))
        elif name == "BINPERSID":
            self.stack.append(self.outside(self.pop()))
        elif name == "POP":
            self.pop()
        else:
            raise ValueError(f"the pickle uses {name}, which torch.save does not")

    def top(self) -> Any:
        if not self.stack:
            raise ValueError("a broken pickle (nothing on its stack)")
        return self.stack[-1]

    def pop(self) -> Any:
        top = self.top()
        self.stack.pop()
        return top

    def since_mark(self) -> list[Any]:
        if not self.marked:
            raise ValueError("a broken pickle (no mark)")
        found, self.stack = self.stack, self.marked.pop()
        return found

    def tuple_of(self, name: str) -> tuple[Any, ...]:
        if name == "TUPLE":
            return tuple(self.since_mark())
        return tuple(reversed([self.pop() for _ in range(TUPLES.get(name, 0))]))

    def fill(self, name: str) -> None:
        if name == "APPEND":
            values = [self.pop()]
        elif name == "SETITEM":
            value, key = self.pop(), self.pop()
            values = [key, value]
        else:
            values = self.since_mark()
        target = self.top()
        if isinstance(target, list) and name.startswith("APPEND"):
            target.extend(values)
        elif isinstance(target, dict) and name.startswith("SETITEM"):
            pairs = zip(values[::2], values[1::2], strict=True)
            target.update((key, value) for key, value in pairs if isinstance(key, str | int))

    def named(self, argument: Any) -> Global:
        if argument is None:
            name, module = self.pop(), self.pop()
            if not isinstance(name, str) or not isinstance(module, str):
                raise ValueError("a broken pickle (a name that is no text)")
            argument = f"{module} {name}"
        if self.allowed is not None and argument not in self.allowed:
            raise ValueError(f"the pickle asks for {shown(argument)}, which a table of tensors does not need")
        return Global(argument)

    def outside(self, what: Any) -> Storage | Unknown:
        """The storage that ("storage", kind, key, device, number of values) names; older files add a view of it."""
        parts: tuple[Any, ...] = what if isinstance(what, tuple) else ()
        view = parts[5:]
        if len(parts) not in (5, 6) or parts[0] != "storage" or view not in ((), (None,)):
            raise ValueError("the pickle names something outside that is no storage")
        kind, key, numel = parts[1], parts[2], parts[4]
        if not isinstance(kind, Global) or not isinstance(key, str) or not _sizes([numel]):
            raise ValueError("the pickle names a storage without its kind, key or size")
        if kind.name not in STORAGES:
            return Unknown(kind.name)
        found = Storage(key, *STORAGES[kind.name], numel)
        known = self.tree.storages.setdefault(key, found)
        if (known.dtype, known.numel) != (found.dtype, found.numel):
            raise ValueError(f"the pickle names storage {shown(key)} twice, with other sizes")
        return known


def _made(what: Any, arguments: Any) -> Any:
    """What a call would return, where that is known; it is not made."""
    name = what.name if isinstance(what, Global | Unknown) else type(what).__name__
    parts: tuple[Any, ...] = arguments if isinstance(arguments, tuple) else ()
    if name == "collections OrderedDict" and not parts:
        return {}
    if name == "argparse Namespace" and not parts:
        return Namespace()
    if name == "torch._utils _rebuild_parameter" and parts and isinstance(parts[0], TensorPiece):
        return parts[0]
    if name in ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor") and len(parts) >= 4:
        storage, first, shape, strides = parts[:4]
        if isinstance(storage, Storage):
            lists = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)
            if not lists or len(shape) > MOST_DIMENSIONS or not _sizes((first, *shape, *strides)):
                raise ValueError("a tensor whose shape cannot be read")
            return TensorPiece(storage, first, shape, strides)
    return Unknown(name)


def _sizes(values: Iterable[Any]) -> bool:
    return all(type(value) is int and 0 <= value < 2**63 for value in values)
