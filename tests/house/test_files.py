"""House rules that concern files as such."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    (
        *ROOT.glob("*.py"),
        *(f for name in ("engine", "kernels", "autotune", "bench") for f in (ROOT / name).rglob("*.py")),
    )
)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_source_file_is_small_enough_to_have_one_duty(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400


def test_pre_commit_and_ci_run_the_same_ruff() -> None:
    """Two versions of ruff would format against each other."""
    constraint = re.findall(r"^ruff==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    hooks = re.findall(r'"ruff==([^"]+)"', (ROOT / ".pre-commit-config.yaml").read_text())
    assert len(constraint) == 1
    assert set(hooks) == set(constraint)
