"""A CrossEncoder that padless.accelerate was called on, beside the same left alone: `predict` and `rank`."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_models import PAIRS, TEXTS, assert_packed, assert_same, cross_encoder, loop, sentence_model
from sentence_transformers import CrossEncoder
from sentence_transformers.sentence_transformer.modules import Dense, Pooling
from torch import nn

import padless
from padless.engine.errors import OptionError


@pytest.fixture(scope="module")
def scorer(embedding_folder: Path) -> Any:
    return cross_encoder(embedding_folder, prompts={"query": "the moon "})


@pytest.fixture(scope="module")
def classifier(embedding_folder: Path) -> Any:
    return cross_encoder(embedding_folder, labels=3)


def both(model: Any) -> tuple[Any, Any]:
    """The model accelerated, and as it was."""
    return padless.accelerate(copy.deepcopy(model)), model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": 1},
        {"batch_size": 4, "show_progress_bar": True},
        {"convert_to_tensor": True},
        {"convert_to_numpy": False},
        {"activation_fn": nn.Identity()},
        {"activation_fn": torch.tanh, "convert_to_tensor": True},
        {"apply_softmax": True},
        {"prompt": "stone "},
        {"prompt_name": "query"},
        {"device": "cpu"},
        {"num_workers": 2},
    ],
    ids=str,
)
def test_arguments_of_predict(scorer: Any, options: dict[str, Any]) -> None:
    fast, plain = both(scorer)
    found, expected = fast.predict(PAIRS, **options), plain.predict(PAIRS, **options)
    assert_same(found, expected)
    if "apply_softmax" not in options:  # which makes all scores of one label 1 before version 6.2
        assert len({round(float(score), 4) for score in expected}) > len(PAIRS) // 2, "the pairs are told apart"
    assert not loop(fast).fallbacks
    assert loop(fast).stats.texts == len(PAIRS)


@pytest.mark.parametrize("options", [{}, {"apply_softmax": True}, {"activation_fn": nn.Softmax(dim=1)}], ids=str)
def test_several_labels(classifier: Any, options: dict[str, Any]) -> None:
    fast, plain = both(classifier)
    assert_same(fast.predict(PAIRS, **options), plain.predict(PAIRS, **options))
    assert_packed(fast, PAIRS)


@pytest.mark.parametrize(
    "inputs",
    [
        ("the sun", "moon"),
        ["the sun", "moon"],
        [],
        [("the sun", "moon")],
        tuple(PAIRS),
        np.array(PAIRS[:4]),
        np.array(["a", "b"]),
    ],
    ids=["tuple", "list", "none", "one", "tuple of pairs", "array", "pair as array"],
)
def test_kinds_of_inputs(scorer: Any, inputs: Any) -> None:
    fast, plain = both(scorer)
    assert_same(fast.predict(inputs), plain.predict(inputs))
    assert not loop(fast).fallbacks


def test_rank(scorer: Any) -> None:
    fast, plain = both(scorer)
    documents = [text for text in TEXTS if text]
    found, expected = (model.rank("the sun stood", documents, return_documents=True) for model in (fast, plain))
    assert_same([one["score"] for one in found], [one["score"] for one in expected])
    assert {one["corpus_id"]: one["text"] for one in found} == dict(enumerate(documents))
    top = fast.rank("the sun stood", documents, top_k=3, batch_size=2)
    assert_same([one["score"] for one in top], [one["score"] for one in expected[:3]])
    assert_packed(fast, [("the sun stood", document) for document in documents], times=2)


def test_pairs_are_cut_as_before(scorer: Any) -> None:
    fast, plain = both(scorer)
    pairs = [
        (f"moon {'sun ' * first}", f"x {'stone ' * second}") for first in (0, 9, 30, 70) for second in (0, 9, 31, 80)
    ]
    for limit, side in ((64, "right"), (17, "right"), (18, "left")):
        for model in (fast, plain):
            model.max_seq_length = limit
            model.tokenizer.truncation_side = side
        assert_same(fast.predict(pairs), plain.predict(pairs))
    assert not loop(fast).fallbacks


def test_scores_of_a_head_behind_a_pooling(embedding_folder: Path) -> None:
    modules = sentence_model(embedding_folder, Pooling(32, "mean"))
    head = Dense(32, 1, activation_function=None, module_output_name="scores", init_weight=torch.ones(1, 32) / 4)
    fast, plain = both(CrossEncoder(modules=[*modules, head], device="cpu"))
    assert_same(fast.predict(PAIRS), plain.predict(PAIRS))
    assert_packed(fast, PAIRS)


def test_bfloat16_is_near_and_scores_stay_float32(scorer: Any) -> None:
    fast = padless.accelerate(copy.deepcopy(scorer), dtype="bfloat16")
    found, expected = fast.predict(PAIRS), scorer.predict(PAIRS)
    assert found.dtype == expected.dtype == np.float32
    assert 1e-5 < np.abs(found - expected).max() < 0.1
    assert_packed(fast, PAIRS)


def test_changes_are_seen(scorer: Any) -> None:
    fast, plain = both(copy.deepcopy(scorer))
    before = plain.predict(PAIRS)
    fast.predict(PAIRS)
    for model in (fast, plain):
        model.activation_fn = nn.Tanh()
        model.max_seq_length = 12
        with torch.no_grad():
            model[0].model.classifier.weight.mul_(0.5)
    assert np.abs(plain.predict(PAIRS) - before).max() > 1e-3
    assert_same(fast.predict(PAIRS), plain.predict(PAIRS))
    assert loop(fast).stats.texts == 2 * len(PAIRS)
    assert not loop(fast).fallbacks


def test_a_call_that_is_not_ours_says_so(scorer: Any, caplog: pytest.LogCaptureFixture) -> None:
    fast, plain = both(scorer)
    mixed: Any = [["the sun", "moon"], ["x", "stone", "bread"]]
    with caplog.at_level(logging.WARNING, logger="padless"):
        for model in (fast, plain):
            with pytest.raises(Exception, match=r"."):
                model.predict(mixed)
    assert sum(loop(fast).fallbacks.values()) == 1
    assert "expected texts, or pairs of texts" in caplog.text


def test_restored_it_scores_the_same_bits(scorer: Any, tmp_path: Path) -> None:
    model = copy.deepcopy(scorer)
    scores, attributes = model.predict(PAIRS), set(vars(model))
    padless.accelerate(model)
    model.predict(PAIRS)
    model.save_pretrained(str(tmp_path / "fast"), create_model_card=False)
    padless.restore(model)
    model.save_pretrained(str(tmp_path / "plain"), create_model_card=False)
    files = [
        {f.relative_to(tmp_path / n): f.read_bytes() for f in (tmp_path / n).rglob("*") if f.is_file()}
        for n in ("fast", "plain")
    ]
    assert [*map(str, files[0])] != []
    assert [*files[0].values()] == [*files[1].values()]
    assert set(vars(model)) == attributes
    assert model.predict(PAIRS).tobytes() == scores.tobytes()


def test_hooks_are_refused(scorer: Any) -> None:
    model = copy.deepcopy(scorer)
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(OptionError, match=r"module 0 \(Transformer\) has hooks"):
        padless.accelerate(model)


@pytest.mark.soak
def test_processes_of_a_pool_run_our_path(scorer: Any) -> None:
    """As of a SentenceTransformer: a lone surrogate is scored by our path only."""
    fast, plain = both(scorer)
    pool = fast.start_multi_process_pool(["cpu", "cpu"])
    try:
        found = fast.predict(PAIRS, pool=pool, chunk_size=4, activation_fn=nn.Identity())
        torn = fast.predict([["a \ud800 b", "moon"]], pool=pool)
    finally:
        fast.stop_multi_process_pool(pool)
    assert_same(found, plain.predict(PAIRS, activation_fn=nn.Identity()))
    assert_same(torn, plain.predict([["a \ufffd b", "moon"]]))
    assert loop(fast).stats.texts == 0
