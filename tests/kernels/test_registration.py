"""The launchers inside torch.compile and torch.export: one node each, right shapes, the same bits, one compilation."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from operands import in_turn
from registration_calls import (
    CALLS,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    LAUNCHERS,
    POSITIONS,
    Call,
    attention_call,
    batch_of,
    embed_call,
    rope_call,
    starts,
)
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from padless.kernels import registration
from padless.kernels.attention import varlen_attention
from padless.kernels.embed import embed
from padless.kernels.launch import Config
from padless.kernels.pool import pool
from padless.kernels.rope import rope
from padless.kernels.trigram import trigram


@pytest.fixture(autouse=True)
def forget_what_was_compiled() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)


@pytest.fixture(params=CALLS)
def case(request: pytest.FixtureRequest) -> tuple[str, Callable[[Sequence[int]], Call]]:
    return CALLS[request.param]


class Seen(TorchDispatchMode):
    """Keeps the arguments of each of our operators that is dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "padless":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def tensors(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def assert_same_bits(got: Any, expected: Any) -> None:
    for one, other in zip(tensors(got), tensors(expected), strict=True):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        assert torch.equal(one, other)


FOLDED = {"norm_linear": ["norm_weight", "norm_bias", "weight", "bias"]}
"""Weights that another number of them are prepared from."""


def test_every_operator_has_its_launcher_and_every_launcher_its_operator() -> None:
    assert LAUNCHERS.keys() == registration.OPERATORS.keys() == {name for name, _ in CALLS.values()}
    for name, (launcher, eager) in LAUNCHERS.items():
        assert inspect.unwrap(launcher) is not launcher, f"{name} is not @traceable"
        ours, specified = (list(inspect.signature(f).parameters.values()) for f in (launcher, eager))
        assert ours[-1].name == "config"
        if folded := FOLDED.get(name):
            assert [p.name for p in specified[: 1 + len(folded)]] == ["x", *folded]
            assert [p.name for p in ours[:4]] == ["x", "weight", "sums", "bias"]
            ours, specified = ours[4:], specified[1 + len(folded) :]
        assert [(p.name, p.kind, p.default) for p in ours[:-1]] == [(p.name, p.kind, p.default) for p in specified]


@pytest.mark.parametrize(
    ("case", "lengths"), in_turn(CALLS, [[3, 1, 6], [0, 0], [2, 0, 5, 0], []]), indirect=["case"], ids=str
)
def test_torch_finds_nothing_wrong_with_the_operator(
    case: tuple[str, Callable[[Sequence[int]], Call]], lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """opcheck: schema, mutation, aliases, shapes, dtypes and strides of the fake results, dynamic shapes."""
    name, call = case
    if name == "decode_attention":
        lengths = [length + 1 for length in lengths]  # one query a sequence is taken from as many rows
    if name == "pool":
        lengths = [length for length in lengths if length]
    arguments, options = call(lengths)
    with Seen() as seen, monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "_is_compiling_flag", True)
        LAUNCHERS[name][0](*arguments, **options)
    ((operator, operands),) = seen.calls
    # opcheck cannot copy a view without elements.
    operands = [x.new_empty(x.shape) if isinstance(x, Tensor) and x.numel() == 0 else x for x in operands]
    outcome = torch.library.opcheck(operator, tuple(operands), raise_exception=True)
    assert set(outcome.values()) == {"SUCCESS"}


def test_called_as_usual_nothing_is_dispatched(case: tuple[str, Callable[[Sequence[int]], Call]]) -> None:
    name, call = case
    arguments, options = call([3, 4])
    with Seen() as seen:
        LAUNCHERS[name][0](*arguments, **options)
    assert seen.calls == []


def test_an_operator_run_while_something_is_compiled_calls_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, _ = rope_call([3, 4])
    expected = rope(*arguments)
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    assert torch.compiler.is_compiling()
    assert_same_bits(torch.ops.padless.rope(*arguments, "", []), expected)


@pytest.mark.parametrize(
    "kind", ["attention window lse", "cross attention", "decode", "rope", "pool", "embed", "trigram"]
)
def test_twenty_batches_are_compiled_once(kind: str) -> None:
    name, call = CALLS[kind]
    counter = CompileCounter()
    launcher = LAUNCHERS[name][0]
    compiled = torch.compile(launcher, fullgraph=True, dynamic=True, backend=counter)
    for number in range(20):
        arguments, options = call(batch_of(number))
        assert_same_bits(compiled(*arguments, **options), launcher(*arguments, **options))
    assert counter.frame_count == 1


def test_what_the_compiler_traces_by_itself_is_the_same(case: tuple[str, Callable[[Sequence[int]], Call]]) -> None:
    """Through AOTAutograd, which runs the fake implementation and rewrites the graph, as inductor has it done."""
    name, call = case
    launcher = LAUNCHERS[name][0]
    compiled = torch.compile(launcher, fullgraph=True, dynamic=True, backend="aot_eager")
    for number in range(2):
        arguments, options = call(batch_of(number))
        assert_same_bits(compiled(*arguments, **options), launcher(*arguments, **options))


def encode(
    ids: Tensor, places: Tensor, cu_seqlens: Tensor, longest: int, word: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """A layer of an encoder, of our launchers and torch's operators."""
    hidden = embed(ids, places, None, word, eps=None)
    q, k, v = (hidden * factor for factor in (0.5, 2.0, 1.0))
    q, k, v = (x.unflatten(1, (HEADS, HEAD_DIM)) for x in (q, k, v))
    q, k = rope(q, k, places, cos, sin)
    context = varlen_attention(q, k, v, cu_seqlens, longest, window=(4, 4))
    assert isinstance(context, Tensor)
    hidden = hidden + context.flatten(1)
    wide = trigram(ids, cu_seqlens, word)
    pooled, finite = pool(hidden + wide[:, :HIDDEN], cu_seqlens, mode="mean", normalize=True, return_finite=True)
    return pooled, finite


def encode_call(lengths: Sequence[int]) -> list[Any]:
    (ids, places, _, word, *_), _ = embed_call(lengths)
    (*_, cos, sin), _ = rope_call(lengths)
    return [ids, places, starts(lengths), max(lengths), word, cos, sin]


def test_a_layer_of_launchers_is_one_graph() -> None:
    counter = CompileCounter()
    compiled = torch.compile(encode, fullgraph=True, dynamic=True, backend=counter)
    for number in range(20):
        arguments = encode_call(batch_of(number))
        assert_same_bits(compiled(*arguments), encode(*arguments))
    assert counter.frame_count == 1


@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
def test_a_layer_is_exported_for_any_number_of_tokens_and_texts(strict: bool) -> None:
    class Layer(torch.nn.Module):
        def forward(
            self, ids: Tensor, places: Tensor, cu_seqlens: Tensor, word: Tensor, cos: Tensor, sin: Tensor
        ) -> tuple[Tensor, Tensor]:
            return encode(ids, places, cu_seqlens, POSITIONS, word, cos, sin)

    def operands(number: int) -> tuple[Any, ...]:
        torch.manual_seed(number)
        ids, places, cu_seqlens, _, *rest = encode_call(batch_of(number))
        return ids, places, cu_seqlens, *rest

    # Two texts at least: torch takes the sizes 0 and 1 for cases of their own.
    tokens, edges = torch.export.Dim("tokens", min=2), torch.export.Dim("edges", min=3)
    shapes = ({0: tokens}, {0: tokens}, {0: edges}, None, None, None)
    program = torch.export.export(Layer(), operands(0), dynamic_shapes=shapes, strict=strict)
    found = [node.target.name() for node in program.graph.nodes if "padless" in str(node.target)]
    assert found == [f"padless::{name}" for name in ("embed", "rope", "varlen_attention", "trigram", "pool")]
    for number in range(6):
        assert_same_bits(program.module()(*operands(number)), Layer()(*operands(number)))


def test_fake_results_follow_the_layout_of_nothing_but_the_contract() -> None:
    """Views that are no rows in order (transposed, every second) still give contiguous results, fake and real."""
    (q, k, v, *rest), _ = attention_call([3, 4])
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    compiled = torch.compile(varlen_attention, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(q, k, v, *rest), varlen_attention(q, k, v, *rest))


TWICE = """
import importlib.util, sys, torch
root = sys.argv[1]
spec = importlib.util.spec_from_file_location("again", f"{root}/__init__.py", submodule_search_locations=[root])
sys.modules["again"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from padless.kernels import registration as first
from padless.kernels.trigram import trigram
from again.kernels import registration as second
from again.kernels.trigram import trigram as other
assert first is not second and trigram is not other
arguments = torch.tensor([3, 1, 2]), torch.tensor([0, 3], dtype=torch.int32), torch.randn(5, 8)
for launcher in (trigram, other):
    compiled = torch.compile(launcher, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), trigram(*arguments))
print("registered once")
"""


def test_a_package_imported_under_two_names_registers_once() -> None:
    root = Path(registration.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", TWICE, str(root)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "registered once", done.stderr


def of_every_kind(
    x: Tensor, scale: float, rope: tuple[Tensor, Tensor, Tensor] | None = None, *, turned: int = 0,
    residual: Tensor | None = None, eps: float | None = None, window: tuple[int, int] = (1, 2), top: int | None = None,
    name: str = "none", wide: bool = False, config: Config | None = None,
) -> Any:  # fmt: skip
    raise NotImplementedError


KINDS_SCHEMA = (
    "(Tensor x, float scale, Tensor? rope_0, Tensor? rope_1, Tensor? rope_2, SymInt turned, Tensor? residual, "
    "float? eps, SymInt window_left, SymInt window_right, SymInt? top, str name, bool wide, str blocks, "
    "SymInt[] config) -> (Tensor, Tensor, Tensor)"
)


def test_an_operators_arguments_are_those_of_its_launcher_and_come_back_as_they_went() -> None:
    parameters = registration._parameters(of_every_kind)
    operator = registration.Operator(lambda **_: torch.empty(0), results=3)
    assert registration._schema(operator, parameters) == KINDS_SCHEMA
    three = tuple(torch.arange(3.0).unbind())
    tiling = Config.of(num_warps=8, num_stages=3, max_registers=168, BLOCK_M=16, BLOCK_N=32)
    everything = {"rope": three, "turned": 4, "residual": three[0], "eps": 1e-5, "window": (-1, 7), "top": 5}
    everything |= {"name": "gelu", "wide": True, "config": tiling}
    plain = {"rope": None, "turned": 0, "residual": None, "eps": None, "window": (1, 2), "top": None}
    plain |= {"name": "none", "wide": False, "config": None}
    for options, expected in ((everything, everything), ({}, plain)):
        values = registration._bound("it", parameters, (three[1], 0.5), options)
        operands = registration._operands(parameters, values)
        assert len(operands) == 15
        read = registration._arguments(parameters, operands)
        assert read == {"x": three[1], "scale": 0.5, **expected}
        assert list(read) == [p.name for p in parameters]
    by_position = registration._bound("it", parameters, (three[1], 0.5, three), {})
    assert by_position["rope"] is three


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((1,), {}, "it: argument 'scale' is missing"),
        ((1, 2, 3, 4), {}, "it: expected at most 3 arguments by position, got 4"),
        ((1, 2), {"scale": 3}, "it: argument 'scale' is unknown, or given twice"),
        ((1, 2), {"other": 3}, "it: argument 'other' is unknown, or given twice"),
    ],
    ids=str,
)
def test_arguments_that_the_launcher_would_not_take_are_refused(
    args: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    parameters = registration._parameters(of_every_kind)
    with pytest.raises(TypeError) as refused:
        registration._bound("it", parameters, args, options)
    assert str(refused.value) == message


def test_an_annotation_that_operators_have_no_notation_for_is_refused() -> None:
    def launcher(x: list[int]) -> Tensor:
        return torch.tensor(x)

    with pytest.raises(TypeError, match=r"^launcher: x: expected an annotation of Tensor, .*, got list\[int\]$"):
        registration.traceable("rope")(launcher)
