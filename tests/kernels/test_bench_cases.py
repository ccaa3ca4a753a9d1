"""The kernel benchmark calls every Triton row as it will on a GPU: prepared weights, options, statistics of a norm."""

from __future__ import annotations

import pytest
import torch

from padless.bench.gpu.peers import Absent
from padless.bench.kernels.check import Oracle
from padless.bench.kernels.families import TINY
from padless.bench.kernels.shapes import Shape, shapes
from padless.bench.kernels.systems import ready_row, served
from padless.bench.lengths import draw_lengths
from padless.engine.dispatch import TABLE

CPU = torch.device("cpu")
BATCH = draw_lengths("variable", 40, 20)
# One family of each kind of product: the shapes differ in their sizes alone.
SHAPES = [
    shape for shape in shapes(None, TINY) if shape.op != "linear" or shape.name.startswith(("BERT", "ModernBERT"))
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.op} {shape.name}")
def test_a_kernel_is_right_on_the_benchmark_s_cases(shape: Shape) -> None:
    case = shape.make(BATCH, torch.bfloat16, CPU)
    ready = served(case, "triton")
    figures, reason = Oracle(case, 1 << 24).judge(ready.results(ready.call()))
    assert reason is None
    assert figures["of_bound"] <= 1.0


def test_every_op_of_the_table_is_among_them() -> None:
    assert {shape.op for shape in SHAPES} == set(TABLE)


def test_an_interpreted_kernel_is_never_timed() -> None:
    case = shapes(["rms_norm"], TINY)[0].make(BATCH, torch.bfloat16, CPU)
    with pytest.raises(Absent, match=r"^needs device cuda, got cpu$"):
        ready_row(case, "triton")
