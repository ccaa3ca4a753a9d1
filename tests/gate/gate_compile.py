"""One compilation for a GPU that need not be there, and what came of it: registers, spills, memory, instructions."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import triton
from gate_addresses import narrow_products
from gate_recorder import Launch, specialise
from triton import knobs
from triton.backends.compiler import GPUTarget

__all__ = ["TARGETS", "Compiled", "Dot", "Target", "compile_launch"]


@dataclass(frozen=True)
class Target:
    """A kind of GPU.

    Attributes:
        name: "sm_90" or "gfx942".
        shared_limit: bytes of shared memory that one program may have; Triton compiles what has more, and a GPU then
            refuses it. Sources: CUDA programming guide, "technical specifications per compute capability" (maximum per
            thread block); AMD's CDNA3 instruction set architecture, LDS per workgroup.
    """

    name: str
    shared_limit: int

    @property
    def sm(self) -> int | None:
        """Compute capability times ten; None off NVIDIA hardware."""
        return int(self.name.removeprefix("sm_")) if self.name.startswith("sm_") else None

    @property
    def gpu(self) -> GPUTarget:
        """As Triton names it."""
        return GPUTarget("hip", self.name, 64) if self.sm is None else GPUTarget("cuda", self.sm, 32)


DOT = re.compile(r"(?:tt\.dot|ttng\.warp_group_dot) .* : (?:tensor|!ttg\.memdesc)<(?:\d+x)??(\d+)x\d+x(\w+)[,>].* \* ")
TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", 166_912),
        Target("sm_86", 101_376),
        Target("sm_89", 101_376),
        Target("sm_90", 232_448),
        Target("sm_100", 232_448),
        Target("sm_120", 101_376),
        Target("gfx942", 65_536),
    )
}


@dataclass(frozen=True)
class Dot:
    """One product of two matrices.

    Attributes:
        rows: rows of the first.
        dtype: of the first: "bf16", "f16", "f32".
    """

    rows: int
    dtype: str


@dataclass(frozen=True)
class Compiled:
    """What came of one compilation.

    Attributes:
        kernel: its name.
        target: name of the GPU.
        registers: registers a thread has.
        spill: bytes a thread writes to and reads from local memory because registers did not suffice. On AMD, of vector
            registers: scalar ones are kept in the lanes of a vector register, which is no memory.
        stack: bytes of local memory a thread has; not counted on AMD, where a wave keeps scalars there.
        shared: bytes of shared memory a program has.
        instruction: what `tl.dot` became: "tcgen05", "wgmma", "mma.sync", "mfma", several joined with "+", or "none".
        tma: bulk tensor copies.
        tf32: whether operands of any `tl.dot` are rounded to TF32, or would be if they were fp32.
        dots: every `tl.dot`.
        narrow: products below 64 bits that reach an address, see `gate_addresses.narrow_products`.
        options: options that the launcher gave itself, by name.
        seconds: of CPU time that it took, with ptxas.
    """

    kernel: str
    target: str
    registers: int
    spill: int
    stack: int
    shared: int
    instruction: str
    tma: int
    tf32: bool
    dots: frozenset[Dot]
    narrow: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]
    seconds: float

    def row(self) -> dict[str, int | str]:
        """The part that the golden table keeps."""
        return {name: getattr(self, name) for name in ("registers", "shared", "spill", "instruction", "tma")}


def compile_launch(launch: Launch, target: Target, *, aligned: bool = True) -> Compiled:
    """Compile `launch` for `target`.

    Args:
        launch: as recorded.
        target: the GPU.
        aligned: see `gate_recorder.specialise`.

    Raises:
        Exception: whatever Triton or ptxas raise where they cannot.
    """
    specialisation = specialise(launch, target.gpu, aligned=aligned)
    start = _cpu_seconds()
    with _ptxas_log() as log:
        kernel = triton.compile(specialisation.source, target=target.gpu, options=specialisation.options.__dict__)
    seconds = _cpu_seconds() - start
    # Gluon leaves out the first of the compiler's steps, which decides layouts.
    ttir = kernel.asm.get("ttir") or kernel.asm["ttgir"]
    found = _nvidia(kernel.asm["ptx"], log.getvalue()) if "ptx" in kernel.asm else _amd(kernel.asm["amdgcn"])
    # A product that does not say how precise it is meant to be says tf32 here, whatever its dtype.
    found["tf32"] |= "inputPrecision = tf32" in ttir
    return Compiled(
        kernel=launch.name,
        target=target.name,
        shared=kernel.metadata.shared,
        dots=frozenset(Dot(int(rows), dtype) for rows, dtype in DOT.findall(ttir)),
        narrow=tuple(narrow_products(ttir)),
        options=specialisation.given,
        seconds=seconds,
        **found,
    )


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@contextlib.contextmanager
def _ptxas_log() -> Iterator[io.StringIO]:
    """What ptxas says about the registers while Triton runs it: Triton prints it, and does not keep it."""
    before, knobs.nvidia.dump_ptxas_log = knobs.nvidia.dump_ptxas_log, True
    always, knobs.compilation.always_compile = knobs.compilation.always_compile, True
    try:
        with contextlib.redirect_stdout(io.StringIO()) as log:
            yield log
    finally:
        knobs.nvidia.dump_ptxas_log, knobs.compilation.always_compile = before, always


def _nvidia(ptx: str, log: str) -> dict:
    numbers = {
        "registers": r"Used (\d+) registers",
        "stack": r"(\d+) bytes stack frame",
        "stores": r"(\d+) bytes spill stores",
        "loads": r"(\d+) bytes spill loads",
    }
    found = {name: sum(map(int, re.findall(pattern, log))) for name, pattern in numbers.items()}
    if not found["registers"]:
        raise ValueError(f"ptxas: expected a line with the registers used, found {log!r}")
    instructions = {"tcgen05": "tcgen05.mma", "wgmma": "wgmma.mma_async", "mma.sync": "mma.sync"}
    return {
        "registers": found["registers"],
        "stack": found["stack"],
        "spill": found["stores"] + found["loads"],
        "instruction": "+".join(name for name, text in instructions.items() if text in ptx) or "none",
        "tma": len(re.findall(r"cp\.async\.bulk\.tensor", ptx)),
        "tf32": ".tf32" in ptx or "kind::tf32" in ptx,
    }


def _amd(assembly: str) -> dict:
    def number(name: str) -> int:
        found = re.findall(rf"\.{name}:\s+(\d+)", assembly)
        if len(found) != 1:
            raise ValueError(f"AMD's assembly: expected one {name}, found {found}")
        return int(found[0])

    return {
        "registers": number("vgpr_count"),
        "stack": 0,
        "spill": 4 * number("vgpr_spill_count"),
        "instruction": "mfma" if "v_mfma" in assembly else "none",
        "tma": 0,
        "tf32": "xf32" in assembly,
    }
