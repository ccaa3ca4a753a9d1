"""Rotary positions: angles against transformers', the turn itself against complex numbers, hostile parameters."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import ModernBertConfig as TheirConfig
from transformers.models.modernbert.modeling_modernbert import ModernBertRotaryEmbedding, apply_rotary_pos_emb

from padless.engine.batch import PackedBatch, TokenizedTexts, pack
from padless.engine.contract import Call
from padless.engine.dispatch import resolve
from padless.engine.errors import ConfigError
from padless.engine.models.rope import ROPE_TYPES, Rope, RotaryTables
from padless.engine.ops.rope import rope

MAX = 48
"""`max_position_embeddings` of these tests."""

LONG = {"short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [2.0, 3.5, 5.0, 8.0]}

PARAMETERS: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "default", "rope_theta": 160_000.0},
    {"type": "linear", "factor": 2},
    {"rope_type": "linear", "factor": 3.7, "rope_theta": 500},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 7, "rope_theta": 160_000.0},
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12, "rope_theta": 160_000.0},
    {"rope_type": "yarn", "factor": 9.5, "beta_fast": 4, "beta_slow": 0.5, "original_max_position_embeddings": 2000},
    {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.3},
    {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7},
    {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.25, "truncate": True},
    {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 12},
    {"rope_type": "yarn", "factor": 0.5},
    {"rope_type": "longrope", **LONG, "original_max_position_embeddings": 16},
    {"rope_type": "longrope", **LONG, "factor": 5.0, "original_max_position_embeddings": 16},
    {"rope_type": "longrope", **LONG, "attention_factor": 1.1, "original_max_position_embeddings": 20},
    {"rope_type": "longrope", **LONG},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 0.1,
        "high_freq_factor": 1.0,
        "original_max_position_embeddings": 40,
        "rope_theta": 300.0,
    },
    {"rope_type": "proportional"},
    {"rope_type": "proportional", "partial_rotary_factor": 0.5, "factor": 2.0},
    {"rope_type": "proportional", "partial_rotary_factor": 0.3},
    {"rope_type": "proportional", "partial_rotary_factor": 0.0},
]

IDS = [f"{index}-{item.get('rope_type', 'older')}" for index, item in enumerate(PARAMETERS)]


def ours(parameters: dict[str, Any], head_dim: int = 8, max_positions: int = MAX) -> Rope:
    parameters = {"rope_theta": 10_000.0, **parameters}
    return Rope.from_parameters(parameters, head_dim=head_dim, max_positions=max_positions, source="config.json: rope")


def theirs(parameters: dict[str, Any], length: int) -> tuple[Tensor, Tensor]:
    """cos, sin `[length, head_dim]` of a text alone, from a module that has seen no other text."""
    entry = {"rope_theta": 10_000.0, **copy.deepcopy(parameters)}
    config = TheirConfig(
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        max_position_embeddings=MAX,
        rope_parameters={"full_attention": entry},
        layer_types=["full_attention"],
    )
    module = ModernBertRotaryEmbedding(config)
    cos, sin = module(torch.zeros(1), torch.arange(length)[None], "full_attention")
    return cos[0], sin[0]


def batch_of(lengths: Sequence[int]) -> PackedBatch:
    count = len(lengths)
    array = np.asarray(lengths, dtype=np.int32)
    flags = np.zeros(count, dtype=bool)
    texts = TokenizedTexts(np.zeros(int(array.sum()), dtype=np.int32), array, None, flags, flags)
    return pack(texts, np.arange(count))


# Angles.


@pytest.mark.parametrize("length", [1, 15, 16, 17, 48, 49, 131])
@pytest.mark.parametrize("parameters", PARAMETERS, ids=IDS)
def test_a_text_alone_is_turned_as_by_transformers(parameters: dict[str, Any], length: int) -> None:
    cos, sin = theirs(parameters, length)
    rows, our_cos, our_sin = RotaryTables(ours(parameters)).lookup(batch_of([length]))
    assert our_cos.dtype == our_sin.dtype == torch.float32
    # To the bit: the angle of position 8,192 has a frequency's last bit multiplied by 8,192.
    for mine, reference in ((our_cos, cos), (our_sin, sin)):
        assert torch.equal(torch.cat([mine[rows], mine[rows]], dim=-1), reference)


@pytest.mark.parametrize("parameters", PARAMETERS, ids=IDS)
def test_neighbours_do_not_change_the_angles_of_a_text(parameters: dict[str, Any]) -> None:
    tables = RotaryTables(ours(parameters))
    lengths = (5, 131, 0, 48, 16, 17, 131, 1, 70, 49)
    rows, cos, sin = tables.lookup(batch_of(lengths))
    start = 0
    for length in lengths:
        alone_rows, alone_cos, alone_sin = RotaryTables(ours(parameters)).lookup(batch_of([length]))
        assert torch.equal(cos[rows[start : start + length]], alone_cos[alone_rows])
        assert torch.equal(sin[rows[start : start + length]], alone_sin[alone_rows])
        start += length
    assert start == len(rows)


def test_the_angles_of_modernbert_are_the_formula() -> None:
    # Golden, from the paper's thetas in Python's own arithmetic: 160,000 global, 10,000 local, 64 channels a head.
    for theta in (160_000.0, 10_000.0):
        rope_of = ours({"rope_theta": theta}, head_dim=64, max_positions=8192)
        expected = [theta ** (-2 * pair / 64) for pair in range(32)]
        np.testing.assert_allclose(rope_of.frequencies().numpy(), expected, rtol=4e-7)
    assert ours({"rope_theta": 160_000.0}, head_dim=64).frequencies()[-1] == pytest.approx(9.08885e-06, rel=1e-5)


def test_yarn_lies_between_the_plain_and_the_stretched_angles() -> None:
    plain = ours({}, head_dim=64).frequencies()
    parameters = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    yarn = ours(parameters, head_dim=64)
    found = yarn.frequencies()
    assert torch.equal(found[:1], plain[:1])
    torch.testing.assert_close(found[-1], plain[-1] / 4, rtol=1e-6, atol=0)
    assert bool(((found <= plain * (1 + 1e-6)) & (found >= plain / 4 * (1 - 1e-6))).all())
    assert yarn.scaling == pytest.approx(0.1 * math.log(4) + 1)


def test_given_positions_reach_as_far_as_they_say() -> None:
    # A text of three tokens at positions 0, 600 and 60 counts as 601 long, as in transformers.
    parameters = {"rope_type": "dynamic", "factor": 2.0}
    positions = torch.tensor([4, 2, 0, 600, 60])
    given = replace(batch_of([2, 3]), position_ids=positions, spans=torch.tensor([5, 601]))
    rows, cos, _ = RotaryTables(ours(parameters)).lookup(given)
    reference, _ = theirs(parameters, 601)
    assert torch.equal(cos[rows][2:], reference[[0, 600, 60], :4])
    assert torch.equal(cos[rows][:2], theirs(parameters, 5)[0][[4, 2], :4])


@pytest.mark.parametrize("far", [2**40, -3])
def test_given_positions_cost_no_memory_wherever_they_are(far: int) -> None:
    given = replace(batch_of([2]), position_ids=torch.tensor([0, far]), spans=torch.tensor([max(far, 0) + 1]))
    _, cos, sin = RotaryTables(ours({})).lookup(given)
    assert cos.shape == sin.shape == (2, 4)
    angles = torch.tensor([float(far)]) * ours({}).frequencies()
    assert torch.equal(cos[1], angles.cos())


# Tables.


@pytest.mark.parametrize("name", ["default", "linear", "yarn", "llama3", "proportional"])
def test_tables_are_computed_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = next(item for item in PARAMETERS if item.get("rope_type", "linear") == name)
    calls = []
    computed = Rope.frequencies
    monkeypatch.setattr(Rope, "frequencies", lambda self, regime=0: calls.append(regime) or computed(self, regime))
    tables = RotaryTables(ours(parameters))
    for lengths in ((3, 40), (512,), (17, 17), (9, 300)):
        tables.lookup(batch_of(lengths))
    assert calls == [0]
    tables.lookup(batch_of([513]))
    tables.lookup(batch_of([1024]))
    assert calls == [0, 0]


def test_a_longer_text_keeps_the_bits_of_the_rows_before() -> None:
    tables = RotaryTables(ours({}))
    before = tables.lookup(batch_of([300]))[1].clone()
    after = tables.lookup(batch_of([5000]))[1]
    assert len(after) >= 5000
    assert torch.equal(after[: len(before)], before)


def test_huge_limits_cost_no_memory() -> None:
    for parameters in ({}, {"rope_type": "dynamic", "factor": 2.0}):
        tables = RotaryTables(ours(parameters, max_positions=2**24))
        assert len(tables.lookup(batch_of([7, 9]))[1]) <= 1024


def test_tables_made_in_inference_mode_serve_training() -> None:
    for parameters in PARAMETERS:
        tables = RotaryTables(ours(parameters))
        with torch.inference_mode():
            tables.lookup(batch_of([5, 60, 60]))
        q = torch.randn(125, 2, 8, requires_grad=True)
        turned, _ = rope(q, q, *tables.lookup(batch_of([5, 60, 60])))
        turned.sum().backward()
        assert q.grad is not None


def test_copies_and_empty_batches() -> None:
    tables = RotaryTables(ours({"rope_type": "longrope", **LONG, "original_max_position_embeddings": 16}))
    rows, cos, _ = tables.lookup(batch_of([]))
    assert rows.shape == (0,)
    assert cos.shape[1] == 4
    assert torch.equal(copy.deepcopy(tables).lookup(batch_of([40]))[1], tables.lookup(batch_of([40]))[1])


# Parameters.

HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"rope_type": "axial"}, "rope_type"),
    ({"rope_type": ["linear"]}, "rope_type"),
    ({"rope_type": 3}, "rope_type"),
    ({"type": "su"}, "rope_type"),
    ({"rope_type": "linear"}, "factor: missing"),
    ({"rope_type": "linear", "factor": None}, "factor: missing"),
    ({"rope_type": "linear", "factor": 0}, "factor: expected"),
    ({"rope_type": "linear", "factor": -2.0}, "factor: expected"),
    ({"rope_type": "linear", "factor": True}, "factor: expected"),
    ({"rope_type": "linear", "factor": "2"}, "factor: expected"),
    ({"rope_type": "linear", "factor": math.nan}, "factor: expected"),
    ({"rope_type": "linear", "factor": math.inf}, "factor: expected"),
    ({"rope_type": "linear", "factor": 10**400}, "factor: expected"),
    ({"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"rope_type": "proportional", "partial_rotary_factor": 1.5}, "partial_rotary_factor"),
    ({"rope_theta": None}, "rope_theta: missing"),
    ({"rope_theta": 0.0}, "rope_theta"),
    ({"rope_theta": -1e4}, "rope_theta"),
    ({"rope_theta": 1e300}, "rope_theta"),
    ({"rope_theta": [1e4]}, "rope_theta"),
    ({"rope_type": "yarn", "factor": 4.0, "rope_theta": 1}, "rope_theta"),
    ({"rope_type": "yarn", "factor": 4.0, "truncate": False}, "truncate"),
    ({"rope_type": "yarn", "factor": 4.0, "beta_fast": 0}, "beta_fast"),
    ({"rope_type": "yarn", "factor": 4.0, "mscale": -30.0, "mscale_all_dim": 1.0}, "mscale"),
    ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0}, "original_max_position_embeddings"),
    ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 9.5}, "original_max_position_embeddings"),
    ({"rope_type": "longrope", "short_factor": [1.0] * 4}, "long_factor: missing"),
    ({"rope_type": "longrope", **LONG, "long_factor": [1.0] * 3}, "long_factor: expected a list of 4"),
    ({"rope_type": "longrope", **LONG, "long_factor": [1.0] * 10**6}, "long_factor: expected a list of 4"),
    ({"rope_type": "longrope", **LONG, "short_factor": 2.0}, "short_factor: expected a list of 4"),
    ({"rope_type": "longrope", **LONG, "short_factor": [1.0, 0.0, 1.0, 1.0]}, r"short_factor\[1\]"),
    ({"rope_type": "longrope", **LONG, "short_factor": [1.0, "x", 1.0, 1.0]}, r"short_factor\[1\]"),
    ({"rope_type": "longrope", **LONG, "original_max_position_embeddings": 1}, "original_max_position_embeddings"),
    ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}, "high_freq_factor: missing"),
    ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}, "high_freq_factor"),
    ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0, "high_freq_factor": 4.0}, "low_freq_factor"),
    ({"rope_type": "default", "mrope_section": [2, 3, 3]}, "mrope_section"),
    ({"full_attention": {"rope_type": "default"}}, "full_attention"),
]


@pytest.mark.parametrize(("parameters", "message"), HOSTILE)
def test_hostile_parameters_are_refused_in_one_line(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ours(parameters)
    assert str(caught.value).startswith("config.json: rope: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("parameters", "head_dim"), [({}, 7), ({"rope_type": "dynamic", "factor": 2.0}, 2)])
def test_heads_that_cannot_be_turned_are_refused(parameters: dict[str, Any], head_dim: int) -> None:
    with pytest.raises(ConfigError, match="channels a head"):
        ours(parameters, head_dim=head_dim)


def test_a_parameter_that_the_type_does_not_read_is_named(caplog: pytest.LogCaptureFixture) -> None:
    found = ours({"rope_type": "default", "factor": 4.0, "partial_rotary_factor": 1.0})
    assert torch.equal(found.frequencies(), ours({}).frequencies())
    assert ["does not read factor" in record.message for record in caplog.records] == [True]


def test_every_type_of_transformers_is_known() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    assert set(ROPE_TYPES) == {"default", *ROPE_INIT_FUNCTIONS}
    assert {item.get("rope_type", "linear") for item in PARAMETERS} == set(ROPE_TYPES)


# The op.


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("lengths", [(), (1,), (1, 1, 1), (63,), (17, 128, 1, 65)])
@pytest.mark.parametrize(("heads", "heads_k", "head_dim"), [(1, 1, 2), (3, 1, 10), (12, 12, 64)])
def test_the_turn_is_a_complex_product(lengths: tuple[int, ...], heads: int, heads_k: int, head_dim: int) -> None:
    batch = batch_of(lengths)
    angles = torch.arange(200, dtype=torch.float64)[:, None] * normal(head_dim // 2, seed=3)
    q, k = normal(batch.tokens, heads, head_dim), normal(batch.tokens, heads_k, head_dim, seed=1)
    turned = rope(q, k, batch.position_ids, angles.cos(), angles.sin())
    turn = torch.polar(torch.ones((), dtype=torch.float64), angles[batch.position_ids])[:, None]
    for out, x in zip(turned, (q, k), strict=True):
        first, second = x.chunk(2, dim=-1)
        expected = torch.complex(first, second) * turn
        assert out.dtype == torch.float64
        torch.testing.assert_close(out, torch.cat([expected.real, expected.imag], dim=-1), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_turn_is_that_of_transformers(dtype: torch.dtype) -> None:
    batch = batch_of([33])
    rows, cos, sin = RotaryTables(ours({}, head_dim=10)).lookup(batch)
    # Strided, as the parts of one projection are.
    q, k, _ = normal(33, 3, 4, 10, dtype=dtype).unbind(1)
    their_cos, their_sin = (torch.cat([table[:33], table[:33]], dim=-1)[None] for table in (cos, sin))
    expected = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], their_cos, their_sin)
    for out, reference in zip(rope(q, k, rows, cos, sin), expected, strict=True):
        assert out.dtype == dtype
        assert torch.equal(out, reference[0].transpose(0, 1))


def test_half_precision_is_turned_in_fp32() -> None:
    q = normal(400, 2, 64, dtype=torch.bfloat16)
    tables = RotaryTables(ours({}, head_dim=64)).lookup(batch_of([400]))
    wide, _ = rope(q.float(), q.float(), *tables)
    out, _ = rope(q, q, *tables)
    assert torch.equal(out, wide.bfloat16())


def test_scores_depend_on_distance_alone() -> None:
    tables = RotaryTables(ours({"rope_theta": 160_000.0}, head_dim=16)).lookup(batch_of([40]))
    q, k = (normal(1, 1, 16, seed=seed).expand(40, 1, 16) for seed in (5, 6))
    turned_q, turned_k = (x[:, 0] for x in rope(q, k, *tables))
    scores = turned_q @ turned_k.T
    for distance in (-39, -3, 0, 1, 20):
        line = scores.diagonal(distance)
        torch.testing.assert_close(line, line[:1].expand_as(line), rtol=0, atol=2e-5)
    assert (scores[0, 3] - scores[3, 0]).abs() > 1e-2


def test_gradients_are_those_of_the_formula() -> None:
    q, k = normal(9, 2, 6).requires_grad_(), normal(9, 1, 6, seed=1).requires_grad_()
    batch = batch_of([4, 5])
    angles = torch.arange(8, dtype=torch.float64)[:, None] * normal(3, seed=3)
    cos, sin = angles.cos(), angles.sin()
    assert torch.autograd.gradcheck(lambda q, k: rope(q, k, batch.position_ids, cos, sin), (q, k))


def test_a_row_beyond_the_tables_is_an_error() -> None:
    q = normal(2, 1, 4)
    table = torch.ones(3, 2)
    with pytest.raises(IndexError):
        rope(q, q, torch.tensor([0, 3]), table, table)
    with pytest.raises(IndexError):
        rope(q, q, torch.tensor([0, -1]), table, table)


def test_the_table_serves_rope() -> None:
    for device, sm, row in (("cpu", None, "eager"), ("cuda", 90, "triton")):
        resolution = resolve(Call("rope", device, torch.bfloat16, sm=sm, head_dim=64, deterministic=True))
        assert resolution.impl.name == row
        assert resolution.gradient is rope
