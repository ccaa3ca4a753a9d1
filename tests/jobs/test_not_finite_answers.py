"""Jobs of every task over a model with one token whose embedding is no number, or too large for fp16: rows that hold
the token are asked again in float32 by the eager implementation, and recorded where that does not help; their
neighbours are answered as in a job without them, and nothing that is not finite is written.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

import padless
from padless.engine.jobs.answering import AnsweringTask
from padless.engine.jobs.finite import not_finite
from padless.engine.tasks import TASKS

sys.path.insert(0, str(Path(__file__).parent))
from answering_jobs import assert_close, job, loaded
from seeded_folders import make_folder
from writing_folders import write_megatron

NO_NUMBERS = "the model gave NaN or infinity; expected finite scores"
NO_TOKEN = "token 1: none is left; the model gave NaN or infinity, or the options forbid all"
LINES = [
    "the sun stood still over the valley",
    "a bomb fell on the valley",
    "let there be light",
    "the moon and the river and the night",
    "bomb",
    "he maketh me to lie down in green pastures",
]
BAD = [1, 4]
GOOD = [row for row in range(len(LINES)) if row not in BAD]


@dataclass(frozen=True)
class Case:
    """A job of one task.

    Attributes:
        task: its name.
        kind: class of the model.
        texts: of its rows; those of `BAD` hold the word, here or in `pairs`.
        pairs: the second texts, or lists of them.
        options: of the task.
        config: of the model.
        family: of the model.
        reason: of the records.
    """

    task: str
    kind: str
    texts: list[str] = field(default_factory=lambda: LINES)
    pairs: list[Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    family: str = "Bert"
    reason: str = NO_NUMBERS


QUESTIONS = ["who stood?", "what fell?", "what was there?", "where?", "what bomb?", "who lies?"]
CONTEXTS = [*LINES[:4], "nothing was there", LINES[5]]
LISTS = [["light", line, "the river"] for line in LINES]
NLI = {"label2id": {"no": 0, "maybe": 1, "entailment": 2}, "num_labels": 3}
GREEDY = {"max_new_tokens": 4, "do_sample": False, "num_beams": 1}
CASES = {
    "fill-mask": Case("fill-mask", "ForMaskedLM", [f"[MASK] {line}" for line in LINES]),
    "fill-mask of targets": Case(
        "fill-mask", "ForMaskedLM", [f"{line} [MASK] [MASK]" for line in LINES], options={"targets": ["sun", "moon"]}
    ),
    "text-classification": Case("text-classification", "ForSequenceClassification", config={"num_labels": 3}),
    "text-classification, sigmoid": Case(
        "text-classification",
        "ForSequenceClassification",
        config={"num_labels": 3},
        options={"function_to_apply": "sigmoid", "top_k": None},
    ),
    "zero-shot-classification": Case(
        "zero-shot-classification",
        "ForSequenceClassification",
        options={"candidate_labels": ["war", "peace", "weather"]},
        config=NLI,
    ),
    "zero-shot, each label": Case(
        "zero-shot-classification",
        "ForSequenceClassification",
        options={"candidate_labels": ["war", "peace"], "multi_label": True, "long_texts": "chunk"},
        config=NLI,
    ),
    "rerank": Case(
        "rerank",
        "ForSequenceClassification",
        ["who?"] * 6,
        LISTS,
        config={"num_labels": 1},
        reason=f"document 1: {NO_NUMBERS}",
    ),
    "rerank in pieces": Case(
        "rerank",
        "ForSequenceClassification",
        ["who?"] * 6,
        [["light", f"{'river ' * 90}{line}"] for line in LINES],
        options={"long_texts": "chunk", "aggregate": "mean"},
        config={"num_labels": 1},
        reason=f"document 1: {NO_NUMBERS}",
    ),
    "question-answering": Case("question-answering", "ForQuestionAnswering", QUESTIONS, CONTEXTS),
    "question-answering in windows": Case(
        "question-answering",
        "ForQuestionAnswering",
        ["who?"] * 6,
        [f"{'the river and the night ' * 20}{line}" for line in LINES],
        options={"top_k": 2, "handle_impossible_answer": True},
    ),
    "token-classification": Case("token-classification", "ForTokenClassification", config={"num_labels": 3}),
    "token-classification, average": Case(
        "token-classification",
        "ForTokenClassification",
        options={"aggregation_strategy": "average"},
        config={"num_labels": 3},
    ),
    "multiple-choice": Case("multiple-choice", "ForMultipleChoice", ["which?"] * 6, LISTS),
    "multiple-choice in pieces": Case(
        "multiple-choice",
        "ForMultipleChoice",
        [f"{'river ' * 90}{line}" for line in LINES],
        [["light", "night"]] * 6,
        options={"long_texts": "chunk"},
    ),
    "next-sentence-prediction": Case("next-sentence-prediction", "ForNextSentencePrediction", QUESTIONS, CONTEXTS),
    "text2text-generation": Case(
        "text2text-generation", "ForConditionalGeneration", options=GREEDY, family="MT5", reason=NO_TOKEN
    ),
    "text2text-generation, beams": Case(
        "text2text-generation",
        "ForConditionalGeneration",
        options={"max_new_tokens": 4, "num_beams": 3},
        family="MT5",
        reason=NO_TOKEN,
    ),
    "text-generation": Case("text-generation", "megatron", options=GREEDY, reason=NO_TOKEN),
    "text-generation, drawn": Case(
        "text-generation", "megatron", options={"max_new_tokens": 4, "do_sample": True}, reason=NO_TOKEN
    ),
}
WRITING = ("text2text-generation", "text-generation")
HEADS = {"MT5": "lm_head.weight", "megatron": "cls.predictions.decoder.weight", "ForMaskedLM": ""}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models are so small that two threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Path]:
    """The seeded model of a case as it was saved, with a head of its own where heads share the table of embeddings."""
    made: dict[str, Path] = {}

    def make(case: Case) -> Path:
        key = repr((case.family, case.kind, case.config))
        if key not in made:
            path = tmp_path_factory.mktemp("sound")
            if case.kind == "megatron":
                write_megatron(path)
            else:
                untied = {"tie_word_embeddings": False} if case.kind == "ForMaskedLM" else {}
                make_folder(path, case.family, case.kind, positions=64, **untied, **case.config)
            head = HEADS.get(case.family) or HEADS.get(case.kind)
            if head:
                weights, config = load_file(path / "model.safetensors"), json.loads((path / "config.json").read_text())
                weights[head] = table_of(weights).clone()
                if "cls.predictions.bias" in weights:
                    weights["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"].clone()
                save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
                (path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
            made[key] = path
        return made[key]

    return make


def table_of(weights: Any) -> torch.Tensor:
    """The table of word embeddings, of a file's weights or a model's parameters."""
    return next(table for name, table in weights.items() if name.endswith(("word_embeddings.weight", "shared.weight")))


@functools.cache
def spoilt_token(folder: Path) -> int:
    """The token that rows of `BAD` hold and no others."""
    tokenizer = padless.AutoTokenizer.from_pretrained(folder)
    own = [{*tokenizer(line).input_ids} for line in LINES]
    token = next(iter(set.intersection(*(own[row] for row in BAD)) - set.union(*(own[row] for row in GOOD))))
    # As a piece of any text, not only of these.
    for questions in (QUESTIONS, CONTEXTS):
        assert [row for row, line in enumerate(questions) if token in tokenizer(line).input_ids] in ([4], [1])
    return token


def with_large_numbers(sound: Path, folder: Path, size: float) -> Path:
    """A copy of a model with so large numbers, all of them finite, in the embedding of the token."""
    shutil.copytree(sound, folder)
    weights = load_file(folder / "model.safetensors")
    table = table_of(weights)
    signs = torch.tensor([1.0, -1.0]).repeat(table.shape[1] // 2)
    table[spoilt_token(sound)] = size * signs
    for name, weight in weights.items():
        if size < 1e6 and name.endswith("position_embeddings.weight"):
            weight += size / 60 * signs
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def load(case: Case, path: Path, dtype: str = "float32") -> AnsweringTask:
    return AnsweringTask(padless.load(path, task=case.task, device="cpu", dtype=dtype), case.options)


def spoil(task: Any, value: float) -> None:
    """Put a number into the embedding of the token that a loaded model holds; no file may have NaN."""
    with torch.no_grad():
        table_of(dict(task.loaded.model.named_parameters()))[spoilt_token(task.loaded.folder)] = value


def good(values: list[Any] | None) -> list[Any] | None:
    return None if values is None else [values[row] for row in GOOD]


def results_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in ("row", "key", "kept")} for row in rows]


def assert_recorded(case: Case, sound: Path, task: AnsweringTask, folder: Path) -> None:
    """A job of all rows has those of `GOOD` as a job of these alone over the sound model, the others in its records."""
    rows, bad, summary, _ = job(task, folder / "out", case.texts, case.pairs)
    assert [row["row"] for row in rows] == GOOD
    assert (summary.fallbacks, summary.errors) == (len(BAD), len(BAD))
    records = [json.loads(line) for line in (folder / "out" / "errors.jsonl").read_text().splitlines()]
    assert [(record["row"], record["kind"], record["error"]) for record in records] == [
        (row, "error", "NotFiniteError") for row in BAD
    ]
    assert bad == dict.fromkeys(BAD, case.reason)
    table = pq.read_table(folder / "out" / "part-00000.parquet")
    assert not len(not_finite([column.combine_chunks() for column in table.columns]))
    texts = good(case.texts)
    assert texts is not None
    expected, none, *_ = job(
        AnsweringTask(loaded(sound, case.task), case.options), folder / "other", texts, good(case.pairs)
    )
    assert none == {}
    assert_close(results_of(rows), results_of(expected))


@pytest.mark.parametrize(
    ("name", "value"),
    [*((name, "nan") for name in CASES), ("fill-mask", "inf"), ("rerank", "-inf"), ("text2text-generation", "inf")],
)
def test_rows_without_numbers_are_recorded_and_their_neighbours_as_ever(
    name: str, value: str, sound: Callable[[Case], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    path = sound(case)

    def load_spoilt(*arguments: Any, **options: Any) -> Any:
        task = padless.load(*arguments, **options)
        spoil(task, float(value))
        return task

    # What is asked again is loaded anew, from a folder that has numbers only.
    monkeypatch.setattr("padless.engine.jobs.answering.load", load_spoilt)
    task = AnsweringTask(load_spoilt(path, task=case.task, device="cpu", dtype="float32"), case.options)
    assert_recorded(case, path, task, tmp_path)


@pytest.mark.parametrize("name", [name for name in CASES if name in TASKS and name not in WRITING])
def test_what_overflows_in_float32_is_recorded(name: str, sound: Callable[[Case], Path], tmp_path: Path) -> None:
    """The same by the weights of a file, which are finite."""
    case = CASES[name]
    path = with_large_numbers(sound(case), tmp_path / "model", 3e38)
    assert_recorded(case, sound(case), load(case, path), tmp_path)


# mT5 bounds what would overflow in fp16.
@pytest.mark.parametrize("name", [name for name in CASES if name in TASKS and name != "text2text-generation"])
def test_what_overflows_in_fp16_is_answered_in_float32(
    name: str, sound: Callable[[Case], Path], tmp_path: Path
) -> None:
    case = CASES[name]
    path = with_large_numbers(sound(case), tmp_path / "model", 65_000.0)
    half = load(case, path, "float16")
    rows, bad, summary, _ = job(half, tmp_path / "out", case.texts, case.pairs)
    assert (bad, summary.fallbacks, summary.results) == ({}, len(BAD), len(LINES))
    exact, *_ = job(load(case, path), tmp_path / "exact", case.texts, case.pairs)
    assert_same([rows[row] for row in BAD], [exact[row] for row in BAD], 1e-5)
    # The neighbours are those of fp16, whoever stands beside them.
    texts = good(case.texts)
    assert texts is not None
    expected, *_ = job(half, tmp_path / "other", texts, good(case.pairs))
    assert_same([rows[row] for row in GOOD], expected, 1e-6)


@pytest.mark.parametrize("name", ["text2text-generation", "text2text-generation, beams", "text-generation"])
def test_logits_that_overflow_in_fp16_are_not_chosen_from(
    name: str, sound: Callable[[Case], Path], tmp_path: Path
) -> None:
    """Their infinities would all be equal, and the first of them the likeliest token."""
    case = CASES[name]
    path = tmp_path / "model"
    shutil.copytree(sound(case), path)
    weights = load_file(path / "model.safetensors")
    head = weights[HEADS.get(case.family) or HEADS[case.kind]]
    head *= 60_000 / head.abs().max()
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    rows, bad, summary, _ = job(load(case, path, "float16"), tmp_path / "out", case.texts)
    exact, *_ = job(load(case, path), tmp_path / "exact", case.texts)
    assert (bad, summary.fallbacks) == ({}, len(LINES))
    assert results_of(rows) == results_of(exact)


@pytest.mark.parametrize("name", ["text2text-generation, beams", "text-generation, drawn"])
def test_what_the_loaded_model_cannot_the_one_that_is_loaded_anew_can(
    name: str, sound: Callable[[Case], Path], tmp_path: Path
) -> None:
    case = CASES[name]
    task = padless.load(sound(case), task=case.task, device="cpu", dtype="float32")
    spoil(task, float("nan"))
    rows, bad, summary, _ = job(AnsweringTask(task, case.options), tmp_path / "out", case.texts)
    assert (bad, summary.fallbacks) == ({}, len(BAD))
    for some in ([BAD[0]], [BAD[1]], GOOD):
        same = AnsweringTask(loaded(sound(case), case.task), case.options)
        expected, *_ = job(same, tmp_path / str(some), [case.texts[row] for row in some])
        assert results_of([rows[row] for row in some]) == results_of(expected)


def assert_same(rows: list[dict[str, Any]], expected: list[dict[str, Any]], tolerance: float) -> None:
    """All but scores is equal."""
    for row, other in zip(results_of(rows), results_of(expected), strict=True):
        assert without_scores(row) == without_scores(other)
        assert scores_of(row) == pytest.approx(scores_of(other), abs=tolerance)


def without_scores(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_scores(part) for name, part in value.items()}
    if isinstance(value, list):
        return [without_scores(part) for part in value]
    return None if isinstance(value, float) else value


def scores_of(value: Any) -> list[float]:
    """All floats in a row, in their order."""
    if isinstance(value, dict):
        value = [*value.values()]
    if isinstance(value, list):
        return [score for part in value for score in scores_of(part)]
    return [value] if isinstance(value, float) else []
