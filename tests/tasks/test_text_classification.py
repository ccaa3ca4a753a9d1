"""Text classification beside transformers' pipeline: labels the same, scores to 1e-5; long texts, hostile ones."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from task_models import ModelFolder, assert_alike
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import padless
from padless.engine.embedding.encoder import EncodeStats
from padless.engine.tasks.task import Task

HEAD = "ForSequenceClassification"
LABELS = {"id2label": {0: "bad", 1: "good", 2: "neither"}, "label2id": {"bad": 0, "good": 1, "neither": 2}}
KINDS: dict[str, dict[str, Any]] = {
    "one of three": LABELS,
    "several": {"num_labels": 4, "problem_type": "multi_label_classification"},
    "a number": {"num_labels": 1, "problem_type": "regression"},
    "two numbers": {"num_labels": 2, "problem_type": "regression"},
    "one label": {"num_labels": 1},
}


def ours(folder: Path) -> Task[Any, Any]:
    return padless.load(folder, task="text-classification", device="cpu", dtype="float32")


@functools.cache
def theirs(folder: Path) -> Any:
    return pipeline("text-classification", model=str(folder), device="cpu")


@pytest.fixture(scope="module")
def folder(model_folder: ModelFolder) -> Path:
    return model_folder("bert", HEAD, **LABELS)


@pytest.fixture(scope="module")
def task(folder: Path) -> Task[Any, Any]:
    return ours(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_texts_are_labelled_as_by_transformers(
    family: str, kind: str, model_folder: ModelFolder, texts: list[str]
) -> None:
    folder = model_folder(family, HEAD, **KINDS[kind])
    expected = theirs(folder)(texts)
    found = ours(folder)(texts)
    assert_alike(found, expected)
    assert len({answer["label"] for answer in found}) > 1 or KINDS[kind].get("num_labels") == 1


@pytest.mark.parametrize("options", [{"top_k": None}, {"top_k": 1}, {"top_k": 2}, {"top_k": 9}], ids=str)
@pytest.mark.parametrize("function", [None, "sigmoid", "softmax", "none", "SIGMOID"])
def test_options_are_those_of_transformers(
    options: dict[str, Any], function: str | None, folder: Path, task: Task[Any, Any], texts: list[str]
) -> None:
    given = {**options, **({} if function is None else {"function_to_apply": function})}
    reference = theirs(folder)
    assert_alike(task(texts[:8], **given), reference(texts[:8], **given))
    assert_alike(task(texts[3], **given), reference(texts[3], **given))


def test_inputs_come_back_in_the_shapes_of_transformers(folder: Path, task: Task[Any, Any]) -> None:
    reference = theirs(folder)
    pair = {"text": "the sun stood still", "text_pair": "and the moon stayed"}
    for inputs in ("the sun", ["the sun"], pair, [pair], [pair, pair], {"text": "the sun"}, ["a", "b", "c"]):
        assert_alike(task(inputs), reference(inputs))
    assert task([]) == []
    assert_alike(task(("the sun stood still", "and the moon stayed")), reference(pair))


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_long_texts_and_pairs_are_truncated_as_by_transformers(
    family: str, model_folder: ModelFolder, long_texts: list[str], pairs: list[tuple[str, str]]
) -> None:
    folder = model_folder(family, HEAD, **LABELS)
    reference, task = theirs(folder), ours(folder)
    as_dicts = [{"text": first, "text_pair": second} for first, second in pairs]
    assert_alike(task(long_texts), reference(long_texts, truncation=True))
    stats, flagged = EncodeStats(), []
    assert_alike(task(as_dicts, stats=stats), reference(as_dicts, truncation=True))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    whole = [len(tokenizer(first, second, verbose=False)["input_ids"]) for first, second in pairs]
    expected = [row for row, length in enumerate(whole) if length > tokenizer.model_max_length]
    assert len(expected) > 15
    assert (stats.texts, stats.truncated) == (len(pairs), len(expected))
    items, _ = task.read(as_dicts, {})
    assert len(list(task.answers(items, task.options_class(), on_truncated=flagged.append))) == len(pairs)
    assert flagged == expected


@pytest.mark.parametrize("paired", [False, True])
def test_long_texts_can_be_refused(paired: bool, task: Task[Any, Any], long_texts: list[str]) -> None:
    inputs: list[Any] = ["short", long_texts[0], "short too"]
    inputs = [(text, "beside it") for text in inputs] if paired else inputs
    with pytest.raises(padless.InputError, match=r"^row 1: .*96 tokens"):
        task(inputs, long_texts="error")
    items, _ = task.read(inputs, {})
    answers = list(task.answers(items, task.options_class(long_texts="error")))
    assert isinstance(answers[1], padless.InputError)
    assert_alike([answers[0], answers[2]], task([inputs[0], inputs[2]]))


@functools.cache
def their_parts(folder: Path) -> tuple[Any, Any]:
    """transformers' tokenizer and model."""
    return AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)


