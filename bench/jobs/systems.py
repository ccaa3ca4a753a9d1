"""The ways to do the job of `bench jobs`, each a command in a process of its own.

padless                the command a user types: `padless embed`
padless, model only    the same texts, tokenised before, through the model: what nothing around it can beat
sentence-transformers  the script most people write (`script.py`)
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ...engine.errors import JobError
from ..machine import versions

__all__ = ["MODEL_ONLY", "SCRIPT", "SYSTEMS", "JobRun", "JobSystem", "run_system"]

MODEL_ONLY = "padless, model only"
SCRIPT = "sentence-transformers"


@dataclass(frozen=True)
class JobRun:
    """One run of one system.

    Attributes:
        seconds: from the first row read to the last vector written; of the model alone, its own.
        start_seconds: the rest of the process' time: Python, imports, loading the model, the end.
        peak_rss_mib: the most memory the process held.
        tokens: real tokens, where the system counts them.
        stages: seconds by stage, where the system states them; stages run at the same time, so that they do not add up.
    """

    seconds: float
    start_seconds: float
    peak_rss_mib: float
    tokens: int | None = None
    stages: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class JobSystem:
    """How a system is started, and where it leaves what.

    Attributes:
        command: of an input file, an empty folder, a model folder and a dtype.
        facts: file in the folder with its own seconds.
        vectors: float32 `[rows, dimension]` from the folder, in the order of the input.
        distributions: whose versions matter.
    """

    command: Callable[[Path, Path, Path, str], list[str]]
    facts: str
    vectors: Callable[[Path], np.ndarray]
    distributions: tuple[str, ...]

    def versions(self) -> dict[str, str]:
        """Distribution and version of what does the work."""
        return versions(*self.distributions)


def run_system(name: str, source: Path, folder: Path, model: Path, dtype: str) -> JobRun:
    """Run a system once.

    Args:
        name: a key of `SYSTEMS`.
        source: the Parquet file, columns `id` and `text`.
        folder: for what it writes; empty or absent.
        model: folder of the weights.
        dtype: what it computes in.

    Raises:
        JobError: it ended with another exit code than 0; its last line is told.
    """
    system = SYSTEMS[name]
    folder.mkdir(parents=True, exist_ok=True)
    outside = folder / "process.json"
    command = [sys.executable, "-m", "padless.bench.jobs.process", str(outside)]
    done = subprocess.run(
        [*command, *system.command(source, folder, model, dtype)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise JobError(f"{name}: ended with exit code {done.returncode}: {last}")
    process, facts = _read(outside), _read(folder / system.facts)
    seconds = float(facts["seconds"])
    return JobRun(
        seconds, process["seconds"] - seconds, process["peak_rss_mib"], facts.get("tokens"), _stages(facts)
    )  # fmt: skip


def _module(name: str, target: str) -> Callable[[Path, Path, Path, str], list[str]]:
    """A command of our own with five arguments."""
    return lambda source, folder, model, dtype: [
        sys.executable, "-m", f"padless.bench.jobs.{name}",
        str(source), str(folder / target), str(model), dtype, str(folder / "facts.json"),
    ]  # fmt: skip


def _embed(source: Path, folder: Path, model: Path, dtype: str) -> list[str]:
    return [
        sys.executable, "-m", "padless", "embed", str(source), str(folder / "out"), "--model", str(model),
        "--id-column", "id", "--dtype", dtype, "--device", "cpu", "--quiet",
    ]  # fmt: skip


def _shards(folder: Path) -> np.ndarray:
    tables = [pq.read_table(shard) for shard in sorted((folder / "out").glob("part-*.parquet"))]
    rows = np.concatenate([table["row"].to_numpy() for table in tables])
    vectors = np.concatenate([_column(table) for table in tables])
    return vectors[np.argsort(rows)]


def _column(table: Any) -> np.ndarray:
    flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(table.num_rows, -1)


def _stages(facts: dict[str, Any]) -> dict[str, float]:
    stages = facts.get("stage_seconds") or facts.get("stages") or {}
    return {name: float(value) for name, value in stages.items()} if isinstance(stages, dict) else {}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


SYSTEMS: dict[str, JobSystem] = {
    SCRIPT: JobSystem(
        _module("script", "vectors.parquet"),
        "facts.json",
        lambda folder: _column(pq.read_table(folder / "vectors.parquet")),
        ("sentence-transformers", "transformers", "torch"),
    ),
    MODEL_ONLY: JobSystem(
        _module("model_only", "vectors.npy"), "facts.json", lambda folder: np.load(folder / "vectors.npy"), ("torch",)
    ),
    "padless": JobSystem(_embed, "out/summary.json", _shards, ("torch", "pyarrow")),
}
