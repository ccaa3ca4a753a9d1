"""From ids back to tokens and texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import models

from ..errors import InputError
from .special_tokens import SpecialTokens

__all__ = ["Decoding", "plain"]

# Spaces that word-piece tokens leave before punctuation and inside English contractions.
SPACES_TOO_MANY = (
    *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'")),
    *((" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")),
)


class Decoding(SpecialTokens):
    """The half of a tokenizer that reads ids."""

    clean_up_tokenization_spaces: bool

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **_: Any,
    ) -> Any:
        """The text of ids.

        Args:
            token_ids: an id, a list of ids or a tensor of them, of any integer type; or a list of such lists.
            skip_special_tokens: leave special tokens out.
            clean_up_tokenization_spaces: take away spaces before punctuation; by default as the tokenizer was made.

        Returns:
            A str; a list of str for a list of lists. Ids that the vocabulary does not have give no text.

        Raises:
            InputError: `token_ids` is none of that.
        """
        ids = plain(token_ids)
        if isinstance(ids, Mapping):
            ids = plain(ids["input_ids"])
        if isinstance(ids, list) and ids and isinstance(ids[0], list):
            return [self._text(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        return self._text(ids, skip_special_tokens, clean_up_tokenization_spaces)

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **_: Any,
    ) -> list[str]:
        """Like `decode`; always a list."""
        found = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)
        return [found] if isinstance(found, str) else found

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or the list of those of several; None for an id that the vocabulary does not have."""
        found = plain(ids)
        if isinstance(found, int):
            return self._backend.rust.id_to_token(_checked([found])[0])
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._backend.rust.id_to_token(index) for index in _checked(found) if index not in skipped]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or the list of those of several; that of the unknown token where there is none."""
        return self._id_of(tokens) if isinstance(tokens, str) else [self._id_of(token) for token in tokens]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text of tokens."""
        decoder = self._backend.rust.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(list(tokens))

    @staticmethod
    def clean_up_tokenization(text: str) -> str:
        """`text` without the spaces that word-piece tokens leave before punctuation."""
        for found, replacement in SPACES_TOO_MANY:
            text = text.replace(found, replacement)
        return text

    def _text(self, ids: Any, skip_special_tokens: bool, clean_up: bool | None) -> str:
        rust = self._backend.rust
        listed = [ids] if isinstance(ids, int) else ids
        text = rust.decode(_checked(listed), skip_special_tokens=skip_special_tokens)
        if clean_up is None:
            clean_up = self.clean_up_tokenization_spaces
        # A byte-level vocabulary keeps every space of the text: none is too many there.
        return self.clean_up_tokenization(text) if clean_up and not isinstance(rust.model, models.BPE) else text


def plain(values: Any) -> Any:
    """Tensors and arrays, also in lists, as lists and numbers of Python."""
    if isinstance(values, int | str | Mapping) or values is None:
        return values
    if hasattr(values, "tolist"):
        return values.tolist()
    if isinstance(values, list | tuple):
        return [plain(value) for value in values]
    raise InputError(f"expected ids, got {type(values).__name__} ({values!r:.60})")


def _checked(ids: Any) -> list[int]:
    if not isinstance(ids, list):
        raise InputError(f"expected ids, got {type(ids).__name__} ({ids!r:.60})")
    for place, index in enumerate(ids):
        if not isinstance(index, int) or not 0 <= index < 2**32:
            raise InputError(f"id {place}: expected an integer of 0 or more, got {index!r:.60}")
    return ids
