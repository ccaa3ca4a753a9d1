"""Jobs of tasks whose batches run out of memory a hundred times: no row is lost, answers are those of enough."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import padless
from padless.engine.jobs.answering import AnsweringTask

sys.path.insert(0, str(Path(__file__).parent))
from answering_jobs import Folder, folders, job, single

ERRORS: list[Callable[[], BaseException]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    MemoryError,
]
ROWS = 300
TEXTS = [f"the {word} stood still {'by the river ' * (row % 4)}" for row, word in zip(range(ROWS), itertools.cycle(
    ["sun", "moon", "stone", "night", "bread", "light", "valley"]
), strict=False)]  # fmt: skip
TASKS: dict[str, tuple[str, dict[str, Any], dict[str, Any], list[Any] | None, str]] = {
    "token-classification": ("ForTokenClassification", {"num_labels": 3}, {}, None, "forward"),
    "fill-mask": ("ForMaskedLM", {}, {"top_k": 2}, None, "top_predictions"),
    "question-answering": ("ForQuestionAnswering", {}, {"top_k": 2}, [text * 4 for text in TEXTS], "forward"),
    "rerank": (
        *("ForSequenceClassification", {"num_labels": 1}, {"long_texts": "chunk"}),
        *([[text, "moon " * (row % 90), "sun"] for row, text in enumerate(TEXTS)], "forward"),
    ),
    "text2text-generation": ("mt5", {}, {"max_new_tokens": 2, "num_beams": 1}, None, "generate"),
}
"""Kind of the model, its configuration, options, second texts, and what of the model runs out of memory."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """`folder(kind, **config)`: see answering_jobs.py."""
    return folders(tmp_path_factory)


def scores_and_rest(value: Any) -> tuple[list[float], Any]:
    """All floats of a value in their order, and the value without them."""
    if isinstance(value, float):
        return [value], None
    if isinstance(value, dict):
        scores, rest = scores_and_rest([*value.values()])
        return scores, dict(zip(value, rest, strict=True))
    if isinstance(value, list):
        parts = [scores_and_rest(part) for part in value]
        return [score for scores, _ in parts for score in scores], [rest for _, rest in parts]
    return [], value


@pytest.mark.parametrize("name", ["token-classification", "question-answering", "rerank"])
def test_hundred_errors_cost_no_row(name: str, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, config, options, pairs, method = TASKS[name]
    task = padless.load(folder(kind, **config), task=name, device="cpu", dtype="float32")
    expected, none, whole, _ = job(AnsweringTask(task, options), tmp_path / "whole", TEXTS, pairs)
    assert (none, whole.retries) == ({}, 0)
    compute = getattr(task.loaded.model, method)
    left, kinds, calls = 100, itertools.cycle(ERRORS), itertools.count()

    def compute_or_fail(batch: Any, *arguments: Any, **named: Any) -> Any:
        """Fail with batches of several texts, now and then of three only."""
        nonlocal left
        if left and len(batch) > 1 + (next(calls) % 5 == 4):
            left -= 1
            raise next(kinds)()
        return compute(batch, *arguments, **named)

    monkeypatch.setattr(task.loaded.model, method, compute_or_fail)
    rows, bad, summary, _ = job(AnsweringTask(task, options), tmp_path / "out", TEXTS, pairs, rows_per_shard=6)
    assert left == 0
    assert (bad, summary.results, summary.retries) == ({}, ROWS, 100)
    for row, other in zip(rows, expected, strict=True):
        scores, rest = scores_and_rest(row)
        their_scores, their_rest = scores_and_rest(single(other))
        assert rest == their_rest
        assert scores == pytest.approx(their_scores, abs=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_a_row_too_large_alone_is_recorded_as_such(
    name: str, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, config, options, pairs, method = TASKS[name]
    rows, large = 9, 4
    texts = [f"{text} [MASK]" if name == "fill-mask" else text for text in TEXTS[:rows]]
    texts[large] = "[MASK] " + "night " * 40
    pairs = None if pairs is None else pairs[:rows]
    task = padless.load(folder(kind, **config), task=name, device="cpu", dtype="float32")
    compute = getattr(task.loaded.model, method)
    word = int(task.loaded.tokenizer.encode(["night night night"]).input_ids[-2])
    monkeypatch.setattr(
        task.loaded.model,
        method,
        lambda batch, *arguments, **named: (
            compute(batch, *arguments, **named)
            if int((batch.input_ids == word).sum()) < 30
            else (_ for _ in ()).throw(MemoryError())
        ),
    )
    found, bad, summary, _ = job(AnsweringTask(task, options), tmp_path / "out", texts, pairs)
    assert [row["row"] for row in found] == [row for row in range(rows) if row != large]
    assert list(bad) == [large]
    assert bad[large].startswith("out of memory with its ")
    assert '"error": "MemoryLimitError"' in (tmp_path / "out" / "errors.jsonl").read_text()
    assert summary.errors == 1
