"""`padless run`: any task over files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from . import job_options as of
from .choices import Backend, Deterministic, Device, Dtype, RequireKernels
from .job_command import ROWS_PER_SHARD, JobArguments, refuse_idle_pieces, run_command

__all__ = ["run"]

PYTHON = {"True": True, "False": False, "None": None}


def run(
    inputs: of.Inputs,
    output: of.Output,
    model: of.Model,
    task: Annotated[str, typer.Option("--task", "-t", metavar="TASK", help="Which task; the list stands above.")],
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="NAME=VALUE",
            help="An option of the task; repeatable. The value is JSON (4, 0.5, true, null, a quoted list), or text as "
            "it stands.",
        ),
    ] = None,
    text_column: of.TextColumn = "text",
    pair_column: of.PairColumn = None,
    id_column: of.IdColumn = None,
    keep: of.Keep = None,
    input_format: of.InputFormat = None,
    rows_per_shard: of.RowsPerShard = ROWS_PER_SHARD,
    dtype: Dtype = "auto",
    device: Device = "auto",
    devices: of.Devices = None,
    backend: Backend = "auto",
    deterministic: Deterministic = False,
    require_kernels: RequireKernels = False,
    token_budget: of.TokenBudget = None,
    resume: of.Resume = True,
    overwrite: of.Overwrite = False,
    log_json: of.LogJson = False,
    quiet: of.Quiet = False,
) -> None:
    """Run any task over files, into Parquet shards.

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

    Columns text and pair are those that --text-column and --pair-column name; a list is a list of strings, in CSV a
    JSON array. zero-shot-classification needs -o candidate_labels. Texts longer than the model takes are cut and
    marked, unless -o long_texts or the task's own option says otherwise. Options that ask for several answers, such as
    top_k of text-classification and question-answering or num_return_sequences, make lists of them, in columns whose
    names are plural. text-generation draws its tokens unless -o do_sample=false; the draws begin at -o seed, 0 if not
    given, so that the same job writes the same.

    \b
        padless run news.parquet out/ -m path/to/mT5 --task summarization -o max_new_tokens=64 -o num_beams=4
        padless run quiz.jsonl - -m path/to/qa -t question-answering --text-column question --pair-column context
        padless run tickets.csv out/ -m path/to/nli -t zero-shot-classification -o 'candidate_labels=["bug","praise"]'
    """
    options = _options(option or ())
    refuse_idle_pieces(options)

    from ..jobs.factories import AnsweringJob, EmbeddingJob

    how = backend, options, deterministic, require_kernels
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
        found[name] = _value(name, value)
    return found


def _value(name: str, text: str) -> Any:
    """JSON, or text as it stands; Python's names of constants are no text that anybody means."""
    if text in PYTHON:
        return PYTHON[text]
    try:
        return json.loads(text)
    except ValueError as error:
        if text.startswith(('["', '{"')):
            raise typer.BadParameter(f"{name}: malformed JSON ({error}): {text:.60}", param_hint="--option") from None
        return text
