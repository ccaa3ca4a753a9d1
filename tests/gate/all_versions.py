"""The gate with every version of Triton that padless supports: `make gate-all`.

Versions other than the installed one go to a temporary folder, which Python searches first. Their figures are compared
with those of the pinned version in docs/gate_versions.md, which this file writes; the rules hold for all of them.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from gate_golden import PINNED, Key, Row, read

VERSIONS = ("3.6.0", PINNED, "3.9.0")
"""The oldest, that of the pinned torch, and the newest."""
ROOT = Path(__file__).resolve().parents[2]
SUMMARY = ROOT / "docs" / "gate_versions.md"


def main(arguments: Sequence[str]) -> int:
    """Run the gate once for each version, and write what it found.

    Args:
        arguments: for pytest, as `-m ""` for the complete set.

    Returns:
        0 if all versions keep the rules.
    """
    found: dict[str, dict[Key, Row]] = {}
    codes: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="gate-triton-") as folder:
        for version in VERSIONS:
            table = Path(folder) / f"{version}.json"
            codes[version] = _run(version, Path(folder) / version, table, arguments)
            found[version] = read(table)
    compiled = set.intersection(*(set(table) for table in found.values()))
    found = {version: {key: table[key] for key in compiled} for version, table in found.items()}
    SUMMARY.write_text(summary(found, codes), encoding="utf-8")
    print(f"written: {SUMMARY.relative_to(ROOT)}")
    return max(codes.values())


def summary(found: Mapping[str, Mapping[Key, Row]], codes: Mapping[str, int]) -> str:
    """What the versions need beside each other, as a page."""
    pinned = found[PINNED]
    lines = [
        "# The compile gate with other versions of Triton",
        "",
        "Written by `make gate-all`. Each version compiles the same cases (docs/kernels.md, The compile gate) with the",
        f"ptxas it brings. The base is {PINNED}, whose figures `make gate` compares with tests/gate/resources.json.",
        "",
        "| triton | rules | compilations | spilling | registers: fewer | same | more | shared memory differs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for version, table in found.items():
        moved = [_number(row, "registers") - _number(pinned[key], "registers") for key, row in table.items()]
        counts = (sum(m < 0 for m in moved), sum(m == 0 for m in moved), sum(m > 0 for m in moved))
        shared = sum(row["shared"] != pinned[key]["shared"] for key, row in table.items())
        spilling = sum(_number(row, "spill") > 0 for row in table.values())
        rules = "broken" if codes[version] else "kept"
        lines.append(f"| {version} | {rules} | {len(table)} | {spilling} | {' | '.join(map(str, counts))} | {shared} |")
    lines += ["", "Registers of a thread, median and most, over all cases of a kernel:", ""]
    lines += [f"| kernel | GPU | {' | '.join(found)} |", "|---|---|" + "---|" * len(found)]
    for kernel, target in sorted({(key[0], key[-1]) for key in pinned}, key=lambda pair: (pair[0], f"{pair[1]:>6}")):
        cells = []
        for table in found.values():
            used = [_number(row, "registers") for key, row in table.items() if (key[0], key[-1]) == (kernel, target)]
            cells.append(f"{statistics.median_low(used)}, {max(used)}")
        lines.append(f"| {kernel} | {target} | {' | '.join(cells)} |")
    lines += ["", "Where spilled bytes or the instruction differ from the base:", ""]
    lines += [f"| triton | kernel | case | GPU | {PINNED} | found |", "|---|---|---|---|---|---|"]
    for version, table in found.items():
        for key in sorted(table):
            there, here = ((row["spill"], row["instruction"]) for row in (pinned[key], table[key]))
            if there != here:
                kernel, space, case, target = key
                cells = (f"{spill} B, {instruction}" for spill, instruction in (there, here))
                lines.append(f"| {version} | {kernel} | {space}: {case} | {target} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _run(version: str, folder: Path, table: Path, arguments: Sequence[str]) -> int:
    """pytest's exit code for one version."""
    paths = os.environ.get("PYTHONPATH", "")
    if version != PINNED:
        print(f"triton {version}: installing it for this run only", flush=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", str(folder), f"triton=={version}"], check=True)
        paths = os.pathsep.join(filter(None, (str(folder), paths)))
    options = ["--triton", version, "--resources", str(table), "-p", "no:cacheprovider"]
    options += ["-m", "not soak and not grid", *arguments]
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-m", "pytest", str(Path(__file__).parent), *options]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def _number(row: Row, name: str) -> int:
    value = row[name]
    assert isinstance(value, int)
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
