"""BERT's tokenizer: words cut into the pieces of a vocabulary, between `[CLS]` and `[SEP]`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from ..errors import OptionError, TokenizerError
from ..tokenizer_files import TokenizerFolder, check_options, one_line, read_serialised, read_vocabulary
from .base import PreTrainedTokenizerFast, take_sides
from .special_tokens import text_of

__all__ = ["BertTokenizer"]

PARTS_OF_TEXTS = ("unk_token", "cls_token", "sep_token")


class BertTokenizer(PreTrainedTokenizerFast):
    """The tokenizer of BERT, MobileBERT and MegatronBERT.

    Attributes:
        do_lower_case, tokenize_chinese_chars, strip_accents: as given.
    """

    model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # noqa: RUF012  as in the base
    saved_class = "BertTokenizer"

    def __init__(
        self,
        vocab: str | os.PathLike[str] | Mapping[str, int] | None = None,
        do_lower_case: bool = True,
        unk_token: Any = "[UNK]",
        sep_token: Any = "[SEP]",
        pad_token: Any = "[PAD]",
        cls_token: Any = "[CLS]",
        mask_token: Any = "[MASK]",
        tokenize_chinese_chars: bool = True,
        strip_accents: bool | None = None,
        *,
        vocab_file: str | os.PathLike[str] | None = None,
        tokenizer_object: RustTokenizer | None = None,
        **options: Any,
    ) -> None:
        """Make a tokenizer.

        Args:
            vocab: token -> id, or the path of a `vocab.txt`; by default the special tokens alone.
            do_lower_case: lower-case texts.
            unk_token: stands for a word that has no pieces in the vocabulary.
            sep_token: ends each text.
            pad_token: fills rows up.
            cls_token: begins a text or pair.
            mask_token: stands for a token to be predicted.
            tokenize_chinese_chars: make each Chinese character a word.
            strip_accents: take accents away; by default where `do_lower_case` is set.
            vocab_file: the older name of `vocab` for a path.
            tokenizer_object: a tokenizer of the `tokenizers` library to take the vocabulary from instead.
            options: as in the base class.

        Raises:
            OptionError: an option is of the wrong type.
            TokenizerError: the vocabulary cannot be read.
        """
        special = {
            **{"pad_token": pad_token, "unk_token": unk_token, "cls_token": cls_token},
            **{"sep_token": sep_token, "mask_token": mask_token},
        }
        check_options(special, type(self).__name__, OptionError)
        for name in PARTS_OF_TEXTS:
            if special[name] is None:
                raise OptionError(f"{type(self).__name__}: {name}: expected a token, got {special[name]!r:.60}")
        unknown = text_of(unk_token)
        if tokenizer_object is not None:
            model = _word_piece_of(tokenizer_object, unknown)
        else:
            found = vocab if vocab is not None else vocab_file
            if found is None:
                words = {text_of(token): index for index, token in enumerate(special.values())}
            else:
                words = read_vocabulary(Path(found)) if isinstance(found, str | os.PathLike) else dict(found)
            model = _word_piece(words, unknown)
        rust = RustTokenizer(model)
        self.do_lower_case = do_lower_case
        self.tokenize_chinese_chars = tokenize_chinese_chars
        self.strip_accents = strip_accents
        settings = {
            "do_lower_case": do_lower_case,
            "tokenize_chinese_chars": tokenize_chinese_chars,
            "strip_accents": strip_accents,
        }
        self._check_settings(settings)
        rust.normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=tokenize_chinese_chars,
            strip_accents=strip_accents,
            lowercase=do_lower_case,
        )
        rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        rust.decoder = decoders.WordPiece(prefix="##")
        super().__init__(tokenizer_object=rust, **settings, **special, **options)

    @classmethod
    def from_files(cls, files: TokenizerFolder) -> Self:
        settings, added = dict(files.settings), files.added
        if files.serialised is not None:
            rust = read_serialised(files.serialised)
            if not files.added_is_all:
                added = {**added, **rust.get_added_tokens_decoder()}
            take_sides(rust, settings)
            source, settings["tokenizer_object"] = files.serialised, rust
        elif files.vocabulary is not None:
            source, settings["vocab"] = files.vocabulary, read_vocabulary(files.vocabulary)
        else:
            raise TokenizerError(f"{files.folder}: {cls.__name__}: expected tokenizer.json or vocab.txt, found neither")
        # One token at a time: the whole vocabulary as a dictionary takes longer than the rest of this.
        words = settings.get("vocab")
        id_of = words.get if words is not None else settings["tokenizer_object"].token_to_id
        beyond = {token.content for token in added.values()}
        for name, usual in zip(PARTS_OF_TEXTS, ("[UNK]", "[CLS]", "[SEP]"), strict=True):
            settings[name] = settings.get(name) or usual
            token = text_of(settings[name])
            if id_of(token) is None and token not in beyond:
                raise TokenizerError(f"{source}: {name}: expected a line {token!r}, found none")
        try:
            tokenizer = cls(added_tokens_decoder=added, **settings)
        except TokenizerError as error:
            raise TokenizerError(f"{source}: {error}") from None
        tokenizer.check_added(files)
        return tokenizer

    def _set_post_processor(self, rust: RustTokenizer) -> None:
        start, end = text_of(self._named["cls_token"]), text_of(self._named["sep_token"])
        try:
            rust.post_processor = processors.TemplateProcessing(
                single=f"{start}:0 $A:0 {end}:0",
                pair=f"{start}:0 $A:0 {end}:0 $B:1 {end}:1",
                special_tokens=[(token, rust.token_to_id(token)) for token in dict.fromkeys((start, end))],
            )
        except (TypeError, ValueError) as error:
            # The library reads this as text, in which white space and a leading "$" mean something.
            raise TokenizerError(f"cls_token {start!r:.60}, sep_token {end!r:.60}: {one_line(error)}") from None

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        for name, value in settings.items():
            if not isinstance(value, bool) and not (name == "strip_accents" and value is None):
                raise OptionError(f"{type(self).__name__}: {name}: expected true or false, got {value!r:.60}")


def _word_piece(words: dict[str, int], unknown: str) -> models.WordPiece:
    try:
        return models.WordPiece(words, unk_token=unknown)
    except Exception as error:
        raise TokenizerError(f"not a readable vocabulary ({one_line(error)})") from None


def _word_piece_of(rust: RustTokenizer, unknown: str) -> models.WordPiece:
    """The vocabulary of a tokenizer, with the settings that BERT's always has."""
    model = rust.model
    if not isinstance(model, models.WordPiece):
        raise TokenizerError(f"expected a WordPiece vocabulary, found {type(model).__name__}")
    model.unk_token = unknown
    model.max_input_chars_per_word = 100
    model.continuing_subword_prefix = "##"
    return model
