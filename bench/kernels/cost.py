"""What each op costs at least: the FLOPs of its maths, and the bytes that must cross the memory bus once.

FLOPs: a multiply-add is two. Of an op with products only these count, of pairs of query and key only those that see
each other; of an op without any, what is done to each element. Roots and quotients of a row are left out, as are
activations.

Bytes: every input, weight and result once, and nothing in between: what a perfect fusion would move. Of a table that is
gathered from, the rows that are asked for, each once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..gpu.problem import BUCKETS, Problem

__all__ = [
    "Cost",
    "attention",
    "decode_attention",
    "embed",
    "linear",
    "mlm_head",
    "mobilebert_in",
    "mobilebert_out",
    "no_norm",
    "norm",
    "norm_linear",
    "pool",
    "rms_norm",
    "rope",
    "trigram",
]

_INDEX, _LENGTH, _WIDE = 8, 4, 4
"""Bytes of an int64 index, of an int32 length, and of an fp32 number."""

_LAYER_NORM, _RMS_NORM = 7, 4
"""FLOPs an element: mean (1), deviation, square and sum (3), scale, weight, bias (3); square and sum, scale, weight."""


class Cost(NamedTuple):
    """FLOPs and bytes of one call."""

    flops: int
    bytes: int


def attention(problem: Problem) -> Cost:
    """Both products for every visible pair; q, k, v, the result, the texts' edges and the bias' table."""
    size = problem.dtype.itemsize
    heads_k = problem.heads_k or problem.heads
    lengths_k = problem.lengths if problem.lengths_k is None else problem.lengths_k
    rows = 2 * problem.tokens * problem.heads + 2 * sum(lengths_k) * heads_k
    edges = (len(problem.lengths) + 1) * (1 if problem.lengths_k is None else 2)
    table = 0 if problem.bias is None else BUCKETS * problem.heads
    return Cost(problem.flops, size * (rows * problem.head_dim + table) + _LENGTH * edges)


def decode_attention(lengths: Sequence[int], heads: int, heads_k: int, head_dim: int, size: int, *, bias: bool) -> Cost:
    """One query for each sequence; the keys and values it sees."""
    keys, sequences = sum(lengths), len(lengths)
    elements = 2 * sequences * heads * head_dim + 2 * keys * heads_k * head_dim + (BUCKETS * heads if bias else 0)
    return Cost(4 * heads * head_dim * keys, size * elements + sequences * (_INDEX + _LENGTH))


def linear(
    tokens: int,
    in_features: int,
    out_features: int,
    size: int,
    *,
    bias: bool = False,
    gated: bool = False,
    residual: bool = False,
    rotation: tuple[int, int] | None = None,
) -> Cost:
    """The product; rows in, weights, rows out.

    Args:
        out_features: rows of the weight; half as many are written where `gated`.
        size: bytes of an element.
        rotation: rows of the tables that are asked for and channels of a head, where part of the result is turned.
    """
    width = out_features // 2 if gated else out_features
    elements = tokens * in_features + out_features * in_features + tokens * width * (2 if residual else 1)
    moved = size * (elements + (out_features if bias else 0))
    if rotation is not None:
        moved += tokens * _INDEX + rotation[0] * rotation[1] * _WIDE
    return Cost(2 * tokens * in_features * out_features, moved)


def norm_linear(
    tokens: int,
    in_features: int,
    out_features: int,
    size: int,
    *,
    norm_bias: bool,
    bias: bool = False,
    gated: bool = False,
    rotation: tuple[int, int] | None = None,
) -> Cost:
    """As `linear`, with the norm's weights; the normalised rows need not exist."""
    product = linear(tokens, in_features, out_features, size, bias=bias, gated=gated, rotation=rotation)
    return Cost(product.flops, product.bytes + size * in_features * (2 if norm_bias else 1))


def norm(tokens: int, hidden: int, size: int, *, bias: bool, residual: bool) -> Cost:
    """Layer norm; with a residual the sum is written as well."""
    flops = tokens * hidden * (_LAYER_NORM - (0 if bias else 1) + (1 if residual else 0))
    return Cost(flops, size * (tokens * hidden * (4 if residual else 2) + hidden * (2 if bias else 1)))


