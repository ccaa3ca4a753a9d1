"""The steps of `generate` in memory that stays where it is: they compute what plain steps do, and depend on nothing
that a recording would not keep.

What a CUDA graph is needs a GPU. In its place stands `RecordedOps`: the operators of a call with the very tensors they
were given, run again without any of the Python around them. It keeps what a graph keeps, numbers of the host and
addresses, and so it is wrong where a graph would be.
"""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import padless
from padless.engine.generate.generate import Generated, decoder_prompts, generate
from padless.engine.models import step_graphs
from padless.engine.models.static_room import MOST_ROWS, Room, RoomKind, RoomSize, row_bucket
from padless.engine.models.static_seats import Seats
from padless.engine.models.static_steps import Rooms, StaticSteps
from padless.engine.models.step_graphs import MOST_ROOMS, StepGraphs
from padless.engine.models.steps import Steps
from padless.engine.relative_position import relative_position_bucket

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device to record on")

T5: dict[str, Any] = {
    "vocab_size": 53, "d_model": 24, "d_kv": 5, "d_ff": 28, "num_layers": 1, "num_decoder_layers": 2, "num_heads": 3,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "tie_word_embeddings": False,
    "eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0,
}  # fmt: skip
MEGATRON: dict[str, Any] = {
    "vocab_size": 53, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 36,
    "max_position_embeddings": 96, "initializer_range": 0.5, "is_decoder": True, "eos_token_id": 1, "pad_token_id": 0,
    "tie_word_embeddings": False,
}  # fmt: skip
FAMILIES = ("mt5", "megatron")
ENDS = {"mt5": [1, 7, 12, 23, 31], "megatron-bert": [1, 3, 5, 18, 19]}
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "all beams": {"num_beams": 4, "num_return_sequences": 4, "early_stopping": True},
    "drawn": {"do_sample": True, "temperature": 1.5, "num_return_sequences": 3, "seed": 7},
}


def made(family: str) -> Any:
    """A random model in fp64, whose sequences end at several lengths: rounding decides nothing."""
    torch.manual_seed(11)
    if family == "mt5":
        model: Any = padless.MT5ForConditionalGeneration(padless.MT5Config(**T5))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith((".q.weight", ".o.weight", ".relative_attention_bias.weight", ".wo.weight")):
                    parameter.mul_(4)
            model.shared.weight.mul_(0.1)
    else:
        model = padless.MegatronBertForCausalLM(padless.MegatronBertConfig(**MEGATRON))
        with torch.no_grad():
            for layer in model.bert.encoder.layer:
                layer.attention.self.query.weight.mul_(3)
            model.bert.embeddings.position_embeddings.weight.mul_(3)
    return model.double().eval().requires_grad_(False)


@cache
def model_of(family: str) -> Any:
    return made(family)


def texts_of(count: int, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 13, (count,), generator=draw).tolist()
    return [torch.randint(2, 53, (length,), generator=draw) for length in lengths]


def padded(texts: list[Tensor], device: str = "cpu") -> dict[str, Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def plain(model: Any, texts: list[Tensor]) -> Steps:
    base = model.base_model
    if not hasattr(base, "read_texts"):
        return Steps(base, model.language_model_head)
    given = padded(texts)
    read = base.read_texts(given["input_ids"], given["attention_mask"], None, None)
    return Steps(base, model.language_model_head, read)


def written(model: Any, texts: list[Tensor], decoder: Any, **options: Any) -> Generated:
    found = model._options(
        {
            "max_new_tokens": 14,
            "eos_token_id": ENDS[model.config.model_type],
            "output_scores": True,
            "return_dict_in_generate": True,
            **options,
        }
    )
    prompts = texts if model.config.model_type != "mt5" else decoder_prompts(found, len(texts), torch.device("cpu"))
    with torch.no_grad():
        return generate(decoder, found, prompts)


def assert_same(found: Generated, expected: Generated) -> None:
    assert torch.equal(found.sequences, expected.sequences)
    assert found.scores is not None
    assert expected.scores is not None
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-6, atol=1e-6)


