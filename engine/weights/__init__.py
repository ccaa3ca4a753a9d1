"""Checkpoints into models, and models into checkpoints.

files.py -> which files a checkpoint is, and reading them with care
safetensors_file.py, pickled.py -> the two formats
loading.py -> the tensors into a model, names by its rules
writing.py -> a model's tensors into safetensors
"""

from __future__ import annotations

from .loading import INDEX_NAME, WEIGHTS_NAME, LoadReport, NameRules, load_weights
from .writing import save_weights

__all__ = ["INDEX_NAME", "WEIGHTS_NAME", "LoadReport", "NameRules", "load_weights", "save_weights"]
