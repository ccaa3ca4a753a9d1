"""The predicting head's kernel in the interpreter: the eager op in fp64 by the 2x rule, exact ties, refusals."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mlm_head_cases import Head, Weights, assert_right, cut_in, predict, prepared, ranked
from operands import DTYPES, LAYOUTS, alike, distinct, grid, sampled
from torch import Tensor

from padless.engine.errors import InputError
from padless.engine.ops.linear import ACTIVATIONS
from padless.kernels import mlm_head as kernels

TOP_K = (None, 1, 2, 5, 10)
PARTS = ("all", "none", "decoder", "no decoder")
VOCABULARIES = (1, 2, 3, 31, 63, 64, 65, 127, 128, 129, 257, 400)
CASES = sampled(
    Head, 440, seed=5, dtype=DTYPES, rows=(0, 1, 2, 15, 16, 17, 33), hidden=(16, 17, 33, 64, 65, 96),
    own=(0, 0, 1, 7, 15), vocab=VOCABULARIES, top_k=TOP_K, parts=PARTS, epilogue=tuple(ACTIVATIONS),
    eps=(1e-12, 1e-5, 0.1), layout=LAYOUTS, weights=LAYOUTS, magnitude=(0.1, 1.0, 5.0),
    spread=(0.1, 1.0, 30.0, 1000.0), cut=(0, 0, 1, 2, 3), draw=range(100),
)  # fmt: skip


@pytest.mark.parametrize("head", grid(CASES, unmarked=24))
def test_two_times_rule(head: Head) -> None:
    assert_right(head, *head.operands())


@pytest.mark.parametrize("epilogue", ACTIVATIONS)
@pytest.mark.parametrize("top_k", [None, 2])
def test_every_activation(top_k: int | None, epilogue: str) -> None:
    head = Head(torch.float32, epilogue=epilogue, top_k=top_k, magnitude=2.0)
    assert_right(head, *head.operands())


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("own", [0, 9])
@pytest.mark.parametrize("top_k", [None, 3])
def test_every_combination_of_parts(top_k: int | None, own: int, parts: str) -> None:
    head = Head(torch.float16, own=own, parts=parts, top_k=top_k)
    assert_right(head, *head.operands())


@pytest.mark.grid
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("own", [0, 128])
@pytest.mark.parametrize("top_k", [None, 5])
def test_a_larger_head(top_k: int | None, own: int, dtype: torch.dtype) -> None:
    head = Head(dtype, rows=3, hidden=256, own=own, vocab=1000, top_k=top_k)
    assert_right(head, *head.operands())


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_logits(dtype: torch.dtype) -> None:
    # In fp16 eager's are infinite: values and log-sum-exp are fp32 and need not be.
    head = Head(dtype, rows=17, vocab=130, spread=4e4)
    values, _, lse = assert_right(head, *head.operands())
    assert values.max() > 70000
    assert lse.isfinite().all()


def test_low_logits_keep_their_sum() -> None:
    # All exponentials are 0 but for the shift by the highest.
    head = Head(torch.float32, vocab=200)
    rows, weights = head.operands()
    shifted = tuple(weight - 5000 if i == 5 and weight is not None else weight for i, weight in enumerate(weights))
    values, _, lse = assert_right(head, rows, shifted)
    assert (lse < -4900).all()
    assert (lse > values[:, 0]).all()


def planted(rows: int, width: int, vocab: int, dtype: torch.dtype, own: int = 0, top: int = 3) -> Any:
    """Operands whose logits are whole numbers, exact in every dtype, and those logits as integers.

    Of rows of as many -1 as 1 the norm makes the same rows again.
    """
    generator = torch.Generator().manual_seed(width + vocab)
    signs = torch.cat([torch.ones(width // 2), -torch.ones(width // 2)])
    hidden = torch.stack([signs[torch.randperm(width, generator=generator)] for _ in range(rows)])
    decoder = torch.randint(-top, top + 1, (vocab, width), generator=generator)
    bias = torch.randint(-top, top + 1, (vocab,), generator=generator)
    logits = hidden.long() @ decoder.T + bias
    assert logits.abs().max() <= 256
    eye, ones = torch.eye(width), torch.ones(width)
    own_weight = decoder[:, width - own :].T.contiguous().to(dtype) if own else None
    weights = (eye, None, ones, None, decoder[:, : width - own].contiguous(), bias)
    return hidden.to(dtype), (*(None if x is None else x.to(dtype) for x in weights), own_weight), logits


TIES = sampled(
    SimpleNamespace,
    72,
    seed=6,
    dtype=DTYPES,
    top_k=(1, 2, 5, 10),
    vocab=(2, 63, 64, 65, 129, 1000),
    rows=(1, 3, 17),
    cut=(0, 1, 3, 4),
)


@pytest.mark.parametrize("case", grid(TIES, unmarked=16))
def test_of_equal_logits_the_lower_id_comes_first(case: SimpleNamespace) -> None:
    vocab, rows, top_k, dtype = case.vocab, case.rows, case.top_k, case.dtype
    hidden, weights, logits = planted(rows, 18, vocab, dtype)
    config = cut_in(case.cut) if case.cut else None
    values, ids, lse = ranked(hidden, weights, top_k=top_k, epilogue="none", config=config)
    expected = logits.sort(dim=1, descending=True, stable=True)
    assert torch.equal(values, expected.values[:, :top_k].float())
    assert torch.equal(ids, expected.indices[:, :top_k])
    torch.testing.assert_close(lse, logits.double().logsumexp(1).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("own", [1, 6, 17])
def test_exact_logits_of_two_matrices(own: int, dtype: torch.dtype) -> None:
    hidden, weights, logits = planted(5, 18, 70, dtype, own)
    assert torch.equal(predict(hidden, weights, epilogue="none"), logits.to(dtype))
    values, ids, _ = ranked(hidden, weights, top_k=10, epilogue="none")
    expected = logits.sort(dim=1, descending=True, stable=True)
    assert torch.equal(values, expected.values[:, :10].float())
    assert torch.equal(ids, expected.indices[:, :10])


@pytest.mark.parametrize("vocab", [1, 9, 64, 200])
@pytest.mark.parametrize("value", [0.0, -7.0, -torch.inf, torch.inf])
@pytest.mark.parametrize("cut", [0, 2])
def test_all_logits_are_equal(cut: int, value: float, vocab: int) -> None:
    hidden, weights, _ = planted(3, 18, vocab, torch.float32)
    same = (*weights[:4], torch.zeros(vocab, 18), torch.full((vocab,), value), None)
    config = cut_in(cut) if cut else None
    values, ids, lse = ranked(hidden, same, top_k=5, epilogue="none", config=config)
    count = min(5, vocab)
    assert torch.equal(ids, torch.arange(count).expand(3, -1))
    assert torch.equal(values, torch.full((3, count), value))
    expected = torch.full((3, vocab), value).double().logsumexp(1).float()
    torch.testing.assert_close(lse, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("copies", [2, 3, 7])
def test_rows_of_the_decoder_that_are_alike_have_the_same_logits(copies: int, dtype: torch.dtype) -> None:
    # Far from each other, so in other blocks and in other places of them.
    head = Head(dtype, rows=17, vocab=41 * copies, top_k=copies + 1)
    rows, weights = head.operands()
    repeated = list(weights)
    for index in (4, 5):
        part = weights[index]
        assert part is not None
        repeated[index] = part[:41].repeat(copies, *[1] * (part.ndim - 1))
    values, ids, _ = assert_right(head, rows, tuple(repeated))
    assert (values[:, :copies] == values[:, :1]).all()
    assert torch.equal(ids[:, :copies], ids[:, :1] + 41 * torch.arange(copies))
    assert (values[:, copies] < values[:, 0]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 2, 4, 9])
@pytest.mark.parametrize("top_k", [5, 10])
def test_more_than_there_are_is_all_there_are(top_k: int, vocab: int, dtype: torch.dtype) -> None:
    head = Head(dtype, vocab=vocab, top_k=top_k)
    values, ids, lse = assert_right(head, *head.operands())
    count = min(top_k, vocab)
    assert values.shape == (5, count)
    if count == vocab:
        assert torch.equal(ids.sort(dim=1).values, torch.arange(vocab).expand(5, -1))
        torch.testing.assert_close((values - lse[:, None]).exp().sum(dim=1), torch.ones(5), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("left", [0, 1, 3, 20])
@pytest.mark.parametrize(("vocab", "cut"), [(64, 0), (130, 0), (130, 1), (130, 2)])
def test_barred_ids_come_last_and_weigh_nothing(vocab: int, cut: int, left: int, dtype: torch.dtype) -> None:
    # All but some at the end: whole blocks hold nothing but minus infinity.
    head = Head(dtype, rows=3, vocab=vocab, top_k=5, cut=cut)
    rows, weights = head.operands()
    bias = weights[5]
    assert bias is not None
    bias[: vocab - left] = -torch.inf
    values, ids, lse = assert_right(head, rows, weights)
    shown = min(left, 5)
    assert values[:, :shown].isfinite().all()
    assert (values[:, shown:] == -torch.inf).all()
    assert torch.equal(ids[:, shown:], torch.arange(5 - shown).expand(3, -1))
    assert lse.isfinite().all() if left else (lse == -torch.inf).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("top_k", [None, 5])
def test_what_is_not_finite_stays_in_its_row(top_k: int | None, value: float) -> None:
    head = Head(torch.float32, rows=19, vocab=130, top_k=top_k)
    rows, weights = head.operands()
    before = results(predict(rows, weights, **head.options))
    rows[7, 3] = value
    after = results(predict(rows, weights, **head.options))
    others = torch.arange(19) != 7
    for found, expected in zip(after, before, strict=True):
        assert torch.equal(found[others], expected[others])
    if top_k is None:
        assert after[0][7].isnan().all()


def results(found: Any) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("top_k", "own"), [(None, 0), (None, 5), (3, 0), pytest.param(10, 5, marks=pytest.mark.grid)])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(top_k: int | None, own: int, dtype: torch.dtype) -> None:
    head = Head(dtype, rows=66, own=own, vocab=70, top_k=top_k, layout="columns")
    rows, weights = head.operands()
    whole = results(predict(rows, weights, **head.options))
    for start, stop in ((65, 66), (4, 6), (10, 27), (1, 66)):
        part = results(predict(rows[start:stop], weights, **head.options))
        assert all(alike(got, expected[start:stop]) for got, expected in zip(part, whole, strict=True)), (start, stop)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_highest_are_among_all(dtype: torch.dtype) -> None:
    head = Head(dtype, rows=17, vocab=130, top_k=7)
    rows, weights = head.operands()
    every = predict(rows, weights, **{**head.options, "top_k": None})
    values, ids, _ = assert_right(head, rows, weights)
    # All of them are rounded to the dtype.
    torch.testing.assert_close(every.gather(1, ids).float(), values, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("top_k", [1, 5])
def test_fewer_are_the_first_of_more(top_k: int) -> None:
    head = Head(torch.bfloat16, rows=3, vocab=300, top_k=10)
    rows, weights = head.operands()
    more = predict(rows, weights, **head.options)
    fewer = predict(rows, weights, **{**head.options, "top_k": top_k})
    assert torch.equal(fewer[0], more[0][:, :top_k])
    assert torch.equal(fewer[1], more[1][:, :top_k])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("own", [0, 6])
def test_no_rows(own: int, top_k: int | None, dtype: torch.dtype) -> None:
    head = Head(dtype, rows=0, own=own, top_k=top_k)
    assert_right(head, *head.operands())


@pytest.mark.parametrize("top_k", [None, 5])
def test_a_second_call_gives_the_same_bits_and_changes_no_input(top_k: int | None) -> None:
    head = Head(torch.float16, rows=17, own=6, vocab=130, top_k=top_k)
    rows, weights = head.operands()
    copies = [None if x is None else x.clone() for x in (rows, *weights)]
    first, second = (results(predict(rows, weights, **head.options)) for _ in range(2))
    assert all(map(alike, first, second))
    for copy, x in zip(copies, (rows, *weights), strict=True):
        assert copy is None or x is None or alike(copy, x)


@pytest.mark.parametrize("top_k", [None, 5])
def test_every_candidate_obeys_the_rule(top_k: int | None) -> None:
    head = Head(torch.bfloat16, rows=3, hidden=40, own=8, vocab=150, top_k=top_k)
    rows, weights = head.operands()
    for config in distinct(kernels.CANDIDATES):
        assert_right(head, rows, weights, config=config)


HEAD = Head(torch.float32, own=6)
REFUSED_ROWS: dict[str, Tensor] = {
    "of another width": torch.zeros(5, 33),
    "with three dimensions": torch.zeros(5, 1, 34),
    "with one dimension": torch.zeros(34),
    "in fp64": torch.zeros(5, 34, dtype=torch.float64),
    "in another dtype than the weights": torch.zeros(5, 34, dtype=torch.bfloat16),
    "of integers": torch.zeros(5, 34, dtype=torch.int64),
    "elsewhere": torch.zeros(5, 34, device="meta"),
}


def assert_one_line(refusal: pytest.ExceptionInfo[InputError], op: str = "mlm_head") -> None:
    message = str(refusal.value)
    assert message.startswith(op), message
    assert "\n" not in message


@pytest.mark.parametrize("what", REFUSED_ROWS)
@pytest.mark.parametrize("top_k", [None, 3])
def test_refused_rows(top_k: int | None, what: str) -> None:
    weights = prepared(HEAD.operands()[1])
    with pytest.raises(InputError) as refusal:
        kernels.mlm_head(REFUSED_ROWS[what], *weights, top_k=top_k)
    assert_one_line(refusal)


@pytest.mark.parametrize(
    "changed",
    [{"top_k": 0}, {"top_k": -1}, {"top_k": 1.5}, {"top_k": "all"}, {"epilogue": "swish"}, {"epilogue": None}],
    ids=str,
)
def test_refused_options(changed: dict[str, Any]) -> None:
    # The epilogue is that of the head's first layer, whose name is as good.
    rows, weights = HEAD.operands()
    with pytest.raises(InputError) as refusal:
        kernels.mlm_head(rows, *prepared(weights), **{**HEAD.options, **changed})
    assert_one_line(refusal, "" if "epilogue" in changed else "mlm_head")
    assert next(iter(changed)) in str(refusal.value)


def without(weights: Weights, index: int, part: Tensor | None) -> Weights:
    return tuple(part if i == index else weight for i, weight in enumerate(weights))


@pytest.mark.parametrize(
    ("index", "shape"),
    [(0, (34, 33)), (0, (33, 34)), (1, (33,)), (2, (35,)), (3, (1,)), (4, (65, 29)), (5, (64,)), (6, (5, 65)),
     (6, (6, 64))],
)  # fmt: skip
def test_refused_weights(index: int, shape: tuple[int, ...]) -> None:
    rows, weights = HEAD.operands()
    with pytest.raises(InputError) as refusal:
        predict(rows, without(weights, index, torch.zeros(shape)), top_k=3)
    assert_one_line(refusal)


def test_refused_where_the_decoder_is_too_narrow() -> None:
    rows, weights = HEAD.operands()
    with pytest.raises(InputError) as refusal:
        predict(rows, without(weights, 6, None), top_k=3)
    assert_one_line(refusal)


def test_refused_gradients() -> None:
    rows, weights = HEAD.operands()
    wanted = rows.clone().requires_grad_()
    with pytest.raises(InputError) as refusal:
        predict(wanted, weights, top_k=3)
    assert_one_line(refusal)
    with torch.no_grad():
        predict(wanted, weights, top_k=3)


def test_a_count_of_another_library_is_taken() -> None:
    rows, weights = HEAD.operands()
    expected = predict(rows, weights, top_k=3)
    found = predict(rows, weights, top_k=torch.tensor([1, 2, 3]).numpy()[-1])
    assert all(map(alike, found, expected))


def test_operands_may_lie_anywhere() -> None:
    plain = Head(torch.float32, own=6, vocab=70)
    expected = predict(*plain.operands(), **plain.options)
    for layout, weights in zip(LAYOUTS, LAYOUTS[1:] + LAYOUTS[:1], strict=True):
        head = dataclasses.replace(plain, layout=layout, weights=weights)
        assert all(map(alike, predict(*head.operands(), **head.options), expected))
