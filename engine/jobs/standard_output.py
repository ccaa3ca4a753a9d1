"""A job without a folder: a JSON object a row on standard output, in the order of the input, bad rows included."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..prefetch import prefetch
from ..stream import EncodeStats
from .budget import token_budget as budget_for
from .finite import not_finite
from .inputs.input_file import InputColumns
from .inputs.reader import id_type, kept_fields, open_inputs, read_rows
from .inputs.rows import Row
from .report import Report
from .run import check_pairs
from .shard_run import NOT_FINITE
from .task import Answers, JobTask
from .windows import cut_windows
from .writer import shard_schema

__all__ = ["write_json_lines"]

ROWS_AT_ONCE = 1024
"""Of a window: less than in a job with a folder, so that somebody who waits at the other end of a pipe sees rows."""


def write_json_lines(
    make_task: Callable[[], JobTask],
    inputs: Sequence[str | Path],
    *,
    columns: InputColumns,
    input_format: str | None = None,
    token_budget: int | None = None,
    report: Report | None = None,
) -> None:
    """Compute a result for every row and write it as JSON: `row`, the id and the carried columns, then the results and
    `truncated`, or `error`, the reason why there is none.

    Args:
        make_task: loads the model, after the inputs are checked.
        inputs, columns, input_format, token_budget, report: as of `run_job`.

    Raises:
        InputError, OptionError: as `run_job` does.
    """
    report = report or Report()
    files = open_inputs(inputs, columns, input_format=input_format)
    task = make_task()
    check_pairs(task, columns)
    id_field = None if columns.id is None else pa.field(columns.id, id_type(files))
    carried = kept_fields(files, columns)
    shard_schema(task.fields, id_field, carried)  # no two columns of one name
    task.token_budget = budget_for(task) if token_budget is None else token_budget
    windows = cut_windows(read_rows(files), sys.maxsize, ROWS_AT_ONCE)
    with report:
        for window in prefetch(windows):
            good = [row for row in window.rows if row.text is not None]
            answers = task.run(good, EncodeStats(), report.advance) if good else Answers([])
            bad = {**dict.fromkeys(not_finite(answers.columns).tolist(), NOT_FINITE), **answers.bad}
            values = [column.to_pylist() for column in answers.columns]
            places = {row.number: place for place, row in enumerate(good)}
            for row in window.rows:
                found = _before(row, columns)
                place = places.get(row.number)
                if place is None or place in bad:
                    found["error"] = row.reason if place is None else bad[place]
                else:
                    found |= {field.name: value[place] for field, value in zip(task.fields, values, strict=True)}
                    found["truncated"] = place in answers.truncated
                sys.stdout.write(json.dumps(found, ensure_ascii=False, default=str) + "\n")
            sys.stdout.flush()
            report.skip(len(window.rows) - len(good))


def _before(row: Row, columns: InputColumns) -> dict[str, Any]:
    """What stands in front of the results."""
    found: dict[str, Any] = {"row": row.number}
    if columns.id is not None:
        found[columns.id] = row.id
    return found | dict(zip(columns.kept, row.kept, strict=False))
