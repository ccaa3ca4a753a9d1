"""`padless run`: any task over files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from . import job_options as of
from .choices import Backend, Deterministic, Device, Dtype
from .job_command import JobArguments, run_command

__all__ = ["run"]


def run(
    inputs: of.Inputs,
    output: of.Output,
    model: of.Model,
    task: Annotated[str, typer.Option("--task", "-t", help="Which task; the list stands above.")],
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="NAME=VALUE",
            help="An option of the task; repeatable. The value is JSON, or text as it stands.",
        ),
    ] = None,
    text_column: of.TextColumn = "text",
    pair_column: of.PairColumn = None,
    id_column: of.IdColumn = None,
    keep: of.Keep = None,
    input_format: of.InputFormat = None,
    rows_per_shard: of.RowsPerShard = 50_000,
    dtype: Dtype = "auto",
    device: Device = "auto",
    devices: of.Devices = None,
    backend: Backend = "auto",
    deterministic: Deterministic = False,
    token_budget: of.TokenBudget = None,
    resume: of.Resume = True,
    overwrite: of.Overwrite = False,
    log_json: of.LogJson = False,
    quiet: of.Quiet = False,
) -> None:
    """Run a task over files, into Parquet shards.

    Options of the task are those of a call of padless.load(MODEL, task=TASK) in Python, in transformers' names. All
    else is as in padless embed: what the folder OUT holds, how a stopped job goes on, exit codes.

    \b
    task                         input columns                    result columns
    embedding                    text                             embedding
    text-classification          text, pair if any                label, score
    next-sentence-prediction     text, pair                       label, score
    zero-shot-classification     text                             labels, scores
    token-classification         text                             entities
    fill-mask                    text                             predictions
    question-answering           text: question, pair: context    answer, score, start, end
    multiple-choice              text, pair: list of choices      choice, answer, score, scores
    rerank                       text: query, pair: documents     ranking
    text2text-generation         text                             generated_text
    summarization                text                             generated_text
    text-generation              text                             generated_text

    Columns text and pair are those that --text-column and --pair-column name. Options that ask for several answers,
    such as top_k of text-classification and question-answering or num_return_sequences, make lists of them, in columns
    whose names are plural. text-generation draws its tokens unless -o do_sample=false; the draws begin at -o seed, 0 if
    not given, so that the same job writes the same.

    \b
        padless run news.parquet out/ -m path/to/mT5 --task summarization -o max_new_tokens=64 -o num_beams=4
        padless run quiz.jsonl - -m path/to/qa -t question-answering --text-column question --pair-column context
        padless run tickets.csv out/ -m path/to/nli -t zero-shot-classification -o 'candidate_labels=["bug","praise"]'
    """
    options = _options(option or ())

    from ..jobs.factories import AnsweringJob, EmbeddingJob

    how = backend, options, deterministic
    make_task = EmbeddingJob(model, *how) if task == "embedding" else AnsweringJob(model, task, *how)
    given = JobArguments(
        inputs, output, text_column, pair_column, id_column, keep or (), input_format, rows_per_shard, device, dtype,
        token_budget, resume, overwrite, log_json, quiet, devices,
    )  # fmt: skip
    run_command(given, make_task)


def _options(given: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise typer.BadParameter(f"expected NAME=VALUE, got {text!r}", param_hint="--option")
        if name in found:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint="--option")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
