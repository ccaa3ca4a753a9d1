"""What every launcher of this folder shares: a configuration, and the one place where a kernel is started."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .interpreter import apply

__all__ = ["Config", "channel_unit", "launch", "next_power_of_2"]

apply()


@dataclass(frozen=True)
class Config:
    """How a kernel is tiled on one kind of GPU: hashable, so that it can be a key and an entry of a cache.

    Attributes:
        blocks: names and values of the tile sizes, constants of the kernel: `(("BLOCK_M", 128), ("BLOCK_N", 64))`.
        num_warps: warps of 32 threads a program has.
        num_stages: tiles in flight between memory and the tensor cores.
        max_registers: registers a thread may have. Without a bound ptxas makes one up for the sake of more programs at
            once, and moves a few values to memory where there was room for them; None leaves that to it.
    """

    blocks: tuple[tuple[str, int], ...]
    num_warps: int = 4
    num_stages: int = 2
    max_registers: int | None = None

    @classmethod
    def of(cls, num_warps: int = 4, num_stages: int = 2, max_registers: int | None = None, **blocks: int) -> Config:
        """The configuration with these tile sizes."""
        return cls(tuple(blocks.items()), num_warps, num_stages, max_registers)

    def options(self, *, nvidia: bool = True) -> dict[str, Any]:
        """What the compiler is told beside the tile sizes.

        Fusion of a product with a sum is off, whatever Triton's version: where a kernel wants one rounding it says
        `tl.fma`, and so the interpreter, every GPU and every path through a kernel round alike.
        """
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": False}
        return {**options, "maxnreg": self.max_registers} if self.max_registers and nvidia else options

    def __getitem__(self, name: str) -> int:
        """The tile size of this name."""
        return dict(self.blocks)[name]


def launch(
    kernel: Any, grid: tuple[int, ...], arguments: Mapping[str, Any], constants: Mapping[str, Any], config: Config
) -> None:
    """Start `kernel`, unless the grid is empty, on the device its tensors are on.

    Args:
        kernel: a function under `@triton.jit`.
        grid: programs along each axis. Tokens belong on axis 0: the others end at 65,535.
        arguments: tensors, numbers and None by parameter name.
        constants: compile-time constants by parameter name; they win over those of `config`.
        config: tile sizes, warps and stages.
    """
    if 0 in grid:
        return
    device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
    constants = {**dict(config.blocks), **constants}
    options = config.options(nvidia=torch.version.hip is None)
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](**arguments, **constants, **options)
    else:
        kernel[grid](**arguments, **constants, **options)


def channel_unit(*tensors: Tensor) -> int:
    """How many channels may be read at once, up to 16 bytes: every stride but the last is a multiple of it.

    Strides counted in such units tell the compiler so. Of an integer it knows by itself only whether 16 divides it, and
    at 60 or 24 channels a head it would read channel by channel, each with a pointer in registers.
    """
    widest = 16 // tensors[0].element_size()
    return math.gcd(widest, *(stride for tensor in tensors for stride in tensor.stride()[:-1]))


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is not below `n`; 1 for 0."""
    return 1 << max(n - 1, 0).bit_length()
