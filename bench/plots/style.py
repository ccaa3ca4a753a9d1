"""How every picture looks: size, type, colours that the colour-blind can tell apart, and the title.

Colours are those of Okabe and Ito ("Color Universal Design", 2008). padless has one that nobody else gets. Pictures
are made by the Agg backend itself: no window system is asked for, and no global state of matplotlib is touched.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..reports.report import Report
from ..reports.rows import OURS

__all__ = [
    "BEHIND",
    "GREY",
    "INK",
    "MARKERS",
    "OURS_COLOUR",
    "WIDTH",
    "colours",
    "labelled",
    "new_figure",
    "plain",
    "save",
    "subtitle",
]

DPI = 100
WIDTH = 14.0
"""Inches, of every picture: 1,400 pixels."""

OURS_COLOUR = "#D55E00"
_OURS_PALE = "#EFA26B"
"""Of padless in another arrangement."""

GREY = "#B8B8B8"
INK, _PALE = "#222222", "#666666"
BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
"""Behind a text that a line may cross."""

_KNOWN = {
    "sentence-transformers": "#0072B2",
    "transformers": "#56B4E9",
    "transformers-unsorted": "#A6D5F2",
    "openvino": "#009E73",
    "onnxruntime": "#CC79A7",
    "eager": "#999999",
    "op by op": "#999999",
    "torch.compile": "#E69F00",
    "compile": "#E69F00",
    "sdpa": "#009E73",
    "sdpa-padded": "#009E73",
    "sdpa-nested": "#66C5AA",
    "sdpa-flash": "#7A5195",
    "sdpa-cudnn": "#00664B",
    "torch-varlen": "#56B4E9",
    "flash-attn-2": "#004D80",
    "flash-attn-3": "#0072B2",
    "flash-attn-4": "#444444",
    "xformers": "#8C6D31",
    "liger": "#F0E442",
    "product-alone": "#444444",
    "sdpa cudnn": "#009E73",
    "sdpa flash": "#7A5195",
    "torch varlen": "#56B4E9",
    "torch_varlen": "#56B4E9",
    "flash_attn": "#004D80",
    "triton": "#7A5195",
    "flex": "#CC79A7",
    "flash-attn 2": "#004D80",
    "flash-attn 3": "#0072B2",
    "flash-attn 4": "#444444",
    "the product alone, cuBLAS": "#444444",
}
_OTHERS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#7A5195", "#444444", "#8C6D31")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")


def colours(systems: Iterable[str]) -> dict[str, str]:
    """A colour for each system, the same whatever the order; with more than there are colours, some are shared."""
    systems = list(systems)
    ours = {system: _OURS_PALE for system in systems if system.startswith(OURS)} | {OURS: OURS_COLOUR}
    names = sorted(set(systems))
    found = {system: {**_KNOWN, **ours}.get(system, "") for system in names}
    for system in (name for name in names if not found[name]):
        untaken = [colour for colour in _OTHERS if colour not in found.values()] or _OTHERS
        found[system] = untaken[0]
    return found


def new_figure(height: float, title: str, below: str) -> Figure:
    """An empty picture, `WIDTH` by `height` inches, with its title and what it must be read beside."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    # Room for the two lines of the title, which the layout does not know of.
    figure.get_layout_engine().set(rect=(0.01, 0.01, 0.98, 1.0 - 0.95 / height), w_pad=0.12, h_pad=0.1)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
    figure.text(0.016, 1.0 - 0.16 / height, title, fontsize=20, fontweight="bold", color=INK, va="top")
    figure.text(0.016, 1.0 - 0.56 / height, below, fontsize=12.5, color=_PALE, va="top")
    return figure


def subtitle(report: Report, *further: str) -> str:
    """Machine, what is said besides (dtypes), commit and date."""
    machine = report.machine
    name = report.machine_name
    if machine.has("threads"):
        count = machine.number("threads")
        name += f", {count:.0f} thread{'s' if count != 1 else ''}"
    return "  ·  ".join([name, *filter(None, further), f"commit {report.commit}", report.written[:10]])


def plain(axes: Axes, *, grid: str = "x") -> None:
    """No box, a faint grid, type that can be read at half the size."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(labelsize=12, color="#999999", labelcolor=INK)
    axes.grid(True, axis=grid, color="#E4E4E4", linewidth=0.8)  # pyright: ignore[reportArgumentType]
    axes.set_axisbelow(True)


def labelled(axes: Axes, x: str = "", y: str = "", title: str = "") -> None:
    """Names of the axes and of the panel."""
    axes.set_xlabel(x, fontsize=13, color=INK)
    axes.set_ylabel(y, fontsize=13, color=INK)
    if title:
        axes.set_title(title, fontsize=14, color=INK, loc="left", pad=10)


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG, whole or not at all; the same figure gives the same bytes."""
    partial = path.with_suffix(".partial")
    figure.savefig(partial, format="png", dpi=DPI, metadata={"Software": None})
    os.replace(partial, path)
    return path
