"""BoundOp: what it computes stays right while weights change, move, gain gradients and serve several threads."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import padless
from padless.autotune.device import Device
from padless.autotune.key import key_of
from padless.autotune.lookup import Lookup
from padless.autotune.record import Entry, Provenance, Record, Tiling, encode
from padless.autotune.store import Store
from padless.engine.contract import Call, Requires
from padless.engine.dispatch import TABLE
from padless.engine.errors import BackendError, InputError
from padless.engine.models.blocks import (
    Block,
    FeedForward,
    Projection,
    SelfAttention,
    attention_op,
    linear_op,
    norm_op,
    rms_norm_op,
)  # fmt: skip
from padless.engine.models.parameters import initialise
from padless.engine.ops.attention import varlen_attention
from padless.engine.ops.bind import BoundOp, explain_ops, failed_kernels, joined, share_storage

CPU = torch.device("cpu")
IN, OUT = 24, 40


class OneLinear(Block):
    """A block of a single op."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.dense = nn.Linear(IN, OUT, bias=bias)
        self.op = linear_op(self.dense, epilogue="gelu")

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Joined(Block):
    """Three layers taken as one, as in self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(IN, rows) for rows in (8, 5, 11))
        self.op = linear_op(self.first, self.second, self.third)

    @property
    def layers(self) -> tuple[nn.Linear, ...]:
        return (self.first, self.second, self.third)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)

    def expected(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in self.layers], dim=1)


def inputs(rows: int = 9, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, IN, generator=torch.Generator().manual_seed(3), dtype=dtype)


def expected(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.gelu(F.linear(x, layer.weight, layer.bias))


def close(actual: Tensor, wanted: Tensor) -> None:
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[actual.dtype]
    torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(7)


@pytest.fixture
def block() -> OneLinear:
    return OneLinear().requires_grad_(False).bind()


def test_an_op_cannot_be_called_before_it_is_bound() -> None:
    with pytest.raises(RuntimeError, match=r"before Block\.bind"), torch.no_grad():
        OneLinear()(inputs())


def test_the_cpu_row_serves_without_gradient_and_eager_with(block: OneLinear) -> None:
    resolution = block.op.resolution
    assert resolution is not None
    assert resolution.impl.name == "cpu"
    assert resolution.gradient.__module__ == "padless.engine.ops.linear"
    close(block(inputs()), expected(block.dense, inputs()))


@pytest.mark.parametrize("parameter", ["weight", "bias"])
def test_a_change_in_place_is_seen_by_the_next_call(block: OneLinear, parameter: str) -> None:
    x = inputs()
    for _ in range(3):
        before = block(x)
        getattr(block.dense, parameter).mul_(1.5).add_(0.25)
        after = block(x)
        assert not torch.equal(after, before)
        close(after, expected(block.dense, x))


def test_a_change_to_one_of_several_joined_layers_is_seen() -> None:
    block = Joined().requires_grad_(False).bind()
    x = inputs()
    for layer in block.layers:
        for parameter in (layer.weight, layer.bias):
            close(block(x), block.expected(x))
            parameter.add_(1.0)
            close(block(x), block.expected(x))


def test_an_optimiser_step_is_seen() -> None:
    block = OneLinear().bind()
    optimiser = torch.optim.AdamW(block.parameters(), lr=0.1)
    x = inputs()
    with torch.no_grad():
        before = block(x)
    block(x).square().sum().backward()
    optimiser.step()
    with torch.no_grad():
        assert not torch.equal(block(x), before)
        close(block(x), expected(block.dense, x))


@pytest.mark.parametrize("assign", [False, True])
def test_a_loaded_state_dict_is_seen(block: OneLinear, assign: bool) -> None:
    x = inputs()
    block(x)
    block.load_state_dict({name: torch.randn_like(value) for name, value in block.state_dict().items()}, assign=assign)
    close(block(x), expected(block.dense, x))


def test_a_replaced_parameter_is_seen(block: OneLinear) -> None:
    x = inputs()
    block(x)
    block.dense.weight = nn.Parameter(torch.randn(OUT, IN), requires_grad=False)
    block.bind()
    close(block(x), expected(block.dense, x))


def test_a_parameter_at_the_address_of_an_earlier_one_is_not_taken_for_it(block: OneLinear) -> None:
    # Two are replaced between calls; the third may be given the memory that the first has left.
    x = inputs()
    for _ in range(40):
        block(x)
        for _ in range(2):
            block.dense.weight = None  # type: ignore[assignment]
            block.dense.weight = nn.Parameter(torch.randn(OUT, IN), requires_grad=False)
        close(block(x), expected(block.dense, x))


def test_data_at_the_address_of_earlier_data_is_not_taken_for_it(block: OneLinear) -> None:
    x = inputs()
    met_again = False
    for _ in range(200):
        block(x)
        address = block.dense.weight.data_ptr()
        for _ in range(2):
            block.dense.weight.data = torch.empty(0)
            block.dense.weight.data = torch.randn(OUT, IN)
        met_again |= address == block.dense.weight.data_ptr()
        close(block(x), expected(block.dense, x))
    assert met_again, "the allocator never gave the address again: the case was not met"


def test_another_parameter_on_the_same_memory_is_not_taken_for_the_first(block: OneLinear) -> None:
    x = inputs()
    block.dense.weight.mul_(1.5)
    block(x)
    written = block.dense.weight._version
    block.dense.weight = nn.Parameter(block.dense.weight.data, requires_grad=False)
    while block.dense.weight._version < written:
        block.dense.weight.add_(0.25)
    assert block.dense.weight._version == written
    close(block(x), expected(block.dense, x))


def test_weights_are_prepared_once_while_nothing_changes(block: OneLinear) -> None:
    block(inputs())
    prepared = block.op._prepared
    assert prepared is not None
    block(inputs(3))
    assert block.op._prepared is prepared
    block.dense.weight.add_(1)
    block(inputs())
    assert block.op._prepared is not prepared


def test_gradients_are_those_of_plain_autograd() -> None:
    block = OneLinear().double().bind()
    ours, theirs = inputs(dtype=torch.float64).requires_grad_(), inputs(dtype=torch.float64).requires_grad_()
    block(ours).square().sum().backward()
    found = [ours.grad, block.dense.weight.grad, block.dense.bias.grad]
    block.zero_grad()
    expected(block.dense, theirs).square().sum().backward()
    for gradient, wanted in zip(found, [theirs.grad, block.dense.weight.grad, block.dense.bias.grad], strict=True):
        assert gradient is not None
        assert wanted is not None
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)


def test_gradients_of_joined_layers_are_those_of_plain_autograd() -> None:
    block = Joined().double().bind()
    share_storage(tuple(layer.weight for layer in block.layers))
    x, direction = inputs(dtype=torch.float64), torch.randn(9, 24, dtype=torch.float64)
    (block(x) * direction).sum().backward()
    found = [parameter.grad for parameter in block.parameters()]
    block.zero_grad()
    (block.expected(x) * direction).sum().backward()
    for gradient, parameter in zip(found, block.parameters(), strict=True):
        assert gradient is not None
        assert parameter.grad is not None
        torch.testing.assert_close(gradient, parameter.grad, rtol=0, atol=1e-12)


def test_frozen_weights_still_pass_a_gradient_to_their_input(block: OneLinear) -> None:
    ours, theirs = inputs().requires_grad_(), inputs().requires_grad_()
    block(ours).sum().backward()
    expected(block.dense, theirs).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    close(ours.grad, theirs.grad)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_one_trainable_layer_among_frozen_ones_gets_its_gradient(frozen: int) -> None:
    block = Joined().requires_grad_(False).bind()
    block.layers[frozen].weight.requires_grad_()
    block(inputs()).sum().backward()
    for number, layer in enumerate(block.layers):
        assert (layer.weight.grad is not None) == (number == frozen)


@pytest.mark.parametrize("epilogue", ["none", "gelu"])
def test_a_residual_that_needs_a_gradient_gets_it(epilogue: str) -> None:
    # It comes as a keyword, not among the inputs.
    layer = nn.Linear(IN, OUT).requires_grad_(False)
    op = linear_op(layer, epilogue=epilogue)
    op.bind(CPU, torch.float32, backend="auto", deterministic=False)
    residual = torch.randn(9, OUT).requires_grad_()
    op(inputs(), residual=residual).sum().backward()
    assert residual.grad is not None
    assert torch.equal(residual.grad, torch.ones_like(residual))


def test_without_gradient_mode_nothing_is_recorded() -> None:
    block = OneLinear().bind()
    with torch.no_grad():
        assert not block(inputs().requires_grad_()).requires_grad
    # And it was the row for calls without gradient that served, trainable though the weights are.
    assert block.op._prepared is not None
    assert block(inputs()).requires_grad


def test_inference_mode_before_and_after_other_modes() -> None:
    block = OneLinear().bind()
    x = inputs()
    with torch.inference_mode():
        close(block(x), expected(block.dense, x))
    with torch.no_grad():
        close(block(x), expected(block.dense, x))
    block(x).sum().backward()
    assert block.dense.weight.grad is not None


def test_a_block_made_in_inference_mode_works() -> None:
    with torch.inference_mode():
        block = OneLinear().requires_grad_(False).bind()
        x = inputs()
        close(block(x), expected(block.dense, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float32])
def test_ops_are_bound_again_after_a_change_of_dtype(block: OneLinear, dtype: torch.dtype) -> None:
    block(inputs())
    block.to(dtype)
    assert block.op.resolution is not None
    assert block.op.resolution.call.dtype == dtype
    assert block.op.resolution.impl.name == ("eager" if dtype == torch.float64 else "cpu")
    x = inputs(dtype=dtype)
    assert block(x).dtype == dtype
    close(block(x), expected(block.dense, x))


def test_there_and_back_again(block: OneLinear) -> None:
    x = inputs()
    before = block(x)
    block.double()
    block.float()
    assert torch.equal(block(x), before)


def test_backend_and_determinism_are_kept_when_bound_again(block: OneLinear) -> None:
    block.bind("eager")
    block.to(torch.bfloat16)
    assert block.op.resolution is not None
    assert block.op.resolution.impl.name == "eager"
    asked = ("backend='eager' was asked for",)
    assert block.op.resolution.rejected == (
        ("triton", asked), ("cpu_llvm", asked), ("cpu", asked), ("cpu_fixed", asked)
    )  # fmt: skip


def adjacent(parameters: tuple[Tensor, ...]) -> bool:
    """Whether each begins where the one before ends, in one storage."""
    ends = [parameter.data_ptr() + parameter.numel() * parameter.element_size() for parameter in parameters]
    same = len({parameter.untyped_storage().data_ptr() for parameter in parameters}) == 1
    return same and ends[:-1] == [parameter.data_ptr() for parameter in parameters[1:]]


def qkv(block: SelfAttention) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    layers = (block.query, block.key, block.value)
    return tuple(layer.weight for layer in layers), tuple(layer.bias for layer in layers)


@pytest.fixture
def attention() -> SelfAttention:
    block = SelfAttention(24, 3)
    initialise(block, 0.5)
    with torch.no_grad():
        for bias in qkv(block)[1]:
            bias.normal_()
    return block.requires_grad_(False).bind()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_query_key_and_value_share_storage_and_keep_it(attention: SelfAttention, dtype: torch.dtype) -> None:
    values = [parameter.clone() for part in qkv(attention) for parameter in part]
    attention.to(dtype)
    for part in qkv(attention):
        assert adjacent(part)
    now = [parameter for part in qkv(attention) for parameter in part]
    for old, new in zip(values, now, strict=True):
        assert torch.equal(new, old.to(dtype))
    # And so the joined weight of a call without gradient is no copy.
    with torch.no_grad():
        weight = joined(qkv(attention)[0])
    assert weight is not None
    assert weight.data_ptr() == attention.query.weight.data_ptr()
    assert torch.equal(weight, torch.cat(qkv(attention)[0]))


def copied(block: SelfAttention, how: str) -> SelfAttention:
    return copy.deepcopy(block) if how == "deepcopy" else pickle.loads(pickle.dumps(block))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("used", [False, True])
def test_a_copy_of_a_block_computes_with_its_own_weights(attention: SelfAttention, used: bool, how: str) -> None:
    x = inputs()
    if used:
        attention.qkv(x)
    other = copied(attention, how)
    before = attention.qkv(x)
    assert torch.equal(other.qkv(x), before)
    other.query.weight.add_(1)
    other.value.bias.add_(1)
    assert torch.equal(attention.qkv(x), before)
    close(other.qkv(x), torch.cat([layer(x) for layer in (other.query, other.key, other.value)], dim=1))


def test_a_copy_of_a_block_shares_storage_among_its_own(attention: SelfAttention) -> None:
    other = copy.deepcopy(attention)
    for part, old in zip(qkv(other), qkv(attention), strict=True):
        assert adjacent(part)
        assert part[0].data_ptr() != old[0].data_ptr()


def test_sharing_storage_keeps_values_shapes_and_gradients() -> None:
    parameters = tuple(nn.Parameter(torch.randn(rows, 4)) for rows in (3, 1, 6))
    values = [parameter.detach().clone() for parameter in parameters]
    share_storage(parameters)
    assert adjacent(parameters)
    for parameter, value in zip(parameters, values, strict=True):
        assert parameter.is_leaf
        assert parameter.requires_grad
        assert torch.equal(parameter, value)
    weight = joined(parameters)
    assert weight is not None
    weight.sum().backward()
    assert all(parameter.grad is not None and bool((parameter.grad == 1).all()) for parameter in parameters)


def test_joining_takes_no_view_where_the_storage_is_not_in_order() -> None:
    buffer = torch.arange(24.0).view(6, 4)
    later, earlier = nn.Parameter(buffer[3:]), nn.Parameter(buffer[:3])
    later.data, earlier.data = buffer[3:], buffer[:3]
    with torch.no_grad():
        assert torch.equal(joined((later, earlier)), torch.cat([buffer[3:], buffer[:3]]))  # type: ignore[arg-type]
        buffer = torch.arange(32.0)
        transposed, next_to_it = nn.Parameter(torch.empty(4, 4)), nn.Parameter(torch.empty(4, 4))
        transposed.data, next_to_it.data = buffer[:16].view(4, 4).T, buffer[16:].view(4, 4)
        both = joined((transposed, next_to_it))
        assert both is not None
        assert torch.equal(both, torch.cat([transposed, next_to_it]))


def test_projection_adds_the_residual_and_drops_out_only_in_training() -> None:
    block = Projection(IN, OUT, 1e-5, dropout=0.5).double()
    initialise(block, 0.5)
    block.bind()
    x, residual = inputs(dtype=torch.float64), torch.randn(9, OUT, dtype=torch.float64)
    wanted = F.layer_norm(residual + block.dense(x), (OUT,), block.LayerNorm.weight, block.LayerNorm.bias, 1e-5)
    close(block.eval()(x, residual), wanted)
    assert (block.train()(x, residual) - wanted).abs().max() > 0.1


def test_several_threads_get_the_same_bits_while_weights_are_prepared() -> None:
    x = inputs(33)
    for _ in range(5):
        block = FeedForward(IN, OUT, "gelu")
        initialise(block, 0.5)
        block.requires_grad_(False).bind()
        with ThreadPoolExecutor(8) as executor:
            results = list(executor.map(lambda _, block=block: block(x), range(32)))
        assert all(torch.equal(result, results[0]) for result in results)
        close(results[0], F.gelu(F.linear(x, block.dense.weight, block.dense.bias)))


def test_weights_without_bias() -> None:
    block = OneLinear(bias=False).requires_grad_(False).bind()
    close(block(inputs()), expected(block.dense, inputs()))


def test_an_op_without_weights_takes_its_options_from_both_sides() -> None:
    op = BoundOp("pool", mode="mean")
    op.bind(CPU, torch.float32, backend="auto", deterministic=False)
    hidden, edges = torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([0, 3], dtype=torch.int32)
    assert op(hidden, edges).item() == 3.0
    assert op(hidden, edges, skip=1).item() == 4.0


# What the dispatch table is told about a model's products.


SMALL: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_attention_heads": 3,
    "num_hidden_layers": 1,
}
MT5: dict[str, Any] = {"vocab_size": 31, "d_model": 24, "d_kv": 10, "d_ff": 36, "num_heads": 3, "num_layers": 1}


def products(model: Block) -> list[tuple[int | None, int | None, str]]:
    """Of every `linear` op of the first layer: width in, width of the product, what follows it."""
    calls = [op.resolution.call for op in model.bound_ops() if op.resolution is not None and op.op == "linear"]
    label = lambda call: " ".join(  # noqa: E731
        filter(None, (call.epilogue, "gated" * call.gated, "rope" * call.rope, "residual" * call.residual))
    )
    return [(call.inner, call.hidden, label(call)) for call in calls]


def test_the_table_is_told_what_follows_every_product() -> None:
    modern = padless.ModernBertModel(padless.ModernBertConfig(**SMALL))
    assert products(modern) == [
        (24, 72, "none rope"), (24, 24, "none residual"), (24, 72, "gelu gated"), (36, 24, "none residual"),
    ]  # fmt: skip
    assert modern.layers[0].attn.qkv.resolution.call.head_dim == 8
    bert = padless.BertModel(padless.BertConfig(**SMALL), add_pooling_layer=False)
    assert products(bert) == [
        (24, 72, "none"), (24, 24, "none residual"), (24, 36, "gelu"), (36, 24, "none residual"),
    ]  # fmt: skip
    mt5 = padless.MT5EncoderModel(padless.MT5Config(**MT5))
    assert products(mt5) == [
        (24, 90, "none"), (30, 24, "none residual"), (24, 72, "gelu_tanh gated"), (36, 24, "none residual"),
    ]  # fmt: skip


def test_a_product_whose_layer_has_another_width_by_now_is_bound_with_that() -> None:
    block = OneLinear().requires_grad_(False).bind()
    block.dense = nn.Linear(IN, OUT + 3)
    assert products(block.bind()) == [(IN, OUT + 3, "gelu")]


def test_a_hook_between_product_and_rotation_is_called_and_changes_what_is_rotated() -> None:
    model = padless.ModernBertModel(padless.ModernBertConfig(**SMALL)).double().eval().requires_grad_(False)
    ids = torch.tensor([[1, 5, 9, 2, 7, 4]])
    before = model(ids).last_hidden_state
    seen = []
    layer = model.layers[0].attn.Wqkv
    hook = layer.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    torch.testing.assert_close(model(ids).last_hidden_state, before, rtol=0, atol=1e-12)
    assert seen == [(6, 72)]
    hook.remove()
    layer.register_forward_hook(lambda module, args, out: 2 * out)
    doubled = model(ids).last_hidden_state
    assert (doubled - before).abs().max() > 1e-4
    layer._forward_hooks.clear()
    layer.weight.mul_(2)
    torch.testing.assert_close(model(ids).last_hidden_state, doubled, rtol=0, atol=1e-12)


# A row whose code is compiled at the first call: Triton without a GPU driver fails there, and really does so here.


@pytest.fixture
def triton_without_its_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU: the kernel would run")
    first, *others = TABLE["attention"]
    assert first.just_in_time
    others = [row for row in others if not row.just_in_time]
    monkeypatch.setitem(TABLE, "attention", (replace(first, requires=Requires(packages=("triton",))), *others))


def attention_call() -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    q, k, v = torch.randn(3, 9, 2, 16, generator=torch.Generator().manual_seed(5))
    return q, k, v, torch.tensor([0, 4, 9], dtype=torch.int32), 5


@pytest.mark.usefixtures("triton_without_its_requirements")
def test_a_kernel_that_cannot_be_started_gives_way_to_the_next_row_once(caplog: pytest.LogCaptureFixture) -> None:
    op = BoundOp("attention", facts={"head_dim": 16, "window": "full", "bias": "none"})
    op.bind(CPU, torch.float32, backend="auto", deterministic=False)
    assert op.resolution is not None
    assert op.resolution.impl.name == "triton"
    call = attention_call()
    with caplog.at_level("WARNING", logger="padless"), torch.no_grad():
        found = [op(*call) for _ in range(3)]
    q, k, v, cu_seqlens, longest = call
    reference = varlen_attention(q.double(), k.double(), v.double(), cu_seqlens, longest)
    assert isinstance(reference, Tensor)
    for out in found:
        torch.testing.assert_close(out.double(), reference, atol=1e-6, rtol=0)
    assert op.resolution.impl.name == "cpu"
    assert [line for line in caplog.messages if line.startswith("attention: triton failed when it was called")]
    assert len(caplog.messages) <= 1
    assert "triton: failed when it was called" in explain_ops([op])
    # Bound anew, say after a move to another device, the row has another chance.
    op.bind(CPU, torch.float32, backend="auto", deterministic=False)
    assert op.resolution.impl.name == "triton"


@pytest.mark.usefixtures("triton_without_its_requirements")
def test_a_measured_tiling_that_cannot_be_started_gives_way_to_the_default_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tuned = pytest.importorskip("padless.kernels.tuned")
    tuner = import_module("padless.kernels.attention").TUNED
    gpu = Device("cuda", "NVIDIA H200", "nvidia-h200", 90, 132, frozenset())
    call = Call("attention", "cuda", torch.float32, head_dim=16, window="full", bias="none")
    other = next(config for config in tuner.candidates if config != tuner.default(call))
    tiling = Tiling(tuple(sorted(other.blocks)), other.num_warps, other.num_stages, other.max_registers)
    measured = Provenance(gpu.name, 132, 90, "2.13.0", "3.7.1", None, "0" * 16, 1.0, 2.0)
    file = tmp_path / gpu.slug / "attention.json"
    file.parent.mkdir()
    file.write_bytes(encode(Record(gpu.slug, "attention", (Entry(key_of(call), tiling, measured),))))
    lookup = Lookup(Store(None), tmp_path)
    monkeypatch.setattr(tuned, "process_lookup", lambda: lookup)
    monkeypatch.setattr(tuned, "identify", lambda device: gpu)
    tried = []
    monkeypatch.setattr(tuner, "_known", {})
    find = tuner._find
    monkeypatch.setattr(tuner, "_find", lambda call, device: (tried.append(found := find(call, device)), found)[1])

    op = BoundOp("attention", facts={"head_dim": 16, "window": "full", "bias": "none"})
    op.bind(CPU, torch.float32, backend="auto", deterministic=False)
    assert op.resolution is not None
    assert (op.resolution.impl.name, op.resolution.config_source) == ("triton", "shipped nvidia-h200")
    with caplog.at_level("WARNING", logger="padless"), torch.no_grad():
        op(*attention_call())
    sources = [answer.source for answer in tried]
    # The kernel asked for the measured one, and once that had failed, for its own.
    assert sources.index("shipped nvidia-h200") < sources.index("default")
    assert op.resolution.impl.name == "cpu"
    assert [line for line in caplog.messages if line.startswith("tuned configurations: attention: failed")]


@pytest.mark.usefixtures("triton_without_its_requirements")
def test_a_kernel_asked_for_by_name_that_cannot_be_started_raises() -> None:
    op = BoundOp("attention", facts={"head_dim": 16, "window": "full", "bias": "none"})
    op.bind(CPU, torch.float32, backend="triton", deterministic=False)
    message = r"^attention: triton failed .*driver.*; backend='triton' was asked for$"
    with pytest.raises(BackendError, match=message), torch.no_grad():
        op(*attention_call())
    assert op.resolution is not None
    assert op.resolution.impl.name == "triton"


@pytest.mark.usefixtures("triton_without_its_requirements")
def test_a_kernel_that_is_required_raises_at_every_call_instead_of_giving_way() -> None:
    op = BoundOp("attention", facts={"head_dim": 16, "window": "full", "bias": "none"})
    op.kernel_required = True
    op.bind(CPU, torch.float32, backend="auto", deterministic=False)
    message = r"^attention: triton failed .*driver.*; kernels are required$"
    for _ in range(2):
        with pytest.raises(BackendError, match=message), torch.no_grad():
            op(*attention_call())
    assert op.resolution is not None
    assert op.resolution.impl.name == "triton"
    assert failed_kernels([op]) == []


SHORT_OF_MEMORY = (
    MemoryError("out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory: 9 bytes."),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
)


@pytest.mark.parametrize("error", SHORT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_memory_that_is_short_for_one_call_does_not_change_what_serves_the_next(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """The batch is halved by whoever made it; the implementation, and so the bits, stay."""
    pytest.importorskip("llvmlite", reason="needs package llvmlite, not installed")
    if missing := import_module("padless.kernels.llvm.host").missing_features(torch.float32):
        pytest.skip("; ".join(missing))
    op = attention_op(16)
    op.bind(CPU, torch.float32, backend="auto", deterministic=False)
    assert op.resolution is not None
    assert op.resolution.impl.name == "cpu_llvm"

    def short(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(op, "_forward", short)
        with pytest.raises(type(error), match="memory"):
            op(*attention_call())
    with torch.no_grad():
        op(*attention_call())
    assert (op.resolution.impl.name, failed_kernels([op])) == ("cpu_llvm", [])


@pytest.mark.usefixtures("triton_without_its_requirements")
def test_what_no_row_could_do_is_no_reason_to_change_the_row() -> None:
    op = BoundOp("attention", facts={"head_dim": 16, "window": "full", "bias": "none"})
    op.bind(CPU, torch.float32, backend="auto", deterministic=False)
    q, k, v, cu_seqlens, longest = attention_call()
    with pytest.raises(InputError, match="dtype"), torch.no_grad():
        op(q, k.double(), v, cu_seqlens, longest)
    with pytest.raises(TypeError), torch.no_grad():
        op(q, k, v, cu_seqlens, longest, window=None)
    assert op.resolution is not None
    assert op.resolution.impl.name == "triton"


# Rows that LLVM compiles for the CPU at hand, where it cannot.


UNUSUAL = 208
"""Channels of a row, and of a head, that no other test asks kernels for: what was compiled stays."""


class Rms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2, UNUSUAL))


def of_each_row() -> dict[str, tuple[BoundOp, str, tuple[Any, ...], Tensor]]:
    """Ops that LLVM's rows serve, the row below, the inputs of a call, and its result in fp64."""
    x = torch.randn(7, UNUSUAL, generator=torch.Generator().manual_seed(6))
    torch.manual_seed(7)
    dense, norm, rms = nn.Linear(UNUSUAL, UNUSUAL), nn.LayerNorm(UNUSUAL), Rms()
    wide, weight, bias = x.double(), dense.weight.double(), dense.bias.double()
    q, cu_seqlens = x.view(7, 1, UNUSUAL), torch.tensor([0, 3, 7], dtype=torch.int32)
    attended = varlen_attention(*[q.double()] * 3, cu_seqlens, 4)
    assert isinstance(attended, Tensor)
    scaled = wide / (wide.square().mean(1, keepdim=True) + 1e-6).sqrt() * rms.weight.double()
    return {
        "attention": (attention_op(UNUSUAL), "cpu", (q, q, q, cu_seqlens, 4), attended),
        "linear": (linear_op(dense, epilogue="gelu"), "cpu", (x,), F.gelu(F.linear(wide, weight, bias))),
        "norm": (norm_op(norm), "eager", (x,), F.layer_norm(wide, (UNUSUAL,))),
        "rms_norm": (rms_norm_op(rms, UNUSUAL, 1e-6), "eager", (x,), scaled),
    }


