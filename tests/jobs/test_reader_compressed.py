"""Compressed inputs: whole they are what is in them, torn they stop the job before the cut line, bombs cost a row."""

from __future__ import annotations

import bz2
import gzip
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from padless import InputError
from padless.engine.jobs.inputs.reader import open_inputs, read_rows

LINES = [f"line {number} of a text, {number * 7919 % 1009}" for number in range(8_000)]
CONTENT = "".join(f"{line}\n" for line in LINES).encode()


def by_arrow(codec: str) -> Callable[[bytes], bytes]:
    def compress(content: bytes) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as stream:
            stream.write(content)
        return sink.getvalue().to_pybytes()

    return compress


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": by_arrow("zstd"),
    "lz4": by_arrow("lz4"),
}


def texts(path: Path) -> list[str | None]:
    return [row.text for row in read_rows(open_inputs([path]))]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_members_one_after_another_are_one_file(tmp_path: Path, suffix: str) -> None:
    """As `cat a.gz b.gz` makes them, and programs that compress in blocks."""
    compress = COMPRESS[suffix]
    path = tmp_path / f"in.txt.{suffix}"
    path.write_bytes(compress(b"one\ntw") + compress(b"") + compress(b"o\nthree\n"))
    assert texts(path) == ["one", "two", "three"]


def test_zeros_between_and_after_xz_streams(tmp_path: Path) -> None:
    path = tmp_path / "in.txt.xz"
    path.write_bytes(lzma.compress(b"one\n") + bytes(8) + lzma.compress(b"two\n") + bytes(1 << 17))
    assert texts(path) == ["one", "two"]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("kept", [0.001, 0.6, 0.9999])
def test_torn_file_stops_the_job_before_the_cut_line(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"in.txt.{suffix}"
    stored = COMPRESS[suffix](CONTENT)
    path.write_bytes(stored[: int(len(stored) * kept)])
    with pytest.raises(InputError) as caught:
        list(read_rows(open_inputs([path])))
    message = str(caught.value)
    place = f"{path}: unreadable after line "
    assert message.startswith(place)
    assert "\n" not in message
    assert int(message.removeprefix(place).split()[0]) <= len(LINES)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_rows_before_the_tear_are_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"in.txt.{suffix}"
    stored = COMPRESS[suffix](CONTENT)
    path.write_bytes(stored[:-8])
    got: list[str | None] = []
    with pytest.raises(InputError, match="after line") as caught:
        got.extend(row.text for row in read_rows(open_inputs([path])))
    assert got == LINES[: len(got)]
    assert f"after line {len(got)} " in str(caught.value)


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_damaged_file_stops_the_job(tmp_path: Path, suffix: str) -> None:
    """These three carry checksums; in zst and lz4 they are optional."""
    path = tmp_path / f"in.txt.{suffix}"
    stored = bytearray(COMPRESS[suffix](CONTENT))
    stored[len(stored) // 2] ^= 0x10
    path.write_bytes(stored)
    with pytest.raises(InputError, match="unreadable after line"):
        texts(path)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_file_that_is_not_compressed_as_its_name_says(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"in.txt.{suffix}"
    path.write_bytes(b"plain text, nothing else\n" * 100)
    with pytest.raises(InputError, match="unreadable after line 0 "):
        texts(path)


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", ["in.txt", "in.jsonl", "in.csv"])
def test_compressed_file_of_no_bytes_has_no_rows(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"{name}.{suffix}"
    path.write_bytes(b"")
    assert texts(path) == []


def test_torn_csv_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "in.csv.gz"
    stored = gzip.compress(b"text\n" + CONTENT.replace(b",", b";"))
    path.write_bytes(stored[: len(stored) // 2])
    got: list[str | None] = []
    with pytest.raises(InputError) as caught:
        got.extend(row.text for row in read_rows(open_inputs([path])))
    assert got == [line.replace(",", ";") for line in LINES[: len(got)]]
    assert str(caught.value) == f"{path}: unreadable after line {len(got) + 1} (Truncated compressed stream)"


def test_torn_json_lines_are_found_by_the_checks_already(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"title": "a"}\n' * 100)[:-8])
    with pytest.raises(InputError, match="unreadable after line"):
        open_inputs([path])


@pytest.mark.parametrize("name", ["in.parquet.gz", "in.arrow.zst"])
def test_binary_formats_compressed_as_a_whole_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match="compressed as a whole are not read"):
        open_inputs([tmp_path / name])


BOMB = """
import resource, sys
from padless.engine.jobs.inputs import csv_records, lines
from padless.engine.jobs.inputs.reader import open_inputs, read_rows

lines.MAX_LINE_BYTES = csv_records.MAX_LINE_BYTES = 1 << 20
files = open_inputs(sys.argv[1:])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for row in read_rows(files):
    print(row.file_row, row.text, row.reason)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
@pytest.mark.parametrize("name", ["in.txt.gz", "in.csv.zst"])
def test_bomb_is_a_bad_row(tmp_path: Path, name: str) -> None:
    """40 KB that unpack to a line of 40 MB: with a limit of 1 MB, a few MB of memory, and the next row is there."""
    path = tmp_path / name
    suffix = name.rsplit(".", 1)[1]
    with path.open("wb") as sink, pa.CompressedOutputStream(sink, {"gz": "gzip", "zst": "zstd"}[suffix]) as stream:
        stream.write(b"text\n" if "csv" in name else b"before\n")
        for _ in range(10):
            stream.write(bytes(1 << 22))
        stream.write(b"\nafter\n")
    assert path.stat().st_size < 1 << 20
    done = subprocess.run([sys.executable, "-c", BOMB, str(path)], capture_output=True, text=True, check=True)
    *rows, growth = done.stdout.splitlines()
    bad, after = rows[-2:]
    assert "longer than 1048576" in bad
    assert after.split()[1] == "after"
    assert int(growth) < 20_000
