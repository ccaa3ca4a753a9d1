"""Loops over vectors of 16 numbers, written in Python and compiled by LLVM for the CPU at hand.

A kernel here is a Python function that writes another one: `Code` emits LLVM's instructions, a Python loop around it is
a loop unrolled, `Code.range` a loop that runs. Nothing is vectorised behind one's back: a `Value` is an integer, a
pointer, or 16 fp32 lanes, one AVX-512 register, and each operation is one instruction or a documented few.

llvmlite is what Numba compiles with; it brings LLVM along, so no C compiler has to be on the machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llvmlite.ir as ir

__all__ = ["LANES", "Code", "Value", "Variable"]

LANES = 16
"""Numbers in a vector."""


class _BFloatType(ir.Type):
    """LLVM's `bfloat`, which llvmlite can pass on but does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloatType)

    def __hash__(self) -> int:
        return hash(_BFloatType)


I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32, BF16, POINTER = ir.FloatType(), _BFloatType(), ir.PointerType()
FLOATS = ir.VectorType(F32, LANES)
INTEGERS = ir.VectorType(I32, LANES)
HALVES = ir.VectorType(I16, LANES)
BFLOATS = ir.VectorType(BF16, LANES)
PAIRS = ir.VectorType(BF16, 2 * LANES)

_PARAMETERS = {"pointer": POINTER, "integer": I64, "number": F32}


class Value:
    """A number, a pointer or a vector, with the operators of Python; `int` and `float` operands are taken as constants
    of its kind.
    """

    def __init__(self, code: Code, raw: Any) -> None:
        self.code = code
        self.raw = raw

    def __add__(self, other: Operand) -> Value:
        if self.raw.type == POINTER:
            offset = self.code.integer(other)
            return Value(self.code, self.code.builder.gep(self.raw, [offset.raw], source_etype=I8))
        return self._either("fadd", "add", other)

    def __sub__(self, other: Operand) -> Value:
        if self.raw.type == POINTER:
            return self + (self.code.integer(0) - other)
        return self._either("fsub", "sub", other)

    def __mul__(self, other: Operand) -> Value:
        return self._either("fmul", "mul", other)

    def __and__(self, other: Operand) -> Value:
        return Value(self.code, self.code.builder.and_(self.raw, self._like(other)))

    def __floordiv__(self, other: int) -> Value:
        """Of an integer that is not negative."""
        return Value(self.code, self.code.builder.udiv(self.raw, self._like(other)))

    def __lt__(self, other: Operand) -> Value:
        """True in each lane where it holds; never where one is NaN."""
        return self._compare("<", other)

    def __gt__(self, other: Operand) -> Value:
        """True in each lane where it holds; never where one is NaN."""
        return self._compare(">", other)

    def _compare(self, sign: str, other: Operand) -> Value:
        builder, right = self.code.builder, self._like(other)
        if _is_float(self.raw.type):
            return Value(self.code, builder.fcmp_ordered(sign, self.raw, right))
        return Value(self.code, builder.icmp_signed(sign, self.raw, right))

    def _either(self, of_floats: str, of_integers: str, other: Operand) -> Value:
        name = of_floats if _is_float(self.raw.type) else of_integers
        return Value(self.code, getattr(self.code.builder, name)(self.raw, self._like(other)))

    def _like(self, other: Operand) -> Any:
        return other.raw if isinstance(other, Value) else _constant(self.raw.type, other)


Operand = Value | int | float


class Variable:
    """A value that loops change: it lives in a register all the same."""

    def __init__(self, code: Code, first: Value) -> None:
        self.code = code
        with code.builder.goto_entry_block():
            self._place = code.builder.alloca(first.raw.type)
        self.set(first)

    def get(self) -> Value:
        """What was set last."""
        return Value(self.code, self.code.builder.load(self._place, typ=self._place.allocated_type))

    def set(self, value: Value) -> None:
        """Change it."""
        self.code.builder.store(value.raw, self._place)


