"""The Gluon kernel without a GPU: its source in `gluon_model.py`, partitions in random order, against the eager op."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gluon_model import GluonKernel
from lengths import Packed, packed
from operands import in_turn
from torch import Tensor
from two_times_rule import assert_two_times_rule

from padless.engine.contract import Call
from padless.engine.errors import InputError
from padless.engine.ops.attention import varlen_attention as eager
from padless.kernels import attention_hopper, attention_hopper_forward
from padless.kernels.attention_hopper import default_config, ragged, unsupported
from padless.kernels.launch import Config

FILE = Path(attention_hopper_forward.__file__)
KERNEL = "attention_hopper_kernel"
HOSTILE = (0, 1, 127, 128, 129, 0, 255, 300, 64, 385, 0)


def tiled(keys: int, stages: int) -> Config:
    return Config.of(num_stages=stages, BLOCK_M=128, BLOCK_N=keys)


def attend(
    data: Packed, config: Config, seed: int = 0, changes: Sequence[tuple[str, str]] = (), **options: Any
) -> tuple[Tensor, Tensor]:
    """The launcher's output and log-sum-exp, its kernel run by the model."""
    model = GluonKernel(FILE, KERNEL, changes)

    def launch(kernel: Any, grid: tuple[int], arguments: Any, constants: Any, config: Config) -> None:
        assert kernel is attention_hopper_forward.attention_hopper_kernel
        model.launch(grid[0], arguments, {**dict(config.blocks), **constants}, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_hopper, "launch", launch)
        out, lse = attention_hopper.varlen_attention(*data.arguments, return_lse=True, config=config, **options)
    return out, lse


def check(data: Packed, got: tuple[Tensor, Tensor], **options: Any) -> None:
    same = eager(*data.arguments, return_lse=True, **options)
    exact = eager(*data.to(torch.float64).arguments, return_lse=True, **options)
    for what, mine, theirs, truth in zip(("out", "lse"), got, same, exact, strict=True):
        assert_two_times_rule(mine, theirs, truth, what)


@pytest.mark.parametrize(
    ("keys", "stages", "head_dim", "dtype"),
    in_turn([(128, 2), (64, 2), (64, 3), (128, 4)], [64, 128], [torch.bfloat16, torch.float16]),
)
def test_it_is_right_in_any_order(dtype: torch.dtype, head_dim: int, keys: int, stages: int) -> None:
    data = packed(HOSTILE, 2, 1, head_dim, dtype, seed=keys + stages, magnitude=2.0)
    check(data, attend(data, tiled(keys, stages), seed=stages))


@pytest.mark.parametrize("head_dim", [64, 128])
def test_it_is_right_as_it_is_tiled_by_default(head_dim: int) -> None:
    data = packed((700, 3), 2, 2, head_dim, torch.bfloat16, seed=1, magnitude=1.0)
    check(data, attend(data, default_config(head_dim)))


@pytest.mark.parametrize("lengths", [(1,), (128,), (129, 129), (256, 256, 256), (40, 0, 17)])
def test_it_is_right_without_a_list_of_tiles(lengths: tuple[int, ...]) -> None:
    data = packed(lengths, 1, 1, 64, torch.bfloat16, seed=2, magnitude=1.0)
    check(data, attend(data, tiled(64, 2), seed=5))


@pytest.mark.parametrize("scale", [0.0, -0.3, 1.7])
def test_any_scale_will_do(scale: float) -> None:
    data = packed((130, 70), 1, 1, 64, torch.bfloat16, seed=3, magnitude=1.0)
    check(data, attend(data, tiled(64, 2), softmax_scale=scale), softmax_scale=scale)


def test_no_order_of_events_changes_a_bit() -> None:
    data = packed((513, 64), 1, 1, 64, torch.bfloat16, seed=4, magnitude=2.0)
    first = attend(data, tiled(64, 2), seed=0)
    for seed in range(1, 12):
        assert all(torch.equal(a, b) for a, b in zip(attend(data, tiled(64, 2), seed), first, strict=True)), seed


