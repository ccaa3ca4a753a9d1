"""What all tests share: the process they may run in, no network, and a system that refuses memory for code."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

# Set before anything imports huggingface_hub, which reads it once. All models and texts here are installed packages.
os.environ["HF_HUB_OFFLINE"] = "1"

KERNELS = Path(__file__).parent / "kernels"


def pytest_addoption(parser: pytest.Parser) -> None:
    """For `shards.py`."""
    parser.addoption("--claims", metavar="FOLDER", help="run only tests that no other process with this folder has run")
    parser.addoption(
        "--whole-files", action="store_true", help="with --claims: whole files, so that fixtures are made once"
    )


@pytest.fixture
def no_memory_for_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLVM is refused the memory that machine code runs in, as hardened systems do; what is compiled already serves."""
    binding = pytest.importorskip("llvmlite.binding", reason="needs package llvmlite, not installed")
    if missing := import_module("padless.kernels.llvm.host").missing_features(import_module("torch").float32):
        pytest.skip("; ".join(missing))

    def refused(*_: Any) -> None:
        raise RuntimeError("LLVM ERROR: Unable to allocate section memory!")

    monkeypatch.setattr(binding, "create_mcjit_compiler", refused)
    # Whatever another test was told counts as told.
    bind = import_module("padless.engine.ops.bind")
    monkeypatch.setattr(bind, "_warn_once", functools.cache(bind._warn_once.__wrapped__))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """End the run before its first test where TRITON_INTERPRET is not what these tests need.

    Triton reads the variable when it is imported, and an interpreted kernel cannot be compiled in the same process:
    tests/kernels need it set, all others need it unset. `make test` runs one process for each group.
    """
    found = os.environ.get("TRITON_INTERPRET")
    for item in items:
        needed = "1" if item.path.is_relative_to(KERNELS) else None
        if found != needed:
            expected, got = ("unset" if value is None else repr(value) for value in (needed, found))
            raise pytest.UsageError(f"{item.nodeid}: TRITON_INTERPRET must be {expected}, found {got}; run `make test`")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """With --claims, what pytest's own loop does, for the tests that this process is the first to claim."""
    folder = session.config.getoption("--claims")
    if folder is None or session.testsfailed or session.config.option.collectonly:
        return None
    mine = _claimed(session, Path(folder))
    item = next(mine, None)
    while item is not None:
        following = next(mine, None)  # known before, so that fixtures shared with it are kept
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        item = following
    return True


def _claimed(session: pytest.Session, folder: Path) -> Iterator[pytest.Item]:
    """The tests, or those of the files, whose name is not in the folder yet."""
    by_file = session.config.getoption("--whole-files")
    owned: dict[str, bool] = {}
    for item in session.items:
        unit = str(item.path) if by_file else item.nodeid
        if unit not in owned:
            try:
                (folder / hashlib.sha256(unit.encode()).hexdigest()).touch(exist_ok=False)
                owned[unit] = True
            except FileExistsError:
                owned[unit] = False
        if owned[unit]:
            yield item
