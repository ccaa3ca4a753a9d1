"""A job without a folder: a JSON object a row on standard output, in the order of the input, bad rows included."""

from __future__ import annotations

import base64
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import OptionError
from ..streaming.prefetch import prefetch
from ..streaming.stream import EncodeStats
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

ERROR = "error"
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
    `truncated`, or `error`, the reason why there is none. A row that cannot be read has no carried columns.

    JSON has no times, no bytes and no NaN: carried, they are strings as Arrow writes times, base64, and null.

    Args:
        make_task: loads the model, after the inputs are checked.
        inputs, columns, input_format, token_budget, report: as of `run_job`.

    Raises:
        InputError, OptionError: as `run_job` does.
    """
    report = report or Report()
    if token_budget is not None and token_budget < 1:
        raise OptionError(f"token_budget: expected at least 1, got {token_budget}")
    if ERROR in (columns.id, *columns.kept):
        raise OptionError(f"{ERROR!r} is the name of a result, expected another name for an input's column")
    files = open_inputs(inputs, columns, input_format=input_format)
    task = make_task()
    check_pairs(task, columns)
    id_field = None if columns.id is None else pa.field(columns.id, id_type(files))
    carried = kept_fields(files, columns)
    shard_schema(task.fields, id_field, carried)  # no two columns of one name
    task.token_budget = budget_for(task) if token_budget is None else token_budget
    windows = cut_windows(read_rows(files, is_enough=task.is_enough), sys.maxsize, ROWS_AT_ONCE)
    # A stream that cannot write every character gets escapes instead.
    escaped = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    with report:
        for window in prefetch(windows):
            good = [row for row in window.rows if row.text is not None]
            answers = task.run(good, EncodeStats(), report.advance) if good else Answers([])
            bad = {**dict.fromkeys(not_finite(answers.columns).tolist(), NOT_FINITE), **answers.bad}
            values = [column.to_pylist() for column in answers.columns]
            places = {row.number: place for place, row in enumerate(good)}
            before = _before(window.rows, columns, carried)
            for row, found in zip(window.rows, before, strict=True):
                place = places.get(row.number)
                if place is None or place in bad:
                    found[ERROR] = row.reason if place is None else bad[place]
                else:
                    found |= {field.name: value[place] for field, value in zip(task.fields, values, strict=True)}
                    found["truncated"] = place in answers.truncated
                sys.stdout.write(json.dumps(found, ensure_ascii=escaped, allow_nan=False) + "\n")
            sys.stdout.flush()
            report.skip(len(window.rows) - len(good))


def _before(rows: Sequence[Row], columns: InputColumns, carried: Sequence[pa.Field]) -> list[dict[str, Any]]:
    """What stands in front of the results of each row."""
    found: list[dict[str, Any]] = [{"row": row.number} for row in rows]
    if columns.id is not None:
        for row, named in zip(rows, found, strict=True):
            named[columns.id] = row.id
    whole = [place for place, row in enumerate(rows) if row.kept]
    for column, field in enumerate(carried):
        values = pa.array([rows[place].kept[column] for place in whole], field.type)
        if pa.types.is_temporal(field.type) and not pa.types.is_interval(field.type):
            values = values.cast(pa.string())
        for place, value in zip(whole, values.to_pylist(), strict=True):
            found[place][field.name] = _as_json(value)
    return found


def _as_json(value: Any) -> Any:
    """A value that JSON knows."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_as_json(part) for part in value]
    if isinstance(value, dict):
        return {str(name): _as_json(part) for name, part in value.items()}
    return value if value is None or isinstance(value, str | int | bool) else str(value)
