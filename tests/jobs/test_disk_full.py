"""A disk that refuses, at many points of a job: one line, nothing torn, and the job goes on once there is room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from padless.engine.jobs.manifest import read_shards

ROWS, ROWS_PER_SHARD = 800, 200
NO_NAMESPACES = 77
"""What job_host.py ends with where it may not mount a file system of its own."""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Half the rows are bad, so that errors.jsonl outgrows the shards and a limit on files meets it as well."""
    lines = [b"stone \xff" if number % 2 else b"the sun stood still" for number in range(ROWS)]
    (tmp_path / "in.txt").write_bytes(b"\n".join(lines))
    return tmp_path / "in.txt"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "summary.json"}


def assert_stopped_cleanly(folder: Path, complaint: str, reason: str) -> None:
    assert len(complaint.splitlines()) == 1
    assert complaint.rstrip().endswith(f"cannot be written ({reason})")
    assert not (folder / "summary.json").exists()
    assert not list(folder.glob("*.tmp"))
    for shard in read_shards(folder):
        assert (folder / shard.name).stat().st_size == shard.bytes


@pytest.mark.parametrize("points", [8, pytest.param(60, marks=pytest.mark.soak)])
def test_file_size_limit_at_many_points(job_host: Any, text: Path, tmp_path: Path, points: int) -> None:
    """Stands for a quota: whatever file would grow beyond the limit is refused in the middle of a write."""
    assert job_host.run([text], tmp_path / "unbroken", rows_per_shard=ROWS_PER_SHARD)[0] == 0
    expected = contents(tmp_path / "unbroken")
    largest = max(map(len, expected.values()))
    refused: set[str] = set()
    for point in range(points):
        out = tmp_path / f"out-{point}"
        limit = 1 + largest * point // points
        status, complaint = job_host.run([text], out, rows_per_shard=ROWS_PER_SHARD, file_limit=limit)
        assert status == 2, (limit, complaint)
        assert_stopped_cleanly(out, complaint, "File too large")
        refused.add(Path(complaint.split(":")[0]).name)
        assert job_host.run([text], out, rows_per_shard=ROWS_PER_SHARD) == (0, "")
        assert contents(out) == expected
    assert refused == {"manifest.json", "part-00000.parquet", "errors.jsonl"}


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.soak)])
def test_full_disk_at_every_size(job_host: Any, text: Path, tmp_path: Path, step: int) -> None:
    """A file system of one page, two, ..., or so many more each time: ENOSPC itself, in whichever file comes to it,
    until the job has room.
    """
    assert job_host.run([text], tmp_path / "unbroken", rows_per_shard=ROWS_PER_SHARD)[0] == 0
    expected = contents(tmp_path / "unbroken")
    refused: set[str] = set()
    status = pages = 0
    for pages in range(1, 1000, step):
        out, mount = tmp_path / f"out-{pages}", tmp_path / f"mount-{pages}"
        mount.mkdir()
        status, complaint = job_host.run(
            [text], mount, rows_per_shard=ROWS_PER_SHARD, disk=pages * 4096, rescue=str(out)
        )  # fmt: skip
        if status == NO_NAMESPACES:
            pytest.skip("needs the right to mount a tmpfs in a user namespace (unprivileged_userns_clone)")
        if status == 0:
            break
        assert status == 2
        assert_stopped_cleanly(out, complaint, "No space left on device")
        refused.add(Path(complaint.split(":")[0]).name)
        assert job_host.run([text], out, rows_per_shard=ROWS_PER_SHARD) == (0, "")
        assert contents(out) == expected
    assert status == 0
    assert pages > 38  # with the limits above about twenty points, and about a hundred in `make soak`
    assert {"manifest.json", "errors.jsonl", "part-00000.parquet", "part-00003.parquet"} <= refused


def test_read_only_output(job_host: Any, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("sun\nmoon\n")
    out = tmp_path / "out"
    for begun in (False, True):
        out.mkdir(exist_ok=True)
        if begun:
            assert job_host.run([tmp_path / "in.txt"], out)[0] == 0
            (out / "summary.json").unlink()
        before = contents(out)
        out.chmod(0o555)
        status, complaint = job_host.run([tmp_path / "in.txt"], out, no_privileges=True)
        out.chmod(0o755)
        assert (status, complaint) == (2, f"{out / '.lock'}: cannot be written (Permission denied)\n")
        assert contents(out) == before


def test_finished_job_in_a_read_only_folder_is_just_finished(job_host: Any, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("sun\nmoon\n")
    out = tmp_path / "out"
    assert job_host.run([tmp_path / "in.txt"], out)[0] == 0
    out.chmod(0o555)
    assert job_host.run([tmp_path / "in.txt"], out, no_privileges=True) == (0, "")
    out.chmod(0o755)
