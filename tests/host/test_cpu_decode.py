"""The CPU row of decode attention against the eager op in fp64, by the 2x rule, on caches as models have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from padless.engine.contract import Call
from padless.engine.dispatch import resolve
from padless.engine.ops.cpu.decode import decode_attention, unsupported
from padless.engine.ops.decode import decode_attention as eager

SLOTS = "slots of 24"
PACKED = "packed"
SHARED = "texts that several read"


def case(
    kind: str, lengths: Sequence[int], dtype: torch.dtype, heads: int = 4, heads_k: int = 2
) -> tuple[tuple[Any, ...], Tensor]:
    """Arguments, and a T5 table; whatever no sequence may read is NaN."""
    draw = torch.Generator().manual_seed(sum(lengths) + len(kind))
    if kind == SLOTS:
        starts = [24 * place for place in range(len(lengths))]
    elif kind == PACKED:
        starts = [3 + sum(lengths[:place]) + place for place in range(len(lengths))]
    else:
        starts = [7 for _ in lengths]
    rows = max((start + length for start, length in zip(starts, lengths, strict=True)), default=0) + 24
    k, v = (torch.full((rows, heads_k, 16), float("nan"), dtype=torch.float64) for _ in range(2))
    for start, length in zip(starts, lengths, strict=True):
        for x in (k, v):
            x[start : start + length] = torch.randn(length, heads_k, 16, generator=draw, dtype=torch.float64)
    q = torch.randn(len(lengths), heads, 16, generator=draw, dtype=torch.float64)
    numbers = (torch.tensor(starts), torch.tensor(lengths, dtype=torch.int32), max(lengths, default=0))
    table = torch.randn(8, heads, generator=draw, dtype=torch.float64)
    return (*(x.to(dtype) for x in (q, k, v)), *numbers), table.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("kind", "lengths"),
    [
        (SLOTS, (9, 9, 9)),
        (SLOTS, (9, 24, 1, 0)),
        (SLOTS, (0, 0)),
        (SLOTS, (24,)),
        (PACKED, (5, 1, 130, 0, 5)),
        (PACKED, (6, 6)),
        (SHARED, (11, 11, 11, 4)),
    ],
)
def test_as_the_eager_op(kind: str, lengths: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    arguments, table = case(kind, lengths, dtype)
    options: dict[str, Any] = {"position_bias": table, "bias_max_distance": 20} if bias else {}
    found = decode_attention(*arguments, **options)
    wide: list[Any] = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments]
    exact = eager(*wide, **({**options, "position_bias": table.double()} if bias else {}))
    same = eager(*arguments, **options)
    assert isinstance(exact, Tensor)
    assert isinstance(same, Tensor)
    assert found.dtype == dtype
    bound = 2 * (same.double() - exact).abs().max() + torch.finfo(dtype).eps * exact.abs().max()
    assert (found.double() - exact).abs().max() <= bound


def test_a_query_may_stand_elsewhere_than_beside_the_last_key() -> None:
    arguments, table = case(SLOTS, (9, 9, 9), torch.float32)
    places = torch.tensor([3, 8, 0], dtype=torch.int32)
    options: dict[str, Any] = {"position_bias": table, "query_positions": places, "bias_bidirectional": True}
    found, expected = decode_attention(*arguments, **options), eager(*arguments, **options)
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_it_serves_on_a_cpu_and_leaves_the_rest_to_eager() -> None:
    call = Call("decode_attention", "cpu", torch.float32, head_dim=16, bias="none")
    assert resolve(call).impl.name == "cpu"
    assert resolve(Call("decode_attention", "cpu", torch.float64, head_dim=16, bias="none")).impl.name == "eager"
    assert unsupported(Call("decode_attention", "cpu", torch.float16)) == [
        "needs dtype float32 or bfloat16, got float16"
    ]
