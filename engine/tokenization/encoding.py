"""A tokenizer's answer: a dictionary whose entries are attributes too, with the way back to characters and words."""

from __future__ import annotations

import logging
from collections import UserDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from tokenizers import Encoding

from ..errors import InputError, OptionError

if TYPE_CHECKING:
    import torch

__all__ = ["BatchEncoding", "CharSpan", "TokenSpan", "as_arrays"]

logger = logging.getLogger(__name__)


class CharSpan(NamedTuple):
    """Characters `start` up to, but without, `end` of a text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens `start` up to, but without, `end` of an encoding."""

    start: int
    end: int


class BatchEncoding(UserDict[str, Any]):
    """`input_ids`, `attention_mask` and what else was asked for, as lists, numpy arrays or torch tensors.

    Entries are read as `encoding["input_ids"]` or `encoding.input_ids`, and handed to a model as `model(**encoding)`.
    `encoding[0]` is the library's own encoding of the first text. The methods that take `(row, index)` take `(index)`
    alone for the first text; a negative index counts from the end.
    """

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        encoding: Encoding | Sequence[Encoding] | None = None,
        tensor_type: str | None = None,
        prepend_batch_axis: bool = False,
        n_sequences: int | None = None,
    ) -> None:
        """Hold `data`.

        Args:
            data: name -> values.
            encoding: the library's encodings, one a row; without them there is no way back to words and characters.
            tensor_type: "pt" or "np" turn lists into tensors or arrays, None leaves them.
            prepend_batch_axis: with `tensor_type`, put an axis of size 1 before the others.
            n_sequences: 1 for texts, 2 for pairs; by default as in the first of `encoding`.
        """
        super().__init__(data)
        self._encodings = [encoding] if isinstance(encoding, Encoding) else None if encoding is None else list(encoding)
        if n_sequences is None and self._encodings:
            n_sequences = self._encodings[0].n_sequences
        self._n_sequences = n_sequences
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, str):
            return self.data[item]
        if self._encodings is not None:
            return self._encodings[item]
        if isinstance(item, slice):
            return {name: values[item] for name, values in self.data.items()}
        raise KeyError(f"{item!r}: expected the name of an entry; this encoding has no rows of the tokenizer's own")

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(f"no entry {name!r} in this encoding") from None

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self.data, "encodings": self._encodings, "n_sequences": self._n_sequences}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.data, self._encodings = state["data"], state["encodings"]
        self._n_sequences = state["n_sequences"]

    @property
    def is_fast(self) -> bool:
        """Whether there is a way back to words and characters."""
        return self._encodings is not None

    @property
    def encodings(self) -> list[Encoding] | None:
        """The library's encodings, one a row."""
        return self._encodings

    @property
    def n_sequences(self) -> int | None:
        """1 for texts, 2 for pairs."""
        return self._n_sequences

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> Self:
        """Turn lists into int64 tensors ("pt") or arrays ("np"), in place.

        Raises:
            InputError: rows are of different lengths.
            OptionError: `tensor_type` is neither.
        """
        if tensor_type is not None:
            for name, values in list(self.data.items()):
                self.data[name] = as_arrays(name, [values] if prepend_batch_axis else values, tensor_type)
        return self

    def to(self, device: str | torch.device | int, *, non_blocking: bool = False) -> Self:
        """Move tensors to a device, in place. A data type is not a device: ids stay integers."""
        import torch

        if isinstance(device, str | int | torch.device):
            for name, values in self.data.items():
                if isinstance(values, torch.Tensor):
                    self.data[name] = values.to(device=device, non_blocking=non_blocking)
        else:
            logger.warning("BatchEncoding.to: expected a device, got %r; nothing is moved", device)
        return self

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a row, as spelled in the vocabulary."""
        return self._row(batch_index).tokens

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """Of each token, 0 for the first and 1 for the second text of a pair, None for added special tokens."""
        return self._row(batch_index).sequence_ids

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """Of each token, the number of its word in its text, None for added special tokens."""
        return self._row(batch_index).word_ids

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """0 or 1 for a token of the first or second text, None for added special tokens."""
        row, token = self._row_and_token(batch_or_token_index, token_index)
        return row.token_to_sequence(token)

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """The number of a token's word in its text, None for added special tokens."""
        row, token = self._row_and_token(batch_or_token_index, token_index)
        return row.token_to_word(token)

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """The characters of a token in its text, None for added special tokens."""
        row, token = self._row_and_token(batch_or_token_index, token_index)
        span = row.token_to_chars(token)
        return None if span is None else CharSpan(*span)

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """The tokens of a word of text `sequence_index`, None where it has none."""
        row, word = self._row_and_index(batch_or_word_index, word_index)
        span = row.word_to_tokens(word, sequence_index)
        return None if span is None else TokenSpan(*span)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """The characters of a word of text `sequence_index`, None where it has no token."""
        row, word = self._row_and_index(batch_or_word_index, word_index)
        span = row.word_to_chars(word, sequence_index)
        return None if span is None else CharSpan(*span)

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The token that holds a character of text `sequence_index`, None for white space."""
        row, character = self._row_and_index(batch_or_char_index, char_index)
        return row.char_to_token(character, sequence_index)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The number of the word that holds a character of text `sequence_index`, None for white space."""
        row, character = self._row_and_index(batch_or_char_index, char_index)
        return row.char_to_word(character, sequence_index)

    def _row(self, index: int) -> Encoding:
        if not self._encodings:
            raise InputError("this encoding has no way back to its texts: it was not made by a tokenizer")
        try:
            return self._encodings[index]
        except IndexError:
            raise InputError(f"row {index}: there are {len(self._encodings)}") from None

    def _row_and_index(self, first: int, second: int | None) -> tuple[Encoding, int]:
        row, index = (0, first) if second is None else (first, second)
        encoding = self._row(row)
        if index < 0:
            raise InputError(f"index {index}: expected 0 or more")
        return encoding, index

    def _row_and_token(self, first: int, second: int | None) -> tuple[Encoding, int]:
        row, token = (0, first) if second is None else (first, second)
        encoding = self._row(row)
        if not -len(encoding) <= token < len(encoding):
            raise InputError(f"token {token}: there are {len(encoding)} in this row")
        return encoding, token % len(encoding)


