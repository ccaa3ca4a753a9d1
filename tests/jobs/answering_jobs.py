"""What the tests of jobs of tasks share: seeded models, a job over a Parquet file, comparing answers."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import padless
from padless.engine.jobs.answering import AnsweringTask
from padless.engine.jobs.inputs.input_file import InputColumns
from padless.engine.jobs.run import run_job
from padless.engine.jobs.summary import Summary

# The models of the tests of tasks.
sys.path.insert(0, str(Path(__file__).parents[1] / "tasks"))
from seeded_folders import make_folder
from writing_folders import write_megatron, write_mt5

TEXTS = [
    "The sun stood still in the sky.",
    "And God said, Let there be light: and there was light.",
    "x",
    "🙂 emoji and שלום",
    "light " * 90,
    "He maketh me to lie down in green pastures.",
]
MASKED = ["The sun [MASK] still.", "[MASK] wept.", "Let there be [MASK]: and there [MASK] light.", "[MASK] " * 3]
LISTS = [["a", "the sun", "light"], ["no"], ["day", "night " * 80]]
LONGEST = 64

Folder = Callable[..., Path]


def folders(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """`folder(kind, **config)`: a seeded BERT of that kind, which takes 64 tokens; or a model that writes."""
    made: dict[str, Path] = {}

    def make(kind: str, **config: Any) -> Path:
        key = repr((kind, config))
        if key not in made:
            path = tmp_path_factory.mktemp("model")
            if kind in ("mt5", "megatron"):
                made[key] = {"mt5": write_mt5, "megatron": write_megatron}[kind](path)
            else:
                made[key] = make_folder(path, "Bert", kind, positions=LONGEST, **config)
        return made[key]

    return make


@functools.cache
def loaded(path: Path, task: str) -> Any:
    return padless.load(path, task=task, device="cpu", dtype="float32")


def job(
    task: AnsweringTask, output: Path, texts: list[Any], pairs: list[Any] | None = None, **options: Any
) -> tuple[list[dict[str, Any]], dict[int, str], Summary, pa.Schema]:
    """Run a job over a Parquet file with ids and a kept column; its rows, its errors, its summary, its columns."""
    columns: dict[str, Any] = {"key": [f"k{row}" for row in range(len(texts))], "text": texts}
    columns["kept"] = [row * row for row in range(len(texts))]
    if pairs is not None:
        columns["second"] = pairs
    source = output.with_suffix(".parquet")
    pq.write_table(pa.table(columns), source)
    read = InputColumns("text", None if pairs is None else "second", "key", ("kept",))
    summary = run_job(task, [source], output, columns=read, token_budget=4096, **options)
    table = pa.concat_tables(pq.read_table(path) for path in sorted(output.glob("part-*.parquet")))
    rows = table.to_pylist()
    records = [json.loads(line) for line in (output / "errors.jsonl").read_text().splitlines()]
    assert sorted([row["row"] for row in rows] + [record["row"] for record in records]) == list(range(len(texts)))
    assert all((row["key"], row["kept"]) == (f"k{row['row']}", row["row"] ** 2) for row in rows)
    assert all(record["id"] == f"k{record['row']}" for record in records)
    assert (summary.results, summary.errors) == (len(rows), len(records))
    return rows, {record["row"]: record["reason"] for record in records}, summary, table.schema


def single(value: Any) -> Any:
    """Scores as the shards have them, which are fp32."""
    if isinstance(value, dict):
        return {name: single(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [single(part) for part in value]
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return pa.scalar(value, pa.float32()).as_py() if isinstance(value, float) else value


def columns_of(answer: Any, name: str) -> Any:
    """A field of a label, or of each in lists of any depth."""
    return answer[name] if isinstance(answer, dict) else [columns_of(part, name) for part in answer]


LABELS: dict[str, Any] = {"num_labels": 3, "id2label": {0: "low", 1: "mid", 2: "high"}}
SCORE = pa.float32()


def listed(kind: pa.DataType, depth: int) -> pa.DataType:
    for _ in range(depth):
        kind = pa.list_(kind)
    return kind


def assert_close(found: Any, expected: Any) -> None:
    """The same but for the last bits of scores."""
    assert type(found) is type(expected)
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(found[name], value)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-7)
    else:
        assert found == expected
