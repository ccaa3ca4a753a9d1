"""report.md from report.json: what a reader wants to know first, then every figure.

A figure that was not measured is the words "not measured", never a zero or a dash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .markdown_models import generate_section, models_section, sanitizer_section
from .markdown_table import NOT_MEASURED, Cases, number, table

__all__ = ["render"]


def render(report: Mapping[str, Any]) -> str:
    """The whole report as Markdown."""
    machine = report["machine"]
    lines = [f"# GPU report: {machine['gpu']}", ""]
    if report["dry"]:
        lines += ["A dry run: tiny sizes through the interpreter on a CPU. It shows that all of it runs.", ""]
    lines += [f"Written {report['written']} by `make gpu-report`. `report.json` has every figure.", ""]
    lines += table(("", ""), [(name, value) for name, value in machine.items() if name != "gpu"])
    sections = {
        "correctness": _correctness,
        "attention": _attention,
        "fused": _fused,
        "models": models_section,
        "generate": generate_section,
        "tune": _tune,
        "sanitizer": sanitizer_section,
        "profile": _profile,
    }
    for name, part in report["parts"].items():
        lines += ["", f"## {name}", "", _state(part), ""]
        lines += sections[name](part["cases"])
        lines += _not_ok(part)
    lines += ["", "## Kernels", "", "Hashes of the kernels' code, without comments and docstrings:", ""]
    lines += table(("file", "hash"), report["kernel_hashes"].items())
    return "\n".join(lines) + "\n"


def _state(part: Mapping[str, Any]) -> str:
    states = [figures["status"] for figures in part["cases"].values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no case has a result"
    return f"{counts}; {part['seconds']:.0f} s." if part["complete"] else f"{counts}; **not complete**."


def _not_ok(part: Mapping[str, Any]) -> list[str]:
    """A line for everything that has no sound result, so that nothing is missing in silence."""
    lines = [
        f"- **{name}**: {figures['status']}: {figures.get('reason', 'no reason given')}"
        for name, figures in part["cases"].items()
        if figures["status"] != "ok"
    ]
    lines += [f"- **{name}**: not run{', for want of time' if not part['failure'] else ''}" for name in part["not_run"]]
    if part["failure"]:
        lines.append(f"- **the part itself**: {part['failure']}")
    return ["", *lines] if lines else []


def _correctness(cases: Cases) -> list[str]:
    """One row for each kernel: its cases, the worst error in units of what is allowed, the repeats."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for name, figures in cases.items():
        groups.setdefault(name.split("/")[0], []).append(figures)
    rows = []
    for group, found in groups.items():
        checked = [figures for figures in found if "of_bound" in figures]
        worst = max((figures["of_bound"] for figures in checked), default=None)
        repeats = sum(figures["repeats"] for figures in checked)
        least = min((figures["repeats"] for figures in checked), default=NOT_MEASURED)
        differ = sum(figures["repeats_differ"] for figures in checked)
        sound = sum(figures["status"] == "ok" for figures in found)
        rows.append((group, len(found), sound, number(worst, 2), f"{repeats:,}", least, differ))
    head = (
        "kernel",
        "cases",
        "sound",
        "worst error / allowed",
        "repeats",
        "least of a case",
        "repeats with other bits",
    )
    return table(head, rows)


def _attention(cases: Cases) -> list[str]:
    ceilings = cases.get("ceilings", {})
    gemm, copy = ceilings.get("gemm_tflops"), ceilings.get("copy_gbps")
    measured = f"{number(gemm, 0)} TFLOP/s in a bf16 matrix product, {number(copy, 0)} GB/s in a copy"
    lines = [f"The card's ceilings in this run: {NOT_MEASURED if gemm is None else measured}.", ""]
    compared = {name: figures for name, figures in cases.items() if "timed" in figures and name != "ceilings"}
    lines += table(
        ("case", "padless", "of ceiling", "against", "times as fast", "target on an H200"),
        [_compared(name, figures, gemm) for name, figures in compared.items()],
    )
    lines += ["", "Every kernel, median and p20 to p80 of the device's time:", ""]
    lines += table(
        ("case", "kernel", "µs", "p20 to p80", "rate", "host µs", "padless is … times as fast"),
        [row for name, figures in compared.items() for row in _timed(name, figures)],
    )
    missing = Counter((peer, why) for figures in compared.values() for peer, why in figures.get("absent", {}).items())
    lines += ["", *(f"- {peer}, left out of {count}: {why}" for (peer, why), count in sorted(missing.items()))]
    return lines


