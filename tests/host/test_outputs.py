"""What models return, read as attributes, items, slices and mappings, beside transformers' own outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import modeling_outputs

from padless.engine import outputs
from padless.engine.outputs import (
    MaskedLMOutput,
    PreTrainingOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
)

SHARED = [name for name in outputs.__all__ if name != "ModelOutput" and hasattr(modeling_outputs, name)]
OF_DECODERS = {"past_key_values", "cross_attentions"}
LOSS, LOGITS = torch.tensor(0.5), torch.randn(2, 3)
STATES = (torch.randn(2, 4), torch.randn(2, 4))


def both(**fields: Any) -> tuple[Any, Any]:
    return SequenceClassifierOutput(**fields), modeling_outputs.SequenceClassifierOutput(**fields)


def test_most_names_are_those_of_transformers() -> None:
    assert set(outputs.__all__) - set(SHARED) <= {"ModelOutput", "PreTrainingOutput"}
    assert len(SHARED) >= 8


@pytest.mark.parametrize("name", SHARED)
def test_fields_and_their_order_are_those_of_transformers(name: str) -> None:
    ours, theirs = getattr(outputs, name), getattr(modeling_outputs, name)
    expected = [field for field in theirs.__dataclass_fields__ if field not in OF_DECODERS]
    assert [field for field in ours.__dataclass_fields__ if field not in OF_DECODERS] == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"loss": LOSS, "logits": LOGITS},
        {"logits": LOGITS},
        {"loss": LOSS, "logits": LOGITS, "hidden_states": STATES},
        {"logits": LOGITS, "attentions": STATES},
        {"loss": LOSS},
    ],
    ids=lambda fields: "+".join(fields),
)
def test_reads_as_that_of_transformers_does(fields: dict[str, Any]) -> None:
    ours, theirs = both(**fields)
    assert list(ours) == list(theirs) == list(fields)
    assert list(ours.keys()) == list(theirs.keys())
    assert len(ours) == len(theirs) == len(fields)
    assert len(ours.values()) == len(fields)
    for mine, other in zip(ours.items(), theirs.items(), strict=True):
        assert mine[0] == other[0]
        assert mine[1] is other[1]
    for index in (*range(len(fields)), -1):
        assert ours[index] is theirs[index]
    for piece in (slice(None), slice(0, 2), slice(1, None), slice(None, None, -1)):
        assert len(ours[piece]) == len(theirs[piece])
        assert all(a is b for a, b in zip(ours[piece], theirs[piece], strict=True))
    assert all(a is b for a, b in zip(ours.to_tuple(), theirs.to_tuple(), strict=True))
    assert dict(ours).keys() == dict(theirs).keys()
    for name in ("loss", "logits", "hidden_states", "attentions"):
        assert getattr(ours, name) is getattr(theirs, name) is fields.get(name)
        assert (name in ours) == (name in fields)
        assert ours.get(name, "nothing") is fields.get(name, "nothing")
        if name in fields:
            assert ours[name] is theirs[name]
        else:
            with pytest.raises(KeyError):
                ours[name]
            with pytest.raises(KeyError):
                theirs[name]


def test_a_field_that_was_assigned_is_there() -> None:
    output = SequenceClassifierOutput(logits=LOGITS)
    output.loss = LOSS
    assert output[0] is LOSS
    assert list(output) == ["loss", "logits"]


def test_without_loss_the_first_item_is_what_comes_next() -> None:
    assert MaskedLMOutput(logits=LOGITS)[0] is LOGITS
    loss, logits = MaskedLMOutput(loss=LOSS, logits=LOGITS)[:2]
    assert loss is LOSS
    assert logits is LOGITS


def test_an_output_without_anything_is_empty() -> None:
    ours, theirs = both()
    assert ours.to_tuple() == theirs.to_tuple() == ()
    assert list(ours) == list(theirs) == []
    with pytest.raises(IndexError):
        ours[0]
    with pytest.raises(IndexError):
        theirs[0]


def test_a_name_that_is_no_field_is_no_attribute() -> None:
    with pytest.raises(AttributeError):
        SequenceClassifierOutput().pooler_output  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(TypeError):
        SequenceClassifierOutput(last_hidden_state=LOGITS)  # type: ignore[call-arg]


def test_two_outputs_of_pretraining_and_spans_keep_their_order() -> None:
    words, sentences = torch.randn(1, 2, 3), torch.randn(1, 2)
    assert list(PreTrainingOutput(LOSS, words, sentences)) == ["loss", "prediction_logits", "seq_relationship_logits"]
    start, end = torch.randn(1, 4), torch.randn(1, 4)
    output = QuestionAnsweringModelOutput(start_logits=start, end_logits=end)
    assert output[0] is start
    assert output[1] is end
