"""`padless bench compare`: what changed between two reports of one kind.

A system is faster or slower where its median moved by more than the threshold and the two spreads, p20 to p80, do not
touch: what one of the two misses may be noise, and is printed as "same". What the reports differ in beside their
figures (the machine, versions, the commit, the kernels) stands first, for it may be the whole reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...engine.errors import InputError, OptionError
from ..timing import Spread
from .report import Report, read_report
from .rows import MICROSECONDS, OF_MODELS, Row, missing_of, rows_of

__all__ = ["Change", "Comparison", "compare", "parse_threshold", "run"]

_PLACE = ("gpu", "cpu", "slug")
_MOVED = 1e-9
"""Of a ratio: nearer to 1 than this is no change at all, whatever the threshold."""


@dataclass(frozen=True)
class Change:
    """One system at one case, in both reports.

    Attributes:
        case, label, unit: as of `Row`.
        old, new: what was measured.
        speed: how many times as fast as before; below 1 is slower.
        apart: the spreads, p20 to p80, do not touch.
        verdict: "faster", "slower" or "same".
    """

    case: str
    label: str
    unit: str
    old: Spread
    new: Spread
    speed: float
    apart: bool
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """Two reports beside each other.

    Attributes:
        same_machine: both were made on one kind of machine.
        differences: what they differ in beside their figures, a line each.
        changes: every system that both have, the one that became slowest first.
        only_old, only_new: what one of them lacks, with the reason if that one states it.
    """

    same_machine: bool
    differences: tuple[str, ...]
    changes: tuple[Change, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]


def run(old_path: Path, new_path: Path, threshold: str = "3%", fail_on_slower: bool = False) -> int:
    """Compare two files and print what changed.

    Args:
        old_path: the earlier report.
        new_path: the later one.
        threshold: least change of a median that counts, "3%" or "0.03".
        fail_on_slower: whether something slower is a failure.

    Returns:
        0; 1 where `fail_on_slower` is set and something became slower.

    Raises:
        OptionError: no such threshold.
        InputError: a file is no report, the two are of different kinds, or one verdict is wanted on two machines.
    """
    least = parse_threshold(threshold)
    old, new = read_report(old_path), read_report(new_path)
    found = compare(old, new, least)
    if fail_on_slower and not found.same_machine:
        raise InputError(
            f"{new.where}: made on {new.machine_name}, expected {old.machine_name} as {old.where}: "
            "a verdict on what became slower needs one machine"
        )
    if fail_on_slower and not found.changes:
        raise InputError(f"{new.where}: expected a system and case that {old.where} has too, found none")
    print(_text(old, new, found, least))
    return int(fail_on_slower and any(change.verdict == "slower" for change in found.changes))


def compare(old: Report, new: Report, threshold: float) -> Comparison:
    """Put two reports beside each other.

    Args:
        old: the earlier one.
        new: the later one.
        threshold: least change of a median that counts, as a fraction.

    Raises:
        InputError: they are of different kinds, or one lacks a field.
    """
    if old.kind != new.kind:
        raise InputError(f"{new.where}: a report of kind {new.kind}, expected {old.kind} as {old.where}")
    before = {(row.case, row.label): row for row in rows_of(old)}
    after = {(row.case, row.label): row for row in rows_of(new)}
    changes = [_change(before[key], row, threshold) for key, row in after.items() if key in before]
    return Comparison(
        same_machine=_place(old) == _place(new),
        differences=tuple(_differences(old, new)),
        changes=tuple(sorted(changes, key=lambda change: (change.speed, change.case, change.label))),
        only_old=tuple(_only(before, after, missing_of(new))),
        only_new=tuple(_only(after, before, missing_of(old))),
    )


def parse_threshold(text: str) -> float:
    """ "3%" or "0.03" as a fraction.

    Raises:
        OptionError: neither, or not from 0 to below 1.
    """
    try:
        value = float(text.removesuffix("%")) / (100.0 if text.endswith("%") else 1.0)
    except ValueError:
        value = math.nan
    if not 0.0 <= value < 1.0:
        raise OptionError(f"threshold: expected 0% to below 100%, such as 3% or 0.03, got {text!r}")
    return value


def _change(old: Row, new: Row, threshold: float) -> Change:
    speed = new.speed_over(old.value)
    apart = old.value.p80 < new.value.p20 or new.value.p80 < old.value.p20
    # Of the larger of the two, so that there and back again are changes of one size.
    moved = 1.0 - min(speed, 1.0 / speed)
    verdict = "same"
    if apart and moved > max(threshold, _MOVED):
        verdict = "faster" if speed > 1.0 else "slower"
    return Change(new.case, new.label, new.unit, old.value, new.value, speed, apart, verdict)


def _only(
    own: Mapping[tuple[str, str], Row], other: Mapping[tuple[str, str], Row], reasons: Mapping[tuple[str, str], str]
) -> Iterator[str]:
    for key, row in own.items():
        if key not in other:
            reason = f" ({reasons[key]})" if key in reasons else ""
            yield f"{row.case}, {row.label}: {_value(row.value.median, row.unit)}{reason}"


def _place(report: Report) -> tuple[object, ...]:
    return tuple(report.machine.tree.get(name) for name in _PLACE)


def _differences(old: Report, new: Report) -> Iterator[str]:
    """The machine, its other facts, versions of the systems, the commit, the kernels; in this order."""
    if _place(old) != _place(new):
        yield f"other machine: {old.machine_name}, now {new.machine_name}: the figures say little of the code"
    facts, facts_now = dict(old.machine.tree), dict(new.machine.tree)
    for name in dict.fromkeys([*facts, *facts_now]):
        if name not in (*_PLACE, "commit") and facts.get(name) != facts_now.get(name):
            yield f"{name}: {_fact(facts.get(name))}, now {_fact(facts_now.get(name))}"
    versions, versions_now = _versions(old), _versions(new)
    for name in sorted(versions.keys() & versions_now.keys() - facts.keys()):
        if versions[name] != versions_now[name]:
            yield f"{name}: {versions[name]}, now {versions_now[name]}"
    if old.commit != new.commit:
        yield f"commit: {old.commit}, now {new.commit}"
    modules = sorted(old.hashes.keys() | new.hashes.keys())
    changed = [module for module in modules if old.hashes.get(module) != new.hashes.get(module)]
    if changed and old.hashes and new.hashes:
        yield f"kernels: other code in {', '.join(changed)}"
    elif changed:
        yield f"kernels: only {(old if old.hashes else new).where} carries their hashes"
    for case, tokens, tokens_now in _tokens(old, new):
        yield f"{case}: {tokens:,.0f} tokens, now {tokens_now:,.0f}: not the same work"


def _versions(report: Report) -> dict[str, str]:
    """Distribution to version, of all systems of a report of models, generation or jobs."""
    found: dict[str, str] = {}
    owners = report.root.items("models") if report.kind in OF_MODELS else [report.root]
    for owner in owners if report.kind in (*OF_MODELS, "jobs") else ():
        for system in owner.items("systems"):
            found |= system.texts("versions")
    return found


def _tokens(old: Report, new: Report) -> Iterator[tuple[str, float, float]]:
    before = {row.case: row.tokens for row in rows_of(old)}
    after = {row.case: row.tokens for row in rows_of(new)}
    for case, tokens in before.items():
        now = after.get(case)
        if tokens is not None and now is not None and tokens != now:
            yield case, tokens, now


def _fact(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)


def _value(value: float, unit: str) -> str:
    return f"{value:,.1f} {unit}" if unit == MICROSECONDS else f"{value:,.0f} {unit}"


def _text(old: Report, new: Report, found: Comparison, threshold: float) -> str:
    lines = [f"old: {old.where}, {old.written}", f"new: {new.where}, {new.written}", ""]
    lines += found.differences or ("same machine, versions, commit and kernels",)
    if found.changes:
        lines += ["", *_aligned(found.changes)]
    else:
        lines += ["", "no system and case is in both"]
    for title, only in ((f"only in {old.where}", found.only_old), (f"only in {new.where}", found.only_new)):
        if only:
            lines += ["", f"{title}:", *(f"  {line}" for line in only)]
    verdicts = [change.verdict for change in found.changes]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ("slower", "same", "faster"))
    lines += ["", f"{counts}; a change counts beyond {threshold:.1%} and where the spreads, p20 to p80, do not touch"]
    return "\n".join(lines)


def _aligned(changes: Sequence[Change]) -> Iterator[str]:
    head = ("case", "system", "old", "new", "speed", "spreads", "")
    rows = [
        (
            change.case,
            change.label,
            _value(change.old.median, change.unit),
            _value(change.new.median, change.unit),
            f"{change.speed:.3f}x",
            "apart" if change.apart else "touch",
            change.verdict,
        )
        for change in changes
    ]
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if place in (0, 1, 5, 6) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
