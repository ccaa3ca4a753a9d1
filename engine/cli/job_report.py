"""What a command that runs a job shows of it, and how it ends: shared by all of them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..errors import PadlessError

if TYPE_CHECKING:
    from ..jobs.report import Report

__all__ = ["run_reported"]


def run_reported(job: Callable[[Report], object], output: Path, *, quiet: bool, log_json: bool) -> None:
    """Run a job with a progress bar, with JSON lines or with nothing, and turn a stop into its exit code.

    Args:
        job: runs it, telling the report.
        output: its output folder.
        quiet: no bar; notes are dropped too.
        log_json: JSON lines on stderr, the error that ends the job included.
    """
    from ..jobs.events import JsonLog
    from ..jobs.progress import Progress
    from ..jobs.report import Report
    from ..jobs.stop import Terminated, clean_stop

    log = JsonLog() if log_json else None
    try:
        with clean_stop():
            job(log or (Report() if quiet else Progress(show=sys.stderr.isatty())))
    except PadlessError as error:
        if log is None:
            raise
        log.stopped(str(error), 2)
        raise typer.Exit(2) from None
    except KeyboardInterrupt as error:
        terminated = isinstance(error, Terminated)
        message = f"{'terminated' if terminated else 'interrupted'}{_how_to_go_on(output)}"
        code = 128 + (signal.SIGTERM if terminated else signal.SIGINT)
        if log is None:
            print("padless:", message, file=sys.stderr)
        else:
            log.stopped(message, code)
        raise typer.Exit(code) from None


def _how_to_go_on(output: Path) -> str:
    from ..jobs.layout import MANIFEST
    from ..jobs.manifest import read_shards

    try:
        if not (output / MANIFEST).exists():
            return ""
        done = len(read_shards(output))
    except (OSError, PadlessError):
        return ""
    return f": {done:,} shard(s) are done, the same command goes on from there (without --overwrite)"
