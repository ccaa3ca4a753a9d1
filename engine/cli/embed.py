"""`padless embed`: files of texts in, Parquet shards of embeddings out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .choices import Backend, Device, Dtype
from .job_report import run_reported

if TYPE_CHECKING:
    from ..jobs.report import Report
    from ..jobs.summary import Summary

__all__ = ["embed"]


def embed(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="IN", help="Parquet, JSONL, CSV, TSV or plain text (.txt) files.")
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder for the shards; empty, absent, or of the same job.")
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="Model folder, or org/name under $PADLESS_MODELS.")],
    text_column: Annotated[str, typer.Option(help="Column or field that holds the text.")] = "text",
    id_column: Annotated[
        str | None, typer.Option(help="Column or field of integers or strings to carry into the shards.")
    ] = None,
    rows_per_shard: Annotated[int, typer.Option(min=1, help="Input rows a shard covers.")] = 50_000,
    dtype: Dtype = "auto",
    device: Device = "auto",
    backend: Backend = "auto",
    token_budget: Annotated[
        int | None, typer.Option(min=1, help="Most tokens in one batch; found from the free memory if not given.")
    ] = None,
    prompt_name: Annotated[
        str | None, typer.Option(help="Which of the model's prompts to put before each text.")
    ] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize/--no-normalize", help="Scale vectors to length 1, where the model does not.")
    ] = False,
    truncate_dim: Annotated[int | None, typer.Option(min=1, help="Keep only the first numbers of a vector.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with the job that OUT holds, if it is the same job.")
    ] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove an earlier job's files from OUT first.")
    ] = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Tell progress as JSON, an object a line on stderr; no bar, no summary.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no summary.")] = False,
) -> None:
    """Embed files of texts into Parquet shards.

    Every row of the files IN gets a vector. The folder OUT then holds part-00000.parquet and so on (columns: row, the
    id column if named, embedding), errors.jsonl (a record for every row without a vector, with the reason),
    manifest.json, shards.jsonl and summary.json. A bad row never stops the job.

    A job that was stopped, by Ctrl-C, a kill, a full disk or a power cut, goes on with the same command, to the bytes
    of a job that was never stopped. Another model, option or input on the same folder is refused. A progress bar is
    shown where stderr is a terminal.

    Exit codes: 0 done, also where it was done before; 2 a wrong option, file or model, or a disk that refuses, after
    one line on stderr; 130 stopped by Ctrl-C, 143 by SIGTERM.

    \b
        padless embed texts.parquet out/ --model path/to/model --id-column id
    """
    # oneDNN and, in every thread, torch's layer above it each remember 1,024 products, one for every shape they have
    # seen: hundreds of megabytes in a long job. A batch needs those of its own lengths again in every layer (at 32 of
    # oneDNN's, attention was compiled anew all the time, 16% slower), but hardly those of earlier batches; the layer
    # above spares only a look-up. Arrow's own allocator held 25 MB more than the system's. All three are read once,
    # before the first use.
    for variable, value in (
        ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64"),
        ("LRU_CACHE_CAPACITY", "16"),
        ("ARROW_DEFAULT_MEMORY_POOL", "system"),
    ):
        os.environ.setdefault(variable, value)

    def job(report: Report) -> Summary:
        from ..jobs.run import check_job, fixed_before, run_job

        # Before the model is loaded, which may take a while, and again with it.
        check_job(
            inputs,
            output,
            text_column=text_column,
            id_column=id_column,
            rows_per_shard=rows_per_shard,
            resume=resume,
            overwrite=overwrite,
        )
        before = fixed_before(output) if resume and not overwrite else {}
        from ..jobs.embedding import EmbeddingOptions, EmbeddingTask
        from ..loading import load

        encoder = load(
            model,
            device=before.get("device", device) if device == "auto" else device,
            dtype=before.get("dtype", dtype) if dtype == "auto" else dtype,
            backend=backend,
        )
        task = EmbeddingTask(encoder, EmbeddingOptions(prompt_name, normalize, truncate_dim))
        summary = run_job(
            task,
            inputs,
            output,
            text_column=text_column,
            id_column=id_column,
            rows_per_shard=rows_per_shard,
            token_budget=token_budget,
            resume=resume,
            overwrite=overwrite,
            report=report,
        )
        if not quiet and not log_json:
            print(summary.text(task.fields))
        return summary

    run_reported(job, output, quiet=quiet, log_json=log_json)
