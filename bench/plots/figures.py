"""The pictures of a report, chosen by its kind.

kernels      roofline_<dtype>.png, kernels_<dtype>.png (…_2.png where one page is too small), lengths.png
models       models_<n>.png, padding_<n>.png for each workload, lengths.png
generate     generate_<n>.png
jobs         jobs.png
gpu-report   ceilings.png, attention.png, fused.png, lengths.png
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ...engine.errors import InputError
from ..reports.fields import Node
from ..reports.report import Report, check_report
from ..reports.rows import OURS, Row, rows_of
from .bars import Group, bars, group_rows, pages, shortened
from .jobs import Job, jobs
from .lengths import families, lengths
from .padding import padding
from .roofline import Point, roofline
from .shares import Share, shares
from .style import save, subtitle

__all__ = ["draw", "figures"]

BEST_PEER = "the fastest peer"
MOST_NAMES = 20
"""Of points in a roofline."""


def draw(report: dict[str, Any], folder: Path) -> list[Path]:
    """Draw a report into `folder`, which is made if it is not there.

    Args:
        report: of a kind and schema in `reports/report.py`.
        folder: where the PNG go; those of the same names are replaced.

    Returns:
        The files. None for a report without a figure, which is said in a line on standard output.

    Raises:
        InputError: a field is missing or of another type, or the folder cannot be written to.
    """
    found = check_report(report)
    drawn = list(figures(found))
    if not drawn:
        print(f"no picture: the {found.where} holds no figure")
        return []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [save(figure, folder / f"{name}.png") for name, figure in drawn]
    except OSError as error:
        raise InputError(f"{folder}: expected a folder for pictures, {error.strerror or error}") from error


def figures(report: Report) -> Iterator[tuple[str, Figure]]:
    """The pictures of a report by the names of their files, without `.png`."""
    rows = rows_of(report)
    if rows:
        yield from _KINDS[report.kind](report, rows)


def _kernels(report: Report, rows: Sequence[Row]) -> Iterator[tuple[str, Figure]]:
    ceilings = report.root.node("ceilings")
    for dtype in dict.fromkeys(row.dtype for row in rows):
        below = subtitle(report, dtype)
        of_dtype = [row for row in rows if row.dtype == dtype]
        groups = [_renamed(group, group.name.removesuffix(f", {dtype}")) for group in group_rows(of_dtype)]
        points = list(_points(of_dtype))
        if points:
            tflops, gbps = ceilings.node("tflops").number(dtype), ceilings.number("gbps")
            title = "padless kernels under the roofline"
            yield f"roofline_{dtype}", roofline(title, below, _labelled(points, of_dtype), tflops, gbps)
        # The first picture has a case of each op; where there are more, each op has pages of its own.
        yield from _paged(f"kernels_{dtype}", "Kernels against their peers", below, _of_largest(groups))
        for op in dict.fromkeys(row.group for row in rows):
            found = [group for group in groups if group.systems[0].row.group == op]
            if len(found) > 1:
                yield from _paged(f"kernels_{op}_{dtype}", f"{op} against its peers", below, found)
    yield from _lengths(report, rows, "Throughput over length")


def _largest(rows: Sequence[Row]) -> set[str]:
    """Of each op the case with the most FLOPs, or bytes."""
    best: dict[str, Row] = {}
    for row in rows:
        held = best.setdefault(row.group, row)
        if (row.flops or 0.0, row.bytes or 0.0) > (held.flops or 0.0, held.bytes or 0.0):
            best[row.group] = row
    return {row.case for row in best.values()}


def _of_largest(groups: Sequence[Group]) -> list[Group]:
    largest = _largest([group.systems[0].row for group in groups])
    return [group for group in groups if group.systems[0].row.case in largest]


def _labelled(points: Sequence[Point], rows: Sequence[Row]) -> list[Point]:
    """Every point named, or where they are too many for that, of each op the largest case."""
    if len(points) <= MOST_NAMES:
        return list(points)
    named = {case.removesuffix(f", {rows[0].dtype}") for case in _largest(rows)}
    return [point if point.name in named else replace(point, name="") for point in points]


def _models(report: Report, rows: Sequence[Row]) -> Iterator[tuple[str, Figure]]:
    drawn: set[str] = set()
    models = report.root.items("models")
    for place, model in enumerate(models, 1):
        workload = model.node("workload")
        name, source = model.text("model"), workload.text("name")
        found = [row for row in rows if row.case == f"{name}, {source}"]
        if not found:
            continue
        below = subtitle(report, f"{source}: {workload.number('texts'):,.0f} texts", _dtypes(found))
        systems = {(row.case, row.label): node for row, node in zip(found, model.items("systems"), strict=True)}
        ratios = {key: node.spread("ratio") for key, node in systems.items()}
        baseline = min(systems, key=lambda key: abs(ratios[key].median - 1.0))[1]
        suffix = f"_{place}" if len(models) > 1 else ""
        groups = group_rows(found, ratios)
        yield f"models{suffix}", bars(f"{name}: texts in, vectors out", below, groups, baseline, dtype_in_label=True)
        if source not in drawn:
            drawn.add(source)
            factors: dict[str, float] = {}
            for node in systems.values():
                factors[node.text("system")] = max(factors.get(node.text("system"), 1.0), node.number("padding_factor"))
            title = "Padding: what is computed for nothing"
            yield f"padding{suffix}", padding(title, below, factors, _workload_lengths(workload, found[0].tokens))
    yield from _lengths(report, rows, "Throughput over length", "mean tokens of a text", dtype_in_label=True)


def _generate(report: Report, rows: Sequence[Row]) -> Iterator[tuple[str, Figure]]:
    return _against_baseline(report, rows, "generate", "tokens written")


def _accelerate(report: Report, rows: Sequence[Row]) -> Iterator[tuple[str, Figure]]:
    return _against_baseline(report, rows, "accelerate", "padded batches, with one line and without")


def _against_baseline(report: Report, rows: Sequence[Row], stem: str, what: str) -> Iterator[tuple[str, Figure]]:
    """A picture a model: its systems beside the one that the report names as its baseline."""
    models = report.root.items("models")
    for place, model in enumerate(models, 1):
        name, workload = model.text("model"), model.node("workload").text("name")
        found = [row for row in rows if row.case == f"{name}, {workload}"]
        nodes = zip(found, model.items("systems"), strict=True)
        ratios = {(row.case, row.label): node.spread("ratio") for row, node in nodes}
        if not found:
            continue
        suffix = f"_{place}" if len(models) > 1 else ""
        below = subtitle(report, workload, _dtypes(found))
        baseline, groups = report.root.text("baseline"), group_rows(found, ratios)
        yield f"{stem}{suffix}", bars(f"{name}: {what}", below, groups, baseline, dtype_in_label=True)


def _jobs(report: Report, rows: Sequence[Row]) -> Iterator[tuple[str, Figure]]:
    found = [
        Job(
            row.system,
            row.value.median,
            node.spread("start_seconds").median,
            node.spread("seconds").median,
            node.spread("peak_rss_mib").median,
        )
        for row, node in zip(rows, report.root.items("systems"), strict=True)
    ]
    yield (
        "jobs",
        jobs(
            "A Parquet file in, vectors out",
            subtitle(report, rows[0].case.removesuffix(f", {rows[0].dtype}"), rows[0].dtype),
            found,
        ),
    )


def _gpu(report: Report, rows: Sequence[Row]) -> Iterator[tuple[str, Figure]]:
    below = subtitle(report, _dtypes(rows))
    found = [share for part in ("attention", "fused") for share in _shares(report, part, rows)]
    if found:
        yield "ceilings", shares("padless kernels beside the card's ceilings", below, found)
    for part in ("attention", "fused"):
        groups = shortened(group_rows([row for row in rows if row.group == part]), 1)
        if groups:
            # One picture a part: of the peers the fastest, and of the cases those that one page holds.
            page = [_renamed(group, group.name.removeprefix(f"{part}: ")) for group in pages(groups, most=44)[0]]
            what = "Attention" if part == "attention" else "Fused kernels"
            yield part, bars(f"{what} beside their fastest peers", below, page, BEST_PEER)
    yield from _lengths(report, rows, "Attention over length")


_KINDS: dict[str, Callable[[Report, Sequence[Row]], Iterator[tuple[str, Figure]]]] = {
    "kernels": _kernels,
    "models": _models,
    "generate": _generate,
    "accelerate": _accelerate,
    "jobs": _jobs,
    "gpu-report": _gpu,
}


def _paged(name: str, title: str, below: str, groups: Sequence[Group]) -> Iterator[tuple[str, Figure]]:
    for place, page in enumerate(pages(groups), 1):
        yield f"{name}_{place}" if place > 1 else name, bars(title, below, page, BEST_PEER)


def _lengths(
    report: Report,
    rows: Sequence[Row],
    title: str,
    length: str = "tokens of a text",
    *,
    dtype_in_label: bool = False,
) -> Iterator[tuple[str, Figure]]:
    found = families(rows, dtype_in_label=dtype_in_label)
    if found:
        yield "lengths", lengths(title, subtitle(report, _dtypes(rows)), found, length)


def _points(rows: Sequence[Row]) -> Iterator[Point]:
    """Each case of padless that has FLOPs and bytes."""
    for ours in rows:
        if ours.system == OURS and ours.flops and ours.bytes:
            rates = [ours.flops / row.value.median / 1e6 for row in rows if row.case == ours.case and row.peer]
            name = ours.case.removesuffix(f", {ours.dtype}")
            yield Point(name, ours.flops / ours.bytes, ours.flops / ours.value.median / 1e6, max(rates, default=None))


def _shares(report: Report, part: str, rows: Sequence[Row]) -> Iterator[Share]:
    parts = report.root.nodes("parts")
    node = parts.get(part)
    ceilings = None if node is None else node.nodes("cases").get("ceilings")
    for row in rows:
        if ceilings is None or row.group != part or row.system != OURS:
            continue
        name = row.case.removeprefix(f"{part}: ")
        if row.tflops is not None and ceilings.has("gemm_tflops") and row.dtype == "bfloat16":
            yield Share(name, row.tflops, ceilings.number("gemm_tflops"), "TFLOP/s")
        elif row.gbps is not None and ceilings.has("copy_gbps"):
            yield Share(name, row.gbps, ceilings.number("copy_gbps"), "GB/s")


def _dtypes(rows: Sequence[Row]) -> str:
    return ", ".join(dict.fromkeys(row.dtype for row in rows))


def _renamed(group: Group, name: str) -> Group:
    return Group(name, group.systems)


def _workload_lengths(workload: Node, tokens: float | None) -> np.ndarray | None:
    """Tokens of each text in the order they came: as the report has them, else of the seeded workload, if it is that.

    A workload whose corpus is not installed, which was cut, or which another tokenizer counted, has no such picture.
    """
    stated = workload.tree.get("lengths")
    if isinstance(stated, list) and stated and all(isinstance(length, int) for length in stated):
        return np.array(stated, dtype=np.int64)
    from ..workloads import WORKLOADS, default_model, load_workload

    if workload.text("name") not in WORKLOADS:
        return None
    try:
        lengths = load_workload(workload.text("name"), default_model()).lengths
    except InputError:
        return None
    # The report does not say to how many tokens the model cuts a text; its sum does.
    cuts = (np.minimum(lengths, most) for most in (lengths.max(), 128, 256, 384, 512))
    return next((cut for cut in cuts if cut.sum() == tokens), None)
