"""Pointed tests of linear's kernel: small errors that grids of random numbers would let pass."""

from __future__ import annotations

import itertools

import pytest
import torch
from linear_cases import facts, kernel, placed, quarter_turns, small_integers
from operands import DTYPES, laid_out
from torch import Tensor

from padless.engine.errors import InputError
from padless.kernels import linear as kernel_file
from padless.kernels.launch import Config


def tiny(x: Tensor, weight: Tensor, **changes: int) -> Config:
    """The shipped configuration with 16 by 16 tiles, and what else is changed of it."""
    config = kernel_file.default_config(facts(x, weight))
    blocks = tuple(
        (name, changes.get(name, min(size, 16) if name.startswith("BLOCK") else size)) for name, size in config.blocks
    )
    return Config(blocks, config.num_warps, config.num_stages, config.max_registers)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 2), (1, 3), (1, 4), (3, 1), (4, 1), (2, 2), (5, 3), (9, 2)])
def test_each_tile_is_computed_once_and_by_somebody(rows: int, columns: int) -> None:
    # As many tiles as programs, one less, one more; groups of tiles that end early. Each result tells its own place.
    x = torch.arange(1.0, 16 * rows + 1)[:, None] * torch.tensor([1.0, 0.0])
    weight = torch.stack([torch.ones(16 * columns), torch.zeros(16 * columns)], dim=1)
    bias = torch.arange(16.0 * columns) * 1000
    expected = torch.arange(1.0, 16 * rows + 1)[:, None] + bias
    for drop_rows, drop_columns in itertools.product((0, 1, 15), repeat=2):
        part, kept = x[: 16 * rows - drop_rows], 16 * columns - drop_columns
        got = kernel(part, weight[:kept], bias[:kept], config=tiny(x, weight))
        assert torch.equal(got, expected[: len(part), :kept])


