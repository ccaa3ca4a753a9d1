"""Arguments of an encode call, checked before anything is computed; names are those of sentence-transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import InputError, OptionError
from .long_documents import AGGREGATES, LONG_TEXTS
from .quantisation import Quantiser

__all__ = ["EncodeOptions", "chosen_texts", "refuse_others"]

OUTPUT_VALUES = ("sentence_embedding", "token_embeddings")

# Arguments of sentence-transformers that change nothing here: the second task is for models with several towers, whose
# folders are refused, and chunks are of several processes.
WITHOUT_EFFECT = ("task", "chunk_size")

REFUSED = {
    "pool": "one process runs the model; load it once in each process instead",
    "processing_kwargs": "set max_length of the tokenizer instead",
}


@dataclass(frozen=True)
class EncodeOptions:
    """Of an encode call; what they mean is said there.

    Raises:
        OptionError: a value is out of range, or two do not go together.
    """

    dimension: int
    batch_size: int | None
    token_budget: int
    normalize_embeddings: bool
    truncate_dim: int | None
    output_value: str | None
    precision: str
    ranges: np.ndarray | None
    calibration_embeddings: np.ndarray | None
    long_texts: str
    overlap: int
    aggregate: str

    def __post_init__(self) -> None:
        for name in ("batch_size", "token_budget"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name}: expected at least 1, got {value}")
        if self.truncate_dim is not None and not 1 <= self.truncate_dim <= self.dimension:
            raise OptionError(f"truncate_dim: expected 1 to {self.dimension}, got {self.truncate_dim}")
        for name, choices in (
            ("output_value", OUTPUT_VALUES),
            ("long_texts", LONG_TEXTS),
            ("aggregate", AGGREGATES),
        ):
            if getattr(self, name) not in choices:
                listed = ", ".join(map(repr, choices))
                raise OptionError(f"{name}: expected one of {listed}, got {getattr(self, name)!r}")
        if not isinstance(self.overlap, int) or isinstance(self.overlap, bool) or self.overlap < 0:
            raise OptionError(f"overlap: expected a whole number from 0, got {self.overlap!r}")
        self.quantiser()
        if self.output_value == "token_embeddings":
            for name, plain in (("precision", "float32"), ("long_texts", "truncate"), ("truncate_dim", None)):
                if getattr(self, name) != plain:
                    found = getattr(self, name)
                    raise OptionError(f"{name}: expected {plain!r} with output_value 'token_embeddings', got {found!r}")

    @property
    def width(self) -> int:
        """Channels of a vector."""
        return self.dimension if self.truncate_dim is None else self.truncate_dim

    def quantiser(self) -> Quantiser:
        """What makes vectors of the precision."""
        return Quantiser(self.precision, self.width, self.ranges, self.calibration_embeddings)


def chosen_texts(texts: Any, sentences: Any, inputs: Any) -> Any:
    """The texts of a call, under whichever of their three names they are given.

    Raises:
        InputError: there are none, or more than one.
    """
    given = [value for value in (texts, sentences, inputs) if value is not None]
    if len(given) > 1:
        raise InputError("texts: expected them once, got two of texts, sentences and inputs")
    return given[0] if given else None


def refuse_others(others: Mapping[str, Any], device: torch.device) -> None:
    """Refuse what sentence-transformers' `encode` takes and padless does not, and what neither knows.

    Raises:
        OptionError: naming the argument.
    """
    for name, value in others.items():
        if name in WITHOUT_EFFECT or (name in REFUSED and value is None):
            continue
        if name in REFUSED:
            raise OptionError(f"{name}: {REFUSED[name]}")
        if name != "device":
            raise OptionError(f"{name}: encode has no such argument")
        if value is None or (isinstance(value, str | torch.device) and _same(torch.device(value), device)):
            continue
        raise OptionError(f"device: the model is on {device}, got {value!r}; padless.load(path, device=…) chooses it")


def _same(asked: torch.device, found: torch.device) -> bool:
    return asked.type == found.type and asked.index in (None, found.index)
