"""Making, loading and saving a tokenizer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, Self

from tokenizers import AddedToken
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
from .calling import Calling
from .charsmap import character_maps, check_character_map
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


class PreTrainedTokenizerFast(Calling):
    """A tokenizer read from `tokenizer.json`; the base of the others. Safe to use from several threads at once.

    Attributes:
        name_or_path: what it was loaded from.
        init_kwargs: the settings it was made with, which `save_pretrained` writes.
    """

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
        rust = read_serialised(files.serialised)
        try:
            for data in character_maps(rust):
                check_character_map(data)
        except ValueError as error:
            raise TokenizerError(f"{files.serialised}: {error}") from None
        tokenizer = cls(tokenizer_object=rust, added_tokens_decoder=files.added, **files.settings)
        tokenizer.check_added(files)
        return tokenizer

    def check_added(self, files: TokenizerFolder) -> None:
        """Refuse added tokens that did not get the ids the folder gives them.

        Raises:
            TokenizerError: naming the file, the token and both ids.
        """
        for index, token in files.added.items():
            found = self._backend.rust.token_to_id(token.content)
            if found != index:
                raise TokenizerError(
                    f"{files.added_source}: added token {token.content!r}: expected id {index}, got {found}"
                )

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
        known = list(rust.get_added_tokens_decoder().values())
        present, as_they_are = {token.content for token in known}, {repr(token) for token in known}
        named = {text_of(token) for token in self._named.values()}
        adding: dict[str, AddedToken] = {}
        for _, token in sorted(decoder.items()):
            if repr(token) not in as_they_are:
                adding[token.content] = token
        for token in (*self._named.values(), *self._extra):
            if text_of(token) not in present and text_of(token) not in adding:
                adding[text_of(token)] = AddedToken(token, special=True) if isinstance(token, str) else token
        for content in adding.keys() & named:
            adding[content].special = True
        add_tokens(rust, list(adding.values()))


def take_sides(rust: RustTokenizer, settings: dict[str, Any]) -> None:
    """Where settings say nothing of padding and truncation, let those saved inside `rust` count."""
    if rust.truncation is not None:
        settings.setdefault("truncation_side", rust.truncation["direction"])
    if rust.padding is not None:
        settings.setdefault("padding_side", rust.padding["direction"])
        settings.setdefault("pad_token", rust.padding["pad_token"])
