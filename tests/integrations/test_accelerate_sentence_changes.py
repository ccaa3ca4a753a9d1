"""What is done to an accelerated SentenceTransformer is seen; what padless does not compute is refused or left to the
library, each time with its reason; `restore` leaves what was there."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_models import TEXTS, assert_packed, assert_same, loop, sentence_model, tokens_of
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer.modules import CNN, Dense, Pooling
from torch import nn

import padless
from padless.engine.errors import BackendError, InputError, OptionError


@pytest.fixture
def plain(embedding_folder: Path) -> Any:
    return sentence_model(embedding_folder, prompts={"query": "the moon ", "document": ""})


@pytest.fixture
def fast(plain: Any) -> Any:
    return padless.accelerate(copy.deepcopy(plain))


def longer_vocabulary(model: Any) -> None:
    model.tokenizer.add_tokens(["stood still", "x"])
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model[0].model.resize_token_embeddings(len(model.tokenizer), mean_resizing=False)


def trained(model: Any) -> None:
    model.train()
    torch.manual_seed(5)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        features = model.preprocess(TEXTS[:4])
        optimiser.zero_grad()
        model(features)["sentence_embedding"].sum().backward()
        optimiser.step()


def other_weights(model: Any) -> None:
    model.load_state_dict({name: 0.9 * value for name, value in model.state_dict().items()})


def other_tokenizer(model: Any) -> None:
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.backend_tokenizer.normalizer = None
    model[0].processor = tokenizer


def set_pooling(model: Any) -> None:
    pooling: Any = model[1]
    pooling.pooling_mode = "cls"


CHANGES: dict[str, Callable[[Any], Any]] = {
    "max_seq_length": lambda model: setattr(model, "max_seq_length", 9),
    "truncation side": lambda model: (
        setattr(model, "max_seq_length", 9),
        setattr(model.tokenizer, "truncation_side", "left"),
    ),
    "truncate_dim": lambda model: setattr(model, "truncate_dim", 4),
    "prompts": lambda model: (model.prompts.update(x="stone "), setattr(model, "default_prompt_name", "x")),
    "vocabulary": longer_vocabulary,
    "lower case": lambda model: setattr(model.tokenizer.backend_tokenizer, "normalizer", None),
    "tokenizer": other_tokenizer,
    "pooling": set_pooling,
    "prompt left out": lambda model: (
        model.set_pooling_include_prompt(False),
        model.prompts.update(x="stone "),
        setattr(model, "default_prompt_name", "x"),
    ),
    "a module more": lambda model: model.append(Dense(32, 6, init_weight=torch.ones(6, 32), bias=False)),
    "a module less": lambda model: model.pop(2),
    "weights": other_weights,
    "training": trained,
    "train mode": lambda model: model.train(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen(fast: Any, plain: Any, change: str) -> None:
    before = plain.encode(TEXTS)
    assert_same(fast.encode(TEXTS), before)
    for model in (fast, plain):
        CHANGES[change](model)
    expected = plain.encode(TEXTS)
    if change != "train mode":
        assert expected.shape != before.shape or np.abs(expected - before).max() > 1e-3, "the change changes nothing"
    assert_same(fast.encode(TEXTS), expected)
    assert not loop(fast).fallbacks
    assert loop(fast).stats.texts == 2 * len(TEXTS)


def test_weights_that_were_moved_between_calls_can_be_trained(fast: Any, plain: Any) -> None:
    """They are shared anew inside a call of the library, which is in inference mode."""
    for model in (fast, plain):
        model.to(torch.bfloat16).to(torch.float32)
        model.encode(TEXTS)
        trained(model)
    assert_same(fast.encode(TEXTS), plain.encode(TEXTS))
    assert not loop(fast).fallbacks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_another_dtype_gives_vectors_of_it(fast: Any, plain: Any, dtype: torch.dtype) -> None:
    expected = plain.encode(TEXTS)
    fast.encode(TEXTS)
    fast.to(dtype)
    found = fast.encode(TEXTS, convert_to_tensor=True)
    assert found.dtype == dtype == plain.to(dtype).encode(TEXTS, convert_to_tensor=True).dtype
    cosines = nn.functional.cosine_similarity(found.float(), torch.from_numpy(expected))
    assert cosines.min() > 0.995
    assert fast.encode(TEXTS).dtype == plain.encode(TEXTS).dtype
    assert not loop(fast).fallbacks


def test_calls_beside_encode_give_what_they_gave(fast: Any, plain: Any) -> None:
    features = fast.preprocess(TEXTS)
    for name, value in plain.preprocess(TEXTS).items():
        assert_same(features[name], value)
    with torch.no_grad():
        found, expected = (model(model.preprocess(TEXTS)) for model in (fast, plain))
    assert_same(found["sentence_embedding"], expected["sentence_embedding"])
    mask = expected["attention_mask"][:, :, None]
    assert_same(found["token_embeddings"] * mask, expected["token_embeddings"] * mask)
    for name in ("max_seq_length", "prompts", "similarity_fn_name", "device", "dtype", "modalities"):
        assert getattr(fast, name) == getattr(plain, name)
    assert fast.get_embedding_dimension() == plain.get_embedding_dimension()
    assert repr(fast) == repr(plain)
    vectors = plain.encode(TEXTS)
    assert_same(fast.similarity(vectors, vectors), plain.similarity(vectors, vectors))
    assert loop(fast).stats.texts == 0


class Doubled(nn.Module):
    """A module of somebody's own, on the vectors of tokens."""

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        return {**features, "token_embeddings": 2 * features["token_embeddings"]}


