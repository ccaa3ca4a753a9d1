"""One model: its systems prepared, checked, timed in one interleaved run, and checked again on what was timed.

Correctness comes first. Before the clock starts every system's vectors are held against the reference's; one that fails
gets a reason and its cosine in the report, and no figure. The vectors of the last timed round are held against the
reference's as well.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...engine.errors import InputError
from ..gemm import GemmCeiling, gemm_ceiling
from ..timing import Spread, interleave, ratio, spread
from ..workloads import Workload, load_workload
from .check import Check, check_vectors
from .products import mean_flops, products, read_config
from .system import Job, System, max_length
from .systems import BASELINE

__all__ = [
    "EncodeCall",
    "Measurement",
    "ModelReport",
    "check_and_time",
    "cut_of",
    "measure",
    "prepared",
    "threads_of_all",
]

CUTS = ((100e6, 4096), (30e6, 12288))
"""FLOP a token above which a model runs a cut of a workload, and the tokens of that cut."""


@dataclass(frozen=True)
class Measurement:
    """One line of the table.

    Attributes:
        system: name, as in `systems.SYSTEMS`.
        dtype: what it computes in.
        tokens_per_second: real tokens (padding is not counted), median and p20 to p80 over the rounds.
        ratio: how many times faster than the baseline, of each round, then median and p20 to p80.
        seconds: wall clock of each round.
        padding_factor: tokens computed for each real token.
        check: its vectors beside the baseline's.
        versions: distribution to version.
        settings: what the system chose for itself.
        latency_ms: of one call, over all calls of all rounds; None unless each text is a call of its own.
    """

    system: str
    dtype: str
    tokens_per_second: Spread
    ratio: Spread
    seconds: list[float]
    padding_factor: float
    check: Check
    versions: dict[str, str]
    settings: dict[str, Any]
    latency_ms: Spread | None = None

    @property
    def label(self) -> str:
        """As in the report's keys: name and dtype."""
        return f"{self.system} {self.dtype}"


