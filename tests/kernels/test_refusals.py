"""What launchers refuse before they start anything, each in one line; what looks like a mistake and is none; limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from lengths import cumulated
from torch import Tensor

from padless.engine.contract import Call
from padless.engine.errors import InputError
from padless.engine.folders.sentence_transformer import POOLING_MODES
from padless.engine.ops import attention as eager_attention
from padless.engine.ops import decode as eager_decode
from padless.engine.ops import embed as eager_embed
from padless.engine.ops import pool as eager_pool
from padless.engine.ops import rope as eager_rope
from padless.engine.ops import trigram as eager_trigram
from padless.kernels import attention, decode, embed, pool, relative_bias, rope, trigram
from padless.kernels.launch import Config
from padless.kernels.registration import _read_config, _write_config

LENGTHS, HEADS, HEADS_K, HEAD_DIM, HIDDEN, VOCABULARY = (5, 2, 9), 4, 2, 16, 24, 30
TOKENS, TEXTS = sum(LENGTHS), len(LENGTHS)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def attention_call() -> dict[str, Any]:
    q, k, v = normal(TOKENS, HEADS + 2 * HEADS_K, HEAD_DIM).split([HEADS, HEADS_K, HEADS_K], dim=1)
    return {"q": q, "k": k, "v": v, "cu_seqlens": cumulated(LENGTHS), "max_seqlen": max(LENGTHS)}


def decode_call() -> dict[str, Any]:
    call = attention_call()
    edges = call.pop("cu_seqlens")
    del call["max_seqlen"]
    return {
        **call,
        "q": call["q"][:TEXTS],
        "starts": edges[:-1],
        "lengths": edges.diff(),
        "max_length": max(LENGTHS),
    }


def pool_call() -> dict[str, Any]:
    return {"hidden": normal(TOKENS, HIDDEN), "cu_seqlens": cumulated(LENGTHS), "mode": "mean"}


def ids() -> Tensor:
    return torch.arange(TOKENS) * 7 % VOCABULARY


def embed_call() -> dict[str, Any]:
    return {
        "input_ids": ids(),
        "position_ids": torch.arange(TOKENS),
        "token_type_ids": torch.arange(TOKENS) % 2,
        "word": normal(VOCABULARY, HIDDEN),
        "position": normal(TOKENS, HIDDEN),
        "token_type": normal(2, HIDDEN),
        "norm_weight": normal(HIDDEN),
        "norm_bias": normal(HIDDEN),
        "eps": 1e-5,
    }


def trigram_call() -> dict[str, Any]:
    return {"input_ids": ids(), "cu_seqlens": cumulated(LENGTHS), "word": normal(VOCABULARY, HIDDEN)}


def rope_call() -> dict[str, Any]:
    call = attention_call()
    angles = normal(TOKENS, HEAD_DIM // 2)
    return {"q": call["q"], "k": call["k"], "rows": torch.arange(TOKENS), "cos": angles.cos(), "sin": angles.sin()}


OPS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[[], dict[str, Any]]]] = {
    "attention": (attention.varlen_attention, eager_attention.varlen_attention, attention_call),
    "decode_attention": (decode.decode_attention, eager_decode.decode_attention, decode_call),
    "pool": (pool.pool, eager_pool.pool, pool_call),
    "embed": (embed.embed, eager_embed.embed, embed_call),
    "trigram": (trigram.trigram, eager_trigram.trigram, trigram_call),
    "rope": (rope.rope, eager_rope.rope, rope_call),
}

MODULES = (attention, decode, pool, embed, trigram, rope)

Change = Callable[[dict[str, Any]], Mapping[str, Any]]


def to(name: str, *conversion: Any) -> Change:
    return lambda call: {name: call[name].to(*conversion)}


def with_gradient(name: str) -> Change:
    return lambda call: {name: call[name].clone().requires_grad_()}


def instead(**arguments: Any) -> Change:
    return lambda call: arguments


def all_to(dtype: torch.dtype) -> Change:
    return lambda call: {
        name: x.to(dtype) for name, x in call.items() if isinstance(x, Tensor) and x.is_floating_point()
    }


def heads_like(heads: int, heads_k: int, head_dim: int, heads_v: int | None = None) -> Change:
    def change(call: dict[str, Any]) -> dict[str, Tensor]:
        rows, rows_k = len(call["q"]), len(call["k"])
        return {
            "q": torch.zeros(rows, heads, head_dim),
            "k": torch.zeros(rows_k, heads_k, head_dim),
            "v": torch.zeros(rows_k, heads_k if heads_v is None else heads_v, head_dim),
        }

    return change


BIAS = {
    "bias of fewer heads": (instead(position_bias=torch.zeros(32, HEADS // 2)), "position_bias.*floating .*, 4.*32, 2"),
    "bias of one head": (instead(position_bias=torch.zeros(32, 1)), r"position_bias.*, 4\].*32, 1"),
    "bias of more heads": (instead(position_bias=torch.zeros(32, 2 * HEADS)), r"position_bias.*, 4\].*32, 8"),
    "bias transposed": (instead(position_bias=torch.zeros(HEADS, 32)), r"position_bias.*, 4\].*4, 32"),
    "bias 1-D": (instead(position_bias=torch.zeros(HEADS)), r"position_bias.*\[4\]"),
    "bias int": (instead(position_bias=torch.zeros(32, HEADS).int()), "position_bias.*int32"),
    "bias elsewhere": (instead(position_bias=torch.zeros(32, HEADS, device="meta")), "position_bias.*on cpu.*on meta"),
    "bias with gradient": (instead(position_bias=torch.zeros(32, HEADS, requires_grad=True)), "gradient"),
}

SHAPES = {
    "head_dim 300": (heads_like(4, 2, 300), "head_dim 1 to 256.*300"),
    "head_dim 0": (heads_like(4, 2, 0), "head_dim 1 to 256.*0"),
    "heads_k 0": (heads_like(4, 0, 16), r"0, 16\]"),
    "heads not a multiple": (heads_like(4, 3, 16), "divisor"),
    "v of other heads": (heads_like(4, 4, 16, 2), "v .*2, 16"),
    "q 2-D": (lambda call: {"q": call["q"][:, 0]}, "q .*16"),
    "fp64": (all_to(torch.float64), "float32, float16, bfloat16.*q float64"),
    "int32": (all_to(torch.int32), "float32, float16, bfloat16.*q int32"),
    "k of another dtype": (to("k", torch.bfloat16), "k bfloat16"),
    "v elsewhere": (to("v", "meta"), "v: expected device cpu.*meta"),
    "gradient of q": (with_gradient("q"), "gradient"),
    "gradient of v": (with_gradient("v"), "gradient"),
}


def edges(count: int = TEXTS + 1) -> dict[str, tuple[Change, str]]:
    return {
        "int64 edges": (to("cu_seqlens", torch.int64), "cu_seqlens: expected int32.*int64"),
        "float edges": (to("cu_seqlens", torch.float32), "cu_seqlens: expected int32.*float32"),
        "edges 2-D": (lambda call: {"cu_seqlens": call["cu_seqlens"][None]}, rf"cu_seqlens.*\[1, {count}\]"),
        "no edges": (lambda call: {"cu_seqlens": call["cu_seqlens"][:0]}, r"cu_seqlens.*\[0\]"),
        "edges elsewhere": (to("cu_seqlens", "meta"), "cu_seqlens.*on cpu.*on meta"),
    }


def integers(name: str, count: int) -> dict[str, tuple[Change, str]]:
    return {
        f"{name} too few": (lambda call: {name: call[name][:-1]}, rf"{name}: .*\[{count}\].*\[{count - 1}\]"),
        f"{name} 2-D": (lambda call: {name: call[name][None]}, rf"{name}: .*\[1, {count}\]"),
        f"{name} float": (to(name, torch.float32), f"{name}: expected int32 or int64.*float32"),
        f"{name} elsewhere": (to(name, "meta"), f"{name}: .*on cpu.*on meta"),
    }


def counts(name: str) -> dict[str, tuple[Change, str]]:
    found = {"-1": -1, "2.0": 2.0, "None": None, "'3'": "3", "tensor": torch.tensor(9)}
    return {f"{name} {text}": (instead(**{name: value}), f"{name}: expected an int.*") for text, value in found.items()}


REFUSED: dict[str, dict[str, tuple[Change, str]]] = {
    "attention": {
        **BIAS,
        **SHAPES,
        **edges(),
        **counts("max_seqlen"),
        "fewer keys": (lambda call: {"k": call["k"][:-1], "v": call["v"][:-1]}, "keys"),
        "int64 edges of keys": (lambda call: {"cu_seqlens_k": call["cu_seqlens"].long()}, "cu_seqlens_k.*int64"),
        "keys of fewer texts": (lambda call: {"cu_seqlens_k": call["cu_seqlens"][:-1]}, r"cu_seqlens_k.*\[4\].*\[3\]"),
    },
    "decode_attention": {
        **BIAS,
        **SHAPES,
        **integers("starts", TEXTS),
        **integers("lengths", TEXTS),
        **counts("max_length"),
        "scale a tensor": (instead(softmax_scale=torch.tensor(0.5)), "softmax_scale"),
        "scale a word": (instead(softmax_scale="large"), "softmax_scale.*'large'"),
        "too few positions": (instead(query_positions=torch.arange(TEXTS - 1)), r"query_positions.*\[3\].*\[2\]"),
        "positions float": (instead(query_positions=torch.zeros(TEXTS)), "query_positions.*float32"),
    },
    "pool": {
        **edges(),
        **{
            f"mode {mode!r}": (instead(mode=mode), f"mode: expected one of cls, .*got {mode!r}")
            for mode in ("last", "avg", "MAX", "", None)
        },
        "skip -1": (instead(skip=-1), "skip.*-1"),
        "skip 0.5": (instead(skip=0.5), "skip.*0.5"),
        "fp64": (all_to(torch.float64), "expected float32, float16, bfloat16, got hidden float64"),
        "hidden 1-D": (lambda call: {"hidden": call["hidden"][0]}, "hidden.*any, any.*24"),
        "gradient": (with_gradient("hidden"), "gradient"),
    },
    "embed": {
        **integers("position_ids", TOKENS),
        **integers("token_type_ids", TOKENS),
        "ids 2-D": (lambda call: {"input_ids": call["input_ids"][None]}, r"input_ids.*\[1, 16\]"),
        "ids float": (to("input_ids", torch.float32), "input_ids.*float32"),
        "ids elsewhere": (to("input_ids", "meta"), "input_ids.*on meta"),
        "fp64": (all_to(torch.float64), "float64"),
        "position of another dtype": (to("position", torch.bfloat16), "word float32, position bfloat16"),
        "norm in fp64": (to("norm_weight", torch.float64), "norm_weight float64"),
        "position elsewhere": (to("position", "meta"), "position: expected device cpu, that of word, got meta"),
        "position narrower": (lambda call: {"position": call["position"][:, :-1]}, r"position.*any, 24.*23"),
        "norm 2-D": (lambda call: {"norm_bias": call["norm_bias"][None]}, r"norm_bias.*\[24\].*\[1, 24\]"),
        "norm narrower": (lambda call: {"norm_weight": call["norm_weight"][1:]}, r"norm_weight.*\[24\].*\[23\]"),
        "word 1-D": (lambda call: {"word": call["word"][0]}, "word.*any, any"),
        "gradient of word": (with_gradient("word"), "gradient"),
        "gradient of norm": (with_gradient("norm_weight"), "gradient"),
    },
    "trigram": {
        **edges(),
        "ids 2-D": (lambda call: {"input_ids": call["input_ids"][None]}, r"input_ids.*\[1, 16\]"),
        "ids float": (to("input_ids", torch.float32), "input_ids.*float32"),
        "fp64": (all_to(torch.float64), "got word float64"),
        "word 3-D": (lambda call: {"word": call["word"][None]}, "word.*any, any.*1, 30, 24"),
        "word elsewhere": (to("word", "meta"), "input_ids.*on meta"),
        "tokens of no text": (lambda call: {"cu_seqlens": call["cu_seqlens"][:1]}, "a text that holds 16 tokens"),
        "gradient": (with_gradient("word"), "gradient"),
    },
    "rope": {
        **integers("rows", TOKENS),
        "fp64": (all_to(torch.float64), "q float64"),
        "k of another dtype": (to("k", torch.float16), "k float16"),
        "tables in bf16": (lambda call: {name: call[name].bfloat16() for name in ("cos", "sin")}, "cos and sin"),
        "tables too wide": (lambda call: {"cos": call["cos"].repeat(1, 2)}, r"cos.*\[any, 8\].*\[16, 16\]"),
        "sin of fewer rows": (lambda call: {"sin": call["sin"][1:]}, r"sin.*\[16, 8\].*\[15, 8\]"),
        "odd head_dim": (lambda call: {name: call[name][..., :-1] for name in ("q", "k")}, "even head_dim.*15"),
        "head_dim 300": (lambda call: {name: torch.zeros(TOKENS, 2, 300) for name in ("q", "k")}, "head_dim.*300"),
        "fewer keys": (lambda call: {"k": call["k"][1:]}, r"k.*\[16, any, 16\].*\[15, 2, 16\]"),
        "q 2-D": (lambda call: {"q": call["q"][:, 0]}, "q.*any, any, any"),
        "sin elsewhere": (to("sin", "meta"), "sin: expected device cpu, that of q, got meta"),
        "gradient": (with_gradient("q"), "gradient"),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("op", "change", "message"),
    [pytest.param(op, *refused, id=f"{op}-{name}") for op, cases in REFUSED.items() for name, refused in cases.items()],
)
def test_what_cannot_be_served_is_refused_in_one_line(op: str, change: Change, message: str) -> None:
    launcher, _, arguments = OPS[op]
    call = arguments()
    with pytest.raises(InputError, match=f"^{op}: .*{message}") as refusal:
        launcher(**{**call, **change(call)})
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 200


def spread(x: Tensor) -> Tensor:
    """The same values in every second place of a buffer of others."""
    return torch.stack([x, x + 1], dim=-1)[..., 0]


SERVED: dict[str, dict[str, Change]] = {
    "attention": {
        "edges spread": lambda call: {"cu_seqlens": spread(call["cu_seqlens"])},
        "edges of keys spread": lambda call: {"cu_seqlens_k": spread(call["cu_seqlens"]), "max_seqlen_k": 9},
        "numpy's integer": instead(max_seqlen=np.int64(9)),
        "an integer scale": instead(softmax_scale=1),
        "bias fp64": instead(position_bias=normal(32, HEADS).double()),
        "bias spread": instead(position_bias=spread(normal(32, HEADS))),
    },
    "decode_attention": {
        "int64": lambda call: {name: call[name].long() for name in ("starts", "lengths")},
        "spread": lambda call: {name: spread(call[name]) for name in ("starts", "lengths")},
        "positions int64": instead(query_positions=torch.arange(TEXTS), position_bias=normal(32, HEADS)),
        "numpy's integer": instead(max_length=np.int32(9)),
        "numpy's scale": instead(softmax_scale=np.float32(0.25)),
    },
    "pool": {
        "edges spread": lambda call: {"cu_seqlens": spread(call["cu_seqlens"])},
        "numpy's integer": instead(skip=np.int64(1)),
        **{mode: instead(mode=mode) for mode in eager_pool.MODES},
    },
    "embed": {
        "int32": lambda call: {name: call[name].int() for name in ("input_ids", "position_ids", "token_type_ids")},
        "spread": lambda call: {name: spread(call[name]) for name in ("input_ids", "position_ids", "token_type_ids")},
        "no types": instead(token_type_ids=None),
        "no positions": instead(position=None, position_ids=torch.zeros(1)),
    },
    "trigram": {
        "edges spread": lambda call: {"cu_seqlens": spread(call["cu_seqlens"])},
        "int32": lambda call: {"input_ids": call["input_ids"].int()},
    },
    "rope": {
        "int32": lambda call: {"rows": call["rows"].int()},
        "spread": lambda call: {"rows": spread(call["rows"])},
    },
}


@pytest.mark.parametrize(
    ("op", "change"),
    [pytest.param(op, change, id=f"{op}-{name}") for op, cases in SERVED.items() for name, change in cases.items()],
)
def test_what_only_looks_like_a_mistake_is_served(op: str, change: Change) -> None:
    launcher, eager, arguments = OPS[op]
    call = arguments()
    call = {**call, **change(call)}
    got, expected = launcher(**call), eager(**call)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_parameters_are_served_where_no_gradient_is_recorded(op: str) -> None:
    launcher, eager, arguments = OPS[op]
    call = arguments()
    wanted = {
        name: x.clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in call.items()
    }
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            torch.testing.assert_close(launcher(**wanted), eager(**call), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_a_gradient_is_refused_while_compiling_and_by_the_operator(op: str) -> None:
    launcher, _, arguments = OPS[op]
    call = arguments()
    name = next(name for name, x in call.items() if isinstance(x, Tensor) and x.is_floating_point())
    call[name] = call[name].clone().requires_grad_()
    torch._dynamo.reset()
    with pytest.raises(InputError, match="gradient"):
        torch.compile(launcher, backend="aot_eager")(**call)


def test_an_operator_called_by_its_name_refuses_a_gradient() -> None:
    call = trigram_call()
    with pytest.raises(InputError, match="gradient"):
        torch.ops.padless.trigram(call["input_ids"], call["cu_seqlens"], call["word"].requires_grad_(), "", [])


@pytest.mark.parametrize("mode", ["last", "avg", "MAX", "", None])
def test_eager_pool_refuses_an_unknown_mode(mode: Any) -> None:
    with pytest.raises(InputError, match=f"^pool: mode: expected one of cls, .*, got {mode!r}$"):
        eager_pool.pool(**{**pool_call(), "mode": mode})


@pytest.mark.parametrize("mode", eager_pool.MODES)
def test_eager_pool_refuses_to_skip_backwards(mode: str) -> None:
    with pytest.raises(InputError, match=r"^pool: skip: .*, got -1$"):
        eager_pool.pool(**{**pool_call(), "mode": mode, "skip": -1})


def test_pool_knows_the_same_modes_everywhere() -> None:
    assert set(pool.MODES) == set(eager_pool.MODES) == set(POOLING_MODES)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_a_configuration_comes_back_from_an_operator_as_it_was(module: Any) -> None:
    shipped = [
        module.default_config(Call("op", "cuda", dtype, sm=sm, head_dim=64, hidden=768, window="full", bias=bias))
        for dtype in (torch.float32, torch.bfloat16)
        for sm in (80, 90)
        for bias in ("none", "t5")
    ]
    for config in (*module.CANDIDATES, *shipped, Config.of(max_registers=1), Config.of(BLOCK_M=16, max_registers=None)):
        names, numbers = _write_config(config)
        assert _read_config(names, numbers) == config
    assert _read_config(*_write_config(None)) is None


def test_a_table_of_buckets_made_in_inference_mode_serves_training_too() -> None:
    setting = (32, 77, True)
    with torch.inference_mode():
        relative_bias.bias_by_distance(torch.zeros(32, HEADS), *setting[1:])
    position_bias = normal(32, HEADS).requires_grad_()
    by_distance, reach = relative_bias.bias_by_distance(position_bias, *setting[1:])
    by_distance.sum().backward()
    assert position_bias.grad is not None
    assert position_bias.grad.sum() == HEADS * (2 * reach + 1)


def test_many_settings_of_a_bias_are_all_kept() -> None:
    tables = [relative_bias._buckets(32, distance, True, torch.device("cpu")) for distance in range(40, 140)]
    again = [relative_bias._buckets(32, distance, True, torch.device("cpu")) for distance in range(40, 140)]
    assert all(one is other for one, other in zip(tables, again, strict=True))
