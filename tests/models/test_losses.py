"""Losses: what counts, what does not, and which of them sequence classification takes; transformers is the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import padless
from padless import InputError, OptionError
from padless.engine.models.losses import class_loss, sequence_loss, span_loss

BERT: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 36,
    "max_position_embeddings": 23,
    "initializer_range": 0.3,
}
IDS = torch.tensor([[5, 9, 33, 60, 7, 12], [44, 2, 8, 17, 18, 50], [6, 6, 30, 41, 11, 3]])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(7)


def pair(kind: str, family: str = "Bert", **fields: Any) -> tuple[Any, Any]:
    """transformers' model and ours with its weights, in fp64: another loss is not taken for rounding."""
    theirs = getattr(transformers, family + kind)(getattr(transformers, f"{family}Config")(**{**BERT, **fields})).eval()
    config = getattr(padless, f"{family}Config").from_dict(theirs.config.to_dict(), source="transformers")
    ours = getattr(padless, family + kind)(config).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs.double(), ours.double()


def assert_same_loss(theirs: Any, ours: Any, **call: Any) -> Tensor:
    expected, found = theirs(**call).loss, ours(**call).loss
    assert found.shape == ()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0, equal_nan=True)
    return found


@pytest.mark.parametrize("labels", [3, 1])
@pytest.mark.parametrize("shape", ["flat", "column"])
def test_regression_is_a_mean_squared_error(labels: int, shape: str) -> None:
    theirs, ours = pair("ForSequenceClassification", num_labels=labels, problem_type="regression")
    targets = torch.randn(3, labels).double() if labels > 1 else torch.randn(3).double()
    if labels == 1 and shape == "column":
        targets = targets[:, None]
    assert_same_loss(theirs, ours, input_ids=IDS, labels=targets)


@pytest.mark.parametrize(
    ("labels", "targets", "chosen"),
    [
        (1, torch.tensor([0.3, -1.0, 2.0]).double(), "regression"),
        (4, torch.tensor([0, 3, 1]), "single_label_classification"),
        (4, torch.tensor([0, 3, 1], dtype=torch.int32).long(), "single_label_classification"),
        (4, torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).double(), "multi_label_classification"),
    ],
)
def test_without_a_problem_type_the_labels_decide(labels: int, targets: Tensor, chosen: str) -> None:
    theirs, ours = pair("ForSequenceClassification", num_labels=labels)
    assert ours.config.problem_type is None
    assert_same_loss(theirs, ours, input_ids=IDS, labels=targets)
    assert theirs.config.problem_type == chosen
    same = pair("ForSequenceClassification", num_labels=labels, problem_type=chosen)
    assert_same_loss(*same, input_ids=IDS, labels=targets)


def test_the_problem_type_outweighs_the_labels() -> None:
    theirs, ours = pair("ForSequenceClassification", num_labels=2, problem_type="multi_label_classification")
    targets = torch.tensor([[1.0, 0], [0, 1], [1, 1]]).double()
    loss = assert_same_loss(theirs, ours, input_ids=IDS, labels=targets)
    whole = ours(input_ids=IDS, labels=targets.long()).loss  # transformers refuses whole numbers here
    assert torch.equal(whole, loss)


@pytest.mark.parametrize("kind", ["ForMaskedLM", "ForTokenClassification"])
def test_a_label_of_minus_100_does_not_count(kind: str) -> None:
    theirs, ours = pair(kind, num_labels=5)
    targets = torch.randint(0, 5, IDS.shape)
    everything = assert_same_loss(theirs, ours, input_ids=IDS, labels=targets)
    targets[0, 2:] = targets[2, :] = -100
    some = assert_same_loss(theirs, ours, input_ids=IDS, labels=targets)
    assert abs(some - everything) > 1e-3


@pytest.mark.parametrize("kind", ["ForMaskedLM", "ForTokenClassification"])
def test_where_no_label_counts_the_loss_is_not_a_number_as_in_transformers(kind: str) -> None:
    theirs, ours = pair(kind)
    loss = assert_same_loss(theirs, ours, input_ids=IDS, labels=torch.full_like(IDS, -100))
    assert torch.isnan(loss)


