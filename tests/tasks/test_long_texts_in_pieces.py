"""Long texts seen whole by the tasks that ask about two texts: pieces cut by transformers' tokenizer, scored one by one
by its model, and put together here by hand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from task_models import LONGEST, ModelFolder
from transformers import AutoTokenizer

import padless
from padless.engine.streaming.stream import EncodeStats

LABELS = {"label2id": {"contradiction": 0, "neutral": 1, "entailment": 2}, "num_labels": 3}
CANDIDATES = ["religion", "war and peace", "the weather in the mountains", "money"]
TEMPLATE = "This example is {}."
AGGREGATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda scores: scores.mean(axis=0),
    "max": lambda scores: scores.max(axis=0),
}


@functools.cache
def theirs(folder: Path, auto_class: str) -> tuple[Any, Any]:
    """transformers' tokenizer and model."""
    return AutoTokenizer.from_pretrained(folder), getattr(transformers, auto_class).from_pretrained(folder).eval()


def piece_logits(
    folder: Path, auto_class: str, pair: tuple[str, str], cut: str, overlap: int, *, longest: int = LONGEST
) -> np.ndarray:
    """float64 `[pieces, labels]` of a pair of which the text `cut`, "only_first" or "only_second", is in pieces."""
    tokenizer, model = theirs(folder, auto_class)
    pieces = tokenizer(
        [list(pair)], truncation=cut, max_length=longest, stride=overlap, return_overflowing_tokens=True, verbose=False
    )
    found = []
    for number in range(len(pieces["input_ids"])):
        # Each by itself, as a pipeline would see it.
        one = {name: torch.tensor([pieces[name][number]]) for name in tokenizer.model_input_names if name in pieces}
        if auto_class == "AutoModelForMultipleChoice":
            one = {name: ids.unsqueeze(0) for name, ids in one.items()}
        with torch.no_grad():
            found.append(model(**one).logits[0].double().numpy())
    return np.stack(found)


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max())
    return raised / raised.sum()


# Reranking.


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("aggregate", [None, "max", "mean"])
@pytest.mark.parametrize("overlap", [0, 11])
def test_a_document_is_ranked_by_its_pieces(
    family: str, aggregate: str | None, overlap: int, model_folder: ModelFolder, long_texts: list[str], texts: list[str]
) -> None:
    folder = model_folder(family, "ForSequenceClassification", num_labels=1)
    task: Any = padless.load(folder, task="rerank", device="cpu", dtype="float32")
    documents, query = [*texts[:3], *long_texts[:5], "", *long_texts[8:]], "who stood still in the valley?"
    options: dict[str, Any] = {"long_texts": "chunk", "overlap": overlap}
    options |= {} if aggregate is None else {"aggregate": aggregate}
    expected = []
    for document in documents:
        logits = piece_logits(folder, "AutoModelForSequenceClassification", (query, document), "only_second", overlap)
        # What the pipeline gives of each piece: the sigmoid of the one label.
        expected.append(float(AGGREGATES[aggregate or "max"](1 / (1 + np.exp(-logits[:, 0])))))
    stats = EncodeStats()
    found = task.rank(query, documents, stats=stats, **options)
    assert {one["corpus_id"]: one["score"] for one in found} == pytest.approx(dict(enumerate(expected)), abs=1e-5)
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    assert stats.truncated == 0
    pairs = [(query, document) for document in documents]
    np.testing.assert_allclose(task.predict(pairs, **options), expected, atol=1e-5, rtol=0)
    # It is another thing than the beginning of each document.
    assert np.abs(task.predict(pairs) - expected).max() > 1e-3


def test_pieces_of_several_labels_are_put_together_label_by_label(
    model_folder: ModelFolder, long_texts: list[str]
) -> None:
    folder = model_folder("bert", "ForSequenceClassification", **LABELS)
    task: Any = padless.load(folder, task="rerank", device="cpu", dtype="float32")
    pair = ("who?", " ".join(long_texts[1:3]))
    logits = piece_logits(folder, "AutoModelForSequenceClassification", pair, "only_second", 0)
    assert len(logits) > 2
    for aggregate, put_together in AGGREGATES.items():
        found = task.predict(pair, long_texts="chunk", aggregate=aggregate)
        assert found == pytest.approx(put_together(logits), abs=1e-5)


