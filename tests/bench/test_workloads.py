from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from padless.bench.workloads import (
    WORKLOADS,
    Workload,
    articles,
    default_model,
    load_workload,
    news,
    package_path,
    verses,
)
from padless.engine.errors import InputError


@pytest.fixture(scope="module")
def model() -> Path:
    return default_model()


@pytest.fixture(scope="module")
def workloads(model: Path) -> dict[str, Workload]:
    return {name: load_workload(name, model) for name in WORKLOADS}


def reference_lengths(model: Path, texts: tuple[str, ...]) -> np.ndarray:
    """Token counts by transformers, which shares no code with the workloads' own counter but the vocabulary file."""
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    return np.array([len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]])


@pytest.mark.parametrize("name", WORKLOADS)
def test_lengths_are_those_the_real_tokenizer_counts(model: Path, workloads: dict[str, Workload], name: str) -> None:
    workload = workloads[name]
    np.testing.assert_array_equal(workload.lengths, reference_lengths(model, workload.texts))


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_is_the_same_every_time(model: Path, workloads: dict[str, Workload], name: str) -> None:
    first, second = workloads[name], load_workload(name, model)
    assert first.texts == second.texts
    assert all(text.strip() == text != "" for text in first.texts)


def test_mixed_lengths_spread_evenly(workloads: dict[str, Workload]) -> None:
    lengths = workloads["mixed_256"].lengths
    assert len(lengths) == 512
    np.testing.assert_allclose(np.sort(lengths), np.linspace(4, 256, 512), atol=0.5)
    # Shuffled, so that batches in input order hold long and short texts together.
    batches = lengths.reshape(-1, 32)
    assert batches.max(axis=1).sum() * 32 / lengths.sum() > 1.8


def test_skewed_lengths_are_mostly_short(workloads: dict[str, Workload]) -> None:
    lengths = workloads["skewed_256"].lengths
    assert (len(lengths), lengths.min(), lengths.max()) == (512, 4, 256)
    assert np.median(lengths) < 60
    assert 36_000 < lengths.sum() < 37_000


def test_the_tiny_workload_is_tiny(workloads: dict[str, Workload]) -> None:
    np.testing.assert_allclose(np.sort(workloads["tiny"].lengths), np.linspace(4, 96, 48), atol=0.5)


def test_fixed_lengths_are_fixed(workloads: dict[str, Workload]) -> None:
    assert set(workloads["fixed_128"].lengths) == {128}
    assert set(workloads["fixed_512"].lengths) == {512}


def test_squad_s_lengths_lie_around_160_and_end_at_384(workloads: dict[str, Workload]) -> None:
    lengths = workloads["squad_384"].lengths
    assert (len(lengths), lengths.max(), np.median(lengths)) == (256, 384, 160)
    assert 165 < lengths.mean() < 180
    assert 0 < (lengths == 384).mean() < 0.05


def test_one_long_text_among_many_short_ones(workloads: dict[str, Workload]) -> None:
    lengths = workloads["one_long_many_short"].lengths
    assert sorted(set(lengths)) == [16, 512]
    assert ((lengths == 512).sum(), len(lengths)) == (1, 512)


def test_only_latency_is_one_text_a_call(workloads: dict[str, Workload]) -> None:
    assert [name for name, workload in workloads.items() if workload.one_by_one] == ["latency"]
    assert workloads["latency"].batch_size == 1


def padding_factor(lengths: np.ndarray, batch_size: int) -> float:
    batches = [lengths[at : at + batch_size] for at in range(0, len(lengths), batch_size)]
    return sum(len(batch) * batch.max() for batch in batches) / lengths.sum()


@pytest.mark.parametrize("name", ["skewed_256", "mixed_256", "squad_384", "one_long_many_short"])
def test_a_cut_has_fewer_texts_of_the_same_distribution(workloads: dict[str, Workload], name: str) -> None:
    whole = workloads[name]
    cut = whole.cut(4096)
    assert (cut.name, cut.whole) == (name, len(whole.texts))
    assert cut.kept_tokens(None) == cut.lengths.sum() == pytest.approx(4096, rel=0.03)
    following = iter(whole.texts)
    assert all(text in following for text in cut.texts), "other texts, or in another order"
    lengths = dict(zip(whole.texts, whole.lengths, strict=True))
    np.testing.assert_array_equal(cut.lengths, [lengths[text] for text in cut.texts])
    assert (cut.lengths.min(), cut.lengths.max()) == (whole.lengths.min(), whole.lengths.max())
    if name != "one_long_many_short":
        quantiles = [0.25, 0.5, 0.75]
        np.testing.assert_allclose(np.quantile(cut.lengths, quantiles), np.quantile(whole.lengths, quantiles), rtol=0.1)
        # Sorted batches hold as much padding as in the whole workload, so that a cut is unfair to nobody.
        factors = [padding_factor(np.sort(each.lengths), each.batch_size) for each in (whole, cut)]
        assert factors[0] == pytest.approx(factors[1], rel=0.1)


def test_a_cut_counts_what_the_model_keeps_and_leaves_small_workloads_whole(workloads: dict[str, Workload]) -> None:
    cut = workloads["long"].cut(4096, 512)
    assert (len(cut.texts), cut.kept_tokens(512)) == (8, 4096)
    assert workloads["tiny"].cut(4096) is workloads["tiny"]


def test_long_texts_are_longer_than_the_model_takes(workloads: dict[str, Workload]) -> None:
    workload = workloads["long"]
    assert len(workload.texts) == 128
    assert workload.lengths.min() > 1200
    assert workload.kept_tokens(256) == 128 * 256
    assert workload.kept_tokens(None) == workload.lengths.sum()


def test_verses_are_the_bible_without_numbers(workloads: dict[str, Workload]) -> None:
    book = verses()
    assert len(book) > 20_000
    assert book[0] == "In the beginning God created the heavens and the earth."
    assert not any(re.search(r"\d+:\d+", verse) for verse in book)
    workload = workloads["verses"]
    assert len(workload.texts) == 2048
    assert set(workload.texts) <= set(book)


def test_corpora_are_plain_text() -> None:
    assert len(news()) == 300
    found = articles()
    assert len(found) > 50
    assert [text[:60] for text in found if re.search(r"\[\[|<ref|\{\||\{\{", text)] == []


def test_an_unknown_workload_is_named(model: Path) -> None:
    with pytest.raises(InputError, match=r"^workload 'mixed': unknown, expected one of skewed_256, mixed_256"):
        load_workload("mixed", model)


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json: not found"):
        load_workload("verses", tmp_path)


def test_a_missing_package_is_named_with_what_to_install() -> None:
    assert importlib.util.find_spec("no_such_corpus") is None
    with pytest.raises(InputError, match=r"^package no_such_corpus: not installed, .* --no-deps no-such-corpus$"):
        package_path("no_such_corpus", "texts.txt")


def test_a_package_without_the_file_is_named() -> None:
    with pytest.raises(InputError, match=r"^package numpy: expected texts\.txt in "):
        package_path("numpy", "texts.txt")