def rms_norm(tokens: int, hidden: int, size: int, *, residual: bool) -> Cost:
    """As `norm`, without mean and bias."""
    flops = tokens * hidden * (_RMS_NORM + (1 if residual else 0))
    return Cost(flops, size * (tokens * hidden * (4 if residual else 2) + hidden))


def no_norm(tokens: int, hidden: int, size: int) -> Cost:
    """A sum, a factor and a shift: x in the dtype of the model; residual and result are fp32."""
    return Cost(3 * tokens * hidden, size * (tokens * hidden + 2 * hidden) + 2 * tokens * hidden * _WIDE)


def embed(
    tokens: int, hidden: int, size: int, *, words: int, positions: int = 0, types: int = 0, norm_weights: int = 0
) -> Cost:
    """Rows gathered and added, and a layer norm.

    Args:
        words: different words among the tokens.
        positions: different positions; 0 without such a table.
        types: different types; 0 without such a table.
        norm_weights: 0 without a norm, 1 for a weight, 2 for a bias as well.
    """
    tables = sum(1 for rows in (positions, types) if rows)
    normalised = _LAYER_NORM - 2 + norm_weights if norm_weights else 0
    elements = hidden * (words + positions + types + norm_weights + tokens)
    return Cost(tokens * hidden * (tables + normalised), size * elements + tokens * _INDEX * (1 + tables))


def trigram(tokens: int, texts: int, width: int, size: int, *, words: int) -> Cost:
    """A gather: no FLOPs; three embeddings written for each token."""
    return Cost(0, size * width * (words + 3 * tokens) + tokens * _INDEX + (texts + 1) * _LENGTH)


def rope(tokens: int, heads: int, head_dim: int, size: int, *, positions: int) -> Cost:
    """Queries and keys: four products and two sums for each pair of channels; read and written."""
    elements = 2 * tokens * heads * head_dim
    return Cost(3 * elements, 2 * size * elements + tokens * _INDEX + positions * head_dim * _WIDE)


def pool(lengths: Sequence[int], hidden: int, size: int, *, mode: str, normalize: bool) -> Cost:
    """A sum over each text's rows, or one of them; vectors in fp32.

    Args:
        mode: "cls", "lasttoken", "mean", "mean_sqrt_len_tokens", "weightedmean" or "max", see `engine/ops/pool.py`.
        normalize: square and sum, then scale.
    """
    tokens, texts = sum(lengths), len(lengths)
    read = texts if mode in ("cls", "lasttoken") else tokens
    reduced = {"cls": 0, "lasttoken": 0, "weightedmean": 2}.get(mode, 1) * tokens * hidden
    scaled = texts * hidden if mode in ("mean", "mean_sqrt_len_tokens", "weightedmean") else 0
    flops = reduced + scaled + (3 * texts * hidden if normalize else 0)
    return Cost(flops, size * read * hidden + texts * hidden * _WIDE + (texts + 1) * _LENGTH)


def mlm_head(rows: int, hidden: int, vocabulary: int, size: int, *, top_k: int) -> Cost:
    """Both products; all weights, and of the logits the `top_k` highest with their ids and the log-sum-exp.

    A decoder of two tables, narrow word embeddings and columns of its own, is as large as one.
    """
    weights = hidden * hidden + 3 * hidden + vocabulary * hidden + vocabulary
    written = rows * top_k * (_WIDE + _INDEX) + rows * _WIDE
    return Cost(2 * rows * hidden * (hidden + vocabulary), size * (rows * hidden + weights) + written)


def mobilebert_in(tokens: int, hidden: int, width: int, size: int) -> Cost:
    """Two bottlenecks, Q, K and V; the stream is fp32, as is its narrow copy."""
    weights = 3 * (hidden * width) + 2 * width * width + 9 * width
    moved = tokens * (hidden + width) * _WIDE + size * (3 * tokens * width + weights)
    return Cost(2 * tokens * (3 * hidden * width + 2 * width * width), moved)


def mobilebert_out(tokens: int, hidden: int, width: int, inner: int, networks: int, size: int) -> Cost:
    """The attention's output, the stack of networks and the output bottleneck; the stream is fp32."""
    products = width * width + 2 * networks * inner * width + width * hidden
    weights = products + 3 * width + networks * (inner + 3 * width) + 3 * hidden
    moved = tokens * (width + 2 * hidden) * _WIDE + size * (tokens * width + weights)
    return Cost(2 * tokens * products, moved)
