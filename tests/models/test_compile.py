"""torch.compile and torch.export of padless' own models: one graph for batches of all lengths, and no break in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import padless
from padless.engine.batch import PackedBatch, TokenizedTexts, pack

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 36,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}
FIELDS: dict[str, dict[str, Any]] = {
    "Bert": SIZES,
    "MegatronBert": SIZES,
    "MobileBert": {**SIZES, "embedding_size": 12, "intra_bottleneck_size": 12},
    "ModernBert": {
        **SIZES,
        "num_hidden_layers": 2,
        "pad_token_id": 0,
        "local_attention": 4,
        "classifier_pooling": "mean",
    },
    "MT5": {"vocab_size": 61, "d_model": 24, "d_kv": 8, "d_ff": 36, "num_layers": 1, "num_heads": 3},
}
BARE = {family: "EncoderModel" if family == "MT5" else "Model" for family in FIELDS}
HEAD = {family: "ForTokenClassification" if family == "MT5" else "ForSequenceClassification" for family in FIELDS}
CLASSES = sorted((*BARE.items(), *HEAD.items()))
DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "attention_dropout",
    "embedding_dropout", "mlp_dropout", "dropout_rate",
)  # fmt: skip


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Graphs of one test serve no other, and small models need one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.compiler.reset()
    yield
    torch.compiler.reset()
    torch.set_num_threads(threads)


def build(family: str, kind: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        config = getattr(padless, f"{family}Config")(**FIELDS[family])
        for name in DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, 0.0)
        return getattr(padless, family + kind)(config).eval()


def batch_of(lengths: list[int], seed: int = 0) -> PackedBatch:
    count = len(lengths)
    ids = np.random.default_rng(seed).integers(1, 61, sum(lengths)).astype(np.int32)
    none = np.zeros(count, dtype=bool)
    return pack(TokenizedTexts(ids, np.array(lengths, np.int32), None, none, none), np.arange(count))


def batches(count: int) -> Iterator[PackedBatch]:
    """Each with its own numbers of texts and tokens, and its own longest text."""
    generator = np.random.default_rng(3)
    for index in range(count):
        yield batch_of(generator.integers(1, 8 + index, 2 + index % 7).tolist(), seed=index)


class Graphs:
    """A backend that runs graphs as they are and keeps them."""

    def __init__(self) -> None:
        self.kept: list[fx.GraphModule] = []

    def __call__(self, graph: fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        self.kept.append(graph)
        return graph.forward

    def operators(self) -> list[str]:
        return [str(node.target) for graph in self.kept for node in graph.graph.nodes if node.op == "call_function"]


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1.0)


@pytest.mark.parametrize(("family", "kind"), CLASSES)
def test_one_graph_serves_twenty_batches(family: str, kind: str) -> None:
    model, graphs = build(family, kind), Graphs()
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    with torch.no_grad():
        for batch in batches(20):
            assert_same(compiled(batch)[0], model(batch)[0])
    assert len(graphs.kept) == 1
    layers = 2 if family == "ModernBert" else 1  # of both kinds
    assert graphs.operators().count("padless.cpu_attention.default") == layers


@pytest.mark.parametrize("family", ["Bert", "MT5"])
def test_one_graph_trains_on_all_batches(family: str) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    model, counter = build(family, HEAD[family]).train(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for batch in batches(4):
        gradients = []
        for forward in (compiled, model):
            model.zero_grad()
            forward(batch)[0].square().sum().backward()
            gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys()
        for name, expected in gradients[1].items():
            assert_same(gradients[0][name], expected)
    assert counter.frame_count == 1


@pytest.mark.parametrize("family", ["Bert", "ModernBert"])
def test_padded_inputs_are_packed_in_the_graph(family: str) -> None:
    from torch._dynamo import config

    model, graphs = build(family, HEAD[family]), Graphs()
    compiled = torch.compile(model, backend=graphs, fullgraph=True, dynamic=True)
    generator = torch.Generator().manual_seed(1)
    for texts, longest in ((3, 7), (5, 4), (2, 19), (4, 11)):
        ids = torch.randint(1, 61, (texts, longest), generator=generator)
        lengths = torch.randint(1, longest + 1, (texts, 1), generator=generator)
        for mask in ((torch.arange(longest) < lengths).long(), (torch.arange(longest) >= longest - lengths).long()):
            given = {"input_ids": ids, "attention_mask": mask}
            # How many tokens there are depends on the mask: torch traces that where it is told to.
            with torch.no_grad(), config.patch(capture_dynamic_output_shape_ops=True):
                assert_same(compiled(**given)[0], model(**given)[0])
    assert len(graphs.kept) == 1


def test_a_graph_that_would_break_the_promise_of_determinism_is_refused() -> None:
    model = build("Bert", "Model").bind(deterministic=True)
    batch = batch_of([5, 3])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    message = "deterministic=True promises nothing of a compiled"
    with torch.no_grad(), pytest.raises(torch._dynamo.exc.Unsupported, match=message):
        compiled(batch)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # of inductor itself
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, which inductor compiles with on a CPU")
def test_inductor_compiles_what_is_between_the_operators() -> None:
    model = build("Bert", "Model")
    compiled = torch.compile(model, fullgraph=True)
    for batch in batches(3):
        with torch.no_grad():
            assert_same(compiled(batch)[0], model(batch)[0])


class FromTensors(nn.Module):
    """torch.export takes tensors: a bare model that is given those of a PackedBatch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, position_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
        batch = PackedBatch(input_ids, position_ids, None, cu_seqlens, cu_seqlens.diff(), max_seqlen=40)
        return self.model(batch).last_hidden_state


@pytest.mark.parametrize("family", ["Bert", "MobileBert", "ModernBert", "MT5"])
def test_an_exported_model_takes_any_number_of_tokens_and_texts(family: str) -> None:
    model = build(family, BARE[family])
    tokens, starts = torch.export.Dim("tokens", min=2), torch.export.Dim("starts", min=3)
    first = batch_of([5, 3, 7])
    with torch.no_grad():
        program = torch.export.export(
            FromTensors(model),
            (first.input_ids, first.position_ids, first.cu_seqlens),
            dynamic_shapes=({0: tokens}, {0: tokens}, {0: starts}),
        )
        for batch in batches(5):
            found = program.module()(batch.input_ids, batch.position_ids, batch.cu_seqlens)
            assert_same(found, model(batch).last_hidden_state)


@pytest.mark.parametrize("lse", [False, True])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_operators_are_what_torch_expects_of_them(lse: bool, cross: bool, bias: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    starts = torch.tensor([0, 3, 3, 8], dtype=torch.int32)
    starts_k = torch.tensor([0, 2, 6, 9], dtype=torch.int32) if cross else None
    rows = 9 if cross else 8
    q, k, v = (torch.randn(n, 2, 4, generator=generator, requires_grad=True) for n in (8, rows, rows))
    table = torch.randn(6, 2, generator=generator, requires_grad=True) if bias else None
    arguments = (q, k, v, table, starts, starts_k, -1, 1, False, 0.3, 16, True, lse)
    torch.library.opcheck(torch.ops.padless.eager_attention.default, arguments)
    if not (cross or lse):
        detached = tuple(x.detach() if isinstance(x, Tensor) else x for x in arguments)
        torch.library.opcheck(torch.ops.padless.cpu_attention.default, detached)
