"""`padless bench jobs`: a file in, a file out, end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["jobs"]


def jobs(
    rows: Annotated[int, typer.Option(min=1, help="Verses in the input file, at most 24,408.")] = 5000,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="What every system computes in.")] = "float32",
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved rounds; the median is printed.")] = 3,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Model folder; the MiniLM that installs from PyPI if left out.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write a line a system to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the figures as PNG into this folder.")] = None,
) -> None:
    """Measure a job end to end: a Parquet file of texts in, vectors on disk out.

    padless embed, its model alone on texts that are tokenised already, and the script most people write with
    sentence-transformers, on the CPU, each in a process of its own and in turns. Whose vectors differ gets a reason and
    no number. Overhead is what the job takes for each second of its model.
    """
    from ....bench.jobs.run import run

    run(rows, dtype, repeats, model, json, csv, plot)
