"""Opens the inputs of a job: the format by the file's suffix, every check that needs no full read made at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from ..errors import InputError
from .csv_input import CsvInput
from .lines_input import JsonLinesInput, PlainTextInput
from .parquet_input import ParquetInput
from .rows import InputFile, Row

__all__ = ["id_type", "open_inputs", "read_rows"]

_FORMATS: dict[str, Callable[[Path, str, str | None], InputFile]] = {
    ".parquet": ParquetInput,
    ".pq": ParquetInput,
    ".jsonl": JsonLinesInput,
    ".ndjson": JsonLinesInput,
    ".csv": CsvInput,
    ".tsv": lambda path, text_column, id_column: CsvInput(path, text_column, id_column, delimiter="\t"),
    ".txt": lambda path, text_column, id_column: PlainTextInput(path, id_column),
}


def open_inputs(
    paths: Sequence[str | Path], text_column: str = "text", id_column: str | None = None
) -> tuple[InputFile, ...]:
    """Check the input files of a job.

    Args:
        paths: Parquet (`.parquet`, `.pq`), JSON Lines (`.jsonl`, `.ndjson`), CSV (`.csv`), TSV (`.tsv`) or plain text
            (`.txt`, one text a line) files; their rows are numbered through in this order.
        text_column: the column or field to embed; of no meaning for plain text.
        id_column: a column of integers or strings to carry into the output.

    Raises:
        InputError: naming the file, if there is none, it is unreadable, of an unknown format, or lacks a column; or if
            the id columns of two files are of different types.
    """
    if not paths:
        raise InputError("no input file given")
    inputs = tuple(_open(Path(path), text_column, id_column) for path in paths)
    for file in inputs[1:]:
        if file.id_type != inputs[0].id_type:
            raise InputError(
                f"{file.name}: id column {id_column!r} has type {file.id_type}, "
                f"expected {inputs[0].id_type} as in {inputs[0].name}"
            )
    return inputs


def read_rows(inputs: Sequence[InputFile]) -> Iterator[Row]:
    """Stream the rows of all inputs, numbered through from 0."""
    number = 0
    for file in inputs:
        for row in file.rows(number):
            yield row
            number = row.number + 1


def id_type(inputs: Sequence[InputFile]) -> pa.DataType | None:
    """Arrow type of the id column, the same in all inputs, or None where no id was asked for."""
    return inputs[0].id_type


def _open(path: Path, text_column: str, id_column: str | None) -> InputFile:
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder, expected a file")
        if not path.exists():
            raise InputError(f"{path}: no such file")
        if not path.is_file():
            raise InputError(f"{path}: not a regular file")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    file_format = _FORMATS.get(path.suffix.lower())
    if file_format is None:
        found = f"suffix {path.suffix!r}" if path.suffix else "no suffix"
        raise InputError(f"{path}: {found}, expected one of {', '.join(_FORMATS)}")
    return file_format(path, text_column, id_column)
