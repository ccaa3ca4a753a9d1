"""`tests/shards.py`: every test is run by one process and no other, and a failure in any is a failure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"a": 9, "b": 2, "c": 3, "d": 3}
# Neither is asked for anything here, and to import hypothesis takes longer than all else that such a process does.
PLUGINS = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")
BODY = """import os
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest) -> None:
    record("made", request.path.stem)


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("n", range({size}))
def test_n(n: int) -> None:
    record("run", Path(__file__).stem, n)


def record(*what: object) -> None:
    with open(os.environ["SHARDS_RECORD"], "a") as file:
        file.write(" ".join(map(str, what)) + "\\n")
"""


@pytest.mark.parametrize("options", [(), ("--whole-files",)])
def test_each_test_is_run_once(tmp_path: Path, options: tuple[str, ...]) -> None:
    """On files that are quick to collect: one of many tests and three of few; three processes at once."""
    folder = ROOT / "tests" / "house" / f"made_for_shards_{tmp_path.name}"
    folder.mkdir()
    claims = tmp_path / "claims"
    claims.mkdir()
    record = tmp_path / "record"
    record.touch()
    try:
        for name, size in SIZES.items():
            (folder / f"test_{name}.py").write_text(BODY.format(size=size))
        command = [sys.executable, "-m", "pytest", str(folder), "-q", *PLUGINS, f"--claims={claims}"]
        environment = {**os.environ, "SHARDS_RECORD": str(record)}
        running = [subprocess.Popen([*command, *options], cwd=ROOT, env=environment) for _ in range(3)]
        assert [process.wait(120) for process in running] == [0, 0, 0]
    finally:
        shutil.rmtree(folder)
    lines = record.read_text().splitlines()
    run = sorted(line for line in lines if line.startswith("run"))
    assert run == sorted(f"run test_{name} {n}" for name, size in SIZES.items() for n in range(size))
    if options:
        assert sorted(set(lines) - set(run)) == sorted(line for line in lines if line.startswith("made"))
        assert lines.count("made test_a") == 1


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
        command = [sys.executable, str(ROOT / "tests" / "shards.py"), str(test), "-q", *PLUGINS]
        assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120).returncode == status
    finally:
        test.unlink()
