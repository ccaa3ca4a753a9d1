"""Texts, alone or in pairs, as pieces that the model takes; what is done with those that are too long is an option.

"truncate"   the model sees the beginning, the input is counted as truncated
"error"      the input has no answer
"chunk"      the model sees all of it, in pieces that overlap; the task says what becomes of their scores
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from tokenizers import Encoding

from ..errors import InputError
from .pieces import Pieces, pieces_of_encodings, pieces_of_texts
from .task import Loaded

__all__ = ["LONG_TEXTS", "Text", "tokenise_texts"]

LONG_TEXTS = ("truncate", "error", "chunk")

Text: TypeAlias = "str | tuple[str, str]"
"""A text, or two that the model sees together."""


def tokenise_texts(
    loaded: Loaded, texts: Sequence[Text], long_texts: str = "truncate", overlap: int = 0
) -> tuple[Pieces, dict[int, InputError]]:
    """Pieces of each text, and the texts that are refused.

    Args:
        loaded: the model.
        texts: any strings.
        long_texts: what is done with those over `loaded.max_length`.
        overlap: of "chunk", tokens that each piece repeats of the one before. Of a pair the second text is cut.
    """
    paired = any(isinstance(text, tuple) for text in texts)
    if not paired and long_texts != "chunk":
        tokens = loaded.tokenizer.encode([text for text in texts if isinstance(text, str)])
        pieces = pieces_of_texts(tokens)
    else:
        pieces = _of_encodings(loaded, texts, long_texts == "chunk", overlap)
    if long_texts != "error" or not pieces.tokens.truncated.any():
        return pieces, {}
    long = pieces.truncated(len(texts)).nonzero()[0].tolist()
    message = f"the text is longer than the {loaded.max_length} tokens that the model takes"
    return pieces, {row: InputError(message) for row in long}


def _of_encodings(loaded: Loaded, texts: Sequence[Text], chunked: bool, overlap: int) -> Pieces:
    encodings: list[Encoding] = []
    owners: list[int] = []
    truncated: list[bool] = []
    # The library takes single texts and pairs in one call, but truncates each kind in its own way.
    for wanted in (False, True):
        rows = [row for row, text in enumerate(texts) if isinstance(text, tuple) is wanted]
        if not rows:
            continue
        strategy = ("only_second" if wanted else "only_first") if chunked else "longest_first"
        limit = loaded.max_length
        found = loaded.spelling(
            [texts[row] for row in rows],
            truncation=False if limit is None else strategy,
            max_length=limit,
            stride=overlap if chunked else 0,
            return_overflowing_tokens=True,
            verbose=False,
        )
        assert found.encodings is not None
        for encoding, place in zip(found.encodings, found["overflow_to_sample_mapping"], strict=True):
            row = rows[place]
            if not chunked and owners and owners[-1] == row:
                truncated[-1] = True
                continue
            encodings.append(encoding)
            owners.append(row)
            truncated.append(False)
    order = np.argsort(owners, kind="stable")
    return pieces_of_encodings(
        [encodings[place] for place in order],
        np.asarray(owners, dtype=np.int64)[order],
        types=loaded.typed,
        truncated=np.asarray(truncated, dtype=bool)[order],
    )