class NotANumberElsewhere(Rooms):
    """Rooms in which nothing is a number but what was written there."""

    def __init__(self) -> None:
        self.made: list[Room] = []

    def take(self, kind: RoomKind, size: RoomSize) -> Room | None:
        room = super().take(kind, size)
        assert room is not None
        room._own.fill_(float("nan"))
        if room._across is not None:
            room._across.fill_(float("nan"))
        self.made.append(room)
        return room


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_in_a_room_every_token_and_score_is_that_of_plain_steps(family: str, name: str) -> None:
    model, texts, rooms = model_of(family), texts_of(12), NotANumberElsewhere()
    expected = written(model, texts, plain(model, texts), **OPTIONS[name])
    assert_same(written(model, texts, StaticSteps(plain(model, texts), rooms), **OPTIONS[name]), expected)
    assert len(rooms.made) == 1
    assert len(set(expected.lengths.tolist())) > 2  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_whose_numbers_are_asked_of_the_host_is_an_error(family: str) -> None:
    model, texts = model_of(family), texts_of(3)
    seen: list[Any] = []
    base = model.base_model

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(base, name)

        def decode(self, decoding: Any) -> Tensor:
            seen.append(decoding)
            return base.decode(decoding)

    steps = plain(model, texts)
    steps.model = Watched()
    written(model, texts, StaticSteps(steps, Rooms()), min_new_tokens=3)
    last = seen[-1]
    for numbers in (last.batch.lengths, last.place.slots, last.place.totals, last.cache.lengths):
        with pytest.raises(NotImplementedError):
            numbers.tolist()


def test_no_room_for_more_than_a_gpu_needs_it_for() -> None:
    model, texts = model_of("megatron"), texts_of(2)
    assert RoomSize.of(MOST_ROWS + 1, 20) is None
    assert RoomSize.of(MOST_ROWS, 20) == RoomSize(MOST_ROWS, 64)
    assert RoomSize.of(9, 65, torch.tensor([3, 70, 5])) == RoomSize(16, 96, 96, 96)
    assert [row_bucket(rows) for rows in (1, 8, 9, 16, 17, 200)] == [8, 8, 16, 16, 32, 256]
    decoder = StaticSteps(plain(model, texts), Rooms())
    written(model, texts, decoder, max_new_tokens=1)
    assert decoder.room is None
    many = [text[:2] for text in texts_of(2)]
    for options in ({"num_beams": 4, "num_return_sequences": 4}, {"num_return_sequences": 140, "do_sample": True}):
        decoder = StaticSteps(plain(model, many), Rooms())
        assert_same(
            written(model, many, decoder, max_new_tokens=3, seed=1, **options),
            written(model, many, plain(model, many), max_new_tokens=3, seed=1, **options),
        )
        assert (decoder.room is None) == (options["num_return_sequences"] == 140)


def test_every_sequence_keeps_what_it_holds_and_has_a_slot_of_its_own() -> None:
    draw = np.random.default_rng(5)
    for _ in range(40):
        slots, count = 16, int(draw.integers(1, 9))
        seats, memory = Seats(slots), [""] * slots
        seats.enter(np.arange(1, count + 1), (np.array([4, 0, 3]), draw.integers(0, 3, count)))
        holds = [str(row) for row in range(count)]
        memory[:count] = holds
        lengths, texts = seats.lengths.tolist(), seats.text_starts.tolist()
        for step in range(12):
            rows = draw.integers(0, len(holds), int(draw.integers(1, slots + 1)))
            sources, targets = seats.reorder(rows)
            assert not set(sources.tolist()) & set(targets.tolist())
            for source, target in zip(sources, targets, strict=True):
                memory[target] = memory[source]
            holds, lengths, texts = ([each[row] for row in rows] for each in (holds, lengths, texts))
            assert len(set(seats.slots.tolist())) == len(rows)
            assert [memory[slot] for slot in seats.slots] == holds
            assert (seats.lengths.tolist(), seats.text_starts.tolist()) == (lengths, texts)
            for row, slot in enumerate(seats.slots):
                memory[slot] = holds[row] = f"{holds[row]}.{step}{row}"
        tables = seats.tables(slots, 100)
        assert sorted(tables[0].tolist()) == [100 * slot for slot in range(slots)]
        assert not tables[1:, len(holds) :].any()


