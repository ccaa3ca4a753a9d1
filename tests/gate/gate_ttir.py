"""Triton's intermediate text, read into the graph of its values: what each is made from, through loops and branches.

Read as text because Triton's Python bindings do not tell what a loop carries. A line that does not look as expected is
an error, never passed over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath

__all__ = ["Value", "parse"]

NAME = r"%[\w$.-]+(?:#\d+)?"
DEFINED = re.compile(r"(%[\w$.-]+)(?::(\d+))?((?:, %[\w$.-]+)*) = (.*)")
"""One result, several of one name (`%a:2`), or several of names of their own (`%a, %b`)."""
LOCATION = re.compile(r"loc\((#loc\d*)\)$")
CARRIES = ("scf.for", "scf.while", "scf.if", "tt.reduce", "tt.scan")
WARPS = "ttg.warp_specialize"
LEAVES = ("scf.yield", "tt.reduce.return", "tt.scan.return")


@dataclass(eq=False)
class Value:
    """One value of the kernel, or an operation that gives none.

    Attributes:
        op: what makes it, as "arith.muli"; "argument"; "counter" of a loop, made from its first, last and step; "join",
            one of its operands, such as what a loop carries.
        text: the operation, without its place.
        operands: values it is made from.
        place: "file.py:12" of the kernel's source, where known.
    """

    op: str
    text: str
    operands: list[Value] = field(default_factory=list)
    place: str = ""

    @property
    def bits(self) -> int:
        """Width of an integer, or of the integers of a tensor; 64 for `index`."""
        found = re.findall(r"(?:^|[x<( ])i(\d+)\b", self.text.rpartition(":")[2])
        return int(found[-1]) if found else 64

    @property
    def constant(self) -> int | None:
        """The number, where the value is a constant integer, or a tensor full of one."""
        found = re.match(r"arith\.constant (?:dense<)?(-?\d+)>? :", self.text)
        return int(found[1]) if found else None


@dataclass(eq=False)
class _Region:
    """An open brace: what its names mean, and where what leaves it goes."""

    op: str
    names: dict[str, Value] = field(default_factory=dict)
    given: list[Value] = field(default_factory=list)
    carried: list[Value] = field(default_factory=list)
    results: list[Value] = field(default_factory=list)
    second: bool = False


def parse(ttir: str) -> list[Value]:
    """Every operation of a kernel in its order, linked to what it is made from.

    Raises:
        ValueError: a line cannot be read.
    """
    return _Reader(ttir).values


class _Reader:
    def __init__(self, ttir: str) -> None:
        self.values: list[Value] = []
        self._regions: list[_Region] = []
        self._labels: dict[tuple[_Region, str], list[Value]] = {}
        self._branches: list[tuple[tuple[_Region, str], list[Value]]] = []
        self._captured: list[Value] = []
        self._places = _places(ttir)
        self._place = ""
        for line in ttir.splitlines():
            self._read(line.strip())
        for label, given in self._branches:
            for join, value in zip(self._labels[label], given, strict=True):
                join.operands.append(value)

    def _read(self, line: str) -> None:
        if not line or line.startswith(("#", "module", "//")):
            return
        location = LOCATION.search(line)
        self._place = self._places.get(location[1], "") if location else ""
        line = re.sub(r" loc\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)", "", line).strip()
        if line.startswith("tt.func"):
            names = re.findall(rf"({NAME}): ", line)
            self._regions.append(_Region("tt.func", {name: Value("argument", name) for name in names}))
        elif line.startswith("}"):
            self._close(line)
        elif line.startswith(("default {", "partition")):
            self._partition(line)
        elif line.startswith("^"):
            self._label(line)
        else:
            self._operation(line)

    def _close(self, line: str) -> None:
        if not self._regions:
            return
        region = self._regions.pop()
        if line.endswith("{"):
            # The other branch of an `if`; the body of a `while` behind its condition.
            region.names, region.second = {}, True
            self._regions.append(region)

    def _partition(self, line: str) -> None:
        """What some of the warps do: the first see all that is defined so far, the others what they are given."""
        names = re.findall(rf"({NAME}): ", line)
        given = self._captured if names else []
        joins = [Value("join", line, [value], self._place) for value in given]
        self._regions.append(_Region(WARPS, dict(zip(names, joins, strict=True))))

    def _label(self, line: str) -> None:
        """The beginning of a block: what is passed to it gets names."""
        region = self._regions[-1]
        names = re.findall(rf"({NAME}): ", line)
        joins = [Value("join", line, place=self._place) for _ in names]
        if region.op in ("tt.func", WARPS):
            self._labels[region, re.split(r"[:(]", line)[0]] = joins
        elif region.op == "scf.while":
            for join, value in zip(joins, region.given, strict=True):
                join.operands.append(value)
        else:
            for join in joins:
                join.operands += region.given
        region.names.update(zip(names, joins, strict=True))

    def _operation(self, line: str) -> None:
        defined = DEFINED.match(line)
        text = defined[4] if defined else line
        op = re.match(r'"?([a-z_]+\.[\w.]+)"?', text)
        if not op:
            raise ValueError(f"TTIR: expected an operation, found {line!r}")
        op, used = op[1], [self._find(name) for name in re.findall(NAME, _values_of(text))]
        names = re.findall(NAME, defined[1] + defined[3]) if defined else []
        if defined and defined[2]:
            names = [f"{defined[1]}#{i}" for i in range(int(defined[2]))]
        if op.startswith("cf."):
            self._branch(text)
        elif text.endswith("{"):
            self._open(op, text, names, used)
            return
        elif op in LEAVES:
            self._leave(op, used)
        elif op == WARPS:
            self._captured = used
        elif op == "scf.condition":
            region = self._regions[-1]
            region.given = used[1:]
            for result, value in zip(region.results, used[1:], strict=True):
                result.operands.append(value)
        made = [Value(op, text, used, self._place) for _ in names or [""]]
        self.values += made
        self._regions[-1].names.update(zip(names, made, strict=False))

    def _open(self, op: str, text: str, names: list[str], used: list[Value]) -> None:
        """An operation with a body."""
        if op not in CARRIES:
            raise ValueError(f"TTIR: expected one of {', '.join(CARRIES)} to have a body, found {text!r}")
        results = [Value("join", text, place=self._place) for _ in names]
        self._regions[-1].names.update(zip(names, results, strict=True))
        region = _Region(op, given=used, results=results)
        if op == "scf.for":
            counter = re.match(rf"scf\.for (?:unsigned )?({NAME}) = ({NAME}) to ({NAME}) step ({NAME})", text)
            if not counter:
                raise ValueError(f"TTIR: expected a loop with first, last and step, found {text!r}")
            limits = [self._find(name) for name in counter.groups()[1:]]
            region.names[counter[1]] = Value("counter", text.removesuffix("{"), limits, self._place)
        if op in ("scf.for", "scf.while"):
            pairs = re.findall(rf"({NAME}) = ({NAME})(?=[,)])", text)
            for name, first in pairs:
                join = Value("join", text, [self._find(first)], self._place)
                region.names[name] = join
                region.carried.append(join)
        if op == "scf.for":
            for result, join in zip(results, region.carried, strict=True):
                result.operands.append(join)
        self.values += results + region.carried
        self._regions.append(region)

    def _leave(self, op: str, used: list[Value]) -> None:
        """What a body passes on: to the next round, and to what the operation gives."""
        region = self._regions[-1]
        onward = region.carried if region.op in ("scf.for", "scf.while") else region.results
        if region.op in ("tt.reduce", "tt.scan"):
            for result in onward:
                result.operands += region.given
        for join, value in zip(onward, used, strict=True):
            join.operands.append(value)

    def _branch(self, text: str) -> None:
        for label, given in re.findall(r"(\^\w+)(?:\(([^)]*)\))?", text):
            names = re.findall(NAME, _values_of(given))
            self._branches.append(((self._regions[-1], label), [self._find(name) for name in names]))

    def _find(self, name: str) -> Value:
        for region in reversed(self._regions):
            if name in region.names:
                return region.names[name]
        raise ValueError(f"TTIR: expected {name} to be defined before its use")


def _values_of(text: str) -> str:
    """The operation without the names that it defines itself: those of a loop's counter and of what it carries."""
    return re.sub(rf"{NAME} = (?=%)", "", text)


def _places(ttir: str) -> dict[str, str]:
    """File and line by the name of a location; of a call, that of the function called, where it is known."""
    written = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", ttir, re.MULTILINE))
    places: dict[str, str] = {}

    def place(name: str) -> str:
        if name not in places:
            places[name] = ""
            text = written.get(name, "")
            file = re.match(r'"([^"]+)":(\d+):\d+$', text)
            if file:
                places[name] = f"{PurePosixPath(file[1]).name}:{file[2]}"
            else:
                found = [place(part) for part in re.findall(r"#loc\d*", text)]
                places[name] = next((part for part in found if part), "")
        return places[name]

    for name in written:
        place(name)
    return places
