"""What each format yields row by row: every bad row is itself, with its reason, and its neighbours are whole."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from padless.engine.jobs.inputs import csv_records
from padless.engine.jobs.inputs.input_file import InputColumns
from padless.engine.jobs.inputs.reader import open_inputs, read_rows
from padless.engine.jobs.inputs.rows import Row


def rows(path: Path, text_column: str = "text", id_column: str | None = None) -> list[Row]:
    return list(read_rows(open_inputs([path], InputColumns(text_column, id=id_column))))


def texts(path: Path) -> list[str | None]:
    return [row.text for row in rows(path)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": null}', "line 2: field 'text' is null, expected a string"),
        (b'{"text": 12.5}', "line 2: field 'text' is number 12.5, expected a string"),
        (b'{"text": true}', "line 2: field 'text' is boolean True, expected a string"),
        (b'{"text": ["a"]}', "line 2: field 'text' is array ['a'], expected a string"),
        (b'{"text": {"a": 1}}', "line 2: field 'text' is object {'a': 1}, expected a string"),
        (b'{"txt": "a"}', "line 2: no field 'text'; fields found: 'txt'"),
        (b"{}", "line 2: no field 'text'; fields found: none"),
        (b'"a"', "line 2: found string 'a', expected a JSON object"),
        (b"[1, 2]", "line 2: found array [1, 2], expected a JSON object"),
        (b'{"text": "a"', "line 2: malformed JSON at character 12 (Expecting ',' delimiter)"),
        (b'{"text": "a"} {', "line 2: malformed JSON at character 14 (Extra data)"),
        (b"\x00\x01", "line 2: malformed JSON at character 0 (Expecting value)"),
        (b'{"text": "\xff"}', "line 2: invalid UTF-8 at byte 10 of the line"),
        (b'{"text": "\xed\xa0\x80"}', "line 2: invalid UTF-8 at byte 10 of the line"),
        (b'{"text": ' + b"[" * 100_000, "line 2: malformed JSON ("),
        (b'{"text": ' + b"1" * 5000 + b"}", "line 2: malformed JSON ("),
    ],
)
def test_bad_json_line_costs_itself_only(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    before, bad, after = rows(path)
    assert (before.number, before.text, before.kind) == (0, "before", "ok")
    assert (bad.number, bad.file_row, bad.text, bad.kind, bad.file) == (1, 1, None, "error", str(path))
    assert bad.reason.startswith(reason)
    assert "\n" not in bad.reason
    assert (after.number, after.text, after.kind) == (2, "after", "ok")


def test_lone_surrogate_is_repaired_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(r'{"text": "a\ud800b\udc00", "id": "\udfff"}' "\n" r'{"text": "\ud83d\ude00", "id": "x"}')
    repaired, pair = rows(path, id_column="id")
    assert (repaired.text, repaired.id, repaired.kind) == ("a\ufffdb\ufffd", "\ufffd", "repaired")
    assert repaired.reason == ("id: 1 lone surrogates replaced by U+FFFD; text: 2 lone surrogates replaced by U+FFFD")
    assert (pair.text, pair.kind) == ("\U0001f600", "ok")


def test_json_lines_keeps_odd_but_valid_texts(tmp_path: Path) -> None:
    hostile = ["", " ", "\x00", "a\u2028b", "שלום", "👩‍👩‍👧", "e" + "\u0301" * 1000, "\ufeff", "line\nbreak", "\x85"]
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in hostile), encoding="utf-8")
    assert texts(path) == hostile


def test_json_lines_with_byte_order_mark_crlf_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b"}\r\n')
    assert texts(path) == ["a", "b"]


def test_json_ids_become_strings(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a", "id": 7}\n{"text": "b", "id": "7b"}\n{"text": "c"}\n{"text": null, "id": 1.5}\n')
    assert [row.id for row in rows(path, id_column="id")] == ["7", "7b", None, "1.5"]


def test_plain_text_has_a_row_for_every_line(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes("\ufeffone\r\n\n two \u2028still two\n".encode() + b"\xff\xfe\nlast\x0b")
    got = rows(path)
    assert [row.text for row in got] == ["one", "", " two \u2028still two", None, "last\x0b"]
    assert got[3].reason == "line 4: invalid UTF-8 at byte 0 of the line"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"id,text\n1,a\n2,b\n", ["a", "b"]),
        (b'id,text\r\n1,"a ""quoted"", b"\r\n2,"two\r\nlines"\r\n', ['a "quoted", b', "two\r\nlines"]),
        (b"id,text\n1,a\n2\n3,c\n", ["a", None, "c"]),
        (b"id,text\n1,a\n2,b,extra\n3,c\n", ["a", None, "c"]),
        (b"id,text\n1,a\n2,\xff\n3,c\n", ["a", None, "c"]),
        (b'id,text\n1,a\n2,"open\n3,c\n4,d\n', ["a", None, "c", "d"]),
        (b'id,text\n1,a\n2,"open\n3,"c"\n4,d\n', ["a", None, "c", "d"]),
        (b'id,text\n1,a\n2,x,"open\n3,c"\n4,d\n', ["a", None, 'c"', "d"]),
        (b'id,text\n1,a\n2,"b"x\n3,c\n', ["a", None, "c"]),
        (b'id,text\n1,5" pipe\n2,\n', ['5" pipe', ""]),
        (b"\xef\xbb\xbfid,text\n\n1,a\n\n\n2,b\n", ["a", "b"]),
    ],
    ids=[
        "plain",
        "quoted",
        "short",
        "long",
        "bytes",
        "open",
        "open-then-quoted",
        "open-too-long",
        "after-quote",
        "inch",
        "blank",
    ],
)
@pytest.mark.parametrize("long_record", [0, 1 << 20])
def test_csv_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, expected: list[str | None], long_record: int
) -> None:
    monkeypatch.setattr(csv_records, "LONG_RECORD_BYTES", long_record)
    path = tmp_path / "in.csv"
    path.write_bytes(content)
    assert texts(path) == expected


@pytest.mark.parametrize("long_record", [0, 1 << 20])
def test_csv_reasons_name_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long_record: int) -> None:
    monkeypatch.setattr(csv_records, "LONG_RECORD_BYTES", long_record)
    path = tmp_path / "in.csv"
    path.write_bytes(b'id,text\n1,"two\nlines"\n2\n\n3,"open\n4,\xff\n5,e\n')
    got = rows(path)
    assert [row.reason for row in got] == [
        "",
        "line 4: found 1 fields, expected 2",
        "line 6: malformed CSV (unexpected end of data)",
        "line 7: invalid UTF-8 in column 'text'",
        "",
    ]
    assert [row.file_row for row in got] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("long_record", [0, 1 << 20])
def test_csv_closing_quote_ends_its_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long_record: int) -> None:
    """What follows it is no delimiter, even where the number of fields would then be right."""
    monkeypatch.setattr(csv_records, "LONG_RECORD_BYTES", long_record)
    path = tmp_path / "in.csv"
    path.write_text('id,text,n\n1,"a",1\n2,"b"x3\n3,"c",3\n')
    assert [row.reason for row in rows(path)] == ["", "line 3: malformed CSV (',' expected after '\"')", ""]


def test_csv_field_longer_than_the_default_limit(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("text\n" + "x" * 1_000_003 + "\nshort\n")
    assert [len(text or "") for text in texts(path)] == [1_000_003, 5]


def test_tsv(tmp_path: Path) -> None:
    path = tmp_path / "in.tsv"
    path.write_text('id\ttext\n1\ta, b\n2\t"c\td"\n')
    assert [(row.id, row.text) for row in rows(path, id_column="id")] == [("1", "a, b"), ("2", "c\td")]


@pytest.mark.parametrize(
    "array",
    [
        pa.array(["a", None, "c", ""]),
        pa.array(["a", None, "c", ""], pa.large_string()),
        pa.array(["a", None, "c", ""]).dictionary_encode(),
    ],
    ids=["string", "large_string", "dictionary"],
)
def test_parquet_string_columns(tmp_path: Path, array: pa.Array) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": array}), path)
    got = rows(path)
    assert [row.text for row in got] == ["a", None, "c", ""]
    assert got[1].reason == "null, expected a string"


def test_parquet_column_of_nulls_is_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": pa.nulls(3)}), path)
    assert [(row.text, row.kind) for row in rows(path)] == [(None, "error")] * 3


def test_parquet_with_invalid_utf8_loses_that_row_only(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    broken = pa.array([b"a", b"b\xffc", None, "é".encode()]).view(pa.string())
    pq.write_table(pa.table({"text": broken}), path)
    got = rows(path)
    assert [row.text for row in got] == ["a", None, None, "é"]
    assert [row.reason for row in got] == ["", "invalid UTF-8 at byte 1 of the text", "null, expected a string", ""]


@pytest.mark.parametrize("id_type", [pa.int32(), pa.uint64(), pa.string()], ids=str)
def test_parquet_ids_keep_their_type(tmp_path: Path, id_type: pa.DataType) -> None:
    path = tmp_path / "in.parquet"
    ids = pa.array([3, None, 1]).cast(id_type)
    pq.write_table(pa.table({"n": ids, "text": ["a", "b", "c"]}), path)
    (file,) = open_inputs([path], InputColumns(id="n"))
    assert file.id_type == id_type
    assert [row.id for row in file.rows(0)] == ids.to_pylist()


def test_parquet_of_several_row_groups_and_long_texts(tmp_path: Path) -> None:
    """Long texts make the reader's batches small; none may be lost at a seam."""
    path = tmp_path / "in.parquet"
    written = [f"{number} " + "x" * (number * 977 % 50_000) for number in range(1_501)]
    pq.write_table(pa.table({"text": written}), path, row_group_size=400)
    assert texts(path) == written