class RecordedOps(TorchDispatchMode):
    """The operators of a call and what they were called with, to be run again."""

    def __init__(self, launch: Callable[[], Tensor], memory: list[Tensor]) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        before = [part.clone() for part in memory]
        with self:
            self.result = launch()
        for part, values in zip(memory, before, strict=True):
            part.copy_(values)  # a graph computes nothing while it is recorded

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a number is asked for while a graph is recorded")
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, found))
        return found

    def replay(self) -> Tensor:
        for func, args, kwargs, found in self.calls:
            if func.is_view:
                continue
            again = func(*args, **kwargs)
            if not func._schema.is_mutable:
                for old, new in zip(tree_leaves(found), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor) and old.device.type != "meta":
                        old.copy_(new)
        return self.result


class OnCpu(StepGraphs):
    """Step graphs whose recordings are of operators."""

    def _capture(self, launch: Callable[[], Tensor], device: torch.device) -> Any:
        room = self._lent
        assert room is not None
        return RecordedOps(launch, [room._own, room._tables, room._logits])


def attended(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, lengths: Tensor, max_length: int, *,
    softmax_scale: float | None = None, position_bias: Tensor | None = None, bias_max_distance: int = 128,
    bias_bidirectional: bool = False,
) -> Tensor:  # fmt: skip
    """`decode_attention` without a question to the host, as the kernel is."""
    places = torch.arange(max_length, device=q.device)
    rows = (starts[:, None] + places).clamp(max=len(k) - 1)
    scores = torch.einsum("shd,slhd->shl", q, k[rows]) * (
        q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    )
    if position_bias is not None:
        distance = places - (lengths[:, None] - 1)
        buckets = relative_position_bucket(distance, position_bias.shape[0], bias_max_distance, bias_bidirectional)
        scores = scores + position_bias[buckets].transpose(1, 2)
    weights = scores.masked_fill(places >= lengths[:, None, None], float("-inf")).softmax(-1).nan_to_num()
    return torch.einsum("shl,slhd->shd", weights, v[rows])


def without_questions(model: Any) -> Any:
    for op in model.bound_ops():
        if op.op == "decode_attention":
            op._forward = attended
    return model


@pytest.fixture
def recordable() -> Callable[[str], Any]:
    """Models whose step asks the host for nothing."""

    return lambda family: without_questions(made(family).bind("eager"))


