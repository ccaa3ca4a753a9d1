"""Small batches: fillers change no text's vector, what a recording depends on is noticed, and what cannot be recorded
is computed as usual. What is recorded needs a GPU; buckets, and what is done without one, do not.
"""

from __future__ import annotations

import copy
import itertools
import logging
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import padless
from padless.engine.batch import PackedBatch, TokenizedTexts, pack
from padless.engine.cuda_graphs import MOST_BUCKETS, CudaGraphs, wanted
from padless.engine.cuda_graphs.buckets import MOST_TEXTS, MOST_TOKENS, Bucket, StaticBatch
from padless.engine.cuda_graphs.model_state import ModelState
from padless.engine.embedding.pooling import SentenceHead
from padless.engine.errors import OptionError
from padless.engine.folders.sentence_transformer import NormalizeSpec, PoolingSpec
from padless.engine.models import encoder_class
from padless.engine.ops.bind import BoundOp

CPU = torch.device("cpu")
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device to record on")

SIZES: dict[str, dict[str, Any]] = {
    "bert": {"intermediate_size": 36, "max_position_embeddings": 64},
    "megatron-bert": {"intermediate_size": 36, "max_position_embeddings": 64},
    "mobilebert": {"intermediate_size": 28, "max_position_embeddings": 64, "embedding_size": 12,
                   "intra_bottleneck_size": 18, "num_feedforward_networks": 2},
    "modernbert": {"intermediate_size": 36, "local_attention": 6, "pad_token_id": 0, "bos_token_id": 1,
                   "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
}  # fmt: skip

LENGTHS: dict[str, list[int]] = {
    "one token": [1],
    "one text": [9],
    "all of a bucket": [16],
    "one more": [17],
    "several": [3, 11, 1, 7],
    "empty first": [0, 5],
    "empty last": [5, 0, 0],
    "one long": [60, 1, 1, 1],
    "many": [2] * 63,
}


def packed(lengths: Sequence[int], typed: bool = False) -> PackedBatch:
    sizes = np.array(lengths, dtype=np.int32)
    generator = np.random.default_rng(len(lengths))
    ids = generator.integers(0, 61, sizes.sum(), dtype=np.int32)
    nothing = np.zeros(len(sizes), dtype=bool)
    types = generator.integers(0, 2, sizes.sum(), dtype=np.int32) if typed else None
    return pack(TokenizedTexts(ids, sizes, types, nothing, nothing), np.arange(len(sizes)))


@dataclass
class Small:
    """A random encoder without texts."""

    model: Any
    head: SentenceHead
    device: torch.device
    computed: int = 0

    @classmethod
    def of(
        cls, family: str, dtype: torch.dtype = torch.float64, device: torch.device = CPU, mode: str = "mean"
    ) -> Small:
        torch.manual_seed(20261121)
        model_class = encoder_class(family, source="test")
        sizes: dict[str, Any] = {"d_model": 24, "d_kv": 5, "d_ff": 28, "num_layers": 2, "num_heads": 3}
        if family != "mt5":
            sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "initializer_range": 0.2}
            sizes |= SIZES[family]
        model = model_class.without_pooler(model_class.config_class(vocab_size=61, **sizes))
        model.eval().requires_grad_(False).to(device, dtype)
        specs = [PoolingSpec((mode,)), NormalizeSpec()]
        head = SentenceHead.from_specs(specs, 24, "test").eval()
        head.bind(device, dtype, backend="auto", deterministic=False)
        return cls(model, head, device)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return self.model, self.head

    def bound_ops(self) -> tuple[BoundOp, ...]:
        return *self.model.bound_ops(), *self.head.pooling.pools

    def compute(self, batch: PackedBatch, prompt_tokens: int = 0) -> Tensor:
        self.computed += 1
        with torch.no_grad():
            return self.head(self.model.run(batch), batch, prompt_tokens)


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 33, 49, 100, 1025, 1537, 2047, 2048])
def test_a_bucket_holds_its_batch_and_little_more(tokens: int) -> None:
    bucket = Bucket.of(packed([tokens]))
    assert bucket is not None
    assert tokens <= bucket.tokens <= max(32, 1.5 * tokens)
    assert bucket.tokens % 16 == 0
    assert bucket.longest == bucket.tokens
    assert bucket.texts == 2


def test_there_are_few_buckets() -> None:
    found = {bucket for tokens in range(1, MOST_TOKENS + 1) if (bucket := Bucket.of(packed([tokens])))}
    assert sorted(bucket.tokens for bucket in found) == [
        16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lengths", "longest"),
    [
        ([], None),
        ([0, 0], None),
        ([MOST_TOKENS + 1], None),
        ([17], 16),
        ([1] * MOST_TEXTS, None),
        ([9], 0),
    ],
    ids=["nothing", "no token", "too many tokens", "too long", "too many texts", "no room at all"],
)
def test_what_has_no_bucket(lengths: list[int], longest: int | None) -> None:
    assert Bucket.of(packed(lengths), longest) is None


