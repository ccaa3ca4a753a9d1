"""`padless bench kernels`: every op beside its peers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["kernels"]


def kernels(
    op: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Comma-separated ops of the dispatch table: attention, decode_attention, linear, norm_linear, norm, "
            "rms_norm, no_norm, mobilebert_in, mobilebert_out, mlm_head, embed, trigram, rope, pool. All if left out.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; auto is a GPU where there is one.")] = "auto",
    seqlens: Annotated[
        str | None,
        typer.Option(
            metavar="N,N",
            help="Lengths in tokens, for the distributions that are given one. 128,512; on a GPU 8192 too.",
        ),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="How the tokens lie in texts: fixed (all of N), variable (around N/2, up to N), news (real articles), "
            "squad (like SQuAD 1.1, up to 384), long (one of N among many short ones), single (one text of N: "
            "latency). fixed,news,single; on a GPU all.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Comma-separated: float32, bfloat16, float16. The first two; on a GPU bfloat16."
        ),
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a batch. 2,048; on a GPU 32,768.")] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Interleaved rounds; medians are printed. 5; on a GPU 40.")
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Comma-separated: compile, sdpa-padded, sdpa-nested, sdpa-flash, sdpa-cudnn, flex, torch-varlen, "
            "flash-attn-2, flash-attn-3, flash-attn-4, xformers, liger, product-alone; or all, or none. If left out "
            "all but compile and flex, which take seconds a case, and on a CPU sdpa-nested. One that is not installed "
            "or cannot serve is named with the reason.",
        ),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write a line for every figure to this file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the report to this file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also draw the report into this folder; needs matplotlib.")
    ] = None,
) -> None:
    """Measure every op at the shapes of real models beside its peers: time, TFLOP/s, GB/s, share of the ceiling.

    Every result is held against the eager op in fp64 first (the 2x rule); one that fails has a reason and no number.
    All rows of the dispatch table that this device has are measured, and the one padless chooses is marked. Ratios are
    to eager. Without options it takes about two minutes on two CPU cores.

    padless bench kernels --op attention,pool --lengths news,squad --json report.json
    """
    from ....bench.kernels.run import run

    run(
        ops=_listed(op),
        device=device,
        seqlens=_numbers(seqlens),
        lengths=_listed(lengths),
        dtypes=_listed(dtype),
        tokens=tokens,
        repeats=repeats,
        peers=_listed(peers),
        csv_path=csv,
        json_path=json,
        plot_folder=plot,
    )


def _listed(value: str | None) -> list[str] | None:
    return None if value is None else [item.strip() for item in value.split(",") if item.strip()]


def _numbers(value: str | None) -> list[int] | None:
    names = _listed(value)
    if names is None:
        return None
    wrong = [name for name in names if not name.isdecimal()]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r} is no whole number of tokens", param_hint="--seqlens")
    return [int(name) for name in names]
