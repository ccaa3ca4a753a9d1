"""What a compiled kernel must keep, rule by rule; each gives its reason with the figure found and the one expected."""

from __future__ import annotations

from gate_compile import Compiled, Target

__all__ = ["problems"]

MATRIX_ROWS = 64
"""Rows from which a product of half-precision matrices fills the instructions of a whole warp group."""


def problems(compiled: Compiled, target: Target, *, shipped: bool = True, aligned: bool = True) -> list[str]:
    """Every rule that a kernel breaks, one line each; empty when it keeps them all.

    Args:
        compiled: what came of its compilation.
        target: the GPU it was compiled for.
        shipped: users get its configuration. One that only tuning tries may spill or not fit: tuning sees that.
        aligned: compiled for what the launch was given. One that knows nothing about its pointers and strides computes
            every address by itself: such a launch is slow with or without a few bytes spilled, and may spill.
    """
    found = [*_fusion(compiled), *_addresses(compiled), *_precision(compiled), *_instruction(compiled, target)]
    if shipped and compiled.shared > target.shared_limit:
        found.append(f"{compiled.shared} bytes of shared memory, {target.name} has {target.shared_limit}")
    if shipped and aligned and compiled.spill + compiled.stack:
        found.append(f"spills {compiled.spill} bytes with a stack of {compiled.stack}, expected none")
    return found


def _fusion(compiled: Compiled) -> list[str]:
    """The default has changed between versions of Triton, and the interpreter never fuses."""
    given = dict(compiled.options).get("enable_fp_fusion", "nothing")
    return [] if given is False else [f"enable_fp_fusion: expected False from the launcher, got {given}"]


def _addresses(compiled: Compiled) -> list[str]:
    return list(compiled.narrow)


def _precision(compiled: Compiled) -> list[str]:
    return ["tl.dot in TF32, expected input_precision 'ieee'"] if compiled.tf32 else []


def _instruction(compiled: Compiled, target: Target) -> list[str]:
    """Products of half-precision matrices run on the tensor cores, and wide ones on the newest kind there is."""
    half = {dot for dot in compiled.dots if dot.dtype in ("bf16", "f16")}
    if not half:
        return []
    if target.sm is None:
        expected = {"mfma"}
    elif target.sm in (90, 100) and min(dot.rows for dot in half) >= MATRIX_ROWS:
        expected = {"wgmma" if target.sm == 90 else "tcgen05"}
    elif target.sm in (90, 100):
        expected = {"wgmma", "mma.sync", "wgmma+mma.sync", "tcgen05", "tcgen05+mma.sync"}
    else:
        expected = {"mma.sync"}
    if compiled.instruction in expected:
        return []
    rows = sorted({dot.rows for dot in half})
    return [f"tl.dot of {rows} rows: expected {' or '.join(sorted(expected))}, got {compiled.instruction}"]
