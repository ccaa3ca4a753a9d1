"""The ceiling that matrix products set: how fast this CPU runs a model's GEMMs and nothing else.

Weights are packed once by oneDNN, as the tuned CPU rows pack them; that is the fastest GEMM torch offers on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .timing import spread, time_call

__all__ = ["GemmCeiling", "Product", "gemm_ceiling"]


@dataclass(frozen=True)
class Product:
    """One kind of linear layer: `[tokens, inputs]` to `[tokens, outputs]`.

    Attributes:
        name: what it does, and its sizes.
        inputs: channels.
        outputs: channels.
        count: how often the model has it.
    """

    name: str
    inputs: int
    outputs: int
    count: int

    @property
    def flops(self) -> int:
        """Of one token through all of them."""
        return 2 * self.inputs * self.outputs * self.count


@dataclass(frozen=True)
class GemmCeiling:
    """How fast a model would be if it were only its linear layers.

    Attributes:
        dtype: "float32" or "bfloat16".
        tokens: rows of each product.
        teraflops: TFLOP/s by product, and "all" for all of them together; 2 FLOP a multiply-add.
        tokens_per_second: `tokens` through the model, GEMMs alone.
    """

    dtype: str
    tokens: int
    teraflops: dict[str, float]
    tokens_per_second: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def gemm_ceiling(
    dtype: torch.dtype, products: Sequence[Product], *, tokens: int = 4096, repeats: int = 7
) -> GemmCeiling:
    """Time each of a model's products at `tokens` rows.

    Args:
        dtype: torch.float32 or torch.bfloat16.
        products: those of the model.
        tokens: rows of each product.
        repeats: timed calls of each product; the median counts.
    """
    generator = torch.Generator().manual_seed(0)
    seconds: dict[str, float] = {}
    with torch.inference_mode():
        for shape in products:
            x = torch.randn(tokens, shape.inputs, generator=generator).to(dtype)
            weight = torch.randn(shape.outputs, shape.inputs, generator=generator).to(dtype)
            bias = torch.randn(shape.outputs, generator=generator).to(dtype)
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, tokens)

            def product(x=x, packed=packed, bias=bias) -> torch.Tensor:
                return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")

            for _ in range(2):
                product()
            seconds[shape.name] = spread([time_call(product) for _ in range(repeats)]).median
    whole = sum(seconds[shape.name] * shape.count for shape in products)
    teraflops = {
        shape.name: 2.0 * tokens * shape.inputs * shape.outputs / seconds[shape.name] / 1e12 for shape in products
    }
    teraflops["all"] = tokens * sum(shape.flops for shape in products) / whole / 1e12
    return GemmCeiling(str(dtype).removeprefix("torch."), tokens, teraflops, tokens / whole)
