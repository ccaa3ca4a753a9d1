"""The facts of a run as tables: on the screen, and as Markdown.

A system that failed its check keeps its line, with its cosine and the reason, and has no figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .measure import Measurement, ModelReport
from .mobilebert import AgainstBert
from .systems import BASELINE

__all__ = ["machine_line", "markdown", "screen"]

_NOTE_ON_RANDOM_WEIGHTS = (
    "Seeded random weights have the shape of the published ones, and so their speed; their cosines say that all "
    "systems compute the same, and nothing of what a dtype does to a trained checkpoint, int8 least of all."
)


def screen(report: ModelReport, repeats: int) -> str:
    """One model's table, for a terminal."""
    timed = _is_latency(report)
    head = f"{'system':<22} {'dtype':<9} {'tok/s':>8} {'p20':>8} {'p80':>8} {'ratio':>7} {'padding':>8} {'cosine':>9}"
    lines = ["", _title(report, repeats), head + (f" {'ms p50':>8} {'ms p80':>8}" if timed else "")]
    measured = {row.label: row for row in report.systems}
    for label in report.order:
        name, dtype = label.split()
        start = f"{name:<22} {dtype:<9} "
        if label in measured:
            row, speed = measured[label], measured[label].tokens_per_second
            line = (
                f"{speed.median:>8,.0f} {speed.p20:>8,.0f} {speed.p80:>8,.0f} {row.ratio.median:>6.2f}x "
                f"{row.padding_factor:>8.3f} {row.check.lowest_cosine:>9.6f}"
            )
            if row.latency_ms is not None:
                line += f" {row.latency_ms.median:>8.1f} {row.latency_ms.p80:>8.1f}"
            lines.append(start + line)
        elif label in report.failed:
            blank = f"{'-':>8} {'-':>8} {'-':>8} {'-':>7} {'-':>8} {report.checks[label].lowest_cosine:>9.6f}"
            lines.append(f"{start}{blank}  fails: {report.failed[label]}")
        else:
            lines.append(f"{start}not run: {report.left_out[label]}")
    for ceiling in report.gemm_ceiling:
        each = ", ".join(f"{name} {value:.2f}" for name, value in ceiling.teraflops.items())
        lines.append(f"GEMMs alone, {ceiling.dtype}: {ceiling.tokens_per_second:,.0f} tok/s (TFLOP/s: {each})")
    return "\n".join(lines)


def markdown(reports: Sequence[ModelReport], against: AgainstBert | None, machine: str, repeats: int) -> str:
    """All models: an overview with a row for each system where there are several, and a table for each model."""
    blocks = []
    if len(reports) > 1:
        blocks.append(_overview(reports))
    for report in reports:
        blocks.append(f"### {report.model}\n\n{_title(report, repeats)}.\n\n{_details(report)}")
    if against is not None:
        blocks.append("\n".join(f"- {sentence}." for sentence in against.sentences()))
    if any(report.weights == "seeded random" for report in reports):
        blocks.append(_NOTE_ON_RANDOM_WEIGHTS)
    blocks.append(machine)
    return "\n\n".join(blocks) + "\n"


def machine_line(report: dict[str, Any]) -> str:
    """Hardware, threads, commit and versions of a whole run, from its JSON."""
    machine = report["machine"]
    rows = [row for model in report["models"] for row in model["systems"]]
    versions = {name: version for row in rows for name, version in row["versions"].items()}
    return (
        f"{machine['cpu']} ({', '.join(machine['features']) or 'no vector extensions known'}), "
        f"{machine['threads']} threads of {machine['cpus']} CPUs, Python {machine['python']}, "
        f"commit {machine['commit']}; " + ", ".join(f"{name} {version}" for name, version in versions.items())
    )


def _title(report: ModelReport, repeats: int) -> str:
    work = report.workload
    cut = "" if work["texts"] == work["whole"] else f" of {work['whole']:,}"
    return (
        f"{report.model} ({report.weights} weights, {report.mflop_per_token:.1f} MFLOP a token), {work['name']}: "
        f"{work['texts']:,}{cut} texts, {report.tokens:,} tokens ({work['source']}); {repeats} interleaved rounds"
    )


def _overview(reports: Sequence[ModelReport]) -> str:
    labels = list(dict.fromkeys(label for report in reports for label in report.order))
    lines = [
        f"Real tokens a second, and how many times faster than {BASELINE} in its round:",
        "",
        _row(["system", *(report.model for report in reports)]),
        _row(["---", *("---:" for _ in reports)]),
    ]
    lines += [_row([_named(label), *(_overview_cell(report, label) for report in reports)]) for label in labels]
    return "\n".join(lines)


def _overview_cell(report: ModelReport, label: str) -> str:
    row = _measured(report, label)
    if row is not None:
        return _bold(label, f"{row.tokens_per_second.median:,.0f} ({row.ratio.median:.2f}x)")
    if label in report.failed:
        return f"fails, cosine {report.checks[label].lowest_cosine:.3f}"
    return "not run"


def _details(report: ModelReport) -> str:
    timed = _is_latency(report)
    columns = ["system", "tokens/s", "p20 to p80", "ratio", "padding", "lowest cosine"]
    columns += ["ms a text, p50", "p80"] if timed else []
    lines = [_row(columns), _row(["---", *("---:" for _ in columns[1:])])]
    for label in report.order:
        row = _measured(report, label)
        if row is not None:
            speed = row.tokens_per_second
            cells = [
                f"{speed.median:,.0f}",
                f"{speed.p20:,.0f} to {speed.p80:,.0f}",
                f"{row.ratio.median:.2f}x",
                f"{row.padding_factor:.2f}",
                f"{row.check.lowest_cosine:.6f}",
            ]
            if row.latency_ms is not None:
                cells += [f"{row.latency_ms.median:.1f}", f"{row.latency_ms.p80:.1f}"]
            lines.append(_row([_named(label), *(_bold(label, cell) for cell in cells)]))
        elif label in report.failed:
            cells = ["none: fails its check", "", "", "", f"**{report.checks[label].lowest_cosine:.6f}**"]
            lines.append(_row([_named(label), *cells, *([""] * (2 * timed))]))
        else:
            lines.append(_row([_named(label), "not run", "", "", "", "", *([""] * (2 * timed))]))
    notes = [f"- {label}: {reason}." for label, reason in {**report.failed, **report.left_out}.items()]
    notes += [
        f"- GEMMs alone, {ceiling.dtype}: {ceiling.tokens_per_second:,.0f} tokens/s." for ceiling in report.gemm_ceiling
    ]
    return "\n".join([*lines, "", *notes])


def _measured(report: ModelReport, label: str) -> Measurement | None:
    return next((row for row in report.systems if row.label == label), None)


def _is_latency(report: ModelReport) -> bool:
    return any(row.latency_ms is not None for row in report.systems)


def _named(label: str) -> str:
    return _bold(label, label)


def _bold(label: str, text: str) -> str:
    return f"**{text}**" if label.startswith("padless ") else text


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
