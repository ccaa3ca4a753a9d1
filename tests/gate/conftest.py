"""Let the tests of this folder import the gate's own parts; compile what was selected, once, and keep it apart."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import triton

sys.path.insert(0, str(Path(__file__).parent))

from gate_cases import Case
from gate_golden import rows, written
from gate_pool import Outcome, compile_all, private_cache


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options for `all_versions.py`."""
    parser.addoption("--triton", help="the version of Triton that must be running; that of constraints.txt by default")
    parser.addoption("--resources", type=Path, help="file to write what was compiled to, as in resources.json")


@pytest.fixture(autouse=True, scope="session")
def own_cache() -> Iterator[None]:
    """Nothing that is compiled here is left behind, and nothing left behind by others is taken."""
    with private_cache():
        yield


@pytest.fixture(scope="session")
def outcomes(request: pytest.FixtureRequest) -> dict[Case, Outcome]:
    """Every case of the tests that were selected, compiled by all processors at once."""
    items = (item for item in request.session.items if isinstance(item, pytest.Function))
    cases: dict[Any, None] = dict.fromkeys(
        item.callspec.params["case"] for item in items if "outcomes" in item.fixturenames
    )
    outcomes = dict(compile_all(cases))
    if file := request.config.getoption("--resources", None):
        file.write_text(written(rows(outcomes), triton.__version__), encoding="utf-8")
    return outcomes
