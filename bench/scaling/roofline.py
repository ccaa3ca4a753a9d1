"""How long a GPU takes for a batch, on paper: a roofline, published rates, and each kernel by itself.

    ideal        every FLOP at the peak, every byte at the full bandwidth, whichever takes longer
    practical    products and attention at the best rates that others have published, nothing else
    by kernel    each kernel at those rates or at the bandwidth, whichever takes longer, in whole tiles and whole waves
                 of tiles, none faster than a launch; what the host takes to launch them, where that is longer

Nothing here was measured. Not modelled: the level-2 cache, clocks under load, and what a kernel of padless loses
against the best there is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...engine.config import ModelConfig
from ...engine.errors import OptionError
from ..cost import (
    ELEMENT,
    Step,
    attention_flops_per_token,
    bytes_per_token,
    flops_per_token,
    launches,
    product_flops_per_token,
    steps,
)

__all__ = [
    "H200",
    "Device",
    "Figure",
    "attention_crossover",
    "batch_seconds",
    "ideal_seconds",
    "practical_seconds",
    "tokens_per_second",
]

TILE_ROWS, TILE_KEYS = 128, 64
"""Tokens of a tile of any kernel, keys of a block of attention: what the kernels take on sm_90 where nothing was
tuned."""

LONGEST = 2**20
"""Tokens of a text beyond which no crossover is looked for."""


@dataclass(frozen=True)
class Figure:
    """A number, and where it is from.

    Attributes:
        value: in SI units: FLOP/s, bytes/s, seconds.
        kind: "measured", "published" or "assumed".
        source: by whom, or why.
    """

    value: float
    kind: str
    source: str


@dataclass(frozen=True)
class Device:
    """A GPU as the model sees it.

    Attributes:
        name: of the GPU.
        peak: FLOP/s that bf16 products reach at best.
        bandwidth: bytes/s of its memory that are reached at best.
        gemm: FLOP/s of large bf16 products.
        attention: FLOP/s of attention without a mask at a head size of 64.
        launch: seconds of the host for a kernel that PyTorch launches.
        kernel: seconds of the shortest kernel, start to start.
        link: bytes/s between host and GPU, one way.
        multiprocessors: programs of one wave.
    """

    name: str
    peak: Figure
    bandwidth: Figure
    gemm: Figure
    attention: Figure
    launch: Figure
    kernel: Figure
    link: Figure
    multiprocessors: int


H200 = Device(
    name="H200 SXM",
    peak=Figure(790e12, "assumed", "80 % of the 989 TFLOP/s that NVIDIA gives for dense bf16"),
    bandwidth=Figure(4.3e12, "assumed", "90 % of the 4.8 TB/s that NVIDIA gives"),
    gemm=Figure(650e12, "published", "cuBLAS, fp16, 8192 x 8192 x K: 588 at K = 512 to 665 at K = 16,384 (Triton)"),
    attention=Figure(450e12, "published", "FlashAttention-3, D = 64: 333 at 512 tokens to 497 at 16k, on an H100"),
    launch=Figure(5e-6, "assumed", "eager PyTorch; a recorded graph takes this once a batch"),
    kernel=Figure(2e-6, "assumed", "start to start of dependent kernels"),
    link=Figure(50e9, "assumed", "of the 64 GB/s one way of PCIe 5.0 x16"),
    multiprocessors=132,
)


def ideal_seconds(config: ModelConfig, length: int, device: Device) -> float:
    """Seconds a token of a text of `length` tokens, by the roofline; no implementation is faster."""
    computing = flops_per_token(config, length) / device.peak.value
    return max(computing, bytes_per_token(config) / device.bandwidth.value)


def practical_seconds(config: ModelConfig, length: int, device: Device) -> float:
    """Seconds a token of a text of `length` tokens, products and attention at published rates, one after the other."""
    products = product_flops_per_token(config) / device.gemm.value
    return products + attention_flops_per_token(config, length) / device.attention.value


def batch_seconds(config: ModelConfig, texts: int, length: int, device: Device, *, recorded: bool = False) -> float:
    """Seconds of a batch of `texts` texts of `length` tokens each, kernel by kernel.

    Args:
        config: of the model.
        texts: at least 1.
        length: tokens of each, special tokens included.
        device: what runs it.
        recorded: kernels are replayed from a recorded graph: the host launches once.

    Raises:
        OptionError: there are no texts, or as `cost.steps`.
    """
    if texts < 1:
        raise OptionError(f"texts: expected at least 1, got {texts}")
    on_device = sum(_kernel_seconds(step, texts, length, device) for step in steps(config))
    return max(on_device, device.launch.value * (1 if recorded else launches(config)))


def tokens_per_second(
    config: ModelConfig, length: int, device: Device, *, budget: int = 65_536, recorded: bool = False
) -> float:
    """Tokens a second, kernel by kernel, in batches of as many whole texts as `budget` tokens hold, at least one."""
    texts = max(budget // length, 1)
    return texts * length / batch_seconds(config, texts, length, device, recorded=recorded)


def attention_crossover(config: ModelConfig, device: Device) -> int | None:
    """Tokens of a text from which attention takes longer than the products, at published rates; None: it never does."""
    products = product_flops_per_token(config) / device.gemm.value

    def longer(length: int) -> bool:
        return attention_flops_per_token(config, length) / device.attention.value > products

    if not longer(LONGEST):
        return None
    low, high = 0, LONGEST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if longer(middle) else (middle, high)
    return high


def _kernel_seconds(step: Step, texts: int, length: int, device: Device) -> float:
    tokens = texts * length
    moving = (step.moved * tokens + ELEMENT * step.parameters) / device.bandwidth.value
    computing = _product_flops(step, tokens, device) / device.gemm.value
    if step.channels:
        computing += _attention_flops(step, texts, length) / device.attention.value
    return max(moving, computing, device.kernel.value)


def _product_flops(step: Step, tokens: int, device: Device) -> float:
    """FLOPs of what the multiprocessors are busy with: whole tiles, in whole waves.

    A kernel of one product has tiles of columns too. One of several gives each program some rows and all products.
    """
    bands = math.ceil(tokens / TILE_ROWS)
    if len(step.products) != 1:
        return _in_waves(bands, device) * TILE_ROWS * 2.0 * step.parameters
    inputs, outputs = step.products[0]
    columns = 256 if -outputs % 256 < 128 else 128
    tiles = bands * math.ceil(outputs / columns)
    return _in_waves(tiles, device) * TILE_ROWS * columns * 2.0 * inputs


def _in_waves(tiles: int, device: Device) -> int:
    return math.ceil(tiles / device.multiprocessors) * device.multiprocessors


def _attention_flops(step: Step, texts: int, length: int) -> float:
    """FLOPs of whole tiles: of rows that are no tokens, and of keys in a block of which one is seen."""
    tiles = math.ceil(length / TILE_ROWS)
    if step.window < 0:
        keys = tiles * _blocks(0, length)
    else:
        keys = sum(
            _blocks(max(row - step.window, 0), min(row + TILE_ROWS + step.window, length))
            for row in range(0, length, TILE_ROWS)
        )
    return texts * 4.0 * step.channels * TILE_ROWS * TILE_KEYS * keys


def _blocks(first: int, end: int) -> int:
    return math.ceil(end / TILE_KEYS) - first // TILE_KEYS
