"""Norms folded into the products behind them, in whole models on interpreted kernels: what is launched, and that all
that hangs on a module is still called.
"""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from operands import in_turn
from torch import Tensor, nn
from triton.runtime.interpreter import InterpretedFunction
from two_times_rule import assert_two_times_rule

import padless
from padless.engine.batch import PackedBatch

LENGTHS = (9, 1)
TOKENS = sum(LENGTHS)
FIELDS: dict[str, dict[str, Any]] = {
    "modernbert": {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
                   "vocab_size": 40, "global_attn_every_n_layers": 2, "local_attention": 8, "norm_bias": True},
    "megatron_bert": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                      "vocab_size": 40, "max_position_embeddings": 32},
    "mt5": {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2, "vocab_size": 40},
}  # fmt: skip
CLASSES = {"modernbert": padless.ModernBertModel, "megatron_bert": padless.MegatronBertModel,
           "mt5": padless.MT5EncoderModel}  # fmt: skip
LAYERS = {
    "modernbert": ("layers.1", "attn_norm", "attn", "attn.Wqkv", "mlp_norm", "mlp", "mlp.Wi"),
    "megatron_bert": ("encoder.layer.1", "attention.ln", "attention.self", "attention.self.query", "ln",
                      "intermediate", "intermediate.dense"),
    "mt5": ("encoder.block.1", "layer.0.layer_norm", "layer.0.SelfAttention", "layer.0.SelfAttention.q",
            "layer.1.layer_norm", "layer.1.DenseReluDense", "layer.1.DenseReluDense.wi_0"),
}  # fmt: skip
"""A layer, and in it what two folded norms stand in for: norm, its reader, a linear layer in that; twice."""
NORMS = {"modernbert": 5, "megatron_bert": 4, "mt5": 4}
"""In front of products, of the tiny models above: ModernBERT's first layer has but one."""

WEIGHTS = {"modernbert": 6, "megatron_bert": 6, "mt5": 1.5}
"""Times those to begin training with, so that every layer counts."""

INSIDE = [(family, name) for family, (_, *names) in LAYERS.items() for name in names]
each_family = pytest.mark.parametrize("family", FIELDS)
each_part = pytest.mark.parametrize(("family", "name"), INSIDE)


def model(family: str, dtype: torch.dtype = torch.bfloat16, backend: str = "triton") -> Any:
    torch.manual_seed(7)
    made = CLASSES[family](CLASSES[family].config_class(**FIELDS[family]))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.mul_(WEIGHTS[family])
    return made.to(dtype).eval().requires_grad_(False).bind(backend)


def batch() -> PackedBatch:
    ids = torch.randint(3, 40, (TOKENS,), generator=torch.Generator().manual_seed(2))
    places = torch.cat([torch.arange(length) for length in LENGTHS])
    edges = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
    return PackedBatch(ids, places, None, edges, torch.tensor(LENGTHS, dtype=torch.int32), max(LENGTHS))


@contextmanager
def launches() -> Iterator[Counter[str]]:
    """Kernels that are started meanwhile, by name."""
    found: Counter[str] = Counter()
    run = InterpretedFunction.run

    def counted(kernel: Any, *args: Any, **options: Any) -> Any:
        found[kernel.fn.__name__] += 1
        return run(kernel, *args, **options)

    with patch.object(InterpretedFunction, "run", counted):
        yield found


def hidden(made: Any) -> Tensor:
    return made(batch()).last_hidden_state


def nothing(made: Any) -> None:
    """No change."""


def assert_as_eager(family: str, made: Any, change: Callable[[Any], object] = nothing) -> Tensor:
    """By the 2x rule, after the same change to each; what the changed model gives."""
    eager, exact = model(family, backend="eager"), model(family, backend="eager").double()
    for other in (made, eager, exact):
        change(other)
    out = hidden(made)
    assert_two_times_rule(out, hidden(eager), hidden(exact))
    return out


@each_family
def test_norms_in_front_of_products_are_no_launches_and_neither_are_their_statistics(family: str) -> None:
    made = model(family)
    with launches() as found:
        hidden(made)
    # The last norm has nothing behind it; the first reads what no product wrote, but for ModernBERT's.
    assert found["norm_kernel"] == 1
    first = 0 if family == "modernbert" else 1
    assert sum(count for name, count in found.items() if "statistics" in name) == first
    assert_as_eager(family, made)


@each_family
def test_the_way_of_the_modules_gives_the_same_by_the_rule(family: str) -> None:
    made = model(family)
    for _, part in made.named_modules():
        part.register_forward_pre_hook(lambda module, args: None)
    with launches() as found:
        hidden(made)
    assert found["norm_kernel"] == NORMS[family] + 1
    assert_as_eager(family, made)


