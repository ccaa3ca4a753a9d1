"""Texts, alone or in pairs, as pieces that the model takes; what is done with those that are too long is an option.

"truncate"   the model sees the beginning, the input is counted as truncated
"error"      the input has no answer
"chunk"      the model sees all of it, in pieces that overlap; the task says what becomes of their scores

A text is tokenised once, however many pairs it is part of, and no more of it than is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from ..errors import InputError, OptionError
from ..tokenizer_template import Template
from .pieces import Pieces, pieces_of_ids
from .task import Loaded

__all__ = ["LONG_TEXTS", "Text", "aggregated", "tokenise_texts"]

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
    in_pieces: int = -1,
    truncation: str = "longest_first",
    owners: Sequence[int] | np.ndarray | None = None,
) -> tuple[Pieces, dict[int, InputError]]:
    """Pieces of each text, and the inputs that are refused.

    Args:
        loaded: the model.
        texts: any strings. A pair whose second text is empty is still a pair.
        long_texts: what is done with those over `loaded.max_length`.
        overlap: of "chunk", tokens that each piece repeats of the one before.
        in_pieces: of "chunk", which text of a pair becomes pieces, 0 or the last one; each holds the other whole.
        truncation: of pairs, "longest_first", "only_first" or "only_second" as in transformers.
        owners: the input that each text belongs to, ascending; by default every text is one.

    Raises:
        OptionError: special tokens and `overlap` leave no room for anything new.
    """
    owners = np.arange(len(texts)) if owners is None else np.asarray(owners, dtype=np.int64)
    chunked = long_texts == "chunk"
    if chunked or truncation == "only_second" or any(isinstance(text, tuple) for text in texts):
        cut = _Cut(in_pieces if chunked else None, overlap, truncation)
        pieces, faults = _joined(loaded, texts, owners, cut)
    else:
        tokens = loaded.tokenizer.encode([text for text in texts if isinstance(text, str)])
        pieces, faults = Pieces(tokens, owners), {}
    if long_texts == "error":
        message = f"the text is longer than the {loaded.max_length} tokens that the model takes"
        long = np.unique(pieces.owners[pieces.tokens.truncated])
        faults = {row: InputError(message) for row in long.tolist()} | faults
    return pieces, faults


def aggregated(scores: np.ndarray, firsts: np.ndarray, aggregate: str) -> np.ndarray:
    """Scores of pieces `[pieces, ...]` to those of their texts `[texts, ...]`.

    Args:
        scores: finite.
        firsts: the first piece of each text, see `Pieces.firsts`.
        aggregate: "mean" or "max".
    """
    if len(firsts) == len(scores):
        return scores
    if aggregate == "max":
        return np.maximum.reduceat(scores, firsts, axis=0)
    sums = np.add.reduceat(scores, firsts, axis=0, dtype=np.float64)
    counts = np.diff(firsts, append=len(scores)).reshape(-1, *[1] * (scores.ndim - 1))
    return (sums / counts).astype(scores.dtype)


class _Cut(NamedTuple):
    """How texts are made to fit.

    Attributes:
        in_pieces: the text that becomes pieces; None cuts instead.
        overlap: of pieces.
        truncation: of what is cut.
    """

    in_pieces: int | None
    overlap: int
    truncation: str


def _joined(
    loaded: Loaded, texts: Sequence[Text], owners: np.ndarray, how: _Cut
) -> tuple[Pieces, dict[int, InputError]]:
    chunked = how.in_pieces is not None
    limit = loaded.max_length
    templates = {size: loaded.tokenizer.template(size) for size in {_size(text) for text in texts}}
    for template in templates.values():
        _check_room(limit, template.special, how.overlap if chunked else 0)
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
            elif how.in_pieces is not None:
                own = _chunks(contents, room, how.overlap, how.in_pieces % len(contents))
            else:
                own, truncated = [_truncated(loaded, of_text, contents, room, how.truncation)], True
        except InputError as error:
            faults[int(owners[place])] = error
            continue
        ids += own
        layouts += [template] * len(own)
        places += [place] * len(own)
        cut += [truncated] * len(own)
    repaired = [any(mended[number[part]] for part in parts[place]) for place in places]
    pieces = pieces_of_ids(
        ids, layouts, owners[places], types=loaded.typed, truncated=cut, repaired=repaired, texts=places
    )
    return pieces, faults


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
        if truncation == "only_second":
            raise InputError(f"the text has more than the {room} tokens that the model takes, and no second to cut")
        return (keep(ids[0], room),)
    first, second = ids
    if truncation == "only_first":
        return keep(first, _room_beside(second, "second", "first", room)), second
    if truncation == "only_second":
        return first, keep(second, _room_beside(first, "first", "second", room))
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


def _room_beside(ids: np.ndarray, name: str, other: str, room: int) -> int:
    if len(ids) >= room:
        raise InputError(
            f"the {name} text has {len(ids)} tokens or more, which leaves the {other} none of the {room} that the "
            "model takes"
        )
    return room - len(ids)


def _chunks(ids: Ids, room: int, overlap: int, place: int) -> list[Ids]:
    """All of one text, in pieces that each hold the others whole."""
    before, long, after = ids[:place], ids[place], ids[place + 1 :]
    taken = sum(map(len, (*before, *after)))
    room -= taken
    if room <= overlap:
        one, other = ("first", "second") if before else ("second", "first")
        raise InputError(f"the {one} text has {taken} tokens, which leaves no room for pieces of the {other}")
    starts = range(0, max(len(long) - overlap, 1), room - overlap)
    return [(*before, long[start : start + room], *after) for start in starts]


def _first(ids: np.ndarray, count: int) -> np.ndarray:
    return ids[:count]


def _last(ids: np.ndarray, count: int) -> np.ndarray:
    return ids[len(ids) - count :]