def test_rows_of_several_files_are_numbered_through(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\nb\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "c.csv").write_text("text\nc\nd\n")
    files = open_inputs([tmp_path / name for name in ("a.txt", "empty.jsonl", "c.csv")])
    got = [(row.number, Path(row.file).name, row.file_row, row.text) for row in read_rows(files)]
    assert got == [(0, "a.txt", 0, "a"), (1, "a.txt", 1, "b"), (2, "c.csv", 0, "c"), (3, "c.csv", 1, "d")]


@pytest.mark.parametrize("name", ["in.parquet", "in.jsonl", "in.csv", "in.txt"])
def test_fraction_read_goes_from_nothing_to_all(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "in.parquet":
        pq.write_table(pa.table({"text": ["a"] * 50_001}), path)
    else:
        line = {"in.jsonl": '{"text": "a"}', "in.csv": "a", "in.txt": "a"}[name]
        path.write_text("text\n" * (name == "in.csv") + f"{line}\n" * 50_001)
    (file,) = open_inputs([path])
    assert file.fraction_read == 0
    seen = []
    for row in file.rows(0):
        if row.number % 10_000 == 0:
            seen.append(file.fraction_read)
    assert seen == sorted(seen)
    assert 0.2 < seen[2] < 0.8
    assert file.fraction_read == 1
