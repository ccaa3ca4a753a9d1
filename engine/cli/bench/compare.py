"""`padless bench compare`: two reports of one kind, and what changed between them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["compare"]


def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The earlier report, a file that --json wrote.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The later one, of the same kind.")],
    threshold: Annotated[str, typer.Option(help="Least change of a median that counts: 3% or 0.03.")] = "3%",
    fail_on_slower: Annotated[
        bool, typer.Option("--fail-on-slower", help="Exit with 1 where something became slower.")
    ] = False,
) -> None:
    """Say what changed between two reports.

    A change counts where the median moved by more than the threshold and the spreads, p20 to p80, do not touch. What
    became slower stands first; above it whatever else differs: machine, versions, commit, kernels.
    """
    from ....bench.reports.compare import run

    code = run(old, new, threshold, fail_on_slower)
    if code:
        raise typer.Exit(code)
