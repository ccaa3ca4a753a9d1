"""`padless classify`: files of texts or pairs in, labels and scores out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from . import job_options as of
from .choices import Backend, Deterministic, Device, Dtype, RequireKernels
from .job_command import ROWS_PER_SHARD, JobArguments, refuse_idle_pieces, run_command

__all__ = ["classify"]


def classify(
    inputs: of.Inputs,
    output: of.Output,
    model: of.Model,
    text_column: of.TextColumn = "text",
    pair_column: of.PairColumn = None,
    id_column: of.IdColumn = None,
    keep: of.Keep = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="The N likeliest labels of a row, in lists; the likeliest by itself if not given."
        ),
    ] = None,
    all_labels: Annotated[bool, typer.Option("--all-labels", help="All labels of a row, in lists.")] = False,
    function_to_apply: Annotated[
        Literal["softmax", "sigmoid", "none"] | None,
        typer.Option(help="What makes scores of the model's logits; by the kind of problem if not given."),
    ] = None,
    long_texts: Annotated[
        Literal["truncate", "error", "chunk"],
        typer.Option(help="Texts longer than the model takes: cut and marked, an error, or seen whole in pieces."),
    ] = "truncate",
    overlap: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Of chunk: tokens that a piece repeats of the one before; 0 if not given."
        ),
    ] = None,
    aggregate: Annotated[
        Literal["mean", "max", "each"] | None,
        typer.Option(help="Of chunk: what becomes of the pieces' scores; each keeps all of them; mean if not given."),
    ] = None,
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
    """Classify files of texts or pairs into Parquet shards.

    Every row of the files IN gets a label and its score, columns label and score of the shards in the folder OUT; with
    --top-k or --all-labels they are lists, columns labels and scores, likeliest first, and with --aggregate each lists
    too, one entry a piece. Classes, several labels at once and regressions are told apart by the model's configuration.
    A pair whose second text is empty counts as a single text. All else is as in padless embed: what the folder holds,
    how a stopped job goes on, exit codes.

    \b
        padless classify reviews.jsonl out/ --model path/to/model --text-column review
        padless classify pairs.parquet out/ -m path/to/nli --text-column premise --pair-column hypothesis --all-labels
    """
    if all_labels and top_k is not None:
        raise typer.BadParameter("expected --top-k or --all-labels, got both", param_hint="--all-labels")

    from ..jobs.factories import AnsweringJob

    named = {"overlap": overlap, "aggregate": aggregate}
    refuse_idle_pieces({"long_texts": long_texts} | {name: value for name, value in named.items() if value is not None})
    options: dict[str, Any] = {"long_texts": long_texts, "overlap": overlap or 0, "aggregate": aggregate or "mean"}
    if all_labels or top_k is not None:
        options["top_k"] = None if all_labels else top_k
    if function_to_apply is not None:
        options["function_to_apply"] = function_to_apply
    make_task = AnsweringJob(model, "text-classification", backend, options, deterministic, require_kernels)
    given = JobArguments(
        inputs, output, text_column, pair_column, id_column, keep or (), input_format, rows_per_shard, device, dtype,
        token_budget, resume, overwrite, log_json, quiet, devices,
    )  # fmt: skip
    run_command(given, make_task)
