"""Norm, embed and pool, eager: against numpy in fp64, transformers' embeddings, sentence-transformers' Pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.modules import Pooling as TheirPooling
from torch import Tensor
from transformers import BertConfig as TheirConfig
from transformers.models.bert.modeling_bert import BertEmbeddings as TheirEmbeddings
from transformers.models.mobilebert.modeling_mobilebert import NoNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from padless.engine.batch import PackedBatch, TokenizedTexts, pack
from padless.engine.embedding.pooling import Pooling
from padless.engine.folders.sentence_transformer import POOLING_MODES, PoolingSpec
from padless.engine.ops.embed import embed
from padless.engine.ops.norm import layer_norm, no_norm, rms_norm
from padless.engine.ops.pool import pool

CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def starts(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)


# Norm.


@pytest.mark.parametrize("eps", [1e-12, 1e-5, 0.3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "hidden"), [(0, 4), (1, 1), (3, 7), (5, 384)])
def test_layer_norm_is_the_formula(rows: int, hidden: int, bias: bool, eps: float) -> None:
    x, weight, b = normal(rows, hidden) * 3 + 5, normal(hidden, seed=1), normal(hidden, seed=2)
    values = x.numpy()
    mean, variance = values.mean(axis=1, keepdims=True), values.var(axis=1, keepdims=True)
    expected = (values - mean) / np.sqrt(variance + eps) * weight.numpy() + (b.numpy() if bias else 0)
    out = layer_norm(x, weight, b if bias else None, eps=eps)
    assert isinstance(out, Tensor)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layer_norm_of_half_precision_has_fp32_statistics(dtype: torch.dtype) -> None:
    # Statistics in bf16 (8 bits) or fp16 (overflow beyond 65,504) would be far off.
    x = (normal(4, 1024) + 100).to(dtype)
    weight, bias = torch.ones(1024, dtype=dtype), torch.zeros(1024, dtype=dtype)
    expected = layer_norm(x.double(), weight.double(), bias.double(), eps=1e-5)
    out = layer_norm(x, weight, bias, eps=1e-5)
    assert isinstance(out, Tensor)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-4)


def their_stream(dtype: torch.dtype, stream: torch.dtype) -> torch.dtype:
    """The dtype of a sum by hand: the wider one; fp32 for two that hold each what the other does not."""
    if dtype == stream:
        return dtype
    wider = max(dtype, stream, key=lambda kind: kind.itemsize)
    return wider if dtype.itemsize != stream.itemsize else torch.float32


STREAMS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("dtype", STREAMS)
@pytest.mark.parametrize("weights", STREAMS)
def test_a_norm_adds_first_and_returns_both(weights: torch.dtype, dtype: torch.dtype, stream: torch.dtype) -> None:
    x, residual = normal(5, 37, seed=1, dtype=dtype), normal(5, 37, seed=2, dtype=stream) * 3
    weight, bias = normal(37, seed=3, dtype=weights), normal(37, seed=4, dtype=weights)
    together = their_stream(dtype, stream)
    expected_total = x.double() + residual.double()
    for op, eps, rest in ((layer_norm, 1e-5, (bias,)), (layer_norm, 1e-12, (None,)), (rms_norm, 1e-6, ())):
        out, total = op(x, weight, *rest, eps=eps, residual=residual)
        assert (total.dtype, out.dtype, total.shape, out.shape) == (together, weights, x.shape, x.shape)
        torch.testing.assert_close(total.double(), expected_total, rtol=torch.finfo(together).eps, atol=1e-30)
        # What is returned is what was normalised.
        values = total.double().numpy()
        centred = values - values.mean(axis=1, keepdims=True) if op is layer_norm else values
        expected = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + eps) * weight.double().numpy()
        if any(part is bias for part in rest):
            expected = expected + bias.double().numpy()
        epsilon = max(torch.finfo(weights).eps, torch.finfo(torch.float32).eps if dtype != torch.float64 else 1e-16)
        np.testing.assert_allclose(out.double().numpy(), expected, rtol=2 * epsilon, atol=8 * epsilon)
        alone = op(total, weight, *rest, eps=eps)
        assert isinstance(alone, Tensor)
        assert torch.equal(alone, out)


@pytest.mark.parametrize("hidden", [1, 3, 64, 511])
@pytest.mark.parametrize("weights", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rms_norm_is_that_of_transformers(dtype: torch.dtype, weights: torch.dtype, hidden: int) -> None:
    theirs = T5LayerNorm(hidden, eps=1e-6)
    theirs.weight.data = normal(hidden, seed=1, dtype=weights)
    x = normal(7, hidden, dtype=dtype) * 20
    expected = theirs(x)
    if weights in (torch.float16, torch.bfloat16):
        assert torch.equal(rms_norm(x, theirs.weight, eps=1e-6), expected)  # pyright: ignore[reportArgumentType]
    else:
        # Their quotient keeps x's dtype where the weight is not half precision.
        out = rms_norm(x, theirs.weight, eps=1e-6)
        torch.testing.assert_close(out, expected.to(weights), rtol=torch.finfo(dtype).eps, atol=0)


def test_rms_norm_is_the_formula() -> None:
    x, weight = normal(6, 41) * 5 + 2, normal(41, seed=1)
    expected = x.numpy() / np.sqrt((x.numpy() ** 2).mean(axis=1, keepdims=True) + 0.3) * weight.numpy()
    out = rms_norm(x, weight, eps=0.3)
    assert isinstance(out, Tensor)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-13)


def test_a_norm_of_a_stream_in_fp32_sees_all_its_digits() -> None:
    # In half precision 4096 + 0.25 is 4096: what the layers add would be gone.
    stream = torch.full((1, 8), 4096.0)
    x = (torch.arange(8) * 0.25).half()[None]
    weight, bias = torch.ones(8, dtype=torch.float16), torch.zeros(8, dtype=torch.float16)
    out, total = layer_norm(x, weight, bias, eps=1e-5, residual=stream)
    assert total.tolist() == [[4096 + 0.25 * channel for channel in range(8)]]
    assert out.dtype == torch.float16
    expected = (np.arange(8) - 3.5) / math.sqrt(np.arange(8).var() + 16e-5)
    np.testing.assert_allclose(out[0].double().numpy(), expected, rtol=1e-3)


@pytest.mark.parametrize("stream", [None, torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_no_norm_is_the_formula(dtype: torch.dtype, wide: bool, stream: torch.dtype | None) -> None:
    x, weight, bias = (normal(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(((6, 35), (35,), (35,))))
    residual = None if stream is None else normal(6, 35, seed=9, dtype=stream) * 7
    total = x.double().numpy() + (0 if residual is None else residual.double().numpy())
    expected = total * weight.double().numpy() + bias.double().numpy()
    out = no_norm(x, weight, bias, residual=residual, wide=wide)
    assert out.dtype == (torch.promote_types(dtype, torch.float32) if wide else dtype)
    precision = torch.finfo(out.dtype).eps
    # One rounding of the result, beside those of fp32 where there are any.
    beside = 4e-6 if precision > 1e-12 else 1e-14
    np.testing.assert_allclose(out.double().numpy(), expected, rtol=0.51 * precision, atol=beside)


def test_no_norm_is_that_of_transformers() -> None:
    theirs = NoNorm(24)
    theirs.weight.data, theirs.bias.data = normal(24, seed=1), normal(24, seed=2)
    x, residual = normal(5, 24), normal(5, 24, seed=3)
    torch.testing.assert_close(no_norm(x, theirs.weight, theirs.bias), theirs(x), rtol=0, atol=1e-14)
    out = no_norm(x, theirs.weight, theirs.bias, residual=residual)
    torch.testing.assert_close(out, theirs(x + residual), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_no_norm_carries_a_stream_beyond_half_precision(dtype: torch.dtype) -> None:
    # MobileBERT's published weights reach 2.5e7: infinite in fp16, three digits in bf16.
    x = torch.tensor([[0.5, -1.0]], dtype=dtype)
    weight, bias = torch.tensor([2.0, 1.0], dtype=dtype), torch.tensor([1.0, 0.25], dtype=dtype)
    residual = torch.tensor([[1e7 + 3, 12.5]])
    out = no_norm(x, weight, bias, residual=residual, wide=True)
    assert out.dtype == torch.float32
    assert out.tolist() == [[2e7 + 8, 11.75]]
    narrow = no_norm(x, weight, bias, residual=residual)
    assert narrow.dtype == dtype
    assert narrow[0, 0].isinf() if dtype == torch.float16 else narrow[0, 0] == torch.tensor(2e7 + 8).bfloat16()
    assert narrow[0, 1] == 11.75


# Embed.


@pytest.mark.parametrize("types", [False, True])
def test_embed_is_that_of_transformers(types: bool) -> None:
    config = TheirConfig(
        vocab_size=37, hidden_size=12, num_attention_heads=3, max_position_embeddings=23, type_vocab_size=3,
        layer_norm_eps=1e-7, hidden_dropout_prob=0.0,
    )  # fmt: skip
    theirs = TheirEmbeddings(config).double().eval()
    with torch.no_grad():
        for seed, parameter in enumerate(theirs.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=seed))
    generator = torch.Generator().manual_seed(9)
    for length in (1, 2, 23):
        ids = torch.randint(37, (length,), generator=generator)
        type_ids = torch.randint(3, (length,), generator=generator) if types else None
        positions = torch.arange(length)
        expected = theirs(input_ids=ids[None], token_type_ids=None if type_ids is None else type_ids[None])[0]
        out = embed(
            ids,
            positions,
            type_ids,
            theirs.word_embeddings.weight,
            theirs.position_embeddings.weight,
            theirs.token_type_embeddings.weight,
            theirs.LayerNorm.weight,
            theirs.LayerNorm.bias,
            eps=config.layer_norm_eps,
        )
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)


def test_embed_of_packed_texts_is_that_of_each_text() -> None:
    tables = (normal(11, 5), normal(7, 5, seed=1), normal(2, 5, seed=2), normal(5, seed=3), normal(5, seed=4))
    ids, positions = torch.tensor([3, 3, 3, 10, 0]), torch.tensor([0, 1, 0, 1, 6])
    types = torch.tensor([0, 1, 0, 1, 1])
    packed = embed(ids, positions, types, *tables, eps=1e-12)
    for row in range(5):
        alone = embed(ids[row : row + 1], positions[row : row + 1], types[row : row + 1], *tables, eps=1e-12)
        assert torch.equal(packed[row], alone[0])
    assert embed(ids[:0], positions[:0], None, *tables, eps=1e-12).shape == (0, 5)


# Pool.


def padded(hidden: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """`[texts, longest, hidden]`, its padding filled with numbers that would show, and the mask."""
    longest = max(lengths)
    mask = torch.zeros(len(lengths), longest, dtype=torch.int64)
    values = torch.full((len(lengths), longest, hidden.shape[1]), 1e3, dtype=hidden.dtype)
    for row, text in enumerate(hidden.split(list(lengths))):
        values[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return values, mask


def theirs(hidden: Tensor, lengths: Sequence[int], modes: Sequence[str], skip: int = 0) -> Tensor:
    """sentence-transformers' Pooling on a padded batch."""
    values, mask = padded(hidden, lengths)
    chosen: Any = tuple(modes)
    module = TheirPooling(hidden.shape[1], pooling_mode=chosen, include_prompt=not skip)
    features: dict[str, Any] = {"token_embeddings": values, "attention_mask": mask}
    if skip:
        features["prompt_length"] = skip
    return module(features)["sentence_embedding"]


