"""Texts, alone or in pairs, as pieces that the model takes; what is done with those that are too long is an option.

"truncate"   the model sees the beginning, the input is counted as truncated
"error"      the input has no answer
"chunk"      the model sees all of it, in pieces that overlap; the task says what becomes of their scores

A text is tokenised once, however many pairs it is part of, and no more of it than is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from ..errors import InputError, OptionError
from ..tokenizer_template import Template
from .pieces import Pieces, pieces_of_ids
from .task import Loaded

__all__ = ["LONG_TEXTS", "Text", "tokenise_texts"]

LONG_TEXTS = ("truncate", "error", "chunk")

Text: TypeAlias = "str | tuple[str, str]"
"""A text, or two that the model sees together."""

Ids: TypeAlias = tuple[np.ndarray, ...]
"""int32 ids of the texts of one piece, without special tokens."""


def tokenise_texts(
    loaded: Loaded,
    texts: Sequence[Text],
    long_texts: str = "truncate",
    overlap: int = 0,
    *,
    truncation: str = "longest_first",
    owners: Sequence[int] | np.ndarray | None = None,
) -> tuple[Pieces, dict[int, InputError]]:
    """Pieces of each text, and the inputs that are refused.

    Args:
        loaded: the model.
        texts: any strings. A pair whose second text is empty is still a pair.
        long_texts: what is done with those over `loaded.max_length`.
        overlap: of "chunk", tokens that each piece repeats of the one before. Of a pair the second text is cut.
        truncation: of pairs, "longest_first" or "only_first" as in transformers.
        owners: the input that each text belongs to, ascending; by default every text is one.

    Raises:
        OptionError: special tokens and `overlap` leave no room for anything new.
    """
    owners = np.arange(len(texts)) if owners is None else np.asarray(owners, dtype=np.int64)
    if long_texts == "chunk" or any(isinstance(text, tuple) for text in texts):
        pieces, faults = _joined(loaded, texts, owners, long_texts == "chunk", overlap, truncation)
    else:
        tokens = loaded.tokenizer.encode([text for text in texts if isinstance(text, str)])
        pieces, faults = Pieces(tokens, owners), {}
    if long_texts == "error":
        message = f"the text is longer than the {loaded.max_length} tokens that the model takes"
        long = np.unique(pieces.owners[pieces.tokens.truncated])
        faults = {row: InputError(message) for row in long.tolist()} | faults
    return pieces, faults


def _joined(
    loaded: Loaded, texts: Sequence[Text], owners: np.ndarray, chunked: bool, overlap: int, truncation: str
) -> tuple[Pieces, dict[int, InputError]]:
    limit = loaded.max_length
    templates = {size: loaded.tokenizer.template(size) for size in {_size(text) for text in texts}}
    for template in templates.values():
        _check_room(limit, template.special, overlap if chunked else 0)
    most = None if limit is None or chunked else limit
    parts = [(text,) if isinstance(text, str) else text for text in texts]
    distinct = list(dict.fromkeys(part for of_text in parts for part in of_text))
    found, mended = loaded.tokenizer.contents(distinct, most)
    number = {part: place for place, part in enumerate(distinct)}
    ids: list[Ids] = []
    layouts: list[Template] = []
    places: list[int] = []
    cut: list[bool] = []
    faults: dict[int, InputError] = {}
    for place, of_text in enumerate(parts):
        template = templates[len(of_text)]
        contents = tuple(found[number[part]] for part in of_text)
        room = None if limit is None else limit - template.special
        truncated = False
        try:
            if room is None or sum(map(len, contents)) <= room:
                own = [contents]
            elif chunked:
                own = _chunks(contents, room, overlap)
            else:
                own, truncated = [_truncated(loaded, of_text, contents, room, truncation)], True
        except InputError as error:
            faults[int(owners[place])] = error
            continue
        ids += own
        layouts += [template] * len(own)
        places += [place] * len(own)
        cut += [truncated] * len(own)
    repaired = [any(mended[number[part]] for part in parts[place]) for place in places]
    return pieces_of_ids(ids, layouts, owners[places], types=loaded.typed, truncated=cut, repaired=repaired), faults


def _size(text: Text) -> int:
    return 1 if isinstance(text, str) else 2


def _check_room(limit: int | None, special: int, overlap: int) -> None:
    if limit is None:
        return
    if limit <= special:
        raise OptionError(f"max_length: expected more than {special}, the special tokens of this model, got {limit}")
    if overlap >= limit - special:
        raise OptionError(f"overlap: expected less than the {limit - special} tokens of a piece, got {overlap}")


def _truncated(loaded: Loaded, texts: tuple[str, ...], ids: Ids, room: int, truncation: str) -> Ids:
    """The ids that are kept of one or two texts that together have more than `room`, as transformers keeps them."""
    keep = _last if loaded.spelling.truncation_side == "left" else _first
    if len(ids) == 1:
        return (keep(ids[0], room),)
    first, second = ids
    if truncation == "only_first":
        if len(second) >= room:
            raise InputError(
                f"the second text has {len(second)} tokens or more, which leaves the first none of the "
                f"{room} that the model takes"
            )
        return keep(first, room - len(second)), second
    half = room // 2
    shorter = min(len(first), len(second))
    if shorter <= half:
        kept = (shorter, room - shorter) if len(first) == shorter else (room - shorter, shorter)
    elif 2 * half == room:
        kept = (half, half)
    else:
        # The longer text keeps one token more, and what was tokenised of the two need not be all.
        known = min(len(first), len(second)) <= room
        longer = len(first) > len(second) if known else loaded.tokenizer.is_longer(texts[0], texts[1])
        kept = (room - half, half) if longer else (half, room - half)
    return keep(first, kept[0]), keep(second, kept[1])


def _chunks(ids: Ids, room: int, overlap: int) -> list[Ids]:
    """All of the last text, in pieces that each hold the others whole."""
    *others, last = ids
    room -= sum(map(len, others))
    if room <= overlap:
        taken = sum(map(len, others))
        raise InputError(f"the first text has {taken} tokens, which leaves no room for pieces of the second")
    starts = range(0, max(len(last) - overlap, 1), room - overlap)
    return [(*others, last[start : start + room]) for start in starts]


def _first(ids: np.ndarray, count: int) -> np.ndarray:
    return ids[:count]


def _last(ids: np.ndarray, count: int) -> np.ndarray:
    return ids[len(ids) - count :]
