"""A question beside a context, in windows where both are longer than the model takes: each has the whole question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Encoding

from ..batch import TokenizedTexts
from ..errors import InputError
from .pieces import Pieces

__all__ = ["Windows", "windows_of"]


@dataclass(frozen=True)
class Windows(Pieces):
    """Pieces of pairs.

    Attributes:
        encodings: of the pair that each window is of, uncut.
        spans: int64 `[windows, 2]`, the tokens of each window that are the context's.
        firsts_of_context: int64 `[windows]`, the number that the first of these has in the encoding.
    """

    spans: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
    firsts_of_context: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def windows_of(
    encodings: Sequence[Encoding],
    items: Sequence[int],
    *,
    question: int,
    max_length: int,
    overlap: int,
    max_question: int | None,
    typed: bool,
) -> tuple[Windows, dict[int, InputError]]:
    """The windows of pairs, and what is wrong with those that have none.

    Args:
        encodings: of the pairs, uncut.
        items: the number of each among the items, ascending.
        question: which text of a pair is the question, 0 or 1.
        max_length: most tokens of a window.
        overlap: tokens of the context that a window repeats of the one before; half the room beside a question so long
            that it leaves no more than these.
        max_question: tokens of a question beyond this are cut off; None cuts none.
        typed: whether the model has token types.
    """
    rows: list[np.ndarray] = []
    types: list[np.ndarray] = []
    spans, firsts, owners, owned, truncated = [], [], [], [], []
    faults: dict[int, InputError] = {}
    for encoding, item in zip(encodings, items, strict=True):
        of_text = np.array([-1 if text is None else text for text in encoding.sequence_ids], dtype=np.int64)
        kept = np.arange(len(of_text))
        asked = (of_text == question).nonzero()[0]
        cut = asked[max_question:] if max_question is not None else asked[:0]
        others = np.delete(kept, np.concatenate((cut, (of_text == 1 - question).nonzero()[0])))
        context = (of_text == 1 - question).nonzero()[0]
        # Without a token of the context the empty stretch stands where it would.
        first = int(context[0]) if len(context) else len(of_text) - 1
        before, after = others[others < first], others[others >= first]
        room = max_length - len(others)
        if room < min(len(context), 1):
            found = f"the question has {len(asked)} tokens"
            faults[item] = InputError(f"{found}, which leaves no room for the context in a window of {max_length}")
            continue
        ids, kinds = (np.asarray(values, dtype=np.int32) for values in (encoding.ids, encoding.type_ids))
        for begin, end in _stretches(len(context), room, overlap if overlap < room else room // 2):
            chosen = np.concatenate((before, np.arange(first + begin, first + end), after))
            rows.append(ids[chosen])
            types.append(kinds[chosen])
            spans.append((len(before), len(before) + end - begin))
            firsts.append(first + begin)
            owners.append(item)
            owned.append(encoding)
            truncated.append(len(cut) > 0)
    every_type = np.concatenate(types) if typed and types else None
    tokens = TokenizedTexts(
        input_ids=np.concatenate(rows) if rows else np.zeros(0, dtype=np.int32),
        lengths=np.fromiter(map(len, rows), dtype=np.int32, count=len(rows)),
        token_type_ids=every_type if every_type is not None and every_type.any() else None,
        truncated=np.array(truncated, dtype=bool),
        repaired=np.zeros(len(rows), dtype=bool),
    )
    found = Windows(
        tokens,
        np.array(owners, dtype=np.int64),
        owned,
        spans=np.array(spans, dtype=np.int64).reshape(-1, 2),
        firsts_of_context=np.array(firsts, dtype=np.int64),
    )
    return found, faults


def _stretches(tokens: int, room: int, overlap: int) -> list[tuple[int, int]]:
    """Where windows of `room` begin and end that cover all tokens, each `overlap` before the end of the last."""
    if tokens <= room:
        return [(0, tokens)]
    step = room - overlap
    starts = range(0, tokens - room + step, step)
    return [(start, min(start + room, tokens)) for start in starts]
