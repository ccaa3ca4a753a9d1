"""The tokenizer files of a model folder, read as transformers reads them: settings, added tokens, and where the
vocabulary is. Nothing is built here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from .config import CONFIG_NAME, read_json
from .errors import ConfigError, OptionError, TokenizerError

__all__ = [
    "NAMED_TOKENS",
    "SERIALISED_NAME",
    "SETTINGS_NAME",
    "TokenizerFolder",
    "check_options",
    "is_of_library",
    "one_line",
    "read_serialised",
    "read_tokenizer_folder",
    "read_vocabulary",
]

SETTINGS_NAME = "tokenizer_config.json"
SERIALISED_NAME = "tokenizer.json"
VOCABULARY_NAME = "vocab.txt"
SENTENCEPIECE_NAMES = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "spm.model")

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens that have a name, in transformers' order."""

# Where other files are is decided by their names in the folder: a path written into a settings file may lead anywhere.
IGNORED_SETTINGS = {
    *("tokenizer_class", "auto_map", "init_inputs", "name_or_path", "special_tokens_map_file", "tokenizer_file"),
    *(
        "vocab",
        "tokenizer_object",
        "vocab_file",
        "added_tokens_file",
        "processor_class",
        "backend",
        "is_local",
        "local_files_only",
        "files_loaded",
    ),
}

SWITCHES = ("do_lower_case", "tokenize_chinese_chars", "clean_up_tokenization_spaces", "split_special_tokens")
SIDES = ("padding_side", "truncation_side")
MOST_EXTRA_IDS = 100_000


@dataclass(frozen=True)
class TokenizerFolder:
    """The tokenizer files of a folder.

    Attributes:
        folder: the model folder.
        settings: constructor options, special tokens included, from all settings files and the caller's own.
        declared: the tokenizer class that the folder names, without "Fast"; None where it names none.
        model_type: of `config.json`; None where there is none.
        added: id -> token beyond the vocabulary's own.
        added_is_all: whether the added tokens of `tokenizer.json` do not count beside `added`.
        serialised: `tokenizer.json`, where there is one.
        vocabulary: `vocab.txt`, where there is one.
        sentencepiece: the sentencepiece model, where there is one.
    """

    folder: Path
    settings: dict[str, Any]
    declared: str | None
    model_type: str | None
    added: dict[int, AddedToken]
    added_is_all: bool
    serialised: Path | None
    vocabulary: Path | None
    sentencepiece: Path | None

    @property
    def added_source(self) -> Path:
        """The file that `added` is from, for messages."""
        settings = self.folder / SETTINGS_NAME
        decoder = _optional_json(settings).get("added_tokens_decoder")
        return settings if decoder is not None else self.folder / "added_tokens.json"


def read_tokenizer_folder(folder: Path, options: Mapping[str, Any] | None = None) -> TokenizerFolder:
    """Read the small tokenizer files of a model folder, and find the large ones.

    Args:
        folder: the model folder.
        options: the caller's own settings, which win over those of the files.

    Raises:
        TokenizerError: there is no vocabulary in the folder, or a settings file cannot be read.
    """
    options = dict(options or {})
    path = folder / SETTINGS_NAME
    raw = _optional_json(path)
    check_options(raw, str(path), TokenizerError)
    settings = {name: value for name, value in raw.items() if name not in IGNORED_SETTINGS} | options
    if "additional_special_tokens" in settings and not settings.get("extra_special_tokens"):
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
    serialised = _existing(folder / SERIALISED_NAME)
    decoder = settings.pop("added_tokens_decoder", None)
    if decoder is not None:
        added = _added_tokens(decoder, path)
    else:
        named = _optional_json(folder / "special_tokens_map.json")
        check_options(named, str(folder / "special_tokens_map.json"), TokenizerError)
        settings |= {name: value for name, value in named.items() if not options.get(name)}
        added = _older_added_tokens(folder / "added_tokens.json", settings)
        if (older := settings.pop("additional_special_tokens", None)) is not None:
            settings.setdefault("extra_special_tokens", older)
    return TokenizerFolder(
        folder=folder,
        settings={name: _token_of_object(value) for name, value in settings.items()},
        declared=_name(raw.get("tokenizer_class")),
        model_type=_name(_optional_json(folder / CONFIG_NAME).get("model_type")),
        added=added,
        added_is_all=decoder is not None,
        serialised=serialised,
        vocabulary=_existing(folder / VOCABULARY_NAME),
        sentencepiece=_sentencepiece(folder),
    )