@each_part
def test_a_hook_inside_is_called_with_what_it_always_was_and_what_it_returns_counts(family: str, name: str) -> None:
    seen: list[Tensor] = []

    def hook(made: Any) -> None:
        part = made.get_submodule(LAYERS[family][0]).get_submodule(name)
        part.register_forward_hook(lambda module, args, out: seen.append(args[0]))

    def part_of(made: Any) -> nn.Module:
        return made.get_submodule(LAYERS[family][0]).get_submodule(name)

    made = model(family)
    before = assert_as_eager(family, made, hook)
    if not seen:
        return  # norms of these families are ops, whose hooks nobody calls
    # Rows that were normalised, not the stream.
    found, eager, exact = seen
    assert_two_times_rule(found, eager, exact)
    after = assert_as_eager(
        family, made, lambda other: part_of(other).register_forward_hook(lambda module, args, out: out + out.roll(1, 0))
    )
    assert (after - before).abs().max() > 0.05


class Tripled(nn.Module):
    """What an adapter does: another module in the place of a layer, around it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.inner(x)


@pytest.mark.parametrize(("family", "place"), in_turn(FIELDS, [3, 6]))
def test_a_linear_layer_replaced_by_another_is_called(family: str, place: int) -> None:
    def replace(made: Any) -> None:
        path, _, child = LAYERS[family][place].rpartition(".")
        owner = made.get_submodule(LAYERS[family][0]).get_submodule(path)
        setattr(owner, child, Tripled(getattr(owner, child)))

    made = model(family)
    before = hidden(made)
    assert (assert_as_eager(family, made, replace) - before).abs().max() > 0.05


WRITERS = [("modernbert", name) for name in ("layers.0", "layers.0.attn", "layers.0.mlp")]
WRITERS += [("megatron_bert", f"encoder.layer.0{name}") for name in ("", ".attention", ".attention.output", ".output")]
WRITERS += [("mt5", f"encoder.block.0{name}") for name in ("", ".layer.0", ".layer.1", ".layer.0.SelfAttention",
                                                           ".layer.1.DenseReluDense")]  # fmt: skip


@pytest.mark.parametrize(("family", "name", "inference"), in_turn(WRITERS, [False, True]))
def test_a_stream_that_a_hook_writes_to_has_other_statistics(family: str, name: str, inference: bool) -> None:
    def shift(module: nn.Module, args: Any, out: Tensor) -> None:
        out.mul_(-2).add_(3)

    made = model(family)
    before = hidden(made)
    with torch.inference_mode(inference):
        after = assert_as_eager(family, made, lambda other: other.get_submodule(name).register_forward_hook(shift))
    assert (after - before).abs().max() > 0.05


@each_family
def test_weights_that_change_are_folded_anew(family: str) -> None:
    def change(made: Any) -> None:
        for name, parameter in made.get_submodule(LAYERS[family][0]).named_parameters():
            if "norm" in name or "ln" in name:
                parameter.mul_(1.5)

    made = model(family)
    before = hidden(made)
    assert (assert_as_eager(family, made, change) - before).abs().max() > 0.05


@each_family
def test_fp32_and_gradients_take_the_norm_and_the_product_by_themselves(family: str) -> None:
    with launches() as found:
        hidden(model(family, torch.float32))
    assert found["norm_kernel"] == NORMS[family] + 1
    made = model(family).requires_grad_(True)
    with launches() as found:
        hidden(made).float().sum().backward()
    assert not found
    assert all(parameter.grad is not None for name, parameter in made.named_parameters() if "norm" in name)


@pytest.mark.parametrize(
    ("family", "way"), in_turn(FIELDS, [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
)
def test_a_copy_folds_its_own_weights(family: str, way: Any) -> None:
    made = model(family)
    expected = hidden(made)
    other = way(made)
    with launches() as found:
        assert torch.equal(hidden(other), expected)
    assert found["norm_kernel"] == 1
    for parameter in other.parameters():
        parameter.mul_(2)
    assert (hidden(other) - expected).abs().max() > 0.02
    assert torch.equal(hidden(made), expected)


@pytest.mark.parametrize("family", ["modernbert", "megatron_bert"])
def test_norms_that_stay_in_fp32_are_folded_as_well(family: str) -> None:
    def widen(made: Any) -> None:
        for module in made.modules():
            if isinstance(module, nn.LayerNorm) and module.weight.dtype == torch.bfloat16:
                module.float()
        made.bind()

    made = model(family)
    assert_as_eager(family, made, widen)
    with launches() as found:
        hidden(made)
    assert found["norm_kernel"] == 1


def test_fp16_mt5_keeps_its_wide_stream() -> None:
    made = model("mt5", torch.float16)
    with launches() as found:
        out = hidden(made)
    assert found["norm_kernel"] == NORMS["mt5"] + 1
    exact = model("mt5", torch.float16, "eager").double()
    assert_two_times_rule(out, hidden(model("mt5", torch.float16, "eager")), hidden(exact))


def test_explain_names_the_op_and_no_idle_part() -> None:
    text = model("modernbert").explain()
    assert "norm_linear + gated gelu" in text
    assert "norm_linear + rope" in text
    rows = [line.split()[0] for line in text.splitlines()[1:] if line]
    assert rows.count("norm") >= 1
