"""`padless bench accelerate-models`: models of transformers, with `padless.accelerate` and without."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ..choices import listed

__all__ = ["accelerate_models"]


def accelerate_models(
    models: Annotated[
        str,
        typer.Option(
            help="Comma-separated: modernbert-base, mobilebert, bert-base, megatronbert, mt5-small (random weights in "
            "the published shape)."
        ),
    ] = "modernbert-base,mobilebert",
    workload: Annotated[str, typer.Option(help="Name of a workload in bench/workloads.py.")] = "mixed_256",
    tokens: Annotated[int, typer.Option(min=1, help="Run a cut of about so many tokens.")] = 8192,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts of a batch, padded to its longest.")] = 32,
    dtypes: Annotated[str, typer.Option(help="Comma-separated: float32, bfloat16.")] = "float32,bfloat16",
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved rounds; the median is printed.")] = 5,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of every system; torch's setting if left out.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
) -> None:
    """Measure what padless.accelerate makes of models of transformers on padded batches: tokens a second.

    transformers in float32 by itself is the reference. Correctness is checked first, and what fails, or is not computed
    by padless, has no figure; all run interleaved in one process.
    """
    from ....bench.accelerate.transformers_models import run

    with tempfile.TemporaryDirectory(prefix="padless-bench-") as folder:
        run(
            listed(models), folder=Path(folder), workload=workload, tokens=tokens, batch_size=batch_size,
            dtypes=listed(dtypes), threads=threads, repeats=repeats, json_path=json,
        )  # fmt: skip
