"""Inputs that are too long, too wide, or change while they are read: a row, or the job with one line, never more."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from padless import InputError
from padless.engine.jobs.inputs import csv_records, lines
from padless.engine.jobs.inputs.csv_records import CsvRecords
from padless.engine.jobs.inputs.input_file import InputColumns
from padless.engine.jobs.inputs.reader import open_inputs, read_rows
from padless.engine.jobs.inputs.rows import Row


def rows(path: Path, text_column: str = "text") -> list[Row]:
    return list(read_rows(open_inputs([path], InputColumns(text_column))))


@pytest.mark.parametrize("name", ["in.txt", "in.jsonl"])
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_line_longer_than_the_limit_is_a_bad_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, end: str
) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 3_000_000)
    line = {"in.txt": "{}", "in.jsonl": '{{"text": "{}"}}'}[name]
    (tmp_path / name).write_text(line.format("before") + "\n" + line.format("x" * 5_000_000) + end)
    if end:
        with (tmp_path / name).open("a") as handle:
            handle.write(line.format("after"))
    got = rows(tmp_path / name)
    assert [row.text for row in got] == ["before", None, "after"][: len(got)]
    assert len(got) == (3 if end else 2)
    assert got[1].reason == "line 2: longer than 3000000 bytes"


@pytest.mark.parametrize(("length", "is_held"), [(100, True), (101, False)])
def test_line_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int, is_held: bool) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 100)
    for end in ("\n", ""):
        (tmp_path / "in.txt").write_text("x" * length + end)
        (row,) = rows(tmp_path / "in.txt")
        assert (row.text is not None) == is_held


def test_csv_line_longer_than_the_limit_is_a_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_records, "MAX_LINE_BYTES", 1000)
    long = "x" * 3_000_000
    (tmp_path / "in.csv").write_text(f'text,n\na,1\n{long},2\nb,3\n"{long}",4\nc,5\n"d\n{long}\n",6\ne,7\n')
    got = rows(tmp_path / "in.csv")
    assert [row.text for row in got if row.text] == ["a", "b", "c", "e"]
    reasons = [row.reason for row in got if row.reason]
    assert reasons[:2] == [f"line {number}: line longer than 1000 bytes" for number in (3, 5)]
    assert reasons[2].startswith("line 7: malformed CSV (line longer than 1000 bytes")


def test_quote_left_open_does_not_swallow_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_records, "MAX_RECORD_BYTES", 100_000)
    monkeypatch.setattr(csv_records, "LONG_RECORD_BYTES", 1000)
    body = "".join(f"{number},text {number}\n" for number in range(10_000))
    (tmp_path / "in.csv").write_text(f'id,text\n7,"open\n{body}')
    first, *others = rows(tmp_path / "in.csv")
    assert first.reason == ("line 2: malformed CSV (record longer than 100000 bytes, is a quote left open?)")
    assert [row.text for row in others] == [f"text {number}" for number in range(10_000)]


@pytest.mark.parametrize("quote", ["", '"'])
def test_csv_of_ten_thousand_columns(tmp_path: Path, quote: str) -> None:
    names = [f"column {number}" for number in range(10_000)]
    with (tmp_path / "in.csv").open("w") as handle:
        handle.write(",".join(names) + "\n")
        for row in range(20):
            values = [f"{quote}{row * number}{quote}" for number in range(10_000)]
            handle.write(",".join(values[: None if row != 7 else 9_999]) + "\n")
    got = rows(tmp_path / "in.csv", "column 9998")
    assert [row.text for row in got] == [str(row * 9998) if row != 7 else None for row in range(20)]
    assert got[7].reason == "line 9: found 9999 fields, expected 10000"
    # The header line itself may be longer than what is a long record below it.
    (tmp_path / "long.csv").write_text(",".join(f'"{name:>200}"' for name in names) + "\n" + "a," * 9_999 + "b\n")
    assert [row.text for row in rows(tmp_path / "long.csv", f"{names[-1]:>200}")] == ["b"]
    with pytest.raises(InputError) as caught:
        rows(tmp_path / "in.csv", "no")
    assert str(caught.value).endswith("column 48, column 49 and 9950 more")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.integers(1, 3).flatmap(
        lambda width: st.lists(
            st.lists(
                st.text(st.sampled_from('ab ,"\n\r\t;é\u2028\x00'), max_size=6) | st.text(max_size=4),
                min_size=width,
                max_size=width,
            ),
            max_size=8,
        )
    ),
    # Before Python 3.13 the writer leaves a line end bare that is not its own.
    st.sampled_from([(csv.QUOTE_MINIMAL, "\r\n"), *((csv.QUOTE_ALL, end) for end in ("\n", "\r\n", "\r"))]),
    st.sampled_from(",\t"),
    st.sampled_from([0, csv_records.LONG_RECORD_BYTES]),
)
def test_csv_written_by_the_standard_library_comes_back(
    table: list[list[str]], dialect: tuple[int, str], delimiter: str, long: int
) -> None:
    quoting, end = dialect
    table = [[field.encode("utf-8", "replace").decode() for field in record] for record in table]
    width = len(table[0]) if table else 1
    header = [f"c{number}" for number in range(width)]
    sink = io.StringIO(newline="")
    csv.writer(sink, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows([header, *table])  # pyright: ignore[reportArgumentType]
    records = CsvRecords(io.StringIO(sink.getvalue(), newline=""), delimiter)
    assert records.header == header
    wanted = list(range(width))[::-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_records, "LONG_RECORD_BYTES", long)
        assert [fields for _, fields in records.records(wanted)] == [record[::-1] for record in table]


def test_csv_document_of_many_lines(tmp_path: Path) -> None:
    """Long enough for the reader of long records, and for several of its blocks."""
    document = "".join(f'line {number}, "quoted"\r\n' for number in range(60_000))
    with (tmp_path / "in.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows(
            [["n", "text"], ["1", document], ["2", "short"], [document, "b"], ["4"], ["5", "c"]]
        )
    got = rows(tmp_path / "in.csv")
    assert [row.text for row in got] == [document, "short", "b", None, "c"]
    assert got[3].reason == "line 120005: found 1 fields, expected 2"


@pytest.mark.parametrize("name", ["in.txt", "in.jsonl", "in.csv"])
@pytest.mark.parametrize("change", ["shrinks", "grows"])
def test_file_that_changes_while_it_is_read_stops_the_job(tmp_path: Path, name: str, change: str) -> None:
    path = tmp_path / name
    line = {"in.txt": "some text", "in.jsonl": json.dumps({"text": "some text"}), "in.csv": "some text"}[name]
    path.write_text("text\n" * (name == "in.csv") + f"{line}\n" * 20_000)
    size = path.stat().st_size
    (file,) = open_inputs([path])
    got = file.rows(0)
    assert next(got).text == "some text"
    with path.open("r+") as handle:
        if change == "shrinks":
            handle.truncate(size // 2)
        else:
            handle.seek(0, io.SEEK_END)
            handle.write(f"{line}\n")
    found = size // 2 if change == "shrinks" else size + len(line) + 1
    texts: list[str | None] = []
    with pytest.raises(InputError) as caught:
        texts.extend(row.text for row in got)
    assert set(texts) == {"some text"}
    assert str(caught.value).startswith(f"{path}: unreadable after line ")
    assert str(caught.value).endswith(f" (it changed while it was read: found {found} bytes, expected {size})")


def test_file_that_vanishes_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    (file,) = open_inputs([tmp_path / "in.txt"])
    (tmp_path / "in.txt").unlink()
    with pytest.raises(InputError, match=r"in\.txt: cannot be read \(No such file or directory\)"):
        list(file.rows(0))


@pytest.mark.parametrize("name", ["in.txt", "in.jsonl", "in.csv", "in.tsv"])
def test_file_of_no_bytes_has_no_rows_and_no_influence(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    (tmp_path / "z.csv").write_text("text\na\n")
    files = open_inputs([tmp_path / name, tmp_path / "z.csv"])
    assert [(row.number, row.text) for row in read_rows(files)] == [(0, "a")]
    assert (files[0].row_count, files[0].fraction_read) == (0, 1.0)


def test_blank_lines_of_json_are_no_rows_wherever_reading_starts(tmp_path: Path) -> None:
    """What is blank must not depend on whether a line is read or left out."""
    blanks = ["", " ", "\t\r", "\x0b\x0c", "\u2028", "\x1c", "\x85"]
    (tmp_path / "in.jsonl").write_text(
        "\n".join(f'{blank}\n{{"text": "{number}"}}' for number, blank in enumerate(blanks)), newline=""
    )
    (file,) = open_inputs([tmp_path / "in.jsonl"])
    whole = list(file.rows(0))
    assert [row.text for row in whole if row.text] == [str(number) for number in range(len(blanks))]
    for skip in range(len(whole) + 1):
        assert list(file.rows(0, skip)) == whole[skip:]
