"""Standard input as an input, in processes of their own: looked at by the checks, then read once."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.ipc as ipc
import pytest

READ = """
import json, sys
from padless import PadlessError
from padless.engine.jobs.inputs.input_file import InputColumns
from padless.engine.jobs.inputs.reader import id_type, open_inputs, read_rows

columns = InputColumns(id="id" if "id" in sys.argv else None)
input_format = sys.argv[1] if sys.argv[1] != "-" else None
try:
    open_inputs(["-"], columns, input_format=input_format)  # as the command does before it loads a model
    (file,) = open_inputs(["-"], columns, input_format=input_format)
    facts = [file.name, file.format, file.bytes, file.rereadable, file.row_count, str(id_type([file]))]
    rows = [[row.number, row.id, row.text] for row in read_rows([file])]
    print(json.dumps([facts, rows, file.row_count, file.fraction_read]))
    list(file.rows(0))
except PadlessError as error:
    print(error)
"""


def read(content: bytes, *arguments: str) -> list[str]:
    command = [sys.executable, "-c", READ, *(arguments or ("-",))]
    done = subprocess.run(command, input=content, capture_output=True, check=True)
    return done.stdout.decode().splitlines()


@pytest.fixture(params=["-", "jsonl", "csv", "tsv", "arrow"])
def content(request: pytest.FixtureRequest) -> Iterator[tuple[str, bytes]]:
    """Enough rows to fill every buffer on the way several times."""
    rows = [(str(number), f"text, number {number}") for number in range(5_000)]
    if request.param in ("csv", "tsv"):
        sink = io.StringIO(newline="")
        writer = csv.writer(sink, delimiter={"csv": ",", "tsv": "\t"}[request.param])
        writer.writerows([("id", "text"), *rows])
        yield request.param, sink.getvalue().encode()
    elif request.param == "arrow":
        sink = io.BytesIO()
        table = pa.table({"id": [row[0] for row in rows], "text": [row[1] for row in rows]})
        with ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table, max_chunksize=1000)
        yield request.param, sink.getvalue()
    else:
        lines = (json.dumps({"id": number, "text": text}) for number, text in rows)
        yield request.param, "\n".join(lines).encode()


def test_every_row_is_there_once(content: tuple[str, bytes]) -> None:
    input_format, data = content
    result, again = read(data, input_format, "id")
    facts, rows, count, fraction = json.loads(result)
    assert facts == ["-", {"-": "jsonl"}.get(input_format, input_format), 0, False, None, "string"]
    assert rows == [[number, str(number), f"text, number {number}"] for number in range(5_000)]
    assert (count, fraction) == (5_000, 1.0)
    assert again == "-: standard input can be read only once"


def test_lines_of_text() -> None:
    result, _ = read(b"one\n\n\xff\ntwo", "text")
    assert json.loads(result)[1] == [[0, None, "one"], [1, None, ""], [2, None, None], [3, None, "two"]]


def test_nothing_at_all() -> None:
    assert json.loads(read(b"")[0])[1] == []
    assert read(b"", "csv") == ["-: empty, expected a header line"]


@pytest.mark.parametrize("first", [b"the sun\n", b'"the sun"\n', b"[\n", b"text\nthe sun\n", b"\xff\n"])
def test_text_where_nobody_named_a_format_is_refused(first: bytes) -> None:
    (line,) = read(first * 10)
    assert line.startswith("-: line 1: ")
    assert line.endswith("; standard input is JSON Lines unless --input-format says otherwise")


def test_bad_line_of_json_lines_asked_for_is_a_bad_row() -> None:
    rows = json.loads(read(b'the sun\n{"text": "moon"}\n', "jsonl")[0])[1]
    assert rows == [[0, None, None], [1, None, "moon"]]


def test_formats_that_need_the_end_first_are_refused() -> None:
    assert read(b"PAR1", "parquet") == [
        "-: Parquet cannot be read from standard input, expected arrow, jsonl, csv, tsv or text"
    ]
    assert read(b"ARROW1\0\0", "arrow") == ["-: is an Arrow file, expected an Arrow stream on standard input"]


def test_standard_input_given_twice() -> None:
    code = "from padless.engine.jobs.inputs.reader import open_inputs\nopen_inputs(['-', '-'])"
    done = subprocess.run([sys.executable, "-c", code], input=b"", capture_output=True)
    assert done.stderr.decode().splitlines()[-1].endswith("InputError: -: given twice, expected each input once")


def test_closed_standard_input() -> None:
    code = "from padless.engine.jobs.inputs.reader import open_inputs\nopen_inputs(['-'])"
    done = subprocess.run(["sh", "-c", 'exec "$0" -c "$1" <&-', sys.executable, code], capture_output=True)
    assert done.stderr.decode().splitlines()[-1].endswith("InputError: -: standard input is closed")
