"""The Gluon kernel, compiled as it would be launched: can it start, and what did ptxas make of its order of events?

`test_kernels.py` has the rules it shares with all kernels; here is what only a kernel with partitions has to keep.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gate_calls
import pytest
import torch
import triton
from gate_compile import TARGETS, _nvidia, _ptxas_log
from gate_recorder import recorded, specialise
from triton import knobs

from padless.kernels import attention_hopper
from padless.kernels.attention_hopper import CANDIDATES
from padless.kernels.launch import Config

TARGET = TARGETS["sm_90"]
THREADS = 384
"""Two consumers and the producer, which takes the registers of four warps."""


@dataclass(frozen=True)
class Facts:
    """One call of the launcher."""

    head_dim: int = 64
    dtype: torch.dtype = torch.bfloat16
    lse: bool = False
    grouped: bool = False
    equal: bool = False
    scale: float | None = None
    config: Config | None = None

    def __str__(self) -> str:
        said = [f"{name}={value}" for name, value in vars(self).items() if value not in (None, False)]
        return ", ".join(said).replace("torch.", "")


CASES = (
    Facts(64),
    Facts(128),
    Facts(64, torch.float16, lse=True, equal=True),
    Facts(128, torch.float16, lse=True, grouped=True),
    Facts(128, scale=-0.3, equal=True),
)
TRIED = tuple(Facts(head_dim, config=config) for head_dim in (64, 128) for config in CANDIDATES)


@dataclass(frozen=True)
class Made:
    """A compiled kernel: as PTX, as machine code, and what it takes."""

    ptx: str
    sass: str
    log: str
    figures: dict[str, Any]
    shared: int


def compiled(facts: Facts, folder: Path) -> Made:
    cu_seqlens = gate_calls._lengths(facts.equal)
    q, k, v = gate_calls._projected(
        int(cu_seqlens[-1]), *gate_calls._heads(facts.head_dim, facts.grouped), facts.head_dim, facts.dtype, True
    )
    with recorded() as made:
        attention_hopper.varlen_attention(
            q, k, v, cu_seqlens, gate_calls.LONGEST,
            softmax_scale=facts.scale, return_lse=facts.lse, config=facts.config,
        )  # fmt: skip
    (launch,) = (launch for launch in made if launch.name == "attention_hopper_kernel")
    found = specialise(launch, TARGET.gpu)
    assert dict(found.given)["enable_fp_fusion"] is False
    with _ptxas_log() as log:
        kernel = triton.compile(found.source, target=TARGET.gpu, options=found.options.__dict__)
    binary = folder / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    sass = subprocess.run([knobs.nvidia.nvdisasm.path, binary], capture_output=True, text=True, check=True).stdout
    ptx = kernel.asm["ptx"]
    return Made(ptx, sass, log.getvalue(), _nvidia(ptx, log.getvalue()), kernel.metadata.shared)


@pytest.fixture(scope="module", params=CASES, ids=str)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return compiled(request.param, tmp_path_factory.mktemp("hopper"))


def test_it_fits(made: Made) -> None:
    assert made.figures["spill"] == made.figures["stack"] == 0
    assert made.shared <= TARGET.shared_limit
    # All threads of a program start with as many, whatever they then give to each other.
    assert made.figures["registers"] * THREADS <= 65536
    assert f".reqntid {THREADS}" in made.ptx


def test_it_has_the_instructions_it_is_written_for(made: Made) -> None:
    assert made.figures["instruction"] == "wgmma"
    assert made.figures["tma"] >= 4
    assert not made.figures["tf32"]
    assert "mbarrier.try_wait.parity" in made.ptx
    assert {"240", "24"} <= set(re.findall(r"setmaxnreg\.\w+\.sync\.aligned\.u32 \t?(\d+)", made.ptx))
    assert "serialized" not in made.log, "ptxas lets its products wait for each other"


def test_a_place_is_freed_by_all_warps_after_the_product_that_read_it(made: Made) -> None:
    """An arrival stands for four warps: they have met since the wait for the product."""
    events = re.findall(r"wgmma\.mma_async|wgmma\.wait_group|\bbar\.sync|mbarrier\.arrive\.shared", made.ptx)
    order = [{"wgmma.mma_async": "product", "bar.sync": "meet"}.get(event, event.split(".")[1]) for event in events]
    frees = [i for i, event in enumerate(order) if event == "arrive"]
    # One for K before the loop; one for K and one for V within; of both consumers.
    assert len(frees) == 6
    for i in frees:
        assert order[i - 2 : i] == ["wait_group", "meet"]


def test_the_softmax_runs_while_the_values_are_multiplied(made: Made) -> None:
    """Between the waits for the two products of a step lie the exponentials of a thread's scores, one for each."""
    events = re.findall(r"HGMMA|MUFU\.EX2|DEPBAR\.LE gsb0, 0x[01]", made.sass)
    gaps = []
    for i, event in enumerate(events):
        if event == "DEPBAR.LE gsb0, 0x1":
            behind = events[i + 1 :]
            gaps.append(behind[: behind.index("DEPBAR.LE gsb0, 0x0")])
    assert len(gaps) == 2
    for gap in gaps:
        assert "HGMMA" not in gap
        assert len(gap) >= 64


@pytest.mark.grid
@pytest.mark.parametrize("facts", TRIED, ids=str)
def test_what_tuning_tries_compiles_and_does_not_spill(facts: Facts, tmp_path: Path) -> None:
    assert compiled(facts, tmp_path).figures["spill"] == 0
