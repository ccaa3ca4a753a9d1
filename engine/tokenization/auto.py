"""Choosing a tokenizer's class by the files of a folder."""

from __future__ import annotations

import os
from typing import Any

from ..errors import OptionError, TokenizerError
from ..hub import resolve_folder
from ..tokenizer_files import TokenizerFolder, check_options, read_tokenizer_folder
from .base import NOT_SETTINGS, PreTrainedTokenizerFast
from .bert import BertTokenizer
from .t5 import T5Tokenizer

__all__ = ["AutoTokenizer", "tokenizer_of"]

CLASSES: dict[str, type[PreTrainedTokenizerFast]] = {
    **dict.fromkeys(("BertTokenizer", "MobileBertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"), BertTokenizer),
    **dict.fromkeys(("T5Tokenizer", "MT5Tokenizer"), T5Tokenizer),
}
"""`tokenizer_class` of the settings -> class; any other is taken as its `tokenizer.json` stands."""

CLASSES_OF_MODELS: dict[str, type[PreTrainedTokenizerFast]] = {
    **dict.fromkeys(("bert", "megatron-bert", "mobilebert", "distilbert", "electra"), BertTokenizer),
    **dict.fromkeys(("t5", "mt5"), T5Tokenizer),
}
"""`model_type` of `config.json` -> class, where no tokenizer class is named."""

# Folders of these models name classes that their tokenizer.json does not fit.
AS_SERIALISED = {"modernbert", "modernbert-decoder"}


class AutoTokenizer:
    """`AutoTokenizer.from_pretrained(path)`: the tokenizer of any model folder."""

    def __init__(self) -> None:
        raise OptionError("AutoTokenizer: call AutoTokenizer.from_pretrained(path)")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any
    ) -> PreTrainedTokenizerFast:
        """Load the tokenizer of a model.

        The class is the one that `tokenizer_config.json` names, or else the one of the model's type in `config.json`,
        or else the one that reads the files there are.

        Args:
            pretrained_model_name_or_path: a folder, or an id such as "org/name".
            options: as in the `from_pretrained` of every tokenizer.

        Raises:
            ModelNotFoundError: there is no such folder.
            TokenizerError: it holds no tokenizer, or a file of it cannot be read.
        """
        where = {name: options.pop(name) for name in ("revision", "local_files_only") if name in options}
        folder = resolve_folder(pretrained_model_name_or_path, **where)
        settings = {name: value for name, value in options.items() if name not in NOT_SETTINGS}
        check_options(settings, "AutoTokenizer", OptionError)
        tokenizer = tokenizer_of(read_tokenizer_folder(folder, settings))
        tokenizer.name_or_path = os.fspath(pretrained_model_name_or_path)
        return tokenizer


def tokenizer_of(files: TokenizerFolder) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder that was read.

    Raises:
        TokenizerError: it holds no tokenizer, or a file of it cannot be read.
    """
    return _class_of(files).from_files(files)


def _class_of(files: TokenizerFolder) -> type[PreTrainedTokenizerFast]:
    if files.declared is not None:
        found = CLASSES.get(files.declared, PreTrainedTokenizerFast)
    else:
        found = CLASSES_OF_MODELS.get(files.model_type or "", PreTrainedTokenizerFast)
    if files.serialised is not None:
        return PreTrainedTokenizerFast if files.model_type in AS_SERIALISED else found
    if files.vocabulary is not None and not (found is T5Tokenizer and files.sentencepiece is not None):
        return BertTokenizer
    if files.sentencepiece is not None:
        return T5Tokenizer
    raise TokenizerError(
        f"{files.folder}: holds no tokenizer; expected tokenizer.json, vocab.txt or a sentencepiece .model"
    )