@pytest.mark.parametrize("kind", ["ForMaskedLM", "ForTokenClassification"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_at_padding_do_not_count_whatever_they_are(kind: str, side: str) -> None:
    _, ours = pair(kind, num_labels=5)
    targets = torch.randint(0, 5, IDS.shape)
    mask = torch.ones_like(IDS)
    hidden = slice(0, 2) if side == "left" else slice(4, 6)
    mask[1, hidden] = 0
    quiet = targets.clone()
    quiet[1, hidden] = -100
    loud = targets.clone()
    loud[1, hidden] = 10_000  # no class at all
    first, second = (ours(input_ids=IDS, attention_mask=mask, labels=labels).loss for labels in (quiet, loud))
    assert torch.equal(first, second)


def test_pretraining_has_a_loss_only_with_both_labels() -> None:
    theirs, ours = pair("ForPreTraining")
    words, sentences = torch.randint(0, 61, IDS.shape), torch.tensor([0, 1, 1])
    assert_same_loss(theirs, ours, input_ids=IDS, labels=words, next_sentence_label=sentences)
    for one in ({"labels": words}, {"next_sentence_label": sentences}):
        assert theirs(input_ids=IDS, **one).loss is None
        assert ours(input_ids=IDS, **one).loss is None


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_next_sentence_prediction(shape: tuple[int, ...]) -> None:
    theirs, ours = pair("ForNextSentencePrediction")
    assert_same_loss(theirs, ours, input_ids=IDS, labels=torch.tensor([0, 1, 1]).view(shape))


def test_multiple_choice_over_choices_without_padding() -> None:
    theirs, ours = pair("ForMultipleChoice")
    ids = torch.randint(1, 61, (4, 3, 7))
    assert_same_loss(theirs, ours, input_ids=ids, labels=torch.tensor([2, 0, 1, 2]))


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ([0, 3, 5], [1, 3, 5]),
        ([[0], [3], [5]], [[1], [3], [5]]),
        ([-1, 3, -7], [0, 3, -1]),  # transformers takes these for 0
        ([6, 3, 99], [99, 6, 2]),  # beyond the text: left out
        ([6, 6, 6], [1, 2, 3]),  # no first token is left
    ],
)
def test_spans_without_padding(start: list[Any], end: list[Any]) -> None:
    theirs, ours = pair("ForQuestionAnswering")
    loss = assert_same_loss(
        theirs, ours, input_ids=IDS, start_positions=torch.tensor(start), end_positions=torch.tensor(end)
    )
    assert bool(torch.isnan(loss)) == (start == [6, 6, 6])


def test_spans_have_a_loss_only_with_both_positions() -> None:
    _, ours = pair("ForQuestionAnswering")
    assert ours(input_ids=IDS, start_positions=torch.tensor([0, 1, 2])).loss is None
    assert ours(input_ids=IDS, end_positions=torch.tensor([0, 1, 2])).loss is None


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_span_that_points_at_padding_is_left_out(side: str) -> None:
    """As one beyond the text is in transformers; there a span at padding counts, against a softmax over padding."""
    theirs, ours = pair("ForQuestionAnswering")
    mask = torch.ones_like(IDS)
    mask[1, slice(0, 2) if side == "left" else slice(4, 6)] = 0
    inside, at_padding = (3, 0) if side == "left" else (2, 5)
    starts, ends = torch.tensor([4, at_padding, 1]), torch.tensor([5, inside, 2])
    found = ours(input_ids=IDS, attention_mask=mask, start_positions=starts, end_positions=ends).loss
    rows = [IDS[0:1], IDS[1:2, 2:] if side == "left" else IDS[1:2, :4], IDS[2:3]]
    shift = 2 if side == "left" else 0
    first = [theirs(input_ids=row).start_logits for row in rows]
    last = [theirs(input_ids=row).end_logits for row in rows]
    cross_entropy = torch.nn.functional.cross_entropy
    of_starts = [cross_entropy(first[row], starts[row : row + 1]) for row in (0, 2)]
    of_ends = [cross_entropy(last[row], ends[row : row + 1] - (shift if row == 1 else 0)) for row in range(3)]
    expected = (torch.stack(of_starts).mean() + torch.stack(of_ends).mean()) / 2
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


