"""Who may write into an output folder, and what `overwrite` may remove."""

from __future__ import annotations

from pathlib import Path

import pytest

import padless
from padless.engine.jobs.embedding import EmbeddingTask
from padless.engine.jobs.layout import claim_output
from padless.engine.jobs.run import run_job


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("sun\nmoon\n")
    return path


def test_folder_with_a_job_is_refused_and_untouched(tiny: padless.Encoder, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    run_job(EmbeddingTask(tiny), [text], out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(padless.JobError) as caught:
        run_job(EmbeddingTask(tiny), [text], out, resume=False)
    assert str(caught.value) == f"{out}: already holds a job, expected an empty folder, --resume or --overwrite"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_overwrite_leaves_nothing_of_the_earlier_job(tiny: padless.Encoder, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_job(EmbeddingTask(tiny), [text], out, rows_per_shard=1)
    (out / "part-00007.parquet.tmp").write_text("left by a kill")
    text.write_text("river\n")
    run_job(EmbeddingTask(tiny), [text], out, overwrite=True)
    names = ["errors.jsonl", "manifest.json", "part-00000.parquet", "shards.jsonl", "summary.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert (out / "shards.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize("name", ["notes.md", "part-1.parquet", "part-00000.parquet.bak", "manifest.json.old"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_file_is_refused_and_survives(tmp_path: Path, text: Path, name: str, overwrite: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_text("{}")
    (out / name).write_text("mine")
    with pytest.raises(padless.JobError) as caught:
        claim_output(out, [text], overwrite=overwrite)
    assert str(caught.value) == f"{out}: holds files that are not a job's ({name}), expected none"
    assert (out / name).read_text() == "mine"
    assert (out / "manifest.json").exists()


def test_folder_with_the_name_of_a_shard_is_foreign(tmp_path: Path, text: Path) -> None:
    (tmp_path / "out" / "part-00000.parquet").mkdir(parents=True)
    with pytest.raises(padless.JobError, match="not a job's"):
        claim_output(tmp_path / "out", [text], overwrite=True)


def test_input_inside_the_output_folder_is_refused(tmp_path: Path) -> None:
    """With --overwrite a shard of an earlier job, given as input, would be removed before it is read."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "part-00000.parquet").write_text("input")
    with pytest.raises(padless.JobError) as caught:
        claim_output(out, [out / "part-00000.parquet"], overwrite=True)
    assert str(caught.value) == f"{out}: holds the input part-00000.parquet, expected another folder for the output"
    assert (out / "part-00000.parquet").exists()


def test_shards_without_a_manifest_are_refused(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "part-00000.parquet").write_text("")
    with pytest.raises(padless.JobError, match=r"out: holds part-00000\.parquet but no manifest\.json, expected an"):
        claim_output(out, [text], overwrite=False)
    claim_output(out, [text], overwrite=True)
    assert list(out.iterdir()) == []


def test_output_that_is_a_file(tmp_path: Path, text: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(padless.JobError, match="out: is a file, expected a folder for the output"):
        claim_output(tmp_path / "out", [text], overwrite=True)


def test_output_below_a_file(tiny: padless.Encoder, tmp_path: Path, text: Path) -> None:
    with pytest.raises(padless.JobError, match=r"in\.txt/out: cannot be written \(Not a directory\)"):
        run_job(EmbeddingTask(tiny), [text], text / "out")


def test_what_a_job_killed_at_its_very_start_leaves_is_no_obstacle(
    tiny: padless.Encoder, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json.tmp").write_text('{"sche')
    (out / ".lock").write_text("4194304 on a machine long gone\n")
    assert run_job(EmbeddingTask(tiny), [text], out).results == 2
    names = ["errors.jsonl", "manifest.json", "part-00000.parquet", "shards.jsonl", "summary.json"]
    assert sorted(path.name for path in out.iterdir()) == names
