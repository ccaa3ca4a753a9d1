"""The kernel benchmark in pytest-benchmark's form, a chosen few cases: `pytest bench/test_kernels.py --benchmark-only`.

Each is checked as `padless bench kernels` checks it before it is timed; a system that is not here is skipped with the
reason. A group of the table is a case, a line of it a system.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
import torch

from padless.bench.gpu.peers import Absent
from padless.bench.kernels.case import Case, Ready
from padless.bench.kernels.check import Oracle
from padless.bench.kernels.peers import PEERS
from padless.bench.kernels.shapes import shapes
from padless.bench.kernels.systems import ready_row, rows_of
from padless.bench.lengths import draw_lengths
from padless.bench.timing import time_call

pytest.importorskip("pytest_benchmark")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.bfloat16,)}
TOKENS = {"cpu": 1024, "cuda": 16384}
ORACLE_BYTES = 1 << 30
SECONDS = 0.3
"""What the rounds of one system may take; at least `ROUNDS` of them are made."""

ROUNDS = 5

CHOSEN = (
    ("attention", "BERT-base full", "news"),
    ("attention", "ModernBERT-base sliding", "fixed"),
    ("linear", "BERT-base up + gelu", "news"),
    ("linear", "ModernBERT-base up + gated gelu", "news"),
    ("norm", "BERT-base + residual", "news"),
    ("mobilebert_out", "MobileBERT", "news"),
    ("pool", "MiniLM-L6 mean, normalised", "news"),
)
QUICK_PEERS = ("sdpa-padded", "torch-varlen", "flash-attn-2", "flash-attn-3", "flash-attn-4", "liger", "product-alone")
CASES = [
    (op, name, lengths, dtype, system)
    for op, name, lengths in CHOSEN
    for dtype in DTYPES[DEVICE.type]
    for system in (*rows_of(op), *(peer for peer in QUICK_PEERS if op in PEERS[peer].ops))
]


@functools.lru_cache(maxsize=1)
def checked_case(op: str, name: str, lengths: str, dtype: torch.dtype) -> tuple[Case, Oracle]:
    """The case and what its result must be; the systems of a case follow one another, so one is kept."""
    shape = next(shape for shape in shapes([op]) if shape.name == name)
    case = shape.make(draw_lengths(lengths, TOKENS[DEVICE.type], 512), dtype, DEVICE)
    return case, Oracle(case, ORACLE_BYTES)


@pytest.fixture(autouse=True)
def without_gradient() -> Iterator[None]:
    with torch.no_grad():
        yield


def ready_system(case: Case, system: str) -> Ready:
    """The row of the table or the peer of this name; skips with the reason where it cannot take part."""
    try:
        if system in rows_of(case.op):
            return ready_row(case, system)
        reason = PEERS[system].missing(case)
        if reason is None:
            return PEERS[system].build(case)
    except Absent as absent:
        reason = str(absent)
    pytest.skip(f"{system}: {reason}")


@pytest.mark.parametrize(
    ("op", "name", "lengths", "dtype", "system"),
    CASES,
    ids=[f"{op} {name}, {lengths}, {str(dtype)[6:]}: {system}" for op, name, lengths, dtype, system in CASES],
)
def test_op(
    benchmark: pytest.FixtureRequest, op: str, name: str, lengths: str, dtype: torch.dtype, system: str
) -> None:
    case, oracle = checked_case(op, name, lengths, dtype)
    ready = ready_system(case, system)
    against = oracle if ready.against is None else Oracle(ready.against, ORACLE_BYTES)
    _, failure = against.judge(ready.results(ready.call()))
    assert failure is None, failure
    call = finished(ready.call)
    benchmark.group = case.label  # pyright: ignore[reportAttributeAccessIssue]
    benchmark.pedantic(call, rounds=rounds(call), warmup_rounds=1)  # pyright: ignore[reportAttributeAccessIssue]


def finished(call: Callable[[], object]) -> Callable[[], None]:
    """The call and all that it started on the device."""

    def whole() -> None:
        call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize(DEVICE)

    return whole


def rounds(call: Callable[[], object]) -> int:
    return min(max(ROUNDS, round(SECONDS / max(time_call(call), 1e-6))), 200)
