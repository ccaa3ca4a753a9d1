"""Models of sentence-transformers for tests: what is accelerated, beside the same left alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from torch import nn

from padless.engine.integrations.accelerate.sentence_loop import SentenceLoop, loop_of

TEXTS = [
    "the sun stood still and the moon",
    "",
    "x",
    " \t\n ",
    "river stone bread night " * 30,
    "the NIGHT and the Moon",
    "unknown \u4e16\u754c \U0001f600",
    "\u05d1\u05e8\u05d0\u05e9\u05d9\u05ea",
    "a\0b",
    "e" + "\u0301" * 50,
    "[CLS] [SEP] [MASK] [PAD]",
    "moon",
    "the sun stood still and the moon",
]
PAIRS = [[first, second] for first, second in zip(TEXTS, TEXTS[3:] + TEXTS[:3], strict=True)]


def sentence_model(folder: Path, *modules: nn.Module, **options: Any) -> Any:
    """The transformer of a folder with modules behind it; by default mean pooling and unit length."""
    transformer = lively(Transformer(str(folder)))
    behind = modules or (Pooling(32, "mean"), Normalize())
    return SentenceTransformer(modules=[transformer, *behind], device="cpu", **options)


def cross_encoder(folder: Path, labels: int = 1, **options: Any) -> Any:
    """A CrossEncoder on the transformer of a folder."""
    return lively(CrossEncoder(str(folder), num_labels=labels, device="cpu", **options))


def lively(model: Any) -> Any:
    """The model with seeded weights so large that tokens and texts differ by more than rounding."""
    generator = torch.Generator().manual_seed(20261122)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            with torch.no_grad():
                module.weight.copy_(0.25 * torch.randn(module.weight.shape, generator=generator))
    return model


def loop(model: Any) -> SentenceLoop:
    """What counts the calls of an accelerated model."""
    found = loop_of(model)
    assert found is not None, "the model has no loop of ours: every call is served by the library itself"
    return found


def tokens_of(model: Any, texts: Sequence[Any]) -> int:
    """Tokens of the texts by themselves, as transformers counts them, which every call of ours must have computed."""
    tokenizer = model.tokenizer
    rows = [text if isinstance(text, str) else tuple(text) for text in texts]
    return sum(map(len, tokenizer(rows, truncation=True)["input_ids"])) if rows else 0


def assert_packed(model: Any, texts: Sequence[Any], times: int = 1) -> None:
    """Our model computed just these texts, so often, and no call went to the library's loop."""
    found = loop(model)
    assert not found.fallbacks
    assert found.stats.texts == times * len(texts)
    assert found.stats.tokens == times * tokens_of(model, texts)


def assert_same(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """The same types, shapes and dtypes; numbers to a tolerance, relative where they are large."""
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray | torch.Tensor):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        if 0 not in expected.shape:
            ours, theirs = (np.asarray(value, dtype=np.float64) for value in (found, expected))
            assert np.abs(ours - theirs).max() <= tolerance * max(1.0, np.abs(theirs).max())
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, tolerance)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_same(found[name], expected[name], tolerance)
    elif isinstance(expected, float | np.floating):
        assert abs(found - expected) <= tolerance
    else:
        assert found == expected
