"""What all tests share: the process they may run in, and no network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set before anything imports huggingface_hub, which reads it once. All models and texts here are installed packages.
os.environ["HF_HUB_OFFLINE"] = "1"

TESTS = Path(__file__).parent


def pytest_collect_file(file_path: Path) -> None:
    """End the run at once where TRITON_INTERPRET is not what this group of tests needs.

    Triton reads the variable when it is imported, and an interpreted kernel cannot be compiled in the same process:
    tests/kernels need it set, all others need it unset. `make test` runs one process for each group.
    """
    if file_path.suffix != ".py" or not file_path.is_relative_to(TESTS):
        return
    group = file_path.relative_to(TESTS).parts[0]
    interpreted = os.environ.get("TRITON_INTERPRET", "")
    if group == "kernels" and interpreted != "1":
        pytest.exit(f"tests/kernels need TRITON_INTERPRET=1, found {interpreted!r}; run `make test`", returncode=4)
    if group != "kernels" and interpreted:
        pytest.exit(f"tests/{group} need TRITON_INTERPRET unset, found {interpreted!r}; run `make test`", returncode=4)
