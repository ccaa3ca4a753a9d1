"""The two ops that a layer of MobileBERT is around its attention, with the weights of the layer's modules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ..ops.bind import BoundOp, Source
from .intact import WholeOp

__all__ = ["entering", "leaving", "stacked"]


def entering(layer: Any, kind: str) -> BoundOp:
    """The `mobilebert_in` op of a layer of the published kind.

    Args:
        layer: a MobileBertLayer whose values come from its full width, its queries from a bottleneck of their own.
        kind: `normalization_type`.
    """
    narrow, shared, attention = layer.bottleneck["input"], layer.bottleneck["attention"], layer.attention["self"]
    together = (attention.query, attention.key)
    return WholeOp(
        "mobilebert_in",
        *_both(narrow.dense),
        *_both(narrow.LayerNorm),
        *_both(shared.dense),
        *_both(shared.LayerNorm),
        *_joined(together),
        *_both(attention.value),
        facts={"hidden": attention.value.in_features, "inner": attention.query.in_features},
        norm=kind,
        eps=_eps(narrow.LayerNorm),
    )


def leaving(layer: Any, kind: str) -> BoundOp:
    """The `mobilebert_out` op of a layer with bottlenecks; arguments as of `entering`."""
    attended, back = layer.attention["output"], layer.output.bottleneck
    up, down, norms = stacked(layer)
    activation = layer.intermediate.up.options["epilogue"]
    facts = {"hidden": back.dense.out_features, "inner": back.dense.in_features, "epilogue": activation}
    return WholeOp(
        "mobilebert_out",
        *_both(attended.dense),
        *_both(attended.LayerNorm),
        *_joined(up),
        *_joined(down),
        *_joined(norms),
        *_both(back.dense),
        *_both(back.LayerNorm),
        facts=facts,
        networks=len(up),
        activation=activation,
        norm=kind,
        eps=_eps(attended.LayerNorm),
        last_eps=_eps(layer.output.LayerNorm),
    )


def stacked(layer: Any) -> tuple[tuple[nn.Module, ...], ...]:
    """The layers that widen, those that narrow and the norms of the feed-forward networks, the last network's at the
    end.
    """
    widening = [network.intermediate for network in layer.ffn] + [layer.intermediate]
    narrowing = [network.output for network in layer.ffn] + [layer.output]
    return (
        tuple(part.dense for part in widening),
        tuple(part.dense for part in narrowing),
        tuple(part.LayerNorm for part in narrowing),
    )


def _both(module: nn.Module) -> tuple[Source, Source]:
    return Source(module, "weight"), Source(module, "bias")


def _joined(modules: Iterable[nn.Module]) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
    weights, biases = zip(*map(_both, modules), strict=True)
    return weights, biases


def _eps(norm: nn.Module) -> float:
    return getattr(norm, "eps", 1e-12)
