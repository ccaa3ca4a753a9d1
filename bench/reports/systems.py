"""Systems that wrote or read the same tokens in one interleaved run: as entries of a report, and as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..timing import ratio, spread

__all__ = ["systems_of", "table_of"]


def systems_of(
    seconds: Mapping[str, Sequence[float]],
    tokens: int,
    *,
    baseline: str,
    versions_of: Callable[[str], Mapping[str, str]],
) -> list[dict[str, Any]]:
    """An entry for each system.

    Args:
        seconds: of each round, by label: the system's name, a space and what it computes in.
        tokens: of a round.
        baseline: the label that the others are set against.
        versions_of: the system's name -> distribution to version.
    """
    return [
        {
            "system": label.split()[0],
            "dtype": label.split()[1],
            "tokens_per_second": asdict(spread([tokens / each for each in own])),
            "ratio": asdict(ratio(seconds, label, baseline)),
            "seconds": own,
            "versions": versions_of(label.split()[0]),
        }
        for label, own in seconds.items()
    ]


def table_of(report: Mapping[str, Any], unit: str, digits: int = 0) -> list[str]:
    """Lines for people: a head, the systems, and what has no number, with the reason.

    Args:
        report: of a model, with `systems` as `systems_of` has them, and `failed`, label to reason.
        unit: of the rates, such as "tok/s".
        digits: behind the point of the rates.
    """
    lines = [f"{'system':<24} {'dtype':<9} {unit:>10} {'p20':>10} {'p80':>10} {'ratio':>7}"]
    for system in report["systems"]:
        rate = (f"{system['tokens_per_second'][name]:>10,.{digits}f}" for name in ("median", "p20", "p80"))
        lines.append(f"{system['system']:<24} {system['dtype']:<9} {' '.join(rate)} {system['ratio']['median']:>6.2f}x")
    return lines + [f"{label:<34} no number: {reason}" for label, reason in report["failed"].items()]
