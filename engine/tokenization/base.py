"""The tokenizer that users call: texts in, `input_ids` and their masks out, and back again."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from tokenizers import AddedToken, Encoding
from tokenizers import Tokenizer as RustTokenizer

from ..errors import OptionError, TokenizerError
from ..hub import resolve_folder
from ..tokenizer_files import (
    NAMED_TOKENS,
    TokenizerFolder,
    check_options,
    read_serialised,
    read_tokenizer_folder,
)
from .backend import Backend, add_tokens, alike
from .collate import pad_encoded
from .decoding import Decoding
from .encoding import BatchEncoding
from .lengths import lengths_of_call, pad_encodings
from .rows import columns_of, rows_of, run
from .saving import save_tokenizer
from .special_tokens import text_of

__all__ = ["NOT_SETTINGS", "PreTrainedTokenizerFast", "take_sides"]

NO_LIMIT = int(1e30)
"""`model_max_length` of a tokenizer that has none; transformers' own number."""

# Arguments of from_pretrained that say how files are fetched, or are about code that is never run here.
NOT_SETTINGS = {
    *(
        "cache_dir",
        "force_download",
        "proxies",
        "token",
        "subfolder",
        "trust_remote_code",
        "use_fast",
        "resume_download",
    ),
    *("code_revision", "tokenizer_type", "config", "device_map", "dtype", "torch_dtype", "_from_auto"),
}

logger = logging.getLogger(__name__)


