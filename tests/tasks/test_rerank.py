"""Reranking beside sentence-transformers' CrossEncoder, on folders that it saved itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from task_models import LONGEST, ModelFolder
from torch import nn

import padless
from padless.engine.embedding.encoder import EncodeStats

HEAD = "ForSequenceClassification"


def ours(folder: Path) -> Any:
    return padless.load(folder, task="rerank", device="cpu", dtype="float32")


def theirs(folder: Path, **options: Any) -> CrossEncoder:
    return CrossEncoder(str(folder), device="cpu", local_files_only=True, **options)


def assert_same_ranking(found: Any, expected: Any) -> None:
    """Scores to 1e-5; documents that are further apart than that are in the same order."""
    scores = [one["score"] for one in expected]
    assert [one["score"] for one in found] == pytest.approx(scores, abs=1e-5)
    for row, (one, other) in enumerate(zip(found, expected, strict=True)):
        near = [*scores[max(row - 1, 0) : row], *scores[row + 1 : row + 2]]
        if all(abs(score - other["score"]) > 2e-5 for score in near):
            assert {**one, "score": None} == {**other, "score": None}


def saved(plain: Path, target: Path, **options: Any) -> Path:
    theirs(plain, **options).save_pretrained(str(target))
    return target


@pytest.fixture(scope="module")
def plain(model_folder: ModelFolder) -> Path:
    return model_folder("bert", HEAD, num_labels=1)


@pytest.fixture(scope="module")
def folder(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(plain, tmp_path_factory.mktemp("cross") / "encoder", max_length=64)


@pytest.fixture(scope="module")
def task(folder: Path) -> Any:
    return ours(folder)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_scores_are_those_of_a_cross_encoder(
    family: str, model_folder: ModelFolder, tmp_path: Path, pairs: list[tuple[str, str]]
) -> None:
    folder = saved(model_folder(family, HEAD, num_labels=1), tmp_path / "saved")
    expected = theirs(folder).predict(pairs)
    task = padless.load(folder, device="cpu", dtype="float32")
    assert task.name == "rerank"
    found = task.predict(pairs)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.ptp(found) > 0.1


def test_documents_are_ranked_as_by_a_cross_encoder(
    folder: Path, task: Any, texts: list[str], long_texts: list[str]
) -> None:
    reference, documents = theirs(folder), texts[20:] + long_texts[:4]
    for query in (texts[3], "", long_texts[0]):
        calls: list[dict[str, Any]] = [{}, {"top_k": 3}, {"top_k": 999, "return_documents": True}]
        for options in calls:
            found = task.rank(query, documents, **options)
            assert_same_ranking(found, reference.rank(query, documents, **options))
            assert task(query=query, documents=documents, **options) == found
            assert len({one["corpus_id"] for one in found}) == min(options.get("top_k", 999), len(documents))
    assert task.rank("a", []) == []


def test_several_queries_in_one_call(task: Any, texts: list[str]) -> None:
    queries = [{"query": texts[row], "documents": texts[row : row + row % 7]} for row in range(40)]
    stats = EncodeStats()
    answers = task(queries, top_k=4, stats=stats)
    for query, answer in zip(queries, answers, strict=True):
        assert_same_ranking(answer, task(query, top_k=4))
    assert stats.texts == len(queries)


ACTIVATIONS: dict[str, tuple[Any, str]] = {
    "identity": (nn.Identity(), "identity"),
    "tanh": (nn.Tanh(), "tanh"),
    "sigmoid": (nn.Sigmoid(), "sigmoid"),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_activation_of_a_folder_is_read_by_its_name(
    name: str, plain: Path, task: Any, tmp_path: Path, pairs: list[tuple[str, str]]
) -> None:
    module, ours_name = ACTIVATIONS[name]
    folder = saved(plain, tmp_path / "saved", activation_fn=module, max_length=64)
    expected = theirs(folder).predict(pairs[:12])
    np.testing.assert_allclose(ours(folder).predict(pairs[:12]), expected, rtol=0, atol=1e-5)
    for given in (module, ours_name):
        np.testing.assert_allclose(task.predict(pairs[:12], activation_fn=given), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "entry",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.1.0"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh"},
        {"sbert_ce_default_activation_function": None},
        {"sentence_transformers": {"activation_fn": "somebody.elses.code"}},
    ],
    ids=str,
)
def test_folders_of_older_versions(
    entry: dict[str, Any], model_folder: ModelFolder, tmp_path: Path, pairs: list[tuple[str, str]]
) -> None:
    folder = tmp_path / "older"
    folder.mkdir()
    for file in model_folder("bert", HEAD, num_labels=1).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | entry
    (folder / "config.json").write_text(json.dumps(config))
    task = padless.load(folder, device="cpu", dtype="float32")
    assert task.name == "rerank"
    np.testing.assert_allclose(task.predict(pairs[:9]), theirs(folder).predict(pairs[:9]), rtol=0, atol=1e-5)


def test_a_folder_decides_on_prompts_and_length(plain: Path, tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
    prompts = {"query": "query: ", "web": "a question of the web "}
    folder = saved(plain, tmp_path / "saved", max_length=40, prompts=prompts, default_prompt_name="web")
    reference, task = theirs(folder), ours(folder)
    assert task.loaded.max_length == 40 < LONGEST
    calls: list[dict[str, Any]] = [{}, {"prompt_name": "query"}, {"prompt": "it: "}, {"prompt": ""}]
    for options in calls:
        expected = reference.predict(pairs[:20], **options)
        np.testing.assert_allclose(task.predict(pairs[:20], **options), expected, rtol=0, atol=1e-5)
    with pytest.raises(padless.OptionError, match=r"prompt_name: .*'web'"):
        task.predict(pairs[:2], prompt_name="nosuch")


def test_a_cross_encoder_of_several_labels_predicts_all_of_them(
    model_folder: ModelFolder, tmp_path: Path, pairs: list[tuple[str, str]]
) -> None:
    folder = saved(model_folder("bert", HEAD, num_labels=3), tmp_path / "saved")
    reference, task = theirs(folder), ours(folder)
    calls: list[dict[str, Any]] = [{}, {"apply_softmax": True}, {"activation_fn": "sigmoid"}]
    for options in calls:
        given = {**options, **({"activation_fn": nn.Sigmoid()} if "activation_fn" in options else {})}
        expected = reference.predict(pairs[:15], **given)
        np.testing.assert_allclose(task.predict(pairs[:15], **options), expected, rtol=0, atol=1e-5)
    assert task.predict(pairs[0]).shape == (3,)
    with pytest.raises(padless.OptionError, match=r"one label, got 3"):
        task.rank("a", ["b"])
    assert padless.load(folder, device="cpu").name == "text-classification"


def test_what_predict_returns(folder: Path, task: Any, pairs: list[tuple[str, str]]) -> None:
    reference: Any = theirs(folder)
    calls: list[dict[str, Any]] = [{}, {"convert_to_tensor": True}, {"convert_to_numpy": False}]
    for options in calls:
        for given in (pairs[:3], pairs[0], list(pairs[0])):
            found, expected = task.predict(given, **options), reference.predict(given, **options)
            assert type(found) is type(expected)
            single = isinstance(given[0], str)
            numbers = [[float(one) for one in ([scores] if single else scores)] for scores in (found, expected)]
            assert numbers[0] == pytest.approx(numbers[1], abs=1e-5)
    assert task.predict([]).shape == (0,)


def test_options_may_be_set_for_every_call(folder: Path, task: Any, pairs: list[tuple[str, str]]) -> None:
    own = ours(folder)
    own.defaults = {"activation_fn": "identity", "top_k": 2}
    assert own.rank("a", ["b", "c", "d"]) == task.rank("a", ["b", "c", "d"], activation_fn="identity", top_k=2)
    expected = task.predict(pairs[:5], activation_fn="identity")
    np.testing.assert_allclose(own.predict(pairs[:5]), expected, rtol=0, atol=1e-6)


def test_long_pairs_are_counted_or_refused(task: Any, long_texts: list[str]) -> None:
    stats = EncodeStats()
    task({"query": "a", "documents": ["short", long_texts[0]]}, stats=stats)
    assert (stats.texts, stats.truncated) == (1, 1)
    with pytest.raises(padless.InputError, match=r"^row 0: .*64 tokens"):
        task.rank("a", ["short", long_texts[0]], long_texts="error")


@pytest.mark.parametrize(
    "bad", [None, "a", {"query": "a"}, {"query": "a", "documents": "b"}, {"query": 1, "documents": []}], ids=repr
)
def test_what_is_no_query_with_documents_is_refused(bad: Any, task: Any) -> None:
    with pytest.raises(padless.InputError, match=r"^row 1: "):
        task([{"query": "a", "documents": ["b"]}, bad])
    with pytest.raises(padless.InputError, match=r"row 1: "):
        task.predict([("a", "b"), ("a", None)])


@pytest.mark.parametrize(
    "options",
    [{"top_k": 0}, {"activation_fn": "softplus"}, {"activation_fn": 3}, {"apply_softmax": True}, {"device": "cpu"}],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, Any], task: Any) -> None:
    with pytest.raises(padless.OptionError, match=next(iter(options))):
        task.rank("a", ["b"], **options)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("config_sentence_transformers.json", {"activation_fn": "torch.nn.modules.activation.ELU"}, "activation_fn"),
        ("sentence_bert_config.json", {"transformer_task": "text-generation"}, "transformer_task"),
        ("config_sentence_transformers.json", {"prompts": {"query": 3}}, "prompts"),
    ],
    ids=str,
)
def test_settings_that_padless_cannot_follow_are_refused(
    name: str, change: dict[str, Any], words: str, folder: Path, tmp_path: Path
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_text(json.dumps(json.loads((tmp_path / name).read_text()) | change))
    with pytest.raises(padless.ConfigError, match=words):
        padless.load(tmp_path, device="cpu")


def test_a_document_that_is_no_number_costs_only_its_query(folder: Path) -> None:
    task = ours(folder)
    poisoned = int(task.loaded.tokenizer.encode(["bread"]).input_ids[1])
    with torch.no_grad():
        task.loaded.model.base_model.embeddings.word_embeddings.weight[poisoned] = torch.nan
    items, _ = task.read([{"query": "moon", "documents": given} for given in (["a"], ["b", "bread"], ["c"])], {})
    answers = list(task.answers(items, task.options_class()))
    assert isinstance(answers[1], padless.InputError)
    assert "document 1" in str(answers[1])
    assert len(answers[0]) == len(answers[2]) == 1
