"""Workers that crash, hang, lose their device or print: each costs its own case and no other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from padless.bench.gpu.pool import Pool

PART = """
import os, signal, sys, time
import torch
from pathlib import Path
from padless.bench.gpu import worker
from padless.bench.gpu.case import Case

MARKS = Path(os.environ["PADLESS_TEST_MARKS"])

def fine(context):
    print("a library says hello")
    os.write(1, b"and a compiler too\\n")
    return {"status": "ok", "dry": context.dry}

def raises(context):
    raise ValueError("first line\\nsecond line")

def dies(context):
    os.kill(os.getpid(), signal.SIGKILL)

def hangs(context):
    time.sleep(600)

def hangs_with_a_child(context):
    if os.fork() == 0:
        # It holds the pipe of the answers open.
        (MARKS / "child").write_text(str(os.getpid()))
        time.sleep(600)
    time.sleep(600)

def a_number_of_another_library(context):
    import numpy
    return {"status": "ok", "value": numpy.float32(1.5)}

def has_room_a_moment_later(context):
    mark = MARKS / "full"
    if not mark.exists():
        mark.touch()
        raise torch.OutOfMemoryError("CUDA out of memory")
    return {"status": "ok"}

def loses_the_device(context):
    worker._alive = lambda context: False
    return {"status": "error", "reason": "illegal memory access"}

def heavy(context):
    mark = MARKS / "heavy"
    mark.touch(exist_ok=False)
    time.sleep(0.3)
    mark.unlink()
    return {"status": "ok"}

WRONG = (raises, dies, hangs, hangs_with_a_child, loses_the_device)

def cases(context):
    found = [Case(f.__name__, f) for f in (*WRONG, fine, a_number_of_another_library, has_room_a_moment_later)]
    heavies = [Case(f"heavy {place}", heavy, heavy=True) for place in range(3)]
    return [*heavies, *found, Case("fine again", fine), Case("fine at last", fine)]
"""


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "padless_test_part.py").write_text(PART)
    search = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(search))
    monkeypatch.setenv("PADLESS_TEST_MARKS", str(tmp_path))
    return tmp_path


def results(folder: Path, *, workers: int, limit: float, seconds: float = 300.0, finished: tuple[str, ...] = ()) -> Any:
    found: dict[str, dict[str, Any]] = {}
    with (folder / "log.txt").open("ab", buffering=0) as log:
        pool = Pool("padless_test_part", ["--dry"], workers, limit, log)
        left = pool.run(finished, time.monotonic() + seconds, found.__setitem__)
    return found, left


def test_a_worker_that_is_lost_costs_its_own_case(part: Path, ends: Callable[[Path], bool]) -> None:
    found, left = results(part, workers=3, limit=8.0)
    assert left == []
    states = {name: figures["status"] for name, figures in found.items()}
    wrong = {"raises", "dies", "hangs", "hangs_with_a_child", "loses_the_device"}
    assert {name for name, state in states.items() if state == "error"} == wrong
    assert len(states) == 13
    assert found["fine"]["dry"] is True
    assert found["raises"]["reason"] == "ValueError: first line"
    assert "exit code -9" in found["dies"]["reason"]
    assert found["hangs"]["reason"] == found["hangs_with_a_child"]["reason"] == "stopped after 8 s"
    assert found["has_room_a_moment_later"]["seconds"] >= 3.0
    assert found["a_number_of_another_library"]["value"] == "1.5"
    # What it had started ended with it.
    child = Path(f"/proc/{(part / 'child').read_text()}/stat")
    assert ends(child)
    log = (part / "log.txt").read_text()
    assert log.count("a library says hello") == log.count("and a compiler too") == 3
    assert "second line" in log


def test_what_has_a_result_is_not_run_again(part: Path) -> None:
    others = tuple(f"heavy {place}" for place in range(3))
    wrong = ("raises", "dies", "hangs", "hangs_with_a_child", "loses_the_device")
    done = (*wrong, "fine", "a_number_of_another_library", "has_room_a_moment_later", *others)
    found, left = results(part, workers=1, limit=60.0, finished=done)
    assert (set(found), left) == ({"fine again", "fine at last"}, [])


def test_when_time_is_up_what_is_left_is_named(part: Path) -> None:
    found, left = results(part, workers=1, limit=60.0, seconds=0.0)
    assert found == {}
    assert len(left) == 13


def test_processes_that_do_not_come_up_again_end_the_part(part: Path) -> None:
    (part / "padless_test_part.py").write_text(
        PART
        + """
if (MARKS / "once").exists():
    raise ImportError("the disk is gone")
(MARKS / "once").touch()
"""
    )
    found, left = results(part, workers=1, limit=60.0, finished=("raises", *(f"heavy {place}" for place in range(3))))
    reasons = {name: figures["reason"] for name, figures in found.items()}
    # The first dies in a case; three that should have followed it never came up, and cost one case each.
    assert "exit code -9" in reasons.pop("dies")
    assert set(reasons) == {"hangs", "hangs_with_a_child", "loses_the_device"}
    assert all("no process came up" in reason for reason in reasons.values())
    assert left == ["fine", "a_number_of_another_library", "has_room_a_moment_later", "fine again", "fine at last"]


def test_a_part_that_cannot_be_imported_says_so(part: Path) -> None:
    (part / "padless_test_part.py").write_text("import no_such_module\n")
    with pytest.raises(RuntimeError, match=r"exit code 1\): see log.txt"):
        results(part, workers=1, limit=60.0)
    assert "no_such_module" in (part / "log.txt").read_text()
