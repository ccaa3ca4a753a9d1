"""The report of `padless bench kernels` as CSV: a line for every system of every case."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from ..reports.files import writing

__all__ = ["COLUMNS", "write_csv"]

_OF_CASE = (
    "op", "case", "dtype", "lengths", "seqlen", "texts", "longest", "tokens", "flops", "bytes", "baseline", "chosen",
)  # fmt: skip
_OF_SYSTEM = ("ratio", "tflops", "gbps", "tokens_per_second", "of_ceiling", "peak_bytes")
COLUMNS: tuple[str, ...] = (*_OF_CASE, "system", "us_median", "us_p20", "us_p80", *_OF_SYSTEM, "no_number")
"""Of the CSV. A system without figures has the reason in the last one."""


def write_csv(report: dict[str, Any], path: Path) -> None:
    """Write a line for every system of every case; raises InputError where it cannot be written."""
    with writing(path) as file:
        writer = csv.DictWriter(file, list(COLUMNS), lineterminator="\n")
        writer.writeheader()
        for case in report["cases"]:
            writer.writerows(_lines(case))


def _lines(case: dict[str, Any]) -> list[dict[str, Any]]:
    shared = {name: case[name] for name in _OF_CASE}
    found = []
    for system in case["systems"]:
        times = {f"us_{name}": system["us"][name] for name in ("median", "p20", "p80")}
        found.append(shared | {"system": system["system"]} | times | {name: system[name] for name in _OF_SYSTEM})
    absent = {**case["left_out"], **{name: f"failed: {reason}" for name, reason in case["failed"].items()}}
    return found + [shared | {"system": name, "no_number": reason} for name, reason in absent.items()]
