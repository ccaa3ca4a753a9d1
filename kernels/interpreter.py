"""Triton's interpreter, made right for bf16, so that what it computes on a CPU is what a GPU would.

The stock interpreter (seen in 3.6 to 3.9) keeps bf16 as raw uint16 and computes with those: `tl.dot` multiplies bit
patterns, comparisons and sums are noise, and a cast from fp32 truncates where hardware rounds to nearest even. All of
that is silent. Here dot and cast are made right, and every other arithmetic on bf16 raises: kernels of this folder
load, store, multiply (`tl.dot`) and cast bf16, and compute in fp32.

Of a number and NaN the stock interpreter takes NaN for the maximum, where hardware takes the number.

A row of a dot has the same bits however many rows there are, as on tensor cores; NumPy sums in another order where a
matrix is taller. NumPy's floating point warnings are silenced while a kernel runs, for a GPU gives none: the -inf of a
masked lane is part of the mathematics. And two kinds of work that the interpreter repeats for nothing are left out,
which halves the time of a launch.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton import knobs

__all__ = ["apply"]

RULE = "no bf16 arithmetic outside load, store, dot and cast: cast to fp32 first"
GUARDED = (
    "binary_op",
    "unary_op",
    "create_atomic_rmw",
    "create_clampf",
    "create_dot_scaled",
    "create_erf",
    "create_fma",
    "create_rsqrt",
)
"""Where the builder computes with the values of its operands; what only moves them (select, reshape) is right as is."""

ROWS_OF_A_DOT = 16
"""A dot is taken by so many rows at a time, so that each multiplication BLAS sees has the same shape."""


def apply() -> None:
    """Patch the interpreter of this process, once; without TRITON_INTERPRET=1 nothing is touched."""
    if not knobs.runtime.interpret:
        return
    # Imported here, so that no compiled kernel depends on a module that Triton may move.
    from triton.runtime import interpreter

    if hasattr(interpreter.InterpreterBuilder, "_padless_bf16"):
        return
    _make_casts_right(interpreter)
    _make_dot_right(interpreter)
    _make_maxima_right(interpreter)
    _refuse_arithmetic(interpreter)
    _silence_warnings(interpreter)
    _skip_idle_work(interpreter)
    interpreter.InterpreterBuilder._padless_bf16 = True  # type: ignore[attr-defined]


def _is_bf16(value: Any) -> bool:
    """Whether an operand of the builder, which may also be a number, an enum or None, holds bf16."""
    dtype = getattr(value, "dtype", None)
    return getattr(dtype, "scalar", None) == tl.bfloat16


def _widened(bits: np.ndarray) -> np.ndarray:
    """The fp32 values of bf16 bit patterns; exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _rounded(values: np.ndarray) -> np.ndarray:
    """The bf16 bit patterns nearest to fp32 values, ties to even; every NaN becomes the quiet one."""
    bits = np.atleast_1d(np.asarray(values, dtype=np.float32)).view(np.uint32)
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), nearest.reshape(np.shape(values)))


def _make_casts_right(interpreter: Any) -> None:
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    stock_cast, stock_between_floats = builder.cast_impl, builder.create_fp_to_fp
    toward_zero = interpreter._ir.ROUNDING_MODE.RTZ

    def cast(self: Any, source: Any, dtype: Any) -> Any:
        """By way of fp32, as hardware does, whatever the other side is."""
        target = dtype.scalar
        if _is_bf16(source) == (target == tl.bfloat16):
            return stock_cast(self, source, dtype)
        if target == tl.bfloat16:
            return handle(_rounded(source.data), tl.bfloat16)
        single = handle(_widened(source.data), tl.float32)
        return single if target == tl.float32 else stock_cast(self, single, dtype)

    def cast_between_floats(self: Any, source: Any, dtype: Any, rounding: Any) -> Any:
        one_is_bf16 = _is_bf16(source) != (dtype.scalar == tl.bfloat16)
        one_is_fp8 = min(source.dtype.scalar.primitive_bitwidth, dtype.scalar.primitive_bitwidth) < 16
        if one_is_bf16 and not one_is_fp8 and rounding != toward_zero:
            return cast(self, source, dtype)
        return stock_between_floats(self, source, dtype, rounding)

    def get_bf16(self: Any, value: float) -> Any:
        return handle(_rounded(np.array([value], dtype=np.float32)), tl.bfloat16)

    # All other casts of the builder, such as create_fp_trunc, call this one.
    builder.cast_impl = cast
    builder.create_fp_to_fp = cast_between_floats
    builder.get_bf16 = get_bf16


