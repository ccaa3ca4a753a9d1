"""Documents that are longer than an embedding model takes: refused, or seen whole in pieces that overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..batch import TokenizedTexts
from ..errors import InputError, OptionError
from ..tokenizer import Tokenizer
from ..tokenizer_template import Template

__all__ = ["AGGREGATES", "LONG_TEXTS", "Documents", "PieceTokenizer", "RefusingTokenizer", "cut_documents"]

LONG_TEXTS = ("truncate", "error", "chunk")
AGGREGATES = ("mean", "max", "each")


@dataclass(frozen=True)
class Documents:
    """Texts in pieces, at least one each.

    Attributes:
        pieces: int32 ids of each piece, the prompt's included, special tokens not.
        starts: int64 `[texts + 1]`, the first piece of each text.
        repaired: bool `[texts]`, true where lone surrogates were replaced.
    """

    pieces: list[np.ndarray]
    starts: np.ndarray
    repaired: np.ndarray

    def aggregated(self, vectors: np.ndarray, aggregate: str) -> np.ndarray:
        """`[pieces, width]` to `[texts, width]`.

        Args:
            vectors: of the pieces.
            aggregate: "mean", in which a piece counts by its tokens, or "max" of each channel.
        """
        first = self.starts[:-1]
        if not len(first):
            return vectors
        if aggregate == "max":
            return np.maximum.reduceat(vectors, first, axis=0)
        # An empty text has one piece without tokens.
        weights = np.fromiter((max(len(piece), 1) for piece in self.pieces), dtype=np.float32, count=len(self.pieces))
        totals = np.add.reduceat(weights, first)
        single = np.diff(self.starts) == 1
        means = np.add.reduceat(vectors * weights[:, None], first, axis=0) / totals[:, None]
        means[single] = vectors[first[single]]
        return means


def cut_documents(tokenizer: Tokenizer, texts: Sequence[str], prompt: str, overlap: int) -> Documents:
    """Pieces of texts that together hold every token of them, the prompt before each.

    Args:
        tokenizer: its `max_length` bounds the pieces.
        texts: any strings.
        prompt: put before each text.
        overlap: tokens that each piece repeats of the one before.

    Raises:
        OptionError: prompt and overlap leave no room for anything new.
    """
    contents, repaired = tokenizer.contents([prompt + text for text in texts] if prompt else texts)
    limit = tokenizer.max_length
    before = len(tokenizer.contents([prompt])[0][0]) if prompt else 0
    room = None if limit is None else limit - tokenizer.template(1).special - before
    if room is not None and overlap >= room:
        raise OptionError(f"overlap: expected less than the {room} tokens of a piece, got {overlap}")
    pieces: list[np.ndarray] = []
    starts = [0]
    for ids in contents:
        if room is None or len(ids) <= before + room:
            pieces.append(ids)
        else:
            head, rest = ids[:before], ids[before:]
            begins = range(0, len(rest) - overlap, room - overlap)
            pieces += [np.concatenate([head, rest[begin : begin + room]]) for begin in begins]
        starts.append(len(pieces))
    return Documents(pieces, np.array(starts), repaired)


class PieceTokenizer:
    """Takes the place of a Tokenizer where texts are pieces already."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.max_length = tokenizer.max_length
        self._template: Template = tokenizer.template(1)

    def encode(self, texts: Sequence[Any], *, prompt: str = "") -> TokenizedTexts:
        """Ids of pieces with the special tokens; `prompt` is in them."""
        joined = [self._template.joined([piece]) for piece in texts]
        types = None
        if self._template.typed:
            types = np.concatenate([self._template.types([len(piece)]) for piece in texts])
        nothing = np.zeros(len(joined), dtype=bool)
        return TokenizedTexts(
            input_ids=np.concatenate(joined),
            lengths=np.fromiter(map(len, joined), dtype=np.int32, count=len(joined)),
            token_type_ids=types,
            truncated=nothing,
            repaired=nothing,
        )


class RefusingTokenizer:
    """Takes the place of a Tokenizer where a text that is too long is an error."""

    def __init__(self, tokenizer: Tokenizer, rows: Sequence[str], first: int = 0) -> None:
        """Wrap `tokenizer`.

        Args:
            tokenizer: does the work.
            rows: all texts of the call.
            first: the number of the first of them.
        """
        self.max_length = tokenizer.max_length
        self._tokenizer, self._rows, self._first = tokenizer, rows, first

    def encode(self, texts: Sequence[str], *, prompt: str = "") -> TokenizedTexts:
        """As `Tokenizer.encode`.

        Raises:
            InputError: a text is longer than the model takes; names its row.
        """
        tokens = self._tokenizer.encode(texts, prompt=prompt)
        if tokens.truncated.any():
            long = {texts[place] for place in tokens.truncated.nonzero()[0].tolist()}
            row = next(row for row, text in enumerate(self._rows, self._first) if text in long)
            raise InputError(f"row {row}: the text is longer than the {self.max_length} tokens that the model takes")
        return tokens
