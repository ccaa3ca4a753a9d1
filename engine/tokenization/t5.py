"""T5's and mT5's tokenizer: a Unigram vocabulary of sentencepiece, with `</s>` after each text."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

from ..errors import OptionError, TokenizerError
from ..tokenizer_files import TokenizerFolder, check_options, one_line, read_serialised
from .base import PreTrainedTokenizerFast, take_sides
from .charsmap import character_maps, check_character_map
from .sentencepiece import CONTROL, USER_DEFINED, SentencePieceModel, read_sentencepiece
from .special_tokens import text_of

__all__ = ["T5Tokenizer"]

SPACE = "\u2581"


class T5Tokenizer(PreTrainedTokenizerFast):
    """The tokenizer of T5 and mT5."""

    saved_class = "T5Tokenizer"

    def __init__(
        self,
        vocab: str | os.PathLike[str] | Sequence[tuple[str, float]] | None = None,
        eos_token: Any = "</s>",
        unk_token: Any = "<unk>",
        pad_token: Any = "<pad>",
        extra_ids: int = 100,
        additional_special_tokens: Sequence[Any] | None = None,
        *,
        vocab_file: str | os.PathLike[str] | None = None,
        tokenizer_object: RustTokenizer | None = None,
        **options: Any,
    ) -> None:
        """Make a tokenizer.

        Args:
            vocab: (piece, score) in the order of their ids, or the path of a sentencepiece model; by default the
                special tokens alone.
            eos_token: ends each text.
            unk_token: stands for what has no piece.
            pad_token: fills rows up.
            extra_ids: number of sentinels `<extra_id_0>` and so on. Those of a sentencepiece model come after its
                pieces, the last one first.
            additional_special_tokens: special tokens without a name; the sentinels must be all among them or none.
            vocab_file: the older name of `vocab` for a path.
            tokenizer_object: a tokenizer of the `tokenizers` library to take the vocabulary and the map of characters
                from instead.
            options: as in the base class.

        Raises:
            OptionError: an option is out of range.
            TokenizerError: the vocabulary cannot be read.
        """
        special = {"eos_token": eos_token, "unk_token": unk_token, "pad_token": pad_token}
        check_options({**special, "extra_ids": extra_ids}, type(self).__name__, OptionError)
        for name, token in special.items():
            if token is None:
                raise OptionError(f"{type(self).__name__}: {name}: expected a token, got {token!r:.60}")
        sentinels = [f"<extra_id_{number}>" for number in range(extra_ids)]
        path = vocab if isinstance(vocab, str | os.PathLike) else vocab_file
        unknown_id, normalizer = 2, None
        if tokenizer_object is not None:
            model, normalizer = _unigram_of(tokenizer_object)
        else:
            at_the_end = [(sentinel, 0.0) for sentinel in reversed(sentinels)]
            if path is not None:
                read = read_sentencepiece(Path(path))
                unknown_id, normalizer = read.unknown_id, _normalizer(read.character_map, str(path))
                pieces = [*((piece.text, piece.score) for piece in read.pieces), *at_the_end]
                additional_special_tokens = _control_tokens(read)
            elif vocab is not None and not isinstance(vocab, str | os.PathLike):
                pieces = [(piece, score) for piece, score in vocab]
            else:
                names = map(text_of, (pad_token, eos_token, unk_token))
                pieces = [*((name, 0.0) for name in names), (SPACE, -2.0), *at_the_end]
            model = _unigram(pieces, unknown_id)
        rust = RustTokenizer(model)
        if normalizer is not None:
            rust.normalizer = normalizer
        rust.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.WhitespaceSplit(),
                pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=True),
            ]
        )
        rust.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always", split=True)
        # A list of its own in the settings counts, even an empty one; as in transformers.
        options.setdefault("extra_special_tokens", _with_sentinels(additional_special_tokens, sentinels))
        super().__init__(
            tokenizer_object=rust,
            eos_token=eos_token,
            unk_token=unk_token,
            pad_token=pad_token,
            extra_ids=extra_ids,
            **options,
        )

    @classmethod
    def from_files(cls, files: TokenizerFolder) -> Self:
        settings, added = dict(files.settings), files.added
        if files.serialised is not None:
            rust = read_serialised(files.serialised)
            if not files.added_is_all:
                added = {**added, **rust.get_added_tokens_decoder()}
            take_sides(rust, settings)
            source, settings["tokenizer_object"] = files.serialised, rust
        elif files.sentencepiece is not None:
            source, settings["vocab_file"] = files.sentencepiece, files.sentencepiece
        else:
            raise TokenizerError(
                f"{files.folder}: {cls.__name__}: expected tokenizer.json or a sentencepiece .model, found neither"
            )
        try:
            tokenizer = cls(added_tokens_decoder=added, **settings)
        except TokenizerError as error:
            raise TokenizerError(f"{source}: {error}" if str(source) not in str(error) else str(error)) from None
        tokenizer.check_added(files)
        return tokenizer

    def _set_post_processor(self, rust: RustTokenizer) -> None:
        end = rust.token_to_id(text_of(self._named["eos_token"]))
        rust.post_processor = processors.TemplateProcessing(
            single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", end)]
        )

    def get_sentinel_tokens(self) -> list[str]:
        """The sentinels among the special tokens."""
        return [token for token in self.extra_special_tokens if re.search(r"<extra_id_\d+>", token)]

    def get_sentinel_token_ids(self) -> list[int | None]:
        """Ids of `get_sentinel_tokens()`."""
        return [self._id_of(token) for token in self.get_sentinel_tokens()]


def _with_sentinels(additional: Sequence[Any] | None, sentinels: list[str]) -> list[Any]:
    if additional is None:
        return [*sentinels]
    present = sum("<extra_id_" in text_of(token) for token in additional)
    if present and sentinels and present != len(sentinels):
        raise OptionError(f"extra_ids: expected {present}, as in additional_special_tokens, got {len(sentinels)}")
    return [*additional, *([] if present else sentinels)]


def _control_tokens(model: SentencePieceModel) -> list[AddedToken]:
    return [
        AddedToken(piece.text, normalized=False, special=piece.kind == CONTROL)
        for piece in model.pieces
        if piece.kind in (CONTROL, USER_DEFINED)
    ]


def _unigram(pieces: list[tuple[str, float]], unknown_id: int) -> models.Unigram:
    try:
        return models.Unigram(pieces, unk_id=unknown_id, byte_fallback=False)
    except Exception as error:
        raise TokenizerError(f"not a readable Unigram vocabulary ({one_line(error)})") from None


def _unigram_of(rust: RustTokenizer) -> tuple[models.Unigram, normalizers.Precompiled | None]:
    """The vocabulary of a tokenizer, and its map of characters."""
    if not isinstance(rust.model, models.Unigram):
        raise TokenizerError(f"expected a Unigram vocabulary, found {type(rust.model).__name__}")
    maps = character_maps(rust)
    return rust.model, _normalizer(maps[0], "tokenizer.json") if maps else None


def _normalizer(character_map: bytes, source: str) -> normalizers.Precompiled | None:
    if not character_map:
        return None
    try:
        check_character_map(character_map)
        return normalizers.Precompiled(character_map)
    except Exception as error:
        raise TokenizerError(f"{source}: {one_line(error)}") from None
