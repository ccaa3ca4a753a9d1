"""norm_linear: the eager row against numpy in fp64; who has statistics to hand on, and what is done with them here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from padless.engine.contract import Call
from padless.engine.dispatch import resolve
from padless.engine.memo import Memo
from padless.engine.ops.cpu import linear as cpu
from padless.engine.ops.linear import linear
from padless.engine.ops.norm_linear import norm_linear

TOKENS, HIDDEN, OUT = 7, 12, 10


def operands(dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return {"x": normal(TOKENS, HIDDEN) * 3 + 2, "norm_weight": normal(HIDDEN), "norm_bias": normal(HIDDEN),
            "weight": normal(OUT, HIDDEN), "bias": normal(OUT)}  # fmt: skip


def normalised(norm: str, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, eps: float) -> np.ndarray:
    """The formulas of the papers."""
    if norm == "rms_norm":
        return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + eps) * weight
    centred = x - x.mean(axis=1, keepdims=True)
    out = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + eps) * weight
    return out if bias is None else out + bias


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("eps", [1e-12, 0.5])
def test_it_is_the_product_of_normalised_rows(norm: str, biases: bool, eps: float) -> None:
    given = operands()
    if norm == "rms_norm" or not biases:
        given["norm_bias"] = None
    if not biases:
        given["bias"] = None
    as_numpy: dict[str, Any] = {name: None if value is None else value.numpy() for name, value in given.items()}
    rows = normalised(norm, as_numpy["x"], as_numpy["norm_weight"], as_numpy["norm_bias"], eps)
    expected = rows @ as_numpy["weight"].T + (0 if as_numpy["bias"] is None else as_numpy["bias"])
    np.testing.assert_allclose(norm_linear(**given, norm=norm, eps=eps).numpy(), expected, rtol=1e-12, atol=1e-12)
    active = norm_linear(**given, norm=norm, eps=eps, epilogue="tanh", gated=True).numpy()
    halves = np.tanh(expected[:, : OUT // 2]) * expected[:, OUT // 2 :]
    np.testing.assert_allclose(active, halves, rtol=1e-12, atol=1e-12)


def test_statistics_are_not_believed_here() -> None:
    given = operands()
    wrong = torch.full((TOKENS, 1, 2), torch.nan)
    options: dict[str, Any] = {**given, "norm": "layer_norm", "eps": 1e-5}
    assert torch.equal(norm_linear(**options, statistics=wrong), norm_linear(**options))


def test_rows_come_out_in_the_dtype_they_came_in_where_the_norm_is_wider() -> None:
    given = operands(torch.bfloat16)
    given |= {name: given[name].float() for name in ("norm_weight", "norm_bias")}
    assert norm_linear(**given, norm="layer_norm", eps=1e-5).dtype == torch.bfloat16


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of layer_norm, rms_norm, got 'batch_norm'"):
        norm_linear(**operands(), norm="batch_norm", eps=1e-5)


@pytest.mark.parametrize("row", ["eager", "cpu"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("tokens", [TOKENS, 0])
def test_rows_without_statistics_say_so(row: str, residual: bool, tokens: int) -> None:
    given = operands(torch.float32)
    x, weight, bias = given["x"][:tokens], given["weight"], given["bias"]
    function: Any = linear
    options: dict[str, Any] = {"residual": torch.ones(tokens, OUT) if residual else None}
    if row == "cpu":
        function = cpu.linear
        weight, bias = cpu.prepare(weight, bias, call=Call("linear", "cpu", torch.float32))
    out, statistics = function(x, weight, bias, **options, statistics=True)
    assert statistics is None
    assert torch.equal(out, function(x, weight, bias, **options))


def test_on_a_cpu_norm_and_product_are_ops_of_their_own() -> None:
    found = resolve(Call("norm_linear", "cpu", torch.bfloat16, hidden=OUT, inner=HIDDEN, norm="layer_norm"))
    assert found.impl.name == "eager"


def test_a_memo_hands_on_the_last_rows_alone_and_only_unwritten() -> None:
    memo, rows, others, facts = Memo(), torch.zeros(3), torch.zeros(3), torch.ones(1)
    assert memo.handed(rows) is None
    memo.hand_on(rows, facts)
    assert memo.handed(rows) is facts
    assert memo.handed(rows.view(3)) is None
    memo.hand_on(others, facts)
    assert memo.handed(rows) is None
    others.add_(1)
    assert memo.handed(others) is None
