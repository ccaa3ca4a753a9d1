"""The columns beside the text: the second text of a pair, ids, and what is carried along, in every format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from padless import InputError, OptionError
from padless.engine.jobs.inputs.input_file import InputColumns
from padless.engine.jobs.inputs.reader import id_type, kept_fields, open_inputs, read_rows
from padless.engine.jobs.inputs.rows import Row


def rows(path: Path, **columns: object) -> list[Row]:
    return list(read_rows(open_inputs([path], InputColumns(**columns))))  # pyright: ignore[reportArgumentType]


def refusal(paths: Sequence[Path], **columns: object) -> str:
    with pytest.raises(InputError) as caught:
        open_inputs(paths, InputColumns(**columns))  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pairs_of_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    pairs = ['"b"', '["b", "c"]', "null", "[]", '["b", 7]', '"[\\"b\\"]"', '{"b": 1}', '["\\ud800"]']
    path.write_text("\n".join(f'{{"text": "a", "to": {pair}}}' for pair in pairs) + '\n{"text": "a"}\n')
    got = rows(path, pair="to")
    assert [row.pair for row in got] == ["b", ["b", "c"], None, None, None, '["b"]', None, ["\ufffd"], None]
    assert [row.reason for row in got] == [
        "",
        "",
        "line 3: field 'to' is null, expected a string or an array of strings",
        "line 4: field 'to' is an empty list, expected at least one choice",
        "line 5: field 'to': choice 1 is number 7, expected a string",
        "",
        "line 7: field 'to' is object {'b': 1}, expected a string or an array of strings",
        "pair: 1 lone surrogates replaced by U+FFFD",
        "line 9: no field 'to'; fields found: 'text'",
    ]
    assert [row.text is None for row in got] == [row.kind == "error" for row in got]


def test_pairs_of_csv_are_choices_where_they_are_a_json_array_of_strings(tmp_path: Path) -> None:
    path = tmp_path / "in.tsv"
    path.write_text('text\tto\na\tb\na\t"[""b"", ""c""]"\na\t[1]\na\t[]\na\t[b]\na\t\n')
    assert [row.pair for row in rows(path, pair="to")] == ["b", ["b", "c"], "[1]", "[]", "[b]", ""]


@pytest.mark.parametrize(
    "list_type",
    [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.dictionary(pa.int8(), pa.string()))],
    ids=["list", "large_list", "dictionary"],
)
def test_choices_of_parquet(tmp_path: Path, list_type: pa.DataType) -> None:
    path = tmp_path / "in.parquet"
    choices = pa.array([["b", "c"], [], None, ["d", None], ["é"]], list_type)
    pq.write_table(pa.table({"text": ["a"] * 5, "to": choices}), path)
    got = rows(path, pair="to")
    assert [row.pair for row in got if row.kind == "ok"] == [["b", "c"], ["é"]]
    assert [row.reason for row in got] == [
        "",
        "pair is an empty list, expected at least one choice",
        "pair: null, expected a string",
        "pair: choice 1 is None, expected a string",
        "",
    ]


def test_pair_that_is_not_utf8_costs_its_row_only(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pairs = pa.array([b"b", b"b\xff", b"c"]).view(pa.string())
    pq.write_table(pa.table({"text": ["a"] * 3, "to": pairs}), path)
    got = rows(path, pair="to")
    assert [(row.pair, row.reason) for row in got if row.kind == "ok"] == [("b", ""), ("c", "")]
    assert got[1].reason == "pair: invalid UTF-8 at byte 1 of the pair"


def test_pair_column_of_another_type(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": ["a"], "to": [1]}), path)
    assert refusal([path], pair="to") == f"{path}: pair column 'to' has type int64, expected string or list<string>"


@pytest.mark.parametrize("column", ["pair", "id", "kept"])
@pytest.mark.parametrize("name", ["in.jsonl", "in.csv", "in.parquet", "in.txt"])
def test_column_that_is_not_there(tmp_path: Path, name: str, column: str) -> None:
    path = tmp_path / name
    if name == "in.parquet":
        pq.write_table(pa.table({"text": ["a"]}), path)
    else:
        path.write_text('{"text": "a"}\n' if name == "in.jsonl" else "text\na\n")
    message = refusal([path], **{column: ("no",) if column == "kept" else "no"})
    assert message.startswith(f"{path}: no column 'no'; ")


TYPES = {
    "int8": pa.array([1, None, -3], pa.int8()),
    "uint64": pa.array([2**64 - 1, None, 0], pa.uint64()),
    "half": pa.array([1.5, None, 2.5], pa.float16()),
    "double": pa.array([0.1, None, float("-inf")]),
    "bool": pa.array([True, None, False]),
    "string": pa.array(["", None, "é"]),
    "large_string": pa.array(["", None, "é"], pa.large_string()),
    "binary": pa.array([b"\xff", None, b""]),
    "decimal": pa.array([Decimal("1.23"), None, Decimal("9.99")]),
    "date": pa.array([date(2025, 1, 17), None, date(1, 1, 1)]),
    "date64": pa.array([86_400_000, None, 0], pa.date64()),
    "nanoseconds": pa.array([1_700_000_000_123_456_789, None, -1], pa.timestamp("ns", "Europe/Berlin")),
    "far year": pa.array([2**62, None, 0], pa.timestamp("us")),
    "time": pa.array([1, None, 86_399_999_999_999], pa.time64("ns")),
    "duration": pa.array([1, None, -1], pa.duration("ns")),
    "list": pa.array([["a", None], None, []]),
    "list of nanoseconds": pa.array([[1], None, [None]], pa.list_(pa.timestamp("ns"))),
    "struct": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": None}]),
    "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int32())),
    "fixed list": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int8(), 2)),
    "nulls": pa.nulls(3),
}


@pytest.mark.parametrize("name", TYPES)
def test_values_of_every_type_are_carried_without_loss(tmp_path: Path, name: str) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": ["a", "b", "c"], "x": TYPES[name]}), path)
    columns = InputColumns(kept=("x",))
    files = open_inputs([path], columns)
    (field,) = kept_fields(files, columns)
    carried = pa.array([row.kept[0] for row in read_rows(files)], field.type)
    assert carried.equals(pq.read_table(path)["x"].combine_chunks().cast(field.type))
    assert field.type == pq.read_schema(path).field("x").type
    pq.write_table(pa.table([carried], schema=pa.schema([field])), tmp_path / "out.parquet")


def test_dictionary_is_carried_as_its_values(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "x": pa.array(["u", None]).dictionary_encode()}), path)
    columns = InputColumns(kept=("x",))
    files = open_inputs([path], columns)
    assert kept_fields(files, columns) == (pa.field("x", pa.string()),)
    assert [row.kept for row in read_rows(files)] == [("u",), (None,)]


def test_dictionary_of_times_is_carried_without_loss(tmp_path: Path) -> None:
    path = tmp_path / "in.arrow"
    times = pa.array([1_700_000_000_123_456_789, None, 1], pa.timestamp("ns"))
    table = pa.table({"text": ["a", "b", "c"], "x": times.dictionary_encode()})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    columns = InputColumns(kept=("x",))
    files = open_inputs([path], columns)
    (field,) = kept_fields(files, columns)
    assert pa.array([row.kept[0] for row in read_rows(files)], field.type).equals(times)


def test_type_that_parquet_does_not_know_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.arrow"
    interval = pa.array([(1, 2, 3)], pa.month_day_nano_interval())
    table = pa.table({"text": ["a"], "x": interval})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    assert refusal([path], kept=("x",)) == (
        f"{path}: column 'x' has type month_day_nano_interval, which cannot be carried into Parquet"
    )


def test_carried_value_that_is_not_utf8_is_repaired_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    broken = pa.array([b"u", b"v\xff", b"w", b"x\xff"]).view(pa.string())
    lists = pa.ListArray.from_arrays([0, 1, 2, 3, 4], broken)
    pq.write_table(pa.table({"text": ["a", "b", "c", "d"], "id": broken, "x": broken, "y": lists}), path)
    got = rows(path, id="id", kept=("x", "y"))
    assert [(row.text, row.id, row.kept) for row in got] == [
        ("a", "u", ("u", ["u"])),
        ("b", "v\ufffd", ("v\ufffd", None)),
        ("c", "w", ("w", ["w"])),
        ("d", "x\ufffd", ("x\ufffd", None)),
    ]
    assert [row.kind for row in got] == ["ok", "repaired", "ok", "repaired"]
    assert got[1].reason == (
        "id: invalid UTF-8 replaced by U+FFFD; column 'x': invalid UTF-8 replaced by U+FFFD; "
        "column 'y': invalid UTF-8 replaced by null"
    )


def test_json_values_are_carried_as_their_text(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    values = ["plain", 7, 1.5, True, None, ["a", {"b": None}], "\ud800", "7", 12345678901234567890123]
    lines = [json.dumps({"text": "a", "x": value}) for value in values]
    path.write_text("\n".join([*lines, '{"text": "a"}']))
    columns = InputColumns(kept=("x",))
    files = open_inputs([path], columns)
    assert kept_fields(files, columns) == (pa.field("x", pa.string()),)
    got = list(read_rows(files))
    assert [row.kept[0] for row in got] == [
        *("plain", "7", "1.5", "true", None, '["a", {"b": null}]', "\ufffd", "7", "12345678901234567890123", None),
    ]
    assert [row.number for row in got if row.kind == "repaired"] == [6]
    assert got[6].reason == "column 'x': 1 lone surrogates replaced by U+FFFD"


def test_csv_bytes_that_are_no_utf8_matter_only_where_they_are_used(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b"text,x,other\na,\xff\xfe,b\nb,c,\xff\nc,\xc3\xa9,e\n\xff,x,y\n")
    got = rows(path, kept=("x",))
    assert [(row.text, row.kept, row.kind) for row in got] == [
        ("a", ("\ufffd",), "repaired"),
        ("b", ("c",), "ok"),
        ("c", ("é",), "ok"),
        (None, (), "error"),
    ]


def test_text_can_be_carried_too(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,text\n1,a\n")
    (row,) = rows(tmp_path / "in.csv", id="id", kept=("text", "id"))
    assert (row.text, row.id, row.kept) == ("a", "1", ("a", "1"))


def test_column_named_twice_is_refused() -> None:
    with pytest.raises(OptionError, match="'x' is named twice"):
        InputColumns(kept=("x", "y", "x"))


def test_equal_ids_stay_rows_of_their_own(tmp_path: Path) -> None:
    """An id is carried, not trusted: the row number tells rows apart."""
    (tmp_path / "in.csv").write_text("id,text\n7,a\n7,b\n,c\n7,a\n")
    assert [(row.number, row.id, row.text) for row in rows(tmp_path / "in.csv", id="id")] == [
        (0, "7", "a"),
        (1, "7", "b"),
        (2, "", "c"),
        (3, "7", "a"),
    ]


def two_files(folder: Path, one: pa.DataType, other: pa.DataType) -> list[Path]:
    paths = [folder / "one.parquet", folder / "other.parquet"]
    for path, found in zip(paths, (one, other), strict=True):
        pq.write_table(pa.table({"text": ["a"], "x": pa.nulls(1, found)}), path)
    return paths


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (pa.int8(), pa.int64(), pa.int64()),
        (pa.uint8(), pa.int8(), pa.int16()),
        (pa.uint32(), pa.int32(), pa.int64()),
        (pa.uint16(), pa.uint32(), pa.uint32()),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.int16(), pa.float32(), pa.float32()),
        (pa.int32(), pa.float32(), pa.float64()),
        (pa.null(), pa.date32(), pa.date32()),
        (pa.string(), pa.large_string(), pa.large_string()),
    ],
    ids=str,
)
@pytest.mark.parametrize("turned", [False, True])
def test_types_of_two_files_meet_in_the_wider(
    tmp_path: Path, one: pa.DataType, other: pa.DataType, expected: pa.DataType, turned: bool
) -> None:
    columns = InputColumns(kept=("x",))
    paths = two_files(tmp_path, *((other, one) if turned else (one, other)))
    assert kept_fields(open_inputs(paths, columns), columns) == (pa.field("x", expected),)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.int64(), pa.float64()),
        (pa.uint64(), pa.int64()),
        (pa.string(), pa.int64()),
        (pa.date32(), pa.timestamp("us")),
        (pa.bool_(), pa.int8()),
    ],
    ids=str,
)
def test_types_that_no_type_holds_are_refused(tmp_path: Path, one: pa.DataType, other: pa.DataType) -> None:
    paths = two_files(tmp_path, one, other)
    assert refusal(paths, kept=("x",)) == f"{paths[1]}: column 'x' has type {other}, expected {one} as in {paths[0]}"


def test_the_file_named_beside_is_the_one_that_set_the_type(tmp_path: Path) -> None:
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    (tmp_path / "in.csv").write_text("text,x\na,1\n")
    paths = [empty, *two_files(tmp_path, pa.int8(), pa.int32()), tmp_path / "in.csv"]
    assert refusal(paths, kept=("x",)) == f"{paths[3]}: column 'x' has type string, expected int32 as in {paths[2]}"


def test_empty_file_has_ids_of_any_type(tmp_path: Path) -> None:
    for name in ("a.csv", "b.jsonl"):
        (tmp_path / name).write_text("")
    empty = [tmp_path / "a.csv", tmp_path / "b.jsonl"]
    assert id_type(open_inputs(empty, InputColumns(id="n"))) == pa.string()
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), tmp_path / "c.parquet")
    files = open_inputs([*empty, tmp_path / "c.parquet"], InputColumns(id="n"))
    assert id_type(files) == pa.int64()
    assert [row.id for row in read_rows(files)] == [1]
