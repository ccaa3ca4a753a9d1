"""What `padless bench kernels` prints: a block for each case as it is done, and a summary at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["case_block", "summary"]

_HEAD = (
    f"  {'system':<15}{'us':>12}{'p20':>12}{'p80':>12}{'ratio':>9}{'TFLOP/s':>10}{'GB/s':>9}{'of ceiling':>12}"
    f"{'peak MiB':>10}"
)


def case_block(case: Mapping[str, Any], place: int, count: int) -> str:
    """One case: a line for every system that was timed, and for every one that failed its check.

    Args:
        case: as in the report.
        place: its number, from 1 on, of `count`.
    """
    texts = "text" if case["texts"] == 1 else "texts"
    size = f"{case['tokens']:,} tokens in {case['texts']:,} {texts} of up to {case['longest']:,}"
    lines = [
        "",
        f"[{place}/{count}] {case['op']}: {case['case']}; {case['lengths']}: {size}; {case['dtype']}",
    ]
    if case["systems"]:
        lines.append(_HEAD)
    for system in case["systems"]:
        star = " *" if system["system"] == case["chosen"] else ""
        us, peak = system["us"], system["peak_bytes"]
        ratio = "-" if system["ratio"] is None else f"{system['ratio']:.2f}x"
        lines.append(
            f"  {system['system'] + star:<15}{us['median']:>12,.1f}{us['p20']:>12,.1f}{us['p80']:>12,.1f}"
            f"{ratio:>9}{_rate(system['tflops']):>10}{_rate(system['gbps']):>9}{system['of_ceiling']:>12.0%}"
            f"{'-' if peak is None else f'{peak / 2**20:,.1f}':>10}"
        )
    lines += [f"  {name:<15}no number: {reason}" for name, reason in case["failed"].items()]
    return "\n".join(lines)


def summary(report: Mapping[str, Any]) -> str:
    """Who was left out and why, how many cases failed, the ceilings and the machine."""
    cases: Sequence[Mapping[str, Any]] = report["cases"]
    absent: dict[tuple[str, str], int] = {}
    for case in cases:
        for name, reason in case["left_out"].items():
            absent[name, reason] = absent.get((name, reason), 0) + 1
    lines = ["", "Left out:"] if absent else []
    for (name, reason), count in sorted(absent.items()):
        lines.append(f"  {name:<15}{count:>4} {'case ' if count == 1 else 'cases'}  {reason}")
    timed = sum(len(case["systems"]) for case in cases)
    failed = [f"{name} in {case['op']} {case['case']}" for case in cases for name in case["failed"]]
    lines += ["", f"{len(cases)} cases, {timed} figures, each of a checked result; {len(failed)} failed checks"]
    lines += [f"  failed: {place}" for place in failed]
    lines.append(f"ratio: times faster than {report['baseline']}, by rounds; * is the row that padless chooses")
    ceilings, machine = report["ceilings"], report["machine"]
    products = ", ".join(f"{value:.2f} TFLOP/s in {dtype}" for dtype, value in ceilings["tflops"].items())
    lines.append(f"ceilings: large products {products}; a large copy {ceilings['gbps']:.1f} GB/s")
    gpu = f"{machine['gpu']}; " if "gpu" in machine else ""
    lines.append(
        f"{gpu}{machine['cpu']} ({', '.join(machine['features']) or 'no vector extensions known'}), "
        f"{machine['threads']} threads of {machine['cpus']} CPUs, Python {machine['python']}, "
        f"torch {machine['torch']}, commit {machine['commit']}"
    )
    return "\n".join(lines)


def _rate(value: float) -> str:
    return "-" if value == 0 else f"{value:.3g}" if value < 100 else f"{value:,.0f}"
