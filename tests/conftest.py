"""What all tests share: the process they may run in, and no network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set before anything imports huggingface_hub, which reads it once. All models and texts here are installed packages.
os.environ["HF_HUB_OFFLINE"] = "1"

KERNELS = Path(__file__).parent / "kernels"


def pytest_addoption(parser: pytest.Parser) -> None:
    """For `shards.py`."""
    parser.addoption("--shard", metavar="I/N", help="run every N-th of the selected tests, from the I-th on")


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
        config.hook.pytest_deselected(items=[item for place, item in enumerate(items) if place % count != number])
        items[:] = items[number::count]
