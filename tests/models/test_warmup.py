"""The warm-up on a CPU: nothing is compiled, weights are prepared, and what an encoder computes stays as it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import padless
from padless.engine.embedding.encoder import Encoder
from padless.engine.errors import OptionError
from padless.engine.warmup import Step, plan, warm_up

TEXTS = ["the sun stood still", "", "and the moon stayed " * 40, "x"]


@pytest.fixture
def own_minilm(minilm_folder: Path) -> Encoder:
    encoder = padless.load(minilm_folder, device="cpu", dtype="float32")
    encoder.token_budget = 300
    encoder.tokenizer.max_length = 256
    return encoder


def test_weights_are_prepared_and_vectors_stay_the_same(own_minilm: Encoder, minilm: Encoder) -> None:
    prepares = [op for op in own_minilm.bound_ops() if op.op == "linear" and op.resolution and op.resolution.prepare]
    assert prepares
    assert all(op._prepared is None for op in prepares)
    steps: list[Step] = []
    done = warm_up(own_minilm, progress=steps.append)
    assert all(op._prepared is not None for op in prepares)
    assert (done.kernels, done.compiled, done.cached) == (0, 0, 0)
    assert [step.number for step in steps] == list(range(1, done.batches + 1))
    assert [step.lengths for step in steps] == plan(256, 300)
    assert 0 < sum(step.seconds for step in steps) <= done.seconds
    np.testing.assert_array_equal(own_minilm.encode(TEXTS), minilm.encode(TEXTS))


def test_a_folder_whose_texts_have_types_is_warmed_up_with_types(own_minilm: Encoder) -> None:
    own_minilm.token_budget = own_minilm.tokenizer.max_length = 8
    seen = []
    own_minilm.model.run = lambda batch, run=own_minilm.model.run: seen.append(batch.token_type_ids) or run(batch)
    warm_up(own_minilm)
    assert seen
    assert all(types is None for types in seen)
    del seen[:]
    own_minilm.tokenizer._types = (0, 1), (1,)
    assert own_minilm.tokenizer.encode(["a"]).token_type_ids is not None
    warm_up(own_minilm)
    assert seen
    assert all(types is not None for types in seen)


def test_a_token_budget_out_of_range_is_refused(own_minilm: Encoder) -> None:
    own_minilm.token_budget = 0
    with pytest.raises(OptionError, match="token_budget: expected at least 1, got 0"):
        warm_up(own_minilm)


@pytest.mark.parametrize("longest", [1, 2, 17, 40, 512, None])
def test_a_plan_keeps_its_limits_and_reaches_them(longest: int | None) -> None:
    for token_budget in (*range(1, 70), 1000, 4096):
        batches = plan(longest, token_budget)
        assert len(set(batches)) == len(batches)
        sizes = [sum(batch) for batch in batches]
        assert sizes == sorted(sizes, reverse=True), "running out of memory is to show at once"
        assert {(1,), (longest or token_budget,)} <= set(batches)
        assert min(map(min, batches)) == 1
        assert max(map(max, batches)) == (longest or token_budget)
        several = [batch for batch in batches if len(batch) > 1]
        assert max(map(sum, several), default=token_budget) == token_budget


def test_it_runs_where_triton_is_not_installed(tiny_folder: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "import padless\n"
        "from padless.engine.compilations import cache_folder\n"
        "from padless.engine.warmup import warm_up\n"
        f"encoder = padless.load({str(tiny_folder)!r}, device='cpu')\n"
        "encoder.token_budget = encoder.tokenizer.max_length = 2\n"
        "print(warm_up(encoder).batches, cache_folder())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"{len(plan(2, 2))} None\n", done.stderr
