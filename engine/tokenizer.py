"""Texts to token ids: many threads, never padding, and never more of a long text than the model will see.

The work is done by the `tokenizers` library. This module adds what a batch job needs around it: truncation that leaves
the shared tokenizer untouched, texts of any size, lone surrogates, and typed errors.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Encoding, normalizers
from tokenizers import Tokenizer as RustTokenizer

from .batch import TokenizedTexts
from .errors import InputError, OptionError, TokenizerError
from .text_cut import TextCutter
from .tokenization.auto import tokenizer_of
from .tokenization.surrogates import has_surrogate, without_surrogates
from .tokenizer_files import is_of_library, one_line, read_tokenizer_folder
from .tokenizer_template import Template, template_of

__all__ = ["Tokenizer", "check_vocabulary"]

# Each attempt on a long text takes this many times as much of it as the one before.
GROWTH = 8

STRETCH = 2**18
"""Characters that are tokenised in one go where all tokens of a long text are wanted: encodings take a hundred times
the memory of their text."""

STRETCHES_AT_ONCE = 8


class Tokenizer:
    """A model's tokenizer: texts in, ragged token ids out. Safe to use from several threads at once.

    Attributes:
        source: the file it was read from.
        vocab_size: every id is below it, added tokens included.
        leading: ids put before every text, such as that of `[CLS]`.
        trailing: ids put after every text, such as that of `[SEP]`.
    """

    def __init__(
        self, rust: RustTokenizer, *, source: Path, max_length: int | None = None, cut_from_left: bool = False
    ) -> None:
        # Padding is never wanted, and truncation is done on the ids: the library would build, and keep, an encoding of
        # every stretch that it cuts off, and its settings belong to all threads at once.
        rust.no_padding()
        rust.no_truncation()
        self._rust = rust
        self._cut_from_left = cut_from_left
        self._cutter = None if cut_from_left else TextCutter.for_tokenizer(rust)
        self.source = source
        self.vocab_size = max(rust.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._special_ids = {index for index, token in rust.get_added_tokens_decoder().items() if token.special}
        probe = self._run(["a"])[0][0]
        special = probe.special_tokens_mask
        content = special.index(0) if 0 in special else 0
        after = len(special) - special[::-1].index(0) if 0 in special else 0
        self.leading = tuple(probe.ids[:content])
        self.trailing = tuple(probe.ids[after:])
        self._types = tuple(probe.type_ids[: content + 1]), tuple(probe.type_ids[after:])
        self.max_length = max_length

    @classmethod
    def from_folder(cls, folder: Path, *, max_length: int | None = None, lowercase: bool = False) -> Tokenizer:
        """Load the tokenizer of a model folder.

        Args:
            folder: holds `tokenizer.json`, `vocab.txt` (WordPiece) or a sentencepiece `.model` (Unigram), read as
                `AutoTokenizer` reads them.
            max_length: tokens kept per text, special tokens included; None keeps all.
            lowercase: lower-case texts before the tokenizer's own normalisation; sentence-transformers' do_lower_case.

        Raises:
            TokenizerError: there is no tokenizer, or it cannot be read.
            OptionError: `max_length` leaves no room for the special tokens.
        """
        files = read_tokenizer_folder(folder)
        tokenizer = tokenizer_of(files)
        rust = tokenizer.backend_tokenizer
        if lowercase and not _lowercases(rust.normalizer):
            own = [] if rust.normalizer is None else [rust.normalizer]
            rust.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
        source = files.serialised or files.vocabulary or files.sentencepiece or folder
        return cls(rust, source=source, max_length=max_length, cut_from_left=tokenizer.truncation_side == "left")

    @property
    def max_length(self) -> int | None:
        """Tokens kept per text, special tokens included; None keeps all."""
        return self._max_length

    @max_length.setter
    def max_length(self, value: int | None) -> None:
        least = max(len(self.leading) + len(self.trailing), 1)
        if value is not None and value < least:
            raise OptionError(f"max_length: expected at least {least}, the special tokens of this model, got {value}")
        self._max_length = value

    def encode(self, texts: Sequence[str], *, prompt: str = "") -> TokenizedTexts:
        """Tokenise texts, special tokens included, each cut to `max_length`.

        Args:
            texts: any strings, empty ones too. Lone surrogates count as U+FFFD and are flagged in `repaired`.
            prompt: put before each text.

        Returns:
            The ids of all texts end to end, without padding.

        Raises:
            InputError: a row is not a string; the message names the row.
            TokenizerError: the tokenizer itself fails, such as on a character it has no token for.
        """
        limit = self._max_length
        full = _strings(texts, prompt)
        encodings, repaired = self._run(full) if limit is None else self._run_cut(full, limit)
        return self._gather(encodings, repaired, limit)

    def contents(self, texts: Sequence[str], most: int | None = None) -> tuple[list[np.ndarray], np.ndarray]:
        """The ids of texts without special tokens, for callers that put texts together or cut them themselves.

        Args:
            texts: as of `encode`.
            most: a text with more ids than this may be cut before it is tokenised, but still has more than this; None
                wants all ids of all texts.

        Returns:
            int32 ids of each text, and bool `[texts]`: which of them had surrogates replaced.

        Raises:
            InputError, TokenizerError: as `encode`.
        """
        full = _strings(texts, "")
        if most is None:
            return self._whole_contents(full)
        encodings, repaired = self._run_cut(full, most + len(self.leading) + len(self.trailing))
        return [self._content(encoding) for encoding in encodings], repaired

    def is_enough(self, text: str, *, prompt: str = "") -> bool:
        """Whether `encode` gives every text that begins with `text` the ids it gives `text`, and cuts both.

        It makes the same attempts there, and has enough before it comes to the end of `text`.

        Args:
            text: a beginning of texts, without lone surrogates.
            prompt: put before each text.
        """
        cutter, limit = self._cutter, self._max_length
        if cutter is None or limit is None:
            return False
        full, size, shorten = prompt + text, TextCutter.first_size(limit), False
        while size < len(full):
            try:
                encodings, _ = self._run([cutter.beginning(full, size, shorten_runs=shorten)])
            except TokenizerError:
                return False
            if len(encodings[0]) > limit:
                return True
            size, shorten = size * GROWTH, True
        return False

    def is_longer(self, first: str, second: str) -> bool:
        """Whether `first` has more tokens than `second`, found out with little more of them than the shorter needs."""
        texts, size = (first, second), STRETCH // GROWTH
        while True:
            begun = [text if self._cutter is None else self._cutter.beginning(text, size) for text in texts]
            least = [len(ids) for ids in self._whole_contents(begun)[0]]
            known = [self._cutter is None or size >= len(text) for text in texts]
            if all(known):
                return least[0] > least[1]
            if known[0] and least[1] >= least[0]:
                return False
            if known[1] and least[0] > least[1]:
                return True
            size *= GROWTH

    def template(self, texts: int) -> Template:
        """What is put around one text, or two."""
        return template_of(self._rust.encode("a", "a" if texts == 2 else None), texts)

    def count_tokens(self, text: str) -> int:
        """Tokens of `text`, special tokens included, without truncation."""
        return len(self._run(_strings([text], ""))[0][0])

    def prompt_tokens(self, prompt: str) -> int:
        """Tokens of a prompt at the head of each text, `[CLS]` included: what `include_prompt=False` leaves out."""
        ids = self.encode([prompt]).input_ids
        return len(ids) - (1 if len(ids) and int(ids[-1]) in self._special_ids else 0)

    def _content(self, encoding: Encoding) -> np.ndarray:
        return np.array(encoding.ids[len(self.leading) : len(encoding) - len(self.trailing)], dtype=np.int32)

    def _whole_contents(self, texts: list[str]) -> tuple[list[np.ndarray], np.ndarray]:
        found: list[np.ndarray] = [np.empty(0, dtype=np.int32)] * len(texts)
        repaired = np.zeros(len(texts), dtype=bool)
        long = [row for row, text in enumerate(texts) if self._cutter is not None and len(text) > STRETCH]
        short = sorted(set(range(len(texts))) - set(long))
        encodings, repaired[short] = self._run([texts[row] for row in short])
        for row, encoding in zip(short, encodings, strict=True):
            found[row] = self._content(encoding)
        for row in long:
            assert self._cutter is not None
            parts = []
            # Several at a time, so that they go through several threads.
            stretches = self._cutter.stretches(texts[row], STRETCH)
            while some := list(itertools.islice(stretches, STRETCHES_AT_ONCE)):
                encodings, mended = self._run(some)
                parts += map(self._content, encodings)
                repaired[row] |= mended.any()
            found[row] = np.concatenate(parts)
        return found, repaired

    def _run(self, texts: list[str]) -> tuple[list[Encoding], np.ndarray]:
        """Encodings of whole texts, and which of them had surrogates to be replaced."""
        try:
            try:
                return self._rust.encode_batch_fast(texts), np.zeros(len(texts), dtype=bool)
            except TypeError:
                # A surrogate is the one thing in a str that the library refuses, and with it the whole batch.
                repaired = np.fromiter(map(has_surrogate, texts), dtype=bool, count=len(texts))
                mended = map(without_surrogates, texts)
                return self._rust.encode_batch_fast(list(mended)), repaired
        except BaseException as error:
            if not is_of_library(error):
                raise
            # Such as for a character that it has no token for.
            raise TokenizerError(f"{self.source}: tokenising failed ({one_line(error)})") from None

    def _run_cut(self, texts: list[str], limit: int) -> tuple[list[Encoding], np.ndarray]:
        """Like `_run`, with at least `limit + 1` tokens of those texts that have as many, and not many more."""
        cutter = self._cutter
        size = TextCutter.first_size(limit)
        long = [row for row, text in enumerate(texts) if len(text) > size]
        if cutter is None or not long:
            return self._run(texts)
        begun = list(texts)
        for row in long:
            begun[row] = cutter.beginning(texts[row], size)
        encodings, repaired = self._run(begun)
        short = [row for row in long if len(encodings[row]) <= limit]
        while short:
            size *= GROWTH
            longer, _ = self._run([cutter.beginning(texts[row], size, shorten_runs=True) for row in short])
            for row, encoding in zip(short, longer, strict=True):
                encodings[row] = encoding
            short = [row for row in short if len(encodings[row]) <= limit and len(texts[row]) > size]
        for row in long:
            repaired[row] = has_surrogate(texts[row])
        return encodings, repaired

    def _gather(self, encodings: list[Encoding], repaired: np.ndarray, limit: int | None) -> TokenizedTexts:
        lengths = np.fromiter(map(len, encodings), dtype=np.int32, count=len(encodings))
        every_id = itertools.chain.from_iterable(encoding.ids for encoding in encodings)
        ids = np.fromiter(every_id, dtype=np.int32, count=int(lengths.sum()))
        truncated = np.zeros(len(lengths), dtype=bool) if limit is None else lengths > limit
        if limit is not None and truncated.any():
            from_start, from_end = _positions(lengths)
            first, last = limit - len(self.trailing), len(self.trailing)
            if self._cut_from_left:
                first, last = len(self.leading), limit - len(self.leading)
            ids = ids[(from_start < first) | (from_end < last) | ~np.repeat(truncated, lengths)]
            lengths = np.minimum(lengths, np.int32(limit))
        return TokenizedTexts(ids, lengths, self._token_types(lengths), truncated, repaired)

    def _token_types(self, lengths: np.ndarray) -> np.ndarray | None:
        before, after = self._types
        if not any(before) and not any(after):
            return None
        from_start, from_end = _positions(lengths)
        types = np.array(before, dtype=np.int32)[np.minimum(from_start, len(before) - 1)]
        tail = from_end < len(after)
        types[tail] = np.array(after, dtype=np.int32)[len(after) - 1 - from_end[tail]]
        return types


def check_vocabulary(tokenizer: Tokenizer, rows: int, folder: Path) -> None:
    """Refuse a tokenizer whose ids reach beyond a model's embedding table.

    Args:
        tokenizer: the tokenizer read from `folder`.
        rows: rows of the embedding table.
        folder: for the message.

    Raises:
        TokenizerError: with both numbers.
    """
    if tokenizer.vocab_size > rows:
        raise TokenizerError(
            f"{folder}: the tokenizer's ids go up to {tokenizer.vocab_size - 1:,}, "
            f"but the model embeds {rows:,} tokens (ids up to {rows - 1:,})"
        )


def _strings(texts: Sequence[str], prompt: str) -> list[str]:
    if isinstance(texts, str):
        raise InputError("texts: expected a list of strings, got one string")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"row {row}: expected a string, got {type(text).__name__} ({text!r:.60})")
    return [prompt + text for text in texts] if prompt else list(texts)


def _lowercases(normalizer: object) -> bool:
    """Whether a Lowercase step is there already; BertNormalizer's own does not count, as in sentence-transformers."""
    if isinstance(normalizer, normalizers.Sequence):
        return any(isinstance(step, normalizers.Lowercase) for step in normalizer)
    return isinstance(normalizer, normalizers.Lowercase)


def _positions(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every token, how many of its text come before it and how many after it."""
    ends = np.cumsum(lengths, dtype=np.int64)
    everywhere = np.arange(ends[-1] if len(ends) else 0)
    return everywhere - np.repeat(ends - lengths, lengths), np.repeat(ends, lengths) - 1 - everywhere