def chunk_scores(folder: Path, texts: tuple[str, ...], overlap: int) -> np.ndarray:
    """float32 `[pieces, labels]` by transformers' own tokenizer and model."""
    tokenizer, model = their_parts(folder)
    pieces = tokenizer(
        *texts,
        truncation="only_second" if len(texts) == 2 else "only_first",
        stride=overlap,
        return_overflowing_tokens=True,
        padding=True,
        return_tensors="pt",
    )
    pieces.pop("overflow_to_sample_mapping")
    with torch.no_grad():
        return torch.softmax(model(**pieces).logits, dim=-1).numpy()


@pytest.mark.parametrize("overlap", [0, 17])
@pytest.mark.parametrize("first", [None, "what is it about?"])
def test_chunks_see_all_of_a_text(
    overlap: int, first: str | None, folder: Path, task: Task[Any, Any], long_texts: list[str]
) -> None:
    for text in (*long_texts, "short"):
        inputs = (text,) if first is None else (first, text)
        expected = chunk_scores(folder, inputs, overlap)
        given: Any = [inputs if first else text]
        options: dict[str, Any] = {"long_texts": "chunk", "overlap": overlap, "top_k": None}
        for aggregate, scores in (("mean", expected.mean(axis=0)), ("max", expected.max(axis=0))):
            found = {answer["label"]: answer["score"] for answer in task(given, aggregate=aggregate, **options)[0]}
            assert [found[label] for label in LABELS["id2label"].values()] == pytest.approx(scores.tolist(), abs=1e-5)
        each = task(given, aggregate="each", **{**options, "top_k": ""})[0]
        assert [answer["label"] for answer in each] == [LABELS["id2label"][row] for row in expected.argmax(axis=1)]
        assert [answer["score"] for answer in each] == pytest.approx(expected.max(axis=1).tolist(), abs=1e-5)


def test_a_first_text_that_leaves_no_room_for_chunks_costs_only_its_row(task: Task[Any, Any]) -> None:
    items, _ = task.read([("a", "b"), ("word " * 200, "c"), ("d", "e")], {})
    answers = list(task.answers(items, task.options_class(long_texts="chunk")))
    assert isinstance(answers[1], padless.InputError)
    assert "200 tokens" in str(answers[1])
    assert_alike([answers[0], answers[2]], task([("a", "b"), ("d", "e")]))