def packed(lengths: Sequence[int]) -> PackedBatch:
    tokens = sum(lengths)
    flags = np.zeros(len(lengths), dtype=bool)
    texts = TokenizedTexts(np.zeros(tokens, np.int32), np.array(lengths, np.int32), None, flags, flags)
    return pack(texts, np.arange(len(lengths)))


LENGTHS = (5, 1, 2, 17, 1, 64)


@pytest.mark.parametrize("mode", POOLING_MODES)
@pytest.mark.parametrize("lengths", [LENGTHS, (1,), (1, 1, 1), (130,)], ids=str)
def test_pool_is_that_of_sentence_transformers(lengths: tuple[int, ...], mode: str) -> None:
    hidden = normal(sum(lengths), 7)
    out = pool(hidden, starts(lengths), mode=mode)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, theirs(hidden, lengths, (mode,)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_pool_in_a_case_worked_out_by_hand(mode: str) -> None:
    hidden = torch.tensor([[4.0], [-1.0], [7.0], [-3.0]], dtype=torch.float64)
    expected = {
        "cls": [4.0, -3.0],
        "lasttoken": [7.0, -3.0],
        "max": [7.0, -3.0],
        "mean": [10 / 3, -3.0],
        "mean_sqrt_len_tokens": [10 / 3**0.5, -3.0],
        "weightedmean": [(4 - 2 + 21) / 6, -3.0],
    }
    assert pool(hidden, starts((3, 1)), mode=mode).flatten().tolist() == pytest.approx(expected[mode], abs=1e-15)


@pytest.mark.parametrize("mode", POOLING_MODES)
@pytest.mark.parametrize("skip", [1, 2, 4])
def test_pool_without_the_prompt_is_that_of_sentence_transformers(skip: int, mode: str) -> None:
    lengths = (5, 6, 17, 64)
    hidden = normal(sum(lengths), 7)
    out = pool(hidden, starts(lengths), mode=mode, skip=skip)
    torch.testing.assert_close(out, theirs(hidden, lengths, (mode,), skip), rtol=0, atol=1e-13)


@pytest.mark.parametrize("mode", POOLING_MODES)
@pytest.mark.parametrize("skip", [4, 5, 6, 100])
def test_pool_where_the_prompt_is_as_long_as_some_texts(skip: int, mode: str) -> None:
    # Each text alone is the reference, and what comes out where nothing is left is theirs too. With one exception:
    # there their padded path gives zeros for the last token, their unpadded one the token; ours is the latter.
    lengths = (5, 9, 4, 6)
    hidden = normal(sum(lengths), 7)
    out = pool(hidden, starts(lengths), mode=mode, skip=skip)
    for row, text in enumerate(hidden.split(list(lengths))):
        expected = text[-1] if mode == "lasttoken" else theirs(text, (len(text),), (mode,), skip)[0]
        torch.testing.assert_close(out[row], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", POOLING_MODES)
def test_pool_accumulates_in_fp32(mode: str, dtype: torch.dtype) -> None:
    lengths = (2000, 3)
    hidden = (normal(2003, 5) + 40).to(dtype)
    out = pool(hidden, starts(lengths), mode=mode)
    assert out.dtype == torch.float32
    reference = pool(hidden.double(), starts(lengths), mode=mode)
    torch.testing.assert_close(out.double(), reference, rtol=2e-5, atol=0)


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_pool_of_no_texts(mode: str) -> None:
    assert pool(normal(0, 7), starts(()), mode=mode).shape == (0, 7)


@pytest.mark.parametrize("mode", POOLING_MODES)
@pytest.mark.parametrize("skip", [0, 2])
def test_pool_gives_a_text_the_same_bits_among_others(skip: int, mode: str) -> None:
    # The row promises deterministic=True: a text's bits do not depend on its neighbours.
    lengths = (3, 130, 7, 64, 1)
    hidden = normal(sum(lengths), 33, dtype=torch.float32)
    together = pool(hidden, starts(lengths), mode=mode, skip=skip)
    for row, text in enumerate(hidden.split(list(lengths))):
        assert torch.equal(pool(text, starts(lengths[row : row + 1]), mode=mode, skip=skip)[0], together[row])


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_pool_keeps_nan_in_its_text(mode: str) -> None:
    lengths = (3, 4, 2)
    hidden = normal(9, 5)
    clean = pool(hidden, starts(lengths), mode=mode)
    hidden[3:7] = torch.nan
    out = pool(hidden, starts(lengths), mode=mode)
    assert torch.equal(out[[0, 2]], clean[[0, 2]])
    assert out[1].isnan().all()


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_gradients_through_pool_are_those_of_sentence_transformers(mode: str) -> None:
    lengths = (5, 1, 8)
    ours, other = normal(14, 3).requires_grad_(), normal(14, 3).requires_grad_()
    direction = normal(3, 3, seed=1)
    (pool(ours, starts(lengths), mode=mode) * direction).sum().backward()
    (theirs(other, lengths, (mode,)) * direction).sum().backward()
    assert ours.grad is not None
    assert other.grad is not None
    torch.testing.assert_close(ours.grad, other.grad, rtol=0, atol=1e-13)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    modes=st.permutations(POOLING_MODES).flatmap(lambda order: st.integers(1, 6).map(lambda n: tuple(order[:n]))),
    include_prompt=st.booleans(),
    prompt=st.integers(0, 3),
)
def test_pooling_module_is_that_of_sentence_transformers(
    lengths: list[int], modes: tuple[str, ...], include_prompt: bool, prompt: int
) -> None:
    # Every text has a token behind the prompt, as every text that comes out of a tokenizer does.
    lengths = [length + prompt for length in lengths]
    hidden = normal(sum(lengths), 5)
    module = Pooling(PoolingSpec(modes, include_prompt))
    for op in module.pools:
        op.bind(CPU, torch.float64, backend="auto", deterministic=False)
    out = module(hidden, packed(lengths), prompt)
    expected = theirs(hidden, lengths, modes, 0 if include_prompt else prompt)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