# Zero-shot classification.


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("aggregate", [None, "mean", "max"])
def test_a_text_is_classified_by_its_pieces(
    family: str, multi_label: bool, aggregate: str | None, model_folder: ModelFolder, long_texts: list[str]
) -> None:
    folder = model_folder(family, "ForSequenceClassification", **LABELS)
    task = padless.load(folder, task="zero-shot-classification", device="cpu", dtype="float32")
    given = ["a short one", *long_texts[:4], long_texts[-1]]
    options = {"candidate_labels": CANDIDATES, "multi_label": multi_label, "long_texts": "chunk", "overlap": 9}
    options |= {} if aggregate is None else {"aggregate": aggregate}
    for text, answer in zip(given, task(given, **options), strict=True):
        expected = by_hand(folder, text, multi_label, aggregate or "mean")
        assert dict(zip(answer["labels"], answer["scores"], strict=True)) == pytest.approx(expected, abs=1e-5)
        assert answer["scores"] == sorted(answer["scores"], reverse=True)
        assert answer["sequence"] == text


def by_hand(folder: Path, text: str, multi_label: bool, aggregate: str) -> dict[str, float]:
    """Label -> score. "mean" averages the logits of each label; "max" takes the piece that is most for the label."""
    chosen = []
    for label in CANDIDATES:
        pair = (text, TEMPLATE.format(label))
        logits = piece_logits(folder, "AutoModelForSequenceClassification", pair, "only_first", 9)[:, [0, 2]]
        if aggregate == "mean":
            chosen.append(logits.mean(axis=0))
        elif multi_label:
            chosen.append(max(logits, key=lambda both: softmax(both)[1]))
        else:
            chosen.append(max(logits, key=lambda both: both[1]))
    if multi_label:
        return {label: softmax(both)[1] for label, both in zip(CANDIDATES, chosen, strict=True)}
    return dict(zip(CANDIDATES, softmax(np.array([both[1] for both in chosen])).tolist(), strict=True))


def test_the_piece_of_a_single_label_is_the_one_transformers_finds_likeliest(
    model_folder: ModelFolder, long_texts: list[str]
) -> None:
    """The pipeline itself, on each piece as a text: words of one token each, so that pieces can be spelled again."""
    folder = model_folder("bert", "ForSequenceClassification", **LABELS)
    words = [word for word in " ".join(long_texts[:7]).lower().split() if word.isalpha()]
    tokenizer, _ = theirs(folder, "AutoModelForSequenceClassification")
    words = [word for word in words if len(tokenizer.tokenize(word)) == 1][:200]
    room = LONGEST - 3 - len(tokenizer.tokenize(TEMPLATE.format("money")))
    pieces = [" ".join(words[start : start + room]) for start in range(0, len(words), room)]
    assert len(pieces) == 3
    reference: Any = transformers.pipeline("zero-shot-classification", model=str(folder), device="cpu")
    each = [answer["scores"][0] for answer in reference(pieces, candidate_labels="money", multi_label=True)]
    task = padless.load(folder, task="zero-shot-classification", device="cpu", dtype="float32")
    answer = task(" ".join(words), "money", long_texts="chunk", aggregate="max", multi_label=True)
    assert answer["scores"] == pytest.approx([max(each)], abs=1e-5)
    assert max(each) - min(each) > 1e-3


# Multiple choice.


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("aggregate", [None, "mean", "max"])
@pytest.mark.parametrize("overlap", [0, 13])
def test_a_choice_is_made_by_the_pieces_of_the_prompt(
    family: str, aggregate: str | None, overlap: int, model_folder: ModelFolder, long_texts: list[str]
) -> None:
    folder = model_folder(family, "ForMultipleChoice")
    task = padless.load(folder, task="multiple-choice", device="cpu", dtype="float32")
    choices = ["stood still", "", "went on for so many days and nights that no one knew the hour any more", "no"]
    options: dict[str, Any] = {"long_texts": "chunk", "overlap": overlap}
    options |= {} if aggregate is None else {"aggregate": aggregate}
    prompts = ["the sun", *long_texts[:4], long_texts[-1]]
    answers = task([{"prompt": prompt, "choices": choices} for prompt in prompts], **options)
    for prompt, answer in zip(prompts, answers, strict=True):
        logits = [
            piece_logits(folder, "AutoModelForMultipleChoice", (prompt, choice), "only_first", overlap)[:, 0]
            for choice in choices
        ]
        expected = softmax(np.array([float(AGGREGATES[aggregate or "mean"](pieces)) for pieces in logits]))
        assert answer["scores"] == pytest.approx(expected.tolist(), abs=1e-5)
        assert (answer["choice"], answer["text"]) == (expected.argmax(), choices[expected.argmax()])


