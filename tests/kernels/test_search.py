"""The search on interpreted kernels: real candidates, held against the real oracle.

What counts as time is the number of programs that a call starts, which no busy machine changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from padless.autotune.cost import label
from padless.autotune.machine import machine_of
from padless.autotune.search import Found, SearchError, Subject, search
from padless.bench.gpu import subjects
from padless.bench.gpu.case import Context
from padless.bench.gpu.subjects import subject
from padless.engine.contract import Call
from padless.kernels import attention, norm
from padless.kernels.launch import Config

HERE = Context(torch.device("cpu"), True, 1 << 28)
NORM = Call("norm", "cuda", torch.float32, hidden=20)
ATTENTION = Call("attention", "cuda", torch.float32, head_dim=16, window="full", bias="none")


class Programs:
    """How many were started since the beginning."""

    def __init__(self) -> None:
        self.count = 0

    def counting(self, launch: Callable[..., None]) -> Callable[..., None]:
        def counted(kernel: Any, grid: tuple[int, ...], *arguments: Any) -> None:
            self.count += math.prod(grid)
            launch(kernel, grid, *arguments)

        return counted

    def measure(self, calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
        """Programs of each call, two rounds for many."""
        found: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(min(rounds, 2)):
            for name, call in calls.items():
                before = self.count
                call()
                found[name].append(float(self.count - before))
        return found

    def search(self, of: Subject[Any], **options: Any) -> Found[Any]:
        return search(of, self.measure, seconds=60.0, machine=machine_of(None), **options)


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    found = Programs()
    for module in (attention, norm):
        monkeypatch.setattr(module, "launch", found.counting(module.launch))
    return found


def test_attention_is_searched(programs: Programs) -> None:
    of = subject(replace(ATTENTION, window="sliding"), HERE)
    small, large = (Config.of(8, 2, 255, BLOCK_M=rows, BLOCK_N=16, TMA=0) for rows in (16, 64))
    assert {small, large} <= set(of.candidates)
    found = programs.search(replace(of, default=small, candidates=(large,)))
    # Texts of 9, 3 and 20 tokens: room for five tiles of 16 rows; of 64 each text is one.
    assert (found.default_us, found.us) == (5.0, 3.0)
    assert (found.best, found.refused) == (large, {})
    assert programs.search(replace(of, default=large, candidates=(small,))).best == large


def test_norm_is_searched(programs: Programs) -> None:
    of = subject(NORM, HERE)
    small = Config.of(1, 1, BLOCK_M=1)
    some = [config for config in of.candidates if config.num_warps == 1]
    found = programs.search(replace(of, default=small, candidates=some))
    assert found.default_us == 37.0
    assert found.us == 3.0
    assert found.best["BLOCK_M"] == 16
    assert not found.refused


def test_a_kernel_that_is_slightly_wrong_with_one_tiling_loses_it(
    monkeypatch: pytest.MonkeyPatch, programs: Programs
) -> None:
    """A thousandth more in one number of the last row, and no program at all: the oracle sees it."""
    of = subject(NORM, HERE)
    spoilt, sound = Config.of(1, 1, BLOCK_M=16), Config.of(1, 1, BLOCK_M=8)
    right: dict[str, Any] = {}
    original = norm.layer_norm

    def layer_norm(*arguments: Any, config: Config | None = None, **options: Any) -> Any:
        if config != spoilt:
            right["last"] = original(*arguments, config=config, **options)
            return right["last"]
        out, total = (x.clone() for x in right["last"])
        out[-1, -1] *= 1.001
        return out, total

    monkeypatch.setattr(norm, "layer_norm", layer_norm)
    found = programs.search(replace(of, candidates=(spoilt, sound)))
    assert list(found.refused) == [label(spoilt)]
    assert found.refused[label(spoilt)].startswith("wrong: output 0: error ")
    assert found.best != spoilt


def test_a_candidate_that_does_not_fit_the_kernel_is_counted(programs: Programs) -> None:
    of = subject(ATTENTION, HERE)
    odd = Config.of(4, 2, 255, BLOCK_M=24, BLOCK_N=16, TMA=0)  # no power of two
    found = programs.search(replace(of, candidates=(odd,)))
    assert list(found.refused) == [label(odd)]
    assert found.kept


def test_a_default_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, programs: Programs) -> None:
    of = subject(ATTENTION, HERE)
    original = attention.varlen_attention

    def shifted(*arguments: Any, **options: Any) -> Tensor:
        return original(*arguments, **options) + 1e-3  # type: ignore[operator]

    monkeypatch.setattr(attention, "varlen_attention", shifted)
    with pytest.raises(SearchError, match=r"attention: the default configuration BLOCK_M=.* wrong: output 0: error"):
        programs.search(of)


@pytest.mark.parametrize(
    "call",
    [
        replace(ATTENTION, window="causal"),
        replace(ATTENTION, bias="t5"),
        replace(ATTENTION, window="causal", bias="t5", dtype=torch.bfloat16),
        Call("decode_attention", "cuda", torch.float32, head_dim=16, bias="t5"),
        Call("linear", "cuda", torch.float32, inner=16, hidden=24, epilogue="gelu"),
        Call("linear", "cuda", torch.float32, inner=16, hidden=20, epilogue="none", residual=True),
        Call("linear", "cuda", torch.float32, inner=16, hidden=48, epilogue="none", rope=True, head_dim=8),
        Call("norm_linear", "cuda", torch.float16, inner=16, hidden=48, epilogue="none", norm="layer_norm", rope=True,
             head_dim=8),
        Call("norm_linear", "cuda", torch.bfloat16, inner=16, hidden=20, epilogue="none", norm="rms_norm"),
    ],
    ids=str,
)  # fmt: skip
def test_a_subject_is_made_of_any_call_that_models_make(call: Call) -> None:
    """What the dry run of the GPU report leaves out. The default is right, and the check looks at all it computes."""
    of = subject(call, HERE)
    assert of.wrong(of.default) is None
    results = of.run(of.default)
    assert isinstance(results, tuple)
    out = results[0]
    assert out.dtype == call.dtype
    assert out.isfinite().all()
    assert out.abs().sum() > 0


def test_what_a_candidate_leaves_unwritten_is_not_what_the_last_one_wrote(
    monkeypatch: pytest.MonkeyPatch, programs: Programs
) -> None:
    """As an allocator would have it: every result lies where the one before it lay."""
    of = subject(NORM, HERE)
    lazy, memory = Config.of(1, 1, BLOCK_M=16), of.run(of.default)
    assert isinstance(memory, tuple)
    original = norm.layer_norm

    def layer_norm(*arguments: Any, config: Config | None = None, **options: Any) -> Any:
        rows = slice(0, -1 if config == lazy else None)
        for kept, made in zip(memory, original(*arguments, config=config, **options), strict=True):
            kept[rows] = made[rows]
        return memory

    def poison(like: Any) -> None:
        assert [x.shape for x in like] == [x.shape for x in memory]
        for kept in memory:
            kept.fill_(float("nan"))

    monkeypatch.setattr(norm, "layer_norm", layer_norm)
    monkeypatch.setattr(subjects, "poison", poison)
    found = programs.search(replace(of, candidates=(lazy,)))
    assert list(found.refused) == [label(lazy)]
