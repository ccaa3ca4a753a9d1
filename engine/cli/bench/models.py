"""`padless bench models`: whole models, texts in and vectors out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..choices import listed

__all__ = ["models"]


def models(
    device: Annotated[str, typer.Option(help="Where to run: cpu.")] = "cpu",
    models: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: minilm (published weights, the default), bert-base, modernbert-base, mobilebert, "
            "megatronbert, mt5-small (random weights in the published shape), or all."
        ),
    ] = None,
    model: Annotated[Path | None, typer.Option("--model", "-m", help="A model folder instead.")] = None,
    workload: Annotated[str, typer.Option(help="Name of a workload in bench/workloads.py.")] = "skewed_256",
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Run a cut of about so many tokens. If left out, large models run 4,096 or 12,288 of them."
        ),
    ] = None,
    dtypes: Annotated[
        str, typer.Option(help="Comma-separated; each system runs in those that it has.")
    ] = "float32,bfloat16,int8",
    peers: Annotated[
        str | None,
        typer.Option(help="Comma-separated peers; all if left out. One that is not installed is named and left out."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved rounds; the median is printed.")] = 5,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of every system; torch's setting if left out.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write a row for each system to this file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the tables to this file, as Markdown.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the figures into this folder.")] = None,
) -> None:
    """Measure models: tokens a second.

    Correctness is checked first, and what fails has no figure; all systems of a model run interleaved in one process.
    """
    from ....bench.models.run import run

    run(
        device,
        models=None if models is None else listed(models),
        model=model,
        workload=workload,
        tokens=tokens,
        dtypes=listed(dtypes),
        peers=None if peers is None else listed(peers),
        threads=threads,
        repeats=repeats,
        csv_path=csv,
        json_path=json,
        markdown_path=markdown,
        plot=plot,
    )
