"""The texts of a call as rows for the library, and its encodings as columns for the caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Encoding

from ..errors import InputError, OptionError
from .backend import Backend, Truncation
from .surrogates import without_surrogates

__all__ = ["columns_of", "rows_of", "run"]


def rows_of(text: Any, text_pair: Any, split_into_words: bool) -> tuple[list[Any], bool]:
    """The rows of a call, and whether it was called with several.

    Raises:
        InputError: texts and pairs do not fit together.
    """
    if not isinstance(text, str | list | tuple):
        raise InputError(f"text: expected a string or a list of strings, got {_describe(text)}")
    if not isinstance(text_pair, str | list | tuple | None):
        raise InputError(f"text_pair: expected a string or a list of strings, got {_describe(text_pair)}")
    nested = isinstance(text, list | tuple)
    batched = nested and (not split_into_words or bool(text and isinstance(text[0], list | tuple)))
    if not batched:
        if text_pair and not split_into_words and not isinstance(text_pair, str):
            raise InputError(f"text_pair: expected a string beside a single text, got {_describe(text_pair)}")
        # An empty second text is none, as in transformers.
        return [(text, text_pair)] if text_pair else [text], False
    if text_pair is None:
        return list(text), True
    if isinstance(text_pair, str):
        raise InputError(f"text_pair: expected a list of {len(text)} texts beside a list, got {_describe(text_pair)}")
    if len(text) != len(text_pair):
        raise InputError(f"text_pair: expected as many texts as in text ({len(text)}), got {len(text_pair)}")
    return list(zip(text, text_pair, strict=True)), True


def run(
    backend: Backend,
    rows: list[Any],
    *,
    truncation: Truncation | None,
    split_into_words: bool,
    split_special_tokens: bool,
    add_special_tokens: bool,
) -> list[Encoding]:
    """Encodings of the rows. Lone surrogates count as U+FFFD.

    Raises:
        InputError: a row is no text, naming the row; or it cannot be truncated as asked.
        OptionError: the truncation leaves no room for the special tokens, or for its stride.
    """
    if truncation is not None:
        _check_room(backend, rows, truncation, split_into_words, add_special_tokens)

    def encode(rows: list[Any]) -> list[Encoding]:
        return backend.encode(
            rows,
            truncation=truncation,
            split_special_tokens=split_special_tokens,
            add_special_tokens=add_special_tokens,
            split_into_words=split_into_words,
        )

    try:
        return encode(rows)
    except TypeError as error:
        for number, row in enumerate(rows):
            _check_row(number, row, split_into_words)
        mended = [_mended(row) for row in rows]
        if mended == rows:
            raise InputError(f"text: {error}") from None
        return encode(mended)


def columns_of(
    encodings: Sequence[Encoding], wanted: Mapping[str, bool | None], *, overflowing: bool
) -> tuple[dict[str, list[Any]], list[Encoding]]:
    """Name -> a value for each row, in transformers' order, and the encodings of these rows.

    Args:
        encodings: one a text.
        wanted: which of the columns beside `input_ids`.
        overflowing: the rest of each text that was truncated becomes further rows.
    """
    pieces: list[Encoding] = []
    texts: list[int] = []
    for number, encoding in enumerate(encodings):
        own = [encoding, *encoding.overflowing] if overflowing else [encoding]
        pieces += own
        texts += [number] * len(own)
    columns: dict[str, list[Any]] = {"input_ids": [piece.ids for piece in pieces]}
    for name, values in (
        ("token_type_ids", lambda piece: piece.type_ids),
        ("attention_mask", lambda piece: piece.attention_mask),
        ("special_tokens_mask", lambda piece: piece.special_tokens_mask),
        ("offsets_mapping", lambda piece: piece.offsets),
        ("length", len),
    ):
        if wanted.get(name):
            columns["offset_mapping" if name == "offsets_mapping" else name] = [values(piece) for piece in pieces]
    if overflowing:
        columns["overflow_to_sample_mapping"] = texts
    return columns, pieces


def _check_room(
    backend: Backend, rows: list[Any], truncation: Truncation, split_into_words: bool, add_special_tokens: bool
) -> None:
    if not add_special_tokens:
        special = 0
    else:
        pairs = any(_is_pair(row, split_into_words) for row in rows)
        special = backend.rust.num_special_tokens_to_add(pairs)
    if truncation.max_length < special:
        raise OptionError(f"max_length: expected at least {special}, the special tokens, got {truncation.max_length}")
    room = truncation.max_length - special
    if truncation.stride and truncation.stride >= room:
        raise OptionError(f"stride: expected less than {room}, the tokens left of max_length, got {truncation.stride}")


def _is_pair(row: Any, split_into_words: bool) -> bool:
    if not isinstance(row, list | tuple) or len(row) != 2:
        return False
    return not split_into_words or all(isinstance(part, list | tuple) for part in row)


def _check_row(number: int, row: Any, split_into_words: bool) -> None:
    def is_text(value: Any) -> bool:
        if not split_into_words:
            return isinstance(value, str)
        return isinstance(value, list | tuple) and all(isinstance(word, str) for word in value)

    is_pair = isinstance(row, list | tuple) and len(row) == 2 and all(map(is_text, row))
    if not is_text(row) and not is_pair:
        expected = "a list of words or a pair of them" if split_into_words else "a string or a pair of strings"
        raise InputError(f"row {number}: expected {expected}, got {_describe(row)}")


def _mended(row: Any) -> Any:
    if isinstance(row, str):
        return without_surrogates(row)
    return type(row)(_mended(part) for part in row)


def _describe(value: Any) -> str:
    return f"{type(value).__name__} ({value!r:.60})"
