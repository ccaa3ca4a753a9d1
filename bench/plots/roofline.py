"""The roofline: what each kernel reaches, under what the machine gives at its FLOPs a byte.

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore architectures"
(2009), section 3. Both ceilings are measured, in the same run as the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from .labels import boxes_of, label_points, line_boxes, renderer_of
from .style import GREY, INK, OURS_COLOUR, labelled, new_figure, plain

__all__ = ["Point", "roofline"]


@dataclass(frozen=True)
class Point:
    """A kernel at a case.

    Attributes:
        name: as it is labelled; empty for a point without a label.
        intensity: FLOPs a byte that must cross the memory bus.
        tflops: what padless reaches.
        peer_tflops: what the fastest peer reaches, or None.
    """

    name: str
    intensity: float
    tflops: float
    peer_tflops: float | None = None


def roofline(title: str, below: str, points: Sequence[Point], tflops: float, gbps: float) -> Figure:
    """All points of one dtype under its two ceilings.

    Args:
        title: of the picture.
        below: what it must be read beside.
        points: at least one.
        tflops: of a large matrix product.
        gbps: of a large copy, read and write counted.
    """
    figure = new_figure(8.6, title, below)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    ridge = tflops * 1e3 / gbps
    _limits(axes, points, tflops, gbps, ridge)
    low, high = axes.get_xlim()
    axes.plot((low, ridge, high), (low * gbps / 1e3, tflops, tflops), color=INK, linewidth=2.0, zorder=3)
    axes.fill_between((low, ridge, high), (low * gbps / 1e3, tflops, tflops), axes.get_ylim()[0], color="#F6F6F6")
    with_peer = [(point, point.peer_tflops) for point in points if point.name and point.peer_tflops is not None]
    for point, peer in with_peer:
        axes.plot((point.intensity,) * 2, (point.tflops, peer), color=GREY, linewidth=1.6, zorder=3)
    axes.scatter(
        [point.intensity for point, _ in with_peer], [peer for _, peer in with_peer],
        s=52, facecolor="white", edgecolor="#555555", linewidth=1.4, zorder=4, label="fastest peer",
    )  # fmt: skip
    named = [point for point in points if point.name]
    unnamed = [point for point in points if not point.name]
    axes.scatter(
        [point.intensity for point in unnamed], [point.tflops for point in unnamed],
        s=40, color=OURS_COLOUR, alpha=0.45, linewidth=0, zorder=4.5,
    )  # fmt: skip
    axes.scatter(
        [point.intensity for point in named], [point.tflops for point in named],
        s=84, color=OURS_COLOUR, edgecolor="white", linewidth=0.9, zorder=5, label="padless",
    )  # fmt: skip
    plain(axes, grid="both")
    labelled(axes, "FLOPs a byte", "TFLOP/s")
    handles, names = axes.get_legend_handles_labels()
    legend = axes.legend(handles[::-1], names[::-1], fontsize=12.5, loc="lower right", frameon=False)
    # The layout is settled here, once: the places of the labels are counted in its pixels.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    texts = _ceilings(axes, tflops, gbps, ridge)
    # Not the box of the slanted name, most of which is empty: what stands below the ceiling keeps clear of it anyway.
    legend_box = legend.get_window_extent(renderer_of(axes)).extents
    written = np.vstack([boxes_of(axes, texts[1:]), legend_box])
    keep_free = [_along(axes, [(low, low * gbps / 1e3), (ridge, tflops), (high, tflops)], half=5.0)]
    for point, peer in with_peer:
        keep_free.append(_along(axes, [(point.intensity, point.tflops), (point.intensity, peer)], half=3.0))
        keep_free.append(_along(axes, [(point.intensity, peer)], half=7.0))
    keep_free += [_along(axes, [(point.intensity, point.tflops)], half=5.0) for point in unnamed]
    names = [(point.intensity, point.tflops, _named(point, tflops, gbps)) for point in named]
    label_points(axes, names, texts=written, keep_free=np.vstack(keep_free))
    return figure


def _limits(axes: Axes, points: Sequence[Point], tflops: float, gbps: float, ridge: float) -> None:
    xs = [point.intensity for point in points]
    ys = [value for point in points for value in (point.tflops, point.peer_tflops or point.tflops)]
    low, high = min(*xs, ridge) / 3, max(*xs, ridge) * 5
    axes.set_xlim(low, high)
    axes.set_ylim(min(*ys, tflops / 20) / 2.5, max(*ys, tflops) * 2.2)


def _ceilings(axes: Axes, tflops: float, gbps: float, ridge: float) -> list[Annotation]:
    """The names of the two ceilings, along their lines: memory, matrix products."""
    low, high = axes.get_xlim()
    floor = max(low, axes.get_ylim()[0] * 1e3 / gbps)
    start, end = axes.transData.transform([(floor, floor * gbps / 1e3), (ridge, tflops)])
    angle = math.degrees(math.atan2(end[1] - start[1], end[0] - start[0]))
    middle = math.sqrt(floor * ridge)
    kinds = {"fontsize": 13, "color": INK, "fontweight": "bold"}
    memory = axes.annotate(
        f"memory: {_three(gbps)} GB/s", (middle, middle * gbps / 1e3), xytext=(-6, 8), textcoords="offset points",
        rotation=angle, rotation_mode="anchor", ha="center", va="bottom", **kinds,
    )  # fmt: skip
    products = axes.annotate(
        f"matrix products: {_three(tflops)} TFLOP/s", (high, tflops), xytext=(-8, 6), textcoords="offset points",
        ha="right", va="bottom", **kinds,
    )  # fmt: skip
    return [memory, products]


def _along(axes: Axes, corners: Sequence[tuple[float, float]], half: float) -> np.ndarray:
    return line_boxes(axes.transData.transform(corners), half)


def _named(point: Point, tflops: float, gbps: float) -> str:
    return f"{point.name}  {point.tflops / min(tflops, point.intensity * gbps / 1e3):.0%}"


def _three(value: float) -> str:
    """Three digits that count, and thousands apart: 0.227, 22.7, 2,270."""
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:,.{digits}f}"
