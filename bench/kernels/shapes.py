"""Which shapes of which op are measured: those that a forward pass of the five families meets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ...engine.dispatch import TABLE
from ...engine.errors import OptionError
from ..lengths import Lengths
from . import attention_cases, product_cases, row_cases
from .case import Case
from .families import FAMILIES, Family

__all__ = ["BY_LENGTHS", "Make", "Shape", "shapes"]

Make = Callable[[Lengths, torch.dtype, torch.device], Case]

BY_LENGTHS = ("attention", "decode_attention", "pool")
"""Ops whose work depends on how the tokens lie in texts; for the others only their number counts."""


@dataclass(frozen=True)
class Shape:
    """One shape of one op, for any batch.

    Attributes:
        op: a key of the dispatch table.
        name: whose shape and what it computes.
        make: the case for a batch; draws its tensors.
    """

    op: str
    name: str
    make: Make


def shapes(ops: list[str] | None = None, families: Mapping[str, Family] = FAMILIES) -> list[Shape]:
    """All shapes, or those of some ops, in the order of the table.

    Args:
        ops: keys of the dispatch table; None is all of them.
        families: the sizes, under the names of `families.FAMILIES`.

    Raises:
        OptionError: no such op.
    """
    for op in ops or ():
        if op not in TABLE:
            raise OptionError(f"op {op!r}: unknown, expected one of {', '.join(TABLE)}")
    found = _Found(families)
    for declare in (_attention, _products, _rows):
        declare(found)
    order = list(TABLE)
    wanted = order if ops is None else [op for op in order if op in ops]
    return [shape for op in wanted for shape in found.shapes if shape.op == op]


class _Found:
    """The shapes so far."""

    def __init__(self, families: Mapping[str, Family]) -> None:
        self.families = families
        self.shapes: list[Shape] = []

    def add(self, op: str, family: str, what: str, make: Callable[..., Case], *arguments: object) -> None:
        """Note a shape; `make` is called with its name, the family, `arguments` and the batch."""
        name = f"{family} {what}".strip()
        bound = functools.partial(make, name, self.families[family], *arguments)
        self.shapes.append(Shape(op, name, bound))


def _attention(found: _Found) -> None:
    for family, kind in (
        ("BERT-base", "full"),
        ("MobileBERT", "full"),
        ("ModernBERT-base", "sliding"),
        ("MegatronBERT-345m", "causal"),
        ("mT5-small", "t5 bias"),
        ("mT5-small", "cross"),
    ):
        found.add("attention", family, kind, attention_cases.attention, kind)
    found.add("decode_attention", "MegatronBERT-345m", "self", attention_cases.decode_attention, False)
    found.add("decode_attention", "mT5-small", "self + T5 bias", attention_cases.decode_attention, True)


def _products(found: _Found) -> None:
    folded = functools.partial(product_cases.product, folded=True)
    for family, sizes in found.families.items():
        if sizes.norm == "no_norm":
            continue  # its products are narrow, and inside mobilebert_in and mobilebert_out
        behind = f"{'gated ' * sizes.gated}{sizes.epilogue}"
        turned = " + RoPE" * sizes.rotates
        for part, what in (
            ("qkv", f"QKV{turned}"),
            ("out", "out + residual"),
            ("up", f"up + {behind}"),
            ("down", "down + residual"),
        ):
            found.add("linear", family, what, product_cases.product, part)
            if sizes.before and part in ("qkv", "up"):
                found.add("norm_linear", family, what, folded, part)
    found.shapes.append(Shape("linear", "MobileBERT embedding", _mobilebert_embedding(found.families["MobileBERT"])))
    for op, make in (("mobilebert_in", product_cases.mobilebert_in), ("mobilebert_out", product_cases.mobilebert_out)):
        found.add(op, "MobileBERT", "", make)
    for family in ("BERT-base", "ModernBERT-base", "MobileBERT"):
        found.add("mlm_head", family, "", product_cases.mlm_head)


def _mobilebert_embedding(family: Family) -> Make:
    widths = 3 * family.attended, family.hidden
    return functools.partial(product_cases.dense, "MobileBERT embedding", *widths, bias=True)


def _rows(found: _Found) -> None:
    for family in ("BERT-base", "ModernBERT-base", "MegatronBERT-345m"):
        found.add("norm", family, "", row_cases.norm, False)
    found.add("norm", "BERT-base", "+ residual", row_cases.norm, True)
    found.add("rms_norm", "mT5-small", "", row_cases.rms_norm, False)
    found.add("rms_norm", "mT5-small", "+ residual", row_cases.rms_norm, True)
    found.add("no_norm", "MobileBERT", "+ residual", row_cases.no_norm)
    for family in ("BERT-base", "ModernBERT-base", "mT5-small"):
        found.add("embed", family, "", row_cases.embed)
    found.add("trigram", "MobileBERT", "", row_cases.trigram)
    found.add("rope", "ModernBERT-base", "", row_cases.rope)
    for family, mode in (("MiniLM-L6", "mean"), ("BERT-base", "cls"), ("ModernBERT-base", "weightedmean")):
        found.add("pool", family, f"{mode}, normalised", row_cases.pool, mode)