def test_positions_of_the_callers_own_have_no_bucket() -> None:
    batch = packed([9])
    spans = replace(batch, spans=batch.lengths)
    assert Bucket.of(batch) is not None
    assert Bucket.of(spans) is None


@pytest.mark.parametrize(("lengths", "typed"), list(itertools.product(LENGTHS.values(), (False, True))), ids=str)
@pytest.mark.parametrize("longest", [None, 64, 60])
def test_a_filled_bucket_is_its_batch_and_texts_that_keep_the_limits(
    lengths: list[int], typed: bool, longest: int | None
) -> None:
    batch = packed(lengths, typed)
    bucket = Bucket.of(batch, longest, 3)
    assert bucket is not None
    assert (bucket.typed, bucket.prompt_tokens) == (typed, 3)
    static = StaticBatch(bucket, CPU)
    static.fill(packed([bucket.tokens // 2, 1], typed))  # whatever was there before
    static.fill(batch)
    got = static.batch
    assert (got.tokens, len(got), got.max_seqlen) == (bucket.tokens, bucket.texts, bucket.longest)
    assert got.cu_seqlens[: len(lengths) + 1].tolist() == batch.cu_seqlens.tolist()
    assert int(got.cu_seqlens[-1]) == bucket.tokens
    sizes = got.cu_seqlens.diff()
    assert int(sizes.min()) >= 0
    assert int(sizes.max()) <= bucket.longest <= (longest or bucket.tokens)
    for name in ("input_ids", "position_ids", "token_type_ids"):
        values, expected = getattr(got, name), getattr(batch, name)
        if expected is None:
            assert values is None
            continue
        assert values.dtype == expected.dtype
        assert torch.equal(values[: batch.tokens], expected)
    counted = torch.cat([torch.arange(size) for size in sizes.tolist()])
    assert torch.equal(got.position_ids, counted)
    assert not got.input_ids[batch.tokens :].any()


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("family", [*SIZES, "mt5"])
def test_fillers_change_no_vector(family: str, lengths: list[int]) -> None:
    encoder = Small.of(family)
    batch = packed(lengths, typed=family in ("bert", "mobilebert", "megatron-bert"))
    bucket = Bucket.of(batch, encoder.model.longest)
    assert bucket is not None
    static = StaticBatch(bucket, CPU)
    static.fill(batch)
    got = encoder.compute(static.batch)[: len(lengths)]
    torch.testing.assert_close(got, encoder.compute(batch), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_fillers_change_no_pooling_behind_a_prompt(mode: str) -> None:
    encoder = Small.of("bert", mode=mode)
    encoder.head.pooling.include_prompt = False
    batch = packed([9, 4, 30])
    bucket = Bucket.of(batch, 64, 2)
    assert bucket is not None
    static = StaticBatch(bucket, CPU)
    static.fill(batch)
    got = encoder.compute(static.batch, 2)[:3]
    torch.testing.assert_close(got, encoder.compute(batch, 2), rtol=1e-12, atol=1e-13)


def test_whoever_asks_a_static_batch_for_lengths_gets_an_error() -> None:
    bucket = Bucket.of(packed([9]))
    assert bucket is not None
    batch = StaticBatch(bucket, CPU).batch
    assert len(batch) == 2
    with pytest.raises(NotImplementedError):
        batch.lengths.tolist()


def test_without_a_gpu_the_second_batch_of_a_bucket_is_refused_once(caplog: pytest.LogCaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a CUDA device")
    encoder, graphs = Small.of("bert"), CudaGraphs()
    first, second, other = packed([9, 4]), packed([8, 5]), packed([40])
    with caplog.at_level(logging.WARNING, logger="padless"):
        for batch in (first, other):
            got = graphs.run(batch, encoder)
            assert got is not None
            expected = encoder.compute(batch).float()
            torch.testing.assert_close(got, expected)
        for batch in (second, first, packed([40]), packed([39])):
            assert graphs.run(batch, encoder) is None
    assert (graphs.recorded, graphs.replayed, graphs.refused) == (0, 0, 2)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("CUDA graphs: no recording of Bucket(tokens=16, texts=4, longest=16")
    assert "\n" not in line


def test_a_model_that_asks_the_host_is_computed_as_usual() -> None:
    encoder, graphs = Small.of("modernbert"), CudaGraphs()
    for tables in encoder.model.tables.values():
        tables.rope = copy.copy(tables.rope)
        object.__setattr__(tables.rope, "rope_type", "dynamic")
        object.__setattr__(tables.rope, "max_positions", 8)
        object.__setattr__(tables.rope, "values", {"factor": 2.0})
    assert graphs.run(packed([5]), encoder) is None
    assert graphs.refused == 1


def test_no_more_buckets_are_kept_than_there_is_room_for() -> None:
    encoder, graphs = Small.of("bert"), CudaGraphs()
    kept = [graphs.run(packed([9]), encoder, prompt_tokens=n) is not None for n in range(MOST_BUCKETS + 2)]
    assert kept == [True] * MOST_BUCKETS + [False] * 2


def test_a_copy_has_buckets_of_its_own() -> None:
    graphs = CudaGraphs()
    graphs.run(packed([9]), Small.of("bert"))
    for other in (copy.deepcopy(graphs), pickle.loads(pickle.dumps(graphs))):
        assert other._slots == {}
        assert len(graphs._slots) == 1


def test_what_the_option_means() -> None:
    assert [wanted(option, CPU) for option in (False, "auto")] == [False, False]
    assert [wanted(option, torch.device("cuda")) for option in (False, "auto", True)] == [False, True, True]
    with pytest.raises(OptionError, match=r"^cuda_graphs: expected False or 'auto' on cpu, .*, got True$"):
        wanted(True, CPU)
    with pytest.raises(OptionError, match=r"^cuda_graphs: expected True, False or 'auto', got 'on'$"):
        wanted("on", CPU)


def test_forced_where_there_are_none(tiny_folder: Path) -> None:
    with pytest.raises(OptionError, match=r"^cuda_graphs: "):
        padless.load(tiny_folder, device="cpu", cuda_graphs=True)
    encoder = padless.load(tiny_folder, device="cpu")
    assert encoder.cuda_graphs == "auto"
    encoder.cuda_graphs = True
    with pytest.raises(OptionError, match=r"^cuda_graphs: "):
        encoder.encode("the sun")


def replaced_parameter(encoder: Small) -> None:
    layer = encoder.model.encoder.layer[1].attention.output.dense
    layer.weight = nn.Parameter(layer.weight.clone(), requires_grad=False)


def written_parameter(encoder: Small) -> None:
    encoder.model.encoder.layer[0].attention.output.dense.bias.add_(1)


def moved_data(encoder: Small) -> None:
    weight = encoder.model.encoder.layer[0].attention.output.dense.weight
    weight.data = weight.data.clone()


def replaced_layer(encoder: Small) -> None:
    output = encoder.model.encoder.layer[0].attention.output
    output.dense = copy.deepcopy(output.dense)


def hooked_layer(encoder: Small) -> None:
    encoder.model.encoder.layer[0].attention.output.dense.register_forward_hook(lambda *_: None)


def bound_again(encoder: Small) -> None:
    encoder.model.bind("eager")


def training(encoder: Small) -> None:
    encoder.model.train()


def prepared_anew(encoder: Small) -> None:
    next(op for op in encoder.bound_ops() if op._prepared is not None)._prepared = None


CHANGES = [replaced_parameter, written_parameter, moved_data, replaced_layer, hooked_layer, bound_again, training,
           prepared_anew]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_of_the_model_is_noticed(change: Any) -> None:
    encoder = Small.of("bert", torch.float32)
    encoder.compute(packed([9]))
    state = ModelState(encoder.modules, encoder.bound_ops())
    encoder.compute(packed([4, 8]))
    assert state.holds()
    assert state.recordable
    change(encoder)
    assert not state.holds()


@pytest.mark.parametrize("change", [hooked_layer, training], ids=lambda change: change.__name__)
def test_what_ops_do_not_say_is_not_recorded(change: Any) -> None:
    encoder = Small.of("bert")
    change(encoder)
    assert not ModelState(encoder.modules, encoder.bound_ops()).recordable


@NO_GPU
@pytest.mark.parametrize("family", [*SIZES, "mt5"])
def test_a_recording_gives_the_bits_of_its_bucket(family: str) -> None:
    device = torch.device("cuda")
    encoder, graphs = Small.of(family, torch.bfloat16, device), CudaGraphs()
    for round_ in range(3):
        for lengths in LENGTHS.values():
            batch = packed(lengths)
            bucket = Bucket.of(batch, encoder.model.longest)
            assert bucket is not None
            static = StaticBatch(bucket, device)
            static.fill(batch)
            expected = encoder.compute(static.batch)[: len(lengths)].cpu()
            got = graphs.run(batch, encoder, longest=encoder.model.longest)
            assert got is not None, round_
            assert torch.equal(got.view(torch.int32), expected.view(torch.int32))
    assert graphs.refused == 0
    assert graphs.replayed >= len(LENGTHS)


@NO_GPU
def test_a_replay_launches_nothing_from_the_host_and_a_change_is_recorded_anew() -> None:
    encoder, graphs = Small.of("bert", torch.bfloat16, torch.device("cuda")), CudaGraphs()
    batch = packed([9, 4])
    for _ in range(3):
        graphs.run(batch, encoder)
    before = encoder.computed
    graphs.run(batch, encoder)
    assert encoder.computed == before
    written_parameter(encoder)
    got = graphs.run(batch, encoder)
    assert got is not None
    torch.testing.assert_close(got, encoder.compute(batch.to("cuda")).cpu(), rtol=2e-2, atol=2e-2)


@NO_GPU
def test_no_memory_for_a_recording_is_no_error() -> None:
    encoder, graphs = Small.of("bert", torch.bfloat16, torch.device("cuda")), CudaGraphs()
    graphs._full = True
    assert graphs.run(packed([9]), encoder) is None
