"""The attention kernel in half precision against a tight bound, beside the 2x rule.

Eager rounds its scores to the dtype, so at large magnitudes the 2x rule would forgive a kernel that does the same, or
worse. This bound is that of the best there is with tensor cores: scores in fp32 from the half-precision inputs, weights
rounded to the dtype once, sums in fp32, one rounding of the output.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from attention_cases import SMALL, attend
from lengths import Packed, packed
from torch import Tensor

from padless.engine.ops.attention import _visible
from padless.engine.ops.attention import varlen_attention as eager
from padless.engine.relative_position import relative_position_bucket
from padless.kernels.launch import Config

LENGTHS = (17, 1, 40)
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "window": {"window": (5, 9)},
    "causal": {"causal": True},
    "bias": {"bias": True},
}


def careful(data: Packed, bias: Tensor | None = None, **options: Any) -> Tensor:
    """fp32 `[tokens, heads, head_dim]`, not yet rounded: what a careful kernel computes."""
    window, causal = options.get("window", (-1, -1)), options.get("causal", False)
    parts, group = [], data.q.shape[1] // data.k.shape[1]
    for q, k, v in zip(*(x.split(data.lengths) for x in (data.q, data.k, data.v)), strict=True):
        keys, values = (x.repeat_interleave(group, dim=1).transpose(0, 1).float() for x in (k, v))
        scores = q.transpose(0, 1).float() @ keys.transpose(1, 2) * data.q.shape[2] ** -0.5
        distance = torch.arange(len(k)) - torch.arange(len(q))[:, None]
        if bias is not None:
            scores = scores + bias[relative_position_bucket(distance, 32, 128, True)].permute(2, 0, 1).float()
        scores = scores.masked_fill(~_visible(distance, window, causal), -math.inf)
        weights = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
        mixed = weights.to(data.q.dtype).float() @ values
        parts.append((mixed / weights.sum(dim=-1, keepdim=True)).transpose(0, 1))
    return torch.cat(parts)


def of_tight_bound(out: Tensor, data: Packed, bias: Tensor | None = None, **options: Any) -> float:
    """The error as a share of what is allowed: four times the careful one's and one rounding of the output."""
    wide = data.to(torch.float64)
    if bias is not None:
        exact = eager(*wide.arguments, **options, position_bias=bias.double())
    else:
        exact = eager(*wide.arguments, **options)
    assert isinstance(exact, Tensor)
    error = (out.double() - exact).abs().max().item()
    own = (careful(data, bias, **options).double() - exact).abs().max().item()
    rounding = torch.finfo(out.dtype).eps / 2 * exact.abs().max().item()
    return error / (4 * own + rounding)


def operands(kind: str, dtype: torch.dtype, magnitude: float) -> tuple[Packed, Tensor | None, dict[str, Any]]:
    data = packed(LENGTHS, 2, 1, 32, dtype, seed=3, magnitude=magnitude, fused=True)
    options = dict(KINDS[kind])
    generator = torch.Generator().manual_seed(4)
    bias = (torch.randn(32, 2, generator=generator) * magnitude).to(dtype) if options.pop("bias", False) else None
    return data, bias, options


CASES = list(itertools.product(KINDS, (torch.bfloat16, torch.float16), (1.0, 10.0, 100.0)))


@pytest.mark.parametrize(("kind", "dtype", "magnitude"), CASES)
def test_half_precision_rounds_nothing_but_weights_and_output(kind: str, dtype: torch.dtype, magnitude: float) -> None:
    # q and k are both `magnitude` times as large: scores grow with its square.
    data, bias, options = operands(kind, dtype, magnitude)
    config = SMALL if magnitude < 100 else Config.of(BLOCK_M=32, BLOCK_N=16)
    out, _ = attend(data, config, **options, position_bias=bias)
    assert of_tight_bound(out, data, bias, **options) <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("magnitude", [10.0])
def test_scores_rounded_to_the_dtype_break_the_bound(dtype: torch.dtype, magnitude: float) -> None:
    data, _, _ = operands("full", dtype, magnitude)
    out = eager(*data.arguments)
    assert isinstance(out, Tensor)
    assert of_tight_bound(out, data) > 1
