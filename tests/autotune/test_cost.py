"""The cost model: what it drops cannot run, what it says of a tile is what the compile gate found, and its order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from padless.autotune.cost import clocks, label, rank, refusal, resident, worth_trying
from padless.autotune.entries import KERNELS, candidates_of, default_of
from padless.autotune.footprint import FOOTPRINTS, Footprint, Load, footprint
from padless.autotune.machine import Machine, machine_of
from padless.engine.contract import Call
from padless.kernels.launch import Config

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "gate" / "resources.json").read_text())["compilations"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
H200 = machine_of(90)


def call(op: str, sm: int | None = 90, dtype: torch.dtype = torch.bfloat16, **facts: Any) -> Call:
    return Call(op, "cuda", dtype, sm=sm, **facts)


ATTENTION = call("attention", head_dim=64, window="full", bias="none")
GATE = call("linear", hidden=2304, inner=768, epilogue="gelu", gated=True)
CASES: dict[str, tuple[Call, Load]] = {
    "attention": (ATTENTION, Load((512,) * 32, 16)),
    "decode_attention": (call("decode_attention", head_dim=64, bias="none"), Load((4096,) * 64, 16)),
    "linear": (GATE, Load((65536,))),
    "norm_linear": (replace(GATE, op="norm_linear", norm="layer_norm"), Load((65536,))),
    **{op: (call(op, hidden=768), Load((65536,))) for op in ("norm", "rms_norm", "no_norm", "embed")},
    "trigram": (call("trigram", hidden=384), Load((65536,))),
    "mobilebert_in": (call("mobilebert_in", hidden=512, inner=128), Load((65536,))),
    "mobilebert_out": (call("mobilebert_out", hidden=512, inner=128), Load((65536,))),
    "rope": (call("rope", head_dim=64), Load((65536,), 12)),
    "pool": (call("pool", hidden=768), Load((512,) * 128)),
    "mlm_head": (call("mlm_head", hidden=768), Load((512,), vocabulary=30_522)),
}


def of(rows: int, keys: int, *, warps: int = 4, stages: int = 2, **blocks: int) -> Config:
    return Config.of(warps, stages, 255, BLOCK_M=rows, BLOCK_N=keys, **blocks)


def found_for(asked: Call, config: Config, load: Load, machine: Machine = H200) -> Footprint:
    found = footprint(asked, config, load, machine)
    assert found is not None
    return found


def test_every_op_with_candidates_has_a_formula_and_a_case() -> None:
    assert set(FOOTPRINTS) == set(KERNELS) == set(CASES)


def test_no_tiling_is_tried_twice_or_in_vain() -> None:
    def asked(sm: int, dtype: torch.dtype = torch.bfloat16, head_dim: int = 64) -> Call:
        return Call("attention", "cuda", dtype, sm=sm, head_dim=head_dim)

    shipped, twin, tma = of(128, 64), of(128, 64, TMA=0), of(128, 64, TMA=1)
    other, vast = of(64, 64, TMA=0), of(128, 128, stages=4, TMA=0)
    everything = [twin, tma, other, replace(other, max_registers=None), vast]
    assert worth_trying(everything, shipped, asked(90)) == [tma, other, everything[3], vast]
    assert worth_trying(everything, shipped, asked(80)) == [other, everything[3], vast]
    # 128 x 128 scores and as many sums are all that 128 threads have; 4 x 2 x 128 rows of 256 bytes are not there.
    assert vast not in worth_trying(everything, shipped, asked(90, head_dim=128))
    assert worth_trying(everything, shipped, asked(90, torch.float32, 128)) == [other, everything[3]]
    assert label(tma) == "BLOCK_M=128 BLOCK_N=64 TMA=1 warps=4 stages=2 registers=255"
    assert len({label(config) for config in (*everything, shipped)}) == 6


def test_warps_that_part_work_are_another_candidate_where_they_do() -> None:
    candidates = candidates_of("linear")
    parted = [config for config in candidates if config["WARP_SPECIALIZE"]]
    assert parted
    for sm, tried in ((90, False), (100, True), (120, False)):
        asked = replace(GATE, sm=sm)
        assert any(config in worth_trying(candidates, default_of(asked), asked) for config in parted) == tried


def test_what_every_part_is_shipped_with_is_never_refused() -> None:
    for asked, _ in CASES.values():
        for sm in (80, 86, 89, 90, 100, 120):
            for dtype in DTYPES.values():
                here = replace(asked, sm=sm, dtype=dtype)
                assert refusal(default_of(here), here) is None, here


def test_what_cannot_be_held_is_refused_with_both_numbers() -> None:
    assert refusal(of(128, 128, warps=8, stages=4), replace(ATTENTION, head_dim=128)) == (
        "needs 262,144 bytes of shared memory, has 232,448"
    )
    wide = Config.of(1, 1, None, BLOCK_M=16)
    assert refusal(wide, call("norm", hidden=768)) == "needs 12,288 registers, has 8,160"
    # Tiles for tensor cores in full fp32: a thread would hold a row and a column of operands, 64 numbers each.
    full = replace(GATE, dtype=torch.float32)
    kept = worth_trying(candidates_of("linear"), default_of(full), full)
    assert kept
    assert {config["BLOCK_K"] for config in kept} == {16}


def _golden(space: str, **wanted: str) -> Sequence[dict[str, Any]]:
    """Compilations of default configurations with aligned operands."""
    return [
        row for row in GOLDEN
        if row["space"] == space and "unaligned" not in row["case"] and "BLOCK" not in row["case"]
        and all(row["kernel"] == value for value in wanted.values())
    ]  # fmt: skip


def _asked(row: dict[str, Any], op: str, **facts: Any) -> Call:
    target = row["target"]
    sm = int(target[3:]) if target.startswith("sm_") else None
    return call(op, sm, DTYPES[row["case"].split(", ")[0]], **facts)


@pytest.mark.parametrize("op", ["attention", "decode_attention"])
def test_shared_memory_of_attention_is_what_the_gate_found(op: str) -> None:
    kernel = {"attention": "attention_kernel", "decode_attention": "_split_kernel"}[op]
    looked = 0
    for row in _golden(op.split("_")[0], kernel=kernel):
        head_dim = int(row["case"].split("head_dim ")[1].split(",")[0])
        asked = _asked(row, op, head_dim=head_dim, window="full", bias="t5" if "t5" in row["case"] else "none")
        if asked.dtype == torch.float32 or asked.sm is None:
            continue  # other layouts: what passes between warps is added
        found = found_for(asked, default_of(asked), Load((512,), 1), machine_of(asked.sm))
        assert found.shared == pytest.approx(row["shared"], rel=0.35), row
        looked += 1
    assert looked >= 10


def test_registers_and_shared_memory_of_products_are_what_the_gate_found() -> None:
    looked = 0
    widths = {"modernbert up": (2304, 768, True), "bert up": (3072, 768, False), "megatron down": (1024, 4096, False)}
    for row in _golden("linear", kernel="linear_kernel"):
        shape = row["case"].split(", ", 1)[1]
        if shape not in widths or not row["target"].startswith("sm_"):
            continue
        hidden, inner, gated = widths[shape]
        asked = _asked(row, "linear", hidden=hidden, inner=inner, gated=gated, epilogue="gelu")
        found = found_for(asked, default_of(asked), Load((8192,)), machine_of(asked.sm))
        assert found.shared == pytest.approx(row["shared"], rel=0.01), row
        if row["instruction"] != "tcgen05":  # whose sums are not in registers
            assert found.registers == pytest.approx(row["registers"], rel=0.2), row
        looked += 1
    assert looked >= 5


@pytest.mark.parametrize("op", CASES)
def test_more_work_costs_more(op: str) -> None:
    asked, load = CASES[op]
    for config in (default_of(asked), *candidates_of(op)[:8]):
        costs = [
            clocks(found_for(asked, config, Load(load.lengths * times, load.heads, load.vocabulary)), H200)
            for times in (1, 4, 16)
        ]
        assert costs[0] < costs[1] < costs[2]


@pytest.mark.parametrize("op", CASES)
def test_a_gpu_with_more_of_everything_is_never_slower(op: str) -> None:
    asked, load = CASES[op]
    more = replace(H200, multiprocessors=264, memory=40.0, tensor=8192, cached=128.0, registers=1 << 17, shared=1 << 19)
    for config in candidates_of(op):
        assert clocks(found_for(asked, config, load), more) <= clocks(found_for(asked, config, load), H200)


def test_occupancy_falls_with_what_a_program_takes() -> None:
    small = Footprint(1000, 4, 64, 16 << 10, 1.0, 1.0, 0.0, 1)
    assert resident(small, H200) == 8  # 65,536 registers for 128 threads of 64
    assert resident(replace(small, registers=128), H200) == 4
    assert resident(replace(small, shared=100 << 10), H200) == 2
    assert resident(replace(small, warps=32, registers=32), H200) == 2
    assert resident(replace(small, registers=400, shared=300 << 10), H200) == 1


@pytest.mark.parametrize(
    ("op", "good", "bad"),
    [
        # What the shipped kernels' pages say of these tilings.
        ("attention", {"BLOCK_M": 128, "BLOCK_N": 64}, {"BLOCK_M": 16, "BLOCK_N": 16}),
        ("linear", {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 64}, {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 16}),
        ("norm_linear", {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 64}, {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 16}),
        ("mobilebert_out", {"BLOCK_M": 128, "BLOCK_K": 64}, {"BLOCK_M": 16, "BLOCK_K": 16}),
        ("mlm_head", {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 16}),
        ("norm", {"BLOCK_M": 4}, {"BLOCK_M": 1, "num_warps": 16}),
        ("embed", {"BLOCK_M": 4}, {"BLOCK_M": 1, "num_warps": 16}),
    ],
)
def test_known_good_tilings_come_before_known_bad_ones(op: str, good: dict[str, int], bad: dict[str, int]) -> None:
    asked, load = CASES[op]
    order = [*rank(candidates_of(op), of(1, 1), asked, load, H200)]

    def fits(config: Config, wanted: dict[str, int]) -> bool:
        has = dict(config.blocks) | {"num_warps": config.num_warps}
        return all(has[name] == value for name, value in wanted.items())

    def place(wanted: dict[str, int]) -> int:
        return min(position for position, config in enumerate(order) if fits(config, wanted))

    assert place(good) < place(bad)


@pytest.mark.parametrize("op", CASES)
def test_the_default_would_be_tried_before_the_search_could_stop(op: str) -> None:
    """Where a kernel's author and the model disagree by more, one of them is wrong."""
    asked, load = CASES[op]
    other = Config.of(1, 1, None, BLOCK_M=1, BLOCK_N=1, BLOCK_K=1, SPLIT=1, PARTS=1)
    order = rank((*candidates_of(op), default_of(asked)), other, asked, load, H200)
    assert order.index(default_of(asked)) < 24


def test_an_unknown_gpu_is_taken_for_the_one_before_it() -> None:
    assert machine_of(103) == machine_of(100)
    assert machine_of(87, 16) == replace(machine_of(86), multiprocessors=16)
    assert machine_of(None).shared_a_program == 64 << 10
