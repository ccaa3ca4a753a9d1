"""The report of `padless bench kernels` as files: JSON, and CSV with a line for every system of every case."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from ...engine.errors import InputError

__all__ = ["COLUMNS", "check_folder", "read_report", "write_csv", "write_json"]

_OF_CASE = (
    "op", "case", "dtype", "lengths", "seqlen", "texts", "longest", "tokens", "flops", "bytes", "baseline", "chosen",
)  # fmt: skip
_OF_SYSTEM = ("ratio", "tflops", "gbps", "tokens_per_second", "of_ceiling", "peak_bytes")
COLUMNS: tuple[str, ...] = (*_OF_CASE, "system", "us_median", "us_p20", "us_p80", *_OF_SYSTEM, "no_number")
"""Of the CSV. A system without figures has the reason in the last one."""


def write_json(report: dict[str, Any], path: Path) -> None:
    """Write the report; raises InputError where it cannot be written."""
    _write(path, json.dumps(report, indent=1) + "\n")


def read_report(path: Path) -> dict[str, Any]:
    """A report that `write_json` wrote.

    Raises:
        InputError: the file cannot be read or is no such report.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error
    if not isinstance(report, dict) or report.get("kind") != "kernels" or report.get("schema") != 1:
        raise InputError(f"{path}: expected a report of padless bench kernels, schema 1")
    return report


def write_csv(report: dict[str, Any], path: Path) -> None:
    """Write a line for every system of every case; raises InputError where it cannot be written."""
    check_folder(path)
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(COLUMNS), lineterminator="\n")
            writer.writeheader()
            for case in report["cases"]:
                writer.writerows(_lines(case))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def _lines(case: dict[str, Any]) -> list[dict[str, Any]]:
    shared = {name: case[name] for name in _OF_CASE}
    found = []
    for system in case["systems"]:
        times = {f"us_{name}": system["us"][name] for name in ("median", "p20", "p80")}
        found.append(shared | {"system": system["system"]} | times | {name: system[name] for name in _OF_SYSTEM})
    absent = {**case["left_out"], **{name: f"failed: {reason}" for name, reason in case["failed"].items()}}
    return found + [shared | {"system": name, "no_number": reason} for name, reason in absent.items()]


def _write(path: Path, text: str) -> None:
    check_folder(path)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def check_folder(path: Path) -> None:
    """Raise InputError where the folder of a file to be written is not there."""
    if not path.parent.is_dir():
        raise InputError(f"{path}: no folder {path.parent}")