def read_serialised(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`.

    Raises:
        TokenizerError: naming the file, with the parser's message.
    """
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        # The library raises plain Exception, with the parser's message.
        raise TokenizerError(f"{path}: not a readable tokenizer ({one_line(error)})") from None


def read_vocabulary(path: Path) -> dict[str, int]:
    """Read a `vocab.txt`: one token a line, its id the number of the line.

    Raises:
        TokenizerError: the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            return {line.rstrip("\n"): index for index, line in enumerate(lines)}
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path}: not a readable vocabulary ({one_line(error)})") from None


def check_options(options: Mapping[str, Any], where: str, error: type[TokenizerError] | type[OptionError]) -> None:
    """Check the types of tokenizer options that are known here.

    Args:
        options: from a file or a caller.
        where: begins the message: a file, or the class that is being built.
        error: raised for the first option that is wrong.
    """

    def refuse(name: str, expected: str) -> None:
        raise error(f"{where}: {name}: expected {expected}, got {options[name]!r:.60}")

    for name in set(SWITCHES) & options.keys():
        if not isinstance(options[name], bool):
            refuse(name, "true or false")
    for name in set(SIDES) & options.keys():
        if options[name] not in ("left", "right"):
            refuse(name, "'left' or 'right'")
    for name in set(NAMED_TOKENS) & options.keys():
        if options[name] is not None and not _is_token(options[name]):
            refuse(name, "a token")
    if not isinstance(options.get("strip_accents"), bool | None):
        refuse("strip_accents", "true or false")
    for name in {"model_max_length", "max_len"} & options.keys():
        longest = options[name]
        number = isinstance(longest, int | float) and not isinstance(longest, bool) and math.isfinite(longest)
        if longest is not None and not (number and longest >= 0):
            refuse(name, "a number of tokens")
    extra = options.get("extra_ids", 0)
    if not isinstance(extra, int) or isinstance(extra, bool) or not 0 <= extra <= MOST_EXTRA_IDS:
        refuse("extra_ids", f"0 to {MOST_EXTRA_IDS:,}")
    inputs = options.get("model_input_names", [])
    if not isinstance(inputs, list | tuple) or not all(isinstance(name, str) for name in inputs):
        refuse("model_input_names", "a list of names")
    for name in {"extra_special_tokens", "additional_special_tokens"} & options.keys():
        tokens = options[name]
        entries = [] if tokens is None else list(tokens.values()) if isinstance(tokens, dict) else tokens
        if not isinstance(entries, list | tuple) or not all(map(_is_token, entries)):
            refuse(name, "a list of tokens")


def is_of_library(error: BaseException) -> bool:
    """Whether this is a failure of the `tokenizers` library, whose panics are not even an Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def one_line(error: BaseException) -> str:
    """The message of an error of the library, fit for one line."""
    return " ".join(str(error).split())[:200]


def _added_tokens(decoder: Any, path: Path) -> dict[int, AddedToken]:
    try:
        return {
            int(index): token if isinstance(token, AddedToken) else AddedToken(**_flags(token))
            for index, token in decoder.items()
        }
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise TokenizerError(f"{path}: added tokens cannot be read ({one_line(error)})") from None


def _older_added_tokens(path: Path, settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    special = {_text(settings[name]) for name in NAMED_TOKENS if settings.get(name)}
    special.update(_text(token) for token in settings.get("extra_special_tokens") or ())
    found = {}
    for content, index in _optional_json(path).items():
        if not isinstance(index, int) or isinstance(index, bool):
            raise TokenizerError(f"{path}: {content!r:.60}: expected an id, got {index!r:.60}")
        found[index] = AddedToken(content, normalized=content not in special, special=content in special)
    return found


def _flags(entry: Mapping[str, Any]) -> dict[str, Any]:
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return {"content": entry["content"], **{name: entry[name] for name in names if name in entry}}


def _is_token(value: Any) -> bool:
    """Whether this is a token that the library takes: it refuses lone surrogates."""
    content = value.get("content") if isinstance(value, dict) else getattr(value, "content", value)
    if not isinstance(content, str):
        return False
    try:
        content.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_token_object(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("content"), str)


def _token_of_object(value: Any) -> Any:
    """Older folders write tokens as objects with their flags."""
    if _is_token_object(value):
        return AddedToken(**{**_flags(value), "special": True})
    if isinstance(value, list):
        return [_token_of_object(item) for item in value]
    if isinstance(value, dict):
        return {name: _token_of_object(item) for name, item in value.items()}
    return value


def _text(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else str(getattr(token, "content", token))


def _name(value: Any) -> str | None:
    return value.removesuffix("Fast") if isinstance(value, str) and value else None


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None


def _sentencepiece(folder: Path) -> Path | None:
    known = [folder / name for name in SENTENCEPIECE_NAMES if (folder / name).is_file()]
    found = known or sorted(path for path in folder.glob("*.model") if path.is_file())
    return found[0] if found else None


def _optional_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = read_json(path, what="tokenizer settings")
        json.dumps(found, ensure_ascii=False).encode()
    except ConfigError as error:
        raise TokenizerError(str(error)) from None
    except UnicodeEncodeError:
        raise TokenizerError(f"{path}: holds a lone surrogate, which no text can") from None
    return found
