"""Models and texts for the tests of tasks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from padless.bench.workloads import news, verses

# The tests of this folder import what they share: task_models.
sys.path.insert(0, str(Path(__file__).parent))
from task_models import ModelFolder, save_model

HOSTILE = [
    *("", " ", "\n\t \r", "a", ".", "\0", "a\0b", "\ufeffbyte order mark", "\U0001f600", "x" * 300),
    *("\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d\u0628\u0627", "\u6f22\u5b57\u304b\u306a", "e" + "\u0301" * 500),
    *("[CLS] [SEP] [MASK]", "[sep", "\u202eright to left\u202c"),
]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """`model_folder(family, head, **config)`: a folder saved by transformers, its weights drawn from a seed.

    The same arguments give the same folder: leave it as it is.
    """
    made: dict[str, Path] = {}

    def make(family: str, head: str, **settings: Any) -> Path:
        key = repr((family, head, settings))
        if key not in made:
            made[key] = save_model(tmp_path_factory.mktemp("model") / "model", family, head, **settings)
        return made[key]

    return make


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """60 texts, all within what the models take: verses, beginnings of news, hostile ones."""
    return [*verses()[:25], *(" ".join(article.split()[:40]) for article in news()[:18]), *HOSTILE]


@pytest.fixture(scope="session")
def long_texts() -> list[str]:
    """Ten texts that the models do not take whole."""
    return [*news()[20:27], "word " * 10_000, "nospaces" * 500, "\u6f22\u5b57" * 400]


@pytest.fixture(scope="session")
def pairs(texts: list[str], long_texts: list[str]) -> list[tuple[str, str]]:
    """90 pairs: both short, either long, both long, equal."""
    many = texts + long_texts
    short = list(zip(texts, texts[7:] + texts[:7], strict=True))
    mixed = [(many[(7 * row) % len(many)], many[(11 * row + 61) % len(many)]) for row in range(20)]
    return [*short, *mixed, *zip(long_texts, reversed(long_texts), strict=True)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models are so small that two threads would spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
