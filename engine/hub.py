"""Where a model's folder is: a path, or an `org/name` under `$PADLESS_MODELS`. Nothing is ever downloaded here."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .errors import ModelNotFoundError

__all__ = ["MODELS_VARIABLE", "resolve_folder"]

MODELS_VARIABLE = "PADLESS_MODELS"

# What the hub allows; it excludes "..", absolute paths and anything deeper than org/name.
MODEL_ID = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)


def resolve_folder(path_or_id: str | os.PathLike[str]) -> Path:
    """Find a model's folder on this machine.

    Args:
        path_or_id: a local folder, tried first, or an id such as "org/name", looked for under `$PADLESS_MODELS`.

    Returns:
        The folder, which exists.

    Raises:
        ModelNotFoundError: no such folder, naming every place that was looked at.
    """
    text = os.fspath(path_or_id)
    if not text or not text.isprintable():
        raise ModelNotFoundError(f"model {text!r}: expected a folder or an id such as 'org/name'")
    local = Path(text).expanduser()
    try:
        is_folder, exists = local.is_dir(), local.exists()
    except OSError as error:
        raise ModelNotFoundError(f"model {text[:60]!r}…: not a path ({error.strerror})") from None
    if is_folder:
        return local
    if exists:
        raise ModelNotFoundError(f"model {text!r}: is a file, expected the folder that holds config.json")
    looked = [str(local.absolute())]
    root = os.environ.get(MODELS_VARIABLE)
    if MODEL_ID.fullmatch(text):
        if root:
            candidate = Path(root).expanduser() / text
            if candidate.is_dir():
                return candidate
            looked.append(str(candidate))
        else:
            looked.append(f"(${MODELS_VARIABLE} is not set)")
    raise ModelNotFoundError(f"model {text!r}: no such folder; looked at {', '.join(looked)}")
