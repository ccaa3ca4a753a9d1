"""Next sentence prediction and multiple choice beside the outputs of transformers' own models."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from task_models import ModelFolder, assert_alike
from transformers import AutoTokenizer

import padless
from padless.engine.embedding.encoder import EncodeStats
from padless.engine.tasks.task import Task

Pairs = list[tuple[str, str]]


def ours(folder: Path, task: str) -> Task[Any, Any]:
    return padless.load(folder, task=task, device="cpu", dtype="float32")


@functools.cache
def theirs(folder: Path, auto_class: str) -> tuple[Any, Any]:
    """transformers' tokenizer and model."""
    return AutoTokenizer.from_pretrained(folder), getattr(transformers, auto_class).from_pretrained(folder).eval()


def their_logits(folder: Path, auto_class: str, pairs: Pairs) -> torch.Tensor:
    """`[pairs, labels]`, or `[1, pairs]` of a model for multiple choice."""
    tokenizer, model = theirs(folder, auto_class)
    inputs = tokenizer([list(pair) for pair in pairs], truncation=True, padding=True, return_tensors="pt")
    if auto_class == "AutoModelForMultipleChoice":
        inputs = {name: value.unsqueeze(0) for name, value in inputs.items()}
    with torch.no_grad():
        return model(**inputs).logits


@pytest.fixture(scope="module")
def follows(model_folder: ModelFolder) -> Task[Any, Any]:
    return ours(model_folder("bert", "ForNextSentencePrediction"), "next-sentence-prediction")


@pytest.fixture(scope="module")
def chooses(model_folder: ModelFolder) -> Task[Any, Any]:
    return ours(model_folder("bert", "ForMultipleChoice"), "multiple-choice")


@pytest.mark.parametrize("family", ["bert", "megatron-bert", "mobilebert"])
def test_next_sentences_are_those_of_transformers(family: str, model_folder: ModelFolder, pairs: Pairs) -> None:
    folder = model_folder(family, "ForNextSentencePrediction")
    scores = torch.softmax(their_logits(folder, "AutoModelForNextSentencePrediction", pairs), dim=1)
    names = ["IsNext", "NotNext"]
    expected = [{"label": names[int(row.argmax())], "score": float(row.max())} for row in scores]
    task = ours(folder, "next-sentence-prediction")
    assert_alike(task(pairs), expected)
    assert_alike(task([{"text": first, "text_pair": second} for first, second in pairs]), expected)
    assert_alike(task(pairs[0]), expected[0])
    assert {answer["label"] for answer in expected} == set(names) or family == "mobilebert"


def test_both_labels_on_request(follows: Task[Any, Any], pairs: Pairs) -> None:
    for answer, best in zip(follows(pairs[:9], top_k=None), follows(pairs[:9]), strict=True):
        assert {one["label"] for one in answer} == {"IsNext", "NotNext"}
        assert answer[0] == best
        assert sum(one["score"] for one in answer) == pytest.approx(1)


def test_a_folder_says_by_its_head_what_it_is_for(model_folder: ModelFolder) -> None:
    for head, name in (
        ("ForNextSentencePrediction", "next-sentence-prediction"),
        ("ForMultipleChoice", "multiple-choice"),
    ):
        assert padless.load(model_folder("bert", head), device="cpu").name == name


@pytest.mark.parametrize("bad", ["a text", None, ("a",), ("a", 1), {"text": "a"}, {"text": "a", "text_pair": None}])
def test_what_is_no_pair_is_refused(bad: Any, follows: Task[Any, Any]) -> None:
    with pytest.raises(padless.InputError, match="expected"):
        follows(bad)
    with pytest.raises(padless.InputError, match=r"^row 1: expected"):
        follows([("a", "b"), bad])


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_choices_are_those_of_transformers(
    family: str, model_folder: ModelFolder, texts: list[str], long_texts: list[str]
) -> None:
    folder = model_folder(family, "ForMultipleChoice")
    task = ours(folder, "multiple-choice")
    everything = texts[:48] + long_texts[:4]
    questions = [
        {"prompt": text, "choices": [everything[(row + 13 * step) % len(everything)] for step in range(1 + row % 4)]}
        for row, text in enumerate(everything)
    ]
    assert len(questions) >= 50
    stats = EncodeStats()
    for question, answer in zip(questions, task(questions, stats=stats), strict=True):
        pairs = [(question["prompt"], choice) for choice in question["choices"]]
        scores = torch.softmax(their_logits(folder, "AutoModelForMultipleChoice", pairs), dim=1)[0]
        best = int(scores.argmax())
        assert answer["scores"] == pytest.approx(scores.tolist(), abs=1e-5)
        assert (answer["choice"], answer["text"]) == (best, question["choices"][best])
        assert answer["score"] == answer["scores"][best]
    assert stats.texts == len(questions)
    assert stats.truncated >= 4


def test_a_question_may_be_given_by_name(chooses: Task[Any, Any]) -> None:
    question = {"prompt": "the sun", "choices": ["stood still", "fell down", ""]}
    expected = chooses(question)
    assert chooses(**question) == expected == chooses([question])[0]
    assert chooses([]) == []
    assert sum(expected["scores"]) == pytest.approx(1)


@pytest.mark.parametrize(
    "bad",
    [
        *("text", None, {"prompt": "a"}, {"prompt": "a", "choices": "b"}, {"prompt": 1, "choices": ["b"]}),
        *({"prompt": "a", "choices": ["b", 2]}, {"prompt": "a", "choices": []}),
    ],
    ids=repr,
)
def test_what_is_no_question_is_refused(bad: Any, chooses: Task[Any, Any]) -> None:
    with pytest.raises(padless.InputError, match=r"^row 1: "):
        chooses([{"prompt": "a", "choices": ["b"]}, bad])
    with pytest.raises(padless.InputError, match="got both"):
        chooses(["a"], prompt="a", choices=["b"])


def test_one_choice_that_is_no_number_costs_only_its_question(model_folder: ModelFolder) -> None:
    task = ours(model_folder("bert", "ForMultipleChoice"), "multiple-choice")
    poisoned = int(task.loaded.tokenizer.encode(["bread"]).input_ids[1])
    with torch.no_grad():
        task.loaded.model.base_model.embeddings.word_embeddings.weight[poisoned] = torch.nan
    questions = [{"prompt": "moon", "choices": choices} for choices in (["a", "b"], ["a", "bread"], ["c"])]
    items, _ = task.read(questions, {})
    answers = list(task.answers(items, task.options_class()))
    assert isinstance(answers[1], padless.InputError)
    assert answers[2]["scores"] == [1.0]
