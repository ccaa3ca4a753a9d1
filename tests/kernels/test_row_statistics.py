"""Statistics of rows, as `linear` leaves them and as a kernel of their own finds them, and merged, against fp64."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st
from linear_cases import RESIDUALS, Case, facts
from linear_cases import operands as linear_operands
from norm_linear_cases import HALVES, handed_on, tiles_of
from operands import DTYPES, LAYOUTS, grid, laid_out, normal, properties, sampled, sparse
from torch import Tensor

from padless.engine.contract import Call
from padless.engine.errors import InputError
from padless.kernels import linear as product
from padless.kernels.linear import linear
from padless.kernels.operators import RUN
from padless.kernels.row_statistics import merged_statistics, row_statistics, run_of

EPS = torch.finfo(torch.float32).eps
WIDTHS = (1, 2, 3, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 191, 257, 320)
TOKENS = (1, 2, 15, 16, 17, 33, 64, 129)


def expected(rows: Tensor, run: int) -> Tensor:
    """fp64 `[tokens, runs, 2]`: mean and M2 of each run of columns."""
    parts = rows.double().split(run, dim=1)
    means = [part.mean(dim=1) for part in parts]
    squares = [(part - mean[:, None]).square().sum(dim=1) for part, mean in zip(parts, means, strict=True)]
    return torch.stack([torch.stack(means, dim=1), torch.stack(squares, dim=1)], dim=2)


def assert_statistics(found: Tensor, rows: Tensor, run: int) -> None:
    """Each number right to a few places of fp32, of the largest number of its run."""
    exact = expected(rows, run)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert found.shape == exact.shape
    parts = rows.double().abs().split(run, dim=1)
    largest = torch.stack([part.amax(dim=1) for part in parts], dim=1)
    widths = torch.tensor([part.shape[1] for part in parts])
    mean_error = 8 * EPS * largest
    assert ((found[..., 0] - exact[..., 0]).abs() <= mean_error).all()
    # What is missing from the mean is in each deviation from it, squared; and M2 is a sum of its own.
    allowed = 8 * EPS * exact[..., 1] + widths * mean_error.square() + 4 * EPS * mean_error * widths
    assert ((found[..., 1] - exact[..., 1]).abs() <= allowed).all()


CASES = sampled(
    Case, 120, seed=4, dtype=DTYPES, tokens=TOKENS, inputs=(1, 7, 16, 40), outputs=WIDTHS, bias=(True, False),
    epilogue=("none", "none", "gelu", "sigmoid", "relu2"), gated=(False,), wide=(False, False, True),
    residual=RESIDUALS, residual_layout=LAYOUTS, x=LAYOUTS, weight=LAYOUTS, magnitude=(1e-4, 1.0, 300.0),
)  # fmt: skip


@pytest.mark.parametrize("case", grid(CASES, unmarked=30))
def test_linear_leaves_the_statistics_of_what_it_wrote(case: Case) -> None:
    tensors, options = linear_operands(case)
    for run, config in ((RUN, None), *((16, tiles_of(16, 16 * parts, parts=parts, group=2)) for parts in (1, 2, 4))):
        plain = linear(*tensors, **options, config=config)
        assert isinstance(plain, Tensor)
        out, statistics = linear(*tensors, **options, statistics=True, config=config)
        assert torch.equal(out, plain)
        assert_statistics(statistics, out, run)


def test_statistics_of_many_parts_beyond_the_end() -> None:
    x, weight = normal(40, 20, seed=1, dtype=torch.float16), normal(70, 20, seed=2, dtype=torch.float16)
    for columns, parts in ((128, 4), (256, 4), (64, 4), (128, 1)):
        out, statistics = linear(x, weight, None, statistics=True, config=tiles_of(16, columns, parts=parts))
        assert_statistics(statistics, out, columns // parts)


@pytest.mark.parametrize(("tokens", "outputs"), [(0, 100), (3, 0), (0, 0)])
def test_statistics_of_nothing(tokens: int, outputs: int) -> None:
    x, weight = torch.zeros(tokens, 5), torch.zeros(outputs, 5)
    out, statistics = linear(x, weight, None, statistics=True)
    assert out.shape == (tokens, outputs)
    assert statistics.shape == (tokens, -(-outputs // RUN), 2)


def test_each_shipped_tiling_has_runs_of_the_same_width() -> None:
    # The operator tells torch.compile their number without knowing the GPU.
    devices = (None, 80, 86, 89, 90, 100, 120)
    widths, inner, aligned = (1, 40, 128, 384, 512, 768, 1000, 1024, 4096), (8, 768, 1000, 1001), (False, True)
    for sm, dtype, hidden, within, known in itertools.product(devices, DTYPES, widths, inner, aligned):
        for residual, epilogue in ((True, "none"), (False, "gelu")):
            call = Call(
                "linear", "cuda", dtype, sm=sm, hidden=hidden, inner=within, residual=residual, epilogue=epilogue
            )
            config = product.default_config(call, aligned=known)
            assert config["BLOCK_N"] // config["PARTS"] == RUN


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_of_whole_rows(layout: str, dtype: torch.dtype) -> None:
    for width, tokens in ((1, 3), (2, 17), (33, 40), (64, 1), (100, 129), (768, 9), (1025, 5), (8192, 2)):
        rows = laid_out(normal(tokens, width, seed=width, dtype=dtype, magnitude=30.0), layout)
        dense = rows if rows.stride(-1) == 1 else rows.contiguous()
        assert_statistics(row_statistics(dense), rows, width)


def test_rows_beyond_two_to_the_31_elements(tmp_path: Path) -> None:
    rows = normal(19, 24, seed=1, dtype=torch.float16)
    far = sparse(tmp_path, 18 * 2**28 + 24, rows.dtype).as_strided((19, 24), (2**28, 1)).copy_(rows)
    assert torch.equal(row_statistics(far), row_statistics(rows))


@triton.jit
def _merged_kernel(
    statistics_ptr, mean_ptr, scale_ptr, rows, eps, WIDTH: tl.constexpr, RUNS: tl.constexpr, OF: tl.constexpr,
    CENTRED: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < rows
    both = merged_statistics(statistics_ptr, offs_m, mask_m, eps, WIDTH, RUNS, OF, CENTRED, BLOCK_M)
    tl.store(mean_ptr + offs_m, both[0], mask=mask_m)
    tl.store(scale_ptr + offs_m, both[1], mask=mask_m)


def merged(statistics: Tensor, width: int, run: int, *, centred: bool, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    rows, runs, _ = statistics.shape
    mean, scale = torch.empty(rows), torch.empty(rows)
    kernel: Any = _merged_kernel
    kernel[(-(-rows // 4),)](statistics, mean, scale, rows, eps, width, runs, run, centred, 4)
    return mean, scale


MERGED = [
    (width, run)
    for width in (1, 2, 3, 5, 16, 17, 31, 33, 64, 65, 100, 129, 256, 257, 513, 768, 1000)
    for run in (1, 2, 16, 64, 128, 1024)
    if -(-width // run) <= 80
]


@pytest.mark.parametrize(("width", "run"), MERGED)
def test_merged_statistics_are_those_of_the_row(width: int, run: int) -> None:
    for offset in (0.0, 3.0, -1000.0):
        rows = (normal(7, width, seed=width, dtype=torch.float64) + offset).float()
        statistics = expected(rows, run).float()
        assert run_of(width, statistics.shape[1]) == run or statistics.shape[1] == 1
        wide = rows.double()
        mean, scale = merged(statistics, width, run, centred=True)
        exact = (wide.var(dim=1, correction=0) + 1e-6).rsqrt()
        assert ((mean - wide.mean(dim=1)).abs() <= 4 * EPS * wide.abs().amax(dim=1)).all()
        # Means that were rounded to fp32 are all that is wrong: in units of the variance.
        lost = (EPS * offset) ** 2 * exact.square() + 2 * EPS * abs(offset) * exact * (width > run)
        assert ((scale / exact - 1).abs() <= 8 * EPS + lost).all()
        _, scale = merged(statistics, width, run, centred=False)
        assert ((scale * (wide.square().mean(dim=1) + 1e-6).sqrt() - 1).abs() <= 8 * EPS).all()


def test_the_width_of_a_run_follows_from_their_number() -> None:
    for width in (*range(1, 700), 768, 1000, 1023, 1024, 1025, 4095, 4096, 8191, 8192):
        for run in (1 << exponent for exponent in range(14)):
            runs = -(-width // run)
            found = run_of(width, runs)
            assert found == run or (runs == 1 and found >= width)


@properties(60)
@given(
    st.integers(1, 40), st.integers(1, 300), st.sampled_from(HALVES), st.sampled_from((1e-4, 1.0, 300.0)),
    st.sampled_from((0.0, 1.0, -50.0)), st.integers(0, 2**20),
)  # fmt: skip
def test_any_rows_give_the_same_statistics_in_any_company(
    tokens: int, width: int, dtype: torch.dtype, magnitude: float, offset: float, seed: int
) -> None:
    rows = ((normal(tokens, width, seed=seed, dtype=torch.float64) + offset) * magnitude).to(dtype)
    chosen = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))[: (tokens + 1) // 2]
    whole = row_statistics(rows)
    assert_statistics(whole, rows, width)
    assert torch.equal(row_statistics(rows[chosen]), whole[chosen])
    for kind, run in (("handed on", RUN), ("short runs", 16)):
        found, alone = handed_on(rows, kind), handed_on(rows[chosen], kind)
        assert found is not None
        assert alone is not None
        assert_statistics(found, rows, run)
        assert torch.equal(alone, found[chosen])


def test_squares_are_of_deviations_and_not_of_values() -> None:
    # E[t²] - E[t]² would have no digit left.
    rows = torch.tensor([[2048.0, 2050.0] * 50, [2050.0, 2048.0] * 50], dtype=torch.float16)
    assert torch.equal(row_statistics(rows), torch.tensor([[[2049.0, 100.0]]] * 2))
    found = handed_on(rows, "handed on")
    assert found is not None
    assert torch.equal(found, torch.tensor([[[2049.0, 64.0], [2049.0, 36.0]]] * 2))
    for statistics, run in ((row_statistics(rows), 128), (found, RUN)):
        mean, scale = merged(statistics, 100, run, centred=True, eps=0.0)
        assert torch.equal(mean, torch.full((2,), 2049.0))
        assert torch.equal(scale, torch.ones(2))


@pytest.mark.parametrize(
    "options", [{"gated": True}, {"rope": (torch.arange(6), torch.ones(6, 2), torch.zeros(6, 2)), "turned": 8}], ids=str
)
def test_statistics_of_a_gate_or_of_turned_heads_are_refused(options: dict[str, Any]) -> None:
    x, weight = torch.zeros(6, 8), torch.zeros(12, 8)
    with pytest.raises(InputError, match=r"^linear: statistics: expected no gate and no rope beside them, got one$"):
        linear(x, weight, None, statistics=True, **options)
    call = facts(x, weight, **options)
    assert product.unsupported(call) == []
    asked = Call(**{**vars(call), "statistics": True})
    assert product.unsupported(asked) == ["needs statistics without gate and rope, got both"]
    assert product.unsupported(Call(**{**vars(facts(x, weight)), "statistics": True})) == []
