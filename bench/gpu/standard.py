"""The calls that are worth tuning on any machine: those that the five families make at their published widths."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from ...autotune.key import key_of
from ...engine.contract import Call
from ...engine.errors import OptionError
from ...engine.models.pretrained import parameters_left_empty
from ...engine.ops.bind import BoundOp
from ..launches import FAMILIES

__all__ = ["calls_of", "name_of", "standard_calls", "tiny_calls"]

HEAVY = ("attention", "norm_linear", "linear", "mobilebert_out", "mobilebert_in", "decode_attention", "norm")
"""Ops that most of a model's time goes to, the first of all first."""


def calls_of(ops: Iterable[BoundOp]) -> list[Call]:
    """The calls of ops that a Triton kernel serves, one of each key, in the order they stand.

    Args:
        ops: bound ones. Those that another one computes as a part of itself are left out.
    """
    known = list(ops)
    idle = {id(part) for op in known if op.fused for part in op.parts}
    found: dict[object, Call] = {}
    for op in known:
        if op.resolution is not None and op.resolution.impl.name == "triton" and id(op) not in idle:
            call = op.resolution.call
            found.setdefault((call.op, key_of(call)), call)
    return list(found.values())


def name_of(call: Call) -> str:
    """A call by what its configuration is chosen by: "attention/bias=none dtype=bfloat16 head_dim=64 window=full"."""
    return f"{call.op}/{' '.join(f'{name}={value}' for name, value in key_of(call))}"


@cache
def standard_calls(dtype: torch.dtype, sm: int | None) -> tuple[Call, ...]:
    """One of each key: what a layer of each family binds on a GPU, and what else they have.

    Args:
        dtype: of the models.
        sm: compute capability; None off NVIDIA hardware.
    """
    found = [call for family in FAMILIES for call in _family_calls(family, dtype, sm)]
    found += [
        Call("attention", "cuda", dtype, sm, head_dim=64, window="causal", bias="none"),
        Call("attention", "cuda", dtype, sm, head_dim=128, window="full", bias="none"),
        Call("decode_attention", "cuda", dtype, sm, head_dim=64, bias="none"),
        Call("decode_attention", "cuda", dtype, sm, head_dim=64, bias="t5"),
        Call("rope", "cuda", dtype, sm, head_dim=64),
        *(Call("mlm_head", "cuda", dtype, sm, hidden=hidden) for hidden in (768, 1024, 512)),
        *(Call("pool", "cuda", dtype, sm, hidden=hidden) for hidden in (768, 384, 1024, 512)),
    ]
    return _in_turns({(call.op, key_of(call)): call for call in found}.values())


def tiny_calls() -> tuple[Call, ...]:
    """One call of each op, of the smallest widths: for a dry run."""
    fp32, half = torch.float32, torch.bfloat16
    product = {"inner": 16, "hidden": 24, "epilogue": "gelu", "gated": True}
    return (
        Call("attention", "cuda", fp32, head_dim=16, window="full", bias="none"),
        Call("attention", "cuda", fp32, head_dim=16, window="sliding", bias="none"),
        Call("decode_attention", "cuda", fp32, head_dim=16, bias="none"),
        Call("linear", "cuda", fp32, **product),
        Call("norm_linear", "cuda", half, norm="layer_norm", **product),
        *(Call(op, "cuda", fp32, hidden=20) for op in ("norm", "rms_norm", "no_norm", "embed", "pool")),
        Call("trigram", "cuda", fp32, hidden=24),
        Call("rope", "cuda", fp32, head_dim=8),
        *(Call(op, "cuda", fp32, hidden=24, inner=16) for op in ("mobilebert_in", "mobilebert_out")),
        Call("mlm_head", "cuda", fp32, hidden=16),
    )


def _family_calls(family: str, dtype: torch.dtype, sm: int | None) -> list[Call]:
    layer = FAMILIES[family]
    fields: dict[str, Any] = {layer.field: max(layer.layers, 2), "vocab_size": 128}
    try:
        with torch.no_grad(), parameters_left_empty():
            model = layer.model_class.without_pooler(layer.model_class.config_class(**fields)).to(dtype)
    except OptionError:
        return []  # a family that cannot compute in this dtype
    model.eval().requires_grad_(False).bind("eager", False)
    ops = [op for op in model.bound_ops() if op.resolution is not None]
    for op in ops:
        assert op.resolution is not None
        # As on a GPU of NVIDIA's; tilings off them are chosen by the same keys.
        op.bind_as(replace(op.resolution.call, device="cuda", sm=sm or 90), backend="auto")
    return [replace(call, sm=sm) for call in calls_of(ops)]


def _in_turns(calls: Iterable[Call]) -> tuple[Call, ...]:
    """The first call of each op, then the second ones: where time ends, every op has had its turn."""
    seen: dict[str, int] = {}
    turns: list[tuple[int, int, Call]] = []
    for call in calls:
        seen[call.op] = seen.get(call.op, 0) + 1
        weight = HEAVY.index(call.op) if call.op in HEAVY else len(HEAVY)
        turns.append((seen[call.op], weight, call))
    return tuple(call for *_, call in sorted(turns, key=lambda turn: turn[:2]))