class PreTrainedTokenizerFast(Decoding):
    """A tokenizer read from `tokenizer.json`; the base of the others. Safe to use from several threads at once.

    Attributes:
        model_input_names: the entries that calls return unless told otherwise.
        model_max_length: tokens that the model takes; 10**30 where it is not known.
        padding_side, truncation_side: "right" or "left".
        name_or_path: what it was loaded from.
        init_kwargs: the settings it was made with, which `save_pretrained` writes.
    """

    model_input_names: list[str] = ["input_ids", "attention_mask"]  # noqa: RUF012  users set it on instances
    saved_class: ClassVar[str] = "PreTrainedTokenizerFast"
    is_fast = True

    def __init__(
        self,
        *,
        tokenizer_object: RustTokenizer | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        added_tokens_decoder: dict[int, AddedToken] | None = None,
        **options: Any,
    ) -> None:
        """Make a tokenizer.

        Args:
            tokenizer_object: a tokenizer of the `tokenizers` library; it is copied.
            tokenizer_file: a `tokenizer.json`, where there is no `tokenizer_object`.
            added_tokens_decoder: id -> token beyond the vocabulary.
            options: special tokens (`cls_token` and so on, `extra_special_tokens`), `model_max_length`,
                `padding_side`, `truncation_side`, `model_input_names`, `clean_up_tokenization_spaces`,
                `split_special_tokens`; others are kept in `init_kwargs`.

        Raises:
            OptionError: an option is of the wrong type, or there is nothing to make a tokenizer from.
            TokenizerError: `tokenizer_file` cannot be read.
        """
        if tokenizer_object is None and tokenizer_file is None:
            raise OptionError(
                f"{type(self).__name__}: expected tokenizer_object or tokenizer_file, or use from_pretrained"
            )
        rust = alike(tokenizer_object) if tokenizer_object is not None else read_serialised(Path(tokenizer_file or ""))
        take_sides(tokenizer_object if tokenizer_object is not None else rust, options)
        if "additional_special_tokens" in options:
            options.setdefault("extra_special_tokens", options.pop("additional_special_tokens"))
        check_options(options, type(self).__name__, OptionError)
        self.name_or_path = str(options.pop("name_or_path", ""))
        self.init_kwargs = dict(options)
        self._named = {name: options[name] for name in NAMED_TOKENS if options.get(name) is not None}
        extra = options.get("extra_special_tokens") or []
        self._extra = list(extra.values() if isinstance(extra, dict) else extra)
        limit = options.get("model_max_length", options.get("max_len"))
        self.model_max_length = NO_LIMIT if limit is None else limit
        self.padding_side: str = options.get("padding_side", "right")
        self.truncation_side: str = options.get("truncation_side", "right")
        self.model_input_names = list(options.get("model_input_names", type(self).model_input_names))
        self.clean_up_tokenization_spaces: bool = options.get("clean_up_tokenization_spaces", False)
        self.split_special_tokens: bool = options.get("split_special_tokens", False)
        self._warned = False
        self._add_missing(rust, added_tokens_decoder or {})
        self._set_post_processor(rust)
        self._backend = Backend(rust)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any) -> Self:
        """Load the tokenizer of a model.

        Args:
            pretrained_model_name_or_path: a folder, or an id such as "org/name".
            options: `revision` and `local_files_only`, as in every `from_pretrained`; settings that win over those of
                the folder. No code of the folder is ever run.

        Raises:
            ModelNotFoundError: there is no such folder.
            TokenizerError: it holds no tokenizer of this class, or a file of it cannot be read.
        """
        where = {name: options.pop(name) for name in ("revision", "local_files_only") if name in options}
        folder = resolve_folder(pretrained_model_name_or_path, **where)
        settings = {name: value for name, value in options.items() if name not in NOT_SETTINGS}
        check_options(settings, cls.__name__, OptionError)
        tokenizer = cls.from_files(read_tokenizer_folder(folder, settings))
        tokenizer.name_or_path = os.fspath(pretrained_model_name_or_path)
        return tokenizer

    @classmethod
    def from_files(cls, files: TokenizerFolder) -> Self:
        """Make the tokenizer of a folder that was read.

        Raises:
            TokenizerError: the folder holds no tokenizer of this class, or a file cannot be read.
        """
        if files.serialised is None:
            raise TokenizerError(f"{files.folder}: {cls.__name__}: expected tokenizer.json, found none")
        tokenizer = cls(tokenizer_file=files.serialised, added_tokens_decoder=files.added, **files.settings)
        tokenizer.check_added(files)
        return tokenizer

    def check_added(self, files: TokenizerFolder) -> None:
        """Refuse added tokens that did not get the ids the folder gives them.

        Raises:
            TokenizerError: naming the file, the token and both ids.
        """
        for index, token in (files.added or {}).items():
            found = self._backend.rust.token_to_id(token.content)
            if found != index:
                raise TokenizerError(
                    f"{files.added_source}: added token {token.content!r}: expected id {index}, got {found}"
                )

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        split_special_tokens: bool | None = None,
    ) -> BatchEncoding:
        """Tokenise a text, a pair, a list of texts, or a list of pairs.

        Args:
            text: a str, or a list of str or of pairs of str; with `is_split_into_words`, lists of words instead of str.
            text_pair: the second texts: a str where `text` is one, else a list as long.
            text_target: texts whose ids are returned as `labels`, or alone where there is no `text`.
            text_pair_target: their second texts.
            add_special_tokens: put `[CLS]`, `</s>` and the like where the model expects them.
            padding: True or "longest" fills rows up to the longest, "max_length" to `max_length`.
            truncation: True or "longest_first" takes tokens from the longer text of a pair until `max_length` is kept,
                "only_first" and "only_second" from that text only.
            max_length: tokens of a row; by default `model_max_length`, where padding or truncation needs it.
            stride: with `return_overflowing_tokens`, tokens that each piece repeats of the one before.
            is_split_into_words: texts are lists of words.
            pad_to_multiple_of: rows are filled up to a multiple of it.
            padding_side: "right" or "left"; by default the tokenizer's own.
            return_tensors: "pt" for torch tensors, "np" for numpy arrays, None for lists.
            return_token_type_ids, return_attention_mask: by default as in `model_input_names`.
            return_overflowing_tokens: the rest of a text that is too long becomes further rows;
                `overflow_to_sample_mapping` says of which text each row is.
            return_special_tokens_mask: 1 for special tokens and padding.
            return_offsets_mapping: start and end of each token in its text, in characters.
            return_length: tokens of each row, padding included.
            verbose: say in the log, once, that a text is longer than `model_max_length`.
            split_special_tokens: take special tokens that stand in a text for plain text.

        Returns:
            int64 entries `[rows, tokens]`; flat lists for one text without `return_tensors`. A single text with
            `return_tensors` is one row.

        Raises:
            InputError: a row is no text, texts and pairs differ in number, a text cannot be truncated as asked, or rows
                of different lengths make no tensor.
            OptionError: an argument is out of range.
        """
        if text is None and text_target is None:
            raise OptionError(f"{type(self).__name__}: expected text or text_target, got neither")
        answers = [
            self._encode(
                first,
                second,
                add_special_tokens=add_special_tokens,
                padding=padding,
                truncation=truncation,
                max_length=max_length,
                stride=stride,
                is_split_into_words=is_split_into_words,
                pad_to_multiple_of=pad_to_multiple_of,
                padding_side=padding_side,
                return_tensors=return_tensors,
                return_token_type_ids=return_token_type_ids,
                return_attention_mask=return_attention_mask,
                return_overflowing_tokens=return_overflowing_tokens,
                return_special_tokens_mask=return_special_tokens_mask,
                return_offsets_mapping=return_offsets_mapping,
                return_length=return_length,
                verbose=verbose,
                split_special_tokens=split_special_tokens,
            )
            for first, second in ((text, text_pair), (text_target, text_pair_target))
            if first is not None
        ]
        if len(answers) == 2:
            answers[0]["labels"] = answers[1]["input_ids"]
        return answers[0]

    def encode(self, text: Any, text_pair: Any = None, add_special_tokens: bool = True, **options: Any) -> Any:
        """The `input_ids` of a call with the same arguments: a list, or what `return_tensors` asks for."""
        return self(text, text_pair, add_special_tokens=add_special_tokens, **options)["input_ids"]

    def encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> BatchEncoding:
        """The older name of a call with one text or pair."""
        return self(text, text_pair, **options)

    def batch_encode_plus(self, batch_text_or_text_pairs: Sequence[Any], **options: Any) -> BatchEncoding:
        """The older name of a call with a list."""
        return self(list(batch_text_or_text_pairs), **options)

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **options: Any
    ) -> list[str]:
        """The tokens of a text, or of a pair, as spelled in the vocabulary."""
        return self(text, pair, add_special_tokens=add_special_tokens, **options).tokens()

    def _encode(
        self,
        text: Any,
        text_pair: Any,
        *,
        return_tensors: str | None,
        return_overflowing_tokens: bool,
        add_special_tokens: bool,
        is_split_into_words: bool,
        split_special_tokens: bool | None,
        verbose: bool,
        padding: bool | str,
        truncation: bool | str | None,
        max_length: int | None,
        stride: int,
        pad_to_multiple_of: int | None,
        padding_side: str | None,
        **returned: bool | None,
    ) -> BatchEncoding:
        rows, batched = rows_of(text, text_pair, is_split_into_words)
        backend = self._backend
        lengths = lengths_of_call(
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side or self.padding_side,
            truncation_side=self.truncation_side,
            model_max_length=self.model_max_length,
            pad_token=self.pad_token,
            pad_token_id=self.pad_token_id,
        )
        encodings = run(
            backend,
            rows,
            truncation=lengths.truncation,
            split_into_words=is_split_into_words,
            split_special_tokens=self.split_special_tokens if split_special_tokens is None else split_special_tokens,
            add_special_tokens=add_special_tokens,
        )
        if lengths.padding is not None:
            pad_encodings(encodings, lengths.padding)
        wanted = {name.removeprefix("return_"): value for name, value in returned.items()}
        for name in ("token_type_ids", "attention_mask"):
            wanted[name] = name in self.model_input_names if wanted[name] is None else wanted[name]
        columns, pieces = columns_of(encodings, wanted, overflowing=return_overflowing_tokens)
        if verbose and lengths.max_length is None:
            self._warn_of_long_rows(pieces)
        if not batched and return_tensors is None and not return_overflowing_tokens:
            columns = {name: values[0] if isinstance(values[0], list) else values for name, values in columns.items()}
        return BatchEncoding(columns, pieces, tensor_type=return_tensors)

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Fill up encodings that were made before, such as the rows that a data loader collects.

        Args:
            encoded_inputs: one encoding, or several as a list of encodings or as one with lists of rows.
            padding, max_length, pad_to_multiple_of, padding_side, return_tensors: as in a call.
            return_attention_mask: add and fill up the mask; by default as in `model_input_names`.
            verbose: has no effect; it is there for calls written for transformers.

        Returns:
            Lists, or what `return_tensors` asks for; by default tensors where tensors came in.

        Raises:
            InputError: there are no `input_ids`, or columns differ in their number of rows.
            OptionError: an argument is out of range.
        """
        lengths = lengths_of_call(
            padding=padding,
            truncation=False,
            max_length=max_length,
            stride=0,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side or self.padding_side,
            truncation_side=self.truncation_side,
            model_max_length=self.model_max_length,
            pad_token=self.pad_token,
            pad_token_id=self.pad_token_id,
        )
        name = self.model_input_names[0]
        mask = "attention_mask" in self.model_input_names if return_attention_mask is None else return_attention_mask
        return pad_encoded(encoded_inputs, name, lengths.padding, mask=mask, tensor_type=return_tensors)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **_: Any) -> tuple[str, ...]:
        """Write `tokenizer.json` and `tokenizer_config.json`, which transformers reads too.

        Returns:
            The paths written.

        Raises:
            OptionError: the folder cannot be made or written to.
        """
        settings = {
            **self.init_kwargs,
            **{
                name: getattr(self, name)
                for name in self.init_kwargs
                if not name.startswith("_") and hasattr(self, name)
            },
            **dict.fromkeys(NAMED_TOKENS),
            **self.special_tokens_map,
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            "extra_special_tokens": self.extra_special_tokens,
            "tokenizer_class": self.saved_class,
        }
        return save_tokenizer(Path(save_directory), self._backend.rust, settings)

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary, without those that were added."""
        return self._backend.rust.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self._backend.rust.get_vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        return True

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, added tokens included."""
        return self._backend.rust.get_vocab(with_added_tokens=True)

    @property
    def vocab(self) -> dict[str, int]:
        """The same as `get_vocab()`."""
        return self.get_vocab()

    @property
    def backend_tokenizer(self) -> RustTokenizer:
        """A tokenizer of the `tokenizers` library that does the same; settings changed on it do not come back here."""
        return alike(self._backend.rust)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Special tokens that a text, or a pair, is given."""
        return self._backend.rust.num_special_tokens_to_add(pair)

    @property
    def max_len_single_sentence(self) -> int:
        """Tokens of a text that `model_max_length` leaves room for."""
        return int(self.model_max_length) - self.num_special_tokens_to_add(False)

    @property
    def max_len_sentences_pair(self) -> int:
        """Tokens of both texts of a pair that `model_max_length` leaves room for."""
        return int(self.model_max_length) - self.num_special_tokens_to_add(True)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, vocab_size={self.vocab_size}, "
            f"model_max_length={self.model_max_length}, padding_side={self.padding_side!r}, "
            f"truncation_side={self.truncation_side!r}, special_tokens={self.special_tokens_map})"
        )

    def _set_post_processor(self, rust: RustTokenizer) -> None:
        """Hook for classes that put special tokens around a text whatever the file says."""

    def _add_missing(self, rust: RustTokenizer, decoder: dict[int, AddedToken]) -> None:
        """Add the tokens of `decoder` by id, then the special tokens that are not among the added ones."""
        known = set(rust.get_added_tokens_decoder().values())
        present = {token.content for token in known}
        named = {text_of(token) for token in self._named.values()}
        adding: dict[str, AddedToken] = {}
        for _, token in sorted(decoder.items()):
            if repr(token) not in {repr(other) for other in known}:
                adding[token.content] = token
        for token in (*self._named.values(), *self._extra):
            if text_of(token) not in present and text_of(token) not in adding:
                adding[text_of(token)] = AddedToken(token, special=True) if isinstance(token, str) else token
        for content in adding.keys() & named:
            adding[content].special = True
        add_tokens(rust, list(adding.values()))

    def _warn_of_long_rows(self, encodings: Sequence[Encoding]) -> None:
        longest = max((len(encoding) for encoding in encodings), default=0)
        if longest > self.model_max_length > 0 and not self._warned:
            self._warned = True
            logger.warning("a text has %d tokens, but the model takes %d", longest, self.model_max_length)


def take_sides(rust: RustTokenizer, settings: dict[str, Any]) -> None:
    """Where settings say nothing of padding and truncation, let those saved inside `rust` count."""
    if rust.truncation is not None:
        settings.setdefault("truncation_side", rust.truncation["direction"])
    if rust.padding is not None:
        settings.setdefault("padding_side", rust.padding["direction"])
        settings.setdefault("pad_token", rust.padding["pad_token"])
