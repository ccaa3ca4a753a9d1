"""Texts beside points such that none covers another: places around each point are tried, the nearest first.

Boxes are rows of `[n, 4]` arrays: left, bottom, right, top, in pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.text import Annotation, Text

__all__ = ["boxes_of", "label_points", "line_boxes", "overlaps", "renderer_of"]

_RADII = (12, 20, 32, 46, 62, 80, 100, 124, 150, 180, 214, 252, 296, 346, 400)
_ANGLES = (
    0, 180, 45, -45, 135, -135, 90, -90, 20, -20, 160, -160, 68, -68, 112, -112,
    32, -32, 148, -148, 56, -56, 124, -124, 79, -79, 101, -101, 10, -10, 170, -170,
)  # fmt: skip
_BESIDE = 20
"""Pixels: a text no further off than this needs no line to its point."""

_HARM = 1000
"""Of a text on a text; anything else that is covered, a point or a piece of a line, counts 1."""

_MARGIN = 2.0
_POINT = 7.0
"""Half the width of a point and of what must stay free around it."""


def label_points(
    axes: Axes,
    points: Sequence[tuple[float, float, str]],
    *,
    texts: np.ndarray,
    keep_free: np.ndarray,
    fontsize: float = 11.5,
    colour: str = "#222222",
) -> list[Annotation]:
    """Write a text beside each point, with a thin line to it where it stands further off.

    Args:
        axes: already drawn once, its limits and layout final.
        points: x and y in the units of the data, and the text.
        texts: boxes of texts that are there already; neither a label nor its line covers one.
        keep_free: boxes that no label covers, though its line may cross them.
        fontsize: points.
        colour: of the texts.

    Returns:
        The texts, in the order of `points`. One that finds no free place stands where it covers the least.
    """
    renderer = renderer_of(axes)
    inside = np.array(axes.get_window_extent(renderer).extents)
    pixels = axes.transData.transform([(x, y) for x, y, _ in points])
    notes = [
        axes.annotate(
            text, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=fontsize, color=colour,
            ha="left", va="center", zorder=6,
        )
        for x, y, text in points
    ]  # fmt: skip
    sizes = [(note.get_window_extent(renderer).width, note.get_window_extent(renderer).height) for note in notes]
    own = _around(pixels, _POINT)
    scale = 72.0 / axes.figure.dpi
    # From the right to the left: the usual place is on the right, where the points before have left it free. Those
    # that find a place beside their point go first, and the lines of the others then keep clear of them.
    order = sorted(range(len(points)), key=lambda i: (-pixels[i][0], pixels[i][1]))
    left = []
    for beside in (True, False):
        for index in order if beside else left:
            others = np.delete(own, index, axis=0)
            place = _place(pixels[index], sizes[index], inside, texts, np.vstack([keep_free, own]), others, beside)
            if place is None:
                left.append(index)
                continue
            box, line = place
            at = pixels[index]
            notes[index].set_position(((box[0] + _MARGIN - at[0]) * scale, ((box[1] + box[3]) / 2 - at[1]) * scale))
            if len(line):
                ends = axes.transData.inverted().transform([at, _nearest(at, box)])
                axes.plot(*ends.T, color="#888888", linewidth=0.8, zorder=2, scalex=False, scaley=False)
            texts = np.vstack([texts, box])
            keep_free = np.vstack([keep_free, line])
    return notes


def line_boxes(corners: Sequence[Sequence[float] | np.ndarray] | np.ndarray, half: float) -> np.ndarray:
    """Boxes of `half` pixels to each side along the line through these places."""
    found = [np.asarray(corners[:1], dtype=float)]
    for start, end in itertools.pairwise(np.asarray(corners, dtype=float)):
        found.append(np.linspace(start, end, max(int(np.hypot(*(end - start)) / (2 * half)), 1) + 1))
    return _around(np.concatenate(found), half)


def boxes_of(axes: Axes, texts: Sequence[Text]) -> np.ndarray:
    """The boxes of texts as they are drawn now."""
    found = [text.get_window_extent(renderer_of(axes)).extents for text in texts]
    return np.array(found, dtype=float).reshape(-1, 4)


def overlaps(boxes: np.ndarray) -> list[tuple[int, int]]:
    """Which of the boxes cover each other, by their places."""
    return [(i, j) for i, j in itertools.combinations(range(len(boxes)), 2) if _covered(boxes[i], boxes[j : j + 1])]


def renderer_of(axes: Axes) -> RendererAgg:
    """What measures the texts of these axes."""
    canvas = axes.figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    return canvas.get_renderer()


def _place(
    at: np.ndarray,
    size: tuple[float, float],
    inside: np.ndarray,
    texts: np.ndarray,
    keep_free: np.ndarray,
    points: np.ndarray,
    beside: bool,
) -> tuple[np.ndarray, np.ndarray] | None:
    """A label's box and those of its line: the nearest where nothing is covered, else that of the least harm.

    None where it may only stand beside its point (`beside`) and there is no free place.
    """
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    radii = [radius for radius in _RADII if beside == (radius <= _BESIDE)]
    for radius, angle in itertools.product(radii, _ANGLES):
        box = _box(at, radius, angle, *size)
        if not (inside[0] <= box[0] and box[2] <= inside[2] and inside[1] <= box[1] and box[3] <= inside[3]):
            continue
        line = np.empty((0, 4)) if beside else line_boxes([at, _nearest(at, box)], half=1.0)
        harm = _HARM * _covered(box, texts) + _covered(box, keep_free)
        harm += _covered(line, texts) + _covered(line, points)
        if best is None or harm < best[0]:
            best = harm, box, line
        if harm == 0:
            break
    if beside:
        return None if best is None or best[0] > 0 else best[1:]
    return (_box(at, _RADII[0], 0, *size), np.empty((0, 4))) if best is None else best[1:]


def _covered(boxes: np.ndarray, others: np.ndarray) -> int:
    """How often a box of `boxes`, one or several, overlaps one of the others."""
    left, low, right, high = (boxes.reshape(-1, 4)[:, None, side] for side in range(4))
    met = (others[:, 0] < right) & (others[:, 2] > left) & (others[:, 1] < high) & (others[:, 3] > low)
    return int(met.sum())


def _nearest(at: np.ndarray, box: np.ndarray) -> tuple[float, float]:
    """The place of the box that is nearest to a point outside of it."""
    return min(max(at[0], box[0]), box[2]), min(max(at[1], box[1]), box[3])


def _around(places: np.ndarray, half: float) -> np.ndarray:
    return np.concatenate([places - half, places + half], axis=1)


def _box(at: np.ndarray, radius: float, angle: float, width: float, height: float) -> np.ndarray:
    """A text's box whose nearest edge or corner is `radius` from the point, seen at `angle`."""
    dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x, y = at[0] + radius * dx, at[1] + radius * dy
    left = x if dx > 0.3 else x - width if dx < -0.3 else x - width / 2
    low = y - height / 2 + (height / 2) * (0 if abs(dy) < 0.3 else math.copysign(1, dy))
    return np.array([left - _MARGIN, low - _MARGIN, left + width + _MARGIN, low + height + _MARGIN])