@pytest.mark.parametrize("group", [1, 2, 3, 4, 8])
def test_any_order_of_tiles_computes_them_all(group: int) -> None:
    x, weight = (small_integers(*shape, seed=1, dtype=torch.float32) for shape in ((100, 20), (70, 20)))
    if "GROUP_M" not in dict(kernel_file.default_config(facts(x, weight)).blocks):
        pytest.skip("the kernel has no groups")
    got = kernel(x, weight, None, config=tiny(x, weight, GROUP_M=group))
    assert torch.equal(got, x @ weight.T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tile", [(16, 32, 16), (32, 16, 16), (16, 16, 32)], ids=str)
@pytest.mark.parametrize("inputs", [8, 32, 72])
def test_tensor_descriptors_give_what_addresses_do(inputs: int, tile: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Whole numbers, of which both dtypes hold every sum; several tiles in each direction, the last ones cut off."""
    x, weight = (small_integers(rows, inputs, seed=rows, dtype=dtype) for rows in (70, 90))
    rows, columns, features = tile
    blocks = {"BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_K": features, "PARTS": 1}
    expected = (x.double() @ weight.double().T).to(dtype)
    for tma in (0, 1):
        assert torch.equal(kernel(x, weight, None, config=tiny(x, weight, **blocks, TMA=tma)), expected)


@pytest.mark.parametrize("inputs", [1, 15, 16, 17, 33, 48])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_last_inputs_count_and_those_behind_them_do_not(inputs: int, dtype: torch.dtype) -> None:
    x, weight = (small_integers(rows, inputs, seed=rows, dtype=dtype) for rows in (19, 21))
    x[:, -1], weight[:, -1] = 2, 1
    expected = (x.double() @ weight.double().T).to(dtype)
    for layout_x, layout_weight in (("columns", "dense"), ("dense", "columns"), ("aligned columns", "aligned columns")):
        # What lies beside them is NaN.
        got = kernel(placed(x, layout_x), placed(weight, layout_weight), None, config=tiny(x, weight))
        assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_x_residual_and_result_have_row_distances_of_their_own(dtype: torch.dtype) -> None:
    x, weight = small_integers(33, 20, seed=1, dtype=dtype), small_integers(30, 20, seed=2, dtype=dtype)
    residual = small_integers(33, 30, seed=3, dtype=torch.float32)
    expected = (x.double() @ weight.double().T + residual).float()
    for layout_x, layout_weight, layout in itertools.permutations(("dense", "columns", "every second"), 3):
        views = laid_out(x, layout_x), laid_out(weight, layout_weight), laid_out(residual, layout)
        assert len({view.stride(0) for view in views}) == 3
        assert torch.equal(kernel(views[0], views[1], None, residual=views[2]), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_half_is_activated_and_the_second_is_the_gate(dtype: torch.dtype) -> None:
    x = torch.eye(4, dtype=dtype)
    weight = torch.tensor([[-1.0, 2, 3, -4], [5, -6, 7, 8], [3, 2, -1, 1], [-2, 1, 2, 4]], dtype=dtype)
    bias = torch.tensor([1.0, 0, -1, 2], dtype=dtype)
    got = kernel(x, weight, bias, epilogue="relu", gated=True)
    # By hand: relu(first half + bias) times second half + bias.
    assert got.tolist() == [[0, 0], [3, -0.0], [4 * -2, 7 * 4], [0, 8 * 6]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_residual_is_added_behind_activation_and_gate(dtype: torch.dtype) -> None:
    x, weight = torch.tensor([[1.0], [-1.0]], dtype=dtype), torch.tensor([[2.0], [3.0]], dtype=dtype)
    residual = torch.tensor([[-10.0], [-20.0]], dtype=dtype)
    assert kernel(x, weight, None, epilogue="relu", gated=True, residual=residual).tolist() == [[-4], [-20]]
    both = torch.cat([residual, residual], dim=1)
    assert kernel(x, weight, None, epilogue="relu", residual=both).tolist() == [[-8, -7], [-20, -20]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [2, 4, 6, 10, 32, 34])
def test_each_pair_of_each_head_has_its_own_angle(head_dim: int, dtype: torch.dtype) -> None:
    # Heads that begin and end anywhere in a tile; each token, head and channel of a number of its own.
    half, heads, turned = head_dim // 2, 5, 3
    cos, sin = quarter_turns(half, 60)
    rows = torch.tensor([59, 3, 0, 17, 3, 58, 1])
    values = torch.arange(heads * head_dim, dtype=torch.float64) % 101 + 1
    x, weight = torch.tensor([[1.0, 2, -1, 1, 0, -2, 1]]).T.to(dtype), values[:, None].to(dtype)
    product = (x.double() @ weight.double().T).view(7, heads, head_dim)
    expected = product.clone()
    for token, head, pair in itertools.product(range(7), range(turned), range(half)):
        turn = complex(cos[rows[token], pair], sin[rows[token], pair])
        number = complex(product[token, head, pair], product[token, head, pair + half]) * turn
        expected[token, head, pair], expected[token, head, pair + half] = number.real, number.imag
    for config in (None, tiny(x, weight)):
        got = kernel(x, weight, None, rope=(rows, cos, sin), turned=turned * head_dim, config=config)
        assert torch.equal(got.double(), expected.flatten(1))


def test_tables_of_which_each_token_has_another_row() -> None:
    # More tokens than a tile has, in an order that neither counts up nor stays in place.
    x, weight = torch.ones(90, 1), torch.tensor([[1.0], [0.0]])
    rows = torch.arange(90) * 37 % 90
    angles = torch.arange(90.0)[:, None]
    got = kernel(x, weight, None, rope=(rows, angles, -angles), turned=2, config=tiny(x, weight))
    assert torch.equal(got, torch.stack([rows.float(), -rows.float()], dim=1))


def test_values_are_neither_turned_nor_touched_by_what_no_token_turns_by() -> None:
    x, weight = small_integers(20, 9, seed=1, dtype=torch.float32), small_integers(24, 9, seed=2, dtype=torch.float32)
    tables = torch.full((20, 4), torch.nan), torch.full((20, 4), torch.inf)
    got = kernel(x, weight, None, rope=(torch.arange(20), *tables), turned=8)
    assert got[:, :8].isnan().all()
    assert torch.equal(got[:, 8:], (x @ weight.T)[:, 8:])


def test_a_tail_that_is_no_head_is_refused() -> None:
    # Its rows would lie elsewhere than where they are looked for.
    x, weight = small_integers(5, 9, seed=1, dtype=torch.float32), small_integers(13, 9, seed=2, dtype=torch.float32)
    cos, sin = quarter_turns(2, 5)
    with pytest.raises(InputError, match=r"^linear: weight: .*13"):
        kernel(x, weight, None, rope=(torch.arange(5), cos, sin), turned=8)


@pytest.mark.parametrize("gated", [False, True])
def test_weights_that_are_prepared_are_not_changed(gated: bool) -> None:
    weight, bias = small_integers(24, 9, seed=1, dtype=torch.float16), small_integers(24, seed=2, dtype=torch.float16)
    before = weight.clone(), bias.clone()
    x = small_integers(5, 9, seed=3, dtype=torch.float16)
    first = kernel(x, weight, bias, gated=gated)
    assert torch.equal(kernel(x, weight, bias, gated=gated), first)
    assert torch.equal(weight, before[0])
    assert torch.equal(bias, before[1])


def test_a_bias_may_be_a_view() -> None:
    x, weight = small_integers(20, 9, seed=1, dtype=torch.float16), small_integers(34, 9, seed=2, dtype=torch.float16)
    bias = small_integers(34, 3, seed=3, dtype=torch.float16)
    for gated in (False, True):
        expected = kernel(x, weight, bias[:, 1].clone(), gated=gated)
        assert torch.equal(kernel(x, weight, bias[:, 1], gated=gated), expected)
