"""`padless embed`: files of texts in, Parquet shards of embeddings out."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from .choices import Backend, Device, Dtype

__all__ = ["embed"]


def embed(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="IN", help="Parquet, JSONL, CSV, TSV or plain text (.txt) files.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the shards; empty or absent.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Model folder, or org/name under $PADLESS_MODELS.")],
    text_column: Annotated[str, typer.Option(help="Column or field that holds the text.")] = "text",
    id_column: Annotated[
        str | None, typer.Option(help="Column or field of integers or strings to carry into the shards.")
    ] = None,
    rows_per_shard: Annotated[int, typer.Option(min=1, help="Input rows a shard covers.")] = 50_000,
    dtype: Dtype = "auto",
    device: Device = "auto",
    backend: Backend = "auto",
    token_budget: Annotated[int | None, typer.Option(min=1, help="Most tokens in one batch.")] = None,
    prompt_name: Annotated[
        str | None, typer.Option(help="Which of the model's prompts to put before each text.")
    ] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize/--no-normalize", help="Scale vectors to length 1, where the model does not.")
    ] = False,
    truncate_dim: Annotated[int | None, typer.Option(min=1, help="Keep only the first numbers of a vector.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove an earlier job's files from OUT first.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no summary.")] = False,
) -> None:
    """Embed files of texts into Parquet shards.

    Every row of the files IN gets a vector. The folder OUT then holds part-00000.parquet and so on (columns: row, the
    id column if named, embedding), errors.jsonl (a record for every row without a vector, with the reason),
    manifest.json, shards.jsonl and summary.json. A bad row never stops the job.

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
    from ..jobs.embed import EmbedOptions, check_embed, embed_files

    # Before the model is loaded, which may take a while, and again with it.
    check_embed(
        inputs,
        output,
        text_column=text_column,
        id_column=id_column,
        rows_per_shard=rows_per_shard,
        overwrite=overwrite,
    )
    from ..loading import load

    encoder = load(model, device=device, dtype=dtype, backend=backend)
    if token_budget is not None:
        encoder.token_budget = token_budget
    summary = embed_files(
        encoder,
        inputs,
        output,
        text_column=text_column,
        id_column=id_column,
        rows_per_shard=rows_per_shard,
        options=EmbedOptions(prompt_name, normalize, truncate_dim),
        overwrite=overwrite,
        progress=not quiet and sys.stderr.isatty(),
    )
    if not quiet:
        print(summary.text())
