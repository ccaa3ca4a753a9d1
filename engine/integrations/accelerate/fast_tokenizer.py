"""The tokenizer of a transformers model in memory as ours: many texts at a time, several threads, never padding."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from ...batch import TokenizedTexts
from ...errors import InputError, OptionError
from ...tasks.long_texts import tokenise_texts
from ...tasks.task import Loaded
from ...tokenizer import Tokenizer

__all__ = ["FollowedTokenizer", "Pair", "RowTokenizer", "as_rows", "backend_of", "limit_of", "limited"]

NO_LIMIT = 1e20
"""transformers writes int(1e30) where nothing limits a text."""


@dataclass(frozen=True)
class Pair:
    """Two texts that the model sees together."""

    first: str
    second: str

    def __len__(self) -> int:
        """Characters, by which texts are ordered before they are tokenised."""
        return len(self.first) + len(self.second)


def as_rows(inputs: Sequence[Any]) -> list[Any]:
    """Texts as they are, and pairs as `Pair`.

    Raises:
        OptionError: they are something else, or both.
    """
    if all(isinstance(row, str) for row in inputs):
        return list(inputs)
    if all(isinstance(row, list | tuple) and len(row) == 2 and all(isinstance(t, str) for t in row) for row in inputs):
        return [Pair(*row) for row in inputs]
    kinds = ", ".join(sorted({type(row).__name__ for row in inputs}))
    raise OptionError(f"inputs: expected texts, or pairs of texts, got {kinds}")


def backend_of(tokenizer: Any) -> RustTokenizer:
    """What does the work of a fast tokenizer of transformers.

    Raises:
        OptionError: it is none.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, RustTokenizer):
        raise OptionError(
            f"tokenizer: expected a fast one, of the tokenizers library, got a {type(tokenizer).__name__}"
        )
    return backend


class FollowedTokenizer:
    """Our tokenizer made from one of transformers, and made anew when that one has changed.

    It is a copy: transformers turns truncation and padding of its own on and off from call to call, in whichever
    thread that is.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: Tokenizer | None = None
        self._made_of: Any = None
        self._state: tuple[Any, ...] = ()

    def __reduce__(self) -> tuple[type[FollowedTokenizer], tuple[()]]:
        return FollowedTokenizer, ()

    def of(self, tokenizer: Any) -> Tokenizer:
        """The tokenizer as `tokenizer` is now; what limits its texts is not set.

        Raises:
            OptionError: it is no fast tokenizer.
        """
        backend = backend_of(tokenizer)
        with self._lock:
            state = _state(tokenizer, backend)
            if self._made is None or self._made_of is not backend or self._state != state:
                self._made = _copied(tokenizer, backend)
                self._made_of, self._state = backend, state
            return self._made


def _state(tokenizer: Any, backend: RustTokenizer) -> tuple[Any, ...]:
    """What decides on ids, as far as it can be changed in place: cheap enough to be asked before each call."""
    steps = (backend.normalizer, backend.pre_tokenizer, backend.post_processor)
    return (
        *(None if step is None else step.__getstate__() for step in steps),
        backend.get_vocab_size(with_added_tokens=True),
        repr(backend.get_added_tokens_decoder()),
        backend.encode_special_tokens,
        tokenizer.truncation_side,
    )


def _copied(tokenizer: Any, backend: RustTokenizer) -> Tokenizer:
    rust = RustTokenizer.from_str(backend.to_str())
    rust.encode_special_tokens = backend.encode_special_tokens
    source = Path(str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__))
    return Tokenizer(rust, source=source, cut_from_left=tokenizer.truncation_side == "left")


@dataclass(frozen=True)
class RowTokenizer:
    """What `encode_stream` tokenises with: rows are all strings, or all pairs.

    Attributes:
        loaded: our tokenizer, with its limit, and transformers' own as its spelling.
        longest: tokens that the model has positions for; None where nothing limits them.
        rows_embedded: rows of its embedding table.
    """

    loaded: Loaded
    longest: int | None
    rows_embedded: int

    @property
    def max_length(self) -> int | None:
        """Tokens kept of a row, special tokens included; None keeps all."""
        return self.loaded.max_length

    @property
    def most_tokens(self) -> int | None:
        """Tokens that a row may have in the end."""
        return min((limit for limit in (self.max_length, self.longest) if limit is not None), default=None)

    def encode(self, rows: Sequence[Any], *, prompt: str = "") -> TokenizedTexts:
        """Tokenise rows; the prompt is put before each text, and before the first of a pair.

        Raises:
            InputError: a row has more tokens than the model has positions, or a token that it has no embedding of.
        """
        if isinstance(rows[0], Pair):
            pairs = [(prompt + row.first, row.second) for row in rows]
            tokens = tokenise_texts(self.loaded, pairs)[0].tokens
        else:
            tokens = self.loaded.tokenizer.encode(rows, prompt=prompt)
        longest = int(tokens.lengths.max(initial=0))
        if self.longest is not None and longest > self.longest:
            raise InputError(
                f"a text has {longest} tokens, the model takes at most {self.longest}: set max_seq_length to that"
            )
        highest = int(tokens.input_ids.max(initial=0))
        if highest >= self.rows_embedded:
            raise InputError(
                f"the tokenizer gave the id {highest}, the model embeds {self.rows_embedded} tokens: "
                "call resize_token_embeddings"
            )
        return tokens if self.loaded.typed else replace(tokens, token_type_ids=None)


def limit_of(tokenizer: Any) -> int | None:
    """Tokens that transformers keeps of a text; None where it keeps all."""
    limit = tokenizer.model_max_length
    return None if limit is None or limit > NO_LIMIT else int(limit)


def limited(tokenizer: Tokenizer, limit: int | None) -> Tokenizer:
    """The same with another limit; the calls of others go on with theirs."""
    made = copy.copy(tokenizer)
    made.max_length = limit
    return made
