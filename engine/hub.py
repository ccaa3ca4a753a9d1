"""Where a model's folder is: a path, an `org/name` under `$PADLESS_MODELS`, or the Hugging Face hub and its cache.

The hub is asked only where the package huggingface_hub is installed, last, and only for files that are data: never for
code, and never for pickles.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from textwrap import shorten

from .errors import ModelNotFoundError

__all__ = ["DATA_FILES", "MODELS_VARIABLE", "resolve_folder"]

MODELS_VARIABLE = "PADLESS_MODELS"

DATA_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
"""What is taken from the hub: configurations, vocabularies, sentencepiece models, weights."""

OTHER_FORMATS = ("onnx/*", "openvino/*", "original/*")
"""Folders with the same model once more, for other programs."""

# What the hub allows; it excludes "..", absolute paths and anything deeper than org/name.
MODEL_ID = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w./-]{0,199}", re.ASCII)

logger = logging.getLogger(__name__)


def resolve_folder(
    path_or_id: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False
) -> Path:
    """Find a model's folder, or fetch it.

    Args:
        path_or_id: a local folder, tried first; or an id such as "org/name", looked for under `$PADLESS_MODELS`, then
            on the Hugging Face hub. The hub's own settings hold, such as `HF_HUB_OFFLINE`, `HF_HOME` and `HF_TOKEN`.
        revision: branch, tag or commit on the hub; says nothing about a local folder.
        local_files_only: take from the hub only what its cache on this machine holds.

    Returns:
        The folder, which exists.

    Raises:
        ModelNotFoundError: no such folder, naming every place that was looked at.
    """
    text = os.fspath(path_or_id)
    if not text or not text.isprintable():
        raise ModelNotFoundError(f"model {text!r}: expected a folder or an id such as 'org/name'")
    if revision is not None and not REVISION.fullmatch(revision):
        raise ModelNotFoundError(f"model {text!r}: revision: expected a branch, tag or commit, got {revision!r:.80}")
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
    if MODEL_ID.fullmatch(text):
        root = os.environ.get(MODELS_VARIABLE)
        candidate = Path(root).expanduser() / text if root else None
        if candidate is not None and candidate.is_dir():
            if revision is not None:
                logger.info("%s: taken as it is, whatever its revision; %r was asked for", candidate, revision)
            return candidate
        looked.append(f"(${MODELS_VARIABLE} is not set)" if candidate is None else str(candidate))
        fetched = _from_hub(text, revision, local_files_only)
        if isinstance(fetched, Path):
            return fetched
        looked.append(fetched)
    raise ModelNotFoundError(f"model {text!r}: no such folder; looked at {', '.join(looked)}")


def _from_hub(model_id: str, revision: str | None, local_files_only: bool) -> Path | str:
    """The folder in the hub's cache, or why there is none."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        return "(the Hugging Face hub needs the package huggingface_hub, which is not installed)"
    try:
        folder = snapshot_download(
            model_id,
            revision=revision,
            local_files_only=local_files_only,
            allow_patterns=list(DATA_FILES),
            ignore_patterns=list(OTHER_FORMATS),
        )
    except Exception as error:  # whatever the network, the disk or the hub come up with
        reason = " ".join(str(error).split())
        return f"the Hugging Face hub ({type(error).__name__}: {shorten(reason, 100)})"
    return Path(folder)