def undone(model: Any) -> None:
    if "forward" in vars(model[0].model):
        padless.restore(model[0].model)


FALLBACKS: dict[str, tuple[Callable[[Any], Any], dict[str, Any], str]] = {
    "output_value": (lambda _: None, {"output_value": None}, "output_value: None"),
    "left": (lambda model: setattr(model.tokenizer, "padding_side", "left"), {}, "pads on the left"),
    "double": (lambda model: model.double(), {}, "float64"),
    "processing": (lambda _: None, {"processing_kwargs": {"text": {"max_length": 7}}}, "processing_kwargs"),
    "hook": (lambda model: model[1].register_forward_hook(lambda *_: None), {}, r"module 1 \(Pooling\) has hooks"),
    "inner hook": (lambda model: model[0].model.encoder.layer[0].register_forward_hook(lambda *_: None), {}, "hooks"),
    "hook on the model": (lambda model: model[0].model.register_forward_hook(lambda *_: None), {}, "a model inside"),
    "module": (lambda model: model.insert(1, Doubled()), {}, r"module 1 \(Doubled\)"),
    "restored inside": (undone, {}, "not accelerated any more"),
}


def without_padding(found: Any) -> Any:
    """What is at padding is nobody's: zeros where our model computes."""
    if isinstance(found, list):
        for features in found:
            features["token_embeddings"] = features["token_embeddings"] * features["attention_mask"][:, None]
    return found


