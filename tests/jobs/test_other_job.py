"""What may not go on in a folder: another job, another dtype, a damaged shard, a second process, a changed input."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import padless
from padless.engine.jobs.embedding import EmbeddingOptions, EmbeddingTask
from padless.engine.jobs.events import JsonLog
from padless.engine.jobs.lock import FolderLock
from padless.engine.jobs.manifest import ShardRecord, read_shards
from padless.engine.jobs.report import Report
from padless.engine.jobs.run import run_job


class StopAfter(Report):
    """Stops a job when so many shards are committed, or does something else then."""

    def __init__(self, shards: int, action: Callable[[], object]) -> None:
        self.left, self.action = shards, action

    def shard_done(self, shard: ShardRecord) -> None:
        self.left -= 1
        if self.left == 0:
            self.action()


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("the sun\nmoon\nriver stone\nbread\nnight\n" * 8)
    return path


@pytest.fixture
def begun(tiny: padless.Encoder, text: Path, tmp_path: Path) -> Path:
    """A folder with two committed shards of four."""
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_job(EmbeddingTask(tiny), [text], out, rows_per_shard=10, report=StopAfter(2, interrupt))
    assert len(read_shards(out)) == 2
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def refusal(task: EmbeddingTask, inputs: list[Path], out: Path, **options: Any) -> str:
    """The one line; nothing in the folder has changed."""
    before = contents(out)
    with pytest.raises(padless.JobError) as caught:
        run_job(task, inputs, out, **{"rows_per_shard": 10, **options})
    assert len(str(caught.value).splitlines()) == 1
    assert contents(out) == before
    return str(caught.value)


EXPECTED = "; expected the same job, an empty folder, or --overwrite"


def test_another_option_is_refused(tiny: padless.Encoder, text: Path, begun: Path) -> None:
    cut = EmbeddingTask(tiny, EmbeddingOptions(truncate_dim=20))
    line = refusal(cut, [text], begun)
    assert line == (
        f"{begun}: holds another job: options.truncate_dim was null, now is 20 (1 more differ){EXPECTED}"
    )  # fmt: skip
    line = refusal(EmbeddingTask(tiny), [text], begun, rows_per_shard=11)
    assert line == f"{begun}: holds another job: rows_per_shard was 10, now is 11{EXPECTED}"


def test_another_model_is_refused(tiny_folder: Path, text: Path, begun: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / tiny_folder.name
    other.mkdir(parents=True)
    for path in tiny_folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    words = (other / "vocab.txt").read_text().split("\n")
    words[5], words[6] = words[6], words[5]
    (other / "vocab.txt").write_text("\n".join(words))
    line = refusal(EmbeddingTask(padless.load(other, device="cpu", dtype="float32")), [text], begun)
    assert line.startswith(f"{begun}: holds another job: model.blake2b was ")


def test_another_dtype_or_token_budget_is_refused(
    tiny: padless.Encoder, tiny_folder: Path, text: Path, begun: Path
) -> None:
    half = EmbeddingTask(padless.load(tiny_folder, device="cpu", dtype="bfloat16"))
    end = "; expected the same, an empty folder, or --overwrite"
    assert refusal(half, [text], begun) == f"{begun}: its job was begun with dtype float32, now is bfloat16{end}"
    line = refusal(EmbeddingTask(tiny), [text], begun, token_budget=17)
    assert line == f"{begun}: its job was begun with token_budget 4096, now is 17{end}"


@pytest.mark.parametrize("change", ["size", "begin", "name", "count"])
def test_other_inputs_are_refused(tiny: padless.Encoder, text: Path, begun: Path, change: str) -> None:
    content, inputs = text.read_text(), [text]
    if change == "size":
        text.write_text(content + "more\n")
    elif change == "begin":
        text.write_text("The" + content[3:])
    elif change == "name":
        inputs = [text.rename(text.with_name("renamed.txt"))]
    else:
        inputs = [text, Path(shutil.copy(text, text.with_name("more.txt")))]
    named = {
        "size": "inputs[0].bytes was 296, now is 301",
        "begin": "inputs[0].blake2b_of_ends was ",
        "name": "inputs[0].name was ",
        "count": "inputs was a list of 1, now is a list of 2",
    }
    line = refusal(EmbeddingTask(tiny), inputs, begun)
    assert line.startswith(f"{begun}: holds another job: {named[change]}")
    assert change != "name" or ('/in.txt", now is ' in line and '/renamed.txt"; expected' in line)


def test_vanished_input_is_refused_and_the_job_goes_on_when_it_is_back(
    tiny: padless.Encoder, text: Path, begun: Path
) -> None:
    before = contents(begun)
    away = text.rename(text.with_name("away.txt"))
    with pytest.raises(padless.InputError, match=r"in\.txt: no such file"):
        run_job(EmbeddingTask(tiny), [text], begun, rows_per_shard=10)
    assert contents(begun) == before
    away.rename(text)
    assert run_job(EmbeddingTask(tiny), [text], begun, rows_per_shard=10).results == 40


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda path: path.unlink(), "vanished while the job read it"),
        (lambda path: path.write_bytes(path.read_bytes() + b"more\n"), "changed while the job read it"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "changed while the job read it"),
    ],
    ids=["unlink", "grow", "truncate"],
)
def test_input_that_changes_in_the_middle_of_a_run(
    tiny: padless.Encoder, text: Path, tmp_path: Path, action: Callable[[Path], object], message: str
) -> None:
    original, out = text.read_bytes(), tmp_path / "out"
    os.utime(text, (1, 1))
    with pytest.raises(padless.InputError) as caught:
        run_job(EmbeddingTask(tiny), [text], out, rows_per_shard=10, report=StopAfter(1, lambda: action(text)))
    assert str(caught.value) == f"{text}: {message}"
    assert [shard.name for shard in read_shards(out)] == ["part-00000.parquet"]
    assert not list(out.glob("*.tmp"))
    text.write_bytes(original)
    summary = run_job(EmbeddingTask(tiny), [text], out, rows_per_shard=10)
    assert (summary.results, summary.shards_resumed) == (40, 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is missing, expected a shard of "),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, expected "),
        (lambda path: path.write_bytes(b"X" + path.read_bytes()[1:]), "does not have the digest that shards.jsonl"),
    ],
    ids=["missing", "short", "changed"],
)
def test_damaged_shard_is_told_not_done_again(
    tiny: padless.Encoder, text: Path, begun: Path, damage: Callable[[Path], object], message: str
) -> None:
    shard = begun / "part-00000.parquet"
    damage(shard)
    line = refusal(EmbeddingTask(tiny), [text], begun)
    assert line.startswith(f"{shard}: ")
    assert message in line
    assert line.endswith("; restore it, or begin anew with --overwrite")


def test_errors_file_that_lost_records(tiny: padless.Encoder, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"sun\n\xff\nmoon\nriver\n")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_job(
            EmbeddingTask(tiny), [tmp_path / "in.txt"], out, rows_per_shard=2, report=StopAfter(1, interrupt)
        )  # fmt: skip
    (out / "errors.jsonl").write_bytes((out / "errors.jsonl").read_bytes()[:-3])
    line = refusal(EmbeddingTask(tiny), [tmp_path / "in.txt"], out, rows_per_shard=2)
    assert line.startswith(f"{out / 'errors.jsonl'}: has ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"schema": 2', '"schema": 9'), "has schema 9, of another version of padless"),
        (lambda text: text.replace('"rows_per_shard": 10', '"rows_per_shard": 12'), "is damaged"),
        (lambda text: text[:-20], "is no JSON"),
        (lambda text: "[]", "expected a JSON object, found list"),
    ],
)
def test_damaged_manifest(
    tiny: padless.Encoder, text: Path, begun: Path, change: Callable[[str], str], message: str
) -> None:
    path = begun / "manifest.json"
    path.write_text(change(path.read_text()))
    line = refusal(EmbeddingTask(tiny), [text], begun)
    assert line.startswith(f"{path}: ")
    assert message in line


def test_finished_job_is_left_as_it_is(tiny: padless.Encoder, text: Path, begun: Path) -> None:
    summary = run_job(EmbeddingTask(tiny), [text], begun, rows_per_shard=10)
    before, told = contents(begun), io.StringIO()
    assert run_job(EmbeddingTask(tiny), [text], begun, rows_per_shard=10, report=JsonLog(told)) == summary
    assert contents(begun) == before
    (event,) = map(json.loads, told.getvalue().splitlines())
    assert event["message"] == f"{begun}: this job is finished already, nothing is left to do"
    line = refusal(EmbeddingTask(tiny, EmbeddingOptions(truncate_dim=3)), [text], begun)
    assert "options.truncate_dim was null, now is 3" in line


def test_fixed_facts_come_from_the_first_run(tiny: padless.Encoder, text: Path, begun: Path) -> None:
    """A budget that was found then counts, not one that would be found now; so do the threads."""
    path = begun / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["fixed"].update(token_budget=100, threads=3)
    path.write_text(json.dumps(manifest))
    budget, threads, seen = tiny.token_budget, torch.get_num_threads(), []
    watch = StopAfter(1, lambda: seen.append((tiny.token_budget, torch.get_num_threads())))
    try:
        summary = run_job(EmbeddingTask(tiny), [text], begun, rows_per_shard=10, report=watch)
        assert (seen, summary.token_budget, summary.threads) == ([(100, 3)], 100, 3)
        assert torch.get_num_threads() == threads
    finally:
        tiny.token_budget = budget


def test_resume_under_another_torch_says_so(tiny: padless.Encoder, text: Path, begun: Path) -> None:
    path = begun / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["environment"]["torch"] = "1.0"
    path.write_text(json.dumps(manifest))
    told = io.StringIO()
    run_job(EmbeddingTask(tiny), [text], begun, rows_per_shard=10, report=JsonLog(told))
    note = json.loads(told.getvalue().splitlines()[0])
    assert note["event"] == "note"
    assert "begun with torch 1.0, now " in note["message"]


def test_two_processes_on_one_folder(job_host: Any, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with FolderLock(out):
        before = contents(out)
        status, complaint = job_host.run([text], out)
        assert status == 2
        assert complaint.startswith(f"{out}: process {os.getpid()} on ")
        assert complaint.endswith(" is writing there, expected one job at a time\n")
        assert contents(out) == before
    assert job_host.run([text], out) == (0, "")


def test_lock_file_of_a_dead_process_locks_nobody_out(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(f"{os.getpid()} on this very machine\n")
    with FolderLock(tmp_path), pytest.raises(padless.JobError), FolderLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
