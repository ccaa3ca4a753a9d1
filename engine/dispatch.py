"""The dispatch table: which implementation serves which op, in order of preference, and why the others do not.

One screen, read from top to bottom. The last row of each op is plain eager PyTorch: it takes any device and any dtype
up to fp64, and is the specification and the test oracle of the op. An implementation is known here only as a dotted
string; it is imported when it is about to be chosen, so a missing package or a broken driver is a reason, not a crash.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

from .contract import Call, Impl, Requires
from .errors import BackendError

__all__ = ["TABLE", "Resolution", "backends", "distrust", "explain", "resolve"]

log = logging.getLogger("padless")

_OPS = "padless.engine.ops"


def _triton(target: str) -> Impl:
    requires = Requires("cuda", sm=80, packages=("triton",))
    return Impl("triton", f"padless.kernels.{target}", requires, deterministic=True, just_in_time=True)


def _fixed(target: str) -> Impl:
    """A row that serves deterministic=True on a CPU: no call into a library has a shape that neighbours decide."""
    return Impl("cpu_fixed", f"{_OPS}.cpu.{target}", Requires("cpu"), deterministic=True, traceable=False)


def _llvm(target: str, *, traceable: bool = False) -> Impl:
    """A row whose kernel LLVM compiles for the CPU at hand. Where a library is part of it, it refuses deterministic."""
    requires = Requires("cpu", packages=("llvmlite",), dtypes=(torch.float32, torch.bfloat16))
    return Impl(
        "cpu_llvm",
        f"{_OPS}.cpu.{target}",
        requires,
        deterministic=True,
        just_in_time=True,
        traceable=traceable,
    )


TABLE: dict[str, tuple[Impl, ...]] = {
    "attention": (
        _triton("attention:varlen_attention"),
        Impl("flash_attn", f"{_OPS}.flash:varlen_attention", Requires("cuda", sm=80)),
        Impl("torch_varlen", f"{_OPS}.torch_varlen:varlen_attention", Requires("cuda", sm=80)),
        _llvm("vector_attention:varlen_attention", traceable=True),
        Impl("cpu", f"{_OPS}.cpu.attention:varlen_attention", Requires("cpu")),
        _fixed("lone_attention:varlen_attention"),
        Impl("eager", f"{_OPS}.attention:varlen_attention", differentiable=True, deterministic=True),
    ),
    "decode_attention": (
        _triton("decode:decode_attention"),
        Impl("cpu", f"{_OPS}.cpu.decode:decode_attention", Requires("cpu")),
        Impl("eager", f"{_OPS}.decode:decode_attention", differentiable=True, deterministic=True),
    ),
    "linear": (
        _triton("linear:linear"),
        _llvm("vector_linear:linear"),
        Impl("cpu", f"{_OPS}.cpu.linear:linear", Requires("cpu"), traceable=False),
        _fixed("tiled_linear:linear"),
        Impl("eager", f"{_OPS}.linear:linear", differentiable=True),
    ),
    "norm_linear": (
        _triton("norm_linear:norm_linear"),
        Impl("eager", f"{_OPS}.norm_linear:norm_linear", differentiable=True),
    ),
    "norm": (
        _triton("norm:layer_norm"),
        _llvm("vector_norm:layer_norm"),
        Impl("eager", f"{_OPS}.norm:layer_norm", differentiable=True, deterministic=True),
    ),
    "rms_norm": (
        _triton("norm:rms_norm"),
        _llvm("vector_norm:rms_norm"),
        Impl("eager", f"{_OPS}.norm:rms_norm", differentiable=True, deterministic=True),
    ),
    "no_norm": (
        _triton("norm:no_norm"),
        _llvm("vector_norm:no_norm"),
        Impl("eager", f"{_OPS}.norm:no_norm", differentiable=True, deterministic=True),
    ),
    "mobilebert_in": (
        _triton("mobilebert:mobilebert_in"),
        Impl("eager", f"{_OPS}.mobilebert:mobilebert_in", differentiable=True),
    ),
    "mobilebert_out": (
        _triton("mobilebert:mobilebert_out"),
        Impl("eager", f"{_OPS}.mobilebert:mobilebert_out", differentiable=True),
    ),
    "mlm_head": (
        _triton("mlm_head:mlm_head"),
        _fixed("tiled_mlm_head:mlm_head"),
        Impl("eager", f"{_OPS}.mlm_head:mlm_head", differentiable=True),
    ),
    "embed": (
        _triton("embed:embed"),
        Impl("eager", f"{_OPS}.embed:embed", differentiable=True, deterministic=True),
    ),
    "trigram": (
        _triton("trigram:trigram"),
        Impl("eager", f"{_OPS}.trigram:trigram", differentiable=True, deterministic=True),
    ),
    "rope": (
        _triton("rope:rope"),
        Impl("eager", f"{_OPS}.rope:rope", differentiable=True, deterministic=True),
    ),
    "pool": (
        _triton("pool:pool"),
        Impl("eager", f"{_OPS}.pool:pool", differentiable=True, deterministic=True),
    ),
}


@dataclass(frozen=True)
class Resolution:
    """The outcome of `resolve`.

    Attributes:
        call: the facts that were asked about.
        impl: the chosen row.
        fn: its function.
        prepare: its weight preparation, or None where it takes the weights as they are.
        gradient: the row and function used where a gradient is needed.
        rejected: for each row above the chosen one, its name and the reasons.
        config_source: where its tiling comes from: "user cache", "shipped nvidia-h200", "shipped sm_90", or "default"
            where nothing was measured for it; "none" for rows that have nothing to tune.
    """

    call: Call
    impl: Impl
    fn: Callable[..., Any]
    prepare: Callable[..., tuple[Any, ...]] | None
    gradient: Callable[..., Any]
    rejected: tuple[tuple[str, tuple[str, ...]], ...]
    config_source: str = "none"


def backends() -> tuple[str, ...]:
    """The names that `backend=` takes: "auto" and the name of every row."""
    names = dict.fromkeys(impl.name for rows in TABLE.values() for impl in rows)
    return ("auto", *names)


def resolve(call: Call, backend: str = "auto", failed: Mapping[str, str] | None = None) -> Resolution:
    """Choose the implementation of one op for one set of static facts.

    Args:
        call: the facts.
        backend: "auto" takes the first row that can serve. A row's name takes that row or raises; an op that has no
            row of that name is served as under "auto", and the resolution says so.
        failed: rows that failed when they were called, and how; passed over.

    Raises:
        BackendError: for an unknown op or backend, or a named backend that cannot serve, with all its reasons.
    """
    if call.op not in TABLE:
        raise BackendError(f"unknown op {call.op!r}: the table has {', '.join(TABLE)}")
    if backend not in backends():
        raise BackendError(f"unknown backend {backend!r}: expected one of {', '.join(backends())}")
    rows = TABLE[call.op]
    willing: Resolution | None = None
    named = any(impl.name == backend for impl in rows)
    rejected: list[tuple[str, tuple[str, ...]]] = []
    if backend != "auto" and not named:
        rejected.append((backend, (f"op {call.op} has no row of this name",)))
    for impl in rows:
        if named and impl.name != backend:
            rejected.append((impl.name, (f"backend={backend!r} was asked for",)))
            continue
        if failed and impl.name in failed:
            rejected.append((impl.name, (failed[impl.name],)))
            continue
        reasons = _unmet(impl, call, interpreted=named and impl.name == "triton" and _interprets(call))
        if not reasons:
            found = _resolved(call, impl, tuple(rejected))
            reasons = [] if named else _deferred(impl, call)
            if not reasons:
                return found
            willing = willing or found
        if named:
            raise BackendError(f"backend {backend!r} cannot serve {call.op}: {'; '.join(reasons)} ({call})")
        rejected.append((impl.name, tuple(reasons)))
    if willing is not None:
        return willing
    raise BackendError(f"no implementation serves {call}: " + "; ".join(f"{n}: {', '.join(r)}" for n, r in rejected))


def _resolved(call: Call, impl: Impl, rejected: tuple[tuple[str, tuple[str, ...]], ...]) -> Resolution:
    fn, module = _function(impl)
    tuned = getattr(module, "TUNED", None)
    source = "none" if tuned is None else tuned.source(call)
    return Resolution(call, impl, fn, getattr(module, "prepare", None), _gradient(TABLE[call.op]), rejected, source)


def distrust(resolution: Resolution, failure: str) -> bool:
    """Have the row's default tiling serve where one that was measured failed; False where there is no other to try.

    Args:
        resolution: whose row failed when it was called.
        failure: how, for the log.
    """
    _, module = _function(resolution.impl)
    tuned = getattr(module, "TUNED", None)
    return tuned is not None and tuned.distrust(resolution.call, failure)


def _interprets(call: Call) -> bool:
    """Whether Triton's interpreter stands in for a GPU: only for a backend asked for by name, never under "auto"."""
    return call.device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"


