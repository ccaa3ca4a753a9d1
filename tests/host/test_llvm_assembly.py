"""What LLVM makes of the kernels for CPUs that are not here: every sum in a register, products by their instruction."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

pytest.importorskip("llvmlite", reason="needs package llvmlite, not installed")

from padless.kernels.llvm.activation import activation_code
from padless.kernels.llvm.attention import BLOCKS, PARTS, ROWS, WORDS, attention_code
from padless.kernels.llvm.code import Code
from padless.kernels.llvm.compiled import assembly
from padless.kernels.llvm.norm import norm_code
from padless.kernels.llvm.product import COLUMNS, product_code
from padless.kernels.llvm.product import ROWS as PRODUCT_ROWS
from padless.kernels.llvm.product import WORDS as PRODUCT_WORDS

CPUS = ("skylake-avx512", "sapphirerapids", "znver4")
BF16_CPUS = CPUS[1:]


def inner_loops(text: str) -> list[list[str]]:
    """The lines of each loop that has no other inside."""
    labels: dict[str, int] = {}
    spans: list[tuple[int, int]] = []
    lines = text.splitlines()
    for place, line in enumerate(lines):
        if label := re.match(r"(\.LBB\d+_\d+):", line):
            labels[label[1]] = place
        elif (jump := re.match(r"\s+j\w+\s+(\.LBB\d+_\d+)", line)) and jump[1] in labels:
            spans.append((labels[jump[1]], place))
    inner = [(a, b) for a, b in spans if not any((c, d) != (a, b) and a <= c and d <= b for c, d in spans)]
    return [lines[a:b] for a, b in inner]


def spills(text: str) -> list[str]:
    """What inner loops put aside because there are not enough registers, or fetch again."""
    return [line for loop in inner_loops(text) for line in loop if "(%rsp)" in line and "%zmm" in line]


def half_in_soak(*kinds: tuple[Any, ...]) -> list[Any]:
    """Every second case, so that each value of each argument is among them; the others are run by `make soak`."""
    return [
        pytest.param(*kind, marks=pytest.mark.soak if place % 2 else (), id="-".join(map(str, kind)))
        for place, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize(
    ("cpu", "head_dim", "windowed"),
    half_in_soak(
        *((BF16_CPUS[0], head_dim, windowed) for head_dim in (32, 64, 128) for windowed in (False, True)),
        *((BF16_CPUS[1], head_dim, windowed) for head_dim in (32, 64, 128) for windowed in (True, False)),
    ),
)
def test_attention_in_bf16(cpu: str, head_dim: int, windowed: bool) -> None:
    text = assembly(attention_code(head_dim, bf16=True, windowed=windowed, biased=False), cpu)
    parts = head_dim // 16
    # Each loop over channels once for four blocks of keys and once for one; each loop over keys once a group of parts.
    expected = WORDS * ROWS * (BLOCKS + 1) + ROWS * parts
    assert text.count("vdpbf16ps") == expected
    assert parts <= PARTS or parts % PARTS == 0
    assert spills(text) == []


@pytest.mark.parametrize(
    ("cpu", "head_dim"),
    half_in_soak(*((CPUS[0], 32), (CPUS[0], 64), (CPUS[1], 64), (CPUS[1], 32), (CPUS[2], 32), (CPUS[2], 64))),
)
def test_attention_in_fp32(cpu: str, head_dim: int) -> None:
    text = assembly(attention_code(head_dim, bf16=False, windowed=False, biased=True), cpu)
    products = WORDS * ROWS * (BLOCKS + 1) + ROWS * head_dim // 16
    assert len(re.findall(r"vfn?madd\d+ps\s.*zmm", text)) >= products
    assert spills(text) == []


@pytest.mark.parametrize("cpu", BF16_CPUS)
@pytest.mark.parametrize(("inputs", "epilogue", "gated"), [(384, "gelu", False), (1024, "gelu_tanh", True)])
def test_the_product(cpu: str, inputs: int, epilogue: str, gated: bool) -> None:
    text = assembly(product_code(inputs, epilogue, gated=gated, biased=True, added=False), cpu)
    assert text.count("vdpbf16ps") == PRODUCT_WORDS * PRODUCT_ROWS * COLUMNS
    assert spills(text) == []
    assert "call" not in text


@pytest.mark.parametrize("cpu", BF16_CPUS)
@pytest.mark.parametrize(
    "write",
    [
        partial(activation_code, "gelu", 1536, bf16=True, gated=False),
        partial(activation_code, "gelu_tanh", 1024, bf16=True, gated=True),
        partial(norm_code, 384, x_bf16=True, out_bf16=True, centred=True, shifted=True),
    ],
    ids=["gelu", "gated gelu_tanh", "layer norm"],
)
def test_rows_in_bf16(cpu: str, write: Callable[[], Code]) -> None:
    text = assembly(write(), cpu)
    assert spills(text) == []
    assert "vcvtneps2bf16" in text
    assert "call" not in text


def test_a_spill_would_be_seen() -> None:
    code = Code("crowded", {"x": "pointer", "out": "pointer"})
    numbers = [code.load(code.x + 64 * place) for place in range(40)]
    with code.range(0, 10) as step:  # all forty are needed in every turn
        for place, number in enumerate(numbers):
            code.store(number * number, code.out + step * 4096 + 64 * place)
    assert spills(assembly(code, "znver4")) != []