@pytest.mark.parametrize("case", FALLBACKS)
def test_what_is_not_served_is_the_librarys_own_and_says_why(
    fast: Any, plain: Any, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    change, options, reason = FALLBACKS[case]
    for model in (fast, plain):
        change(model)
    texts = ["moon", "the sun stood still", "x"]  # version 6.0 fails where there are more than `len("text")`
    with caplog.at_level(logging.WARNING, logger="padless"):
        for _ in range(2):
            assert_same(*(without_padding(model.encode(texts, **options)) for model in (fast, plain)))
    assert list(loop(fast).fallbacks.values()) == [2]
    lines = [record.message for record in caplog.records if "is served batch by batch" in record.message]
    assert len(lines) == 1
    assert re.search(reason, lines[0])
    assert loop(fast).stats.texts == 0


def test_inputs_that_are_no_texts_fail_as_before(fast: Any, plain: Any) -> None:
    for model in (fast, plain):
        with pytest.raises(ValueError, match="Unsupported input type: int"):
            model.encode([1, 2])


def test_a_limit_beyond_the_table_of_positions_is_an_error_not_a_read_outside(fast: Any) -> None:
    fast.max_seq_length = 100
    with pytest.raises(InputError, match="takes at most 64: set max_seq_length"):
        fast.encode(["moon", "moon " * 90])
    assert fast.encode(["moon"]).shape == (1, 32)


def test_ids_beyond_the_vocabulary_are_an_error_not_a_read_outside(fast: Any) -> None:
    fast.tokenizer.add_tokens(["stood still"])
    with pytest.raises(InputError, match="resize_token_embeddings"):
        fast.encode(["it stood still"])
    assert fast.encode(["moon"]).shape == (1, 32)


def hooked(model: Any) -> Any:
    model.register_forward_pre_hook(lambda *_: None)
    return model


def compiled(model: Any) -> Any:
    model.compile(backend="eager")
    return model


class OwnPooling(Pooling):
    """Somebody's own."""


class OwnEncode(SentenceTransformer):
    """Somebody's own."""

    def encode(self, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().encode(*args, **kwargs) + 1


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "module": (lambda f: sentence_model(f, Pooling(32, "mean"), CNN(32, 8)), r"module 2 \(CNN\) .*Dense or Normalize"),
    "before pooling": (lambda f: sentence_model(f, CNN(32, 8), Pooling(8)), r"module 1 \(CNN\) .* knows Pooling"),
    "no pooling": (lambda f: SentenceTransformer(modules=[sentence_model(f)[0]], device="cpu"), "no Pooling"),
    "derived module": (lambda f: sentence_model(f, OwnPooling(32)), r"module 1 \(OwnPooling\)"),
    "derived model": (
        lambda f: OwnEncode(modules=list(sentence_model(f)), device="cpu"),
        "OwnEncode: defines encode",
    ),
    "hooks": (lambda f: hooked(sentence_model(f)), "has hooks, which would not be called"),
    "compiled": (lambda f: compiled(sentence_model(f)), "was compiled"),
    "names": (
        lambda f: sentence_model(f, Pooling(32), Dense(32, 8, module_input_name="token_embeddings")),
        "takes 'token_embeddings', which no module gives",
    ),
    "training": (lambda f: in_training(sentence_model(f)), r"training mode: call model.eval\(\)"),
}


def in_training(model: Any) -> Any:
    return model.train()


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_padless_does_not_compute_are_refused(embedding_folder: Path, case: str) -> None:
    make, message = REFUSED[case]
    model = make(embedding_folder)
    before = set(vars(model))
    with pytest.raises(OptionError, match=message) as caught:
        padless.accelerate(model)
    assert "\n" not in str(caught.value)
    assert set(vars(model)) == before
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_backend_that_cannot_serve_leaves_the_model_as_it_was(plain: Any) -> None:
    before = set(vars(plain)), plain.encode(TEXTS).tobytes()
    with pytest.raises(BackendError):
        padless.accelerate(plain, backend="triton")
    assert (set(vars(plain)), plain.encode(TEXTS).tobytes()) == before
    assert not any("forward" in vars(module) for module in plain.modules())


def test_other_encoders_are_refused_by_name(embedding_folder: Path) -> None:
    with pytest.raises(OptionError, match="SparseEncoder"):
        padless.accelerate(SparseEncoder(modules=list(sentence_model(embedding_folder)), device="cpu"))


def test_saved_files_and_state_are_those_of_the_untouched_model(fast: Any, plain: Any, tmp_path: Path) -> None:
    fast.encode(TEXTS)
    states = [model.state_dict() for model in (fast, plain)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    files = []
    for name, model in (("fast", fast), ("plain", plain)):
        model.save_pretrained(str(tmp_path / name), create_model_card=False)
        folder = tmp_path / name
        files.append({str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()})
    assert files[0] == files[1]
    assert "model.safetensors" in " ".join(files[0])


def test_restored_it_is_what_it_was_to_the_bit(plain: Any) -> None:
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    attributes, vectors = set(vars(plain)), plain.encode(TEXTS)
    padless.accelerate(plain)
    assert np.abs(plain.encode(TEXTS) - vectors).max() <= 1e-5
    assert padless.restore(plain) is plain
    assert set(vars(plain)) == attributes
    assert not any("forward" in vars(module) for module in plain.modules())
    assert plain.encode(TEXTS).tobytes() == vectors.tobytes()
    assert all(torch.equal(before[name], value) for name, value in plain.state_dict().items())
    with pytest.raises(OptionError, match=r"expected a model that padless\.accelerate was called on"):
        padless.restore(plain)


def test_accelerated_twice_is_accelerated_once(fast: Any, caplog: pytest.LogCaptureFixture) -> None:
    first = loop(fast)
    with caplog.at_level(logging.WARNING, logger="padless"):
        assert padless.accelerate(fast, dtype="bfloat16") is fast
    assert loop(fast) is first
    assert "is accelerated already" in caplog.text
    fast.encode(TEXTS)
    assert_packed(fast, TEXTS)
    assert tokens_of(fast, TEXTS) > len(TEXTS)