def test_what_its_neighbours_hold_does_not_reach_a_text() -> None:
    lengths = (100, 77, 130)
    data = packed(lengths, 2, 1, 64, torch.bfloat16, seed=5, magnitude=1.0)
    clean = attend(data, tiled(64, 2))
    inside = slice(100, 177)
    spoilt = {name: getattr(data, name).clone() for name in "qkv"}
    for name, value in (("q", torch.nan), ("k", torch.inf), ("v", torch.inf)):
        kept = spoilt[name][inside].clone()
        spoilt[name].fill_(value)
        spoilt[name][inside] = kept
    out, lse = attend(replace(data, **spoilt), tiled(64, 2))
    assert torch.equal(out[inside], clean[0][inside])
    assert torch.equal(lse[:, inside], clean[1][:, inside])


def test_views_that_the_hardware_cannot_step_through_are_copied() -> None:
    data = packed((90, 40), 2, 2, 64, torch.bfloat16, seed=6, magnitude=1.0)
    odd = {}
    for name in "qkv":
        x = getattr(data, name)
        odd[name] = torch.zeros(len(x), 2, 65, dtype=x.dtype)[..., 1:]
        odd[name].copy_(x)
    got, expected = attend(replace(data, **odd), tiled(64, 2)), attend(data, tiled(64, 2))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_descriptor_reads_a_text_and_zeros_beyond_it() -> None:
    from gluon_model import _Rows

    x = torch.arange(40 * 3 * 64, dtype=torch.float32).view(40, 3, 64).bfloat16()[:, 1:]
    rows = _Rows(ragged(x, 16))
    begin, length, row = 7, 21, 16
    most = attention_hopper.MOST_ROWS.value
    tile = rows.read([most, begin + length, most - length + row, 64])[0, 0]
    assert torch.equal(tile[:5], x[23:28, 1])
    assert not tile[5:].any()


BROKEN = {
    "K is fetched into a place that may still be read": ("        mbarrier.wait(k_free.index(slot), turn ^ 1)\n", ""),
    "V is fetched into a place that may still be read": ("        mbarrier.wait(v_free.index(slot), turn ^ 1)\n", ""),
    "the producer waits for the wrong parity": ("wait(k_free.index(slot), turn ^ 1)", "wait(k_free.index(slot), turn)"),
    "parities of steps, not of uses": ("(step // STAGES) & 1", "step & 1"),
    "one consumer alone frees a place": ("init(v_free.index(slot), count=2)", "init(v_free.index(slot), count=1)"),
    "K is not waited for": ("        mbarrier.wait(k_ready.index(slot), turn)\n", ""),
    "V is not waited for": ("        mbarrier.wait(v_ready.index(slot), turn)\n", ""),
    "the first V is not waited for": ("    mbarrier.wait(v_ready.index(0), 0)\n", ""),
    "Q is not waited for": ("    mbarrier.wait(q_ready, 0)\n", ""),
    "V is freed while it is read": (
        "        acc, p = warpgroup_mma_wait(0, deps=(acc, p))\n        mbarrier.arrive(v_free.index(before))\n",
        "        mbarrier.arrive(v_free.index(before))\n        acc, p = warpgroup_mma_wait(0, deps=(acc, p))\n",
    ),
    "K is freed while it is read": (
        "    scores = warpgroup_mma_wait(0, deps=(scores,))\n    mbarrier.arrive(k_free.index(0))\n",
        "    mbarrier.arrive(k_free.index(0))\n    scores = warpgroup_mma_wait(0, deps=(scores,))\n",
    ),
    "the wrong V is freed": ("arrive(v_free.index(before))", "arrive(v_free.index(slot))"),
    "the scores are used before they are there": ("warpgroup_mma_wait(1, deps", "warpgroup_mma_wait(2, deps"),
    "half the bytes of Q are expected": ("2 * q_rows.block_type.nbytes", "q_rows.block_type.nbytes"),
    "the ragged tile is not masked": ("total, scale, True,", "total, scale, False,"),
    "a tile too many": ("range(1, blocks)", "range(1, blocks + 1)"),
    "what was added up is not rescaled": ("acc = acc * gl", "acc = acc + 0 * gl"),
    "a text ends where the batch ends": ("begin + length, MOST_ROWS - length + row", "MOST_ROWS, begin + row"),
    "both consumers take the same queries": (
        "length, start_m + ROWS, head, stride_ot",
        "length, start_m, head, stride_ot",
    ),
}


