"""The launches and bytes of a layer, counted from what is dispatched, and the counting itself where sums are known."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch

from padless.bench.launches import FAMILIES, LENGTHS, Counts, counted, layer_of, page
from padless.engine.models.blocks import FeedForward
from padless.kernels.rope import rope

ROOT = Path(__file__).parents[2]
ONE_LENGTH = (512,) * 16
MOST = {"MobileBERT": 3, "ModernBERT": 5, "MegatronBERT": 6, "mT5": 5, "BERT": 7}


@cache
def layer(family: str, fused: bool, lengths: tuple[int, ...] = LENGTHS) -> Counts:
    return layer_of(FAMILIES[family], fused=fused, lengths=lengths)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_has_few_launches(family: str) -> None:
    assert 0 < layer(family, True).total <= MOST[family]
    assert layer(family, True, ONE_LENGTH).launches == layer(family, True).launches


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_launches_and_moves_less_than_before(family: str) -> None:
    before, now = layer(family, False), layer(family, True)
    assert now.total < before.total
    assert now.activations < 0.8 * before.activations
    # A folded norm's weight is in the product's; beside it are fp32 sums and biases.
    assert 0.99 * before.weights < now.weights < 1.01 * before.weights


def test_the_launches_of_modernbert_by_name() -> None:
    assert layer("ModernBERT", True).launches == Counter({"linear_kernel": 4, "attention_kernel": 1})
    assert layer("MegatronBERT", True, ONE_LENGTH).launches == Counter(
        {"linear_kernel": 3, "addmm": 1, "norm_kernel": 1, "attention_kernel": 1}
    )


def test_the_bytes_of_megatronbert_are_those_of_its_shapes() -> None:
    """In channels of 2 bytes: every launch reads its input and writes its output, and two also read the residual."""
    tokens, hidden, inner = sum(ONE_LENGTH), 1024, 4096
    norm = hidden + hidden
    # Mean and M2 in fp32 of each 64 columns, from the attention's projection to the product that reads them.
    statistics = 2 * 2 * 4 * hidden // 64
    attention = (hidden + 3 * hidden) + 4 * hidden + (hidden + hidden + hidden)
    feed_forward = (hidden + inner) + (inner + hidden + hidden)
    edges = 4 * (len(ONE_LENGTH) + 1)
    counts = layer("MegatronBERT", True, ONE_LENGTH)
    assert counts.activations == 2 * tokens * (norm + attention + feed_forward) + tokens * statistics + edges
    products = 3 * hidden * hidden + hidden * hidden + 2 * hidden * inner
    vectors = 3 * hidden + hidden + hidden + 2 * hidden
    assert counts.weights == 2 * (products + vectors) + 4 * 2 * inner


def test_an_operator_counts_its_operands_and_results_and_views_count_nothing() -> None:
    block = FeedForward(8, 24, "relu").bind("eager")
    x = torch.zeros(5, 8)
    with torch.no_grad(), counted(block) as counts:
        block(x.view(5, 2, 4).flatten(1)[:, :])
        torch.empty(7)
        torch.add(torch.zeros(3, 1).expand(3, 50), torch.zeros(1))
    assert counts.launches == Counter({"addmm": 1, "relu": 1, "zeros": 2, "add": 1})
    assert counts.weights == 4 * (24 * 8 + 24)
    assert counts.activations == 4 * (5 * 8 + 5 * 24) + 4 * (2 * 5 * 24) + 4 * (3 + 1) + 4 * (3 + 1 + 150)


def test_a_table_counts_as_far_as_it_is_gathered_from_and_what_is_written_to_once() -> None:
    table, rows = torch.zeros(1000, 4), torch.tensor([3, 9])
    with counted() as counts:
        gathered = torch.nn.functional.embedding(rows, table)
        gathered.add_(gathered)
    assert gathered.shape == (2, 4)
    assert counts.activations == (4 * 8 + 2 * 8 + 4 * 8) + 4 * 8


def test_a_triton_kernel_counts_its_tensors() -> None:
    q, k, rows, table = torch.zeros(6, 3, 8), torch.zeros(6, 1, 8), torch.zeros(6).long(), torch.zeros(9, 4)
    with counted() as counts:
        rope(q, k, rows, table, table.clone())
    assert counts.launches == Counter({"rope_kernel": 1, "clone": 1})
    moved = 2 * 4 * (6 * 3 * 8 + 6 * 8) + 8 * 6 + 2 * 4 * 9 * 4
    assert counts.activations == moved + 2 * 4 * 9 * 4


def test_the_page_is_what_is_counted_now_and_the_kernels_page_has_its_table() -> None:
    written = page()
    assert (ROOT / "docs" / "launches.md").read_text(encoding="utf-8") == written, "make launches"
    table = [line for line in written.splitlines() if line.startswith("|")]
    assert "\n".join(table) in (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
