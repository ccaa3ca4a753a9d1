"""Batches that run out of memory are computed in halves: no row is lost, and the results are those of enough memory."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import padless
from padless.engine.embedding.encoder import EncodeStats
from padless.engine.failures import is_out_of_memory
from padless.engine.jobs.budget import LEAST, bounded, token_budget
from padless.engine.jobs.embedding import EmbeddingTask
from padless.engine.jobs.run import run_job

WORDS = ("sun", "moon", "river", "stone", "bread", "night", "still", "stood")
ERRORS: list[Callable[[], BaseException]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 9 bytes. Error code 12 (Cannot allocate memory)"
    ),
    MemoryError,
]

Shrink = Callable[[Callable[[int], BaseException | None]], None]


def texts_of(count: int) -> list[str]:
    words = random.Random(20250117)
    return [" ".join(words.choices(WORDS, k=words.choice((4, 16)))) for _ in range(count)]


@pytest.fixture
def tiny(tiny_folder: Path) -> padless.Encoder:
    """One for each test: some bind it anew."""
    return padless.load(tiny_folder, device="cpu", dtype="float32")


@pytest.fixture
def shrink(tiny: padless.Encoder, monkeypatch: pytest.MonkeyPatch) -> Shrink:
    """Have the model raise, in the middle of a batch of so many tokens, what a function says."""

    def shrink(error_for: Callable[[int], BaseException | None]) -> None:
        run = tiny.model.run

        def run_or_fail(batch: Any) -> Any:
            hidden = run(batch)
            if (error := error_for(batch.tokens)) is not None:
                raise error
            return hidden

        monkeypatch.setattr(tiny.model, "run", run_or_fail)

    monkeypatch.setattr(tiny, "token_budget", 400)
    return shrink


def vectors_of(folder: Path) -> np.ndarray:
    columns = [pq.read_table(path)["embedding"].combine_chunks() for path in sorted(folder.glob("part-*"))]
    return np.concatenate([column.flatten().to_numpy().reshape(len(column), -1) for column in columns])


@pytest.mark.parametrize("deterministic", [False, True])
def test_hundred_errors_in_a_job_cost_no_row(
    tiny: padless.Encoder, tmp_path: Path, shrink: Shrink, deterministic: bool
) -> None:
    """With deterministic=True the rows have the bits of a job with memory enough."""
    texts = texts_of(3_000)
    (tmp_path / "in.txt").write_text("\n".join(texts))
    if deterministic:
        tiny.model.bind(deterministic=True)
    expected = tiny.encode(texts)
    left, kinds, calls = 100, itertools.cycle(ERRORS), itertools.count()

    def every_other_batch(tokens: int) -> BaseException | None:
        nonlocal left
        if left == 0 or tokens < 50 or next(calls) % 2:
            return None
        left -= 1
        return next(kinds)()

    shrink(every_other_batch)
    summary = run_job(EmbeddingTask(tiny), [tmp_path / "in.txt"], tmp_path / "out", rows_per_shard=30)
    assert left == 0
    assert (summary.rows, summary.results, summary.errors, summary.retries) == (3_000, 3_000, 0, 100)
    if deterministic:
        assert np.array_equal(vectors_of(tmp_path / "out"), expected)
    np.testing.assert_allclose(vectors_of(tmp_path / "out"), expected, atol=1e-5, rtol=0)


def test_no_batch_is_tried_above_what_was_too_much(tiny: padless.Encoder, shrink: Shrink) -> None:
    """One failure teaches the whole call: it is not repeated for every batch."""
    texts = ["sun " * 18] * 500
    expected = tiny.encode(texts)
    shrink(lambda tokens: MemoryError() if tokens > 200 else None)
    stats = EncodeStats()
    np.testing.assert_allclose(tiny.encode(texts, stats=stats), expected, atol=1e-5, rtol=0)
    assert 1 <= stats.retries <= 2
    assert stats.tokens == 500 * 20


def test_text_too_large_alone_is_a_row_error_in_a_job(tiny: padless.Encoder, tmp_path: Path, shrink: Shrink) -> None:
    texts = texts_of(40)
    texts[7] = texts[23] = "moon " * 50
    (tmp_path / "in.txt").write_text("\n".join(texts))
    kept = [row for row in range(40) if row not in (7, 23)]
    expected = tiny.encode([texts[row] for row in kept])
    shrink(lambda tokens: ERRORS[0]() if tokens > 50 else None)
    summary = run_job(EmbeddingTask(tiny), [tmp_path / "in.txt"], tmp_path / "out")
    assert (summary.rows, summary.results, summary.errors) == (40, 38, 2)
    assert pq.read_table(tmp_path / "out" / "part-00000.parquet")["row"].to_pylist() == kept
    np.testing.assert_allclose(vectors_of(tmp_path / "out"), expected, atol=1e-5, rtol=0)
    records = (tmp_path / "out" / "errors.jsonl").read_text().splitlines()
    assert all("out of memory with its 52 tokens alone (CUDA out of memory." in record for record in records)


def test_text_too_large_alone_raises_from_encode(tiny: padless.Encoder, shrink: Shrink) -> None:
    texts = ["sun", "moon " * 50, "river"]
    shrink(lambda tokens: MemoryError() if tokens > 50 else None)
    with pytest.raises(padless.PadlessError) as caught:
        tiny.encode(texts)
    assert str(caught.value) == "row 1: out of memory with its 52 tokens alone (MemoryError)"


def test_other_errors_are_none_of_memory(tiny: padless.Encoder, shrink: Shrink) -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator: can't allocate memory"))
    shrink(lambda tokens: RuntimeError("device-side assert triggered"))
    with pytest.raises(RuntimeError, match="device-side assert"):
        tiny.encode(["sun", "moon"])


def test_what_the_cpu_allocator_really_says_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.int8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("most", "free", "per_token", "expected"),
    [
        (65_536, 80 << 30, 100_000, 65_536),
        (65_536, 8 << 30, 100_000, (8 << 30) // 200_000),
        (65_536, 1 << 20, 100_000, LEAST),
        (100, 1 << 20, 100_000, 100),
        (4_096, 24 << 30, 0.0, 4_096),
    ],
)
def test_budget_from_free_memory(most: int, free: int, per_token: float, expected: int) -> None:
    assert bounded(most, free, per_token) == expected


@pytest.fixture
def restored(tiny: padless.Encoder) -> Iterator[padless.Encoder]:
    budget = tiny.token_budget
    yield tiny
    tiny.token_budget = budget


def test_budget_of_a_job_is_never_above_the_encoders_own(restored: padless.Encoder, tmp_path: Path) -> None:
    restored.token_budget = 700
    assert 512 <= token_budget(EmbeddingTask(restored)) <= 700
    (tmp_path / "in.txt").write_text("sun")
    assert run_job(EmbeddingTask(restored), [tmp_path / "in.txt"], tmp_path / "a").token_budget <= 700
    assert run_job(EmbeddingTask(restored), [tmp_path / "in.txt"], tmp_path / "b", token_budget=9).token_budget == 9