# What cannot be seen whole.


def test_what_leaves_pieces_no_room_costs_its_row_only(model_folder: ModelFolder) -> None:
    long = "word " * 200
    rows: list[tuple[str, Path, list[Any], str, dict[str, Any]]] = [
        (
            "rerank",
            model_folder("bert", "ForSequenceClassification", num_labels=1),
            [{"query": query, "documents": ["a", long]} for query in ("moon", long, "sun")],
            "the first text has 200 tokens, which leaves no room for pieces of the second",
            {},
        ),
        (
            "multiple-choice",
            model_folder("bert", "ForMultipleChoice"),
            [{"prompt": long, "choices": ["a", choice]} for choice in ("moon", long, "sun")],
            "the second text has 200 tokens, which leaves no room for pieces of the first",
            {},
        ),
    ]
    for name, folder, inputs, message, options in rows:
        task = padless.load(folder, task=name, device="cpu", dtype="float32")
        items, _ = task.read(inputs, {})
        first, second, third = task.answers(items, task.options({"long_texts": "chunk", **options}))
        assert isinstance(second, padless.InputError)
        assert str(second) == message
        assert [first, third] == task([inputs[0], inputs[2]], long_texts="chunk", **options)


@pytest.mark.parametrize(
    ("name", "head", "config"),
    [
        ("rerank", "ForSequenceClassification", {"num_labels": 1}),
        ("multiple-choice", "ForMultipleChoice", {}),
        ("zero-shot-classification", "ForSequenceClassification", LABELS),
    ],
)
def test_options_of_pieces_are_checked(name: str, head: str, config: dict[str, Any], model_folder: ModelFolder) -> None:
    task = padless.load(model_folder("bert", head, **config), task=name, device="cpu", dtype="float32")
    calls: dict[str, list[Any]] = {"long_texts": ["drop"], "overlap": [-1, 1.5], "aggregate": ["each", "sum"]}
    labels = {"candidate_labels": "a,b"} if name == "zero-shot-classification" else {}
    for option, values in calls.items():
        for value in values:
            with pytest.raises(padless.OptionError, match=f"^{option}: expected"):
                task.options({option: value, **labels})
    inputs: Any = {"rerank": {"query": "a", "documents": ["b"]}, "multiple-choice": {"prompt": "a", "choices": ["b"]}}
    with pytest.raises(padless.OptionError, match="overlap: expected less than the 93 tokens of a piece, got 93"):
        task(inputs.get(name, "a"), long_texts="chunk", overlap=93, **labels)


@pytest.mark.parametrize("aggregate", ["max", "mean"])
def test_a_piece_that_is_no_number_costs_the_whole_query(aggregate: str, model_folder: ModelFolder) -> None:
    """Also where another piece has the higher score: what the model could not read may have been the answer."""
    folder = model_folder("bert", "ForSequenceClassification", num_labels=1)
    task: Any = padless.load(folder, task="rerank", device="cpu", dtype="float32")
    poisoned = int(task.loaded.tokenizer.encode(["bread"]).input_ids[1])
    with torch.no_grad():
        task.loaded.model.base_model.embeddings.word_embeddings.weight[poisoned] = torch.nan
    documents = ["moon " * 300, "moon " * 150 + "bread"]
    options: dict[str, Any] = {"long_texts": "chunk", "aggregate": aggregate}
    with pytest.raises(padless.InputError, match=r"^row 0: document 1: the model gave NaN or infinity"):
        task.rank("who?", documents, **options)
    assert len(task.rank("who?", [*documents[:1], "sun"], **options)) == 2
    # The beginning alone does not hold it.
    assert len(task.rank("who?", documents)) == 2
