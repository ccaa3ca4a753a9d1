"""Options that several commands share, declared once so that they read the same everywhere."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

__all__ = ["Backend", "Deterministic", "Device", "Dtype", "RequireKernels", "listed"]

Device = Annotated[str, typer.Option(metavar="DEVICE", help="Where to run: auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="What to compute in; auto is the fastest the device has."),
]
Backend = Annotated[
    str, typer.Option(metavar="NAME", help="auto, or the implementation every op must use; see padless explain.")
]
Deterministic = Annotated[
    bool,
    typer.Option("--deterministic", help="The same text gives the same bits, whatever stands beside it in a batch."),
]
RequireKernels = Annotated[
    bool,
    typer.Option(
        "--require-kernels",
        help="Stop where a kernel cannot be compiled or started; otherwise the next implementation serves, which the "
        "summary tells.",
    ),
]


def listed(value: str) -> list[str]:
    """What a comma-separated option names."""
    return [item.strip() for item in value.split(",") if item.strip()]