def by_graphs(model: Any, texts: list[Tensor], graphs: StepGraphs, **options: Any) -> Generated:
    steps = plain(model, texts)
    with graphs.lent(model, steps) as decoder:
        return written(model, texts, decoder, **options)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_told_again_are_those_of_plain_steps(
    recordable: Callable[[str], Any], family: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, graphs = recordable(family), OnCpu()
    launched = []
    launch = Room.launch
    monkeypatch.setattr(Room, "launch", lambda self, *given: launched.append(given[2]) or launch(self, *given))
    for seed in range(3):
        texts = texts_of(12, seed)
        expected = written(model, texts, plain(model, texts), **OPTIONS[name])
        # Tensors of one kind of call must do for the other.
        with torch.inference_mode(seed == 1):
            assert_same(by_graphs(model, texts, graphs, **OPTIONS[name]), expected)
    assert graphs.refused == 0
    found = [recording for room in graphs.rooms for recording in room.recordings.values()]
    seen_once = sum(recording is None for recording in found)
    assert graphs.recorded == len(found) - seen_once
    assert len(launched) == 3 * graphs.recorded + seen_once  # once as usual, once more, and while it is recorded
    assert graphs.replayed > 2 * graphs.recorded
    assert len(set(launched)) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_asks_the_host_for_nothing(recordable: Callable[[str], Any], family: str) -> None:
    """On a device whose tensors have no values, and which takes none from the host's."""
    model, texts = recordable(family), texts_of(9)
    decoder = StaticSteps(plain(model, texts), Rooms())
    written(model, texts, decoder)
    assert decoder.room is not None
    model.to("meta")  # binds anew
    room = Room(replace(decoder.room.kind, device=torch.device("meta")), decoder.room.size)
    with pytest.raises(NotImplementedError):
        room.launch(model.base_model, model.language_model_head, 16)
    without_questions(model)
    logits = room.launch(model.base_model, model.language_model_head, 16)
    assert logits.shape == (16, 53)


def test_a_model_that_has_changed_is_recorded_anew(recordable: Callable[[str], Any]) -> None:
    model, graphs, texts = recordable("megatron"), OnCpu(), texts_of(6)
    by_graphs(model, texts, graphs)
    recorded = graphs.recorded
    before = written(model, texts, plain(model, texts))
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight.mul_(-1.0)
    expected = written(model, texts, plain(model, texts))
    assert not torch.equal(expected.sequences, before.sequences)
    assert_same(by_graphs(model, texts, graphs), expected)
    assert graphs.recorded > recorded


def test_a_bucket_recorded_after_a_change_leaves_none_from_before_it(recordable: Callable[[str], Any]) -> None:
    model, graphs, texts = recordable("megatron"), OnCpu(), texts_of(9)
    usual = plain(model, texts)
    with graphs.lent(model, plain(model, texts)) as steps, torch.no_grad():
        for decoder in (steps, usual):
            decoder.start(texts, steps=20, sequences=9)
        for number in range(15):
            if number == 4:  # 16 rows are recorded
                model.bert.encoder.layer[0].output.dense.weight.mul_(-1.0)
            if number in (4, 9):  # 4 sequences in 8 rows, then 9 in 16 again
                rows = torch.arange(9 if number == 9 else 4) % 4
                for decoder in (steps, usual):
                    decoder.reorder(rows)
            tokens = torch.full((4 if 4 <= number < 9 else 9,), 5 + number)
            torch.testing.assert_close(steps.step(tokens), usual.step(tokens), rtol=1e-6, atol=1e-6)
    assert (graphs.recorded, graphs.refused) == (3, 0)


def hooked(model: Any) -> None:
    model.bert.encoder.layer[0].output.dense.register_forward_hook(lambda *_: None)


def training(model: Any) -> None:
    model.bert.encoder.layer[1].train()


@pytest.mark.parametrize("change", [hooked, training], ids=lambda change: change.__name__)
def test_what_ops_do_not_say_is_computed_as_usual(
    recordable: Callable[[str], Any], change: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    model, graphs, texts = recordable("megatron"), OnCpu(), texts_of(6)
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.0
    change(model)
    with caplog.at_level(logging.WARNING, logger="padless"):
        for _ in range(2):
            assert_same(by_graphs(model, texts, graphs), written(model, texts, plain(model, texts)))
    assert (graphs.recorded, graphs.refused, graphs.rooms) == (0, 1, [])
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "CUDA graphs: no recording of a step of 8 rows: NotRecordable: "
        "a layer was replaced or has hooks, or is in training"
    )
    model.bert.encoder.layer[0].output.dense._forward_hooks.clear()
    model.eval()
    assert_same(by_graphs(model, texts, graphs), written(model, texts, plain(model, texts)))
    assert graphs.recorded == 1


def test_a_step_that_asks_the_host_is_computed_as_usual(recordable: Callable[[str], Any]) -> None:
    model, graphs, texts = recordable("mt5"), OnCpu(), texts_of(6)
    head = model.lm_head.op._forward
    model.lm_head.op._forward = lambda x, *given, **options: head(
        x * float(x.isfinite().all().item()), *given, **options
    )
    assert_same(by_graphs(model, texts, graphs), written(model, texts, plain(model, texts)))
    assert (graphs.recorded, graphs.refused) == (0, 1)


def test_a_recording_that_gives_other_bits_is_not_used(recordable: Callable[[str], Any]) -> None:
    model, texts = recordable("megatron"), texts_of(6)

    class Silent(OnCpu):
        """Its recordings do nothing."""

        def _capture(self, launch: Callable[[], Tensor], device: torch.device) -> Any:
            recording = super()._capture(launch, device)
            recording.calls = []
            return recording

    graphs = Silent()
    assert_same(by_graphs(model, texts, graphs), written(model, texts, plain(model, texts)))
    assert (graphs.recorded, graphs.refused) == (0, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_gpu_the_second_step_is_refused_once(family: str, caplog: pytest.LogCaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a CUDA device")
    model, graphs, texts = made(family), StepGraphs(), texts_of(9)
    with caplog.at_level(logging.WARNING, logger="padless"):
        for _ in range(2):
            assert_same(
                by_graphs(model, texts, graphs, num_beams=2), written(model, texts, plain(model, texts), num_beams=2)
            )
    assert (graphs.recorded, graphs.replayed, graphs.refused) == (0, 0, 1)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("CUDA graphs: no recording of a step of ")
    assert "\n" not in line


def test_no_memory_for_a_room_is_no_error(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 50 GiB.\nGPU 0 has")

    model, graphs, texts = made("megatron"), StepGraphs(), texts_of(5)
    monkeypatch.setattr(Room, "__init__", full)
    with caplog.at_level(logging.WARNING, logger="padless"):
        for _ in range(2):
            assert_same(by_graphs(model, texts, graphs), written(model, texts, plain(model, texts)))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "RoomSize(slots=8, capacity=64" in line


def test_few_rooms_are_kept_and_the_smallest_that_suffices_is_used() -> None:
    model, graphs = made("megatron"), StepGraphs()
    kind = RoomKind(torch.device("cpu"), torch.float64, 2, (3, 8), None, 53)

    def used(size: RoomSize) -> Room:
        with graphs.lent(model, Steps(model.bert, model.language_model_head)):
            room = graphs.take(kind, size)
        assert room is not None
        return room

    small, wide, long = (used(RoomSize(*size)) for size in ((8, 64), (32, 64), (8, 512)))
    assert used(RoomSize(8, 64)) is small
    assert used(RoomSize(16, 64)) is wide
    assert used(RoomSize(8, 96)) is long
    assert graphs.rooms == [small, wide, long]
    other = used(RoomSize(8, 64, 64, 64))
    more = used(RoomSize(64, 512))
    assert graphs.rooms == [wide, long, other, more]
    assert len(graphs.rooms) == MOST_ROOMS
    assert used(RoomSize(8, 64)) is not small


def test_a_room_that_is_too_large_is_not_kept(
    recordable: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, graphs, texts = recordable("mt5"), OnCpu(), texts_of(5)
    by_graphs(model, texts, graphs)
    (room,) = graphs.rooms
    kept = sum(x.numel() * x.element_size() for x in (room._own, room._across, room._logits) if x is not None)
    kept += room._logits.numel() * 8  # the head's product in fp64
    assert room.kind.bytes(room.size) == kept
    monkeypatch.setattr(step_graphs, "KEPT_BYTES", kept - 1)
    assert_same(by_graphs(model, texts, graphs), written(model, texts, plain(model, texts)))
    assert graphs.rooms == []


def test_one_call_at_a_time_has_the_rooms() -> None:
    model, graphs, texts = model_of("megatron"), StepGraphs(), texts_of(3)
    first, second = plain(model, texts), plain(model, texts)
    with graphs.lent(model, first) as outer:
        assert isinstance(outer, StaticSteps)
        with graphs.lent(model, second) as inner:
            assert inner is second
    with graphs.lent(model, second) as again:
        assert isinstance(again, StaticSteps)
    with torch.autocast("cpu", torch.bfloat16), graphs.lent(model, second) as cast:
        assert cast is second


def test_a_copy_has_rooms_of_its_own(recordable: Callable[[str], Any]) -> None:
    model, graphs = recordable("megatron"), OnCpu()
    by_graphs(model, texts_of(4), graphs)
    assert len(graphs.rooms) == 1
    model._step_graphs = graphs
    for twin in (copy.deepcopy(graphs), pickle.loads(pickle.dumps(graphs)), copy.deepcopy(model)._step_graphs):
        assert type(twin) is StepGraphs
        assert twin.rooms == []


def test_on_a_cpu_generate_asks_for_no_graphs() -> None:
    model, given = made("megatron"), padded(texts_of(3))
    model.generate(**given, max_new_tokens=3)
    assert model._step_graphs is None
    model.cuda_graphs = True
    with pytest.raises(padless.OptionError, match=r"^cuda_graphs: expected False or 'auto' on cpu"):
        model.generate(**given, max_new_tokens=3)


@NO_GPU
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_and_plain_generation_are_the_same_on_a_gpu(family: str, name: str) -> None:
    """In fp32: in bf16 the size of the bucket may decide between tokens that are nearly as likely."""
    model = made(family).to("cuda", torch.float32)
    for seed in range(3):
        given = padded(texts_of(12, seed), "cuda")
        model.cuda_graphs = False
        expected = model.generate(**given, max_new_tokens=14, **OPTIONS[name])
        model.cuda_graphs = True
        assert torch.equal(model.generate(**given, max_new_tokens=14, **OPTIONS[name]), expected)
    assert model._step_graphs.refused == 0
    assert model._step_graphs.replayed > 2 * model._step_graphs.recorded
