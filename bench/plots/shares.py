"""What part of the machine's ceiling each kernel reaches: bars, the nearest to it first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from .style import BEHIND, INK, OURS_COLOUR, labelled, new_figure, plain

__all__ = ["Share", "shares"]

_MEMORY_COLOUR = "#0072B2"


@dataclass(frozen=True)
class Share:
    """A kernel at a case, held against one of the two ceilings.

    Attributes:
        name: of the case.
        reached: TFLOP/s, or GB/s where memory is the bound.
        ceiling: of the same unit.
        unit: "TFLOP/s" or "GB/s".
    """

    name: str
    reached: float
    ceiling: float
    unit: str


def shares(title: str, below: str, found: Sequence[Share], most: int = 40) -> Figure:
    """One bar a case; products and memory in two colours, both ceilings named.

    Args:
        title: of the picture.
        below: what it must be read beside.
        found: at least one.
        most: how many are drawn; the others are counted in the axis' name.
    """
    ordered = sorted(found, key=lambda share: -share.reached / share.ceiling)
    drawn = ordered[:most]
    figure = new_figure(2.4 + 0.335 * len(drawn), title, below)
    axes = figure.subplots()
    for unit, colour in (("TFLOP/s", OURS_COLOUR), ("GB/s", _MEMORY_COLOUR)):
        places = [place for place, share in enumerate(drawn) if share.unit == unit]
        if places:
            what = "a matrix product" if unit == "TFLOP/s" else "a copy"
            part = [drawn[place].reached / drawn[place].ceiling for place in places]
            label = f"of {what}: {drawn[places[0]].ceiling:,.0f} {unit}"
            axes.barh(places, part, color=colour, height=0.74, label=label)
    for place, share in enumerate(drawn):
        part = share.reached / share.ceiling
        axes.annotate(
            f"{part:.0%}  ({share.reached:,.0f} {share.unit})", (part, place), xytext=(6, 0),
            textcoords="offset points", va="center", fontsize=12, color=INK, bbox=BEHIND,
        )  # fmt: skip
    axes.set_yticks(range(len(drawn)), [share.name for share in drawn])
    axes.invert_yaxis()
    plain(axes)
    axes.tick_params(axis="y", length=0)
    axes.axvline(1.0, color="#222222", linewidth=1.6)
    axes.set_xlim(0, max(1.0, *(share.reached / share.ceiling for share in drawn)) * 1.24)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    further = f" ({len(ordered) - len(drawn)} further cases below these)" if len(ordered) > len(drawn) else ""
    labelled(axes, f"of the ceiling measured in the same run{further}")
    figure.legend(loc="outside lower center", ncols=2, fontsize=12.5, frameon=False)
    return figure
