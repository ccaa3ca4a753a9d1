"""What layers share in a pass through a model, and that nothing of it is left for the next pass."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from padless.engine.batch import PackedBatch
from padless.engine.memo import Memo
from padless.engine.models.mt5 import MT5EncoderModel
from padless.engine.ops.cpu import attention as cpu


def tiny() -> MT5EncoderModel:
    torch.manual_seed(3)
    fields: dict[str, Any] = {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 3, "vocab_size": 90}
    return MT5EncoderModel(MT5EncoderModel.config_class(**fields)).eval()


def packed(*lengths: int) -> PackedBatch:
    places = torch.cat([torch.arange(length) for length in lengths])
    edges = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    ids = torch.randint(3, 90, places.shape, generator=torch.Generator().manual_seed(5))
    return PackedBatch(ids, places, None, edges, torch.tensor(lengths, dtype=torch.int32), max(lengths))


@contextmanager
def counting(name: str) -> Iterator[list[str]]:
    calls: list[str] = []
    function = getattr(cpu, name)

    def counted(*args: object) -> object:
        calls.append(name)
        return function(*args)

    with patch.object(cpu, name, counted):
        yield calls


def test_it_makes_once_for_each_tensor_and_key() -> None:
    memo, first, alike = Memo(), torch.zeros(3), torch.zeros(3)
    made: list[str] = []

    def make(what: str) -> str:
        made.append(what)
        return what

    asked = [(first, "a"), (alike, "a"), (first, "b"), (first, "a"), (alike, "a")]
    found = [memo.once(tensor, key, lambda n=n: make(f"{n}")) for n, (tensor, key) in enumerate(asked)]
    assert found == ["0", "1", "2", "0", "1"]
    assert made == ["0", "1", "2"]


def test_a_tensor_that_is_gone_leaves_its_number_to_no_other() -> None:
    memo = Memo()
    for value in range(50):
        assert memo.once(torch.full((2,), value), "key", lambda value=value: value) == value


@pytest.mark.parametrize("name", ["_equal_runs", "bias_by_distance"])
def test_layers_share_what_they_derive_and_passes_do_not(name: str) -> None:
    model, batch = tiny(), packed(5, 1, 9)
    with torch.no_grad(), counting(name) as calls:
        model.run(batch)
        assert len(calls) == 1
        model.run(batch)
        assert len(calls) == 2


def test_texts_and_bias_may_change_between_two_passes() -> None:
    """A batch whose memory is filled anew, as that of a CUDA graph is."""
    model, batch = tiny(), packed(5, 1, 9)

    def alone() -> Tensor:
        edges = batch.cu_seqlens.tolist()
        texts = [slice(start, stop) for start, stop in itertools.pairwise(edges)]
        parts = [model(batch.input_ids[text][None]).last_hidden_state[0] for text in texts]
        return torch.cat(parts)

    with torch.no_grad():
        torch.testing.assert_close(model.run(batch), alone())
        batch.cu_seqlens.copy_(torch.tensor([0, 9, 12, 15]))
        torch.testing.assert_close(model.run(batch), alone())
        before = alone()
        next(weight for name, weight in model.named_parameters() if "relative" in name).mul_(-3)
        torch.testing.assert_close(model.run(batch), alone())
        assert (before - alone()).abs().max() > 0.01
