"""Cases of the ops that memory bounds: norms, embeddings, rotation and pooling."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from ..lengths import Lengths
from . import cost
from .case import Case, Draw
from .families import Family

__all__ = ["embed", "no_norm", "norm", "pool", "rms_norm", "rope", "trigram"]


def norm(name: str, family: Family, residual: bool, lengths: Lengths, dtype: torch.dtype, device: torch.device) -> Case:
    """A layer norm, of a sum where there is a residual."""
    return _norm("norm", name, family, residual, lengths, dtype, device)


def rms_norm(
    name: str, family: Family, residual: bool, lengths: Lengths, dtype: torch.dtype, device: torch.device
) -> Case:
    """An RMS norm, of a sum where there is a residual."""
    return _norm("rms_norm", name, family, residual, lengths, dtype, device)


def _norm(
    op: str, name: str, family: Family, residual: bool, lengths: Lengths, dtype: torch.dtype, device: torch.device
) -> Case:
    draw, tokens, hidden = Draw(dtype, device), lengths.tokens, family.hidden
    layer, size = op == "norm", dtype.itemsize
    weights: tuple[Tensor | None, ...] = (draw.rows(hidden, scale=0.3).add_(1),)
    if layer:
        weights = (*weights, draw.rows(hidden) if family.bias else None)
        price = cost.norm(tokens, hidden, size, bias=family.bias, residual=residual)
    else:
        price = cost.rms_norm(tokens, hidden, size, residual=residual)
    options: dict[str, Any] = {"eps": 1e-5 if layer else 1e-6}
    if residual:
        options["residual"] = draw.rows(tokens, hidden)
    given, rows = (draw.rows(tokens, hidden),), frozenset({0, "residual"})
    return Case(op, name, lengths, dtype, device, {"hidden": hidden}, given, weights, options, price, rows)


def no_norm(name: str, family: Family, lengths: Lengths, dtype: torch.dtype, device: torch.device) -> Case:
    """What MobileBERT has in place of a norm, of a sum with the fp32 stream, which it writes."""
    draw, tokens, hidden = Draw(dtype, device), lengths.tokens, family.hidden
    weights = (draw.rows(hidden, scale=0.3).add_(1), draw.rows(hidden))
    options = {"residual": draw.rows(tokens, hidden).float(), "wide": True}
    price, rows = cost.no_norm(tokens, hidden, dtype.itemsize), frozenset({0, "residual"})
    given = (draw.rows(tokens, hidden),)
    return Case("no_norm", name, lengths, dtype, device, {"hidden": hidden}, given, weights, options, price, rows)


def embed(name: str, family: Family, lengths: Lengths, dtype: torch.dtype, device: torch.device) -> Case:
    """Words; with positions and types where norms stand behind (BERT); with a norm but where it is an RMS norm (T5)."""
    draw, tokens, hidden = Draw(dtype, device), lengths.tokens, family.hidden
    learned, normed = family.norm == "layer_norm" and not family.before, family.norm == "layer_norm"
    ids = draw.ids(tokens, family.vocabulary)
    places = torch.cat([torch.arange(length, device=device) for length in lengths.lengths]) % family.positions
    kinds = torch.arange(tokens, device=device) % 2 if learned else None
    tables: tuple[Tensor | None, ...] = (draw.rows(family.vocabulary, hidden), None, None)
    if learned:
        tables = (tables[0], draw.rows(family.positions, hidden), draw.rows(2, hidden))
    scale = draw.rows(hidden, scale=0.3).add_(1) if normed else None
    shift = draw.rows(hidden) if normed and family.bias else None
    price = cost.embed(
        tokens,
        hidden,
        dtype.itemsize,
        words=len(ids.unique()),
        positions=min(lengths.longest, family.positions) if learned else 0,
        types=min(2, tokens) if learned else 0,
        norm_weights=(scale is not None) + (shift is not None),
    )
    given, weights = (ids, places, kinds), (*tables, scale, shift)
    options, facts = {"eps": 1e-12 if normed else None}, {"hidden": hidden}
    rows = frozenset({0, 1, 2} if learned else {0, 1})
    return Case("embed", name, lengths, dtype, device, facts, given, weights, options, price, rows)


def trigram(name: str, family: Family, lengths: Lengths, dtype: torch.dtype, device: torch.device) -> Case:
    """MobileBERT's words and their neighbours; the word embeddings are as narrow as its layers inside."""
    draw, width = Draw(dtype, device), family.attended
    ids = draw.ids(lengths.tokens, family.vocabulary)
    price = cost.trigram(lengths.tokens, len(lengths.lengths), width, dtype.itemsize, words=len(ids.unique()))
    weights, given = (draw.rows(family.vocabulary, width),), (ids, _edges(lengths, device))
    return Case("trigram", name, lengths, dtype, device, {"hidden": width}, given, weights, {}, price)


def rope(name: str, family: Family, lengths: Lengths, dtype: torch.dtype, device: torch.device) -> Case:
    """Queries and keys turned, views of one projection."""
    draw, tokens, heads, head_dim = Draw(dtype, device), lengths.tokens, family.heads, family.head_dim
    q, k, _ = draw.rows(tokens, 3 * heads, head_dim).chunk(3, dim=1)
    exponents = torch.arange(0, head_dim, 2, device=device).float() / head_dim
    angles = torch.arange(lengths.longest, device=device).float()[:, None] * 160_000.0**-exponents
    rows = torch.cat([torch.arange(length, device=device) for length in lengths.lengths])
    price = cost.rope(tokens, heads, head_dim, dtype.itemsize, positions=lengths.longest)
    given, by_row = (q, k, rows, angles.cos(), angles.sin()), frozenset({0, 1, 2})
    return Case("rope", name, lengths, dtype, device, {"head_dim": head_dim}, given, (), {}, price, by_row)


def pool(name: str, family: Family, mode: str, lengths: Lengths, dtype: torch.dtype, device: torch.device) -> Case:
    """One unit vector a text."""
    draw, hidden = Draw(dtype, device), family.hidden
    given, facts = (draw.rows(lengths.tokens, hidden), _edges(lengths, device)), {"hidden": hidden}
    price = cost.pool(lengths.lengths, hidden, dtype.itemsize, mode=mode, normalize=True)
    options = {"mode": mode, "normalize": True}
    return Case("pool", name, lengths, dtype, device, facts, given, (), options, price)


def _edges(lengths: Lengths, device: torch.device) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths.lengths)], dtype=torch.int32, device=device)
