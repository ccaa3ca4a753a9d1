"""MobileBERT's layer as two ops around its attention: the same as its modules one by one, and only where nothing has to
happen between them. A row that fuses is stood in for by the eager functions under another name.
"""

from __future__ import annotations

import copy
import itertools
import pickle
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import padless
from padless.engine.batch import PackedBatch
from padless.engine.contract import Impl
from padless.engine.dispatch import TABLE
from padless.engine.ops import mobilebert

FIELDS: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 32,
    "embedding_size": 12,
    "intra_bottleneck_size": 20,
    "intermediate_size": 28,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_feedforward_networks": 3,
    "initializer_range": 0.1,
}
LENGTHS = (5, 1, 9)

calls: list[str] = []


def mobilebert_in(*args: Any, **options: Any) -> Any:
    calls.append("in")
    return mobilebert.mobilebert_in(*args, **options)


def mobilebert_out(*args: Any, **options: Any) -> Any:
    calls.append("out")
    return mobilebert.mobilebert_out(*args, **options)


@pytest.fixture(autouse=True)
def fused_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    calls.clear()
    for op in ("mobilebert_in", "mobilebert_out"):
        row = Impl("stand_in", f"{__name__}:{op}", deterministic=True)
        monkeypatch.setitem(TABLE, op, (row, *TABLE[op]))
    # Where tests are imported by path their modules have no name to be found by.
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(**globals()))


def model(dtype: torch.dtype = torch.float64, **fields: Any) -> Any:
    torch.manual_seed(5)
    made = padless.MobileBertModel(padless.MobileBertConfig(**{**FIELDS, **fields}))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return made.to(dtype).eval().requires_grad_(False)


def batch() -> PackedBatch:
    tokens = sum(LENGTHS)
    ids = torch.randint(0, 31, (tokens,), generator=torch.Generator().manual_seed(2))
    places = torch.cat([torch.arange(length) for length in LENGTHS])
    edges = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
    return PackedBatch(ids, places, None, edges, torch.tensor(LENGTHS, dtype=torch.int32), max(LENGTHS))


def composed(made: Any, *args: Any, **options: Any) -> Any:
    """What the modules compute, called one by one."""
    other = copy.deepcopy(made).bind("eager")
    calls.clear()
    out = other(*args, **options)
    assert not calls
    return out


def same(found: Tensor, expected: Tensor, bound: float = 1e-12) -> None:
    assert found.dtype == expected.dtype
    assert (found - expected).abs().max() <= bound * expected.abs().max().clamp(min=1)


BOTH_LAYERS = ["in", "out", "in", "out"]


