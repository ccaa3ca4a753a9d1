"""Results that are not finite: computed again in float32, recorded where that does not help, never written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

import padless
from padless.engine.embedding.encoder import EncodeStats
from padless.engine.jobs.embedding import EmbeddingOptions, EmbeddingTask
from padless.engine.jobs.finite import not_finite
from padless.engine.jobs.inputs.rows import Row
from padless.engine.jobs.run import run_job
from padless.engine.jobs.task import Answers

TEXTS = ["sun", "the bomb", "moon", "stone and bread", "bomb bomb", "river"]
BAD = [1, 4]


def with_bomb(tiny_folder: Path, folder: Path, size: float) -> Path:
    """The tiny model, with an embedding of the word "bomb" of so large numbers."""
    folder.mkdir()
    for name in ("config.json", "vocab.txt", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_folder / name).read_bytes())
    weights = load_file(tiny_folder / "model.safetensors")
    word = (folder / "vocab.txt").read_text().splitlines().index("bomb")
    for key in weights:
        if key.endswith("word_embeddings.weight"):
            weights[key][word] = size * torch.tensor([1.0, -1.0]).repeat(16)
        if key.endswith("position_embeddings.weight"):
            weights[key] += size / 60 * torch.tensor([1.0, -1.0]).repeat(16) if size < 1e6 else 0.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def table_of(folder: Path) -> tuple[list[int], np.ndarray]:
    table = pq.read_table(folder / "part-00000.parquet")
    column = table["embedding"].combine_chunks()
    return table["row"].to_pylist(), column.flatten().to_numpy().reshape(len(column), -1)


def test_overflow_of_fp16_is_computed_again_in_float32(tiny_folder: Path, tmp_path: Path) -> None:
    """The word's embedding and the position's are finite in fp16, their sum is not."""
    folder = with_bomb(tiny_folder, tmp_path / "model", 65_000.0)
    half = padless.load(folder, device="cpu", dtype="float16")
    exact = padless.load(folder, device="cpu", dtype="float32")
    assert not np.isfinite(half.encode(TEXTS, check_finite=False)[BAD]).any()
    (tmp_path / "in.txt").write_text("\n".join(TEXTS))
    options = EmbeddingOptions(normalize_embeddings=True, truncate_dim=30)
    summary = run_job(EmbeddingTask(half, options), [tmp_path / "in.txt"], tmp_path / "out")
    assert (summary.results, summary.errors, summary.fallbacks) == (6, 0, 2)
    rows, vectors = table_of(tmp_path / "out")
    assert rows == list(range(6))
    expected = exact.encode(TEXTS, normalize_embeddings=True, truncate_dim=30)
    np.testing.assert_allclose(vectors[BAD], expected[BAD], atol=1e-5, rtol=0)
    good = [row for row in range(6) if row not in BAD]
    np.testing.assert_array_equal(
        vectors[good], half.encode(TEXTS, normalize_embeddings=True, truncate_dim=30, check_finite=False)[good]
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_float32_cannot_hold_either_is_recorded(tiny_folder: Path, tmp_path: Path, dtype: str) -> None:
    encoder = padless.load(with_bomb(tiny_folder, tmp_path / "model", 3e38), device="cpu", dtype=dtype)
    (tmp_path / "in.txt").write_text("\n".join(TEXTS))
    summary = run_job(EmbeddingTask(encoder), [tmp_path / "in.txt"], tmp_path / "out")
    assert (summary.results, summary.errors, summary.fallbacks) == (4, 2, 2)
    rows, vectors = table_of(tmp_path / "out")
    assert rows == [0, 2, 3, 5]
    assert np.isfinite(vectors).all()
    records = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    assert [record["row"] for record in records] == BAD
    reason = "the model's vector is not finite, nor is that of the eager implementation in float32"
    assert {record["reason"] for record in records} == {reason}


class CarelessTask(EmbeddingTask):
    """Hands on what is not finite, as no task should."""

    def run(self, rows: Sequence[Row], stats: EncodeStats, on_batch: Callable[[int, int], None]) -> Answers:
        answers = super().run(rows, stats, on_batch)
        vectors = answers.columns[0].flatten().to_numpy().copy().reshape(len(rows), -1)
        vectors[2, 5], vectors[4, 0] = np.nan, -np.inf
        kind = answers.columns[0].type
        return Answers([pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=kind)])


def test_nothing_that_is_not_finite_is_written_whatever_a_task_does(tiny: padless.Encoder, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("\n".join(TEXTS))
    summary = run_job(CarelessTask(tiny), [tmp_path / "in.txt"], tmp_path / "out")
    rows, vectors = table_of(tmp_path / "out")
    assert (rows, summary.errors) == ([0, 1, 3, 5], 2)
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1.0, float("nan"), None, float("inf")]), [1, 3]),
        (pa.array([1.0, float("-inf")], pa.float32()), [1]),
        (pa.array(np.array([1, np.inf], np.float16)), [1]),
        (pa.array([[1.0], [], None, [0.0, float("nan")]]), [3]),
        (pa.array([[1.0, 2.0], None, [0.0, float("nan")]], pa.list_(pa.float32(), 2)), [2]),
        (pa.array([[1.0, 2.0], [0.0, float("nan")], [5.0, 6.0]], pa.list_(pa.float32(), 2)).slice(1), [0]),
        (pa.array([[{"label": "a", "score": 0.5}], [{"label": "b", "score": float("inf")}]]), [1]),
        (pa.array(["nan", "inf"]), []),
        (pa.array([], pa.list_(pa.float32(), 3)), []),
    ],
)
def test_not_finite_at_any_depth(column: pa.Array, expected: list[int]) -> None:
    assert not_finite([column]).tolist() == expected
    assert not_finite([pa.array([0] * len(column)), column]).tolist() == expected
