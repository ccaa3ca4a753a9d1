"""The sections of report.md about whole models, about writing and about compute-sanitizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .markdown_table import NOT_MEASURED, Cases, number, table

__all__ = ["generate_section", "models_section", "sanitizer_section"]

OURS = "padless"
FAST, SLOW = "MobileBERT", "BERT-base"


def models_section(cases: Cases) -> list[str]:
    """Against the best peer, every system, MobileBERT beside BERT-base, and who was left out."""
    gemm = cases.get("ceilings", {}).get("gemm_tflops")
    ceiling = NOT_MEASURED if gemm is None else f"{number(gemm, 0)} TFLOP/s in a bf16 matrix product"
    lines = [f"From token ids on the host to vectors on the host. The card's ceiling in this run: {ceiling}.", ""]
    found = {name: figures for name, figures in cases.items() if "timed" in figures and name != "ceilings"}
    rates = {name: figures for name, figures in found.items() if not figures["latency"]}
    waits = {name: figures for name, figures in found.items() if figures["latency"]}
    lines += table(
        ("model and workload", "padless, tokens/s", "of ceiling", "against", "times as fast"),
        [_compared(name, figures, gemm) for name, figures in rates.items()],
    )
    lines += ["", "A batch of one text, in milliseconds:", ""]
    lines += table(
        ("model and workload", "padless", "with CUDA graphs", "best peer", "times as fast", "with CUDA graphs"),
        [_waited(name, figures) for name, figures in waits.items()],
    )
    if ratios := list(_mobile(found)):
        lines += ["", f"{FAST} beside {SLOW}, both by padless:", ""]
        lines += table(("workload", f"times {SLOW}'s speed"), ratios)
    lines += [
        "",
        "Every system; cosines are those of the worst text to eager in fp32, as it is and without the texts' mean:",
        "",
    ]
    lines += table(
        ("model and workload", "system", "ms", "p20 to p80", "tokens/s", "padding", "peak GiB", "cosine",
         "padless is … times as fast"),
        [row for name, figures in found.items() for row in _systems(name, figures)],
    )  # fmt: skip
    missing = Counter((peer, why) for figures in found.values() for peer, why in figures.get("absent", {}).items())
    return [*lines, "", *(f"- {peer}, left out of {count}: {why}" for (peer, why), count in sorted(missing.items()))]


def _compared(name: str, figures: Mapping[str, Any], gemm: float | None) -> Sequence[Any]:
    ours = figures["timed"].get(OURS)
    if ours is None:
        return name, NOT_MEASURED, NOT_MEASURED, NOT_MEASURED, NOT_MEASURED
    share = NOT_MEASURED if gemm is None or "tflops" not in ours else f"{100 * ours['tflops'] / gemm:.0f} %"
    against = figures.get("best_peer", "no peer is there")
    return name, number(ours["tokens_per_second"], 0), share, against, number(figures.get("ratio"), 2)


def _waited(name: str, figures: Mapping[str, Any]) -> Sequence[Any]:
    timed = figures["timed"]

    def median(system: str | None) -> float | None:
        row = timed.get(system)
        return None if row is None else row["ms"]["median"]

    best = figures.get("best_peer")
    ours, graphs, theirs = median(OURS), median(f"{OURS}, CUDA graphs"), median(best)
    peer = NOT_MEASURED if theirs is None else f"{number(theirs, 3)} ({best})"
    times = [None if theirs is None or own is None else theirs / own for own in (ours, graphs)]
    return name, number(ours, 3), number(graphs, 3), peer, *(number(value, 2) for value in times)


def _mobile(found: Cases) -> Iterator[Sequence[Any]]:
    for name, figures in found.items():
        family, _, workload = name.partition("/")
        other = found.get(f"{SLOW}/{workload}")
        if family != FAST or other is None:
            continue
        for system in (OURS, f"{OURS}, CUDA graphs"):
            own, theirs = figures["timed"].get(system), other["timed"].get(system)
            if own is not None and theirs is not None:
                label = workload if system == OURS else f"{workload}, CUDA graphs"
                yield label, number(own["tokens_per_second"] / theirs["tokens_per_second"], 2)


def _systems(name: str, figures: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    for system, row in figures["timed"].items():
        if row is None:
            checked = figures.get("checked", {}).get(system, {})
            yield name, system, *([NOT_MEASURED] * 5), _cosines(checked), NOT_MEASURED
            continue
        times = row["ms"]
        spread = f"{times['p20']:,.3f} to {times['p80']:,.3f}"
        padding = "" if "padding" not in row else number(row["padding"], 2)
        memory = NOT_MEASURED if "peak_gib" not in row else number(row["peak_gib"], 2)
        yield (
            name, system, number(times["median"], 3), spread, number(row["tokens_per_second"], 0), padding, memory,
            _cosines(row), row["ratio"],
        )  # fmt: skip


def _cosines(row: Mapping[str, Any]) -> str:
    return f"{row['cosine']:.6f}, {row['apart']:.4f}" if "cosine" in row else NOT_MEASURED


def generate_section(cases: Cases) -> list[str]:
    """Every system that wrote, and who was left out."""
    found = {name: figures for name, figures in cases.items() if "timed" in figures}
    lines = ["Greedy, from padded ids on the device to what was written; every token in fp32 is transformers'.", ""]
    lines += table(
        ("model and texts", "system", "ms", "p20 to p80", "new tokens/s", "padless is … times as fast",
         "error of logits, of transformers'"),
        [row for name, figures in found.items() for row in _writers(name, figures)],
    )  # fmt: skip
    missing = Counter((peer, why) for figures in found.values() for peer, why in figures.get("absent", {}).items())
    return [*lines, "", *(f"- {peer}, left out of {count}: {why}" for (peer, why), count in sorted(missing.items()))]


def _writers(name: str, figures: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    for system, row in figures["timed"].items():
        errors = f"{figures['error']:.1e}, {figures['peer_error']:.1e}" if system.startswith(OURS) else ""
        if row is None:
            yield name, system, *([NOT_MEASURED] * 4), errors
            continue
        times = row["ms"]
        spread = f"{times['p20']:,.2f} to {times['p80']:,.2f}"
        yield (
            name, system, number(times["median"], 2), spread, number(row["tokens_per_second"], 0),
            number(row["ratio"], 2), errors,
        )  # fmt: skip


def sanitizer_section(cases: Cases) -> list[str]:
    """One row for each program that was watched, and what was found in it."""
    rows = [
        (name, len(figures.get("ran", ())), figures["found"], f"{figures.get('seconds', 0):.0f}")
        for name, figures in cases.items()
        if "found" in figures
    ]
    lines = table(("tool and kernels", "calls watched", "findings", "seconds"), rows)
    for name, figures in cases.items():
        for finding in figures.get("findings", ()):
            lines.append(f"- {name}: {finding['what']}, {finding['where']}")
    return lines if not rows else [*lines[: len(rows) + 2], "", *lines[len(rows) + 2 :]]
