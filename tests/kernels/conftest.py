"""What all tests of interpreted kernels share; they import the other modules of this folder by their bare names.

Every launch here is watched (`guard.py`), and all memory that is asked for uninitialised holds NaN.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from guard import poisoned, watched

# As a session's fixtures, not each test's: hypothesis would otherwise take them for state its examples share.


@pytest.fixture(scope="session", autouse=True)
def watch_every_launch() -> Iterator[None]:
    with watched():
        yield


@pytest.fixture(scope="session", autouse=True)
def poison_uninitialised_memory() -> Iterator[None]:
    with poisoned():
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Cases here are so small that two threads would spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
