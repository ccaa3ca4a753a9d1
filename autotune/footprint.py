"""What one program of a kernel takes and moves under a configuration, by arithmetic: the input of the cost model.

The formulas are those of the kernels' own docstrings (bytes, FLOPs, tiling). Shared memory is what Triton's pipeliner
allocates: `num_stages` tiles where tensor cores read them from there, one less where they are copied to registers.
Registers are numbers held at once over threads, and `OWN` for addresses and counters. Both are held against what the
compile gate found (`tests/gate/resources.json`) by tests/autotune/test_cost.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..engine.contract import Call
from .machine import Machine

__all__ = ["FOOTPRINTS", "Footprint", "Load", "footprint"]

OWN = 40
"""Registers of a thread for all but the numbers of its tiles, fitted to the gate's table."""

WINDOW = 129
"""Keys that a query of a sliding window sees: a call does not say how wide it is, and ModernBERT's is this wide."""

NETWORKS, WIDENING = 4, 4
"""Feed-forward networks of a MobileBERT layer, and how much wider than the rest they are; as published."""

KEPT = 5
"""Of `mlm_head`: the logits that are asked for."""

FEWEST_ROWS = 64
"""Of a product by wgmma or tcgen05; fewer are done by mma.sync, at half the rate at best."""


@dataclass(frozen=True)
class Load:
    """What is asked of a call beside its facts.

    Attributes:
        lengths: tokens of each text; kept keys of each sequence where one query meets them.
        heads: of an op that has heads.
        vocabulary: outputs of a head of a language model.
    """

    lengths: tuple[int, ...]
    heads: int = 1
    vocabulary: int = 0

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True)
class Footprint:
    """One program.

    Attributes:
        programs: how many there are.
        warps: of each.
        registers: of a thread, estimated.
        shared: bytes.
        flops: of products, with what tiles compute in vain.
        memory: bytes to and from the GPU's memory.
        cached: bytes out of L2, where others have them read as well.
        steps: rounds of loads, one after the other.
        ahead: rounds that may be in flight at once.
        tensor: products are on tensor cores.
        half_rate: and not on their widest instruction.
        most_resident: programs that a multiprocessor is given at most.
    """

    programs: int
    warps: int
    registers: float
    shared: int
    flops: float
    memory: float
    cached: float
    steps: float
    ahead: int = 1
    tensor: bool = False
    half_rate: bool = False
    most_resident: int = 32


def footprint(call: Call, config: Any, load: Load, machine: Machine) -> Footprint | None:
    """The footprint of `config` for this call; None of an op that has no formula.

    Args:
        call: the facts.
        config: a candidate.
        load: sizes of the call that is timed.
        machine: the GPU.
    """
    formula = FOOTPRINTS.get(call.op)
    return None if formula is None else formula(call, config, dict(config.blocks), load, machine)


def in_flight(call: Call, config: Any, rows: int, machine: Machine) -> int:
    """Tiles that shared memory holds: what is copied on to registers needs one less."""
    asynchronous = machine.asynchronous and call.dtype.itemsize == 2 and rows >= FEWEST_ROWS
    return config.num_stages if asynchronous else max(config.num_stages - 1, 1)


def _power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def _numbers(elements: float, config: Any) -> float:
    return elements / (32 * config.num_warps)


def _product(call: Call, config: Any, rows: int, machine: Machine) -> dict[str, Any]:
    """The fields of every footprint with a product of tiles this high."""
    tensor = call.dtype.itemsize == 2
    return {
        "warps": config.num_warps,
        "ahead": config.num_stages,
        "tensor": tensor,
        "half_rate": machine.asynchronous and (rows < FEWEST_ROWS or config.num_warps < 4),
    }