@pytest.mark.parametrize("changes", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_kernel_is_found_out(changes: tuple[str, str]) -> None:
    data = packed((600, 129), 1, 1, 64, torch.bfloat16, seed=7, magnitude=0.5)

    def in_many_orders() -> None:
        for seed in range(20):
            check(data, attend(data, tiled(64, 2), seed, [changes]))

    with pytest.raises(AssertionError):
        in_many_orders()


def test_a_single_place_a_ring_would_stand_still() -> None:
    data = packed((600,), 1, 1, 64, torch.bfloat16, seed=8, magnitude=1.0)
    with pytest.raises(AssertionError, match="an assertion of the kernel"):
        attend(data, tiled(64, 1))
    with pytest.raises(AssertionError, match="deadlock"):
        attend(data, tiled(64, 1), changes=[("    gl.static_assert(STAGES >= 2)\n", "")])


@pytest.mark.soak
def test_it_is_right_in_very_many_orders() -> None:
    order = random.Random(0)
    for seed in range(400):
        lengths = tuple(order.choice((0, 1, 63, 64, 65, 200, 500, 1000)) for _ in range(3))
        data = packed((*lengths, 5), 1, 1, 64, torch.bfloat16, seed=seed, magnitude=2.0)
        check(data, attend(data, tiled(64, order.choice((2, 3, 4))), seed))


def test_it_serves_nobody_until_a_gpu_has_shown_it() -> None:
    call = Call("attention", "cuda", torch.bfloat16, sm=90, head_dim=64, window="full", bias="none")
    assert unsupported(call) == ["needs a GPU report that shows it right and faster, got none"]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"sm": 100}, "needs sm_90, got sm_100"),
        ({"sm": None}, "needs sm_90, got none"),
        ({"dtype": torch.float32}, "needs dtype float16 or bfloat16, got float32"),
        ({"head_dim": 96}, "needs head_dim 64 or 128, got 96"),
        ({"window": "sliding"}, "needs window full, got sliding"),
        ({"window": "causal"}, "needs window full, got causal"),
        ({"bias": "t5"}, "needs bias none, got t5"),
        ({"cross": True}, "needs keys of the same texts, got those of others"),
    ],
)
def test_what_it_cannot_serve_has_a_reason(changed: dict[str, Any], reason: str) -> None:
    call = Call("attention", "cuda", torch.bfloat16, sm=90, head_dim=64, window="full", bias="none")
    assert reason in unsupported(replace(call, **changed))


@pytest.mark.parametrize("options", [{"window": (4, 4)}, {"causal": True}, {"position_bias": torch.zeros(32, 1)}])
def test_what_it_has_not_learnt_is_refused(options: dict[str, Any]) -> None:
    data = packed((5, 3), 1, 1, 64, torch.bfloat16, seed=9, magnitude=1.0)
    with pytest.raises(InputError, match="expected keys of the same texts, no window, not causal, no bias"):
        attend(data, tiled(64, 2), **options)


@pytest.mark.parametrize(("head_dim", "dtype"), [(32, torch.bfloat16), (64, torch.float32)])
def test_other_shapes_are_refused(head_dim: int, dtype: torch.dtype) -> None:
    data = packed((5, 3), 1, 1, head_dim, dtype, seed=9, magnitude=1.0)
    with pytest.raises(InputError, match="expected float16 or bfloat16 at head_dim 64 or 128"):
        attend(data, tiled(64, 2))


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0)])
def test_nothing_to_do_is_no_launch(lengths: tuple[int, ...]) -> None:
    data = packed(lengths, 2, 2, 64, torch.bfloat16, seed=10, magnitude=1.0)
    out, lse = attention_hopper.varlen_attention(*data.arguments, return_lse=True)
    assert out.shape == (0, 2, 64)
    assert lse.shape == (2, 0)
