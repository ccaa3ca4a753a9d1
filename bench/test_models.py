"""The model benchmark in pytest-benchmark's form: `pytest bench/test_models.py --benchmark-only`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from padless.bench.models.check import check_vectors
from padless.bench.models.seeded import MINILM, model_folder
from padless.bench.models.system import Job
from padless.bench.models.systems import BASELINE, DTYPES, make_systems
from padless.bench.workloads import Workload, load_workload
from padless.engine.errors import InputError

pytest.importorskip("pytest_benchmark", reason="needs pytest-benchmark")

SYSTEMS = {system.label: system for system in make_systems(None, DTYPES)}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("bench")
    model = model_folder(MINILM, folder)
    texts = load_workload("skewed_256", model)
    return Job(model, folder, torch.get_num_threads(), texts.batch_size, texts.fewer(128).texts)


@pytest.fixture(scope="module")
def texts(job: Job) -> Workload:
    return load_workload("skewed_256", job.model)


@pytest.fixture(scope="module")
def reference(job: Job, texts: Workload) -> np.ndarray:
    system = SYSTEMS[BASELINE]
    reason = system.missing()
    if reason is not None:
        pytest.skip(f"no reference vectors: {reason}")
    system.prepare(job)
    return system.encode(texts.texts)


@pytest.mark.parametrize("label", SYSTEMS)
def test_encode(benchmark: pytest.FixtureRequest, job: Job, texts: Workload, reference: np.ndarray, label: str) -> None:
    system = SYSTEMS[label]
    reason = system.missing()
    if reason is None:
        try:
            system.prepare(job)
        except InputError as error:
            reason = str(error)
    if reason is not None:
        pytest.skip(reason)
    check = check_vectors(system.name, system.dtype, system.encode(texts.texts), reference)
    if check.failure is not None:
        # The int8 of others is here to be shown failing; nothing of ours may.
        assert system.name != "padless", check.failure
        pytest.skip(f"no figure: {check.failure}")
    benchmark.pedantic(system.encode, args=(texts.texts,), rounds=3)  # pyright: ignore[reportAttributeAccessIssue]
