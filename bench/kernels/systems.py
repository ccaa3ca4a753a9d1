"""The rows of the dispatch table as systems to be measured: every row of an op by its name, or why it is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...engine.dispatch import TABLE
from ...engine.errors import BackendError
from ...engine.ops.bind import BoundOp
from ..gpu.peers import Absent
from .case import Case, Ready, bound, results

__all__ = ["BASELINE", "available_memory", "chosen_row", "ready_row", "rows_of", "served"]

BASELINE = "eager"
"""Whose time the ratios are of: op by op in plain PyTorch, what there is without padless' kernels."""

_COPIES = 5
"""fp32 matrices `[heads, length, length_k]` that eager attention holds at once."""

UNKNOWN_MEMORY = 4 << 30
"""Bytes that are taken to be free where the system does not say."""


def rows_of(op: str) -> list[str]:
    """Names of the rows that the table has for an op, best first."""
    return [impl.name for impl in TABLE[op]]


def chosen_row(case: Case) -> str:
    """The row that "auto" takes for this case."""
    op = bound(case, "auto")
    assert op.resolution is not None
    return op.resolution.impl.name


def ready_row(case: Case, row: str) -> Ready:
    """A row of the table, its weights prepared.

    Raises:
        Absent: it cannot serve here, and why.
    """
    needed = next(impl.requires.device for impl in TABLE[case.op] if impl.name == row)
    if needed not in (None, case.device.type):
        # Also where an interpreter would stand in for the device: its times say nothing.
        raise Absent(f"needs device {needed}, got {case.device.type}")
    if row == BASELINE and case.attention is not None:
        _check_memory(case)
    return served(case, row)


def served(case: Case, row: str) -> Ready:
    """A row of the table on any device that it can run on, an interpreter's included.

    Raises:
        Absent: it cannot serve, and why.
    """
    try:
        op = bound(case, row)
    except BackendError as error:
        raise Absent(_reasons(str(error), row, case.op)) from error
    resolution = op.resolution
    assert resolution is not None
    options = dict(case.options)
    if case.op == "norm_linear" and row != BASELINE:
        options["statistics"] = _statistics(case, row)
    weights, fn, inputs = _prepared(op, case.weights), resolution.fn, case.inputs
    return Ready(lambda: fn(*inputs, *weights, **options), results)


def available_memory(device: torch.device) -> int:
    """Bytes that are free on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        # In KiB; what caches hold is given back when it is asked for.
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return UNKNOWN_MEMORY


def _check_memory(case: Case) -> None:
    inputs = case.attention
    assert inputs is not None
    problem = inputs.problem
    keys = problem.lengths if problem.lengths_k is None else problem.lengths_k
    largest = max(length * length_k for length, length_k in zip(problem.lengths, keys, strict=True))
    needed, free = largest * problem.heads * 4 * _COPIES, available_memory(case.device)
    if needed > free // 2:
        raise Absent(f"its scores take {needed / 2**30:.1f} GiB, more than half of the {free / 2**30:.1f} GiB free")


def _prepared(op: BoundOp, weights: tuple[Any, ...]) -> tuple[Any, ...]:
    resolution = op.resolution
    assert resolution is not None
    return weights if resolution.prepare is None else resolution.prepare(*weights, call=resolution.call)


def _statistics(case: Case, row: str) -> Any:
    """What the product before leaves beside these rows for the norm, as in a model: zeros and the rows as residual."""
    x, width = case.inputs[0], 64
    facts: dict[str, Any] = {"hidden": x.shape[1], "inner": width, "epilogue": "none", "residual": True}
    writer = BoundOp("linear", facts={**facts, "statistics": True})
    writer.bind(case.device, case.dtype, backend=row, deterministic=False)
    assert writer.resolution is not None
    weights = _prepared(writer, (x.new_zeros(x.shape[1], width), None))
    written, statistics = writer.resolution.fn(x.new_zeros(len(x), width), *weights, residual=x, statistics=True)
    assert torch.equal(written, x)
    return statistics


def _reasons(message: str, row: str, op: str) -> str:
    """The reasons alone, without the call that they are about."""
    reasons = message.removeprefix(f"backend {row!r} cannot serve {op}: ")
    return reasons.rpartition(" (op=")[0] or reasons