def _make_dot_right(interpreter: Any) -> None:
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    stock_dot = builder.create_dot

    def in_fp32(operand: Any) -> Any:
        return handle(_widened(operand.data), tl.float32) if _is_bf16(operand) else operand

    def in_rows(operand: Any) -> Any:
        return handle(operand.data.reshape(-1, ROWS_OF_A_DOT, operand.data.shape[-1]), operand.dtype)

    def dot(self: Any, a: Any, b: Any, accumulator: Any, *rest: Any) -> Any:
        a, b = in_fp32(a), in_fp32(b)
        if a.data.ndim != 2 or len(a.data) % ROWS_OF_A_DOT:
            return stock_dot(self, a, b, accumulator, *rest)
        product = stock_dot(self, in_rows(a), b, in_rows(accumulator), *rest)
        return handle(product.data.reshape(len(a.data), -1), product.dtype)

    builder.create_dot = dot


def _make_maxima_right(interpreter: Any) -> None:
    """Of a number and NaN the maximum and the minimum are the number, as on hardware, unless NaN is asked for."""
    builder = interpreter.InterpreterBuilder
    builder.create_maxnumf = lambda self, a, b: self.binary_op(a, b, np.fmax)
    builder.create_minnumf = lambda self, a, b: self.binary_op(a, b, np.fmin)


def _refuse_arithmetic(interpreter: Any) -> None:
    def guarded(name: str, stock: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(stock)
        def refusing(self: Any, *operands: Any, **options: Any) -> Any:
            if any(_is_bf16(operand) for operand in operands):
                raise NotImplementedError(f"{name} of bf16 in the interpreter: {RULE}")
            return stock(self, *operands, **options)

        return refusing

    builder = interpreter.InterpreterBuilder
    for name in GUARDED:
        if hasattr(builder, name):
            setattr(builder, name, guarded(name, getattr(builder, name)))

    reduction = interpreter.ReduceScanOpInterface
    stock_reduction = reduction.apply

    def apply_reduction(self: Any, values: Any) -> Any:
        if any(_is_bf16(value) for value in (values if isinstance(values, tuple) else (values,))):
            raise NotImplementedError(f"reduction or scan of bf16 in the interpreter: {RULE}")
        return stock_reduction(self, values)

    reduction.apply = apply_reduction

    stock_load = builder.create_descriptor_load

    def load_by_descriptor(self: Any, descriptor: Any, *rest: Any) -> Any:
        of_bf16 = descriptor.base.dtype.element_ty == tl.bfloat16
        if of_bf16 and descriptor.padding == interpreter._ir.PADDING_OPTION.PAD_NAN:
            raise NotImplementedError("descriptor of bf16 padded with NaN in the interpreter: pad with zeros")
        return stock_load(self, descriptor, *rest)

    builder.create_descriptor_load = load_by_descriptor


def _silence_warnings(interpreter: Any) -> None:
    executor = interpreter.GridExecutor
    stock_call = executor.__call__

    @functools.wraps(stock_call)
    def call(self: Any, *arguments: Any, **named: Any) -> None:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            # nanmax of NaN alone warns through Python.
            warnings.simplefilter("ignore", RuntimeWarning)
            stock_call(self, *arguments, **named)

    executor.__call__ = call


def _skip_idle_work(interpreter: Any) -> None:
    """No overflow checks, whose outcome is dropped anyway, and the language patched once a launch, not at every call.

    The checks report through `device_assert`, which does nothing while `debug` is off. The language is the same module
    for all functions of a file, and nothing restores it before the launch ends.
    """
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    executor = interpreter.GridExecutor
    stock_call, stock_patch = executor.__call__, interpreter._patch_lang
    patched: set[int] | None = None

    @functools.wraps(stock_call)
    def call(self: Any, *arguments: Any, **named: Any) -> None:
        nonlocal patched
        outer, patched = patched, set()
        try:
            stock_call(self, *arguments, **named)
        finally:
            patched = outer

    def patch(function: Any) -> Any:
        file = id(function.__globals__)
        if patched is None:
            return stock_patch(function)
        if file in patched:
            return interpreter._LangPatchScope()
        patched.add(file)
        return stock_patch(function)

    executor.__call__, interpreter._patch_lang = call, patch