def as_arrays(name: str, values: Any, tensor_type: str) -> Any:
    """Lists of integers as an int64 torch tensor ("pt") or numpy array ("np"); tensors and arrays stay as they are.

    Rows of different lengths become a numpy array of arrays, as in transformers, but no tensor.

    Raises:
        InputError: rows are of different lengths.
        OptionError: `tensor_type` is neither.
    """
    if tensor_type not in ("pt", "np"):
        raise OptionError(f"return_tensors: expected 'pt', 'np' or None, got {tensor_type!r:.60}")
    if isinstance(values, np.ndarray) if tensor_type == "np" else type(values).__module__.startswith("torch"):
        return values
    try:
        if tensor_type == "np" and _is_ragged(values):
            return np.asarray([np.asarray(row, dtype=np.int64) for row in values], dtype=object)
        array = np.asarray(values)
        if array.dtype.kind not in "iubf":
            raise ValueError
        array = array.astype(np.int64) if array.size == 0 or array.dtype.kind in "iub" else array
    except (ValueError, TypeError, OverflowError):
        raise InputError(
            f"{name}: rows of different lengths make no tensor; ask for padding=True, and for truncation=True where "
            "texts may be too long"
        ) from None
    if tensor_type == "np":
        return array
    import torch

    return torch.from_numpy(array)


def _is_ragged(values: Any) -> bool:
    """Whether these are rows, not all of one length."""
    return isinstance(values, list) and all(isinstance(row, list) for row in values) and len(set(map(len, values))) > 1