class Code:
    """A function in the making.

    Args:
        name: of the function.
        parameters: name to "pointer", "integer" (64 bits) or "number" (fp32); attributes of the same names are their
            `Value`s.
    """

    def __init__(self, name: str, parameters: dict[str, str]) -> None:
        self.module = ir.Module(name)
        self.parameters = parameters
        kind = ir.FunctionType(ir.VoidType(), [_PARAMETERS[kind] for kind in parameters.values()])
        self.function = ir.Function(self.module, kind, name)
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        # Allocations go to a block of their own, which loops are never in.
        body = self.function.append_basic_block("body")
        self.builder.branch(body)
        self.builder.position_at_end(body)
        self._given = {name: Value(self, raw) for name, raw in zip(parameters, self.function.args, strict=True)}

    def __getattr__(self, name: str) -> Value:
        try:
            return self.__dict__["_given"][name]
        except KeyError:
            raise AttributeError(name) from None

    def finished(self) -> str:
        """The function in LLVM's language."""
        self.builder.ret_void()
        return str(self.module)

    # Numbers

    def integer(self, value: Operand) -> Value:
        """An integer of 64 bits."""
        return value if isinstance(value, Value) else Value(self, ir.Constant(I64, int(value)))

    def floats(self, value: float) -> Value:
        """16 times the same number."""
        return Value(self, _constant(FLOATS, value))

    def splat(self, scalar: Value) -> Value:
        """A scalar in each of 16 lanes."""
        kind = ir.VectorType(scalar.raw.type, LANES)
        one = self.builder.insert_element(ir.Constant(kind, ir.Undefined), scalar.raw, ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, LANES), [0] * LANES)
        return Value(self, self.builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros))

    def lanes(self, first: Value) -> Value:
        """first, first + 1, ..., as 32-bit integers."""
        low = Value(self, self.builder.trunc(first.raw, I32))
        return self.splat(low) + Value(self, ir.Constant(INTEGERS, list(range(LANES))))

    def narrow(self, wide: Value) -> Value:
        """An integer of 64 bits in each of 16 lanes of 32."""
        return self.splat(Value(self, self.builder.trunc(wide.raw, I32)))

    # Loops

    @contextmanager
    def range(self, start: Operand, stop: Operand, step: int = 1) -> Iterator[Value]:
        """The body of a loop over integers, as Python's `range`; yields the integer."""
        builder = self.builder
        index = Variable(self, self.integer(start))
        head, body, after = (self.function.append_basic_block(name) for name in ("head", "loop", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        now = index.get()
        builder.cbranch((now < self.integer(stop)).raw, body, after)
        builder.position_at_end(body)
        yield now
        index.set(now + step)
        builder.branch(head)
        builder.position_at_end(after)

    def where(self, condition: Value, yes: Value, no: Value) -> Value:
        """Lane by lane, or of scalars, one or the other."""
        return Value(self, self.builder.select(condition.raw, yes.raw, no.raw))

    def least(self, left: Value, right: Operand) -> Value:
        """The smaller one of two scalars or vectors; the left one where either is NaN."""
        other = right if isinstance(right, Value) else Value(self, _constant(left.raw.type, right))
        return self.where(left > other, other, left)

    def most(self, left: Value, right: Operand) -> Value:
        """The larger one; the left one where either is NaN."""
        other = right if isinstance(right, Value) else Value(self, _constant(left.raw.type, right))
        return self.where(left < other, other, left)

    # Memory; addresses need no alignment

    def load(self, address: Value) -> Value:
        """16 fp32 numbers."""
        return Value(self, self.builder.load(address.raw, typ=FLOATS, align=4))

    def store(self, value: Value, address: Value) -> None:
        """16 fp32 numbers."""
        self.builder.store(value.raw, address.raw, align=4)

    def load_bf16(self, address: Value) -> Value:
        """16 bf16 numbers as fp32, exactly."""
        bits = self.builder.zext(self.builder.load(address.raw, typ=HALVES, align=2), INTEGERS)
        return Value(self, self.builder.bitcast(self.builder.shl(bits, _constant(INTEGERS, 16)), FLOATS))

    def store_bf16(self, value: Value, address: Value) -> None:
        """16 fp32 numbers as bf16, to the nearest, ties to even."""
        self.builder.store(self.builder.fptrunc(value.raw, BFLOATS), address.raw, align=2)

    def as_bf16(self, value: Value) -> Value:
        """16 fp32 numbers rounded to what bf16 can hold."""
        bits = self.builder.bitcast(self.builder.fptrunc(value.raw, BFLOATS), HALVES)
        wide = self.builder.shl(self.builder.zext(bits, INTEGERS), _constant(INTEGERS, 16))
        return Value(self, self.builder.bitcast(wide, FLOATS))

    def load_integer(self, address: Value, bits: int = 32) -> Value:
        """A scalar integer, as one of 64 bits."""
        found = self.builder.load(address.raw, typ=ir.IntType(bits), align=bits // 8)
        return Value(self, found if bits == 64 else self.builder.sext(found, I64))

    def load_number(self, address: Value) -> Value:
        """A scalar fp32 number in each of 16 lanes."""
        return self.splat(Value(self, self.builder.load(address.raw, typ=F32, align=4)))

    def load_pair(self, address: Value) -> Value:
        """Two bf16 numbers that lie together, 16 times: an operand of `dot`."""
        both = self.splat(Value(self, self.builder.load(address.raw, typ=I32, align=2)))
        return Value(self, self.builder.bitcast(both.raw, PAIRS))

    def load_pairs(self, address: Value) -> Value:
        """16 pairs of bf16 numbers: an operand of `dot`."""
        return Value(self, self.builder.load(address.raw, typ=PAIRS, align=2))

    def load_words(self, address: Value) -> Value:
        """16 words of 32 bits as they are."""
        return Value(self, self.builder.load(address.raw, typ=INTEGERS, align=2))

    def load_halves(self, address: Value) -> Value:
        """16 words of 16 bits as they are."""
        return Value(self, self.builder.load(address.raw, typ=HALVES, align=2))

    def store_words(self, value: Value, address: Value) -> None:
        """Words as they are."""
        self.builder.store(value.raw, address.raw, align=2)

    # Arithmetic

    def fma(self, left: Value, right: Value, addend: Value) -> Value:
        """`left * right + addend`, rounded once."""
        function = self._intrinsic("llvm.fma.v16f32", FLOATS, [FLOATS] * 3)
        return Value(self, self.builder.call(function, [left.raw, right.raw, addend.raw]))

    def dot(self, total: Value, left: Value, right: Value) -> Value:
        """`total` plus, in each lane, the products of two bf16 pairs, fp32 (AVX512_BF16's VDPBF16PS)."""
        function = self._intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, [FLOATS, PAIRS, PAIRS])
        return Value(self, self.builder.call(function, [total.raw, left.raw, right.raw]))

    def absolute(self, value: Value) -> Value:
        """Without the sign."""
        return Value(self, self.builder.call(self._intrinsic("llvm.fabs.v16f32", FLOATS, [FLOATS]), [value.raw]))

    def root(self, value: Value) -> Value:
        """The square root, correctly rounded."""
        return Value(self, self.builder.call(self._intrinsic("llvm.sqrt.v16f32", FLOATS, [FLOATS]), [value.raw]))

    def quotient(self, left: Value, right: Value) -> Value:
        """`left / right`, correctly rounded."""
        return Value(self, self.builder.fdiv(left.raw, right.raw))

    def reciprocal(self, value: Value) -> Value:
        """About `1 / value`: within 2^-14 of it (AVX512F's VRCP14PS)."""
        kinds = [FLOATS, FLOATS, I16]
        function = self._intrinsic("llvm.x86.avx512.rcp14.ps.512", FLOATS, kinds)
        operands = [value.raw, _constant(FLOATS, 0.0), ir.Constant(I16, -1)]
        return Value(self, self.builder.call(function, operands))

    def power_of_integer(self, whole: Value) -> Value:
        """Two to the integer in the last bits of each fp32 lane, -126 to 127."""
        bits = self.builder.shl(self.builder.bitcast(whole.raw, INTEGERS), _constant(INTEGERS, 23))
        bits = self.builder.add(bits, _constant(INTEGERS, 127 << 23))
        return Value(self, self.builder.bitcast(bits, FLOATS))

    # Between lanes

    def shuffled(self, left: Value, right: Value, lanes: Sequence[int]) -> Value:
        """Lanes of both, counted on from the left into the right one."""
        order = ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))
        return Value(self, self.builder.shuffle_vector(left.raw, right.raw, order))

    def sum_of_lanes(self, value: Value) -> Value:
        """The sum of 16 lanes in each of them; halves are added until one is left."""
        for step in (8, 4, 2, 1):
            value = value + self.shuffled(value, value, [lane ^ step for lane in range(LANES)])
        return value

    def most_of_lanes(self, value: Value) -> Value:
        """The largest of 16 lanes in each of them."""
        for step in (8, 4, 2, 1):
            value = self.most(value, self.shuffled(value, value, [lane ^ step for lane in range(LANES)]))
        return value

    def transposed(self, rows: list[Value]) -> list[Value]:
        """16 vectors of 16 32-bit lanes: lane i of row j becomes lane j of row i."""
        step = 1
        while step < LANES:
            low = [lane if not lane & step else LANES + lane - step for lane in range(LANES)]
            high = [lane + step if not lane & step else LANES + lane for lane in range(LANES)]
            for row in range(LANES):
                if not row & step:
                    first, second = rows[row], rows[row + step]
                    rows[row] = self.shuffled(first, second, low)
                    rows[row + step] = self.shuffled(first, second, high)
            step *= 2
        return rows

    def _intrinsic(self, name: str, result: Any, operands: list[Any]) -> Any:
        if name in self.module.globals:
            return self.module.globals[name]
        return ir.Function(self.module, ir.FunctionType(result, operands), name)


def _is_float(kind: Any) -> bool:
    return (kind.element if isinstance(kind, ir.VectorType) else kind) == F32


def _constant(kind: Any, value: float) -> ir.Constant:
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [value if _is_float(kind) else int(value)] * kind.count)
    return ir.Constant(kind, value if _is_float(kind) else int(value))
