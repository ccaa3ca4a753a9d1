"""A product of bf16 rows with packed weights, and what follows it, for CPUs with AVX512_BF16.

The weights are laid out once in panels of 64 output channels, four vectors of 16, whose sums six rows of the input take
together:

    panel    [in_features / 2, 4, 16, 2]: for each pair of input channels, that of 64 output channels side by side
    tile     6 x 64 sums in 24 registers; a pair of channels is 4 loads, 6 broadcasts and 24 products of pairs
    finish   activation, gate and residual while the sums are in registers; the result is rounded once

A panel stays in the core's second cache while a block of rows passes it. Of a gated layer a panel holds 32 activated
channels and the 32 that gate them. A row's bits depend on itself alone: its sums are added in the order of the
channels, whatever stands beside it.

FLOPs: `2 * tokens * in_features * out_features`, at most 64 a cycle: 227 GFLOP/s on one Zen 4 core at 3.55 GHz.
Measured at MiniLM's shapes, the best of nine on one core, before rows went in blocks: 215 to 224, oneDNN 193 to 215; on
two at once 1.02 to 1.1 times oneDNN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .activation import ACTIVATIONS
from .code import LANES, Code, Value, Variable
from .compiled import compiled_once
from .host import in_parts

__all__ = ["EPILOGUES", "PANEL", "STEP", "Packed", "multiply", "pack", "product_code"]

ROWS = 6
"""Rows of the input that go together."""

COLUMNS = 4
"""Vectors of output channels that go together: 24 of 32 registers hold sums."""

PANEL = COLUMNS * LANES
"""Output channels of a panel."""

BLOCK_BYTES = 1 << 18
"""Of the rows that all panels pass before the next ones: they stay in the second cache beside a panel."""

WORDS = 4
"""Pairs of input channels that a loop over them takes at a time."""

STEP = 2 * WORDS
"""Input channels are a multiple of it."""

MULTIPLICATIONS_A_NUMBER = 160
"""What takes as long as to read and write a number: how much work another core is worth, see `in_parts`."""

_PARAMETERS: dict[str, str] = {
    **dict.fromkeys(("x", "weight", "bias", "residual", "out"), "pointer"),
    **dict.fromkeys(("x_row", "residual_row", "out_row"), "integer"),
    **dict.fromkeys(("first_panel", "end_panel", "first_row", "end_row"), "integer"),
}


def _none(_: Code, x: Value, *, exact: bool) -> Value:
    return x


def _relu(code: Code, x: Value, *, exact: bool) -> Value:
    return code.most(x, 0.0)


EPILOGUES: dict[str, Callable[..., Value]] = {"none": _none, "relu": _relu, **ACTIVATIONS}
"""By the names of `engine/ops/linear.py`."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight in panels, and its bias.

    Attributes:
        panels: bf16 `[out_features / 64, in_features / 2, 4, 16, 2]`, contiguous.
        bias: fp32 `[out_features]` in the order of the panels, or None.
        gated: whether half of each panel gates the other.
    """

    panels: Tensor
    bias: Tensor | None
    gated: bool

    @property
    def in_features(self) -> int:
        """Channels of a row that enters."""
        return 2 * self.panels.shape[1]

    @property
    def out_features(self) -> int:
        """Channels of the product; gated, twice those of the result."""
        return PANEL * self.panels.shape[0]


def pack(weight: Tensor, bias: Tensor | None, *, gated: bool) -> Packed:
    """A copy of the weight and its bias as kernels here take them.

    Args:
        weight: bf16 `[out_features, in_features]`, multiples of 64 and of 8.
        bias: bf16 `[out_features]`, or None.
        gated: the first half of the outputs is to be activated and multiplied by the second.
    """
    outputs, inputs = weight.shape
    rows = _in_panels(weight, gated)
    panels = rows.view(outputs // PANEL, COLUMNS, LANES, inputs // 2, 2).permute(0, 3, 1, 2, 4)
    return Packed(panels.contiguous(), None if bias is None else _in_panels(bias, gated).to(torch.float32), gated)


def multiply(
    x: Tensor,
    weight: Packed,
    *,
    epilogue: str = "none",
    residual: Tensor | None = None,
    wide: bool = False,
) -> Tensor:
    """`residual + activation(x @ weight^T + bias)`; of a gated weight the activation's half times the other.

    Args:
        x: bf16 `[tokens, in_features]`.
        weight: from `pack`.
        epilogue: a key of `EPILOGUES`.
        residual: bf16 `[tokens, channels of the result]`, or None.
        wide: the result is fp32, otherwise bf16.

    Returns:
        `[tokens, out_features]`, or half as many channels where gated.

    Raises:
        ValueError: x or residual is not as described; what is behind it would be read.
    """
    tokens, inputs = len(x), weight.in_features
    features = weight.out_features // (2 if weight.gated else 1)
    _check("x", x, (tokens, inputs))
    if residual is not None:
        _check("residual", residual, (tokens, features))
    x = x if x.stride(1) == 1 else x.contiguous()
    out = x.new_empty(tokens, features, dtype=torch.float32 if wide else torch.bfloat16)
    if residual is not None and residual.stride(1) != 1:
        residual = residual.contiguous()
    run = _kernel(inputs, epilogue, weight.gated, weight.bias is not None, residual is not None, wide)
    # Few rows are parted by their output channels, many by themselves.
    panels, by_panels = len(weight.panels), tokens < ROWS * 2 * torch.get_num_threads()

    def part(first: int, end: int) -> None:
        run(
            *(0 if one is None else one.data_ptr() for one in (x, weight.panels, weight.bias, residual, out)),
            *(2 * x.stride(0), 0 if residual is None else 2 * residual.stride(0), out.stride(0) * out.element_size()),
            *((first, end, 0, tokens) if by_panels else (0, panels, first, end)),
        )

    work = tokens * inputs * weight.out_features // MULTIPLICATIONS_A_NUMBER
    in_parts(panels if by_panels else tokens, work, part)
    return out


def product_code(
    in_features: int, epilogue: str, *, gated: bool, biased: bool, added: bool, wide: bool = False
) -> Code:
    """The kernel: some rows with some panels. Row strides are in bytes.

    Args:
        in_features: channels of a row, a multiple of `STEP`.
        epilogue: a key of `EPILOGUES`.
        gated: half of each panel gates the other.
        biased: sums begin with a bias instead of 0.
        added: a residual is added last.
        wide: the result is fp32, otherwise bf16.
    """
    code = Code("product", _PARAMETERS)
    pair = 4 * PANEL
    parts = COLUMNS // (2 if gated else 1)
    activation = EPILOGUES[epilogue]
    block = max(1, BLOCK_BYTES // (2 * in_features * ROWS)) * ROWS
    with (
        code.range(code.first_row, code.end_row, block) as begin,
        code.range(code.first_panel, code.end_panel) as panel,
        code.range(begin, code.least(begin + block, code.end_row), ROWS) as first,
    ):
        # Behind the last row it is computed again: the same bits go to the same place.
        rows = [code.least(first + row, code.end_row - 1) for row in range(ROWS)]
        inputs = [code.x + row * code.x_row for row in rows]
        weights = code.weight + panel * (pair * in_features // 2)
        sums = [[Variable(code, _first(code, panel, column, biased)) for column in range(COLUMNS)] for _ in rows]
        with code.range(0, in_features // 2, WORDS) as pairs:
            for word in range(WORDS):
                place = weights + (pairs + word) * pair
                columns = [code.load_pairs(place + column * 4 * LANES) for column in range(COLUMNS)]
                for row, totals in zip(inputs, sums, strict=True):
                    numbers = code.load_pair(row + (pairs + word) * 4)
                    for total, column in zip(totals, columns, strict=True):
                        total.set(code.dot(total.get(), numbers, column))
        for row, totals in zip(rows, sums, strict=True):
            for part in range(parts):
                channel = panel * (parts * LANES) + part * LANES
                value = activation(code, totals[part].get(), exact=wide)
                if gated:
                    value = value * totals[parts + part].get()
                if added:
                    value = value + code.load_bf16(code.residual + row * code.residual_row + channel * 2)
                (code.store if wide else code.store_bf16)(
                    value, code.out + row * code.out_row + channel * (4 if wide else 2)
                )
    return code


@compiled_once
def _kernel(in_features: int, epilogue: str, gated: bool, biased: bool, added: bool, wide: bool) -> Code:
    return product_code(in_features, epilogue, gated=gated, biased=biased, added=added, wide=wide)


def _check(name: str, tensor: Tensor, shape: tuple[int, int]) -> None:
    if tensor.shape != shape or tensor.dtype != torch.bfloat16:
        raise ValueError(f"{name}: expected bfloat16 {list(shape)}, got {tensor.dtype} {list(tensor.shape)}")


def _first(code: Code, panel: Value, column: int, biased: bool) -> Value:
    if not biased:
        return code.floats(0.0)
    return code.load(code.bias + (panel * PANEL + column * LANES) * 4)


def _in_panels(rows: Tensor, gated: bool) -> Tensor:
    """Output channels in the order of the panels: of a gated layer 32 of either half in turns."""
    if not gated:
        return rows.contiguous()
    return rows.unflatten(0, (2, -1, PANEL // 2)).transpose(0, 1).flatten(0, 2)
