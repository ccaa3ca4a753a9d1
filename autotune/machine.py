"""What a multiprocessor has of each resource, by compute capability: what a cost model weighs configurations with.

Registers, shared memory and warps are those of NVIDIA's CUDA C++ Programming Guide, "Technical Specifications per
Compute Capability"; rates are those of the data sheet of the part named beside them, divided by its clock and its
multiprocessors. They put configurations in an order; no time is ever told from them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["REGISTERS_A_THREAD", "Machine", "machine_of"]

REGISTERS_A_THREAD = 255
"""The most there are."""


@dataclass(frozen=True)
class Machine:
    """One GPU.

    Attributes:
        multiprocessors: how many there are.
        shared: bytes of shared memory of a multiprocessor.
        shared_a_program: bytes of it that one program may have.
        warps: that a multiprocessor holds at once.
        registers: of a multiprocessor, 32 bits each.
        tensor: FLOPs a clock of a multiprocessor's tensor cores, 16-bit operands.
        plain: the same in fp32, without tensor cores.
        memory: bytes a clock and multiprocessor that the GPU's memory delivers.
        cached: the same of its L2.
        asynchronous: its tensor cores read operands from shared memory by themselves (wgmma, tcgen05).
    """

    multiprocessors: int
    shared: int
    shared_a_program: int
    warps: int
    tensor: float
    plain: float
    memory: float
    asynchronous: bool = False
    registers: int = 65536
    cached: float = 64.0


_PARTS: dict[int, Machine] = {
    80: Machine(108, 164 << 10, 163 << 10, 64, 2048, 128, 13.4),  # A100 80GB
    86: Machine(82, 100 << 10, 99 << 10, 48, 512, 256, 6.7),  # GeForce RTX 3090
    89: Machine(128, 100 << 10, 99 << 10, 48, 512, 256, 3.1),  # GeForce RTX 4090
    90: Machine(132, 228 << 10, 227 << 10, 64, 4096, 256, 20.0, asynchronous=True),  # H200
    100: Machine(148, 228 << 10, 227 << 10, 64, 8192, 256, 29.0, asynchronous=True),  # B200
    120: Machine(170, 100 << 10, 99 << 10, 48, 512, 256, 4.4),  # GeForce RTX 5090
}

_OTHERS = Machine(304, 64 << 10, 64 << 10, 32, 2048, 256, 8.0)
"""Off NVIDIA hardware: an MI300X, whose waves of 64 count as two warps."""


def machine_of(sm: int | None, multiprocessors: int | None = None) -> Machine:
    """The GPU of this compute capability, or of the next lower one that is known.

    Args:
        sm: compute capability times ten; None off NVIDIA hardware.
        multiprocessors: of the GPU itself; None takes those of the part that stands for its kind.
    """
    known = [version for version in _PARTS if sm is not None and version <= sm]
    part = _PARTS[max(known)] if known else _OTHERS
    return part if multiprocessors is None else replace(part, multiprocessors=multiprocessors)