@dataclass(frozen=True)
class ModelReport:
    """What one run of one model found.

    Attributes:
        model: name, or the folder's.
        weights: "published", "seeded random" or "given".
        mflop_per_token: millions of FLOP that a token of this workload costs, padding not counted.
        workload: name, source, texts, and of how many they are a cut.
        tokens: real tokens in it, after the model's own limit.
        order: labels of all systems that were asked for, in the table's order.
        systems: those that passed.
        left_out: label to why it did not run.
        failed: label to why it has no figure.
        checks: label to the check on the timed texts, or on those before it where that failed.
        gemm_ceiling: by dtype.
    """

    model: str
    weights: str
    mflop_per_token: float
    workload: dict[str, Any]
    tokens: int
    order: list[str]
    systems: list[Measurement]
    left_out: dict[str, str]
    failed: dict[str, str]
    checks: dict[str, Check]
    gemm_ceiling: list[GemmCeiling]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    name: str,
    folder: Path,
    weights: str,
    systems: Sequence[System],
    *,
    workload: str,
    tokens: int | None,
    dtypes: Sequence[str],
    threads: int,
    repeats: int,
) -> ModelReport:
    """Check and time all systems on one model.

    Args:
        name: for the report.
        folder: a sentence-transformers folder with mean pooling, or one without modules, which means the same.
        weights: for the report.
        systems: not yet prepared; the baseline among them.
        workload: a name from `workloads.WORKLOADS`.
        tokens: size of the cut; None follows `CUTS`.
        dtypes: of the GEMM ceilings, those among them that are no integers.
        threads: of each system; set by `threads_of_all`.
        repeats: rounds of the interleaved run.

    Raises:
        InputError: the reference cannot run, or a corpus is not installed.
        ConfigError: the folder's config.json.
    """
    config = read_config(folder)
    texts = cut_of(load_workload(workload, folder), folder, tokens)
    longest = max_length(folder)
    order = [system.label for system in systems]
    with tempfile.TemporaryDirectory(prefix="padless_bench_") as scratch:
        probe = texts.fewer(max(2, len(texts.texts) // 4)).texts
        job = Job(folder, Path(scratch), threads, texts.batch_size, probe, texts.one_by_one)
        ready, left_out = prepared(systems, job)
        # Converted copies may each have their own memory; the original is gone before the clock starts.
        del job
        gc.collect()
        measured, checks = check_and_time(ready, texts, texts.kept_tokens(longest), repeats)
        del ready
        gc.collect()
    failed = {label: check.failure for label, check in checks.items() if check.failure is not None}
    shapes = [product for product in products(config) if product.count]
    ceilings = [gemm_ceiling(getattr(torch, dtype), shapes) for dtype in dtypes if dtype != "int8"]
    return ModelReport(
        model=name,
        weights=weights,
        mflop_per_token=mean_flops(config, texts.kept_lengths(longest)) / 1e6,
        workload={"name": texts.name, "source": texts.source, "texts": len(texts.texts), "whole": texts.whole},
        tokens=texts.kept_tokens(longest),
        order=order,
        systems=measured,
        left_out=left_out,
        failed=failed,
        checks=checks,
        gemm_ceiling=ceilings,
    )


def cut_of(texts: Workload, folder: Path, tokens: int | None) -> Workload:
    """The workload, cut to `tokens` or, where that is None, as `CUTS` says for a model of this cost."""
    longest = max_length(folder)
    if tokens is None:
        cost = mean_flops(read_config(folder), texts.kept_lengths(longest))
        tokens = next((limit for above, limit in CUTS if cost > above), None)
    return texts if tokens is None else texts.cut(tokens, longest)


def prepared(systems: Sequence[System], job: Job) -> tuple[list[System], dict[str, str]]:
    """The systems that can run this job, ready, and why the others cannot, by label.

    Raises:
        InputError: the baseline cannot run.
    """
    ready: list[System] = []
    left_out: dict[str, str] = {}
    for system in systems:
        reason = system.missing()
        if reason is None:
            try:
                system.prepare(job)
            except InputError as error:
                reason = str(error)
        if reason is None:
            ready.append(system)
        elif system.label == BASELINE:
            raise InputError(f"{BASELINE}: {reason}; it is the reference: pip install 'padless[bench]'")
        else:
            left_out[system.label] = reason
    return ready, left_out


def check_and_time(
    systems: Sequence[System], texts: Workload, tokens: int, repeats: int
) -> tuple[list[Measurement], dict[str, Check]]:
    """Check, time and check again.

    Args:
        systems: ready; the baseline among them.
        texts: what they encode.
        tokens: real tokens in it.
        repeats: rounds of the interleaved run.

    Returns:
        Measurements of the systems that passed both checks, and the last check of each system by label.
    """
    calls = {system.label: EncodeCall(system, texts) for system in systems}
    # Everybody's warm-up as well, on these very texts. On a cut, each of whose batches is much work, a share will do.
    first = texts if len(texts.texts) == texts.whole else texts.fewer(max(2, len(texts.texts) // 4))
    checks = _check({label: EncodeCall(call.system, first) for label, call in calls.items()}, run=True)
    sound = {label: call for label, call in calls.items() if checks[label].failure is None}
    seconds = interleave(sound, repeats, warmups=0, progress=_progress)
    checks.update(_check(sound, run=False))
    measured = [
        Measurement(
            system=call.system.name,
            dtype=call.system.dtype,
            tokens_per_second=spread([tokens / value for value in seconds[label]]),
            ratio=ratio(seconds, label, BASELINE),
            seconds=seconds[label],
            padding_factor=call.computed / tokens,
            check=checks[label],
            versions=call.system.versions(),
            settings=call.system.settings,
            latency_ms=spread(call.milliseconds) if texts.one_by_one else None,
        )
        for label, call in sound.items()
        if checks[label].failure is None
    ]
    return measured, checks


class EncodeCall:
    """Encodes the texts, all at once or one by one, and keeps what came of it."""

    def __init__(self, system: System, texts: Workload) -> None:
        self.system = system
        self.texts = texts
        self.vectors = np.empty((0, 0), dtype=np.float32)
        self.computed = 0
        self.milliseconds: list[float] = []

    def __call__(self) -> None:
        if not self.texts.one_by_one:
            self.vectors = self.system.encode(self.texts.texts)
            self.computed = self.system.computed_tokens
            return
        parts = []
        self.computed = 0
        for text in self.texts.texts:
            begin = time.perf_counter()
            parts.append(self.system.encode([text]))
            self.milliseconds.append(1000 * (time.perf_counter() - begin))
            self.computed += self.system.computed_tokens
        self.vectors = np.concatenate(parts)


def _check(calls: dict[str, EncodeCall], *, run: bool) -> dict[str, Check]:
    for call in calls.values() if run else ():
        call()
    reference = calls[BASELINE].vectors
    return {
        label: check_vectors(call.system.name, call.system.dtype, call.vectors, reference)
        for label, call in calls.items()
    }


@contextmanager
def threads_of_all(wanted: int | None) -> Iterator[int]:
    """Set the threads of torch and of the tokenizers; yields how many."""
    before = torch.get_num_threads()
    count = before if wanted is None else wanted
    # Read by the tokenizers library when its pool starts; a user's own setting wins.
    os.environ.setdefault("RAYON_NUM_THREADS", str(count))
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)


def _progress(name: str, seconds: float) -> None:
    print(f"  {name:<32} {seconds:8.2f} s", flush=True)
