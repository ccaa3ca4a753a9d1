"""Bars against peers: how many times as fast, and the figure itself; the fastest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..reports.rows import MICROSECONDS, OURS, Row
from ..timing import Spread
from .style import BEHIND, INK, colours, labelled, new_figure, plain

__all__ = ["Group", "Rated", "bars", "group_rows", "pages", "shortened"]

BARS_A_PAGE = 34
_WIDE = 30.0
"""Of the largest figure to the smallest: beyond this the axis is logarithmic."""


@dataclass(frozen=True)
class Rated:
    """A row and how many times as fast as the baseline it is.

    Attributes:
        row: what was measured.
        speed: the median.
        range: p20 and p80 of that, or None where only the medians are known.
    """

    row: Row
    speed: float
    range: Spread | None = None


@dataclass(frozen=True)
class Group:
    """The systems at one case, the fastest first."""

    name: str
    systems: tuple[Rated, ...]

    @property
    def ours(self) -> float:
        """How many times as fast as the baseline padless is; 0 where it has no figure."""
        return max((rated.speed for rated in self.systems if rated.row.ours), default=0.0)


def group_rows(rows: Sequence[Row], ratios: Mapping[tuple[str, str], Spread] | None = None) -> list[Group]:
    """A group for each case that has a peer, the one where padless gains most first.

    Args:
        rows: of any number of cases.
        ratios: how many times as fast as the report's own baseline, by case and label; None rates each system against
            the fastest that is not padless.
    """
    groups = []
    for case in dict.fromkeys(row.case for row in rows):
        found = [row for row in rows if row.case == case]
        if ratios is None:
            peers = [row for row in found if row.peer]
            if not peers:
                continue
            baseline = max(peers, key=lambda row: row.speed_over(peers[0].value)).value
            rated = [Rated(row, row.speed_over(baseline)) for row in found]
        else:
            spreads = [ratios[case, row.label] for row in found]
            rated = [Rated(row, spread.median, spread) for row, spread in zip(found, spreads, strict=True)]
        groups.append(Group(case, tuple(sorted(rated, key=lambda entry: -entry.speed))))
    return sorted(groups, key=lambda group: -group.ours)


def shortened(groups: Sequence[Group], peers: int) -> list[Group]:
    """padless, the fastest so many of its peers, and what bounds it; cases without padless are left out."""
    found = []
    for group in groups:
        kept = [rated for rated in group.systems if rated.row.peer][:peers]
        kept += [rated for rated in group.systems if rated.row.system == OURS or not (rated.row.peer or rated.row.ours)]
        if any(rated.row.ours for rated in kept):
            found.append(Group(group.name, tuple(rated for rated in group.systems if rated in kept)))
    return found


def pages(groups: Sequence[Group], most: int = BARS_A_PAGE) -> list[list[Group]]:
    """Groups in lots of at most `most` bars; a group is never cut."""
    lots: list[list[Group]] = []
    for group in groups:
        if not lots or sum(len(other.systems) for other in lots[-1]) + len(group.systems) > most:
            lots.append([])
        lots[-1].append(group)
    return lots


def bars(title: str, below: str, groups: Sequence[Group], baseline: str, *, dtype_in_label: bool = False) -> Figure:
    """Two panels side by side, with one line a system.

    Args:
        title: of the picture.
        below: what it must be read beside.
        groups: from `group_rows`.
        baseline: whose speed is 1, as the axis names it.
        dtype_in_label: whether a system is to be told from itself in another dtype.
    """
    places, y = [], 0.0
    for group in groups:
        y += 1.15 if len(groups) > 1 else 0.0
        places.append([y + step for step in range(len(group.systems))])
        y += len(group.systems) + 0.15
    figure = new_figure(1.9 + 0.335 * y, title, below)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.15))
    rows = [rated.row for group in groups for rated in group.systems]
    palette = colours(row.system for row in rows)
    unit = rows[0].unit
    values = [row.value.median for row in rows]
    # Bars from 0 are honest; where a page holds times of 3 and of 3,000 µs, the short ones would not be seen.
    if max(values) > _WIDE * min(values):
        right.set_xscale("log")
        right.set_xlim(min(values) / 3, max(values) * 4)
    for group, at in zip(groups, places, strict=True):
        shades = [palette[rated.row.system] for rated in group.systems]
        left.barh(at, [rated.speed for rated in group.systems], color=shades, height=0.78)
        right.barh(at, [rated.row.value.median for rated in group.systems], color=shades, height=0.78)
        for place, rated in zip(at, group.systems, strict=True):
            row, end = rated.row, rated.speed
            if rated.range is not None:
                _whisker(left, rated.range, place)
                end = rated.range.p80
            _whisker(right, row.value, place)
            weight = "bold" if row.system == OURS else "normal"
            _value(left, end, place, f"{rated.speed:.2f}x", weight)
            _value(right, row.value.p80, place, _figure(row.value.median, unit), weight)
        if len(groups) > 1:
            left.annotate(
                group.name, (0, at[0] - 0.92), xycoords=left.get_yaxis_transform(), fontsize=12.5,
                fontweight="bold", color=INK, va="center", annotation_clip=False, bbox=BEHIND,
            )  # fmt: skip
    _finish(left, right, groups, places, dtype_in_label)
    labelled(left, f"times as fast as {baseline}")
    scale = ", log scale" if right.get_xscale() == "log" else ""
    labelled(right, f"µs, shorter is faster{scale}" if unit == MICROSECONDS else f"{unit}, longer is faster{scale}")
    return figure


def _finish(
    left: Axes, right: Axes, groups: Sequence[Group], places: Sequence[Sequence[float]], dtype_in_label: bool
) -> None:
    rows = [rated.row for group in groups for rated in group.systems]
    names = [row.label if dtype_in_label else row.shown for row in rows]
    left.set_yticks([place for lot in places for place in lot], names)
    for tick, row in zip(left.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if row.system == OURS else "normal")
    for axes in (left, right):
        plain(axes)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    right.tick_params(axis="y", labelleft=False)
    left.axvline(1.0, color="#444444", linewidth=1.0, zorder=1.5)
    left.set_ylim(places[-1][-1] + 0.7, places[0][0] - (1.45 if len(groups) > 1 else 0.7))
    left.set_xlim(0, left.dataLim.x1 * 1.16)
    right.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}")
    if right.get_xscale() == "linear":
        right.set_xlim(0, right.dataLim.x1 * 1.22)


def _whisker(axes: Axes, spread: Spread, place: float) -> None:
    axes.plot((spread.p20, spread.p80), (place, place), color=INK, linewidth=1.4, solid_capstyle="butt", zorder=3)


def _value(axes: Axes, x: float, y: float, text: str, weight: str) -> None:
    axes.annotate(
        text, (x, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=12, color=INK,
        fontweight=weight, bbox=BEHIND,
    )  # fmt: skip


def _figure(value: float, unit: str) -> str:
    if unit == MICROSECONDS:
        return f"{value:,.1f} µs" if value < 100 else f"{value:,.0f} µs"
    return f"{value:,.0f}"
