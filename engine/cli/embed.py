"""`padless embed`: files of texts in, Parquet shards of embeddings out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from . import job_options as of
from .choices import Backend, Deterministic, Device, Dtype, RequireKernels
from .job_command import ROWS_PER_SHARD, JobArguments, refuse_idle_pieces, run_command

__all__ = ["embed"]


def embed(
    inputs: of.Inputs,
    output: of.Output,
    model: of.Model,
    text_column: of.TextColumn = "text",
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
    prompt_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of the model's prompts to put before each text.")
    ] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize/--no-normalize", help="Scale vectors to length 1, where the model does not.")
    ] = False,
    truncate_dim: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Keep only the first N numbers of a vector.")
    ] = None,
    precision: Annotated[
        Literal["float32", "float16", "binary", "ubinary"],
        typer.Option(help="Of the vectors; binary and ubinary keep a bit of each number, eight in a byte."),
    ] = "float32",
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
        Literal["mean", "max"] | None,
        typer.Option(help="Of chunk: how the pieces' vectors become one; mean if not given."),
    ] = None,
    resume: of.Resume = True,
    overwrite: of.Overwrite = False,
    log_json: of.LogJson = False,
    quiet: of.Quiet = False,
) -> None:
    """Embed files of texts into Parquet shards.

    Every row of the files IN gets a vector. The folder OUT then holds part-00000.parquet and so on (columns: row, the
    id column if named, those to keep, embedding, truncated), errors.jsonl (a record for every row without a vector,
    with the reason), manifest.json, shards.jsonl and summary.json. A bad row never stops the job.

    A job that was stopped, by Ctrl-C, a kill, a full disk or a power cut, goes on with the same command, to the bytes
    of a job that was never stopped. Another model, option or input on the same folder is refused. A progress bar is
    shown where stderr is a terminal.

    With OUT - every row becomes a JSON object, a line each on standard output, in the order of the input: row, id and
    columns to keep, then embedding and truncated, or error, the reason why there is no vector. There is nothing to go
    on with then.

    Exit codes: 0 done, also where it was done before; 2 a wrong option, file or model, or a disk that refuses, after
    one line on stderr; 130 stopped by Ctrl-C, 143 by SIGTERM; 141
    the reader of standard output has gone.

    \b
        padless embed texts.parquet out/ --model path/to/model --id-column id
        padless embed 'crawl/*.jsonl.gz' out/ -m path/to/model --keep url --precision float16
        cat lines.txt | padless embed - - -m path/to/model --input-format text | head
    """

    from ..jobs.factories import EmbeddingJob

    options: dict[str, Any] = {
        "prompt_name": prompt_name,
        "normalize_embeddings": normalize,
        "truncate_dim": truncate_dim,
        "precision": precision,
        "long_texts": long_texts,
    }
    named = {"overlap": overlap, "aggregate": aggregate}
    refuse_idle_pieces({"long_texts": long_texts} | {name: value for name, value in named.items() if value is not None})
    options |= {"overlap": overlap or 0, "aggregate": aggregate or "mean"}
    make_task = EmbeddingJob(model, backend, options, deterministic, require_kernels)
    given = JobArguments(
        inputs, output, text_column, None, id_column, keep or (), input_format, rows_per_shard, device, dtype,
        token_budget, resume, overwrite, log_json, quiet, devices,
    )  # fmt: skip
    run_command(given, make_task)
