"""Inputs that no job can start on: one clear line each, before anything is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from padless import InputError
from padless.engine.jobs.inputs.input_file import InputColumns
from padless.engine.jobs.inputs.reader import open_inputs, read_rows


def refusal(*paths: Path, text_column: str = "text", id_column: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        open_inputs(paths, InputColumns(text_column, id=id_column))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "in.parquet"
    numbers = np.arange(5000)
    pq.write_table(pa.table({"n": numbers, "x": numbers / 3, "text": [f"text {n}" for n in numbers]}), path)
    return path


def test_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.parquet") == f"{tmp_path / 'no.parquet'}: no such file"


@pytest.mark.parametrize("name", ["in.docx", "in"])
def test_unknown_suffix(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a")
    message = refusal(tmp_path / name)
    found = "suffix '.docx'" if name == "in.docx" else "no suffix"
    assert message.startswith(f"{tmp_path / name}: {found}, expected one of .parquet, .pq, .arrow, ")
    assert message.endswith("or --input-format; those of lines also with .gz, .bz2, .xz, .zst, .lz4")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not a parquet file at all", b"PAR1" + bytes(100) + b"PAR1"])
def test_file_that_is_no_parquet(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "in.parquet"
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path}: not a readable Parquet file (")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_parquet(parquet: Path, kept: float) -> None:
    content = parquet.read_bytes()
    parquet.write_bytes(content[: int(len(content) * kept)])
    assert refusal(parquet).startswith(f"{parquet}: not a readable Parquet file (")


def test_parquet_damaged_inside_stops_with_one_line(parquet: Path) -> None:
    content = bytearray(parquet.read_bytes())
    content[4 : len(content) - 3000] = b"\xff" * (len(content) - 3004)
    parquet.write_bytes(content)
    with pytest.raises(InputError, match=r"in\.parquet: unreadable after row 0 \(") as caught:
        list(read_rows(open_inputs([parquet])))
    assert len(str(caught.value).splitlines()) == 1


def test_unknown_column_lists_those_found(parquet: Path) -> None:
    assert refusal(parquet, text_column="body") == f"{parquet}: no column 'body'; columns found: n, x, text"
    assert refusal(parquet, id_column="key") == f"{parquet}: no column 'key'; columns found: n, x, text"


@pytest.mark.parametrize(("column", "found"), [("n", "int64"), ("x", "double")])
def test_text_column_of_another_type(parquet: Path, column: str, found: str) -> None:
    assert refusal(parquet, text_column=column) == f"{parquet}: column {column!r} has type {found}, expected string"


def test_id_column_of_another_type(parquet: Path) -> None:
    assert refusal(parquet, id_column="x") == f"{parquet}: id column 'x' has type double, expected an integer or string"


def test_column_that_appears_twice(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), path)
    assert refusal(path) == f"{path}: column 'text' appears 2 times, expected once"
    (tmp_path / "in.csv").write_text("text,text\na,b\n")
    assert refusal(tmp_path / "in.csv").endswith("column 'text' appears 2 times, expected once")


def test_unknown_column_of_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"title": "a"}\nbroken\n{"title": "b", "body": "c"}\n')
    assert refusal(path) == f"{path}: no column 'text'; columns found: title, body"


def test_unknown_column_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("title,body\na,b\n")
    assert refusal(path) == f"{path}: no column 'text'; columns found: title, body"


def test_csv_without_header(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("\n\r\n")
    assert refusal(path) == f"{path}: empty, expected a header line"


def test_csv_header_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b"t\xffxt\na\n")
    assert refusal(path) == f"{path}: header line: invalid UTF-8"


def test_plain_text_has_no_columns(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_text("a\n")
    assert refusal(path, id_column="id") == f"{path}: no column 'id'; a plain text file has no columns"


def test_id_columns_of_two_types(parquet: Path, tmp_path: Path) -> None:
    other = tmp_path / "in.csv"
    other.write_text("n,text\n1,a\n")
    message = refusal(parquet, other, id_column="n")
    assert message == f"{other}: id column 'n' has type string, expected int64 as in {parquet}"


def test_no_inputs() -> None:
    assert refusal() == "no input file given"
