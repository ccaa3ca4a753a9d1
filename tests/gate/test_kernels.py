"""Every kernel of the covering set keeps the rules, and takes what the table says: registers, memory, instructions.

`make test` compiles a share of the covering set, `make gate` all of it, `make gate-all` the complete set as well if
asked, with other versions of Triton too.
"""

from __future__ import annotations

import pytest
import triton
from gate_cases import Case, complete, covering, launches, share
from gate_compile import TARGETS
from gate_golden import PINNED, TABLE, Key, Row, differences, key_of, read, rows, written
from gate_pool import Outcome
from gate_rules import problems

COVERING = covering()
SHARE = set(share())
in_covering_set = pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=str(case), marks=() if case in SHARE else pytest.mark.covering) for case in COVERING],
)
REMAINING = [case for case in complete() if case not in set(COVERING)]


@pytest.fixture(scope="module")
def table() -> dict[Key, Row]:
    """The figures as they were last written."""
    return read()


def check(case: Case, outcomes: dict[Case, Outcome]) -> None:
    outcome = outcomes[case]
    assert not isinstance(outcome, str), outcome
    assert outcome
    shipped = case.config is None
    found = {
        compiled.kernel: problems(compiled, TARGETS[case.target], shipped=shipped, aligned=case.aligned)
        for compiled in outcome
    }
    assert not any(found.values()), "\n".join(f"{kernel}: {line}" for kernel in found for line in found[kernel])


@in_covering_set
def test_a_kernel_keeps_the_rules(case: Case, outcomes: dict[Case, Outcome]) -> None:
    check(case, outcomes)


@pytest.mark.grid
@pytest.mark.parametrize("case", REMAINING, ids=str)
def test_a_kernel_of_the_complete_set_keeps_the_rules(case: Case, outcomes: dict[Case, Outcome]) -> None:
    check(case, outcomes)


@pytest.mark.skipif(triton.__version__ != PINNED, reason=f"the table is kept for triton {PINNED}")
@in_covering_set
def test_a_kernel_takes_what_the_table_says(case: Case, outcomes: dict[Case, Outcome], table: dict[Key, Row]) -> None:
    expected = {key: row for key, row in table.items() if key[1:] == (case.space, case.label, case.target)}
    changed = differences(rows({case: outcomes[case]}), expected)
    assert not changed, f"changed; if it is meant to, run make gate-golden: {'; '.join(changed)}"


def test_the_table_has_each_compilation_of_the_covering_set_and_no_other(table: dict[Key, Row]) -> None:
    expected = {key_of(launch.name, case) for case in COVERING for launch in launches(case)}
    assert table.keys() == expected, "make gate-golden"


def test_the_table_is_written_as_it_is_read(table: dict[Key, Row]) -> None:
    """Sorted and one line a compilation, so that a change of one kernel is a change of its lines."""
    text = TABLE.read_text(encoding="utf-8")
    assert written(table, PINNED) == text
    assert len(text.splitlines()) == len(table) + 4


def test_a_change_is_named_with_both_figures() -> None:
    key = ("a_kernel", "space", "bf16", "sm_90")
    row: Row = {"registers": 100, "spill": 0, "instruction": "wgmma"}
    assert differences({key: row}, {key: row}) == []
    assert differences({key: row | {"registers": 120, "spill": 8}}, {key: row}) == [
        "a_kernel, space, bf16, sm_90: registers 100 -> 120, spill 0 -> 8"
    ]
    assert differences({key: row}, {}) == [f"a_kernel, space, bf16, sm_90: new, {row}"]
    assert differences({}, {key: row}) == ["a_kernel, space, bf16, sm_90: no longer compiled"]


def test_the_version_of_triton_is_the_one_asked_for(pytestconfig: pytest.Config) -> None:
    """`make gate-all` puts another version before the installed one: that it is the one that runs is not obvious."""
    assert triton.__version__ == (pytestconfig.getoption("--triton", None) or PINNED)
