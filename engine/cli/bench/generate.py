"""`padless bench generate`: texts in, written texts out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..choices import listed

__all__ = ["generate"]


def generate(
    models: Annotated[
        str, typer.Option(help="Comma-separated: mt5-small, megatron-bert-345m (random weights), or all.")
    ] = "mt5-small",
    workload: Annotated[str, typer.Option(help="Name of a workload in bench/workloads.py.")] = "skewed_256",
    texts: Annotated[int, typer.Option(min=1, help="Texts of one call, from short to long.")] = 16,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens written for each text.")] = 64,
    dtypes: Annotated[str, typer.Option(help="Comma-separated: float32, bfloat16.")] = "float32,bfloat16",
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved rounds; the median is printed.")] = 5,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of every system; torch's setting if left out.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
) -> None:
    """Measure greedy generation on a CPU beside transformers: new tokens a second.

    Correctness is checked first: the same tokens in float32, and in bfloat16 logits as close to float32's as
    transformers' own. What fails has no figure.
    """
    from ....bench.generate.run import run

    run(
        listed(models), workload=workload, texts=texts, new_tokens=new_tokens, dtypes=listed(dtypes), threads=threads,
        repeats=repeats, json_path=json,
    )  # fmt: skip
