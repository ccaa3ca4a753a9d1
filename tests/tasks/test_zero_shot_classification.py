"""Zero-shot classification beside transformers' pipeline: labels in its order, scores to 1e-5."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from task_models import ModelFolder
from transformers import pipeline

import padless
from padless.engine.embedding.encoder import EncodeStats

HEAD = "ForSequenceClassification"
LABELS: dict[str, dict[str, Any]] = {
    "entailment last": {"label2id": {"contradiction": 0, "neutral": 1, "Entailment": 2}},
    "entailment first": {"label2id": {"ENTAIL": 0, "neutral": 1, "contradiction": 2}},
    "two": {"label2id": {"not_entailment": 0, "entailment": 1}},
    "none": {"num_labels": 3},
}
CANDIDATES = ["religion", "war and peace", "the weather", "sport", "money"]


def config_of(kind: str) -> dict[str, Any]:
    config = dict(LABELS[kind])
    if "label2id" in config:
        config["id2label"] = {index: label for label, index in config["label2id"].items()}
    return config


def ours(folder: Path) -> Any:
    return padless.load(folder, task="zero-shot-classification", device="cpu", dtype="float32")


def theirs(folder: Path) -> Any:
    return pipeline("zero-shot-classification", model=str(folder), device="cpu")


def assert_alike(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    else:
        assert list(found) == ["sequence", "labels", "scores"] == list(expected)
        assert (found["sequence"], found["labels"]) == (expected["sequence"], expected["labels"])
        assert found["scores"] == pytest.approx(expected["scores"], abs=1e-5)


@pytest.fixture(scope="module")
def folder(model_folder: ModelFolder) -> Path:
    return model_folder("bert", HEAD, **config_of("entailment last"))


@pytest.fixture(scope="module")
def task(folder: Path) -> Any:
    return ours(folder)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_labels_and_scores_are_those_of_transformers(
    family: str, multi_label: bool, model_folder: ModelFolder, texts: list[str]
) -> None:
    folder = model_folder(family, HEAD, **config_of("entailment last"))
    sequences = [text for text in texts if text][:52]
    options: dict[str, Any] = {"candidate_labels": CANDIDATES, "multi_label": multi_label}
    expected = theirs(folder)(sequences, **options)
    found = ours(folder)(sequences, **options)
    assert len(found) > 50
    assert_alike(found, expected)
    assert len({answer["labels"][0] for answer in found}) > 1


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("multi_label", [False, True])
def test_entailment_is_found_by_its_name(
    kind: str, multi_label: bool, model_folder: ModelFolder, texts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = model_folder("bert", HEAD, **config_of(kind))
    task = ours(folder)
    options: dict[str, Any] = {"candidate_labels": CANDIDATES[:3], "multi_label": multi_label}
    with caplog.at_level(logging.WARNING, logger="padless"):
        found = task(texts[:6], **options)
    assert_alike(found, theirs(folder)(texts[:6], **options))
    assert ("names no entailment" in caplog.text) == (kind == "none")


@pytest.mark.parametrize(
    "options",
    [
        {"candidate_labels": "sport, , money ,war"},
        {"candidate_labels": ["sport"]},
        {"candidate_labels": "sport"},
        {"candidate_labels": ["sport", "sport", "money"]},
        {"candidate_labels": ("sport", "money"), "hypothesis_template": "{} is what it is about"},
    ],
    ids=str,
)
def test_options_are_those_of_transformers(options: dict[str, Any], folder: Path, task: Any) -> None:
    text = "the sun stood still and the moon stayed"
    reference = theirs(folder)
    for sequences in (text, [text], [text, "a river"]):
        assert_alike(task(sequences, **options), reference(sequences, **options))
    assert_alike(task(text, options["candidate_labels"]), reference(text, options["candidate_labels"]))
    assert task(sequences=text, **options) == task(text, **options)


@pytest.mark.parametrize("multi_label", [False, True])
def test_equal_scores_come_in_the_order_of_transformers(multi_label: bool, folder: Path, task: Any) -> None:
    labels, logits = ["a", "b", "c", "d"], np.array([[0, 5, 1], [0, 5, 2], [0, 5, 1], [0, 5, 1]], dtype=np.float32)
    outputs = [
        {"candidate_label": label, "sequence": "x", "logits": torch.from_numpy(row[None])}
        for label, row in zip(labels, logits, strict=True)
    ]
    expected = theirs(folder).postprocess(outputs, multi_label=multi_label)
    options = task.options_class(candidate_labels=labels, multi_label=multi_label)
    assert_alike(task.answer("x", 0, None, list(logits[:, [0, 2]]), options), expected)


def test_only_the_text_is_truncated(folder: Path, task: Any, long_texts: list[str]) -> None:
    labels = ["sport", "a label of many words " * 10]
    stats = EncodeStats()
    assert_alike(task(long_texts, labels, stats=stats), theirs(folder)(long_texts, labels))
    # One of them is a single word that is too long for the tokenizer, and so one token.
    assert (stats.texts, stats.truncated) == (len(long_texts), len(long_texts) - 1)
    with pytest.raises(padless.InputError, match=r"^row 1: .*96"):
        task(["short", long_texts[0]], ["sport"], long_texts="error")


def test_a_label_that_leaves_the_text_no_room_is_refused(task: Any) -> None:
    with pytest.raises(padless.InputError, match=r"^row 0: the second text"):
        task(["short"], ["sport", "word " * 300])


@pytest.mark.parametrize("bad", [None, 7, b"bytes", {"a": 1}, ["a", None], ["a", ""], ""], ids=repr)
def test_an_input_of_another_type_is_refused(bad: Any, task: Any) -> None:
    with pytest.raises(padless.InputError) as error:
        task(bad, ["sport"])
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "options",
    [
        *({}, {"candidate_labels": []}, {"candidate_labels": " , "}, {"candidate_labels": [1]}),
        *({"hypothesis_template": template} for template in ("about it", "{about}", "{1}", "{", 7)),
        *({"multi_label": "yes"}, {"long_texts": "drop"}, {"overlap": -1}, {"aggregate": "each"}, {"nosuch": 1}),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, Any], task: Any) -> None:
    named = next(iter(options), "candidate_labels")
    with pytest.raises(padless.OptionError, match=named):
        task(["a"], **({} if named == "candidate_labels" else {"candidate_labels": ["sport"]}), **options)


def test_scores_that_are_no_numbers_cost_only_their_row(folder: Path) -> None:
    task = ours(folder)
    poisoned = int(task.loaded.tokenizer.encode(["bread"]).input_ids[1])
    with torch.no_grad():
        task.loaded.model.base_model.embeddings.word_embeddings.weight[poisoned] = torch.nan
    answers = list(task.answers(["moon", "bread", "stone"], task.options_class(candidate_labels="sport,war")))
    assert isinstance(answers[1], padless.InputError)
    assert_alike([answers[0], answers[2]], task(["moon", "stone"], "sport,war"))
