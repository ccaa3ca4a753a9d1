"""The facts of a run, for JSON and as CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..reports.files import frame, writing
from .measure import ModelReport
from .mobilebert import AgainstBert
from .systems import BASELINE

__all__ = ["COLUMNS", "report_of", "write_csv"]

COLUMNS: tuple[str, ...] = (
    "model",
    "weights",
    "workload",
    "tokens",
    "mflop_per_token",
    "system",
    "dtype",
    "status",
    "tokens_per_second",
    "p20",
    "p80",
    "ratio",
    "padding_factor",
    "lowest_cosine",
    "latency_ms_p50",
    "latency_ms_p80",
    "reason",
)
"""Of the CSV; status is measured, failed or left out, and figures are empty in the latter two."""


def report_of(
    reports: Sequence[ModelReport], against: AgainstBert | None, machine: dict[str, Any], repeats: int
) -> dict[str, Any]:
    """What is written as JSON: the fields of `ModelReport` for each model, None for what is not finite."""
    return _finite(
        frame(
            "models",
            machine,
            repeats=repeats,
            baseline=BASELINE,
            models=[report.as_dict() for report in reports],
            mobilebert_against_bert=None if against is None else against.as_dict(),
        )
    )


def write_csv(reports: Sequence[ModelReport], file: Path) -> None:
    """Write a row for each system of each model, as `COLUMNS` says.

    Raises:
        InputError: the disk refuses.
    """
    with writing(file) as stream:
        writer: csv.DictWriter[str] = csv.DictWriter(stream, COLUMNS, restval="")
        writer.writeheader()
        for report in reports:
            writer.writerows(_rows(report))


def _rows(report: ModelReport) -> list[dict[str, Any]]:
    measured = {row.label: row for row in report.systems}
    rows = []
    for label in report.order:
        system, dtype = label.split()
        found = {
            "model": report.model,
            "weights": report.weights,
            "workload": report.workload["name"],
            "tokens": report.tokens,
            "mflop_per_token": report.mflop_per_token,
            "system": system,
            "dtype": dtype,
        }
        if label in report.checks:
            found["lowest_cosine"] = report.checks[label].lowest_cosine
        if label in measured:
            row = measured[label]
            speed, latency = row.tokens_per_second, row.latency_ms
            found |= {"status": "measured", "tokens_per_second": speed.median, "p20": speed.p20, "p80": speed.p80}
            found |= {"ratio": row.ratio.median, "padding_factor": row.padding_factor}
            if latency is not None:
                found |= {"latency_ms_p50": latency.median, "latency_ms_p80": latency.p80}
        elif label in report.failed:
            found |= {"status": "failed", "reason": report.failed[label]}
        else:
            found |= {"status": "left out", "reason": report.left_out[label]}
        rows.append(found)
    return rows


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
