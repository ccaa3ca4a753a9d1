"""What is the same for every format: rows from any row on, the number of rows, and how far the file has been read."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from padless import InputError
from padless.engine.jobs.inputs.input_file import InputColumns
from padless.engine.jobs.inputs.reader import open_inputs, read_rows

TEXTS = ["one", "two, three", 'four "five"', "six\tseven", "é 漢字", "", *(f"row {i}" for i in range(6, 1003))]


def write_arrow(path: Path, new: Callable[..., ipc.RecordBatchStreamWriter], rows: int = 100) -> None:
    table = pa.table({"other": list(range(len(TEXTS))), "text": TEXTS})
    with new(str(path), table.schema) as writer:
        for batch in table.to_batches(max_chunksize=rows):
            writer.write_batch(batch)


def write_csv(path: Path, delimiter: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, delimiter=delimiter)
        writer.writerows([["text"], *([text] for text in TEXTS)])


def write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def json_lines() -> list[str]:
    return [json.dumps({"text": text}) + "\n" * (number % 7 == 0) for number, text in enumerate(TEXTS)]


WRITERS: dict[str, Callable[[Path], object]] = {
    "in.parquet": lambda path: pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=300),
    "in.arrow": lambda path: write_arrow(path, ipc.new_file),
    "in.arrows": lambda path: write_arrow(path, ipc.new_stream),
    "in.feather": lambda path: feather.write_feather(pa.table({"text": TEXTS}), str(path), chunksize=250),
    "in.jsonl": lambda path: write_lines(path, json_lines()),
    "in.csv": lambda path: write_csv(path, ","),
    "in.tsv": lambda path: write_csv(path, "\t"),
    "in.txt": lambda path: write_lines(path, TEXTS),
    "in.jsonl.gz": lambda path: path.write_bytes(gzip.compress("\n".join(json_lines()).encode())),
    "in.txt.bz2": lambda path: path.write_bytes(bz2.compress("\n".join(TEXTS).encode())),
    "in.txt.xz": lambda path: path.write_bytes(lzma.compress("\n".join(TEXTS).encode())),
    "in.ndjson.zst": lambda path: path.write_bytes(arrow_compressed("\n".join(json_lines()), "zstd")),
    "in.txt.lz4": lambda path: path.write_bytes(arrow_compressed("\n".join(TEXTS), "lz4")),
}


def arrow_compressed(text: str, codec: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(text.encode())
    return sink.getvalue().to_pybytes()


@pytest.fixture(params=WRITERS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    WRITERS[request.param](path)
    return path


def test_rows_from_any_row_on(path: Path) -> None:
    (file,) = open_inputs([path])
    whole = list(file.rows(1000))
    assert [row.text for row in whole] == TEXTS
    assert [row.number for row in whole] == list(range(1000, 2003))
    assert [row.file_row for row in whole] == list(range(1003))
    for skip in (0, 1, 5, 99, 100, 101, 299, 300, 301, 1002, 1003, 5000):
        assert list(file.rows(1000, skip)) == whole[skip:]


def test_row_count_is_known_at_once_or_after_the_end(path: Path) -> None:
    (file,) = open_inputs([path])
    known = path.suffix in (".parquet", ".arrow", ".feather")
    assert file.row_count == (1003 if known else None)
    assert sum(1 for _ in file.rows(0, 1000)) == 3
    assert file.row_count == 1003
    assert file.rereadable


def test_fraction_read_ends_at_one(path: Path) -> None:
    (file,) = open_inputs([path])
    assert file.fraction_read == 0
    seen = [file.fraction_read for _ in file.rows(0)]
    assert seen == sorted(seen)
    assert seen[-1] <= 1
    assert file.fraction_read == 1


def test_job_goes_on_in_the_file_of_the_row(tmp_path: Path) -> None:
    """A resumed job starts at a row of all inputs, whether or not the files before know their rows."""
    for name, write in WRITERS.items():
        write(tmp_path / name)
    paths = sorted(tmp_path.iterdir())
    whole = list(read_rows(open_inputs(paths)))
    assert [row.number for row in whole] == list(range(len(paths) * 1003))
    for skip in (1, 1002, 1003, 1004, 5 * 1003 + 17, len(whole) - 1, len(whole)):
        assert list(read_rows(open_inputs(paths), skip)) == whole[skip:]


def test_files_that_end_before_the_row_are_not_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"] * 10}), tmp_path / "a.parquet")
    (tmp_path / "b.txt").write_text("b\nc\n")
    files = open_inputs([tmp_path / "a.parquet", tmp_path / "b.txt"])
    (tmp_path / "a.parquet").unlink()
    assert [(row.number, row.text) for row in read_rows(files, 11)] == [(11, "c")]


def test_row_groups_before_the_row_are_not_read(tmp_path: Path) -> None:
    """Their bytes are destroyed, and nobody sees it."""
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(3000)]}), path, row_group_size=1000)
    start = pq.read_metadata(path).row_group(2).column(0).dictionary_page_offset
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * (start - 4) + content[start:])
    (file,) = open_inputs([path])
    for skip in (2000, 2500):
        assert [row.text for row in file.rows(0, skip)] == [f"text {i}" for i in range(skip, 3000)]
    with pytest.raises(InputError):
        list(file.rows(0, 1999))


def test_arrow_offsets_that_point_outside_stop_the_job_and_not_the_process(tmp_path: Path) -> None:
    path = tmp_path / "in.arrow"
    with ipc.new_file(str(path), pa.schema([("text", pa.string())])) as writer:
        for letter in "xyz":
            writer.write_table(pa.table({"text": [letter * 10]}))
    content = path.read_bytes()
    offsets = content.find(b"y" * 10) - 8  # two of 4 bytes, before the data
    path.write_bytes(content[:offsets] + b"\x77" * 8 + content[offsets + 8 :])
    with pytest.raises(InputError, match=r"in\.arrow: unreadable after row 1 \("):
        list(read_rows(open_inputs([path])))


@pytest.mark.parametrize("new", [ipc.new_file, ipc.new_stream], ids=["file", "stream"])
@pytest.mark.parametrize(
    "array",
    [
        pa.array(["a", None, "c", ""], pa.large_string()),
        pa.array(["a", None, "c", ""]).dictionary_encode(),
        pa.array(["a", None, "c", ""], pa.string_view()),
    ],
    ids=["large_string", "dictionary", "view"],
)
def test_arrow_string_columns(tmp_path: Path, new: Callable[..., ipc.RecordBatchStreamWriter], array: pa.Array) -> None:
    path = tmp_path / "in.ipc"
    table = pa.table({"n": [1, 2, None, 4], "text": array})
    with new(str(path), table.schema) as writer:
        writer.write_table(table)
    got = list(read_rows(open_inputs([path], InputColumns(id="n", kept=("n", "text")))))
    assert [(row.text, row.id) for row in got] == [("a", 1), (None, 2), ("c", None), ("", 4)]
    assert got[1].reason == "null, expected a string"
    assert got[2].kept == (None, "c")


def test_arrow_with_invalid_utf8_loses_that_row_only(tmp_path: Path) -> None:
    path = tmp_path / "in.arrow"
    table = pa.table({"text": pa.array([b"a", b"b\xffc", None, "é".encode()]).view(pa.string())})
    with ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    got = list(read_rows(open_inputs([path])))
    assert [row.text for row in got] == ["a", None, None, "é"]
    assert [row.reason for row in got] == ["", "invalid UTF-8 at byte 1 of the text", "null, expected a string", ""]


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_arrow_with_compressed_buffers(tmp_path: Path, codec: str) -> None:
    feather.write_feather(pa.table({"text": TEXTS}), str(tmp_path / "in.feather"), compression=codec)
    assert [row.text for row in read_rows(open_inputs([tmp_path / "in.feather"]))] == TEXTS


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"not an arrow file at all", b"\xff\xff\xff\xff" + bytes(4)])
def test_file_that_is_no_arrow(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in.arrow").write_bytes(content)
    with pytest.raises(InputError, match=r"in\.arrow: not a readable Arrow file or stream \(") as caught:
        open_inputs([tmp_path / "in.arrow"])
    assert "\n" not in str(caught.value)


def test_feather_version_1_is_named(tmp_path: Path) -> None:
    (tmp_path / "in.feather").write_bytes(b"FEA1" + bytes(100) + b"FEA1")
    with pytest.raises(InputError, match=r"in\.feather: is Feather version 1, expected version 2"):
        open_inputs([tmp_path / "in.feather"])


@pytest.mark.parametrize("name", ["in.arrow", "in.arrows"])
@pytest.mark.parametrize("kept", [0.2, 0.6, 0.95])
def test_truncated_arrow_stops_the_job(tmp_path: Path, name: str, kept: float) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(InputError) as caught:
        list(read_rows(open_inputs([path])))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