MODERNBERT: dict[str, Any] = {
    "local_attention": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "sparse_prediction": True,
}


@pytest.mark.parametrize("ignored", [-100, 7])
def test_sparse_prediction_gives_logits_only_where_there_are_labels(ignored: int) -> None:
    theirs, ours = pair("ForMaskedLM", "ModernBert", **MODERNBERT, sparse_pred_ignore_index=ignored)
    targets = torch.full_like(IDS, ignored)
    targets[0, 3], targets[2, 1], targets[2, 5] = 60, 4, 9
    expected = theirs(input_ids=IDS, labels=targets)
    found = ours(input_ids=IDS, labels=targets)
    assert found.logits.shape == expected.logits.shape == (3, 61)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-5)
    # transformers narrows the logits of this loss to fp32.
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-6, atol=0, check_dtype=False)
    assert ours(input_ids=IDS).logits.shape == theirs(input_ids=IDS).logits.shape == (3, 6, 61)


def test_a_loss_of_bf16_logits_is_computed_in_fp32() -> None:
    logits = (torch.randn(7, 30_000) * 3).bfloat16()
    labels = torch.randint(0, 30_000, (7,))
    loss = class_loss(logits, labels)
    assert loss.dtype == torch.float32
    expected = torch.nn.functional.cross_entropy(logits.double(), labels)
    assert abs(loss.double() / expected - 1) < 1e-6


def test_a_loss_has_the_gradient_that_transformers_has() -> None:
    for kind, labels in (("ForQuestionAnswering", 2), ("ForSequenceClassification", 3)):
        theirs, ours = pair(kind, num_labels=labels)
        targets = {"labels": torch.tensor([0, 2, 1])}
        if kind == "ForQuestionAnswering":
            targets = {"start_positions": torch.tensor([0, 2, 9]), "end_positions": torch.tensor([1, 2, 3])}
        for model in (theirs, ours):
            model(input_ids=IDS, **targets).loss.backward()
        for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            if b.grad is not None:
                assert a.grad is not None, name
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-6)


def test_labels_of_another_number_are_refused() -> None:
    with pytest.raises(InputError, match="labels: expected 4 of them"):
        class_loss(torch.randn(4, 3), torch.zeros(5, dtype=torch.long))
    with pytest.raises(InputError, match=r"labels: expected shape \[4, 3\]"):
        sequence_loss(torch.randn(4, 3), torch.zeros(4, 2), "multi_label_classification")
    zeros = torch.zeros(2, 5)
    with pytest.raises(InputError, match="start_positions, end_positions: expected 2"):
        span_loss(zeros, zeros, torch.zeros(3).long(), torch.zeros(2).long(), torch.ones(2, 5, dtype=torch.bool))
    _, ours = pair("ForTokenClassification")
    with pytest.raises(InputError, match="labels: expected shape"):
        ours(input_ids=IDS, labels=torch.zeros(3, 5, dtype=torch.long))


def test_a_target_of_another_task_is_refused() -> None:
    _, ours = pair("ForQuestionAnswering")
    with pytest.raises(OptionError, match="takes no labels"):
        ours(input_ids=IDS, labels=torch.tensor([0, 1, 1]))


def test_a_class_beyond_the_number_of_labels_is_an_error(tmp_path: Path) -> None:
    _, ours = pair("ForSequenceClassification", num_labels=3)
    with pytest.raises((IndexError, InputError)):
        ours(input_ids=IDS, labels=torch.tensor([0, 3, 1]))


@pytest.mark.parametrize("label", [3, -1, 10**6])
def test_a_label_that_is_no_class_is_named(label: int) -> None:
    with pytest.raises(InputError, match=f"labels: expected 0 to 2, or -100, got {label}$"):
        class_loss(torch.randn(4, 3), torch.tensor([0, -100, label, 2]))
