"""Where a kernel's addresses come from: every multiplication in 32 bits that reaches one, found in Triton's own text.

A row number times a stride passes 2^31 on a large batch, and the hardware wraps without a word. So the offset of every
`tt.addptr` is followed back through sums, casts, selections and loops to where it starts: a parameter, a program's
number, a load. A product or a left shift in fewer than 64 bits on the way is a finding, and so is a narrowing, unless
it is proven to fit: by the bounds of its operands (ranges of constant length, constants, what `tl.assume` promises), or
because it only undoes a division, `x // n * n`. Arithmetic that no address depends on may be as narrow as it likes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from gate_ttir import Value, parse

__all__ = ["narrow_products"]

STARTS = (
    "tt.load",
    "tt.atomic",
    "tt.descriptor",
    "tt.get_program_id",
    "tt.get_num_programs",
    "tt.make_range",
    "arith.cmp",
)
"""Operations whose operands are no part of the number they give: an address, a mask, the axis of a grid."""
SAME_NUMBER = ("tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape", "tt.trans", "tt.unsplat", "arith.ext")
LATER_AXES = 65_535
"""Programs along the second and third axis of a grid: CUDA programming guide, technical specifications."""

Bounds = tuple[int, int]


def narrow_products(ttir: str) -> list[str]:
    """One line for each product, shift or narrowing below 64 bits that reaches an address and may not fit.

    Args:
        ttir: a kernel as `triton.compile` keeps it under "ttir".

    Raises:
        ValueError: for a line that cannot be read: better none than a wrong all-clear.
    """
    values = parse(ttir)
    proofs = _Proofs(values)
    findings: set[str] = set()
    seen: set[Value] = set()
    waiting = [value.operands[1] for value in values if value.op == "tt.addptr"]
    while waiting:
        value = waiting.pop()
        if value in seen or value.op.startswith(STARTS):
            continue
        seen.add(value)
        if value.op in ("arith.muli", "arith.shli", "arith.trunci") and value.bits < 64 and not proofs.fits(value):
            findings.add(f"{value.place}: {value.bits}-bit {value.op} reaches an address: {value.text}")
        waiting += _numbers(value)
    return sorted(findings)


def _numbers(value: Value) -> list[Value]:
    """The operands that are part of the number; the condition of a selection is not, nor is where a loop ends."""
    if value.op == "arith.select":
        return value.operands[1:]
    return [value.operands[0], value.operands[2]] if value.op == "counter" else value.operands


class _Proofs:
    """Bounds of the values of one kernel."""

    def __init__(self, values: list[Value]) -> None:
        self._assumed = dict(_assumptions(values))
        self._known: dict[Value, Bounds | None] = {}

    def fits(self, value: Value) -> bool:
        """Whether a product, shift or narrowing is proven not to overflow its type."""
        if value.op == "arith.muli":
            for quotient, divisor in (value.operands, value.operands[::-1]):
                quotient, divisor = _origin(quotient), _origin(divisor)
                if quotient.op.startswith("arith.div") and _equal(_origin(quotient.operands[1]), divisor):
                    return True
        return self._computed(value) is not None

    def bounds(self, value: Value) -> Bounds | None:
        """Lowest and highest value; None where they are not known."""
        if value not in self._known:
            # A value that depends on itself, through a loop, finds itself unknown.
            self._known[value] = None
            computed, assumed = self._computed(value), self._assumed.get(value)
            if computed and assumed:
                computed = max(computed[0], assumed[0]), min(computed[1], assumed[1])
            self._known[value] = computed or assumed
        return self._known[value]

    def _computed(self, value: Value) -> Bounds | None:
        """Bounds from those of the operands; None also where the value may not fit its type."""
        op = value.op
        if op == "arith.constant":
            return (value.constant, value.constant) if value.constant is not None else None
        if op == "tt.make_range":
            found = dict(re.findall(r"(start|end) = (-?\d+)", value.text))
            return int(found["start"]), int(found["end"]) - 1
        if op == "tt.get_program_id":
            return None if re.search(r"\bx\b", value.text) else (0, LATER_AXES - 1)
        if op.startswith(("tt.load", "tt.descriptor", "tt.atomic", "argument")):
            return None
        found = [self.bounds(operand) for operand in value.operands]
        if op.startswith("arith.rem") and found[1] and found[1][0] > 0:
            largest = found[1][1] - 1
            return (0 if found[0] and found[0][0] >= 0 else -largest, largest)
        if op == "arith.select":
            found = found[1:]
        if op == "counter":
            # From the first number to just below the last, for steps upwards.
            low, high, step = found
            return (low[0], max(low[0], high[1] - 1)) if low and high and step and step[0] > 0 else None
        known = [bounds for bounds in found if bounds]
        if not known or len(known) < len(found):
            return None
        return _checked(_combined(op, known), value.bits)


def _combined(op: str, found: list[Bounds]) -> Bounds | None:
    if op.startswith(SAME_NUMBER) or op == "arith.trunci":
        return found[0]
    if op in ("arith.select", "join"):
        return min(low for low, _ in found), max(high for _, high in found)
    if len(found) != 2:
        return None
    (a, b), (c, d) = found
    match op:
        case "arith.addi":
            return a + c, b + d
        case "arith.subi":
            return a - d, b - c
        case "arith.muli":
            products = (a * c, a * d, b * c, b * d)
            return min(products), max(products)
        case "arith.shli" if c >= 0 and d < 64:
            return min(a << c, a << d), max(b << c, b << d)
        case "arith.divsi" | "arith.divui" if c > 0 and a >= 0:
            return a // d, b // c
        case "arith.maxsi":
            return max(a, c), max(b, d)
        case "arith.minsi":
            return min(a, c), min(b, d)
    return None


def _checked(bounds: Bounds | None, bits: int) -> Bounds | None:
    limit = 1 << (bits - 1)
    return bounds if bounds and -limit <= bounds[0] and bounds[1] < limit else None


def _origin(value: Value) -> Value:
    """The value itself behind changes of shape."""
    while value.op.startswith(SAME_NUMBER[:-1]):
        value = value.operands[0]
    return value


def _equal(a: Value, b: Value) -> bool:
    return a is b or (a.op == b.op == "arith.constant" and a.constant is not None and a.constant == b.constant)


def _assumptions(values: list[Value]) -> Iterator[tuple[Value, Bounds]]:
    """What `tl.assume` promises of single values, by comparison with constants; both sides must be promised."""
    low: dict[Value, int] = {}
    high: dict[Value, int] = {}
    waiting = [value.operands[0] for value in values if value.op == "llvm.intr.assume"]
    while waiting:
        value = waiting.pop()
        if value.op == "arith.andi":
            waiting += value.operands
        if value.op != "arith.cmpi":
            continue
        subject, bound = value.operands
        predicate = value.text.split()[1].rstrip(",")
        if subject.op == "arith.constant":
            subject, bound = bound, subject
            predicate = predicate.translate(str.maketrans("lg", "gl"))
        if bound.constant is None:
            continue
        match predicate:
            case "slt":
                high[subject] = min(bound.constant - 1, high.get(subject, bound.constant - 1))
            case "sle":
                high[subject] = min(bound.constant, high.get(subject, bound.constant))
            case "sgt":
                low[subject] = max(bound.constant + 1, low.get(subject, bound.constant + 1))
            case "sge":
                low[subject] = max(bound.constant, low.get(subject, bound.constant))
    for subject in low.keys() & high.keys():
        yield subject, (low[subject], high[subject])
