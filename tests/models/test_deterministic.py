"""deterministic=True with real weights: vectors, and what is written, keep their bits in every company."""

from __future__ import annotations

import copy
import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from generation_pairs import padded, pair, prompts

import padless
from padless.bench.workloads import verses

HOSTILE = ["", " ", "a", "\U0001f600\U0001f600", "\u05e9\u05dc\u05d5\u05dd", "nul\0inside", "\ud800", "word " * 60]


def texts_of(count: int, words: int) -> list[str]:
    draw = random.Random(20261122)
    some = draw.sample(verses(), count - len(HOSTILE))
    return [*(" ".join(verse.split()[: draw.randint(1, words)]) for verse in some), *HOSTILE]


def rebatched(encoder: padless.Encoder, texts: list[str], times: int, *, seed: int, longest: int) -> int:
    """How many vectors differ from those of one call, over calls with some texts in some order and batch size."""
    expected = encoder.encode(texts)
    draw = random.Random(seed)
    differing = 0
    for _ in range(times):
        rows = draw.choices(range(len(texts)), k=draw.randint(1, longest))
        budget = draw.choice((64, 300, 4096))
        encoder.token_budget = budget
        found = encoder.encode([texts[row] for row in rows], batch_size=draw.choice((None, 1, 2, 7, 32, 128, 512)))
        differing += int((found != expected[rows]).any(axis=1).sum())
    return differing


def test_hundred_batches_change_no_bit_of_a_vector(minilm_folder: Path) -> None:
    texts = texts_of(150, words=8)
    encoder = padless.load(minilm_folder, device="cpu", dtype="float32", deterministic=True)
    assert rebatched(encoder, texts, 100, seed=1, longest=24) == 0


def test_they_do_where_nothing_is_promised(minilm_folder: Path) -> None:
    # Of the rows of the table `cpu` takes texts of one length together; others may keep bits without a promise.
    encoder = padless.load(minilm_folder, device="cpu", dtype="float32", backend="cpu")
    assert rebatched(encoder, texts_of(150, words=8), 10, seed=1, longest=24) > 0


def test_threads_of_the_caller_change_no_bit(minilm_folder: Path) -> None:
    """A call of few texts is computed by one core, as each batch of a call of many."""
    texts = texts_of(60, words=30)
    encoder = padless.load(minilm_folder, device="cpu", dtype="float32", deterministic=True)
    torch.set_num_threads(2)
    expected = encoder.encode(texts)
    assert np.array_equal(np.stack([encoder.encode(text) for text in texts]), expected)


@pytest.mark.parametrize("family", ["mt5", "megatron-bert"])
def test_scores_of_what_is_written_are_those_of_the_text_alone(family: str) -> None:
    ours = copy.deepcopy(pair(family, torch.float32)[1])
    ours.bind(deterministic=True)
    texts = prompts(7, seed=3)
    asked = {"max_new_tokens": 5, "min_new_tokens": 5, "output_scores": True, "return_dict_in_generate": True}
    together = ours.generate(**padded(texts), **asked).scores
    for row, text in enumerate(texts):
        alone = ours.generate(**padded([text]), **asked).scores
        for step, (many, one) in enumerate(zip(together, alone, strict=True)):
            assert torch.equal(many[row], one[0]), (row, step)


@pytest.mark.soak
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_thousand_batches_change_no_bit_of_a_vector(minilm_folder: Path, dtype: str) -> None:
    encoder = padless.load(minilm_folder, device="cpu", dtype=dtype, deterministic=True)
    for seed, longest in itertools.product(range(5), (3, 512)):
        assert rebatched(encoder, texts_of(600, words=12), 100, seed=seed, longest=longest) == 0
