"""The attention kernel, case by case: against eager in fp64 by the 2x rule, output and log-sum-exp."""

from __future__ import annotations

import itertools

import pytest
import torch
from attention_cases import CONFIGS, KINDS, SMALL, Case, Kind, check, mixed, parameters
from lengths import HOSTILE, around
from operands import DTYPES, LAYOUTS

from padless.kernels.launch import Config

HEAD_DIMS = (16, 24, 32, 40, 48, 60, 64, 80, 96, 128, 256)
SHORT = (21, 1, 0, 34)

# Of every head_dim in every dtype one kind is in each run: the kinds take turns along the diagonals.
HEADS = [
    pytest.param(
        Case(SHORT, head_dim=head_dim, dtype=dtype, config=CONFIGS[(i + 2 * j + k) % len(CONFIGS)], **KINDS[kind]),
        id=f"{head_dim}-{str(dtype).removeprefix('torch.')}-{kind}",
        marks=() if (i + 3 * j) % len(KINDS) == k else pytest.mark.grid,
    )
    for (i, head_dim), (j, dtype), (k, kind) in itertools.product(
        enumerate(HEAD_DIMS), enumerate(DTYPES), enumerate(KINDS)
    )
]


@pytest.mark.parametrize("case", HEADS)
def test_head_dims_dtypes_and_windows(case: Case) -> None:
    check(case)


AROUND_TILES: tuple[Kind, ...] = (
    {},
    {"window": (15, 16)},
    {"window": (16, 15)},
    {"window": (17, 0), "causal": True},
)
WITH_BIAS: tuple[Kind, ...] = ({}, {"causal": True}, {"window": (20, 33)}, {"window": (8, 4)})
WITH_LAYOUTS: tuple[Kind, ...] = ({}, {"window": (10, 4)})
WINDOWS_OF_64: tuple[Kind, ...] = (
    {},
    {"window": (64, 64)},
    {"causal": True},
    {"window": (64, -1)},
    {"window": (0, 0)},
)


@pytest.mark.parametrize(
    "case",
    parameters(
        mixed(
            [
                Case(lengths, config=None, **kind)
                for lengths, kind in itertools.product(HOSTILE.values(), WINDOWS_OF_64)
            ],
            dtype=DTYPES,
            layout=("fused", "columns"),
        ),
        every=4,
    ),
)
def test_hostile_lengths_with_the_shipped_tiles(case: Case) -> None:
    check(case)


@pytest.mark.parametrize(
    "case",
    parameters(
        mixed(
            [
                Case(lengths, head_dim=16, heads=1, heads_k=1, **kind)
                for lengths, kind in itertools.product(
                    (around(16), around(32), (0, 17, 0, 0, 33, 0), (1, 90, 2, 1)),
                    AROUND_TILES,
                )
            ],
            dtype=DTYPES,
            config=CONFIGS[:4],
        ),
        every=4,
    ),
)
def test_hostile_lengths_and_windows_around_small_tiles(case: Case) -> None:
    check(case)


CROSS = {
    "fewer keys": ((9, 17, 4), (5, 1, 4)),
    "more keys": ((5, 1, 18), (40, 17, 19)),
    "texts without keys": ((6, 3, 8, 2), (0, 20, 0, 5)),
    "texts without queries": ((0, 7, 0), (11, 3, 16)),
    "no keys at all": ((4, 2), (0, 0)),
    "no queries at all": ((0, 0), (4, 2)),
}


@pytest.mark.parametrize(
    "case",
    parameters(
        mixed(
            [Case(q, k, **kind) for (q, k), kind in itertools.product(CROSS.values(), KINDS.values())],
            dtype=DTYPES,
            config=CONFIGS,
            heads=(2, 4, 6),
            heads_k=(2, 1),
        ),
        every=4,
    ),
)
def test_cross_attention(case: Case) -> None:
    check(case)


