"""Checkpoints of other programs and of other times into model folders of safetensors.

convert.py -> which kind of source it is, and the folder that comes of it
megatron.py, megatron_config.py -> a Megatron-LM checkpoint: names, the order of query, key and value, sizes
archive.py -> the zip it is published in
pickled_folder.py -> a model folder whose weights are pickled
tensors.py, vocabulary.py, output.py -> values on their way, a vocabulary beside them, the folder that appears whole
"""

from __future__ import annotations

from .convert import Converted, convert

__all__ = ["Converted", "convert"]