@pytest.mark.usefixtures("no_memory_for_code")
@pytest.mark.parametrize("name", ["attention", "linear", "norm"])
def test_a_cpu_kernel_that_cannot_be_compiled_gives_way_to_the_next_row(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    op, below, inputs, reference = of_each_row()[name]
    op.bind(CPU, torch.float32, backend="auto", deterministic=False)
    assert op.resolution is not None
    assert op.resolution.impl.name == "cpu_llvm"
    with caplog.at_level("WARNING", logger="padless"), torch.no_grad():
        found = [op(*inputs) for _ in range(3)]
    for out in found:
        torch.testing.assert_close(out.double(), reference, atol=5e-6, rtol=0)
    assert op.resolution.impl.name == below
    assert (
        len([line for line in caplog.messages if line.startswith(f"{name}: cpu_llvm failed when it was called")]) == 1
    )
    assert "cpu_llvm: failed when it was called: RuntimeError: LLVM ERROR" in explain_ops([op])
    failure = "RuntimeError: LLVM ERROR: Unable to allocate section memory!"
    assert failed_kernels([op, op]) == [f"{name}: cpu_llvm failed when it was called: {failure}"]


@pytest.mark.usefixtures("no_memory_for_code")
@pytest.mark.parametrize("name", ["attention", "linear", "norm", "rms_norm"])
def test_a_cpu_kernel_asked_for_by_name_that_cannot_be_compiled_raises(name: str) -> None:
    op, _, inputs, _ = of_each_row()[name]
    op.bind(CPU, torch.float32, backend="cpu_llvm", deterministic=False)
    with pytest.raises(BackendError, match=r"section memory.*; backend='cpu_llvm' was asked for$"), torch.no_grad():
        op(*inputs)
    assert op.resolution is not None
    assert op.resolution.impl.name == "cpu_llvm"


@pytest.mark.parametrize("name", ["attention", "linear", "norm"])
def test_a_cpu_kernel_leaves_gradients_to_eager_and_follows_its_weights(name: str) -> None:
    pytest.importorskip("llvmlite", reason="needs package llvmlite, not installed")
    if missing := import_module("padless.kernels.llvm.host").missing_features(torch.float32):
        pytest.skip("; ".join(missing))
    op, _, inputs, reference = of_each_row()[name]
    op.bind(CPU, torch.float32, backend="auto", deterministic=False)
    with torch.no_grad():
        torch.testing.assert_close(op(*inputs).double(), reference, atol=5e-6, rtol=0)
    assert op.resolution is not None
    assert op.resolution.impl.name == "cpu_llvm"
    x = inputs[0].clone().requires_grad_()
    op(x, *inputs[1:]).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    if name == "norm":
        weight = op._sources[0].tensor
        assert weight is not None
        with torch.no_grad():
            weight.mul_(3)
            torch.testing.assert_close(op(*inputs).double(), 3 * reference, atol=2e-5, rtol=0)
