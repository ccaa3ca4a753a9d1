"""Throughput over length: tokens a second, a line a system, a panel a family of cases that differ in length alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from ..reports.rows import MICROSECONDS, OURS, Row
from .style import MARKERS, colours, labelled, new_figure, plain

__all__ = ["Family", "families", "lengths"]

LENGTHS = 2
"""Fewer than these make no line."""

PANELS = 4


@dataclass(frozen=True)
class Family:
    """Cases that differ in length alone.

    Attributes:
        name: what they have in common.
        lines: by system, tokens of a text and tokens a second with p20 and p80, the shortest first.
    """

    name: str
    lines: dict[str, list[tuple[int, float, float, float]]]


def families(rows: Sequence[Row], *, dtype_in_label: bool = False) -> list[Family]:
    """The families of at least `LENGTHS` lengths of padless; those with the most lengths first, at most `PANELS`."""
    found: dict[str, Family] = {}
    for row in rows:
        rate = _tokens_per_second(row)
        if row.length is None or rate is None:
            continue
        system = row.label if dtype_in_label else row.system
        lines = found.setdefault(_family(row), Family(_family(row), {})).lines
        line = lines.setdefault(system, [])
        if all(length != row.length for length, *_ in line):
            line.append((row.length, *rate))
    for family in found.values():
        for line in family.lines.values():
            line.sort()
    whole = [family for family in found.values() if _lengths_of_ours(family) >= LENGTHS]
    return sorted(whole, key=lambda family: (-_lengths_of_ours(family), -len(family.lines)))[:PANELS]


def lengths(title: str, below: str, found: Sequence[Family], length: str = "tokens of a text") -> Figure:
    """A panel a family, one legend for all.

    Args:
        title: of the picture.
        below: what it must be read beside.
        found: from `families`.
        length: what is on the axis of lengths.
    """
    columns = min(len(found), 2)
    lines = math.ceil(len(found) / columns)
    systems = list(dict.fromkeys(system for family in found for system in family.lines))
    # padless first in the legend, and drawn last, above the others.
    systems.sort(key=lambda system: not system.startswith(OURS))
    palette = colours(system.rpartition(" ")[0] if system.endswith(_DTYPES) else system for system in systems)
    figure = new_figure(2.3 + 4.6 * lines, title, below)
    panels = figure.subplots(lines, columns, squeeze=False)
    for family, axes in zip(found, panels.flat, strict=False):
        for place, system in reversed(list(enumerate(systems))):
            if system in family.lines:
                _line(axes, family.lines[system], system, palette, place)
        _axis(axes, family)
        labelled(axes, length, "tokens/s", family.name)
    for axes in panels.flat[len(found) :]:
        axes.remove()
    handles = {name: handle for axes in figure.axes for handle, name in zip(*axes.get_legend_handles_labels())}  # noqa: B905
    figure.legend(
        [handles[system] for system in systems], systems,
        loc="outside lower center", ncols=min(len(systems), 5), fontsize=12.5, frameon=False,
    )  # fmt: skip
    return figure


_DTYPES = (" float32", " bfloat16", " float16", " int8")


def _line(
    axes: Axes, points: Sequence[tuple[int, float, float, float]], system: str, palette: dict[str, str], place: int
) -> None:
    software = system.rpartition(" ")[0] if system.endswith(_DTYPES) else system
    ours = software == OURS
    xs, ys, low, high = zip(*points, strict=True)
    colour = palette[software]
    axes.fill_between(xs, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(
        xs, ys, label=system, color=colour, linewidth=3.2 if ours else 1.9, marker=MARKERS[place % len(MARKERS)],
        markersize=8 if ours else 6, linestyle="--" if system.endswith(" float32") else "-", zorder=4 if ours else 3,
    )  # fmt: skip


def _axis(axes: Axes, family: Family) -> None:
    plain(axes, grid="both")
    axes.set_xscale("log", base=2)
    ticks = sorted({length for line in family.lines.values() for length, *_ in line})
    # Neighbours nearer than this would write into each other.
    kept = [ticks[0]]
    for tick in ticks[1:]:
        if math.log(tick / kept[-1]) > 0.09 * math.log(ticks[-1] / ticks[0]):
            kept.append(tick)
    axes.xaxis.set_major_locator(FixedLocator(kept))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(_short))
    axes.set_ylim(0, axes.dataLim.y1 * 1.08)


def _short(value: float, _: object) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _family(row: Row) -> str:
    if row.unit != MICROSECONDS:
        return row.group
    name = row.case.removesuffix(f", {row.dtype}").removesuffix(str(row.length)).rstrip(" /:")
    return f"{name}, {row.dtype}"


def _tokens_per_second(row: Row) -> tuple[float, float, float] | None:
    if row.unit == "tokens/s":
        return row.value.median, row.value.p20, row.value.p80
    if row.unit == MICROSECONDS and row.tokens is not None:
        return row.tokens / row.value.median * 1e6, row.tokens / row.value.p80 * 1e6, row.tokens / row.value.p20 * 1e6
    return None


def _lengths_of_ours(family: Family) -> int:
    return max((len(line) for system, line in family.lines.items() if system.startswith(OURS)), default=0)
