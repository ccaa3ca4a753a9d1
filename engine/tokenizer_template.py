"""What a tokenizer puts around one text, or around two: special tokens and token types, found out by an example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding

__all__ = ["Template", "template_of"]


@dataclass(frozen=True)
class Template:
    """Special tokens around texts.

    Attributes:
        around: int32 arrays, one more than there are texts: the ids before the first text, between two, after the last.
        around_types: the token types of `around`.
        text_types: the token type of each text.
    """

    around: tuple[np.ndarray, ...]
    around_types: tuple[np.ndarray, ...]
    text_types: tuple[int, ...]

    @property
    def special(self) -> int:
        """Tokens that are added."""
        return sum(map(len, self.around))

    @property
    def typed(self) -> bool:
        """Whether any token is not of type 0."""
        return any(self.text_types) or any(types.any() for types in self.around_types)

    def joined(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        """int32 ids of the texts with the special tokens."""
        parts = [self.around[0]]
        for text, after in zip(texts, self.around[1:], strict=True):
            parts += (text, after)
        return np.concatenate(parts)

    def types(self, lengths: Sequence[int]) -> np.ndarray:
        """int32 token types of texts of so many tokens with the special tokens."""
        parts = [self.around_types[0]]
        for length, kind, after in zip(lengths, self.text_types, self.around_types[1:], strict=True):
            parts += (np.full(length, kind, dtype=np.int32), after)
        return np.concatenate(parts)


def template_of(example: Encoding, texts: int) -> Template:
    """The template that an encoding of `texts` texts, none of them empty, shows."""
    around: list[list[int]] = [[] for _ in range(texts + 1)]
    around_types: list[list[int]] = [[] for _ in range(texts + 1)]
    text_types = [0] * texts
    seen = 0
    for token, kind, text in zip(example.ids, example.type_ids, example.sequence_ids, strict=True):
        if text is None:
            around[seen].append(token)
            around_types[seen].append(kind)
        else:
            text_types[text] = kind
            seen = text + 1
    return Template(
        tuple(np.array(ids, dtype=np.int32) for ids in around),
        tuple(np.array(kinds, dtype=np.int32) for kinds in around_types),
        tuple(text_types),
    )
