"""What all tests share: the process they may run in, and no network."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

# Set before anything imports huggingface_hub, which reads it once. All models and texts here are installed packages.
os.environ["HF_HUB_OFFLINE"] = "1"

KERNELS = Path(__file__).parent / "kernels"


def pytest_addoption(parser: pytest.Parser) -> None:
    """For `shards.py`."""
    parser.addoption("--shard", metavar="I/N", help="run every N-th of the selected tests, from the I-th on")
    parser.addoption(
        "--whole-files", action="store_true", help="with --shard: whole files, so that fixtures are made once"
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take this process' share of what is selected, if it has one, and end the run before its first test where
    TRITON_INTERPRET is not what these tests need.

    Triton reads the variable when it is imported, and an interpreted kernel cannot be compiled in the same process:
    tests/kernels need it set, all others need it unset. `make test` runs one process for each group.
    """
    found = os.environ.get("TRITON_INTERPRET")
    for item in items:
        needed = "1" if item.path.is_relative_to(KERNELS) else None
        if found != needed:
            expected, got = ("unset" if value is None else repr(value) for value in (needed, found))
            raise pytest.UsageError(f"{item.nodeid}: TRITON_INTERPRET must be {expected}, found {got}; run `make test`")
    if shard := config.getoption("--shard"):
        number, count = map(int, shard.split("/"))
        owners = _by_file(items, count) if config.getoption("--whole-files") else [i % count for i in range(len(items))]
        pairs = list(zip(items, owners, strict=True))
        config.hook.pytest_deselected(items=[item for item, owner in pairs if owner != number])
        items[:] = [item for item, owner in pairs if owner == number]


def _by_file(items: list[pytest.Item], count: int) -> list[int]:
    """The share of each test: files with many tests first, each to the share that has the fewest."""
    loads, owner = [0] * count, {}
    sizes = Counter(item.path for item in items)
    for path, size in sorted(sizes.items(), key=lambda pair: (-pair[1], pair[0])):
        owner[path] = loads.index(min(loads))
        loads[owner[path]] += size
    return [owner[item.path] for item in items]
