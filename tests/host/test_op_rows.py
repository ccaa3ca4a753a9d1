"""The rows of attention that call other libraries: what they refuse, and how they hand over what they are asked for.

Nothing here computes on a GPU. torch's varlen_attn is the real one, down to the one operator that has only a GPU
kernel; flash-attn cannot be installed without a GPU, so modules with its published signatures stand in for it. Below
both, in the place of the kernels, stands a transcription of what their host code does with windows, lengths and the
log-sum-exp before and after the launch, around the eager attention. What this proves is the handing over: options,
shapes, bounds, edges. It proves nothing about the numerics of those kernels.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from padless.engine.contract import Call
from padless.engine.errors import BackendError, InputError
from padless.engine.ops import flash, flash_limits, torch_varlen
from padless.engine.ops.attention import varlen_attention as eager

BATCHES = [
    ([5, 0, 3, 1], None),
    ([1, 1, 0], None),
    ([4, 2], [1, 6]),
    ([3, 5, 2, 0], [0, 2, 2, 4]),
    ([6, 1], [2, 1]),
]
"""Lengths of queries and of keys; empty texts, texts with fewer keys than queries."""

WINDOWS = [(-1, -1), (0, 0), (1, -1), (-1, 1), (-1, 0), (2, 1), (7, 7), (1, 3)]


def starts(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def inputs(lengths: list[int], lengths_k: list[int] | None, heads_k: int = 2, head_dim: int = 8) -> dict[str, Any]:
    """q, k, v in bf16, two heads a key head where `heads_k` is 1; keyword arguments of the contract."""
    torch.manual_seed(len(lengths))
    tokens, tokens_k = sum(lengths), sum(lengths if lengths_k is None else lengths_k)
    q = torch.randn(tokens, 2, head_dim).to(torch.bfloat16)
    k, v = (torch.randn(tokens_k, heads_k, head_dim).to(torch.bfloat16) for _ in range(2))
    call: dict[str, Any] = {
        "q": q, "k": k, "v": v, "cu_seqlens": starts(lengths), "max_seqlen": max(lengths)
    }  # fmt: skip
    if lengths_k is not None:
        call |= {"cu_seqlens_k": starts(lengths_k), "max_seqlen_k": max(lengths_k)}
    return call


def version_2(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    scale: float | None, is_causal: bool, left: int, right: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`mha_varlen_fwd` and `set_params_fprop` of csrc/flash_attn/flash_api.cpp, the launch replaced by eager."""
    texts, longest = len(cu_seqlens_q) - 1, int(cu_seqlens_q.diff().max())
    if max_seqlen_q == 1:
        is_causal = False
    if is_causal:
        right = 0
    if max_seqlen_q == 1 and q.shape[1] > k.shape[1] and left < 0 and right < 0:
        q.reshape(texts, k.shape[1], -1, q.shape[2])
    assert texts > 0
    assert len(q) > 0
    assert q.shape[2] <= 256
    assert q.shape[2] % 8 == 0
    assert max_seqlen_q >= longest
    assert max_seqlen_k >= int(cu_seqlens_k.diff().max())
    for x in (q, k, v):
        assert x.stride(2) == 1
        assert all(step % 8 == 0 for step in (x.stride(0), x.stride(1), x.storage_offset()))
    left = -1 if left >= max_seqlen_k else left
    right = -1 if right >= max_seqlen_k else right
    if left < 0 <= right:
        left = max_seqlen_k
    if right < 0 <= left:
        right = max_seqlen_k
    result = eager(
        q, k, v, cu_seqlens_q, longest, cu_seqlens_k=cu_seqlens_k, window=(left, right), softmax_scale=scale,
        return_lse=True,
    )  # fmt: skip
    assert isinstance(result, tuple)
    return result[0], torch.where(result[1].isneginf(), math.inf, result[1])


