"""Texts as a model takes them: pieces, one of each input, or several where it is long or asked about more than once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Encoding

from ..batch import TokenizedTexts
from ..tokenizer_template import Template

__all__ = ["Pieces", "pieces_of_encodings", "pieces_of_ids", "pieces_of_texts"]


@dataclass(frozen=True)
class Pieces:
    """What a task runs its model on.

    Attributes:
        tokens: the ids of every piece.
        owners: int64 `[pieces]`, the input that each piece belongs to, ascending; an input may have none.
        encodings: the library's encoding of each piece, where a task has to find the way back to characters.
        texts: int64 `[pieces]`, ascending: the text that each piece is of, where an input may have several; else empty.
    """

    tokens: TokenizedTexts
    owners: np.ndarray
    encodings: Sequence[Encoding] = ()
    texts: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.tokens)

    def of(self, item: int) -> range:
        """The pieces of one input."""
        return range(*np.searchsorted(self.owners, (item, item + 1)).tolist())

    def encodings_of(self, item: int) -> Sequence[Encoding]:
        """The encodings of one input's pieces."""
        own = self.of(item)
        return self.encodings[own.start : own.stop]

    def firsts(self, item: int) -> np.ndarray:
        """int64 `[texts]`: among the pieces of one input, the first of each of its texts."""
        own = self.of(item)
        return np.flatnonzero(np.diff(self.texts[own.start : own.stop], prepend=-1))

    def without(self, items: Iterable[int]) -> Pieces:
        """Only the pieces of other inputs than these."""
        kept = ~np.isin(self.owners, list(items))
        if kept.all():
            return self
        tokens, on = self.tokens, np.repeat(kept, self.tokens.lengths)
        types = None if tokens.token_type_ids is None else tokens.token_type_ids[on]
        left = TokenizedTexts(
            tokens.input_ids[on], tokens.lengths[kept], types, tokens.truncated[kept], tokens.repaired[kept]
        )
        encodings = [encoding for encoding, keep in zip(self.encodings, kept, strict=False) if keep]
        return Pieces(left, self.owners[kept], encodings, self.texts[kept[: len(self.texts)]])

    def truncated(self, items: int) -> np.ndarray:
        """bool `[items]`: which inputs lost tokens."""
        found = np.zeros(items, dtype=bool)
        np.logical_or.at(found, self.owners, self.tokens.truncated)
        return found


def pieces_of_texts(tokens: TokenizedTexts) -> Pieces:
    """One piece of each input."""
    return Pieces(tokens, np.arange(len(tokens)))


def pieces_of_encodings(
    encodings: Sequence[Encoding],
    owners: Sequence[int] | np.ndarray,
    *,
    types: bool,
    truncated: Sequence[bool] | np.ndarray | None = None,
) -> Pieces:
    """Pieces of the library's encodings.

    Args:
        encodings: without padding.
        owners: the input that each belongs to, ascending.
        types: whether the model has token types.
        truncated: which encodings lack tokens that no other encoding of their input has; None is none of them.
    """
    lengths = np.fromiter(map(len, encodings), dtype=np.int32, count=len(encodings))
    total = int(lengths.sum())

    def end_to_end(name: str) -> np.ndarray:
        values = itertools.chain.from_iterable(getattr(encoding, name) for encoding in encodings)
        return np.fromiter(values, dtype=np.int32, count=total)

    kinds = end_to_end("type_ids") if types else None
    tokens = TokenizedTexts(
        input_ids=end_to_end("ids"),
        lengths=lengths,
        token_type_ids=kinds if kinds is not None and kinds.any() else None,
        truncated=np.zeros(len(lengths), dtype=bool) if truncated is None else np.asarray(truncated, dtype=bool),
        repaired=np.zeros(len(lengths), dtype=bool),
    )
    return Pieces(tokens, np.asarray(owners, dtype=np.int64), encodings)


def pieces_of_ids(
    ids: Sequence[tuple[np.ndarray, ...]],
    templates: Sequence[Template],
    owners: Sequence[int] | np.ndarray,
    *,
    types: bool,
    truncated: Sequence[bool],
    repaired: Sequence[bool],
    texts: Sequence[int] = (),
) -> Pieces:
    """Pieces of ids that were put together here.

    Args:
        ids: of each piece, the int32 ids of its texts without special tokens.
        templates: of each piece, what is put around its texts.
        owners: the input that each belongs to, ascending.
        types: whether the model has token types.
        truncated: which pieces lack tokens that no other piece of their input has.
        repaired: which pieces had surrogates replaced.
        texts: the text that each piece is of, ascending.
    """
    joined = [template.joined(texts) for template, texts in zip(templates, ids, strict=True)]
    kinds = None
    if types and any(template.typed for template in templates):
        parts = [template.types([*map(len, texts)]) for template, texts in zip(templates, ids, strict=True)]
        kinds = np.concatenate(parts)
    tokens = TokenizedTexts(
        input_ids=np.concatenate([np.empty(0, dtype=np.int32), *joined]),
        lengths=np.fromiter(map(len, joined), dtype=np.int32, count=len(joined)),
        token_type_ids=kinds,
        truncated=np.asarray(truncated, dtype=bool),
        repaired=np.asarray(repaired, dtype=bool),
    )
    return Pieces(tokens, np.asarray(owners, dtype=np.int64), texts=np.asarray(texts, dtype=np.int64))
