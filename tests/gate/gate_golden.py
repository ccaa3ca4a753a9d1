"""The table of what every compilation of the covering set takes: read, compared, and written anew.

`make gate-golden` runs this file; with names of spaces behind it, those alone are written anew. The table belongs to
one version of Triton, which brings its own ptxas.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import triton
from gate_cases import SPACES, Case, covering
from gate_pool import Outcome, compile_all

__all__ = ["PINNED", "TABLE", "Key", "Row", "differences", "key_of", "read", "rows", "written"]

TABLE = Path(__file__).with_name("resources.json")
CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
PINNED = re.findall(r"^triton==(\S+)$", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)[0]
"""The version of Triton whose figures are kept."""

Row = dict[str, int | str]
Key = tuple[str, str, str, str]
"""Kernel, space, case and GPU."""
FIELDS = ("kernel", "space", "case", "target")


def rows(outcomes: Mapping[Case, Outcome]) -> dict[Key, Row]:
    """The table's lines for what was compiled; what failed has none."""
    return {
        key_of(compiled.kernel, case): compiled.row()
        for case, outcome in outcomes.items()
        if not isinstance(outcome, str)
        for compiled in outcome
    }


def key_of(kernel: str, case: Case) -> Key:
    """Where the table has a kernel of a case."""
    return kernel, case.space, case.label, case.target


def read(file: Path = TABLE) -> dict[Key, Row]:
    """A table as it was last written; without another name, the one that is kept."""
    lines = json.loads(file.read_text(encoding="utf-8"))["compilations"]
    return {tuple(line.pop(name) for name in FIELDS): line for line in lines}


def written(table: Mapping[Key, Row], version: str) -> str:
    """The table as text: sorted, one line a compilation, under the version of Triton that it holds for."""
    lines = [json.dumps({**dict(zip(FIELDS, key, strict=True)), **table[key]}) for key in sorted(table, key=_order)]
    return f'{{\n"triton": {json.dumps(version)}, "compilations": [\n' + ",\n".join(lines) + "\n]\n}\n"


def differences(found: Mapping[Key, Row], expected: Mapping[Key, Row]) -> list[str]:
    """One line for each compilation that is new, gone or takes something else."""
    changes = [f"{_named(key)}: new, {found[key]}" for key in found.keys() - expected.keys()]
    changes += [f"{_named(key)}: no longer compiled" for key in expected.keys() - found.keys()]
    for key in found.keys() & expected.keys():
        moved = [
            f"{name} {expected[key].get(name)} -> {value}"
            for name, value in found[key].items()
            if value != expected[key].get(name)
        ]
        changes += [f"{_named(key)}: {', '.join(moved)}"] if moved else []
    return sorted(changes)


def _named(key: Key) -> str:
    return ", ".join(key)


def _order(key: Key) -> tuple[str, ...]:
    # sm_80 before sm_100.
    return (*key[:-1], f"{key[-1]:>6}")


def _main(spaces: Sequence[str]) -> None:
    if triton.__version__ != PINNED:
        sys.exit(f"the table is kept for triton {PINNED}, found {triton.__version__}")
    if unknown := [space for space in spaces if space not in SPACES]:
        sys.exit(f"expected some of {', '.join(SPACES)}, got {', '.join(unknown)}")
    wanted = [case for case in covering() if not spaces or case.space in spaces]
    outcomes: dict[Case, Outcome] = dict(compile_all(wanted))
    failed = [f"{case}: {outcome}" for case, outcome in outcomes.items() if isinstance(outcome, str)]
    if failed:
        sys.exit("\n".join(failed))
    before = read() if TABLE.exists() else {}
    table = {key: row for key, row in before.items() if spaces and key[1] not in spaces} | rows(outcomes)
    changes = differences(table, before) if before else []
    TABLE.write_text(written(table, PINNED), encoding="utf-8")
    print(*changes, f"{len(table)} compilations, {len(changes)} changed", sep="\n")


if __name__ == "__main__":
    _main(sys.argv[1:])