# Buckets, distance from which all share the last one, bidirectional. The texts reach beyond most of the distances.
BIASES = tuple(
    (buckets, distance, both)
    for buckets, distance in ((32, 128), (32, 20), (8, 12), (12, 50), (4, 3))
    for both in (True, False)
)


@pytest.mark.parametrize(
    "case",
    parameters(
        mixed(
            [
                Case((70, 5, 0, 1), bias=bias, scale=1.0, heads=heads, heads_k=2, **kind)
                for bias, kind, heads in itertools.product(BIASES, WITH_BIAS[:3], (2, 4))
            ],
            dtype=DTYPES,
            config=CONFIGS,
            head_dim=(16, 64, 24, 32),
        ),
        every=6,
    ),
)
def test_relative_position_bias(case: Case) -> None:
    check(case)


@pytest.mark.parametrize(
    "case",
    parameters(
        mixed(
            [Case((9, 40), (60, 23), bias=bias, **kind) for bias, kind in itertools.product(BIASES[:6], WITH_BIAS[1:])],
            dtype=DTYPES,
            config=CONFIGS,
        ),
        every=6,
    ),
)
def test_relative_position_bias_where_keys_are_others(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("both", [True, False])
def test_relative_position_bias_of_a_long_text_with_the_shipped_tiles(dtype: torch.dtype, both: bool) -> None:
    check(Case((400, 3), dtype=dtype, bias=(32, 128, both), scale=1.0, heads=1, heads_k=1, config=None))


@pytest.mark.parametrize(
    "case",
    parameters(
        mixed(
            [
                Case((19, 33), scale=scale, **kind)
                for scale, kind in itertools.product((1.0, 0.3, 2.0, 0.0, -0.7), KINDS.values())
            ],
            dtype=DTYPES,
            config=CONFIGS,
        ),
        every=3,
    ),
)
def test_softmax_scales(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("scale", [1.0, 0.0, -0.7])
def test_softmax_scales_with_bias(scale: float) -> None:
    check(Case((19, 33), scale=scale, bias=(8, 12, True)))


@pytest.mark.parametrize(
    "case",
    parameters(
        mixed(
            [
                Case((20, 0, 35), layout=layout, heads=heads, heads_k=heads_k, **kind)
                for layout, (heads, heads_k), kind in itertools.product(
                    ("fused", *LAYOUTS), ((4, 2), (3, 1), (6, 3)), WITH_LAYOUTS
                )
            ],
            dtype=DTYPES,
            config=CONFIGS,
            head_dim=(16, 40, 64, 20),
        ),
        every=3,
    ),
)
def test_layouts_and_grouped_heads(case: Case) -> None:
    check(case)


@pytest.mark.parametrize(
    "case",
    parameters(
        mixed(
            [
                Case((33, 18), magnitude=magnitude, **kind)
                for magnitude, kind in itertools.product((1e-3, 10.0, 30.0), KINDS.values())
            ],
            dtype=DTYPES,
            config=CONFIGS,
        ),
        every=3,
    ),
)
def test_magnitudes(case: Case) -> None:
    output, _ = check(case)
    assert output.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("magnitude", [100.0, 1000.0])
def test_scores_beyond_ten_thousand_stay_finite(dtype: torch.dtype, magnitude: float) -> None:
    output, lse = check(Case((33, 18), dtype=dtype, magnitude=magnitude))
    assert output.isfinite().all()
    assert lse.max() > 1e4


@pytest.mark.parametrize("config", [SMALL, Config.of(BLOCK_M=64, BLOCK_N=32), Config.of(BLOCK_M=16, BLOCK_N=128)])
@pytest.mark.parametrize("causal", [False, True])
def test_a_text_far_longer_than_a_tile(config: Config, causal: bool) -> None:
    check(Case((150,), heads=1, heads_k=1, causal=causal, config=config))
    check(Case((150,), heads=1, heads_k=1, causal=causal, window=(64, 64), config=config))
