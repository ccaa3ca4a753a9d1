"""`padless bench accelerate`: other libraries, with `padless.accelerate` and without."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..choices import listed

__all__ = ["accelerate"]


def accelerate(
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", help="Model folder; the MiniLM that installs from PyPI if left out."),
    ] = None,
    workload: Annotated[str, typer.Option(help="Name of a workload in bench/workloads.py.")] = "mixed_256",
    tokens: Annotated[int | None, typer.Option(min=1, help="Run a cut of about so many tokens.")] = None,
    dtypes: Annotated[str, typer.Option(help="Comma-separated; what padless computes in.")] = "float32,bfloat16",
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved rounds; the median is printed.")] = 5,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of every system; torch's setting if left out.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write a row for each system to this file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the tables to this file, as Markdown.")] = None,
) -> None:
    """Measure what padless.accelerate makes of sentence-transformers: tokens a second.

    sentence-transformers in float32 by itself is the reference. Correctness is checked first, and what fails has no
    figure; a call that padless did not compute ends the run with one line. All run interleaved in one process.
    """
    from ....bench.accelerate.sentence_transformers_models import run

    run(
        model=model,
        workload=workload,
        tokens=tokens,
        dtypes=listed(dtypes),
        threads=threads,
        repeats=repeats,
        csv_path=csv,
        json_path=json,
        markdown_path=markdown,
    )
