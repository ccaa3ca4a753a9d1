"""The promise users care about: the same folder, the same texts, the same vectors as sentence-transformers."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import padless
from padless.bench.workloads import default_model, news, verses

HOSTILE = [
    "",
    " ",
    "\n\t \u3000",
    "x",
    "word " * 10_000,
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f600" * 3,
    "\u05d1\u05e8\u05d0\u05e9\u05d9\u05ea \u05d1\u05e8\u05d0 \u0623\u0647\u0644\u0627",
    "a NUL \0 inside",
    "e" + "\u0301" * 1000,
    "\ufeffbyte order mark",
    "[CLS] [SEP] [MASK] [PAD]",
]


def real_texts(count: int) -> list[str]:
    """Verses, and stretches of news of 1 to 220 words."""
    draw = random.Random(20261121)
    words = " ".join(news()).split()
    texts = draw.sample(verses(), count // 2)
    for _ in range(count - len(texts)):
        size = min(220, int(draw.expovariate(1 / 30)) + 1)
        start = draw.randrange(len(words) - size)
        texts.append(" ".join(words[start : start + size]))
    draw.shuffle(texts)
    return texts


@pytest.fixture(scope="module")
def folder() -> Path:
    return default_model()


@pytest.fixture(scope="module", params=[500, pytest.param(2000, marks=pytest.mark.soak)])
def texts(request: pytest.FixtureRequest) -> list[str]:
    mixed = real_texts(request.param)
    for place, text in enumerate(HOSTILE):
        mixed.insert(40 * place, text)
    return mixed


@pytest.fixture(scope="module")
def reference(folder: Path, texts: list[str]) -> np.ndarray:
    model = SentenceTransformer(str(folder), device="cpu")
    return model.encode(texts, normalize_embeddings=True, show_progress_bar=False)


def test_float32_vectors_are_equal_and_in_order(folder: Path, texts: list[str], reference: np.ndarray) -> None:
    encoder = padless.load(folder, dtype="float32", device="cpu")
    vectors = encoder.encode(texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == reference.shape
    assert np.abs(vectors - reference).max() <= 1e-5


def test_bfloat16_vectors_point_the_same_way(folder: Path, texts: list[str], reference: np.ndarray) -> None:
    vectors = padless.load(folder, dtype="bfloat16", device="cpu").encode(texts)
    cosines = (vectors * reference).sum(axis=1) / np.linalg.norm(vectors, axis=1)
    assert cosines.min() >= 0.999


def test_neighbours_do_not_change_a_text(folder: Path, texts: list[str]) -> None:
    encoder = padless.load(folder, dtype="float32", device="cpu")
    among = encoder.encode(texts[:500])
    for row in [*range(0, 500, 41), *range(0, 40 * len(HOSTILE), 40)]:
        alone = encoder.encode(texts[row])
        assert np.abs(alone - among[row]).max() <= 1e-6, texts[row][:40]


def test_token_budget_and_batch_size_do_not_change_a_text(folder: Path, texts: list[str]) -> None:
    encoder = padless.load(folder, dtype="float32", device="cpu")
    usual = encoder.encode(texts[:60])
    encoder.token_budget = 37
    assert np.abs(encoder.encode(texts[:60]) - usual).max() <= 1e-6
    encoder.token_budget = 4096
    assert np.abs(encoder.encode(texts[:60], batch_size=3) - usual).max() <= 1e-6
