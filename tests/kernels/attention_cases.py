"""What the tests of the attention kernel share: a case, how it is checked, and which cases every run takes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from lengths import Packed, packed
from operands import laid_out, normal
from torch import Tensor
from two_times_rule import assert_two_times_rule

from padless.engine.ops.attention import varlen_attention as eager
from padless.kernels.attention import varlen_attention
from padless.kernels.launch import Config

__all__ = [
    "CONFIGS",
    "KINDS",
    "SMALL",
    "Case",
    "Kind",
    "attend",
    "check",
    "combinations",
    "mixed",
    "operands_of",
    "options_of",
    "parameters",
]

# Tiles far smaller than any GPU would want, so that short texts already have several of them.
SMALL = Config.of(BLOCK_M=16, BLOCK_N=16)
CONFIGS: tuple[Config | None, ...] = (
    SMALL,
    Config.of(BLOCK_M=16, BLOCK_N=16, TMA=1),
    Config.of(BLOCK_M=32, BLOCK_N=16),
    Config.of(BLOCK_M=16, BLOCK_N=32, TMA=1),
    None,
)

Kind = dict[str, Any]
"""Some fields of a case."""

KINDS: dict[str, Kind] = {
    "full": {},
    "sliding": {"window": (7, 7)},
    "asymmetric": {"window": (3, 18)},
    "left": {"window": (9, -1)},
    "right": {"window": (-1, 5)},
    "causal": {"causal": True},
    "causal sliding": {"window": (12, 6), "causal": True},
}
"""Every way to say which keys a query sees."""


@dataclass(frozen=True)
class Case:
    """One call of the op. `bias`: buckets, largest distance, bidirectional; `layout` as in `operands.laid_out`, or
    "fused" for q, k and v as views of one buffer."""

    lengths: tuple[int, ...]
    lengths_k: tuple[int, ...] | None = None
    head_dim: int = 32
    dtype: torch.dtype = torch.float32
    window: tuple[int, int] = (-1, -1)
    causal: bool = False
    scale: float | None = None
    bias: tuple[int, int, bool] | None = None
    heads: int = 2
    heads_k: int = 2
    magnitude: float = 1.0
    layout: str = "fused"
    config: Config | None = SMALL
    seed: int = 0

    def __str__(self) -> str:
        default = Case(self.lengths)
        facts = {f.name: getattr(self, f.name) for f in fields(self)}
        changed = {name: value for name, value in facts.items() if value != getattr(default, name)}
        named = [f"{name}={_short(value)}" for name, value in changed.items()]
        return " ".join([_short(self.lengths), *named])


def _short(value: Any) -> str:
    if isinstance(value, Config):
        return "x".join(str(size) for _, size in value.blocks)
    if isinstance(value, tuple):
        return "(" + ",".join(map(str, value)) + ")"
    return str(value).removeprefix("torch.")


def operands_of(case: Case) -> Packed:
    """Its queries, keys and values."""
    data = packed(
        case.lengths,
        case.heads,
        case.heads_k,
        case.head_dim,
        case.dtype,
        case.seed,
        case.magnitude,
        lengths_k=case.lengths_k,
        fused=case.layout == "fused",
    )
    if case.layout == "fused":
        return data
    q, k, v = (laid_out(x, case.layout) for x in (data.q, data.k, data.v))
    return replace(data, q=q, k=k, v=v)


def options_of(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """Its named arguments, those apart that say where keys come from."""
    options: dict[str, Any] = {"window": case.window, "causal": case.causal, "softmax_scale": case.scale}
    if case.bias is not None:
        buckets, max_distance, bidirectional = case.bias
        table = normal(buckets, case.heads, seed=case.seed + 1, dtype=case.dtype, magnitude=2.0)
        options |= {
            "position_bias": table.to(dtype),
            "bias_max_distance": max_distance,
            "bias_bidirectional": bidirectional,
        }
    return options


def attend(data: Packed, config: Config | None = SMALL, **options: Any) -> tuple[Tensor, Tensor]:
    """What the kernel gives: the attention and its log-sum-exp."""
    result = varlen_attention(*data.arguments, **data.options, **options, return_lse=True, config=config)
    assert isinstance(result, tuple)
    return result


def check(case: Case, *, few_numbers: bool = False) -> tuple[Tensor, Tensor]:
    """Hold the kernel against eager in fp64 by the 2x rule, and return what it gave.

    `few_numbers`: a log-sum-exp may be a single score, a sum of large terms that happens to be small.
    """
    data, options = operands_of(case), options_of(case, case.dtype)
    output, lse = attend(data, case.config, **options)
    low = eager(*data.arguments, **data.options, **options, return_lse=True)
    precise = data.to(torch.float64)
    exact = eager(*precise.arguments, **data.options, **options_of(case, torch.float64), return_lse=True)
    assert_two_times_rule(output, low[0], exact[0], "attention")
    size = largest_score(case, precise) if few_numbers else 0.0
    assert_two_times_rule(lse, low[1], exact[1], "log-sum-exp", size=size)
    return output, lse


def largest_score(case: Case, data: Packed) -> float:
    """The largest score that vectors of these lengths can have."""
    if not data.q.numel() or not data.k.numel():
        return 0.0
    scale = case.head_dim**-0.5 if case.scale is None else abs(case.scale)
    return scale * data.q.norm(dim=-1).max().item() * data.k.norm(dim=-1).max().item()


def mixed(cases: Iterable[Case], **axes: Sequence[Any]) -> list[Case]:
    """The cases, each with one value of every axis: all values come equally often and meet the cases at random."""
    cases, generator = list(cases), random.Random(0)
    for name, values in axes.items():
        column = list(itertools.islice(itertools.cycle(values), len(cases)))
        generator.shuffle(column)
        cases = [replace(case, **{name: value}) for case, value in zip(cases, column, strict=True)]
    return cases


def combinations(*axes: Sequence[Any], every: int) -> list[Any]:
    """Parameters of a test with several: all combinations, of which every run takes one of `every`, at random."""
    rows = list(itertools.product(*axes))
    chosen = set(random.Random(0).sample(range(len(rows)), -(-len(rows) // every)))
    return [
        pytest.param(*row, id="-".join(map(_short, row)), marks=() if index in chosen else pytest.mark.grid)
        for index, row in enumerate(rows)
    ]


def parameters(cases: Sequence[Case], *, every: int = 1) -> list[Any]:
    """Parameters of a test: one case of `every` for all runs, the others for the full grid alone."""
    return [
        pytest.param(case, id=str(case), marks=() if index % every == 0 else pytest.mark.grid)
        for index, case in enumerate(cases)
    ]
