"""deterministic=True: the answer to a text is the same number for number, whatever else the call asks."""

from __future__ import annotations

from typing import Any

import pytest
from task_models import ModelFolder

import padless

LABELS = {"num_labels": 5, "problem_type": "multi_label_classification"}


@pytest.mark.parametrize(
    ("task", "head", "settings", "options"),
    [
        ("text-classification", "ForSequenceClassification", LABELS, {"top_k": None}),
        ("text-classification", "ForSequenceClassification", {"num_labels": 3}, {"top_k": None}),
        ("token-classification", "ForTokenClassification", {"num_labels": 4}, {}),
    ],
)
def test_an_answer_is_that_of_the_text_alone(
    model_folder: ModelFolder, texts: list[str], task: str, head: str, settings: dict[str, Any], options: dict[str, Any]
) -> None:
    run = padless.load(model_folder("bert", head, **settings), task=task, dtype="float32", deterministic=True)
    together = run(texts, **options)
    assert [run(text, **options) for text in texts] == [
        [answer] if isinstance(answer, dict) else answer for answer in together
    ]


def test_predictions_of_a_masked_token_are_those_of_the_text_alone(model_folder: ModelFolder, texts: list[str]) -> None:
    asked = [f"{text[:80]} [MASK]." for text in texts]
    run = padless.load(model_folder("mobilebert", "ForMaskedLM"), task="fill-mask", dtype="float32", deterministic=True)
    assert [run(text) for text in asked] == run(asked)


def test_a_rank_is_that_of_the_pair_alone(model_folder: ModelFolder, texts: list[str]) -> None:
    folder = model_folder("bert", "ForSequenceClassification", num_labels=1)
    run = padless.load(folder, task="rerank", dtype="float32", deterministic=True)
    pairs = [("where the sun stood", text) for text in texts]
    assert run.predict(pairs).tolist() == [float(run.predict([pair])[0]) for pair in pairs]
