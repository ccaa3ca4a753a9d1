"""`padless bench models`: whole models, texts in and vectors out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["models"]


def models(
    device: Annotated[str, typer.Option(help="Where to run: cpu, cuda, ...")] = "cpu",
    dtypes: Annotated[
        str, typer.Option("--dtypes", help="Comma-separated: float32, bfloat16, float16.")
    ] = "float32,bfloat16",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of every system; torch's setting if left out.")
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(help="Comma-separated peers; all if left out. One that is not installed is named and left out."),
    ] = None,
    workload: Annotated[str, typer.Option(help="Name of a workload in bench/workloads.py.")] = "mixed_256",
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved rounds; the median is printed.")] = 5,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Model folder; the MiniLM that installs from PyPI if left out.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
) -> None:
    """Measure models: tokens a second.

    Correctness is checked first; all systems run interleaved in one process.
    """
    from ....bench.models import run

    run(device, _listed(dtypes), threads, None if peers is None else _listed(peers), workload, repeats, json, model)


def _listed(value: str) -> list[str]:
    return [item.strip() for item in value.split(",") if item.strip()]
