"""The ceiling that matrix products set: how fast this CPU runs a model's GEMMs and nothing else.

Weights are packed once by oneDNN, as the tuned CPU rows pack them; that is the fastest GEMM torch offers on a CPU.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from .timing import spread, time_call

__all__ = ["GemmCeiling", "gemm_ceiling"]


@dataclass(frozen=True)
class GemmCeiling:
    """How fast a stack of encoder layers would be if it were only its four matrix products.

    Attributes:
        dtype: "float32" or "bfloat16".
        tokens: rows of each product.
        teraflops: TFLOP/s by product, and "all" for one layer's four together; 2 FLOP a multiply-add.
        tokens_per_second: `tokens` through all layers, GEMMs alone.
    """

    dtype: str
    tokens: int
    teraflops: dict[str, float]
    tokens_per_second: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def gemm_ceiling(
    dtype: torch.dtype, *, hidden: int, intermediate: int, layers: int, tokens: int = 4096, repeats: int = 15
) -> GemmCeiling:
    """Time the products of one layer at `tokens` rows: fused QKV, attention output, feed-forward up and down.

    Args:
        dtype: torch.float32 or torch.bfloat16.
        hidden: width of the residual stream.
        intermediate: width between the two feed-forward products.
        layers: layers of the model.
        tokens: rows of each product.
        repeats: timed calls of each product; the median counts.
    """
    shapes = {
        "qkv": (hidden, 3 * hidden),
        "out": (hidden, hidden),
        "up": (hidden, intermediate),
        "down": (intermediate, hidden),
    }
    generator = torch.Generator().manual_seed(0)
    seconds: dict[str, float] = {}
    with torch.inference_mode():
        for name, (inputs, outputs) in shapes.items():
            x = torch.randn(tokens, inputs, generator=generator).to(dtype)
            weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
            bias = torch.randn(outputs, generator=generator).to(dtype)
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, tokens)

            def product(x=x, packed=packed, bias=bias) -> torch.Tensor:
                return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")

            for _ in range(3):
                product()
            seconds[name] = spread([time_call(product) for _ in range(repeats)]).median
    flops = {name: 2.0 * tokens * inputs * outputs for name, (inputs, outputs) in shapes.items()}
    layer_seconds = sum(seconds.values())
    teraflops = {name: flops[name] / seconds[name] / 1e12 for name in shapes}
    teraflops["all"] = sum(flops.values()) / layer_seconds / 1e12
    return GemmCeiling(str(dtype).removeprefix("torch."), tokens, teraflops, tokens / (layer_seconds * layers))