def _unmet(impl: Impl, call: Call, interpreted: bool) -> list[str]:
    reasons = impl.requires.unmet(call, interpreted=interpreted)
    if call.deterministic and not impl.deterministic:
        reasons.append("needs a row that promises deterministic=True, this one does not")
    if reasons:
        return reasons
    try:
        _, module = _function(impl)
    except Exception as error:  # an extension built for another torch raises what it likes
        return [f"cannot be imported: {' '.join(str(error).split())[:200]}"]
    unsupported = getattr(module, "unsupported", None)
    return [] if unsupported is None else list(unsupported(call))


def _deferred(impl: Impl, call: Call) -> list[str]:
    """Why a row that could serve leaves this call to the rows below it."""
    _, module = _function(impl)
    defers = getattr(module, "defers", None)
    return [] if defers is None else list(defers(call))


@cache
def _function(impl: Impl) -> tuple[Callable[..., Any], ModuleType]:
    module_name, _, function_name = impl.target.partition(":")
    module = import_module(module_name)
    return getattr(module, function_name), module


def _gradient(rows: tuple[Impl, ...]) -> Callable[..., Any]:
    return next(_function(impl)[0] for impl in rows if impl.differentiable)


def explain(resolutions: Iterable[Resolution]) -> str:
    """A table of what serves what: op, implementation, dtype, uses, configuration, and why not the rows above.

    Args:
        resolutions: of any number of bound ops; equal ones are counted on one line.
    """
    counts: dict[tuple[str, ...], int] = {}
    for resolution in resolutions:
        call = resolution.call
        dtype = str(call.dtype).removeprefix("torch.")
        names: dict[tuple[str, ...], list[str]] = {}
        for name, reasons in resolution.rejected:
            names.setdefault(reasons, []).append(name)
        rejected = " | ".join(f"{', '.join(rows)}: {'; '.join(reasons)}" for reasons, rows in names.items())
        row = (_with_what_follows(call), resolution.impl.name, dtype, resolution.config_source, rejected or "-")
        counts[row] = counts.get(row, 0) + 1
    rows = [(op, impl, dtype, str(count), *rest) for (op, impl, dtype, *rest), count in counts.items()]
    table = [("op", "implementation", "dtype", "uses", "tuned by", "rejected"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in table
    )


def _with_what_follows(call: Call) -> str:
    """The op, and what is fused behind its product."""
    activation = None if call.epilogue in (None, "none") else f"{'gated ' * call.gated}{call.epilogue}"
    return " + ".join(filter(None, (call.op, activation, "rope" * call.rope, "residual" * call.residual)))
