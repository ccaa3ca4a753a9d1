"""`tests/shards.py`: every test in one share and no other, and a failure in any share is a failure."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "tests/host"
FILE = "test_op_linear.py"


def collected(*options: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", f"{FOLDER}/{FILE}", "--collect-only", "-q", *options]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    return [line for line in found.stdout.splitlines() if line.startswith(FOLDER)]


def test_each_test_is_in_one_share() -> None:
    whole = collected()
    shares = [collected(f"--shard={number}/3") for number in range(3)]
    assert len(whole) > 10
    assert sorted(test for share in shares for test in share) == sorted(whole)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_whole_files_are_in_one_share_each(tmp_path: Path) -> None:
    """On files that are quick to collect: one of many tests and three of few."""
    sizes = {"a": 9, "b": 2, "c": 3, "d": 3}
    folder = ROOT / "tests" / "house" / f"made_for_shards_{tmp_path.name}"
    folder.mkdir()
    try:
        for name, size in sizes.items():
            marked = f"@pytest.mark.parametrize('n', range({size}))"
            body = f"import pytest\n\n\n{marked}\ndef test_n(n: int) -> None:\n    pass\n"
            (folder / f"test_{name}.py").write_text(body)
        shares = [_files(folder, f"--shard={number}/2", "--whole-files") for number in range(2)]
    finally:
        shutil.rmtree(folder)
    assert shares == [["a"] * 9, ["b"] * 2 + ["c"] * 3 + ["d"] * 3]


def _files(folder: Path, *options: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", str(folder), "--collect-only", "-q", "-p", "no:cacheprovider", *options]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout
    tests = [line.partition("::")[0] for line in found.splitlines() if "::" in line]
    return [Path(test).stem.removeprefix("test_") for test in tests]


@pytest.mark.parametrize(("body", "status"), [("True", 0), ("number", 1), ("not number", 1)])
def test_a_failure_in_any_share_is_a_failure(tmp_path: Path, body: str, status: int) -> None:
    """Run with this repository's options and conftest, on a file of four tests of which those of one share may fail."""
    test = ROOT / "tests" / "house" / f"test_made_for_shards_{tmp_path.name}.py"
    test.write_text(
        "import pytest\n\n\n"
        '@pytest.mark.parametrize("number", [0, 1] * 8)\n'
        f"def test_share(number: int) -> None:\n    assert {body}\n"
    )
    try:
        command = [sys.executable, str(ROOT / "tests" / "shards.py"), str(test), "-q", "-p", "no:cacheprovider"]
        assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120).returncode == status
    finally:
        test.unlink()