def version_3(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    scale: float | None, is_causal: bool, left: int, right: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`mha_fwd` and `set_params_fprop` of hopper/flash_api.cpp, the launch replaced by eager."""
    left = -1 if left >= max_seqlen_k - 1 else left
    right = -1 if right >= max_seqlen_q - 1 else right
    if is_causal and not (max_seqlen_q == 1 and left == right == -1):
        right = 0
    result = eager(
        q, k, v, cu_seqlens_q, max_seqlen_q, cu_seqlens_k=cu_seqlens_k, softmax_scale=scale, return_lse=True,
        window=(max_seqlen_k - 1 if left < 0 else left, max_seqlen_q - 1 if right < 0 else right),
    )  # fmt: skip
    assert isinstance(result, tuple)
    return result


def published_2(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False,
    block_table=None,
):  # fmt: skip
    """flash_attn/flash_attn_interface.py, 2.7.0 to 2.8.4: three results where probabilities are asked for."""
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    out, lse = version_2(q, k, v, *lengths, softmax_scale, causal, *window_size)
    return (out, lse, None) if return_attn_probs else out


def published_3(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
    softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1),
    attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0,
    return_attn_probs=False,
):  # fmt: skip
    """hopper/flash_attn_interface.py."""
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    out, lse = version_3(q, k, v, *lengths, softmax_scale, causal, *window_size)
    return (out, lse) if return_attn_probs else out


def published_4(
    q, k, v, qv=None, cu_seqlens_q: Any = None, cu_seqlens_k: Any = None, max_seqlen_q: Any = None,
    max_seqlen_k: Any = None, min_seqlen_k=None,
    seqused_q=None, seqused_k=None, gather_kv_indices=None, page_table=None, softmax_scale=None, causal=False,
    window_size=(None, None), learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
    score_mod=None, score_mod_bwd=None, mask_mod=None, block_sparse_tensors=None, aux_tensors=None, aux_scalars=None,
    return_lse=False, scheduler_metadata=None, seqlen_k_per_split=None, disable_scheduler_metadata=False,
):  # fmt: skip
    """flash_attn/cute/interface.py, with `_resolve_causal_local_window`; always a pair."""
    left, right = window_size
    if causal:
        right = 0
    if left is not None and right is not None and left + right < 0:
        left = right = None
    result = eager(
        q, k, v, cu_seqlens_q, max_seqlen_q, cu_seqlens_k=cu_seqlens_k, softmax_scale=softmax_scale, return_lse=True,
        window=(-1 if left is None else left, -1 if right is None else right),
    )  # fmt: skip
    return result[0], result[1] if return_lse else None


PUBLISHED = {"flash_attn": published_2, "flash_attn_interface": published_3, "flash_attn.cute": published_4}


def install(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    """Make modules of these names importable; a dot in a name is written as two underscores. None: not installed."""
    for name, function in functions.items():
        module = None
        if function is not None:
            module = ModuleType(name)
            module.__dict__["flash_attn_varlen_func"] = function
        monkeypatch.setitem(sys.modules, name.replace("__", "."), module)


def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, flash_attn=None, flash_attn_interface=None, flash_attn__cute=None)


@pytest.fixture(params=[2, 3, 4])
def generation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """`flash` as it is where one generation is installed."""
    chosen = next(generation for generation in flash.GENERATIONS if generation.number == request.param)
    monkeypatch.setattr(flash, "CHOICE", flash.Choice(chosen, PUBLISHED[chosen.module]))
    return request.param


def assert_as_eager(got: Any, call: dict[str, Any], **options: Any) -> None:
    """Equal bits: what stands below the row is the eager function."""
    expected = eager(**call, **options)
    for one, other in zip(
        got if isinstance(got, tuple) else (got,), expected if isinstance(expected, tuple) else (expected,), strict=True
    ):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["any", "causal"])
def test_flash_attn_is_handed_what_was_asked(
    generation: int, batch: tuple[list[int], list[int] | None], window: tuple[int, int], causal: bool
) -> None:
    for heads_k in (1, 2):
        call = inputs(*batch, heads_k=heads_k)
        options: dict[str, Any] = {"window": window, "causal": causal}
        assert_as_eager(flash.varlen_attention(**call, **options), call, **options)
        options |= {"return_lse": True, "softmax_scale": 0.3}
        assert_as_eager(flash.varlen_attention(**call, **options), call, **options)


@pytest.mark.parametrize(
    ("lengths", "lengths_k"), [([0, 0], None), ([], None), ([2, 3], [0, 0]), ([0, 0], [2, 1])], ids=str
)
def test_nothing_to_attend_to_is_not_launched(
    lengths: list[int], lengths_k: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launched(*arguments: Any, **options: Any) -> None:
        raise AssertionError("launched")

    monkeypatch.setattr(flash, "CHOICE", flash.Choice(flash.GENERATIONS[-1], launched))
    monkeypatch.setattr(torch_varlen, "MODULE", SimpleNamespace(varlen_attn=launched, AuxRequest=launched))
    call = inputs([*lengths, 0], None if lengths_k is None else [*lengths_k, 0])
    for row in (flash.varlen_attention, torch_varlen.varlen_attention):
        assert_as_eager(row(**call, return_lse=True), call, return_lse=True)
        assert_as_eager(row(**call), call)


@pytest.mark.parametrize("row", [flash, torch_varlen], ids=["flash_attn", "torch_varlen"])
def test_the_whole_signature_is_taken_but_no_bias(
    row: ModuleType, generation: int, torch_kernel: list[dict[str, Any]]
) -> None:
    call = inputs([3, 0, 4], None)
    theirs = inspect.signature(eager).parameters
    assert [(p.name, p.default, p.kind) for p in inspect.signature(row.varlen_attention).parameters.values()] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]
    defaults = {name: p.default for name, p in theirs.items() if p.default is not inspect.Parameter.empty}
    assert_as_eager(row.varlen_attention(**{**defaults, **call}), call)
    with pytest.raises(InputError, match=r"row takes no position_bias, got one of \[32, 2\]$"):
        row.varlen_attention(**call, position_bias=torch.zeros(32, 2))


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("batch", [([1, 2], [5, 6]), ([3, 1, 2], [0, 9, 1])], ids=str)
def test_the_longest_keys_need_not_be_known(
    generation: int, torch_kernel: list[dict[str, Any]], batch: tuple[list[int], list[int]], window: tuple[int, int]
) -> None:
    call = inputs(*batch)
    del call["max_seqlen_k"]
    for row in (flash, torch_varlen):
        assert_as_eager(row.varlen_attention(**call, window=window), call, window=window)
    assert flash_limits.longest_keys(call["k"], 2, call["cu_seqlens_k"], None) == len(call["k"])
    assert flash_limits.longest_keys(call["k"], 2, None, 7) == 2


def test_rows_that_do_not_start_at_16_bytes_are_copied(generation: int) -> None:
    call = inputs([3, 4], None)
    fused = torch.randn(7, 3 * 2 * 8 + 1).to(torch.bfloat16)
    odd = [fused[:, 1 + 16 * i : 17 + 16 * i].unflatten(1, (2, 8)) for i in range(3)]
    turned = torch.randn(7, 8, 2).to(torch.bfloat16).transpose(1, 2)
    call |= {"q": odd[0], "k": odd[1], "v": turned}
    assert_as_eager(flash.varlen_attention(**call), call)
    fine = torch.randn(7, 48).to(torch.bfloat16)[:, 16:32].unflatten(1, (2, 8))
    assert flash_limits.aligned(fine) is fine
    shifted = torch.randn(7 * 16 + 1).to(torch.bfloat16)[1:].view(7, 2, 8)
    copy = flash_limits.aligned(shifted)
    assert torch.equal(copy, shifted)
    assert copy.storage_offset() == 0


def test_the_newest_that_suits_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, flash_attn=published_2, flash_attn_interface=published_3, flash_attn__cute=published_4)
    chosen = {sm: flash.choose(sm).generation for sm in (75, 80, 89, 90, 100, 103, 120)}
    numbers = {sm: None if generation is None else generation.number for sm, generation in chosen.items()}
    assert numbers == {75: None, 80: 2, 89: 2, 90: 4, 100: 4, 103: 4, 120: 2}
    monkeypatch.setitem(sys.modules, "flash_attn.cute", None)
    assert flash.choose(90).attend is published_3
    assert flash.choose(100).attend is published_2


def test_why_none_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_installed(monkeypatch)
    assert flash.choose(None).reasons == ("needs a CUDA device, found none",)
    assert flash.choose(80).reasons == (
        "flash-attn 4 needs sm_90 to sm_119, got sm_80",
        "flash-attn 3 needs sm_90 to sm_99, got sm_80",
        "flash-attn 2 needs package flash_attn, not installed",
    )

    def before_the_lse_option(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal):
        raise AssertionError("never called")

    install(monkeypatch, flash_attn=before_the_lse_option)
    assert flash.choose(80).reasons[-1] == (
        "flash-attn 2 needs a release whose flash_attn_varlen_func takes return_attn_probs, window_size"
    )

    class Broken(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise OSError("undefined symbol: c10\nsecond line")

    monkeypatch.setitem(sys.modules, "flash_attn", Broken("flash_attn"))
    assert flash.choose(80).reasons[-1] == "flash-attn 2 cannot be imported: undefined symbol: c10"


def asked(**facts: Any) -> Call:
    known: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16, "sm": 90, "head_dim": 64, "bias": "none"}
    return Call("attention", **{**known, **facts})


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"dtype": torch.float32}, "needs dtype float16 or bfloat16, got float32"),
        ({"bias": "t5"}, "needs a call without position bias, got bias t5"),
        ({"head_dim": 264}, "needs head_dim up to 256, a multiple of 8, got 264"),
        ({"head_dim": 36}, "needs head_dim up to 256, a multiple of 8, got 36"),
    ],
)
def test_both_rows_refuse(generation: int, facts: dict[str, Any], reason: str) -> None:
    facts = {"sm": flash.CHOICE.generation.sm[0] if flash.CHOICE.generation else None, **facts}
    assert flash.unsupported(asked(**facts)) == [reason]
    assert torch_varlen.unsupported(asked(**facts)) == [reason]


def test_what_each_generation_serves(generation: int) -> None:
    assert flash.unsupported(asked(sm=90, lse=True, cross=True, window="causal", dtype=torch.float16)) == []
    assert flash.unsupported(asked(sm=90, head_dim=256)) == []
    assert (flash.unsupported(asked(sm=80)) == []) == (generation == 2)
    assert (
        flash.unsupported(asked(sm=100, head_dim=192))
        == {
            2: [],
            3: ["flash-attn 3 needs sm_90 to sm_99, got sm_100"],
            4: ["flash-attn 4 on sm_100 needs head_dim up to 128, got 192"],
        }[generation]
    )


def test_without_a_gpu_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "CHOICE", flash.choose(None))
    assert flash.unsupported(asked()) == ["needs a CUDA device, found none"]
    with pytest.raises(BackendError, match="found none"):
        flash.varlen_attention(**inputs([2], None))
    assert torch_varlen.unsupported(asked(device="cpu", sm=None)) == ["needs device cuda, got cpu"]


def test_a_torch_without_it_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
        raise AssertionError("never called")

    monkeypatch.setattr(torch_varlen, "TAKEN", torch_varlen._taken(SimpleNamespace(varlen_attn=of_2_10)))
    expected = f"needs a torch whose varlen_attn takes scale, window_size (2.11), got {torch.__version__}"
    assert torch_varlen.unsupported(asked()) == [expected]
    monkeypatch.setattr(torch_varlen, "MODULE", None)
    monkeypatch.setattr(torch_varlen, "TAKEN", torch_varlen._taken(None))
    assert len(torch_varlen.unsupported(asked())) == 1
    with pytest.raises(BackendError, match=r"needs torch 2\.11"):
        torch_varlen.varlen_attention(**inputs([2], None))


@pytest.fixture
def torch_kernel() -> Iterator[list[dict[str, Any]]]:
    """A CPU kernel for `aten::_flash_attention_forward`, which torch's varlen_attn ends in; yields what it was handed.

    torch hands the operator to `mha_varlen_fwd` of its own copy of version 2, with -1 for a window that is None.
    """
    handed: list[dict[str, Any]] = []

    def forward(
        query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, return_debug_mask, *, scale=None,
        window_size_left=None, window_size_right=None, **others,
    ):  # fmt: skip
        assert dropout_p == 0
        assert not return_debug_mask
        handed.append({"causal": is_causal, **others})
        left, right = (-1 if edge is None else edge for edge in (window_size_left, window_size_right))
        out, lse = version_2(
            query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, scale, is_causal, left, right
        )  # fmt: skip
        return out, lse, torch.zeros(2, dtype=torch.uint64), torch.zeros(()), torch.zeros(0)

    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", forward, "CPU")
    yield handed
    library._destroy()


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["any", "causal"])
def test_torch_is_handed_what_was_asked(
    torch_kernel: list[dict[str, Any]], batch: tuple[list[int], list[int] | None], window: tuple[int, int], causal: bool
) -> None:
    for heads_k in (1, 2):
        call = inputs(*batch, heads_k=heads_k)
        options: dict[str, Any] = {"window": window, "causal": causal}
        assert_as_eager(torch_varlen.varlen_attention(**call, **options), call, **options)
        options |= {"return_lse": True, "softmax_scale": 0.3}
        assert_as_eager(torch_varlen.varlen_attention(**call, **options), call, **options)
    assert len(torch_kernel) == 4
    if "num_splits" in torch_varlen.TAKEN:
        assert {handed["num_splits"] for handed in torch_kernel} == {1}


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=4),
    window=st.tuples(st.integers(-1, 8), st.integers(-1, 8)),
    causal=st.booleans(),
    number=st.sampled_from([2, 3, 4]),
)
def test_any_lengths_and_window_survive_the_handing_over(
    lengths: list[tuple[int, int]], window: tuple[int, int], causal: bool, number: int
) -> None:
    call = inputs([q for q, _ in lengths], [k for _, k in lengths], heads_k=1)
    options: dict[str, Any] = {"window": window, "causal": causal, "return_lse": True}
    chosen = next(generation for generation in flash.GENERATIONS if generation.number == number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flash, "CHOICE", flash.Choice(chosen, PUBLISHED[chosen.module]))
        assert_as_eager(flash.varlen_attention(**call, **options), call, **options)


def test_the_shapes_that_torch_itself_promises() -> None:
    """Through the fake implementation that torch ships for its operator: nothing of ours but the handing over."""
    with FakeTensorMode():
        q, k = torch.empty(7, 4, 16, dtype=torch.bfloat16), torch.empty(9, 2, 16, dtype=torch.bfloat16)
        edges = torch.empty(4, dtype=torch.int32)
        out = torch_varlen.varlen_attention(
            q, k, k, edges, 5, cu_seqlens_k=edges, max_seqlen_k=4, window=(2, 2), return_lse=True
        )
        assert isinstance(out, tuple)
        assert (out[0].shape, out[0].dtype) == (q.shape, torch.bfloat16)
        assert (out[1].shape, out[1].dtype) == ((4, 7), torch.float32)


def test_installed_signatures_take_what_is_passed() -> None:
    """Against torch's own function, and against flash-attn where one is installed."""
    parameters = inspect.signature(torch_varlen.MODULE.varlen_attn).parameters
    assert list(parameters)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert set(torch_varlen.NEEDED) <= set(parameters)
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in torch_varlen.NEEDED)
    if flash.CHOICE.attend is not None and flash.CHOICE.generation is not None:
        assert flash.CHOICE.generation.parameters <= set(inspect.signature(flash.CHOICE.attend).parameters)
