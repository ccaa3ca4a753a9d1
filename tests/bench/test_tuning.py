"""What `padless tune` does with its searches: which calls, what is kept, what is printed, however it ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from padless.autotune.cost import label
from padless.autotune.device import Device
from padless.autotune.entries import KERNELS, default_of, hash_of, tiling_of
from padless.autotune.key import KEYED_BY, key_of
from padless.autotune.lookup import USER_CACHE, Lookup
from padless.autotune.search import Found, Progress, SearchError
from padless.autotune.store import Store
from padless.bench.gpu.standard import calls_of, name_of, standard_calls, tiny_calls
from padless.bench.gpu.tuning import tune_calls
from padless.engine.contract import Call
from padless.engine.errors import InputError
from padless.engine.models.modernbert import ModernBertConfig, ModernBertModel
from padless.kernels import norm
from padless.kernels.launch import Config

H200 = Device("cuda", "NVIDIA H200", "nvidia-h200", 90, 132, frozenset())
CALLS = [Call("norm", "cuda", torch.bfloat16, sm=90, hidden=hidden) for hidden in (768, 1024, 512)]
FAST = Config.of(16, 1, BLOCK_M=16)


def found(call: Call, best: Config, us: float = 80.0) -> Found[Config]:
    return Found(call, default_of(call), best, us, 100.0, 100.0 / us, {}, 1, {}, (), "all tried")


def fast(call: Call, seconds: float, progress: Progress) -> Found[Config]:
    progress(1, 1, 1.25)
    return found(call, FAST)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def keys(store: Store) -> set[object]:
    return {entry.key for entry in store.entries("nvidia-h200", "norm")}


def test_what_is_found_serves_from_then_on(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import triton

    tune_calls(CALLS, fast, H200, store, seconds=9.0)
    lookup = Lookup(Store(tmp_path), tmp_path / "nothing shipped")
    for call in CALLS:
        known = {"triton": triton.__version__, "kernel_hash": lambda: hash_of("norm")}
        answer = lookup.find(call, H200, norm.CANDIDATES, default_of(call), **known)  # type: ignore[arg-type]
        assert (answer.source, answer.config) == (USER_CACHE, FAST)
        assert answer.entry is not None
        assert (answer.entry.provenance.us, answer.entry.provenance.default_us) == (80.0, 100.0)
    printed = capsys.readouterr()
    assert printed.err == ""
    head, *rows = printed.out.splitlines()
    assert head.split() == ["op", "key", "default", "µs", "tuned", "µs", "ratio", "configuration"]
    assert rows[0].split() == ["norm", "dtype=bfloat16", "hidden=768", "100.0", "80.0", "1.250", *label(FAST).split()]
    assert len(rows) == 3


def test_a_default_that_stays_is_kept_as_such_in_place_of_what_was_there(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    call = CALLS[0]
    tune_calls([call], fast, H200, store, seconds=9.0)
    default = default_of(call)
    tune_calls([call], lambda *_: found(call, default, 100.0), H200, store, seconds=9.0)
    (entry,) = store.entries("nvidia-h200", "norm")
    assert entry.tiling == tiling_of(default)
    assert f"default stays: {label(default)}" in capsys.readouterr().out


def test_what_was_not_timed_or_is_no_candidate_is_not_kept(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    odd = replace(FAST, num_stages=7)
    tune_calls([CALLS[0]], lambda call, *_: found(call, odd), H200, store, seconds=9.0)
    untimed = replace(found(CALLS[0], default_of(CALLS[0])), us=None, default_us=None)
    tune_calls([CALLS[0]], lambda *_: untimed, H200, store, seconds=9.0)
    assert store.entries("nvidia-h200", "norm") == ()
    assert "not measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
        (RuntimeError("CUDA error: illegal address\nmore"), InputError,
         r"^norm/dtype=bfloat16 hidden=1024: the GPU failed \(CUDA error: illegal address\); what .* is kept$"),
    ],
)  # fmt: skip
def test_however_it_ends_what_was_found_is_kept_and_shown(
    store: Store, capsys: pytest.CaptureFixture[str], error: BaseException, raised: type[BaseException], message: str
) -> None:
    def second_fails(call: Call, seconds: float, progress: Progress) -> Found[Config]:
        if call is CALLS[1]:
            raise error
        return found(call, FAST)

    with pytest.raises(raised, match=message):
        tune_calls(CALLS, second_fails, H200, store, seconds=9.0)
    assert keys(store) == {key_of(CALLS[0])}
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("error", [SearchError("norm: the default is wrong"), torch.OutOfMemoryError("CUDA: no room")])
def test_a_call_that_cannot_be_tuned_does_not_stop_the_others(
    store: Store, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def first_fails(call: Call, seconds: float, progress: Progress) -> Found[Config]:
        if call is CALLS[0]:
            raise error
        return found(call, FAST)

    with pytest.raises(InputError, match=r"^1 of 3 calls not tuned: norm/dtype=bfloat16 hidden=768: "):
        tune_calls(CALLS, first_fails, H200, store, seconds=9.0)
    assert keys(store) == {key_of(call) for call in CALLS[1:]}


def test_the_time_of_all_is_shared_by_what_is_left(store: Store) -> None:
    given: list[float] = []

    def noting(call: Call, seconds: float, progress: Progress) -> Found[Config]:
        given.append(seconds)
        return found(call, FAST)

    tune_calls(CALLS, noting, H200, store, seconds=300.0)
    assert given == pytest.approx([100.0, 150.0, 300.0], rel=0.05)


def test_on_a_terminal_it_says_what_it_is_at(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    tune_calls(CALLS, fast, H200, store, seconds=9.0, progress=True)
    shown = capsys.readouterr().err
    assert "norm/dtype=bfloat16 hidden=1024" in shown
    assert "1/1 tried, 1.25 times as fast" in shown
    assert "3/3" in shown


def test_a_cache_that_cannot_be_written_to_does_not_lose_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    store = Store(tmp_path / "file")
    tune_calls(CALLS[:1], fast, H200, store, seconds=9.0)
    assert keys(store) == {key_of(CALLS[0])}
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_standard_calls_are_served_and_have_keys_of_their_own(dtype: torch.dtype) -> None:
    calls = standard_calls(dtype, 90)
    assert len({name_of(call) for call in calls}) == len(calls) >= 20
    for call in calls:
        assert KERNELS[call.op].unsupported(call) == []
        assert set(dict(key_of(call))) <= set(KEYED_BY[call.op])
    if dtype == torch.bfloat16:
        assert {call.op for call in calls} == set(KERNELS)
        assert {call.op for call in calls[: len(KERNELS)]} == set(KERNELS)
        assert calls[0].op == "attention"


def test_a_dry_run_has_a_call_of_every_op() -> None:
    assert {call.op for call in tiny_calls()} == set(KERNELS)


def _bound(**fields: Any) -> ModernBertModel:
    with torch.no_grad():
        config = ModernBertConfig(vocab_size=64, **fields)
        model = ModernBertModel.without_pooler(config).to(torch.bfloat16).eval().requires_grad_(False)
    model.bind("eager", False)
    for op in model.bound_ops():
        assert op.resolution is not None
        op.bind_as(replace(op.resolution.call, device="cuda", sm=90), backend="auto")
    return model


def test_the_calls_of_a_model_are_those_that_its_kernels_serve_each_once() -> None:
    """ModernBERT by its paper: a global layer in three, rotation in the product, GeGLU, norms folded into products."""
    model = _bound(hidden_size=128, intermediate_size=96, num_attention_heads=2,
                   num_hidden_layers=4)  # fmt: skip
    names = [name_of(call) for call in calls_of(model.bound_ops())]
    assert len(set(names)) == len(names)
    bf16 = "dtype=bfloat16"
    assert set(names) == {
        f"attention/bias=none {bf16} head_dim=64 window=full",
        f"attention/bias=none {bf16} head_dim=64 window=sliding",
        f"embed/{bf16} hidden=128",
        f"linear/{bf16} epilogue=none head_dim=64 hidden=384 inner=128 rope=True",
        f"linear/{bf16} epilogue=none hidden=128 inner=128 residual=True",
        f"linear/{bf16} epilogue=none hidden=128 inner=96 residual=True",
        f"norm/{bf16} hidden=128",
        f"norm_linear/{bf16} epilogue=none head_dim=64 hidden=384 inner=128 norm=layer_norm rope=True",
        f"norm_linear/{bf16} epilogue=gelu gated=True hidden=192 inner=128 norm=layer_norm",
    }


def test_a_model_on_eager_has_nothing_to_tune() -> None:
    model = _bound(hidden_size=64, num_attention_heads=2, num_hidden_layers=1)
    model.bind("eager", False)
    assert calls_of(model.bound_ops()) == []
