"""Padding waste: the tokens that each system computes for a real one, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..reports.rows import OURS
from .style import GREY, INK, OURS_COLOUR, colours, labelled, new_figure, plain

__all__ = ["BATCH", "padded_lengths", "padding"]

BATCH = 32
"""Texts in a batch of those who pad."""

_SHOWN = 512
"""Texts in the picture, the first ones; the figures are of all."""


def padded_lengths(lengths: np.ndarray, batch: int = BATCH) -> np.ndarray:
    """int64 `[texts]`: what each text takes in padded batches in this order, the longest of its batch."""
    return np.concatenate([np.full(len(part), part.max()) for part in _batches(lengths, batch)])


def padding(title: str, below: str, factors: Mapping[str, float], lengths: np.ndarray | None) -> Figure:
    """Bars of tokens computed for a real token, and the same texts in padded batches, as they come and sorted.

    Args:
        title: of the picture.
        below: what it must be read beside.
        factors: by system, at least 1.
        lengths: int64 `[texts]`, tokens of each text in the order they came; None leaves the right side out.
    """
    shown = lengths is not None
    figure = new_figure(7.4 if shown else 2.4 + 0.5 * len(factors), title, below)
    if not shown:
        _bars(figure.subplots(), factors)
        return figure
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.35))
    _bars(figure.add_subplot(grid[:, 0]), factors)
    for place, (how, ordered) in enumerate((("as they come", _within_batches(lengths)), ("sorted", _sorted(lengths)))):
        axes = figure.add_subplot(grid[place, 1])
        _texts(axes, ordered, f"{how}, in batches of {BATCH}", legend=place == 0)
        labelled(axes, "texts" if place else "", "tokens", axes.get_title(loc="left"))
    return figure


def _bars(axes: Axes, factors: Mapping[str, float]) -> None:
    ordered = sorted(factors.items(), key=lambda entry: (entry[1], entry[0] != OURS))
    palette = colours(factors)
    names = [system for system, _ in ordered]
    axes.barh(names, [1.0] * len(names), color=[palette[name] for name in names], height=0.66)
    axes.barh(names, [factor - 1.0 for _, factor in ordered], left=1.0, color=GREY, height=0.66)
    for place, (system, factor) in enumerate(ordered):
        axes.annotate(
            f"{factor:.2f}", (factor, place), xytext=(6, 0), textcoords="offset points", va="center",
            fontsize=13, color=INK, fontweight="bold" if system == OURS else "normal",
        )  # fmt: skip
    axes.invert_yaxis()
    plain(axes)
    axes.tick_params(axis="y", length=0, labelsize=13)
    for tick in axes.get_yticklabels():
        tick.set_fontweight("bold" if tick.get_text() == OURS else "normal")
    axes.set_xlim(0, max(factors.values()) * 1.16)
    labelled(axes, "tokens computed for each real token", title="by system; grey is padding")


def _texts(axes: Axes, lengths: np.ndarray, how: str, *, legend: bool) -> None:
    padded = padded_lengths(lengths)
    places = np.arange(min(len(lengths), _SHOWN) + 1)

    def steps(values: np.ndarray) -> Sequence[float]:
        return [*values[: len(places) - 1], values[: len(places) - 1][-1]]

    axes.fill_between(places, steps(padded), step="post", color=GREY, linewidth=0, label="padding")
    axes.fill_between(places, steps(lengths), step="post", color=OURS_COLOUR, linewidth=0, label="real tokens")
    plain(axes, grid="y")
    axes.set_xlim(0, places[-1])
    axes.set_ylim(0, float(padded.max()) * (1.28 if legend else 1.05))
    axes.set_title(f"{how}: {padded.sum() / lengths.sum():.2f} tokens for each real one", loc="left")
    if legend:
        axes.legend(loc="upper right", ncols=2, fontsize=12.5, frameon=False, borderaxespad=0.1)


def _within_batches(lengths: np.ndarray) -> np.ndarray:
    """The longest first in each batch, whose padding that does not change: it is seen better so."""
    return np.concatenate([_sorted(part) for part in _batches(lengths, BATCH)])


def _sorted(lengths: np.ndarray) -> np.ndarray:
    return np.sort(lengths)[::-1]


def _batches(lengths: np.ndarray, batch: int) -> list[np.ndarray]:
    return [lengths[start : start + batch] for start in range(0, len(lengths), batch)]
