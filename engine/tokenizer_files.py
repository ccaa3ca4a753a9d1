"""The tokenizer files of a model folder: `tokenizer.json`, or else `vocab.txt`, read as transformers reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from .config import CONFIG_NAME, read_json
from .errors import ConfigError, TokenizerError

__all__ = ["TokenizerFiles", "read_tokenizer"]

# For these transformers takes casing, accents and Chinese characters from tokenizer_config.json, whatever
# tokenizer.json says.
BERT_TOKENIZERS = {"BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer"}
BERT_MODEL_TYPES = {"bert", "megatron-bert", "mobilebert", "distilbert", "electra"}


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer as read from a folder.

    Attributes:
        rust: the tokenizer.
        source: the file that holds its vocabulary.
        cut_from_left: texts that are too long lose their beginning instead of their end.
    """

    rust: Tokenizer
    source: Path
    cut_from_left: bool


def read_tokenizer(folder: Path, *, lowercase: bool = False) -> TokenizerFiles:
    """Read the tokenizer of a model folder.

    Args:
        folder: the model folder.
        lowercase: lower-case texts before the tokenizer's own normalisation.

    Raises:
        TokenizerError: there is no tokenizer, or a file of it cannot be read.
    """
    settings = _optional_json(folder / "tokenizer_config.json")
    source = folder / "tokenizer.json"
    if source.exists():
        rust = _read_serialised(source)
        if isinstance(rust.normalizer, normalizers.BertNormalizer) and _is_bert(settings, folder):
            rust.normalizer = _bert_normalizer(settings, folder)
    elif (source := folder / "vocab.txt").exists():
        rust = _read_vocabulary(source, settings)
    else:
        raise TokenizerError(f"{folder}: holds no tokenizer; expected tokenizer.json or vocab.txt")
    if lowercase and not _lowercases(rust.normalizer):
        own = [] if rust.normalizer is None else [rust.normalizer]
        rust.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    return TokenizerFiles(rust, source, settings.get("truncation_side", "right") == "left")


def _read_serialised(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        # The library raises plain Exception, with the parser's message.
        raise TokenizerError(f"{path}: not a readable tokenizer ({_one_line(error)})") from None


def _read_vocabulary(path: Path, settings: dict[str, Any]) -> Tokenizer:
    folder = path.parent
    names = {**_optional_json(folder / "special_tokens_map.json"), **settings}
    special = {
        kind: _content(names.get(kind), default)
        for kind, default in (
            ("unk_token", "[UNK]"),
            ("cls_token", "[CLS]"),
            ("sep_token", "[SEP]"),
            ("pad_token", "[PAD]"),
            ("mask_token", "[MASK]"),
        )
    }
    try:
        rust = Tokenizer(WordPiece.from_file(str(path), unk_token=special["unk_token"]))
    except Exception as error:
        raise TokenizerError(f"{path}: not a readable vocabulary ({_one_line(error)})") from None
    for kind in ("unk_token", "cls_token", "sep_token"):
        if rust.token_to_id(special[kind]) is None:
            raise TokenizerError(f"{path}: {kind}: expected a line {special[kind]!r}, found none")
    rust.normalizer = _bert_normalizer(settings, folder)
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.add_special_tokens([token for token in special.values() if rust.token_to_id(token) is not None])
    _add_tokens(rust, settings, folder)
    start, end = special["cls_token"], special["sep_token"]
    rust.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} $B:1 {end}:1",
        special_tokens=[(token, rust.token_to_id(token)) for token in (start, end)],
    )
    return rust


def _add_tokens(rust: Tokenizer, settings: dict[str, Any], folder: Path) -> None:
    """Tokens beyond the vocabulary: `added_tokens_decoder` of the settings, or `added_tokens.json` in older folders."""
    decoder = settings.get("added_tokens_decoder")
    source = folder / ("tokenizer_config.json" if decoder else "added_tokens.json")
    try:
        if decoder:
            tokens = {int(index): AddedToken(**_flags(entry)) for index, entry in decoder.items()}
        else:
            tokens = {int(index): AddedToken(content) for content, index in _optional_json(source).items()}
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise TokenizerError(f"{source}: added tokens cannot be read ({_one_line(error)})") from None
    for index in sorted(tokens):
        token = tokens[index]
        (rust.add_special_tokens if token.special else rust.add_tokens)([token])
        found = rust.token_to_id(token.content)
        if found != index:
            raise TokenizerError(f"{source}: added token {token.content!r}: expected id {index}, got {found}")


def _flags(entry: dict[str, Any]) -> dict[str, Any]:
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return {"content": entry["content"], **{name: entry[name] for name in names if name in entry}}


def _is_bert(settings: dict[str, Any], folder: Path) -> bool:
    name = settings.get("tokenizer_class")
    if isinstance(name, str):
        return name.removesuffix("Fast") in BERT_TOKENIZERS
    return _optional_json(folder / CONFIG_NAME).get("model_type") in BERT_MODEL_TYPES


def _bert_normalizer(settings: dict[str, Any], folder: Path) -> normalizers.BertNormalizer:
    def setting(key: str, default: bool | None) -> bool | None:
        value = settings.get(key, default)
        if value is not default and not isinstance(value, bool):
            path = folder / "tokenizer_config.json"
            raise TokenizerError(f"{path}: {key}: expected true or false, got {value!r:.60}")
        return value

    return normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(setting("tokenize_chinese_chars", True)),
        strip_accents=setting("strip_accents", None),
        lowercase=bool(setting("do_lower_case", True)),
    )


def _lowercases(normalizer: object) -> bool:
    """Whether a Lowercase step is there already; BertNormalizer's own does not count, as in sentence-transformers."""
    if isinstance(normalizer, normalizers.Sequence):
        return any(isinstance(step, normalizers.Lowercase) for step in normalizer)
    return isinstance(normalizer, normalizers.Lowercase)


def _content(token: Any, default: str) -> str:
    """A special token's text; older files hold an object with its flags."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else default


def _optional_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return read_json(path, what="tokenizer settings")
    except ConfigError as error:
        raise TokenizerError(str(error)) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
