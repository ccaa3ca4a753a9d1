"""Opens the inputs of a job: every check that needs no full read is made at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .arrow_input import ArrowInput
from .carried import id_type, kept_fields
from .csv_input import CsvInput
from .input_file import TEXTS, InputColumns, InputFile
from .json_lines_input import JsonLinesInput
from .long_texts import IsEnough
from .parquet_input import ParquetInput
from .plain_text_input import PlainTextInput
from .rows import Row
from .sources import Source, find_sources

__all__ = ["id_type", "kept_fields", "open_inputs", "open_sources", "read_rows"]

_CLASSES: dict[str, Callable[[Source, InputColumns], InputFile]] = {
    "parquet": ParquetInput,
    "arrow": ArrowInput,
    "jsonl": JsonLinesInput,
    "csv": CsvInput,
    "tsv": CsvInput,
    "text": PlainTextInput,
}


def open_inputs(
    sources: Sequence[str | Path],
    columns: InputColumns = TEXTS,
    *,
    input_format: str | None = None,
) -> tuple[InputFile, ...]:
    """Find and check the inputs of a job.

    Args:
        sources: files, folders, globs and "-", as `find_sources` takes them; their rows are numbered through in this
            order.
        columns: what the job reads.
        input_format: the format of standard input and of files whose suffix tells none.

    Raises:
        InputError: naming the file, if there is none, it is unreadable, of an unknown format, or lacks a column; or if
            the id or carried columns of two files are of types that no one type holds.
        OptionError: if there is no such format.
    """
    files = open_sources(find_sources(sources, input_format), columns)
    id_type(files)
    kept_fields(files, columns)
    return files


def open_sources(sources: Sequence[Source], columns: InputColumns) -> tuple[InputFile, ...]:
    """The inputs behind sources that were found and checked before.

    Raises:
        InputError: naming the file, if it is unreadable or lacks a column.
    """
    return tuple(_CLASSES[source.format](source, columns) for source in sources)


def read_rows(inputs: Sequence[InputFile], skip: int = 0, is_enough: IsEnough | None = None) -> Iterator[Row]:
    """Stream the rows of all inputs, numbered through from 0, beginning with row number `skip`.

    Files that end before it are not opened where their rows are known.

    Args:
        inputs: from `open_inputs`.
        skip: rows that are left out.
        is_enough: of a task that sees only the beginnings of long texts: rows have no more of them.
    """
    number = 0
    for file in inputs:
        file.is_enough = is_enough if file.columns.pair is None else None
        if file.row_count is None or number + file.row_count > skip:
            yield from file.rows(number, max(skip - number, 0))
        # Read to its end, a file knows its rows.
        number += file.row_count or 0