def _compared(name: str, figures: Mapping[str, Any], gemm: float | None) -> Sequence[Any]:
    ours = figures["timed"].get("padless")
    if ours is None:
        return name, NOT_MEASURED, NOT_MEASURED, NOT_MEASURED, NOT_MEASURED, _target(figures)
    if "gbps" in ours:
        share, against, ratio = figures["of_copy"], "a copy of as many bytes", figures["of_copy"]
    else:
        share = ours["tflops"] / gemm if gemm else None
        group = name.split("/")[0]
        against = {"mixed": "itself at equal lengths", "bias": "itself without bias"}.get(group)
        against, ratio = against or figures.get("best_peer", "no peer is there"), figures.get("ratio")
    percent = NOT_MEASURED if share is None else f"{100 * share:.0f} %"
    return name, _rate(ours), percent, against, number(ratio, 2), _target(figures)


def _target(figures: Mapping[str, Any]) -> str:
    """The aim of this case and, where it was measured, whether it was met."""
    ours = figures.get("timed", {}).get("padless") or {}
    for key, unit, reached in (
        ("target_tflops", "TFLOP/s", ours.get("tflops")),
        ("target_ratio", "times", _ratio_for_target(figures)),
        ("target_of_copy", "of the copy", figures.get("of_copy")),
        ("target_of_product", "of the product alone", figures.get("of_product")),
        ("target_gbps", "GB/s", ours.get("gbps")),
    ):
        if key in figures:
            verdict = "" if reached is None else ", met" if reached >= figures[key] else ", missed"
            return f"{figures[key]:g} {unit}{verdict}"
    return ""


def _ratio_for_target(figures: Mapping[str, Any]) -> float | None:
    """Against the best of flash-attn and torch varlen where those are the peers; else the case's own ratio."""
    rivals = [
        row["ratio"]
        for name, row in figures.get("timed", {}).items()
        if row is not None and name.startswith(("flash-attn", "torch varlen"))
    ]
    return min(rivals) if rivals and "best_peer" in figures else figures.get("ratio")


def _timed(name: str, figures: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    for kernel, row in figures["timed"].items():
        if row is None:
            yield name, kernel, *([NOT_MEASURED] * 5)
        else:
            times = row["us"]
            spread = f"{times['p20']:,.1f} to {times['p80']:,.1f}"
            yield name, kernel, f"{times['median']:,.1f}", spread, _rate(row), row["host_us"], row.get("ratio", "")


def _rate(row: Mapping[str, Any]) -> str:
    return f"{row['gbps']:,.0f} GB/s" if "gbps" in row else f"{row['tflops']:.0f} TFLOP/s"


def _fused(cases: Cases) -> list[str]:
    ceilings = cases.get("ceilings", {})
    gemm, copy = ceilings.get("gemm_tflops"), ceilings.get("copy_gbps")
    measured = f"{number(gemm, 0)} TFLOP/s in a bf16 matrix product, {number(copy, 0)} GB/s in a copy"
    lines = [f"The card's ceilings in this run: {NOT_MEASURED if gemm is None else measured}.", ""]
    checked = {name: figures for name, figures in cases.items() if "of_bound" in figures}
    lines += table(
        ("case", "worst error / allowed", "repeats with other bits", "padless", "tokens/s", "target on an H200"),
        [_fused_row(name, figures) for name, figures in checked.items()],
    )
    lines += ["", "Every call, median and p20 to p80 of the device's time:", ""]
    return lines + table(
        ("case", "call", "µs", "p20 to p80", "rate", "host µs", "padless is … times as fast"),
        [row for name, figures in checked.items() if "timed" in figures for row in _timed(name, figures)],
    )


def _fused_row(name: str, figures: Mapping[str, Any]) -> Sequence[Any]:
    ours = figures.get("timed", {}).get("padless")
    rate = NOT_MEASURED if ours is None else _rate(ours)
    tokens = number(figures.get("tokens_per_second"), 0)
    return name, number(figures["of_bound"], 2), figures["repeats_differ"], rate, tokens, _target(figures)


def _tune(cases: Cases) -> list[str]:
    rows = []
    for name, figures in cases.items():
        if figures["status"] == "ok":
            gain = figures.get("gain")
            rows.append((name, figures["shipped"], figures["best"] or NOT_MEASURED, number(gain, 3),
                         figures["tried"], len(figures["refused"]), figures["untried"]))  # fmt: skip
    head = ("call", "shipped", "fastest", "times as fast as shipped", "tried", "refused", "not tried")
    return table(head, rows)


def _profile(cases: Cases) -> list[str]:
    lines: list[str] = []
    for name, figures in cases.items():
        if "profile" in figures:
            lines += [f"### {name}", "", "```text", *figures["profile"], "```", ""]
    return lines
