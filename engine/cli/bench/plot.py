"""`padless bench plot`: the pictures of a report that was written before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["plot"]


def plot(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="A file that --json or make gpu-report wrote.")],
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the PNG files; made if it is not there.")],
) -> None:
    """Draw a report: roofline, bars against peers, throughput over length, padding; as its kind has them."""
    from ....bench.plots.command import plot_report

    for file in plot_report(report, folder):
        print(file)
