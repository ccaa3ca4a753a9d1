"""A SentenceTransformer that padless.accelerate was called on, beside the same left alone: every argument of `encode`,
and that it was our model that computed."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_models import TEXTS, assert_packed, assert_same, loop, sentence_model, tokens_of
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Dropout, LayerNorm, Normalize, Pooling
from torch import nn

import padless
from padless.bench.workloads import default_model, news, verses
from padless.engine.integrations.accelerate.sentence_packed import PackedModel

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def real_texts(count: int) -> list[str]:
    """Verses, with stretches of news among them, some longer than the model takes, and what breaks tokenizers."""
    draw = random.Random(20261122)
    words = " ".join(news()).split()
    texts = draw.sample(verses(), count)
    for place in range(0, count, 20):
        start = draw.randrange(len(words) - 300)
        texts[place] = " ".join(words[start : start + draw.randrange(1, 300)])
    return [*texts, *TEXTS]


@pytest.fixture(scope="module")
def minilm() -> Any:
    return SentenceTransformer(str(default_model()), device="cpu")


@pytest.fixture
def model(embedding_folder: Path) -> Any:
    return sentence_model(embedding_folder, prompts={"query": "the moon ", "document": ""})


def both(model: Any) -> tuple[Any, Any]:
    """The model accelerated, and a copy of it as it was."""
    return padless.accelerate(copy.deepcopy(model)), model


def test_real_texts_have_the_same_vectors_in_order(minilm: Any) -> None:
    check_real_texts(minilm, 60)


@pytest.mark.soak
def test_2000_real_texts_have_the_same_vectors_in_order(minilm: Any) -> None:
    check_real_texts(minilm, 2000)


def check_real_texts(minilm: Any, count: int) -> None:
    fast, plain = both(minilm)
    texts = real_texts(count)
    found, expected = fast.encode(texts), plain.encode(texts)
    assert np.allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-6)
    assert_same(found, expected)
    assert_packed(fast, texts)
    assert loop(fast).stats.truncated > 0
    assert loop(fast).stats.tokens < loop(fast).stats.padded_tokens


def test_bfloat16_points_the_same_way_and_keeps_the_weights(minilm: Any) -> None:
    fast = padless.accelerate(copy.deepcopy(minilm), dtype="bfloat16")
    texts = real_texts(10)
    found, expected = fast.encode(texts), minilm.encode(texts)
    assert found.dtype == np.float32
    cosines = (found * expected).sum(axis=1) / np.linalg.norm(found, axis=1)
    assert cosines.min() >= 0.999
    assert np.abs(found - expected).max() > 1e-5, "these are no bf16 vectors"
    assert_packed(fast, texts)
    assert {p.dtype for p in fast.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 1},
        {"batch_size": 3, "show_progress_bar": True},
        {"convert_to_tensor": True},
        {"convert_to_numpy": False},
        {"convert_to_tensor": True, "convert_to_numpy": False, "normalize_embeddings": True},
        {"output_value": "token_embeddings"},
        {"output_value": "token_embeddings", "truncate_dim": 4},
        {"precision": "binary"},
        {"precision": "ubinary", "convert_to_tensor": True},
        {"truncate_dim": 8},
        {"truncate_dim": 8, "normalize_embeddings": True},
        {"truncate_dim": 1000},
        {"prompt_name": "query"},
        {"prompt": "stone "},
        {"prompt": ""},
        {"device": "cpu"},
        {"task": "query"},
        {"chunk_size": 2},
    ],
    ids=str,
)
def test_arguments_of_encode(model: Any, options: dict[str, Any]) -> None:
    fast, plain = both(model)
    assert_same(fast.encode(TEXTS, **options), plain.encode(TEXTS, **options))
    assert not loop(fast).fallbacks
    assert loop(fast).stats.texts == len(TEXTS)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_integers_are_of_the_same_buckets(model: Any, precision: str) -> None:
    fast, plain = both(model)
    found, expected = (each.encode(TEXTS, precision=precision) for each in (fast, plain))
    assert found.dtype == expected.dtype
    # A bucket's edge may lie between two roundings.
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    assert (found != expected).mean() < 0.05
    assert_packed(fast, TEXTS)


@pytest.mark.parametrize(
    "inputs",
    [
        "moon",
        "",
        [],
        ["moon"],
        tuple(TEXTS),
        np.array(["moon", "the sun"]),
        [["the sun", "moon"], ["", "x"]],
        [("the sun " * 40, "moon " * 40)],
    ],
    ids=["text", "empty", "none", "one", "tuple", "array", "pairs", "long pair"],
)
def test_kinds_of_inputs(model: Any, inputs: Any) -> None:
    fast, plain = both(model)
    assert_same(fast.encode(inputs), plain.encode(inputs))
    assert not loop(fast).fallbacks
    rows = [inputs] if isinstance(inputs, str) else inputs
    assert loop(fast).stats.tokens == tokens_of(fast, rows)


def test_other_names_of_the_inputs(model: Any) -> None:
    fast, plain = both(model)
    assert_same(fast.encode(sentences=TEXTS), plain.encode(sentences=TEXTS))
    assert_same(fast.encode(inputs=TEXTS), plain.encode(inputs=TEXTS))
    assert_packed(fast, TEXTS, times=2)


def test_queries_and_documents(model: Any) -> None:
    fast, plain = both(model)
    for name in ("encode_query", "encode_document"):
        assert_same(getattr(fast, name)(TEXTS), getattr(plain, name)(TEXTS))
    assert not np.allclose(fast.encode_query(TEXTS), fast.encode_document(TEXTS))
    assert not loop(fast).fallbacks


def test_wrong_arguments_are_refused_as_before(model: Any) -> None:
    fast, plain = both(model)
    for options in ({"batch_size": 0}, {"precision": "int4"}, {"prompt_name": "nobody"}, {"nothing": 1}):
        messages = []
        for each in (fast, plain):
            with pytest.raises(ValueError, match=r".") as caught:
                each.encode(TEXTS, **options)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


@pytest.mark.parametrize("mode", [*MODES, ("mean", "cls", "max")], ids=str)
@pytest.mark.parametrize("include_prompt", [True, False], ids=["prompt counts", "prompt left out"])
def test_poolings(embedding_folder: Path, mode: Any, include_prompt: bool) -> None:
    fast, plain = both(sentence_model(embedding_folder, Pooling(32, mode, include_prompt=include_prompt)))
    assert_same(fast.encode(TEXTS, prompt="the moon "), plain.encode(TEXTS, prompt="the moon "))
    assert_same(fast.encode(TEXTS), plain.encode(TEXTS))
    assert not loop(fast).fallbacks
    assert loop(fast).stats.texts == 2 * len(TEXTS)


@pytest.mark.parametrize(
    "modules",
    [
        lambda: (Dense(32, 12), Normalize()),
        lambda: (Dense(32, 12, bias=False, activation_function=nn.GELU()), Dense(12, 5, activation_function=None)),
        lambda: (LayerNorm(32), Dropout(0.5), Dense(32, 32, activation_function=nn.ReLU())),
    ],
    ids=["tanh", "two", "norm"],
)
def test_modules_behind_the_pooling(embedding_folder: Path, modules: Callable[[], tuple[nn.Module, ...]]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        fast, plain = both(sentence_model(embedding_folder, Pooling(32, "mean"), *modules()))
    assert_same(fast.encode(TEXTS), plain.encode(TEXTS))
    assert_packed(fast, TEXTS)


@pytest.mark.parametrize(("asked", "most"), [(5, 5), (1, 1), (None, 60)], ids=str)
def test_batches_are_no_larger_than_asked_for(
    model: Any, asked: int | None, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without being asked for anything, the token budget alone makes the batches."""
    sizes: list[int] = []
    compute = PackedModel.compute
    monkeypatch.setattr(
        PackedModel, "compute", lambda self, batch, prompt: sizes.append(len(batch)) or compute(self, batch, prompt)
    )
    fast = padless.accelerate(model)
    fast.encode(["moon"] * 60, **({} if asked is None else {"batch_size": asked}))
    assert max(sizes) == most
    assert sum(sizes) == 60


