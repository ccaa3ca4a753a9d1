"""A job end to end: rows a second, where the seconds go, and the memory it takes at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from ..reports.rows import OURS
from .style import GREY, INK, colours, labelled, new_figure, plain

__all__ = ["Job", "jobs"]


@dataclass(frozen=True)
class Job:
    """One way to do the job.

    Attributes:
        system: its name.
        rows_per_second: from the first row read to the last one written.
        start_seconds: of the process, outside of that: imports, loading the model.
        seconds: from the first row read to the last one written.
        peak_mib: largest resident memory of the process.
    """

    system: str
    rows_per_second: float
    start_seconds: float
    seconds: float
    peak_mib: float


def jobs(title: str, below: str, found: Sequence[Job]) -> Figure:
    """Three panels, one line a system, the fastest first."""
    ordered = sorted(found, key=lambda job: -job.rows_per_second)
    names = [job.system for job in ordered]
    shades = [colours(names)[name] for name in names]
    figure = new_figure(2.9 + 0.62 * len(ordered), title, below)
    rate, seconds, memory = figure.subplots(1, 3, sharey=True)
    rate.barh(names, [job.rows_per_second for job in ordered], color=shades, height=0.66)
    seconds.barh(names, [job.start_seconds for job in ordered], color=GREY, height=0.66, label="start")
    starts = [job.start_seconds for job in ordered]
    seconds.barh(names, [job.seconds for job in ordered], left=starts, color=shades, height=0.66, label="rows")
    memory.barh(names, [job.peak_mib for job in ordered], color=shades, height=0.66)
    for place, job in enumerate(ordered):
        whole = job.start_seconds + job.seconds
        told = f"{job.start_seconds:.1f} + {job.seconds:.1f} s"
        for axes, x, text in (
            (rate, job.rows_per_second, f"{job.rows_per_second:,.0f}"),
            (seconds, whole, told),
            (memory, job.peak_mib, f"{job.peak_mib:,.0f} MiB"),
        ):
            axes.annotate(
                text, (x, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=12.5,
                color=INK, fontweight="bold" if job.system.startswith(OURS) else "normal",
            )  # fmt: skip
    rate.invert_yaxis()
    for axes, most in (
        (rate, max(job.rows_per_second for job in ordered)),
        (seconds, max(job.start_seconds + job.seconds for job in ordered)),
        (memory, max(job.peak_mib for job in ordered)),
    ):
        plain(axes)
        axes.tick_params(axis="y", length=0, labelsize=12.5)
        axes.set_xlim(0, most * 1.42)
    labelled(rate, "rows/s, start left out", title="speed")
    labelled(seconds, "seconds of the process", title="start (grey) and rows")
    labelled(memory, "MiB resident at most", title="memory")
    return figure