def _attention(call: Call, config: Any, blocks: dict[str, int], load: Load, machine: Machine) -> Footprint:
    rows, keys, e = blocks["BLOCK_M"], blocks["BLOCK_N"], call.dtype.itemsize
    channels = max(_power_of_2(call.head_dim or 64), 16)
    tiles = [(length, math.ceil(length / rows)) for length in load.lengths if length]
    count = sum(number for _, number in tiles)

    def visited(length: int) -> float:
        if call.window == "sliding":
            return min(length, rows + WINDOW - 1 + keys)
        return length / 2 + rows if call.window == "causal" else length

    steps = sum(number * math.ceil(visited(length) / keys) for length, number in tiles) / max(count, 1)
    numbers = rows * (keys + channels)
    if call.dtype != torch.float32:
        numbers += rows * keys / 2 + (0 if machine.asynchronous else rows * channels / 2)
    registers = _numbers(numbers, config) + OWN + 24 * (call.bias == "t5")
    if call.dtype == torch.float32:
        # Without tensor cores a thread holds half the channels of its queries and keys.
        registers += math.sqrt(_numbers(rows * keys, config)) * channels / 2
    return Footprint(
        programs=count * load.heads,
        registers=registers,
        shared=e * channels * (rows + 2 * keys * in_flight(call, config, rows, machine)),
        flops=4.0 * rows * keys * channels * steps,
        memory=2.0 * rows * channels * e,
        cached=2.0 * keys * channels * e * steps,
        steps=steps,
        **_product(call, config, rows, machine),
    )


def _decode(call: Call, config: Any, blocks: dict[str, int], load: Load, machine: Machine) -> Footprint:
    rows, keys, split, e = blocks["BLOCK_M"], blocks["BLOCK_N"], blocks["SPLIT"], call.dtype.itemsize
    channels = max(_power_of_2(call.head_dim or 64), 16)
    count = sum(math.ceil(length / split) for length in load.lengths)
    each = load.tokens / max(count, 1)
    return Footprint(
        programs=count * load.heads,
        registers=_numbers(rows * (keys + channels) + keys * channels * e / 2, config) + OWN,
        shared=e * (rows * (channels + keys) + 2 * keys * channels * in_flight(call, config, rows, machine)),
        flops=4.0 * rows * channels * math.ceil(each / keys) * keys,
        memory=2.0 * channels * e * each + 8.0 * (channels + 2),
        cached=0.0,
        steps=math.ceil(each / keys),
        **_product(call, config, rows, machine),
    )


def _linear(call: Call, config: Any, blocks: dict[str, int], load: Load, machine: Machine) -> Footprint:
    rows, columns, features = blocks["BLOCK_M"], blocks["BLOCK_N"], blocks["BLOCK_K"]
    outputs, inner, e = call.hidden or 768, call.inner or 768, call.dtype.itemsize
    tiles = math.ceil(load.tokens / rows) * math.ceil(outputs / columns)
    steps = math.ceil(inner / features)
    written = outputs // (2 if call.gated else 1) * (2 if call.residual else 1)
    sums = _numbers(rows * columns, config)
    leaving = sums / blocks.get("PARTS", 1)
    return Footprint(
        programs=tiles,
        registers=OWN + (sums + math.sqrt(sums) * features if call.dtype == torch.float32 else sums + leaving),
        shared=(rows + columns) * features * e * in_flight(call, config, rows, machine),
        flops=2.0 * rows * columns * features * steps,
        memory=e * (load.tokens * (inner + written) + outputs * inner) / max(tiles, 1),
        cached=(rows + columns) * features * e * steps,
        steps=steps,
        most_resident=1 if config.num_warps > 4 else 2,
        **_product(call, config, rows, machine),
    )


def _mobilebert(call: Call, config: Any, blocks: dict[str, int], load: Load, machine: Machine) -> Footprint:
    rows, features, columns = blocks["BLOCK_M"], blocks["BLOCK_K"], blocks["BLOCK_N"]
    hidden, width, e = call.hidden or 512, max(_power_of_2(call.inner or 128), 16), call.dtype.itemsize
    if call.op == "mobilebert_in":
        weights = 3 * hidden * width + 2 * width * width
        steps = hidden / features + 2 * width / columns
        tile = (rows + 3 * width) * features
        memory = rows * (4 * hidden + width * (4 + 3 * e))
    else:
        weights = width * width + 2 * NETWORKS * WIDENING * width * width + width * hidden
        steps = width / features + NETWORKS * WIDENING * width / features + hidden / columns
        tile = 2 * width * features
        memory = rows * (width * (e + 4) + 8 * hidden)
    return Footprint(
        programs=math.ceil(load.tokens / rows),
        registers=_numbers(3 * rows * width, config) + OWN,
        shared=tile * e * in_flight(call, config, rows, machine),
        flops=2.0 * rows * weights,
        memory=memory,
        cached=weights * e,
        steps=steps,
        **_product(call, config, rows, machine),
    )


