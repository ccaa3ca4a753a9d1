"""Which candidates are worth a try, and in which order, before anything is compiled or timed.

The time of a call, in clocks of a multiprocessor that gets its share of the programs:

    resident   programs it holds at once: registers, shared memory and warps decide (occupancy)
    share      programs / multiprocessors, rounded up
    products   share * FLOPs / rate
    memory     share * max(bytes / memory's rate, bytes / L2's rate)
    waiting    share / resident, rounded up, * steps * LATENCY / rounds of loads in flight
    rounds     share * steps * ROUND / 2, or / 1 where no other program is resident
    clocks     the largest of products, memory and waiting (the roofline), SEEN of the others, rounds, LATENCY

It orders candidates; it does not predict times. What a compiler makes of a tile, and what spills, it does not know: a
candidate is dropped only where the numbers it must hold cannot be there, or where it is another under a second name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from ..engine.contract import Call
from .footprint import Footprint, Load, footprint, in_flight
from .machine import REGISTERS_A_THREAD, Machine, machine_of

__all__ = ["clocks", "label", "rank", "refusal", "resident", "worth_trying"]

LATENCY = 800.0
"""Clocks until a load from memory arrives, with what stands in the way of it; assumed, as the next two are."""

ROUND = 60.0
"""Clocks of a round of loads that do neither products nor copies: addresses, barriers, the branch back."""

SEEN = 0.15
"""How much of what runs beside the largest part is not hidden behind it."""

SM_OF_TMA = 90
SM_OF_WARP_ROLES = 100
"""Warps part work between them (`WARP_SPECIALIZE`) on this compute capability alone."""

C = TypeVar("C")


def label(config: Any) -> str:
    """A tiling in one line: "BLOCK_M=128 BLOCK_N=64 TMA=1 warps=8 stages=3 registers=255"."""
    blocks = " ".join(f"{name}={value}" for name, value in config.blocks)
    registers = "" if config.max_registers is None else f" registers={config.max_registers}"
    return f"{blocks} warps={config.num_warps} stages={config.num_stages}{registers}"


def worth_trying(candidates: Sequence[C], shipped: C, call: Call) -> list[C]:
    """The candidates without those that would be another under a second name, or hold more than a GPU has room for.

    Args:
        candidates: of one kernel.
        shipped: its tiling unless told otherwise; not among the result.
        call: the kind of call. Tensor descriptors (TMA) need sm_90: elsewhere the kernel runs without them.
    """
    found = {_as_run(shipped, call): shipped}
    for config in candidates:
        if refusal(config, call) is None:
            found.setdefault(_as_run(config, call), config)
    return list(found.values())[1:]


def rank(candidates: Sequence[C], shipped: C, call: Call, load: Load, machine: Machine) -> list[C]:
    """Those of `worth_trying`, the most promising first; those that no formula tells apart in their own order.

    Args:
        candidates: of one kernel.
        shipped: its tiling unless told otherwise; not among the result.
        call: the kind of call.
        load: sizes of the call that will be timed.
        machine: the GPU.
    """
    found = worth_trying(candidates, shipped, call)
    costs = {id(config): _cost(footprint(call, config, load, machine), machine) for config in found}
    return sorted(found, key=lambda config: costs[id(config)])


def refusal(config: Any, call: Call) -> str | None:
    """Why the numbers that a tile keeps, or the operands in flight, cannot be where they must; None if they can."""
    blocks = dict(config.blocks)
    numbers, flying = _least(config, blocks, call)
    room = REGISTERS_A_THREAD * 32 * config.num_warps
    if numbers > room:
        return f"needs {numbers:,} registers, has {room:,}"
    most = machine_of(call.sm).shared_a_program
    return f"needs {flying:,} bytes of shared memory, has {most:,}" if flying > most else None


def resident(found: Footprint, machine: Machine) -> int:
    """Programs that a multiprocessor holds at once; at least one, which then spills."""
    registers = math.ceil(min(found.registers, REGISTERS_A_THREAD) / 8) * 8 * 32 * found.warps
    limits = [found.most_resident, machine.warps // found.warps, int(machine.registers // registers)]
    if found.shared:
        limits.append(machine.shared // found.shared)
    return max(min(limits), 1)


def clocks(found: Footprint, machine: Machine) -> float:
    """Clocks until the last program is done."""
    share, together = math.ceil(found.programs / machine.multiprocessors), resident(found, machine)
    rate = machine.tensor if found.tensor else machine.plain
    parts = (
        share * found.flops / (rate / 2 if found.half_rate else rate),
        share * max(found.memory / machine.memory, found.cached / machine.cached),
        math.ceil(share / together) * found.steps * LATENCY / min(max(found.ahead, 1), max(found.steps, 1)),
    )
    rounds = share * found.steps * ROUND / min(together, 2)
    return max(parts) + SEEN * (sum(parts) - max(parts)) + rounds + LATENCY


def _cost(found: Footprint | None, machine: Machine) -> float:
    """Clocks, more of them the more registers a thread would have to spill."""
    if found is None:
        return 0.0
    spilled = max(found.registers - REGISTERS_A_THREAD, 0.0)
    return clocks(found, machine) * (1.0 + spilled / 64.0)


def _as_run(config: Any, call: Call) -> tuple[Any, ...]:
    """What tells one tiling from another on this GPU; no TMA is TMA=0."""
    blocks = dict(config.blocks)
    descriptors = (call.sm or SM_OF_TMA) >= SM_OF_TMA and (call.op == "attention" or call.dtype != torch.float32)
    tma = bool(blocks.pop("TMA", 0)) and descriptors
    roles = bool(blocks.pop("WARP_SPECIALIZE", 0)) and call.sm == SM_OF_WARP_ROLES
    return tuple(sorted(blocks.items())), tma, roles, config.num_warps, config.num_stages, config.max_registers


def _least(config: Any, blocks: dict[str, int], call: Call) -> tuple[float, int]:
    """The fewest registers of a program that hold its sums, and the fewest bytes of shared memory for its operands."""
    wide, e = call.dtype == torch.float32, call.dtype.itemsize
    machine = machine_of(call.sm)
    if call.op in ("attention", "decode_attention"):
        rows, keys, channels = blocks["BLOCK_M"], blocks["BLOCK_N"], call.head_dim or 64
        # Scores and sums are fp32 in registers; in fp32 so are the operands, as the tensor cores have no use for them.
        numbers = rows * (keys + channels) + (rows + keys) * channels * wide
        return numbers, in_flight(call, config, rows, machine) * 2 * keys * channels * e
    if call.op in ("linear", "norm_linear", "mlm_head"):
        rows, columns, features = blocks["BLOCK_M"], blocks["BLOCK_N"], blocks["BLOCK_K"]
        sums = rows * columns
        # In fp32 a thread holds the operands of its part of the tile, which is as good as square, for each step.
        operands = math.sqrt(sums / (32 * config.num_warps)) * features * 32 * config.num_warps if wide else 0.0
        return sums + operands, in_flight(call, config, rows, machine) * (rows + columns) * features * e
    if call.op in ("mobilebert_in", "mobilebert_out"):
        width = call.inner or 128
        sums = (3 if call.op == "mobilebert_in" else 1) * blocks["BLOCK_M"] * width
        operands = math.sqrt(sums / (32 * config.num_warps)) * blocks["BLOCK_K"] * 32 * config.num_warps if wide else 0
        tile = (blocks["BLOCK_M"] + 3 * width if call.op == "mobilebert_in" else 2 * width) * blocks["BLOCK_K"]
        return sums + operands, in_flight(call, config, blocks["BLOCK_M"], machine) * tile * e
    if "SPLIT" in blocks:
        return blocks["BLOCK_N"] * (call.hidden or 1), 0
    if call.op in ("norm", "rms_norm", "embed"):
        return blocks["BLOCK_M"] * (call.hidden or 1), 0
    return 0, 0
