"""Dropout: none at p = 0, and otherwise that of transformers, place by place.

A text is run a few thousand times. Every output value then has a mean and a spread, and those of both sides agree only
if the same places are dropped with the same probability: an expectation alone would miss a place behind which the model
is linear, and the fraction of zeros says nothing behind a norm.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parity_inputs import alone_call, draw_texts, run_form
from parity_models import TINY, ModelClass, bare_class, model_classes, our_model, their_model

BERT_LIKE = ("bert", "megatron-bert", "mobilebert")
CLASSIFIED = ("ForSequenceClassification", "ForTokenClassification")
DROPOUTS = [
    *[(family, "", field) for family in BERT_LIKE for field in ("hidden_dropout_prob", "attention_probs_dropout_prob")],
    *[(family, kind, "hidden_dropout_prob") for family in BERT_LIKE for kind in CLASSIFIED],
    *[(family, "ForMultipleChoice", "hidden_dropout_prob") for family in BERT_LIKE],
    *[(family, "ForQuestionAnswering", "hidden_dropout_prob") for family in BERT_LIKE],
    *[(family, kind, "classifier_dropout") for family in ("bert", "mobilebert", "modernbert") for kind in CLASSIFIED],
    ("megatron-bert", "ForSequenceClassification", "classifier_dropout"),
    *[("modernbert", "", field) for field in ("attention_dropout", "embedding_dropout", "mlp_dropout")],
    *[("modernbert", kind, "classifier_dropout") for kind in ("ForMultipleChoice", "ForQuestionAnswering")],
    ("mt5", "", "dropout_rate"),
    ("mt5", "ForTokenClassification", "dropout_rate"),
    ("mt5", "ForTokenClassification", "classifier_dropout"),
]
"""(`model_type`, class or "" for the bare one, field)."""

ALL_FIELDS = {
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
    "mobilebert": ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
    "megatron-bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "modernbert": ("attention_dropout", "embedding_dropout", "mlp_dropout", "classifier_dropout"),
    "mt5": ("dropout_rate", "classifier_dropout"),
}

DRAWS = 4000
GAIN = {"bert": 2.0, "megatron-bert": 2.0, "mobilebert": 4.0, "modernbert": 3.0, "mt5": 1.0}
"""Weights of the layers are that much larger than drawn, so that what each of them adds counts beside what went in."""
PROBABILITY = 0.3
LENGTH = 4
SMALL: dict[str, dict[str, Any]] = {
    "bert": {"num_hidden_layers": 1},
    "megatron-bert": {"num_hidden_layers": 1},
    "mobilebert": {"num_hidden_layers": 1, "num_feedforward_networks": 2, "normalization_type": "layer_norm"},
    "modernbert": {"num_hidden_layers": 2},
    "mt5": {"num_layers": 1},
}
WITHOUT_BOTTLENECK = {"use_bottleneck": False, "num_attention_heads": 2}
"""MobileBERT then has dropout in other places, too."""
BUILT = {item.family for item in model_classes()}
CASES = [
    *[
        pytest.param(family, kind, name, {}, id=f"{family}-{kind or 'Model'}-{name}")
        for family, kind, name in DROPOUTS
        if family in BUILT
    ],
    pytest.param("mobilebert", "", "hidden_dropout_prob", WITHOUT_BOTTLENECK, id="mobilebert-without-bottleneck"),
]


def draws(model: Any, call: dict[str, torch.Tensor], seed: int) -> torch.Tensor:
    """`[draws, values]`: all outputs of one text, run in training mode again and again."""
    many = {name: value.expand(DRAWS, *value.shape[1:]).contiguous() for name, value in call.items()}
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        outputs = model.train()(**many)
    # The pooler's tanh is full: what it gives varies by rare draws alone. It drops nothing.
    values = [value for name, value in outputs.items() if name != "pooler_output"]
    return torch.cat([value.reshape(DRAWS, -1) for value in values], 1).double()


@pytest.mark.parametrize(("family", "kind", "field", "beside"), CASES)
def test_dropout_has_the_mean_and_the_spread_of_that_of_transformers(
    family: str, kind: str, field: str, beside: dict[str, Any]
) -> None:
    item = ModelClass(family, kind) if kind else bare_class(family)
    fields = {**TINY[family], **SMALL[family], **dict.fromkeys(ALL_FIELDS[family], 0.0), field: PROBABILITY, **beside}
    theirs = their_model(item, fields)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if parameter.dim() == 2 and "embed" not in name and "shared" not in name and "classifier" not in name:
                parameter.mul_(GAIN[family])
    ours = our_model(theirs, item)
    call = alone_call(item, draw_texts(item, [LENGTH], 61), 0)
    a, b = draws(ours, call, 1), draws(theirs, call, 2)
    spread = b.std(0)
    moving = spread > 1e-6
    if family == "megatron-bert" and field == "classifier_dropout":
        assert not moving.any()  # transformers reads hidden_dropout_prob there and has no such field
        assert a.std(0).max() < 1e-6
        return
    if not moving.any():
        assert kind == "ForQuestionAnswering"
        assert family != "modernbert"
    assert torch.equal(a.std(0) > 1e-6, moving)
    a, b, spread = a[:, moving], b[:, moving], spread[moving]
    # Both are means of 4,000 draws: they differ by a standard error of spread * sqrt(2 / 4000); 5 of those are rare
    # among a few hundred values.
    assert ((a.mean(0) - b.mean(0)).abs() / (spread * (2 / DRAWS) ** 0.5)).max() < 5.5
    # A spread is known to one or two per cent, less well where rare draws make it; the mean of many better than that.
    ratio = a.std(0) / spread
    assert (ratio.log().abs() < 0.25).all(), ratio
    assert ratio.log().square().mean().sqrt() < 0.04, ratio
    if len(ratio) >= 24:
        assert abs(ratio.log().mean().item()) < 0.015


@pytest.mark.parametrize("item", model_classes(), ids=str)
def test_without_probability_training_computes_what_evaluation_does(item: ModelClass) -> None:
    theirs = their_model(item, {**TINY[item.family], **dict.fromkeys(ALL_FIELDS[item.family], 0.0)})
    ours = our_model(theirs, item)
    texts = draw_texts(item, (9, 2), 61)
    with torch.no_grad():
        calm = run_form(ours.eval(), item, texts, "right", output_hidden_states=True)
        trained = run_form(ours.train(), item, texts, "right", output_hidden_states=True)
    assert list(calm) == list(trained)
    assert all(torch.equal(calm[name], trained[name]) for name in calm)


@pytest.mark.parametrize("item", model_classes(), ids=str)
def test_dropout_stops_in_evaluation(item: ModelClass) -> None:
    fields = {**TINY[item.family], **dict.fromkeys(ALL_FIELDS[item.family], PROBABILITY)}
    ours = our_model(their_model(item, fields), item)
    texts = draw_texts(item, (9, 2), 61)
    with torch.no_grad():
        calm = run_form(ours, item, texts, "packed")
        first, second = (run_form(ours.train(), item, texts, "packed") for _ in range(2))
        again = run_form(ours.eval(), item, texts, "packed")
    assert all(torch.equal(calm[name], again[name]) for name in calm)
    assert any(not torch.equal(first[name], second[name]) for name in calm)


@pytest.mark.parametrize("family", sorted(BUILT))
def test_a_fresh_model_trains_with_dropout_until_it_is_told_otherwise(family: str) -> None:
    item = bare_class(family)
    theirs = their_model(item, TINY[family])
    assert item.ours(our_model(theirs, item).config).training
    assert not our_model(theirs, item).training
