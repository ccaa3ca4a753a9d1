"""Writing a tokenizer as two files that transformers reads too."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer

from ..errors import OptionError
from ..tokenizer_files import SERIALISED_NAME, SETTINGS_NAME
from .special_tokens import text_of

__all__ = ["save_tokenizer"]


def save_tokenizer(folder: Path, rust: RustTokenizer, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Write `tokenizer.json` and `tokenizer_config.json` into `folder`, which is made where it is missing.

    Each file appears whole or not at all.

    Returns:
        The paths written.

    Raises:
        OptionError: the folder cannot be made or written to.
    """
    texts = {SETTINGS_NAME: _json(settings), SERIALISED_NAME: rust.to_str(pretty=True)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            unfinished = folder / f".{name}.{os.getpid()}"
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(folder / name)
    except (OSError, UnicodeEncodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"{folder}: the tokenizer cannot be saved ({reason})") from None
    return tuple(str(folder / name) for name in texts)


def _json(settings: Mapping[str, Any]) -> str:
    kept = {name: value for name, value in settings.items() if value is not None}
    return json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, AddedToken):
        return text_of(value)
    raise OptionError(f"save_pretrained: expected settings that JSON can hold, got {value!r:.60}")
