"""The judge of the GPU report, judged: it must accept what is right and see what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from padless.bench.gpu.bits import some
from padless.bench.gpu.oracle import check_attention, two_times_rule
from padless.bench.gpu.problem import Inputs, Problem, alone, last_queries, make_inputs, visible_pairs
from padless.engine.ops.attention import varlen_attention

CPU = torch.device("cpu")
MEMORY = 1 << 20
BASE = Problem((0, 1, 33, 0, 70, 7), 4, 24, torch.float32)
PROBLEMS = {
    "full": BASE,
    "sliding": replace(BASE, window=(5, 3)),
    "causal": replace(BASE, causal=True),
    "bias": replace(BASE, bias="both"),
    "causal bias": replace(BASE, bias="left", causal=True),
    "grouped": replace(BASE, heads_k=2),
    "cross": replace(BASE, lengths_k=(3, 0, 40, 2, 9, 7), causal=True),
    "cross sliding": replace(BASE, lengths_k=(3, 0, 40, 2, 9, 7), window=(4, 2)),
    "bf16": replace(BASE, dtype=torch.bfloat16),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Shared between threads a product is rounded by how it is cut, and the oracle cuts texts otherwise than eager."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def eager(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    result = varlen_attention(*inputs.arguments(), **inputs.options(), return_lse=True)
    assert isinstance(result, tuple)
    return result


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("memory", [1, 1 << 18, 1 << 30])
def test_eager_itself_is_right_however_little_memory_the_oracle_has(name: str, memory: int) -> None:
    inputs = make_inputs(PROBLEMS[name], CPU)
    out, lse = eager(inputs)
    verdict = check_attention(inputs, out, lse, memory)
    assert verdict.broken is None
    # Its error is eager's own, which is half of what is allowed, and more than nothing.
    assert 0.0 < verdict.ratio <= 0.5 + 1e-3
    assert verdict.error == pytest.approx(verdict.eager_error, rel=1e-2)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_last_queries_of_a_text_are_judged_as_in_the_whole_text(name: str) -> None:
    inputs = make_inputs(PROBLEMS[name], CPU)
    out, _ = eager(inputs)
    seen: list[int] = []
    verdict = check_attention(
        inputs, out, None, MEMORY, None, 5, lambda rows, _heads, *_: seen.append(rows.stop - rows.start)
    )
    assert verdict.broken is None
    assert set(seen) == {1, 5}
    single = last_queries(alone(inputs, 4), 5)
    assert (single.problem.tokens, len(single.q)) == (5, 5)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("what", ["one value", "one head swapped", "NaN", "LSE"])
def test_what_is_wrong_is_seen(name: str, what: str) -> None:
    inputs = make_inputs(PROBLEMS[name], CPU)
    out, lse = (x.clone() for x in eager(inputs))
    if what == "one value":
        out[40, 2, 3] += 0.5
    elif what == "one head swapped":
        out[:, [0, 3]] = out[:, [3, 0]]
    elif what == "NaN":
        out[-1, 0, 0] = float("nan")
    else:
        lse[3, 20] += 0.1
    assert check_attention(inputs, out, lse, MEMORY).broken is not None


def test_the_rule_by_hand() -> None:
    reference = torch.tensor([1.0, -4.0, 0.0], dtype=torch.float64)
    same = torch.tensor([1.0, -4.0, 0.001])
    eps = torch.finfo(torch.float32).eps
    allowed = 2 * float(torch.tensor(0.001)) + eps * 4.0
    for error, broken in ((0.9 * allowed, False), (1.1 * allowed, True)):
        ratio, found, eager_error, reason = two_times_rule(torch.tensor([1.0 + error, -4.0, 0.0]), same, reference)
        assert found == pytest.approx(error, rel=1e-3)
        assert eager_error == pytest.approx(0.001, rel=1e-6)
        assert ratio == pytest.approx(error / allowed, rel=1e-3)
        assert (reason is not None) == broken


def test_infinities_belong_where_the_reference_has_them() -> None:
    reference = torch.tensor([1.0, -torch.inf], dtype=torch.float64)
    same = reference.float()
    assert two_times_rule(torch.tensor([1.0, -torch.inf]), same, reference)[3] is None
    for wrong in ([1.0, torch.inf], [1.0, 0.0], [torch.nan, -torch.inf], [1.0, torch.nan], [-torch.inf, 1.0]):
        assert two_times_rule(torch.tensor(wrong), same, reference)[3] is not None
    assert two_times_rule(torch.tensor([1.0]), same, reference)[3] is not None
    assert two_times_rule(torch.tensor([1.0, -torch.inf]).double(), same, reference)[3] is not None


@pytest.mark.parametrize("name", PROBLEMS)
def test_pairs_are_counted_as_a_mask_counts_them(name: str) -> None:
    problem = PROBLEMS[name]
    left, right = problem.window
    pairs = 0
    for length, length_k in zip(problem.lengths, problem.lengths_k or problem.lengths, strict=True):
        for query in range(length):
            for key in range(length_k):
                distance = key - (query + length_k - length)
                seen = (left < 0 or distance >= -left) and (right < 0 or distance <= right)
                pairs += seen and not (problem.causal and distance > 0)
    assert visible_pairs(problem) == pairs
    assert problem.flops == 4 * 4 * 24 * pairs


def test_some_texts_have_the_ends_and_the_extremes() -> None:
    lengths = [0, 5, 9, 1, 30, 0, 7, 8, 0]
    chosen = some(lengths)
    assert {1, 3, 4, 7} <= set(chosen)
    assert all(lengths[text] > 0 for text in chosen)
    assert len(set(chosen)) == len(chosen)
    assert some([0, 0]) == [0]
    assert some([]) == []
