"""Cases of the ops that are products: `linear`, `norm_linear`, `mlm_head` and MobileBERT's two halves of a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..lengths import Lengths
from . import cost
from .case import Case, Draw
from .families import Family

__all__ = ["dense", "mlm_head", "mobilebert_in", "mobilebert_out", "product"]

TOP_K = 5
TOKENS_A_MASK = 32
"""Of so many tokens one is asked for: a mask a sentence."""

NETWORKS = 4
"""Feed-forward networks of a MobileBERT layer."""


def product(
    name: str,
    family: Family,
    part: str,
    lengths: Lengths,
    dtype: torch.dtype,
    device: torch.device,
    *,
    folded: bool = False,
) -> Case:
    """One of the four products of a layer, as a model of the family asks for it.

    Args:
        part: "qkv", "out", "up" or "down".
        folded: the family's norm into the product behind it: `norm_linear`.
    """
    inputs, outputs = {
        "qkv": (family.hidden, 3 * family.attended),
        "out": (family.attended, family.hidden),
        "up": (family.hidden, family.inner * (2 if family.gated else 1)),
        "down": (family.inner, family.hidden),
    }[part]
    rotates = part == "qkv" and family.rotates
    return dense(
        name,
        inputs,
        outputs,
        lengths,
        dtype,
        device,
        bias=family.bias,
        epilogue=family.epilogue if part == "up" else "none",
        gated=part == "up" and family.gated,
        residual=part in ("out", "down"),
        head_dim=family.head_dim if rotates else None,
        norm=family.norm if folded else None,
    )


def dense(
    name: str,
    in_features: int,
    out_features: int,
    lengths: Lengths,
    dtype: torch.dtype,
    device: torch.device,
    *,
    bias: bool,
    epilogue: str = "none",
    gated: bool = False,
    residual: bool = False,
    head_dim: int | None = None,
    norm: str | None = None,
) -> Case:
    """`linear` of these widths; with a norm `norm_linear`; with `head_dim` two thirds of the outputs are turned."""
    draw, tokens = Draw(dtype, device), lengths.tokens
    facts: dict[str, Any] = {"hidden": out_features, "inner": in_features, "epilogue": epilogue, "gated": gated}
    options: dict[str, Any] = {"epilogue": epilogue, "gated": gated}
    by_row: set[int | str] = {0}
    x = draw.rows(tokens, in_features)
    weights: list[Tensor | None] = [draw.weight(out_features, in_features), draw.rows(out_features) if bias else None]
    shape: dict[str, Any] = {"bias": bias, "gated": gated}
    if head_dim:
        angles = draw.rows(lengths.longest, head_dim // 2).float()
        options |= {"rope": (_positions(lengths, device), angles.cos(), angles.sin())}
        options["turned"] = 2 * (out_features // 3)
        facts |= {"rope": True, "head_dim": head_dim}
        by_row.add("rope")
        shape["rotation"] = (lengths.longest, head_dim)
    size = dtype.itemsize
    if norm is None:
        facts["residual"] = residual
        if residual:
            options["residual"] = draw.rows(tokens, out_features // 2 if gated else out_features)
            by_row.add("residual")
        price = cost.linear(tokens, in_features, out_features, size, residual=residual, **shape)
    else:
        shift = draw.rows(in_features, scale=0.3) if bias and norm == "layer_norm" else None
        weights = [draw.rows(in_features, scale=0.3).add_(1), shift, *weights]
        facts["norm"] = norm
        options |= {"norm": norm, "eps": 1e-6}
        price = cost.norm_linear(tokens, in_features, out_features, size, norm_bias=shift is not None, **shape)
    op = "linear" if norm is None else "norm_linear"
    return Case(op, name, lengths, dtype, device, facts, (x,), tuple(weights), options, price, frozenset(by_row))


def mlm_head(name: str, family: Family, lengths: Lengths, dtype: torch.dtype, device: torch.device) -> Case:
    """The highest logits of the positions that are asked for; MobileBERT's decoder has columns of its own."""
    draw, hidden, rows = Draw(dtype, device), family.hidden, max(1, lengths.tokens // TOKENS_A_MASK)
    width = family.attended if family.norm == "no_norm" else hidden
    scale = draw.rows(hidden, scale=0.3).add_(1)
    weights: list[Tensor | None] = [
        draw.weight(hidden, hidden), draw.rows(hidden), scale, draw.rows(hidden),
        draw.rows(family.vocabulary, width, scale=hidden**-0.5), draw.rows(family.vocabulary),
    ]  # fmt: skip
    if width != hidden:
        weights.append(draw.rows(hidden - width, family.vocabulary, scale=hidden**-0.5))
    epilogue = "relu" if family.epilogue == "relu" else "gelu"
    facts = {"hidden": hidden, "inner": hidden, "epilogue": epilogue}
    options = {"epilogue": epilogue, "eps": 1e-12, "top_k": TOP_K}
    price = cost.mlm_head(rows, hidden, family.vocabulary, dtype.itemsize, top_k=TOP_K)
    given = (draw.rows(rows, hidden),)
    return Case("mlm_head", name, lengths, dtype, device, facts, given, tuple(weights), options, price, frozenset({0}))


def mobilebert_in(name: str, family: Family, lengths: Lengths, dtype: torch.dtype, device: torch.device) -> Case:
    """A layer in front of its attention; the residual stream is fp32."""
    draw, hidden, width = Draw(dtype, device), family.hidden, family.attended
    bottlenecks = [
        part
        for _ in range(2)
        for part in (draw.weight(width, hidden), draw.rows(width), draw.rows(width), draw.rows(width))
    ]
    queries = (draw.weight(2 * width, width), draw.rows(2 * width))
    weights = (*bottlenecks, *queries, draw.weight(width, hidden), draw.rows(width))
    given = (_stream(draw, lengths.tokens, hidden),)
    facts = {"hidden": hidden, "inner": width}
    price = cost.mobilebert_in(lengths.tokens, hidden, width, dtype.itemsize)
    return Case("mobilebert_in", name, lengths, dtype, device, facts, given, weights, {}, price, frozenset({0}))


def mobilebert_out(name: str, family: Family, lengths: Lengths, dtype: torch.dtype, device: torch.device) -> Case:
    """A layer behind its attention, with all its feed-forward networks; the residual stream is fp32."""
    draw, tokens = Draw(dtype, device), lengths.tokens
    hidden, width, inner = family.hidden, family.attended, family.inner
    weights = (
        draw.weight(width, width), *(draw.rows(width) for _ in range(3)),
        draw.weight(NETWORKS * inner, width), draw.rows(NETWORKS * inner),
        draw.rows(NETWORKS * width, inner, scale=inner**-0.5), *(draw.rows(NETWORKS * width) for _ in range(3)),
        draw.weight(hidden, width), *(draw.rows(hidden) for _ in range(3)),
    )  # fmt: skip
    given = (draw.rows(tokens, width), _stream(draw, tokens, width), _stream(draw, tokens, hidden))
    facts = {"hidden": hidden, "inner": width, "epilogue": family.epilogue}
    options = {"networks": NETWORKS, "activation": family.epilogue}
    price = cost.mobilebert_out(tokens, hidden, width, inner, NETWORKS, dtype.itemsize)
    rows = frozenset({0, 1, 2})
    return Case("mobilebert_out", name, lengths, dtype, device, facts, given, weights, options, price, rows)


def _stream(draw: Draw, tokens: int, width: int) -> Tensor:
    return draw.rows(tokens, width).float()


def _positions(lengths: Lengths, device: torch.device) -> Tensor:
    return torch.cat([torch.arange(length, device=device) for length in lengths.lengths])
