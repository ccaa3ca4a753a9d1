"""Batches of a task that run out of memory are computed in halves; a text that does not fit alone costs itself only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from task_models import ModelFolder

import padless
from padless.engine.streaming.stream import EncodeStats

TEXTS = [" ".join(["sun"] * (3 + number % 20)) for number in range(300)]


@pytest.fixture(scope="module")
def task(model_folder: ModelFolder) -> Any:
    return padless.load(model_folder("bert", "ForSequenceClassification"), task="text-classification", dtype="float32")


@pytest.fixture
def shrink(task: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have the model run out of memory behind every batch of more than so many tokens."""

    def shrink(most: int) -> None:
        forward = task.loaded.model.forward

        def run_or_fail(batch: Any, *arguments: Any, **options: Any) -> Any:
            found = forward(batch, *arguments, **options)
            if batch.tokens > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return found

        monkeypatch.setattr(task.loaded.model, "forward", run_or_fail)

    return shrink


def test_answers_are_those_of_enough_memory(task: Any, shrink: Callable[[int], None]) -> None:
    expected = task(TEXTS)
    shrink(100)
    stats = EncodeStats()
    found = task(TEXTS, stats=stats)
    assert [answer["label"] for answer in found] == [answer["label"] for answer in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    assert 1 <= stats.retries <= 10  # what was too large is not tried again
    assert stats.texts == len(TEXTS)


def test_a_text_too_large_alone_costs_itself_only(task: Any, shrink: Callable[[int], None]) -> None:
    expected = task(TEXTS)
    shrink(20)
    found = list(task.answers(TEXTS, task.options({})))
    refused = [row for row, answer in enumerate(found) if isinstance(answer, padless.InputError)]
    tokens = task.loaded.tokenizer.encode(TEXTS).lengths
    assert refused == (tokens > 20).nonzero()[0].tolist()
    assert 0 < len(refused) < len(TEXTS)
    assert "out of memory with its 21 tokens alone (CUDA out of memory." in str(found[refused[0]])
    for row, answer in enumerate(found):
        if row not in refused:
            assert answer["score"] == pytest.approx(expected[row]["score"], abs=1e-5)


def test_other_errors_are_not_taken_for_it(task: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(task.loaded.model, "forward", fails)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        task(TEXTS)
