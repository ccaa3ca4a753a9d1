"""The masked language model's head: the eager op against transformers' own modules, `torch.topk` and softmax."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, MobileBertConfig
from transformers.models.bert.modeling_bert import BertLMPredictionHead
from transformers.models.mobilebert.modeling_mobilebert import MobileBertLMPredictionHead

from padless.engine.ops.mlm_head import Predictions, mlm_head, top_logits

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
NAMES = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "tanh": "tanh", "silu": "silu"}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(head: Any, dtype: torch.dtype) -> Any:
    """The head with all its parameters at random."""
    head = head.to(dtype).eval()
    with torch.no_grad():
        for index, (name, parameter) in enumerate(head.named_parameters()):
            values = normal(*parameter.shape, seed=index)
            scale = name.endswith("LayerNorm.weight")
            parameter.copy_(1 + 0.3 * values if scale else values * (0.2 if values.ndim == 2 else 0.5))
    return head


def weights(head: Any) -> list[Tensor | None]:
    transform = head.transform
    norm = transform.LayerNorm
    parts = (
        transform.dense.weight,
        transform.dense.bias,
        norm.weight,
        norm.bias,
        head.decoder.weight,
        head.decoder.bias,
    )
    return [*parts, head.dense.weight if hasattr(head, "dense") else None]


def bert(dtype: torch.dtype, hidden: int, vocab: int, activation: str = "gelu", eps: float = 1e-12) -> Any:
    config = BertConfig(
        hidden_size=hidden, vocab_size=vocab, num_attention_heads=1, hidden_act=NAMES[activation], layer_norm_eps=eps
    )
    return drawn(BertLMPredictionHead(config), dtype)


def mobilebert(dtype: torch.dtype, hidden: int, width: int, vocab: int) -> Any:
    config = MobileBertConfig(hidden_size=hidden, embedding_size=width, vocab_size=vocab, hidden_act="relu")
    return drawn(MobileBertLMPredictionHead(config), dtype)


def close(got: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


def highest(hidden: Tensor, *parts: Tensor | None, top_k: int, **options: Any) -> Predictions:
    found = mlm_head(hidden, *parts, **options, top_k=top_k)  # pyright: ignore[reportArgumentType]
    assert isinstance(found, tuple)
    return found


def logits(hidden: Tensor, *parts: Tensor | None, **options: Any) -> Tensor:
    found = mlm_head(hidden, *parts, **options)  # pyright: ignore[reportArgumentType]
    assert isinstance(found, Tensor)
    return found


@torch.no_grad()
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("eps", [1e-12, 0.1])
def test_it_is_the_head_of_bert(eps: float, activation: str, dtype: torch.dtype) -> None:
    head, hidden = bert(dtype, 34, 101, activation, eps), normal(7, 34).to(dtype)
    close(logits(hidden, *weights(head), epilogue=activation, eps=eps), head(hidden))


@torch.no_grad()
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("hidden", "width", "vocab"), [(512, 128, 1000), (40, 13, 97), (40, 39, 5)])
def test_it_is_the_head_of_mobilebert(hidden: int, width: int, vocab: int, dtype: torch.dtype) -> None:
    head, rows = mobilebert(dtype, hidden, width, vocab), normal(5, hidden).to(dtype)
    close(logits(rows, *weights(head), epilogue="relu"), head(rows))


@torch.no_grad()
def test_nothing_but_the_weights_must_be_there() -> None:
    head, hidden = bert(torch.float64, 20, 33), normal(3, 20)
    dense, _, scale, _, decoder, _, _ = weights(head)
    assert dense is not None
    assert scale is not None
    assert decoder is not None
    rows = torch.nn.functional.gelu(hidden @ dense.T)
    rows = (rows - rows.mean(1, keepdim=True)) / (rows.var(1, keepdim=True, correction=0) + 1e-12).sqrt() * scale
    close(logits(hidden, dense, None, scale, None, decoder, None), rows @ decoder.T)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 17])
@pytest.mark.parametrize("top_k", [1, 2, 5, 10])
def test_the_highest_are_those_of_topk_and_softmax(top_k: int, rows: int, dtype: torch.dtype) -> None:
    head, hidden = bert(dtype, 34, 101), normal(rows, 34).to(dtype)
    values, ids, lse = highest(hidden, *weights(head), top_k=top_k)
    every = logits(hidden, *weights(head))
    expected = every.topk(top_k, dim=1)
    assert torch.equal(values, expected.values)
    assert torch.equal(ids, expected.indices)
    assert (values.dtype, ids.dtype, lse.dtype) == (dtype, torch.int64, dtype)
    close((values - lse[:, None]).exp(), every.softmax(dim=1).gather(1, ids))
    assert values.is_contiguous()
    assert ids.is_contiguous()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_ranks_in_fp32(dtype: torch.dtype) -> None:
    head, hidden = bert(dtype, 34, 101), normal(4, 34).to(dtype)
    values, ids, lse = highest(hidden, *weights(head), top_k=3)
    assert (values.dtype, ids.dtype, lse.dtype) == (torch.float32, torch.int64, torch.float32)
    every = logits(hidden, *weights(head))
    assert every.dtype == dtype
    assert torch.equal(values, every.float().topk(3, dim=1).values)
    torch.testing.assert_close(lse, every.double().logsumexp(1).float(), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_of_equal_logits_the_lower_id_comes_first() -> None:
    head, hidden = bert(torch.float64, 34, 60), normal(3, 34)
    parts = weights(head)
    decoder, bias = parts[4], parts[5]
    assert decoder is not None
    assert bias is not None
    decoder[20:40], decoder[40:], bias[20:40], bias[40:] = decoder[:20], decoder[:20], bias[:20], bias[:20]
    values, ids, _ = highest(hidden, *parts, top_k=9)
    # transformers' own `torch.topk` promises no order among them.
    assert torch.equal(ids[:, 0::3] + 20, ids[:, 1::3])
    assert torch.equal(ids[:, 0::3] + 40, ids[:, 2::3])
    assert torch.equal(values, logits(hidden, *parts).topk(9, dim=1).values)


@torch.no_grad()
@pytest.mark.parametrize("vocab", [1, 4])
def test_more_than_there_are_is_all_there_are(vocab: int) -> None:
    head, hidden = bert(torch.float64, 34, vocab), normal(3, 34)
    values, ids, lse = highest(hidden, *weights(head), top_k=10)
    assert values.shape == ids.shape == (3, vocab)
    assert torch.equal(ids.sort(dim=1).values, torch.arange(vocab).expand(3, -1))
    close((values - lse[:, None]).exp().sum(dim=1), torch.ones(3, dtype=torch.float64))


@torch.no_grad()
def test_ids_that_are_barred_come_last_and_weigh_nothing() -> None:
    head, hidden = bert(torch.float64, 34, 12), normal(3, 34)
    parts = weights(head)
    bias = parts[5]
    assert bias is not None
    before = logits(hidden, *parts)
    bias[[0, 5, 11]] = -torch.inf
    values, ids, lse = highest(hidden, *parts, top_k=12)
    assert torch.equal(ids[:, 9:], torch.tensor([0, 5, 11]).expand(3, -1))
    assert (values[:, 9:] == -torch.inf).all()
    close(lse, before[:, [1, 2, 3, 4, 6, 7, 8, 9, 10]].logsumexp(1))


@torch.no_grad()
def test_no_rows() -> None:
    head = bert(torch.float32, 34, 12)
    values, ids, lse = highest(torch.zeros(0, 34), *weights(head), top_k=5)
    assert (values.shape, ids.shape, lse.shape) == ((0, 5), (0, 5), (0,))
    assert logits(torch.zeros(0, 34), *weights(head)).shape == (0, 12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("k", [1, 5, 400])
def test_the_highest_are_those_of_a_stable_sort(dtype: torch.dtype, k: int) -> None:
    logits = torch.randint(-4, 5, (7, 300), generator=torch.Generator().manual_seed(1)).to(dtype) / 3
    logits[1] = 0.0
    logits[1, ::3] = -0.0
    logits[2, 50:200:7] = torch.inf
    logits[3, ::2] = -torch.inf
    logits[4] = -logits[4].abs() - 1
    values, ids = logits.to(torch.promote_types(dtype, torch.float32)).sort(dim=1, descending=True, stable=True)
    found = top_logits(logits, k)
    assert torch.equal(found[1], ids[:, :k])
    assert torch.equal(found[0], values[:, :k])
