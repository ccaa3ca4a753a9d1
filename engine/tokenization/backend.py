"""A tokenizer of the `tokenizers` library that is never changed while texts go through it.

The library keeps truncation inside the tokenizer, where every thread shares it, and refuses to be changed while another
thread tokenises. So nothing here is ever changed: another truncation, or another added token, is another tokenizer.
They share vocabulary, normaliser and pre-tokeniser, so that one more costs little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Encoding
from tokenizers import Tokenizer as RustTokenizer

from ..errors import InputError, TokenizerError
from ..tokenizer_files import is_of_library, one_line

__all__ = ["Backend", "Truncation", "add_tokens", "alike"]

MOST_VARIANTS = 16


@dataclass(frozen=True)
class Truncation:
    """How texts that are too long are shortened.

    Attributes:
        max_length: tokens kept, special tokens included.
        stride: tokens of the end of one piece repeated at the beginning of the next, where the rest is wanted too.
        strategy: "longest_first", "only_first" or "only_second".
        direction: the side that is lost: "right" or "left".
    """

    max_length: int
    stride: int
    strategy: str
    direction: str


class Backend:
    """A tokenizer and its variants, safe to use from several threads at once."""

    def __init__(self, rust: RustTokenizer) -> None:
        """Take over `rust`, which nobody may change from now on."""
        rust.no_padding()
        rust.no_truncation()
        self.rust = rust
        self._variants: dict[tuple[Truncation | None, bool], RustTokenizer] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"rust": self.rust}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["rust"])

    def with_tokens(self, tokens: Sequence[str | AddedToken], *, special: bool) -> tuple[Backend, int]:
        """A backend that knows more tokens, and how many of them are new to it."""
        rust = alike(self.rust)
        added = rust.add_special_tokens(list(tokens)) if special else rust.add_tokens(list(tokens))
        return Backend(rust), added

    def encode(
        self,
        rows: Sequence[Any],
        *,
        truncation: Truncation | None,
        split_special_tokens: bool,
        add_special_tokens: bool,
        split_into_words: bool,
    ) -> list[Encoding]:
        """Tokenise rows, each a text, a pair of texts, or the same as lists of words.

        Raises:
            TypeError: a row is none of that, or holds a surrogate.
            InputError: a row cannot be truncated as asked.
            TokenizerError: the tokenizer fails, such as on a character that it has no token for.
        """
        rust = self._variant(truncation, split_special_tokens)
        try:
            return rust.encode_batch(
                list(rows), is_pretokenized=split_into_words, add_special_tokens=add_special_tokens
            )
        except TypeError:
            raise
        except BaseException as error:
            if not is_of_library(error):
                raise
            message = one_line(error)
            if truncation is not None and ("runcat" in message or "stride" in message):
                # What is kept of the one text may leave too little room for the other.
                raise InputError(f"truncation: {message}") from None
            raise TokenizerError(f"tokenising failed ({message})") from None

    def _variant(self, truncation: Truncation | None, split_special_tokens: bool) -> RustTokenizer:
        if truncation is None and not split_special_tokens:
            return self.rust
        key = (truncation, split_special_tokens)
        found = self._variants.get(key)
        if found is None:
            found = alike(self.rust)
            found.encode_special_tokens = split_special_tokens
            if truncation is not None:
                found.enable_truncation(
                    truncation.max_length,
                    stride=truncation.stride,
                    strategy=truncation.strategy,
                    direction=truncation.direction,
                )
            if len(self._variants) >= MOST_VARIANTS:
                self._variants.clear()
            self._variants[key] = found
        return found


def alike(rust: RustTokenizer) -> RustTokenizer:
    """A tokenizer that does the same, can be given other settings, and shares the parts that hold the memory."""
    other = RustTokenizer(rust.model)
    other.normalizer = rust.normalizer
    other.pre_tokenizer = rust.pre_tokenizer
    other.post_processor = rust.post_processor
    other.decoder = rust.decoder
    add_tokens(other, [token for _, token in sorted(rust.get_added_tokens_decoder().items())])
    return other


def add_tokens(rust: RustTokenizer, tokens: Sequence[AddedToken]) -> None:
    """Add tokens in this order, each special or not as it says itself."""
    if tokens:
        rust.add_tokens(list(tokens))
