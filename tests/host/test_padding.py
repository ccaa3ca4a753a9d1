"""Between padded tensors and packed ones: masks of every kind, either side, holes, and the way back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from padless import InputError
from padless.engine.models.padding import Layout, PackedInputs, pack_padded, rows_of

masks = st.integers(1, 5).flatmap(
    lambda width: st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=5)
)


def ids_of(mask: Tensor) -> Tensor:
    """Every place has an id of its own."""
    return torch.arange(mask.numel()).view(mask.shape) + 100


@given(masks)
@settings(max_examples=150, deadline=None)
def test_what_the_mask_keeps_is_packed_and_comes_back_where_it_was(rows: list[list[bool]]) -> None:
    mask = torch.tensor(rows)
    ids, types = ids_of(mask), ids_of(mask) % 2
    inputs = pack_padded(ids, mask.long(), types)
    batch = inputs.batch
    kept = [[int(ids[r, c]) for c in range(mask.shape[1]) if rows[r][c]] for r in range(len(rows))]
    assert batch.input_ids.tolist() == [one for row in kept for one in row]
    assert batch.position_ids.tolist() == [place for row in kept for place in range(len(row))]
    assert batch.token_type_ids is not None
    assert batch.token_type_ids.tolist() == [one % 2 for row in kept for one in row]
    assert batch.lengths.tolist() == [len(row) for row in kept]
    assert batch.cu_seqlens.tolist() == [sum(len(row) for row in kept[:i]) for i in range(len(kept) + 1)]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.max_seqlen == max(len(row) for row in kept)
    values = batch.input_ids[:, None].double() * torch.tensor([1.0, -2.0])
    back = inputs.layout.unpack(values)
    assert torch.equal(back, torch.where(mask[..., None], ids[..., None] * torch.tensor([1.0, -2.0]).double(), 0.0))
    low = inputs.layout.unpack(batch.input_ids.float(), float("-inf"))
    assert torch.equal(low, torch.where(mask, ids.float(), float("-inf")))
    assert torch.equal(inputs.layout.pack(ids, "labels"), batch.input_ids)


@given(masks)
@settings(max_examples=100, deadline=None)
def test_attention_weights_stand_at_the_rows_and_columns_of_their_tokens(rows: list[list[bool]]) -> None:
    mask = torch.tensor(rows)
    inputs = pack_padded(ids_of(mask), mask.long())
    heads = 2
    weights = [torch.rand(heads, length, length) + 1 for length in inputs.batch.lengths.tolist()]
    found = inputs.layout.unpack_attention(weights)
    width = mask.shape[1]
    expected = torch.zeros(len(rows), heads, width, width)
    for row, text in enumerate(weights):
        present = [column for column in range(width) if rows[row][column]]
        for i, a in enumerate(present):
            for j, b in enumerate(present):
                expected[row, :, a, b] = text[:, i, j]
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "mask",
    [
        torch.tensor([[1, 1, 0], [0, 1, 1]]),
        torch.tensor([[1, 1, 0], [0, 1, 1]], dtype=torch.bool),
        torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]),
        torch.tensor([[1, 1, 0], [0, 1, 1]], dtype=torch.uint8),
        torch.tensor([[2, -1, 0], [0, 7, 1]], dtype=torch.int32),
    ],
    ids=lambda mask: str(mask.dtype),
)
def test_a_mask_of_any_dtype_says_where_it_is_not_zero(mask: Tensor) -> None:
    batch = pack_padded(ids_of(mask), mask).batch
    assert batch.input_ids.tolist() == [100, 101, 104, 105]
    assert batch.lengths.tolist() == [2, 2]


def test_without_a_mask_every_place_holds_a_token() -> None:
    ids = torch.arange(6).view(2, 3)
    inputs = pack_padded(ids)
    assert inputs.layout == Layout((2, 3), None)
    assert inputs.batch.lengths.tolist() == [3, 3]
    assert inputs.batch.token_type_ids is None
    assert torch.equal(inputs.layout.unpack(inputs.batch.input_ids), ids)


def test_a_row_without_any_token_is_an_empty_text() -> None:
    ids = torch.arange(6).view(2, 3)
    inputs = pack_padded(ids, torch.tensor([[0, 0, 0], [1, 1, 0]]))
    assert inputs.batch.lengths.tolist() == [0, 2]
    assert inputs.layout.unpack(inputs.batch.input_ids + 1).tolist() == [[0, 0, 0], [4, 5, 0]]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_a_batch_of_nothing(shape: tuple[int, int]) -> None:
    inputs = pack_padded(torch.zeros(shape, dtype=torch.long))
    assert inputs.batch.tokens == 0
    assert inputs.batch.max_seqlen == 0
    assert inputs.layout.unpack(torch.zeros(0, 5)).shape == (*shape, 5)


@pytest.mark.parametrize("positions", [[[4, 5, 6]], [[4, 5, 6], [4, 5, 6]]], ids=["one row", "a row each"])
def test_positions_that_are_given_count(positions: list[list[int]]) -> None:
    ids, mask = torch.arange(6).view(2, 3), torch.tensor([[0, 1, 1], [1, 1, 0]])
    batch = pack_padded(ids, mask, position_ids=torch.tensor(positions)).batch
    assert batch.position_ids.tolist() == [5, 6, 4, 5]


def test_embeddings_stand_in_for_ids() -> None:
    embeds = torch.randn(2, 3, 5)
    inputs = pack_padded(None, torch.tensor([[0, 1, 1], [1, 0, 0]]), inputs_embeds=embeds)
    assert inputs.inputs_embeds is not None
    assert torch.equal(inputs.inputs_embeds, torch.stack([embeds[0, 1], embeds[0, 2], embeds[1, 0]]))
    assert inputs.batch.input_ids.tolist() == [0, 0, 0]
    assert inputs.batch.position_ids.tolist() == [0, 1, 0]


def test_narrow_ids_are_widened() -> None:
    batch = pack_padded(torch.arange(6, dtype=torch.int32).view(2, 3)).batch
    assert batch.input_ids.dtype == torch.int64


IDS = torch.zeros(2, 3, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": IDS, "inputs_embeds": torch.zeros(2, 3, 4)}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": IDS[0]}, r"input_ids: expected 2 axes, got shape \[3\]"),
        ({"input_ids": IDS[None]}, r"input_ids: expected 2 axes, got shape \[1, 2, 3\]"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(2, 3)}, "inputs_embeds: expected 3 axes"),
        ({"input_ids": IDS.float()}, "input_ids: expected int64, got float32"),
        ({"input_ids": IDS.bool()}, "input_ids: expected int64, got bool"),
        ({"input_ids": IDS, "attention_mask": torch.ones(2, 4)}, r"attention_mask: expected shape \[2, 3\]"),
        ({"input_ids": IDS, "attention_mask": torch.ones(3)}, r"attention_mask: expected shape \[2, 3\]"),
        ({"input_ids": IDS, "attention_mask": torch.ones(2, 1, 3, 3)}, "masks between pairs"),
        ({"input_ids": IDS, "token_type_ids": torch.zeros(2, 4).long()}, "token_type_ids: expected shape"),
        ({"input_ids": IDS, "token_type_ids": torch.zeros(1, 3).long()}, "token_type_ids: expected shape"),
        ({"input_ids": IDS, "position_ids": torch.zeros(2, 4).long()}, "position_ids: expected shape"),
        ({"input_ids": IDS, "position_ids": torch.zeros(3, 3).long()}, "position_ids: expected shape"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_one_line(call: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        pack_padded(**{"input_ids": None, **call})
    assert "\n" not in str(error.value)


def test_labels_of_another_shape_are_refused() -> None:
    inputs = pack_padded(IDS, torch.tensor([[1, 1, 0], [1, 1, 1]]))
    with pytest.raises(InputError, match=r"labels: expected shape \[2, 3\], got \[3, 2\]"):
        inputs.layout.pack(torch.zeros(3, 2), "labels")


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_packed_texts_are_put_in_rows(lengths: list[int]) -> None:
    width = max(lengths)
    mask = torch.arange(max(width, 1))[None] < torch.tensor(lengths)[:, None]
    batch = pack_padded(ids_of(mask), mask.long()).batch
    rows = rows_of(batch)
    assert rows.shape == (len(lengths), width)
    if width:
        assert torch.equal(rows.unpack(batch.input_ids), torch.where(mask, ids_of(mask), 0))


def test_packed_callers_get_their_tensors_as_they_are() -> None:
    layout, x = Layout(), torch.randn(5, 2)
    assert layout.unpack(x) is x
    assert layout.pack(x, "labels") is x
    weights = [torch.rand(2, 3, 3), torch.rand(2, 1, 1)]
    found = layout.unpack_attention(weights)
    assert found.shape == (2, 2, 3, 3)
    assert torch.equal(found[0], weights[0])
    assert torch.equal(found[1, :, :1, :1], weights[1])
    assert found[1].abs().sum() == weights[1].abs().sum()


def test_gradients_flow_there_and_back() -> None:
    embeds = torch.randn(2, 3, 4, requires_grad=True)
    mask = torch.tensor([[0, 1, 1], [1, 0, 0]])
    inputs: PackedInputs = pack_padded(None, mask, inputs_embeds=embeds)
    assert inputs.inputs_embeds is not None
    (inputs.layout.unpack(inputs.inputs_embeds * 3)).sum().backward()
    assert embeds.grad is not None
    assert torch.equal(embeds.grad, mask[..., None].expand(2, 3, 4) * 3.0)
