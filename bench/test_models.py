"""The model benchmark in pytest-benchmark's form: `pytest bench --benchmark-only`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from padless.bench.models import BASELINE, check_vectors
from padless.bench.peers import SYSTEMS, make_system
from padless.bench.workloads import Workload, default_model, load_workload
from padless.engine.errors import InputError

pytest.importorskip("pytest_benchmark")

CASES = [(name, dtype) for name in SYSTEMS for dtype in ("float32", "bfloat16")]


@pytest.fixture(scope="module")
def model() -> Path:
    return default_model()


@pytest.fixture(scope="module")
def texts(model: Path) -> Workload:
    return load_workload("skewed_256", model)


@pytest.fixture(scope="module")
def reference(model: Path, texts: Workload) -> np.ndarray:
    system = make_system(*BASELINE)
    reason = system.missing()
    if reason is not None:
        pytest.skip(f"no reference vectors: {reason}")
    system.prepare(model, _threads())
    return system.encode(texts.texts)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_encode(
    benchmark: pytest.FixtureRequest, model: Path, texts: Workload, reference: np.ndarray, name: str, dtype: str
) -> None:
    system = make_system(name, dtype)
    reason = system.missing()
    if reason is None:
        try:
            system.prepare(model, _threads())
        except InputError as error:
            reason = str(error)
    if reason is not None:
        pytest.skip(reason)
    check = check_vectors(name, dtype, system.encode(texts.texts), reference)
    assert check.failure is None, check.failure
    benchmark.pedantic(system.encode, args=(texts.texts,), rounds=3)  # pyright: ignore[reportAttributeAccessIssue]


def _threads() -> int:
    import torch

    return torch.get_num_threads()