def _head(call: Call, config: Any, blocks: dict[str, int], load: Load, machine: Machine) -> Footprint:
    rows, tokens, features, parts = (blocks[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "PARTS"))
    hidden, e = call.hidden or 768, call.dtype.itemsize
    programs = math.ceil(load.tokens / rows) * parts
    tiles = math.ceil(load.vocabulary / parts / tokens)
    steps = tiles * math.ceil(hidden / features)
    return Footprint(
        programs=programs,
        registers=2 * _numbers(rows * tokens, config) + OWN,
        shared=(rows + tokens) * features * e * in_flight(call, config, rows, machine),
        flops=2.0 * rows * tokens * features * steps,
        memory=load.vocabulary * hidden * e / max(programs, 1) + 8.0 * KEPT * rows,
        cached=(rows + tokens) * features * e * steps,
        steps=steps,
        **_product(call, config, rows, machine),
    )


def _rows(elements: float, held: float, rounds: int) -> Callable[..., Footprint]:
    """The formula of an op that goes once over whole rows.

    Args:
        elements: of memory, read or written, for each channel of a row.
        held: rows that a program has in registers at once.
        rounds: of loads of which one tells where the next one reads, or sums that all warps wait for.
    """

    def formula(call: Call, config: Any, blocks: dict[str, int], load: Load, machine: Machine) -> Footprint:
        del machine
        rows, width = blocks["BLOCK_M"], (call.hidden or 768) // (3 if call.op == "trigram" else 1)
        block = min(_power_of_2(width), 1024) if call.op == "no_norm" else _power_of_2(width)
        return Footprint(
            programs=math.ceil(load.tokens / rows),
            warps=config.num_warps,
            registers=_numbers(held * rows * block, config) + 24,
            shared=0,
            flops=0.0,
            memory=rows * width * elements * call.dtype.itemsize,
            cached=0.0,
            steps=rounds * math.ceil(width / block),
        )

    return formula


def _rope(call: Call, config: Any, blocks: dict[str, int], load: Load, machine: Machine) -> Footprint:
    del machine
    rows, head_dim, a_step = blocks["BLOCK_M"], call.head_dim or 64, 4
    half = _power_of_2(head_dim // 2)
    return Footprint(
        programs=math.ceil(load.tokens / rows),
        warps=config.num_warps,
        registers=_numbers(rows * half * (2 + 4 * min(a_step, load.heads)), config) + 24,
        shared=0,
        flops=0.0,
        memory=4.0 * rows * load.heads * head_dim * call.dtype.itemsize,
        cached=4.0 * rows * head_dim,
        steps=2 + 2 * math.ceil(load.heads / a_step),
    )


def _pool(call: Call, config: Any, blocks: dict[str, int], load: Load, machine: Machine) -> Footprint:
    del machine
    split, rows, width = blocks["SPLIT"], blocks["BLOCK_N"], call.hidden or 768
    count = sum(math.ceil(length / split) for length in load.lengths)
    each = load.tokens / max(count, 1)
    return Footprint(
        programs=count,
        warps=config.num_warps,
        registers=_numbers(rows * _power_of_2(width) * (1 + call.dtype.itemsize / 4), config) + 24,
        shared=0,
        flops=0.0,
        memory=each * width * call.dtype.itemsize + 8.0 * width,
        cached=0.0,
        steps=2 + math.ceil(each / rows),
    )


FOOTPRINTS: dict[str, Callable[..., Footprint]] = {
    "attention": _attention,
    "decode_attention": _decode,
    "linear": _linear,
    "norm_linear": _linear,
    "norm": _rows(4, 1.25, 3),
    "rms_norm": _rows(4, 1.25, 2),
    "no_norm": _rows(3, 2, 1),
    "embed": _rows(2, 1.25, 4),
    "trigram": _rows(4, 1, 3),
    "mobilebert_in": _mobilebert,
    "mobilebert_out": _mobilebert,
    "rope": _rope,
    "pool": _pool,
    "mlm_head": _head,
}
"""By op; all that have `CANDIDATES`."""
