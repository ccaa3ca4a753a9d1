"""Jobs of tasks: a stop in between, options and columns that do not fit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
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

sys.path.insert(0, str(Path(__file__).parent))
from answering_jobs import LABELS, TEXTS, Folder, folders, loaded


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """`folder(kind, **config)`: see answering_jobs.py."""
    return folders(tmp_path_factory)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models are so small that two threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Stopped(Exception):
    """Of this test."""


def test_a_stopped_job_goes_on_to_the_bytes_of_an_unbroken_one(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder("ForSequenceClassification", **LABELS)
    texts = [*TEXTS, None] * 6
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")

    def run(name: str, stop_after: int | None = None) -> dict[str, bytes]:
        task = AnsweringTask(loaded(path, "text-classification"), {"top_k": 2})
        compute, calls = task.run, iter(range(99))

        def counted(*arguments: Any) -> Any:
            if next(calls) == stop_after:
                raise Stopped
            return compute(*arguments)

        monkeypatch.setattr(task, "run", counted)
        run_job(task, [tmp_path / "in.parquet"], tmp_path / name, rows_per_shard=10, token_budget=4096)
        kept = ("errors.jsonl", "shards.jsonl", *(f"part-{part:05}.parquet" for part in range(5)))
        return {file: (tmp_path / name / file).read_bytes() for file in kept}

    unbroken = run("unbroken")
    with pytest.raises(Stopped):
        run("stopped", 2)
    assert not (tmp_path / "stopped" / "part-00002.parquet").exists()
    assert run("stopped") == unbroken
    # The shape is part of the job: another one is not mixed in.
    other = AnsweringTask(loaded(path, "text-classification"), {"top_k": 3})
    with pytest.raises(padless.JobError, match=r"holds another job: options.top_k was 2, now is 3"):
        run_job(other, [tmp_path / "in.parquet"], tmp_path / "stopped", rows_per_shard=10)


def test_pair_columns_where_they_do_not_belong(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a", "pair": "b"}\n')
    for kind, name, pair, message in (
        (
            "ForNextSentencePrediction",
            "next-sentence-prediction",
            None,
            "which next-sentence-prediction needs, got none",
        ),
        ("ForMaskedLM", "fill-mask", "pair", "fill-mask has no use for one, got 'pair'"),
    ):
        task = AnsweringTask(loaded(folder(kind), name))
        with pytest.raises(padless.OptionError, match=message):
            run_job(task, [tmp_path / "in.jsonl"], tmp_path / "out", columns=InputColumns("text", pair))
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "name", "options", "message"),
    [
        ("ForSequenceClassification", "text-classification", {"topk": 2}, "topk: no such option"),
        (
            *("ForSequenceClassification", "text-classification"),
            *({"long_texts": "chunk", "overlap": 62}, "overlap: expected less than the 62 tokens of a piece, got 62"),
        ),
        ("ForSequenceClassification", "zero-shot-classification", {}, "candidate_labels: expected one label or more"),
        ("ForSequenceClassification", "rerank", {}, "rerank: expected a model of one label, got 3"),
        ("ForQuestionAnswering", "question-answering", {"max_seq_len": 65}, "the model takes at most 64 tokens"),
        ("mt5", "text2text-generation", {"num_beams": "four"}, "num_beams: "),
    ],
)
def test_options_are_refused_before_a_job_begins(
    folder: Folder, kind: str, name: str, options: dict[str, Any], message: str
) -> None:
    task = loaded(folder(kind, **(LABELS if kind == "ForSequenceClassification" else {})), name)
    with pytest.raises(padless.OptionError, match=message):
        AnsweringTask(task, options)
