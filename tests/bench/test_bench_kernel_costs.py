"""FLOPs and bytes of the formulas beside a count in loops and beside the tensors of real cases."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from padless.bench.gpu.problem import Problem
from padless.bench.kernels import cost
from padless.bench.kernels.case import Case, bound, results
from padless.bench.kernels.ceilings import Ceilings
from padless.bench.kernels.families import TINY
from padless.bench.kernels.shapes import Shape, shapes
from padless.bench.lengths import draw_lengths

CPU = torch.device("cpu")
BATCH = draw_lengths("variable", 50, 20)
SHAPES = shapes(None, TINY)


class Number:
    """A number that counts what is done to any of its kind."""

    done = 0

    def __init__(self, value: float) -> None:
        self.value = value

    def _new(self, value: float) -> Number:
        Number.done += 1
        return Number(value)

    def __add__(self, other: Number) -> Number:
        return self._new(self.value + other.value)

    def __sub__(self, other: Number) -> Number:
        return self._new(self.value - other.value)

    def __mul__(self, other: Number) -> Number:
        return self._new(self.value * other.value)


def row(count: int) -> list[Number]:
    return [Number(float(place % 5) - 1.5) for place in range(count)]


def counted(function: Any, *arguments: Any) -> int:
    """Operations on numbers that the function does."""
    Number.done = 0
    function(*arguments)
    return Number.done


def add_up(values: list[Number]) -> Number:
    total = Number(0.0)
    for value in values:
        total = total + value
    return total


def dot(a: list[Number], b: list[Number]) -> Number:
    total = Number(0.0)
    for left, right in zip(a, b, strict=True):
        total = total + left * right
    return total


def layer_norm(x: list[Number], weight: list[Number], bias: list[Number] | None) -> None:
    mean = Number(add_up(x).value / len(x))
    centred = [value - mean for value in x]
    variance = add_up([value * value for value in centred]).value / len(x)
    scale = Number(1.0 / math.sqrt(variance + 1e-5))
    scaled = [value * scale * factor for value, factor in zip(centred, weight, strict=True)]
    if bias is not None:
        _ = [value + shift for value, shift in zip(scaled, bias, strict=True)]


def rms_norm(x: list[Number], weight: list[Number]) -> None:
    square = add_up([value * value for value in x]).value / len(x)
    scale = Number(1.0 / math.sqrt(square + 1e-5))
    _ = [value * scale * factor for value, factor in zip(x, weight, strict=True)]


def attention(lengths: tuple[int, ...], heads: int, head_dim: int, window: tuple[int, int], causal: bool) -> None:
    """Scores and weighted sums of the pairs that see each other; what a softmax does is not counted."""
    for length in lengths:
        for _ in range(heads):
            for query in range(length):
                out = row(head_dim)
                for key in range(length):
                    left, right = query - key, key - query
                    hidden = (0 <= window[0] < left) or (0 <= window[1] < right) or (causal and right > 0)
                    if hidden:
                        continue
                    weight = dot(row(head_dim), row(head_dim))
                    out = [total + weight * value for total, value in zip(out, row(head_dim), strict=True)]


@pytest.mark.parametrize(
    ("window", "causal"), [((-1, -1), False), ((2, 1), False), ((-1, -1), True)], ids=["full", "window", "causal"]
)
def test_attention_counts_the_pairs_that_see_each_other(window: tuple[int, int], causal: bool) -> None:
    lengths = (4, 1, 7)
    problem = Problem(lengths, 2, 3, torch.float32, window=window, causal=causal)
    assert cost.attention(problem).flops == counted(attention, lengths, 2, 3, window, causal)


def test_a_decoding_step_is_one_query_a_sequence() -> None:
    def step() -> None:
        for keys in (3, 5):
            for _ in range(2):
                out = row(4)
                for _ in range(keys):
                    weight = dot(row(4), row(4))
                    out = [total + weight * value for total, value in zip(out, row(4), strict=True)]

    assert cost.decode_attention((3, 5), 2, 2, 4, 4, bias=False).flops == counted(step)


def test_a_product_is_a_dot_product_for_every_result() -> None:
    def product() -> None:
        for _ in range(3):
            for _ in range(6):
                dot(row(5), row(5))

    assert cost.linear(3, 5, 6, 4).flops == counted(product)
    assert cost.norm_linear(3, 5, 6, 4, norm_bias=True).flops == counted(product)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_norms_count_what_is_done_to_an_element(bias: bool, residual: bool) -> None:
    tokens, hidden = 3, 8

    def norm() -> None:
        for _ in range(tokens):
            x = row(hidden)
            x = [a + b for a, b in zip(x, row(hidden), strict=True)] if residual else x
            layer_norm(x, row(hidden), row(hidden) if bias else None)

    def rms() -> None:
        for _ in range(tokens):
            x = row(hidden)
            rms_norm([a + b for a, b in zip(x, row(hidden), strict=True)] if residual else x, row(hidden))

    def none() -> None:
        for _ in range(tokens * hidden):
            x, residual, weight, shift = row(4)
            _ = (x + residual) * weight + shift

    assert cost.no_norm(tokens, hidden, 4).flops == counted(none)
    assert cost.norm(tokens, hidden, 4, bias=bias, residual=residual).flops == counted(norm)
    assert cost.rms_norm(tokens, hidden, 4, residual=residual).flops == counted(rms)


def test_embeddings_are_sums_and_a_norm() -> None:
    def bert() -> None:
        for _ in range(5):
            total = [a + b for a, b in zip(row(6), row(6), strict=True)]
            total = [a + b for a, b in zip(total, row(6), strict=True)]
            layer_norm(total, row(6), row(6))

    def modernbert() -> None:
        for _ in range(5):
            layer_norm(row(6), row(6), None)

    assert cost.embed(5, 6, 4, words=4, positions=3, types=2, norm_weights=2).flops == counted(bert)
    assert cost.embed(5, 6, 4, words=4, norm_weights=1).flops == counted(modernbert)
    assert cost.embed(5, 6, 4, words=4).flops == 0


def test_a_rotation_is_four_products_and_two_sums_a_pair() -> None:
    def rope() -> None:
        for _ in range(2 * 3 * 2):
            for _ in range(4):
                first, second, cosine, sine = row(4)
                _ = first * cosine - second * sine, second * cosine + first * sine

    assert cost.rope(3, 2, 8, 4, positions=3).flops == counted(rope)


def test_pooling_adds_scales_and_normalises() -> None:
    lengths, hidden = (2, 3), 4

    def pool(mode: str) -> None:
        for length in lengths:
            total = row(hidden)
            if mode != "cls":
                for _ in range(length):
                    x = row(hidden)
                    x = [value * Number(2.0) for value in x] if mode == "weightedmean" else x
                    total = [a + b for a, b in zip(total, x, strict=True)]
                total = [value * Number(0.5) for value in total]
            add_up([value * value for value in total])
            _ = [value * Number(0.5) for value in total]

    for mode in ("mean", "weightedmean", "cls"):
        assert cost.pool(lengths, hidden, 4, mode=mode, normalize=True).flops == counted(pool, mode)


def tensors(x: Any) -> list[Tensor]:
    if isinstance(x, Tensor):
        return [x]
    return [part for each in x for part in tensors(each)] if isinstance(x, tuple | list) else []


def crossing(case: Case) -> int:
    """Bytes of all tensors that a call is handed and of those it returns, by looking at them."""
    op = bound(case, "eager")
    assert op.resolution is not None
    returned = results(op.resolution.fn(*case.inputs, *case.weights, **case.options))
    given = [*tensors(case.inputs), *tensors(case.weights), *tensors(tuple(case.options.values()))]
    return sum(x.numel() * x.element_size() for x in (*given, *returned))


def unread(case: Case) -> int:
    """Bytes of those tensors that no call has a reason to read."""
    size = case.dtype.itemsize
    if case.op == "decode_attention":
        k, lengths = case.inputs[1], case.inputs[4]
        return 2 * (len(k) - int(lengths.sum())) * k.shape[1] * k.shape[2] * size
    if case.op == "pool" and case.options["mode"] == "cls":
        return (len(case.inputs[0]) - len(case.inputs[1]) + 1) * case.inputs[0].shape[1] * size
    if case.op in ("embed", "trigram"):
        ids, word = case.inputs[0], case.weights[0]
        assert word is not None
        skipped = (len(word) - len(set(ids.tolist()))) * word.shape[1]
        if case.op == "embed" and case.weights[1] is not None:
            skipped += (len(case.weights[1]) - len(set(case.inputs[1].tolist()))) * word.shape[1]
            return skipped * size
        return skipped * size + (case.inputs[1].numel() * 8 if case.op == "embed" else 0)
    return 0


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.op} {shape.name}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_bytes_are_those_of_the_tensors_that_cross(shape: Shape, dtype: torch.dtype) -> None:
    case = shape.make(BATCH, dtype, CPU)
    assert case.cost.bytes == crossing(case) - unread(case)


PRODUCTS = [shape for shape in SHAPES if shape.op in ("mobilebert_in", "mobilebert_out", "mlm_head", "linear")]


@pytest.mark.parametrize("shape", PRODUCTS, ids=lambda shape: f"{shape.op} {shape.name}")
def test_flops_are_two_for_each_weight_of_a_product_and_row(shape: Shape) -> None:
    case = shape.make(BATCH, torch.float32, CPU)
    matrices = sum(weight.numel() for weight in case.weights if weight is not None and weight.dim() == 2)
    assert case.cost.flops == 2 * case.rows * matrices


def test_the_share_of_the_ceiling_is_that_of_the_slower_one() -> None:
    ceilings = Ceilings({"float32": 2.0}, 10.0)
    # 2 TFLOP take a second, 10 GB another.
    assert ceilings.share(cost.Cost(2 * 10**12, 10**9), "float32", 4.0) == pytest.approx(0.25)
    assert ceilings.share(cost.Cost(10**9, 20 * 10**9), "float32", 4.0) == pytest.approx(0.5)
