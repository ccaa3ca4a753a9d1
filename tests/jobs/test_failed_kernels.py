"""Kernels that cannot be compiled where a job runs: other rows serve and the summary tells, or the job stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

import padless
from padless.engine.cli.app import run
from padless.engine.errors import BackendError
from padless.engine.jobs.answering import AnsweringTask
from padless.engine.jobs.embedding import EmbeddingTask
from padless.engine.jobs.manifest import read_shards
from padless.engine.jobs.run import run_job

pytestmark = pytest.mark.usefixtures("no_memory_for_code")

LINES = ("the sun stood still", "and the moon", "bread", "river stone night")
WIDTH = 176
"""Channels of a row, of no other test: a kernel that this process has compiled would serve."""
FAILURE = "norm: cpu_llvm failed when it was called: RuntimeError: LLVM ERROR: Unable to allocate section memory!"


@pytest.fixture(scope="module", params=[BertModel, BertForSequenceClassification])
def folder(request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 2-layer BERT as wide as no other; with and without classes."""
    folder = tmp_path_factory.mktemp("unusual")
    config = BertConfig.from_pretrained(tiny_folder)
    config.hidden_size = WIDTH
    torch.manual_seed(20261122)
    request.param(config).save_pretrained(folder)
    for file in tiny_folder.iterdir():
        if not (folder / file.name).exists():
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def task(folder: Path, **how: Any) -> EmbeddingTask | AnsweringTask:
    loaded = padless.load(folder, device="cpu", dtype="float32", **how)
    return EmbeddingTask(loaded) if isinstance(loaded, padless.Encoder) else AnsweringTask(loaded, {"top_k": None})


def numbers(output: Path) -> np.ndarray:
    """Vectors or scores of all rows, in order."""
    table = pq.read_table(sorted(output.glob("part-*")))
    column = table["embedding" if "embedding" in table.column_names else "scores"]
    return np.array(column.to_pylist())


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "in.txt").write_text("\n".join(LINES))
    return tmp_path / "in.txt"


def test_other_rows_serve_and_the_summary_tells(folder: Path, texts: Path, tmp_path: Path) -> None:
    summary = run_job(task(folder), [texts], tmp_path / "out", rows_per_shard=2)
    assert (summary.results, summary.errors) == (len(LINES), 0)
    assert summary.failed_kernels.count(FAILURE) == 1
    assert f"\nanother implementation served in place of a kernel: {FAILURE}" in summary.text()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["failed_kernels"] == summary.failed_kernels
    assert [FAILURE in shard.failed_kernels for shard in read_shards(tmp_path / "out")] == [True, True]

    run_job(task(folder, backend="eager"), [texts], tmp_path / "eager")
    np.testing.assert_allclose(numbers(tmp_path / "out"), numbers(tmp_path / "eager"), atol=1e-5, rtol=0)


def test_a_job_that_goes_on_remembers_what_failed_before(folder: Path, texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run_job(task(folder), [texts], output, rows_per_shard=2)
    (output / "summary.json").unlink()
    kept, _ = (output / "shards.jsonl").read_text().splitlines(keepends=True)
    (output / "shards.jsonl").write_text(kept)
    # Where the job goes on, the kernel is not asked for.
    again = run_job(task(folder, backend="eager"), [texts], output, rows_per_shard=2)
    assert (again.shards, again.shards_resumed) == (2, 1)
    assert FAILURE in again.failed_kernels
    assert [FAILURE in shard.failed_kernels for shard in read_shards(output)] == [True, False]


def test_shards_of_a_version_that_told_no_failures_are_read(folder: Path, texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run_job(task(folder, backend="eager"), [texts], output)
    record = json.loads((output / "shards.jsonl").read_text())
    assert record.pop("failed_kernels") == []
    (output / "shards.jsonl").write_text(json.dumps(record) + "\n")
    assert [shard.failed_kernels for shard in read_shards(output)] == [()]


def test_a_required_kernel_that_cannot_be_compiled_stops_the_job(folder: Path, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"cpu_llvm failed when it was called: .*; kernels are required$"):
        run_job(task(folder, require_kernels=True), [texts], tmp_path / "out")
    assert not list((tmp_path / "out").glob("part-*"))
    # The folder is that of the same job: without the option it goes on.
    assert run_job(task(folder), [texts], tmp_path / "out").results == len(LINES)


@pytest.mark.parametrize("output", ["out", "-"])
def test_the_commands_end_with_one_line(
    folder: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    output = output if output == "-" else str(tmp_path / output)
    what = ["run", "--task", "text-classification"] if "Classification" in _head(folder) else ["embed"]
    line = [*what, str(texts), output, "-m", str(folder), "--device", "cpu", "--dtype", "float32", "--require-kernels"]
    assert run(line) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    complaint = shown.err.splitlines()[-1]
    assert complaint.startswith("padless: ")
    assert complaint.endswith("kernels are required")
    assert "Traceback" not in shown.err


def _head(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["architectures"][0]
