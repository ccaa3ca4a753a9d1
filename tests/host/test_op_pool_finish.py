"""What `pool` does behind the reduction, eager: unit length, the finite flag, which Normalize becomes part of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from padless.engine.batch import PackedBatch, TokenizedTexts, pack
from padless.engine.embedding.pooling import SentenceHead
from padless.engine.folders.sentence_transformer import POOLING_MODES, DenseSpec, NormalizeSpec, PoolingSpec
from padless.engine.ops.pool import pool

CPU = torch.device("cpu")
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LENGTHS = (3, 130, 7, 64, 1)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def starts(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)


def packed(lengths: Sequence[int]) -> PackedBatch:
    flags = np.zeros(len(lengths), dtype=bool)
    texts = TokenizedTexts(np.zeros(sum(lengths), np.int32), np.array(lengths, np.int32), None, flags, flags)
    return pack(texts, np.arange(len(lengths)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("skip", [0, 3])
@pytest.mark.parametrize("mode", POOLING_MODES)
def test_a_normalised_vector_is_the_vector_over_its_length(mode: str, skip: int, dtype: torch.dtype) -> None:
    lengths = (5, 9, 4, 130)
    hidden = normal(sum(lengths), 33, dtype=dtype)
    vectors = pool(hidden, starts(lengths), mode=mode, skip=skip)
    unit = pool(hidden, starts(lengths), mode=mode, skip=skip, normalize=True)
    values = vectors.double().numpy()
    expected = values / np.sqrt((values**2).sum(axis=1, keepdims=True))
    assert unit.dtype == vectors.dtype
    tolerance = 1e-14 if dtype == torch.float64 else 3e-7
    np.testing.assert_allclose(unit.double().numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_lengths_below_the_limit_are_taken_for_the_limit(mode: str) -> None:
    # Longer than 1e-12, shorter, and nothing at all.
    hidden = torch.tensor([[3e-12, 4e-12], [3e-13, 4e-13], [0.0, 0.0]], dtype=torch.float64)
    unit = pool(hidden, starts((1, 1, 1)), mode=mode, normalize=True)
    np.testing.assert_allclose(unit.numpy(), [[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]], rtol=1e-14)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("mode", POOLING_MODES)
def test_finite_tells_the_texts_apart(mode: str, bad: float, normalize: bool) -> None:
    lengths = (1, 3, 2, 1)
    hidden = normal(7, 5)
    hidden[1:4, 4] = bad
    hidden[6, 0] = bad
    vectors, finite = pool(hidden, starts(lengths), mode=mode, normalize=normalize, return_finite=True)
    assert finite.dtype == torch.bool
    assert finite.tolist() == [True, False, True, False]
    assert vectors[[0, 2]].isfinite().all()
    assert torch.equal(vectors[[0, 2]], pool(hidden, starts(lengths), mode=mode, normalize=normalize)[[0, 2]])


def test_finite_is_about_the_vector_before_it_is_normalised() -> None:
    # The length overflows in fp32, not the vector; and normalising turns the channel that is infinite into NaN.
    hidden = torch.tensor([[3e30, -3e30], [torch.inf, 1.0]])
    vectors, finite = pool(hidden, starts((1, 1)), mode="mean", normalize=True, return_finite=True)
    assert finite.tolist() == [True, False]
    assert vectors[0].tolist() == [0.0, -0.0]


def test_a_sum_beyond_fp32_is_not_finite() -> None:
    hidden = torch.full((3, 2), 2e38)
    assert pool(hidden, starts((1, 2)), mode="mean", return_finite=True)[1].tolist() == [True, False]


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_no_texts_have_no_flags(mode: str) -> None:
    vectors, finite = pool(normal(0, 7), starts(()), mode=mode, normalize=True, return_finite=True)
    assert vectors.shape == (0, 7)
    assert finite.shape == (0,)


@pytest.mark.parametrize("lengths", [(0, 5, 0, 0, 9, 0), (5, 9, 0, 0), (0, 3), (0, 0)])
@pytest.mark.parametrize("mode", POOLING_MODES)
def test_a_text_without_a_token_takes_no_other_text_s_row(mode: str, lengths: tuple[int, ...]) -> None:
    hidden = torch.randn(sum(lengths), 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    edges = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    rows = pool(hidden, edges, mode=mode)
    empty = torch.tensor([length == 0 for length in lengths])
    assert torch.equal(rows[empty], rows.new_full((int(empty.sum()), 6), -torch.inf if mode == "max" else 0.0))
    there = torch.tensor([0, *(length for length in lengths if length)]).cumsum(0).to(torch.int32)
    assert torch.equal(rows[~empty], pool(hidden, there, mode=mode))


@pytest.mark.parametrize("width", [1, 33, 1024])
@pytest.mark.parametrize("mode", POOLING_MODES)
def test_a_normalised_text_has_the_same_bits_among_others(mode: str, width: int) -> None:
    hidden = normal(sum(LENGTHS), width, dtype=torch.float32)
    together = pool(hidden, starts(LENGTHS), mode=mode, normalize=True)
    for row, text in enumerate(hidden.split(list(LENGTHS))):
        assert torch.equal(pool(text, starts(LENGTHS[row : row + 1]), mode=mode, normalize=True)[0], together[row])


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_gradients_flow_through_the_norm(mode: str) -> None:
    hidden = normal(9, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pool(x, starts((4, 5)), mode=mode, normalize=True), (hidden,))


@pytest.mark.parametrize(
    ("modes", "behind", "within", "left"),
    [
        (("mean",), (NormalizeSpec(),), True, 0),
        (("cls",), (NormalizeSpec(), NormalizeSpec()), True, 1),
        (("mean",), (), False, 0),
        # The length of several vectors side by side is not that of each.
        (("mean", "max"), (NormalizeSpec(),), False, 1),
    ],
)
def test_a_normalize_right_behind_one_pooling_is_part_of_the_op(
    modes: tuple[str, ...], behind: tuple[NormalizeSpec, ...], within: bool, left: int
) -> None:
    head = SentenceHead.from_specs([PoolingSpec(modes), *behind], 33, "folder")
    head.bind(CPU, torch.float32, backend="auto", deterministic=False)
    assert [op.options.get("normalize", False) for op in head.pooling.pools] == [within] * len(modes)
    assert len(head.rest) == left
    hidden = normal(sum(LENGTHS), 33, dtype=torch.float32)
    vectors = torch.cat([pool(hidden, starts(LENGTHS), mode=mode) for mode in modes], dim=1)
    for _ in behind:
        vectors = torch.nn.functional.normalize(vectors, dim=-1)
    assert torch.equal(head(hidden, packed(LENGTHS)), vectors)


def test_a_dense_in_between_leaves_the_normalize_where_it_is(tmp_path: Path) -> None:
    weight = normal(4, 6, dtype=torch.float32)
    save_file({"linear.weight": weight}, tmp_path / "model.safetensors")
    dense = DenseSpec(tmp_path, 6, 4, bias=False, activation="identity")
    head = SentenceHead.from_specs([PoolingSpec(("mean",)), dense, NormalizeSpec()], 6, "folder")
    head.bind(CPU, torch.float32, backend="auto", deterministic=False)
    assert len(head.rest) == 2
    hidden = normal(9, 6, dtype=torch.float32)
    vectors = pool(hidden, starts((4, 5)), mode="mean") @ weight.T
    torch.testing.assert_close(head(hidden, packed((4, 5))), torch.nn.functional.normalize(vectors, dim=-1))


@pytest.mark.parametrize("behind", [(), (NormalizeSpec(),)], ids=["plain", "unit"])
def test_the_op_knows_the_width_of_its_rows(behind: tuple[NormalizeSpec, ...]) -> None:
    head = SentenceHead.from_specs([PoolingSpec(("mean",)), *behind], 33, "folder")
    head.bind(CPU, torch.float32, backend="auto", deterministic=False)
    resolution = head.pooling.pools[0].resolution
    assert resolution is not None
    assert (resolution.call.op, resolution.call.hidden) == ("pool", 33)
