"""The index of the committed results, bench/results/README.md: what each says in one figure, and whether it is stale.

    make results-index     (python -m padless.bench.reports.index)

A result carries the hashes of the kernels it was made with. Where one is no longer that of the kernel's source, the
result is marked stale: its figures are of code that is gone. Tuned configurations are listed beside them; for those an
older kernel is provenance, no fault, since a configuration only ever points at one of today's candidates.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ...autotune.kernel_hash import kernel_hashes
from ...autotune.record import read_record
from ...engine.errors import PadlessError
from .report import Report, read_report
from .rows import OURS, Row, rows_of

__all__ = ["INDEX", "RESULTS", "SHIPPED", "main", "render"]

RESULTS = Path(__file__).resolve().parents[1] / "results"
INDEX = RESULTS / "README.md"
SHIPPED = RESULTS.parent.parent / "autotune" / "configs"

_BESIDE_A_REPORT = "configs.json"
"""What the GPU report leaves beside its report.json; the tilings it found, no report."""

_NO_REPORT = "tokenisation.json"
"""Speeds of tokenizers, which `docs/scaling.md` quotes."""

_HEAD = """# Results

The reports that figures of padless are quoted from. This page is generated: `make results-index`.

"""

_STALE = """
**stale**: measured with kernels whose code has changed since, in the modules named. "current": all hashes are those of
today's code. "none carried": the report names no kernels, as one of models on a CPU.
"""


def render(results: Path, configs: Path, hashes: Mapping[str, str]) -> str:
    """The index as Markdown, a function of the files alone.

    Args:
        results: folder of the reports, in any depth.
        configs: folder of the tuned configurations, `<target>/<op>.json`; need not be there.
        hashes: of today's kernels, by module.

    Raises:
        InputError: a file is not JSON, is no report, or lacks what its line says.
        RecordError: a file of tuned configurations is none.
    """
    rows = [_line(read_report(path), path.relative_to(results).as_posix(), hashes) for path in _reports(results)]
    lines = _table(("report", "kind", "machine", "date", "commit", "says", "kernels"), rows)
    text = _HEAD + ("\n".join(lines) + "\n" if rows else "No report is here yet.\n") + _STALE
    tuned = list(_tuned(configs, set(hashes.values())))
    if tuned:
        head = ("GPU", "op", "entries", "measured with other kernels")
        text += "\n## Tuned configurations\n\n" + "\n".join(_table(head, tuned)) + "\n"
    return text


def main() -> int:
    """Write the index; what cannot be read becomes one line and exit code 2."""
    try:
        INDEX.write_text(render(RESULTS, SHIPPED, kernel_hashes()), encoding="utf-8")
    except PadlessError as error:
        print("results_index:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    print(INDEX)
    return 0


def _reports(results: Path) -> list[Path]:
    found = [path for path in sorted(results.rglob("*.json")) if path.name != _NO_REPORT]
    return [path for path in found if path.name != _BESIDE_A_REPORT or not (path.parent / "report.json").is_file()]


def _line(report: Report, name: str, hashes: Mapping[str, str]) -> Sequence[str]:
    says = _SAYS[report.kind](report, rows_of(report))
    date, commit = report.written[:10], f"`{report.commit}`"
    return f"[{name}]({name})", report.kind, report.machine_name, date, commit, says, _state(report, hashes)


def _state(report: Report, hashes: Mapping[str, str]) -> str:
    if not report.hashes:
        return "none carried"
    changed = [module for module, value in sorted(report.hashes.items()) if hashes.get(module) != value]
    return f"**stale**: {', '.join(changed)}" if changed else "current"


def _kernels(report: Report, rows: Sequence[Row]) -> str:
    return _against_peers(rows)


def _models(report: Report, rows: Sequence[Row]) -> str:
    ours: list[tuple[float, Row]] = []
    baseline = ""
    for model in report.root.items("models"):
        labels = [f"{node.text('system')} {node.text('dtype')}" for node in model.items("systems")]
        ratios = dict(zip(labels, (node.spread("ratio").median for node in model.items("systems")), strict=True))
        case = f"{model.text('model')}, {model.node('workload').text('name')}"
        found = [(ratios[row.label], row) for row in rows if row.case == case and row.ours]
        if found:
            ours.append(max(found, key=lambda entry: entry[0]))
            baseline = min(ratios, key=lambda label: abs(ratios[label] - 1.0))
    if not ours:
        return "no figure of padless"
    if len(ours) > 1:
        times = sorted(ratio for ratio, _ in ours)
        return f"{len(ours)} cases; padless {times[0]:.2f} to {times[-1]:.2f} times as fast as {baseline}"
    ((ratio, row),) = ours
    return f"{row.case}: {row.label} {row.value.median:,.0f} tokens/s, {ratio:.2f} times {baseline}"


def _jobs(report: Report, rows: Sequence[Row]) -> str:
    nodes = zip(rows, report.root.items("systems"), strict=True)
    found = next(((row, node) for row, node in nodes if row.system == OURS), None)
    if found is None:
        return "no figure of padless"
    row, node = found
    overhead = f", {node.spread('overhead').median:.3f} s for each second of the model" if node.has("overhead") else ""
    return f"{row.case}: {row.value.median:,.0f} rows/s{overhead}"


def _gpu(report: Report, rows: Sequence[Row]) -> str:
    if report.root.tree.get("dry"):
        return "a dry run: nothing is measured"
    states = [
        case.text("status")
        for part in report.root.nodes("parts").values()
        if part is not None
        for case in part.nodes("cases").values()
        if case is not None
    ]
    return f"{states.count('ok')} of {len(states)} cases sound; {_against_peers(rows)}"


_SAYS: dict[str, Callable[[Report, Sequence[Row]], str]] = {
    "kernels": _kernels,
    "models": _models,
    "generate": _models,
    "accelerate": _models,
    "jobs": _jobs,
    "gpu-report": _gpu,
}


def _against_peers(rows: Sequence[Row]) -> str:
    """The geometric mean of padless' speed over the fastest peer's, over the cases that have both."""
    times = []
    for case in dict.fromkeys(row.case for row in rows):
        ours = [row for row in rows if row.case == case and row.system == OURS]
        peers = [row for row in rows if row.case == case and row.peer]
        if ours and peers:
            times.append(min(ours[0].speed_over(peer.value) for peer in peers))
    if not times:
        return "no case has a peer"
    mean = math.exp(sum(map(math.log, times)) / len(times))
    spread = f"{min(times):.2f} to {max(times):.2f}"
    return f"{mean:.2f} times the fastest peer, geometric mean of {len(times)} cases ({spread})"


def _tuned(configs: Path, current: set[str]) -> Iterator[Sequence[str]]:
    for path in sorted(configs.glob("*/*.json")):
        record = read_record(path, path.parent.name, path.stem)
        entries = () if record is None else record.entries
        others = sum(entry.provenance.kernel_hash not in current for entry in entries)
        yield path.parent.name, path.stem, str(len(entries)), str(others) if others else "none"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines]


if __name__ == "__main__":
    sys.exit(main())
