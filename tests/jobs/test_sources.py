"""Which files a command's words stand for: globs, folders, an order that stays, nothing twice."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import padless
from padless import InputError, OptionError
from padless.engine.jobs.embedding import EmbeddingTask
from padless.engine.jobs.inputs.reader import open_inputs, read_rows
from padless.engine.jobs.inputs.sources import find_sources
from padless.engine.jobs.run import run_job


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a\n")


def found(folder: Path, *names: str | Path) -> list[str]:
    return [source.path.relative_to(folder).as_posix() for source in find_sources(names)]


def refusal(names: Sequence[str | Path], input_format: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        open_inputs(names, input_format=input_format)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folder_gives_every_file_of_a_known_format_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "b.txt", "a.txt", "sub/c.jsonl.gz", "sub/deep/d.CSV", "B.tsv", "a/z.txt", "a-b.txt")
    touch(tmp_path, "README.md", "image.png", "noext", "archive.zip", "x.gz", "y.json")
    expected = ["B.tsv", "a/z.txt", "a-b.txt", "a.txt", "b.txt", "sub/c.jsonl.gz", "sub/deep/d.CSV"]
    assert found(tmp_path, tmp_path) == expected
    assert [source.format for source in find_sources([tmp_path])] == ["tsv", *["text"] * 4, "jsonl", "csv"]


def test_folder_leaves_hidden_files_alone(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", ".b.txt", "_c.txt", ".git/d.txt", "_temporary/0/e.txt", "_SUCCESS")
    assert found(tmp_path, tmp_path) == ["a.txt"]


def test_folder_without_any_known_file(tmp_path: Path) -> None:
    touch(tmp_path, "README.md", ".a.txt")
    assert refusal([tmp_path]).startswith(f"{tmp_path}: no file in this folder has a known suffix (.parquet, ")


def test_outputs_of_jobs_are_no_inputs(tiny: padless.Encoder, tmp_path: Path) -> None:
    """A job may write below the folder it reads, and run again."""
    data = tmp_path / "data"
    touch(data, "in.txt")
    run_job(EmbeddingTask(tiny), [data], data / "out")
    assert found(data, data) == ["in.txt"]
    summary = run_job(EmbeddingTask(tiny), [data], data / "out", overwrite=True)
    assert summary.rows == 1
    touch(data, "out/below/x.txt")
    assert found(data, data) == ["in.txt"]


def test_shards_of_a_job_named_itself_are_inputs(tiny: padless.Encoder, tmp_path: Path) -> None:
    touch(tmp_path, "in.txt")
    run_job(EmbeddingTask(tiny), [tmp_path / "in.txt"], tmp_path / "out")
    assert (tmp_path / "out" / "errors.jsonl").exists()
    assert found(tmp_path, tmp_path / "out") == ["out/part-00000.parquet"]


def test_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left out in silence. Root may list every folder, so the refusal is made."""
    touch(tmp_path, "a.txt", "closed/b.txt")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert refusal([tmp_path]) == f"{tmp_path / 'closed'}: cannot be read (Permission denied)"


def test_folder_with_a_link_to_nowhere_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    assert refusal([tmp_path]) == f"{tmp_path / 'b.txt'}: cannot be read (No such file or directory)"


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    touch(tmp_path, "a/b.txt")
    (tmp_path / "a" / "again").symlink_to(tmp_path, target_is_directory=True)
    assert found(tmp_path, tmp_path) == ["a/b.txt"]


def test_globs(tmp_path: Path) -> None:
    touch(tmp_path, "b.txt", "a.txt", "c.csv", "sub/d.txt", "sub/deep/e.txt", ".hidden.txt", "x.txt/f.txt")
    assert found(tmp_path, str(tmp_path / "*.txt")) == ["a.txt", "b.txt"]
    assert found(tmp_path, str(tmp_path / "[bc].*")) == ["b.txt", "c.csv"]
    everything = ["a.txt", "b.txt", "sub/d.txt", "sub/deep/e.txt", "x.txt/f.txt"]
    assert found(tmp_path, str(tmp_path / "**" / "*.txt")) == everything


def test_glob_without_a_match(tmp_path: Path) -> None:
    assert refusal([f"{tmp_path}/*.parquet"]) == f"{tmp_path}/*.parquet: no file matches"


def test_file_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].txt", "a1.txt")
    assert found(tmp_path, str(tmp_path / "a[1].txt")) == ["a[1].txt"]


def test_sources_stay_in_the_order_given(tmp_path: Path) -> None:
    touch(tmp_path, "z.txt", "data/b.txt", "data/a.txt", "a.txt")
    names = [tmp_path / "z.txt", tmp_path / "data", str(tmp_path / "a.*")]
    assert found(tmp_path, *names) == ["z.txt", "data/a.txt", "data/b.txt", "a.txt"]


def test_a_file_given_twice_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "data/a.txt", "data/b.txt")
    (tmp_path / "link").symlink_to(tmp_path / "data", target_is_directory=True)
    again = tmp_path / "data" / ".." / "data" / "b.txt"
    for name in (again, tmp_path / "link", f"{tmp_path}/*/b.txt"):
        assert refusal([tmp_path / "data", name]).endswith("b.txt: given twice, expected each input once") or (
            name == tmp_path / "link"
        )
    assert refusal([tmp_path / "data", tmp_path / "link"]).endswith("a.txt: given twice, expected each input once")


def test_two_names_of_one_content_are_two_inputs(tmp_path: Path) -> None:
    touch(tmp_path, "blob.txt")
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).symlink_to(tmp_path / "blob.txt")
    assert found(tmp_path, tmp_path / "a.txt", tmp_path / "b.txt") == ["a.txt", "b.txt"]


def test_input_format_is_for_files_whose_suffix_tells_none(tmp_path: Path) -> None:
    (tmp_path / "app.log").write_text("one\ntwo\n")
    (tmp_path / "in.csv").write_text("text\nthree\n")
    (tmp_path / "old.log.gz").write_bytes(b"")
    names = [tmp_path / name for name in ("app.log", "in.csv", "old.log.gz")]
    files = open_inputs(names, input_format="text")
    assert [file.format for file in files] == ["text", "csv", "text"]
    assert [row.text for row in read_rows(files)] == ["one", "two", "three"]
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "0000")
    assert [row.text for row in read_rows(open_inputs([tmp_path / "0000"], input_format="parquet"))] == ["a"]


def test_unknown_input_format(tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        open_inputs([tmp_path], input_format="xml")
    assert str(caught.value) == "input format: 'xml', expected one of parquet, arrow, jsonl, csv, tsv, text"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipe_is_pointed_to_standard_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in.txt")
    assert refusal([tmp_path / "in.txt"]).endswith("not a regular file; a pipe can be read as standard input, '-'")