@pytest.mark.parametrize("place", ["alone", "first", "second"])
def test_a_hundred_megabytes_are_cut_before_they_are_tokenised(place: str, task: Task[Any, Any]) -> None:
    # Tokenised whole, this would take gigabytes of memory and minutes.
    unit = "In the beginning was the Word, and the Word was long. "
    text, short = unit * (100_000_000 // len(unit)), unit * 100
    inputs = [text, short] if place == "alone" else [(text, "x"), (short, "x")]
    inputs = [("x", text), ("x", short)] if place == "second" else inputs
    stats = EncodeStats()
    long, same = task(inputs, stats=stats)
    assert_alike(long, same)
    assert stats.truncated == 2


def test_which_of_two_long_texts_is_longer_decides_the_odd_token(folder: Path, task: Task[Any, Any]) -> None:
    # Each is more than the model takes, so both are cut before they are tokenised; 93 tokens are left for them.
    unit = "in the beginning was the word and the word was long "
    long, longer = unit * 2_000, unit * 2_001
    reference = theirs(folder)
    for first, second in ((long, longer), (longer, long), (long, long)):
        kept = [unit * 200, unit * 201] if len(first) < len(second) else [unit * 201, unit * 200]
        kept = [unit * 200] * 2 if first == second else kept
        expected = reference({"text": kept[0], "text_pair": kept[1]}, truncation=True)
        assert_alike(task((first, second)), expected)


def test_lone_surrogates_count_as_replacement_characters(task: Task[Any, Any]) -> None:
    stats = EncodeStats()
    found = task(["moon \ud800", "moon \ufffd", ("a", "\udfff b"), ("a", "\ufffd b"), "plain"], stats=stats)
    assert_alike(found[0], found[1])
    assert_alike(found[2], found[3])
    assert stats.repaired == 2


@pytest.mark.parametrize("bad", [None, 7, b"bytes", ["a", "b"], ("a", 1), ("a", "b", "c"), {"txt": "a"}], ids=repr)
def test_an_input_of_another_type_is_named(bad: Any, task: Task[Any, Any]) -> None:
    with pytest.raises(padless.InputError, match=r"^row 1: expected"):
        task(["a", bad])


@pytest.mark.parametrize(
    "options",
    [
        *({"top_k": 0}, {"top_k": True}, {"function_to_apply": "tanh"}, {"long_texts": "drop"}, {"aggregate": "min"}),
        *({"overlap": -1}, {"overlap": 94, "long_texts": "chunk"}, {"nosuch": 1}),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, Any], task: Task[Any, Any]) -> None:
    with pytest.raises(padless.OptionError) as error:
        task(["a"], **options)
    assert next(iter(options)) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_limit_that_leaves_pairs_no_room_is_refused(folder: Path) -> None:
    task = ours(folder)
    task.loaded.tokenizer.max_length = 3
    assert task(["a b c"])[0].keys() == {"label", "score"}
    with pytest.raises(padless.OptionError, match=r"max_length: expected more than 3"):
        task([("a", "b c")])


def test_scores_that_are_no_numbers_are_no_answer(folder: Path) -> None:
    task = ours(folder)
    poisoned = int(task.loaded.tokenizer.encode(["bread"]).input_ids[1])
    with torch.no_grad():
        task.loaded.model.base_model.embeddings.word_embeddings.weight[poisoned] = torch.nan
    items, _ = task.read(["moon", "bread", "stone"], {})
    answers = list(task.answers(items, task.options_class()))
    assert isinstance(answers[1], padless.InputError)
    assert_alike(answers[0], task(["moon"])[0])
    with pytest.raises(padless.InputError, match=r"^row 1: "):
        task(["moon", "bread", "stone"])


def test_arguments_of_the_tokenizer_are_those_of_the_pipeline(
    folder: Path, task: Task[Any, Any], long_texts: list[str]
) -> None:
    some = long_texts[4:]  # three of news, and those of other kinds
    pairs = [{"text": one, "text_pair": other} for one, other in zip(some, some[3:], strict=False)]
    for given in (some, pairs):
        for limit in (12, 40, None):
            options = {"truncation": True, "max_length": limit, "padding": True}
            for found, expected in zip(task(given, **options), theirs(folder)(given, **options), strict=True):
                assert_alike(found, expected)
    short, whole = (task(long_texts[:1], max_length=limit)[0]["score"] for limit in (9, None))
    assert short != whole
    with pytest.raises(padless.OptionError, match="max_length: expected a whole number from 1"):
        task(["a"], max_length=0)
    with pytest.raises(padless.OptionError, match="truncation: expected one of"):
        task(["a"], truncation="left")
