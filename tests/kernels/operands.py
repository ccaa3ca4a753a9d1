"""What the tests of the smaller kernels share: operands by seed, layouts in memory, samples of cases."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

from padless.kernels.launch import Config

__all__ = [
    "DTYPES", "LAYOUTS", "alike", "distinct", "grid", "in_turn", "laid_out", "normal", "properties", "sampled",
    "sparse", "spread",
]  # fmt: skip

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("dense", "columns", "every second", "transposed")

T = TypeVar("T")


def normal(*shape: int, seed: int, dtype: torch.dtype, magnitude: float = 1.0) -> Tensor:
    """Normal values of this standard deviation; drawn in fp64, so that one seed is the same operand in every dtype."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (values * magnitude).to(dtype)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The values of `x` as a view of a larger buffer of NaN, whose first and last dimension lie as `layout` says.

    Args:
        x: at least two dimensions.
        layout: "columns": beside other columns, and not aligned; "every second": every other row of the buffer;
            "transposed": the last dimension has the largest stride.
    """
    if layout == "dense":
        return x.contiguous()
    if layout == "transposed":
        return x.movedim(-1, 0).contiguous().movedim(0, -1)
    rows, width = x.shape[0], x.shape[-1]
    if layout == "columns":
        view = x.new_full((*x.shape[:-1], width + 7), torch.nan)[..., 3 : 3 + width]
    else:
        view = x.new_full((2 * rows, *x.shape[1:]), torch.nan)[::2]
    return view.copy_(x)


def sparse(folder: Path, elements: int, dtype: torch.dtype) -> Tensor:
    """Zeros mapped from a file of holes: only the pages that are written take memory, whatever `elements` is."""
    file = folder / "sparse"
    mapped = torch.from_file(str(file), shared=True, size=elements, dtype=dtype)
    file.unlink()
    return mapped


def alike(got: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are equal in dtype, shape and every value, a NaN being equal to a NaN."""
    same_kind = got.dtype == expected.dtype and got.shape == expected.shape
    return same_kind and bool(((got == expected) | (got.isnan() & expected.isnan())).all())


def sampled(case: Callable[..., T], count: int, *, seed: int, **axes: Sequence[Any]) -> list[T]:
    """`count` cases in which each value of an axis comes equally often, and those of different axes meet at random.

    Args:
        case: called with one value an axis, by name.
        count: how many.
        seed: of the meeting.
        axes: the values.
    """
    generator = random.Random(seed)
    columns: dict[str, list[Any]] = {}
    for name, values in axes.items():
        column = list(itertools.islice(itertools.cycle(values), count))
        generator.shuffle(column)
        columns[name] = column
    return [case(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def grid(cases: Sequence[Any], *, unmarked: int = 40) -> list[Any]:
    """Parameters of a test: the first `unmarked` cases for every run, the others for the full grids alone."""
    return [
        pytest.param(case, id=_name(case), marks=() if index < unmarked else pytest.mark.grid)
        for index, case in enumerate(cases)
    ]


def spread(every: int, *axes: Iterable[Any]) -> list[Any]:
    """All combinations of the axes, of which each run takes one in `every`, and the full grids the others."""
    return [
        pytest.param(*values, marks=() if index % every == 0 else pytest.mark.grid)
        for index, values in enumerate(itertools.product(*axes))
    ]


def in_turn(rows: Iterable[Any], *others: Sequence[Any]) -> list[Any]:
    """All combinations. Each run takes each of the rows once, with the next combination of the others; the full grids
    take the rest. A row may be several values.
    """
    combinations = list(itertools.product(*others))
    return [
        pytest.param(
            *(row if isinstance(row, tuple) else (row,)),
            *values,
            marks=() if place == index % len(combinations) else pytest.mark.grid,
        )
        for index, row in enumerate(rows)
        for place, values in enumerate(combinations)
    ]


def distinct(candidates: Sequence[Config]) -> list[Config]:
    """One candidate of each tiling: warps and stages are nothing to an interpreter."""
    return list({config.blocks: config for config in candidates}.values())


def properties(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Hypothesis' settings: the same examples in every run, none remembered, no limit on an interpreter's time."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    return settings(max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=slow)


def _name(case: Any) -> str:
    return case if isinstance(case, str) else "-".join(f"{name}={_value(value)}" for name, value in vars(case).items())


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value[:6])) + ("" if len(value) <= 6 else f"..{len(value)}")
    return str(value).removeprefix("torch.").replace(" ", "_")
