"""A WordPiece vocabulary beside a converted model: a checkpoint of Megatron-LM does not hold its own."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import TokenizerError
from ..tokenizer import Tokenizer, check_vocabulary
from ..tokenizer_files import SETTINGS_NAME, VOCABULARY_NAME, read_vocabulary
from ..weights.files import open_file

__all__ = ["place_vocabulary"]

LARGEST_VOCABULARY = 100 * 2**20
"""Bytes; those of BERT have 0.2 million."""


def place_vocabulary(source: Path, folder: Path, *, rows: int, longest: int) -> None:
    """Copy a vocabulary into a model folder as `vocab.txt`, with settings that make a BERT tokenizer of it.

    It lower-cases where no token of the vocabulary has a capital letter, tokens in brackets such as [CLS] aside.

    Args:
        source: one token a line.
        folder: of the model.
        rows: of its embedding table, which must be enough for the tokens.
        longest: tokens of a text that the model takes.

    Raises:
        TokenizerError: the file is no such vocabulary, or has more tokens than the model.
        WeightsError: it cannot be opened.
    """
    with open_file(source) as stream:
        content = stream.read(LARGEST_VOCABULARY + 1)
    if len(content) > LARGEST_VOCABULARY:
        raise TokenizerError(f"{source}: more than {LARGEST_VOCABULARY:,} bytes, expected a vocabulary")
    (folder / VOCABULARY_NAME).write_bytes(content)
    tokens = read_vocabulary(folder / VOCABULARY_NAME) if _is_text(content) else {}
    absent = [token for token in ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]") if token not in tokens]
    if absent:
        raise TokenizerError(f"{source}: no {', '.join(absent)} in it, expected a vocabulary of BERT, one token a line")
    plain = (token for token in tokens if not (token.startswith("[") and token.endswith("]")))
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": not any(token != token.lower() for token in plain),
        "model_max_length": longest,
    }
    (folder / SETTINGS_NAME).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    check_vocabulary(Tokenizer.from_folder(folder), rows, source)


def _is_text(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
