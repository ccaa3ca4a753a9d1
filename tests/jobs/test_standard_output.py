"""Results as JSON lines: a line a row in the order of the input, whatever became of the row."""

from __future__ import annotations

import base64
import datetime
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

import padless
from padless.engine.jobs.embedding import EmbeddingOptions, EmbeddingTask
from padless.engine.jobs.inputs.input_file import InputColumns
from padless.engine.jobs.run import run_job
from padless.engine.jobs.standard_output import ROWS_AT_ONCE, write_json_lines

Lines = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Lines:
    """Write rows to a stream of this encoding, and read them again."""

    def write(encoder: Any, source: Path, encoding: str = "utf-8", **options: Any) -> list[dict[str, Any]]:
        raw = io.BytesIO()
        with monkeypatch.context() as patch:
            stream = io.TextIOWrapper(raw, encoding=encoding)
            patch.setattr(sys, "stdout", stream)
            embedding = EmbeddingOptions(**options.pop("embedding", {}))
            columns = InputColumns(**options.pop("columns", {}))
            write_json_lines(lambda: EmbeddingTask(encoder, embedding), [source], columns=columns, **options)
            stream.flush()
        *written, last = raw.getvalue().decode(encoding).split("\n")
        assert last == ""
        return [json.loads(line, parse_constant=pytest.fail) for line in written]

    return write


@pytest.mark.parametrize("precision", ["float32", "float16", "binary", "ubinary"])
def test_rows_are_those_of_the_shards(tiny: padless.Encoder, tmp_path: Path, lines: Lines, precision: str) -> None:
    texts: list[str | None] = ["sun", None, "the moon", "", "bread " * 99]
    pq.write_table(pa.table({"key": list("abcde"), "text": texts, "n": [5, 4, 3, 2, 1]}), tmp_path / "in.parquet")
    found = lines(
        tiny,
        tmp_path / "in.parquet",
        columns={"id": "key", "kept": ("n",)},
        embedding={"precision": precision, "long_texts": "error"},
    )
    task = EmbeddingTask(tiny, EmbeddingOptions(precision=precision, long_texts="error"))
    run_job(task, [tmp_path / "in.parquet"], tmp_path / "out", columns=InputColumns("text", None, "key", ("n",)))
    good = {row["row"]: row for row in pq.read_table(tmp_path / "out" / "part-00000.parquet").to_pylist()}
    assert [line for line in found if line["row"] in good] == list(good.values())
    assert [list(line) for line in found[:2]] == [
        ["row", "key", "n", "embedding", "truncated"],
        ["row", "key", "error"],
    ]
    records = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    assert [(line["row"], line["key"], line["error"]) for line in found if "error" in line] == [
        (record["row"], record["id"], record["reason"]) for record in records
    ]
    assert [record["row"] for record in records] == [1, 4]
    expected = tiny.encode(["sun", "the moon", ""], precision=precision)
    np.testing.assert_allclose([line["embedding"] for line in found if "embedding" in line], expected, atol=1e-6)


def test_order_and_number_over_windows(tiny: padless.Encoder, tmp_path: Path, lines: Lines) -> None:
    """More rows than are computed together, bad ones at the edges, a whole window of them too."""
    count = 2 * ROWS_AT_ONCE + 3
    bad = {0, ROWS_AT_ONCE - 1, *range(ROWS_AT_ONCE, 2 * ROWS_AT_ONCE), count - 1}
    rows = [{"text": None if row in bad else f"sun {row % 7}"} for row in range(count)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = lines(tiny, tmp_path / "in.jsonl")
    assert [line["row"] for line in found] == list(range(count))
    assert {line["row"] for line in found if "error" in line} == bad
    vectors = tiny.encode([f"sun {number}" for number in range(7)])
    for line in found:
        if line["row"] not in bad:
            np.testing.assert_allclose(line["embedding"], vectors[line["row"] % 7], atol=1e-6)


def test_a_vector_that_is_not_finite_keeps_its_place(tiny_folder: Path, tmp_path: Path, lines: Lines) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    word = (folder / "vocab.txt").read_text().splitlines().index("bomb")
    weights["embeddings.word_embeddings.weight"][word] = 3e38 * torch.tensor([1.0, -1.0]).repeat(16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "in.txt").write_text("sun\nthe bomb\nmoon\n")
    found = lines(padless.load(folder, device="cpu", dtype="float32"), tmp_path / "in.txt")
    assert ["embedding" in line for line in found] == [True, False, True]
    reason = "the model's vector is not finite, nor is that of the eager implementation in float32"
    assert found[1] == {"row": 1, "error": reason}


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_carried_values_are_json(tiny: padless.Encoder, tmp_path: Path, lines: Lines, encoding: str) -> None:
    moment = datetime.datetime(2026, 11, 22, 1, 2, 3)
    carried = {
        "name": ["שלום \u2028", None],
        "when": [moment, None],
        "day": [moment.date(), None],
        "raw": [b"\x00\xff", None],
        "x": [float("nan"), 0.5],
        "deep": [[{"a": float("inf"), "b": b"z"}], []],
        "yes": [True, False],
    }
    pq.write_table(pa.table({"text": ["sun", "moon"], **carried}), tmp_path / "in.parquet")
    first, second = lines(tiny, tmp_path / "in.parquet", encoding, columns={"kept": tuple(carried)})
    assert {name: first[name] for name in carried} == {
        "name": "שלום \u2028",
        "when": "2026-11-22 01:02:03.000000",
        "day": "2026-11-22",
        "raw": base64.b64encode(b"\x00\xff").decode(),
        "x": None,
        "deep": [{"a": None, "b": "eg=="}],
        "yes": True,
    }
    assert {name: second[name] for name in carried} == {
        **dict.fromkeys(("name", "when", "day", "raw")), "x": 0.5, "deep": [], "yes": False
    }  # fmt: skip


def test_half_a_surrogate_pair_is_no_fault(tiny: padless.Encoder, tmp_path: Path, lines: Lines) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "sun \\ud83d", "id": "\\ud83d", "kept": "\\ud83d"}\n')
    (line,) = lines(tiny, tmp_path / "in.jsonl", columns={"id": "id", "kept": ("kept",)})
    assert (line["id"], line["kept"]) == ("\ufffd", "\ufffd")


@pytest.mark.parametrize("name", ["row", "error", "embedding", "truncated"])
def test_names_of_results_are_taken(tiny: padless.Encoder, tmp_path: Path, lines: Lines, name: str) -> None:
    pq.write_table(pa.table({"text": ["sun"], name: ["a"]}), tmp_path / "in.parquet")
    for columns in ({"id": name}, {"kept": (name,)}):
        with pytest.raises(padless.OptionError, match=f"'{name}' is the name of"):
            lines(tiny, tmp_path / "in.parquet", columns=columns)


def test_no_row_is_no_line(tiny: padless.Encoder, tmp_path: Path, lines: Lines) -> None:
    (tmp_path / "in.txt").write_text("")
    assert lines(tiny, tmp_path / "in.txt") == []
