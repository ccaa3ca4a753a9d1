"""Options of the commands that run a job, declared once so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = [
    "Devices",
    "IdColumn",
    "InputFormat",
    "Inputs",
    "Keep",
    "LogJson",
    "Model",
    "Output",
    "Overwrite",
    "PairColumn",
    "Quiet",
    "Resume",
    "RowsPerShard",
    "TextColumn",
    "TokenBudget",
]

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="IN",
        help="Parquet, JSONL, CSV, TSV, Arrow or text files, compressed or not; folders, quoted globs, or - for "
        "standard input.",
    ),
]
Output = Annotated[
    Path,
    typer.Argument(
        metavar="OUT",
        help="Folder for the shards: empty, absent, or of the same job; or - for JSON lines on standard output.",
    ),
]
Model = Annotated[
    str,
    typer.Option("--model", "-m", metavar="MODEL", help="Model folder, or org/name under $PADLESS_MODELS."),
]
TextColumn = Annotated[
    str, typer.Option(metavar="COLUMN", help="Column or field that holds the text; of plain text, every line is one.")
]
PairColumn = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="Column of the second texts of pairs, or of lists of texts where the task takes several.",
    ),
]
IdColumn = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN", help="Column of integers or strings to carry into the output and into errors.jsonl."
    ),
]
Keep = Annotated[
    list[str] | None, typer.Option("--keep", metavar="COLUMN", help="Carry this column into the output; repeatable.")
]
InputFormat = Annotated[
    Literal["parquet", "arrow", "jsonl", "csv", "tsv", "text"] | None,
    typer.Option(help="Format of standard input (jsonl if not given) and of files whose suffix tells none; no other."),
]
Devices = Annotated[
    str | None,
    typer.Option(
        metavar="all|cuda:0,cuda:1|cpu:N",
        help="Instead of --device: a process for each of these, whole shards each. all: every GPU; without one, a CPU "
        "worker for every 8 cores.",
    ),
]
RowsPerShard = Annotated[int, typer.Option(min=1, metavar="N", help="Input rows that each file of the output covers.")]
TokenBudget = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Most tokens in one batch; found from the free memory if not given."),
]
Resume = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Go on with the job that OUT holds, if it is the same job.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Remove an earlier job's files from OUT first.")]
LogJson = Annotated[
    bool, typer.Option("--log-json", help="Tell progress as JSON, an object a line on stderr; no bar, no summary.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no summary.")]