def test_deterministic_gives_a_text_its_bits_among_any_others(embedding_folder: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = sentence_model(embedding_folder, Pooling(32, ("mean", "max")), Dense(64, 48), Normalize())
    fast = padless.accelerate(model, deterministic=True)
    draw = random.Random(20261122)
    texts = [" ".join(draw.choices(["moon", "sun", "stone", "x", "bread"], k=draw.randrange(1, 60))) for _ in range(40)]
    bits = [fast.encode(text).tobytes() for text in texts]
    assert len(set(bits)) > 35
    for size in (32, 3, 1, 64):
        order = draw.sample(range(len(texts)), len(texts))
        found = fast.encode([texts[row] for row in order], batch_size=size)
        assert [vector.tobytes() for vector in found] == [bits[row] for row in order]
    assert not loop(fast).fallbacks


def test_several_threads_at_once(model: Any) -> None:
    fast, plain = both(model)
    expected = plain.encode(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: fast.encode(TEXTS), range(12)):
            assert_same(found, expected)
    assert_packed(fast, TEXTS, times=12)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_copies_have_a_path_of_their_own(model: Any, copied: Callable[[Any], Any]) -> None:
    fast, plain = both(model)
    fast.encode(TEXTS[:3])
    other = copied(fast)
    with torch.no_grad():
        fast[0].model.embeddings.word_embeddings.weight.zero_()
    assert_same(other.encode(TEXTS), plain.encode(TEXTS))
    assert_packed(other, TEXTS)
    assert loop(fast).stats.texts == 3


def test_processes_of_a_pool_run_our_path(model: Any) -> None:
    """A lone surrogate is what the tokenizer of the library's loop raises on and ours repairs: a text that has one
    comes back only from a process that runs our path."""
    fast, plain = both(model)
    expected = plain.encode(TEXTS, prompt="stone ", normalize_embeddings=True)
    with pytest.raises(TypeError):
        plain.encode("a \ud800 b")
    pool = fast.start_multi_process_pool(["cpu"])
    try:
        found = fast.encode(TEXTS, pool=pool, chunk_size=5, prompt="stone ", normalize_embeddings=True)
        torn = fast.encode(["a \ud800 b", "moon"], pool=pool)
    finally:
        fast.stop_multi_process_pool(pool)
    assert_same(found, expected)
    assert_same(torn, plain.encode(["a \ufffd b", "moon"]))
    assert loop(fast).stats.texts == 0, "the texts were computed here, not in the pool"