@pytest.mark.parametrize("norm", ["no_norm", "layer_norm"])
@pytest.mark.parametrize("networks", [1, 2, 4])
def test_the_two_ops_compute_what_the_modules_do(norm: str, networks: int) -> None:
    made = model(normalization_type=norm, num_feedforward_networks=networks, layer_norm_eps=1e-3)
    expected = composed(made, batch(), output_hidden_states=True, output_attentions=True)
    found = made(batch(), output_hidden_states=True, output_attentions=True)
    assert calls == BOTH_LAYERS
    same(found.last_hidden_state, expected.last_hidden_state)
    for name in ("hidden_states", "attentions"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            parts = zip(one, other, strict=True) if isinstance(one, list | tuple) else [(one, other)]
            for a, b in parts:
                same(a, b)


@pytest.mark.parametrize("norm", ["no_norm", "layer_norm"])
def test_in_bfloat16_the_stream_between_the_ops_is_that_of_the_modules(norm: str) -> None:
    made = model(torch.bfloat16, normalization_type=norm)
    exact = composed(copy.deepcopy(made).double(), batch()).last_hidden_state
    bound = (composed(made, batch()).last_hidden_state.double() - exact).abs().max()
    calls.clear()
    found = made(batch()).last_hidden_state
    assert calls == BOTH_LAYERS
    assert found.dtype == torch.bfloat16
    assert (found.double() - exact).abs().max() <= 2 * bound + 2**-8 * exact.abs().max()


@pytest.mark.parametrize(
    "fields",
    [
        {"use_bottleneck": False},
        {"use_bottleneck_attention": True},
        {"key_query_shared_bottleneck": False, "intra_bottleneck_size": 32},
    ],
    ids=str,
)
def test_other_kinds_of_layers_are_called_module_by_module(fields: dict[str, Any]) -> None:
    made = model(**fields)
    same(made(batch()).last_hidden_state, composed(made, batch()).last_hidden_state)
    assert not calls
    assert "mobilebert" not in made.explain()


INSIDE = [
    "bottleneck.input",
    "bottleneck.input.dense",
    "bottleneck.attention.LayerNorm",
    "attention.self",
    "attention.self.key",
    "attention.output.dense",
    "ffn.0",
    "ffn.1.intermediate",
    "ffn.1.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.bottleneck",
    "output.bottleneck.LayerNorm",
]


@pytest.mark.parametrize("name", INSIDE)
def test_a_hook_inside_a_layer_is_called_and_what_it_returns_counts(name: str) -> None:
    made = model()
    before = made(batch()).last_hidden_state
    part = made.encoder.layer[1].get_submodule(name)
    seen = []
    handle = part.register_forward_hook(lambda module, args, out: seen.append(out))
    calls.clear()
    same(made(batch()).last_hidden_state, before)
    assert calls == ["in", "out"]  # of the other layer
    assert seen
    handle.remove()
    part.register_forward_hook(lambda module, args, out: out * 1.5)
    assert (made(batch()).last_hidden_state - before).abs().max() > 1e-5
    part._forward_hooks.clear()
    calls.clear()
    assert torch.equal(made(batch()).last_hidden_state, before)
    assert calls == BOTH_LAYERS


def test_hooks_on_the_layer_itself_do_not_keep_it_from_fusing() -> None:
    made = model()
    seen = []
    made.encoder.layer[0].register_forward_hook(lambda module, args, out: seen.append(out.shape))
    made(batch())
    assert seen == [(sum(LENGTHS), 32)]
    assert calls == BOTH_LAYERS


class Doubled(nn.Module):
    """What an adapter does: another module in the place of a layer, around it."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inner(x)


@pytest.mark.parametrize("name", ["attention.self.query", "ffn.1.output.dense", "output.dense", "intermediate.dense"])
@pytest.mark.parametrize("again", [False, True])
def test_a_layer_replaced_by_another_is_called(name: str, again: bool) -> None:
    made = model()
    expected = model()
    layer = expected.encoder.layer[0].get_submodule(name)
    layer.weight.mul_(2)
    layer.bias.mul_(2)
    owner, _, attribute = name.rpartition(".")
    parent = made.encoder.layer[0].get_submodule(owner)
    made(batch())
    setattr(parent, attribute, Doubled(getattr(parent, attribute)))
    if again:
        made.to(torch.float32).to(torch.float64)
    calls.clear()
    found = made(batch()).last_hidden_state
    assert calls == ["in", "out"]
    same(found, expected(batch()).last_hidden_state, 1e-6 if again else 1e-12)


def test_a_stock_layer_in_the_place_of_another_is_taken_at_the_next_binding() -> None:
    made = model()
    fresh = nn.Linear(28, 20).double().requires_grad_(False)
    made.encoder.layer[0].output.dense = fresh
    expected = composed(made, batch()).last_hidden_state
    same(made(batch()).last_hidden_state, expected)
    assert calls == ["in", "out"]
    calls.clear()
    same(made.bind()(batch()).last_hidden_state, expected)
    assert calls == BOTH_LAYERS


def test_where_a_gradient_is_needed_the_modules_are_called() -> None:
    made = model()
    weight = made.encoder.layer[0].ffn[0].intermediate.dense.weight.requires_grad_()
    made(batch()).last_hidden_state.square().sum().backward()
    # The second layer has no trainable weight, but its input needs a gradient.
    assert not calls
    assert weight.grad is not None
    other = copy.deepcopy(made).bind("eager")
    other.zero_grad()
    other(batch()).last_hidden_state.square().sum().backward()
    same(weight.grad, other.encoder.layer[0].ffn[0].intermediate.dense.weight.grad)
    with torch.no_grad():
        made(batch())
    assert calls == BOTH_LAYERS


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_keeps_a_layer_from_fusing_only_where_it_acts(dropout: float) -> None:
    made = model(hidden_dropout_prob=dropout, attention_probs_dropout_prob=0.0).train()
    with torch.no_grad():
        made(batch())
    assert calls == ([] if dropout else BOTH_LAYERS)
    made.eval()(batch())
    assert calls[-4:] == BOTH_LAYERS


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda made: pickle.loads(pickle.dumps(made)),
    "dtype": lambda made: copy.deepcopy(made).float().double(),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("used", [False, True])
def test_a_copy_fuses_with_weights_of_its_own_in_one_buffer(how: str, used: bool) -> None:
    made = model()
    before = made(batch()).last_hidden_state if used else composed(made, batch()).last_hidden_state
    other = COPIES[how](made)
    calls.clear()
    same(other(batch()).last_hidden_state, before, 1e-6)
    assert calls == BOTH_LAYERS
    layer = other.encoder.layer[0]
    parts = [*(network.intermediate.dense.weight for network in layer.ffn), layer.intermediate.dense.weight]
    for part, following in itertools.pairwise(parts):
        assert following.data_ptr() == part.data_ptr() + part.numel() * part.element_size()
    layer.ffn[0].output.LayerNorm.weight.mul_(2)
    assert (other(batch()).last_hidden_state - before).abs().max() > 1e-4
    same(made(batch()).last_hidden_state, before)
    layer.ffn[0].output.dense.register_forward_hook(lambda module, args, out: seen.append(1))
    seen: list[int] = []
    calls.clear()
    other(batch())
    assert seen == [1]
    assert calls == ["in", "out"]


def test_a_change_of_any_weight_is_seen() -> None:
    made = model()
    unused = []
    for name, parameter in made.encoder.layer[0].named_parameters():
        before = made(batch()).last_hidden_state
        parameter.mul_(1.25).add_(0.1)
        if torch.equal(made(batch()).last_hidden_state, before):
            unused.append(name)
    same(made(batch()).last_hidden_state, composed(made, batch()).last_hidden_state)
    # A shift that all keys share moves all scores of a query alike.
    assert set(unused) <= {"attention.self.key.bias"}


def test_a_checkpoint_is_loaded_into_the_buffers() -> None:
    made, other = model(), model(initializer_range=0.2)
    made(batch())
    made.load_state_dict(other.state_dict())
    same(made(batch()).last_hidden_state, other(batch()).last_hidden_state)


def test_the_explanation_shows_what_is_called() -> None:
    lines = model().explain().splitlines()
    served = {line.split()[0]: line.split()[1:4] for line in lines if line.startswith("mobilebert")}
    assert served == {
        "mobilebert_in": ["stand_in", "float64", "2"],
        "mobilebert_out": ["+", "relu", "stand_in"],
    }
    assert not [line for line in lines if line.startswith("linear + relu")]
    lines = model().bind("eager").explain().splitlines()
    assert [line for line in lines if line.startswith("linear + relu")]
    assert [line for line in lines if line.startswith("mobilebert_in, mobilebert_out where eager: not called")]


def test_a_row_that_no_half_has_leaves_them_to_their_parts() -> None:
    made = model(torch.float32).bind("auto")
    for op in ("mobilebert_in", "mobilebert_out"):
        TABLE[op] = (Impl("cpu", f"{__name__}:no_such_function"), *TABLE[op][1:])
    made.bind("cpu")
    same(made(batch()).last_hidden_state, composed(made, batch()).last_hidden_state, 1e-5)
    assert not calls
    assert "computed by other ops of the table: backend 'cpu' cannot serve mobilebert_in" in made.explain()


def test_the_compiler_traces_a_fused_layer() -> None:
    made = model(torch.float32)
    layer, given = made.encoder.layer[0], batch()
    x = torch.randn(sum(LENGTHS), 32)
    with torch.no_grad():
        expected = layer(x, given)
        calls.clear()
        found = torch.compile(layer, backend="eager")(x, given)
    same(found, expected, 1e-5)
    assert calls[:2] == ["in", "out"]
