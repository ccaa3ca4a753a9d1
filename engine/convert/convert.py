"""From a checkpoint that is no safetensors to a model folder that is: the one entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import InputError, OptionError, WeightsError
from ..models.pretrained import LARGEST_SHARD
from ..weights.torch_file import TorchFile
from ..weights.writing import Outgoing, save_tensors
from .archive import is_archive_of_checkpoint, unpack_checkpoint
from .megatron import is_megatron, read_megatron
from .output import Workplace, new_folder
from .pickled_folder import read_pickled_model, write_pickled_model
from .tensors import named_dtype
from .vocabulary import place_vocabulary

__all__ = ["Converted", "convert"]


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote.

    Attributes:
        folder: where.
        tensors: how many; one for several names of the same values.
        nbytes: that they take.
        files: that they are in.
        dtypes: of them, such as "float16".
        how: an expression that loads the folder.
    """

    folder: Path
    tensors: int
    nbytes: int
    files: int
    dtypes: tuple[str, ...]
    how: str


def convert(
    source: Path, out: Path, *, config: Path | None = None, vocab: Path | None = None, dtype: str = "auto"
) -> Converted:
    """Write the model of `source` into the folder `out`, which appears when all of it is there.

    No pickle is carried out. Memory holds a piece of 8 MiB, or one fused or transposed matrix, however large the model.

    Args:
        source: a checkpoint of Megatron-LM (BERT, one part), as a file of torch.save or in the zip it is published in;
            or a model folder with pickled weights, or the file of those weights in it.
        out: must not exist, or be empty.
        config: a `config.json` for a Megatron checkpoint; see `megatron_config`.
        vocab: a vocabulary for a Megatron checkpoint; see `place_vocabulary`.
        dtype: of floating-point tensors: "float32", "bfloat16", "float16"; "auto" keeps them.

    Raises:
        InputError, OptionError: the source is missing, or an argument is out of range.
        WeightsError, ConfigError, TokenizerError: a file, in one line that names file and tensor or field.
    """
    wanted = named_dtype(dtype)
    try:
        is_folder, exists = source.is_dir(), source.exists()
    except OSError as error:
        raise InputError(f"{str(source)[:60]}: not a path ({error.strerror})") from None
    if not exists:
        raise InputError(f"{source}: no such file or folder")
    if is_folder:
        _refuse({"config": config, "vocab": vocab}, source)
        return _pickled(source, None, out, wanted)
    if is_archive_of_checkpoint(source):
        with new_folder(out) as place:
            unpacked = TorchFile(unpack_checkpoint(source, place.scratch), label=source)
            if not is_megatron(unpacked.root):
                raise WeightsError(f"{source}: its checkpoint is none of a Megatron BERT: no model.language_model")
            return _megatron(unpacked, place, out, config, vocab, wanted)
    file = TorchFile(source)
    if is_megatron(file.root):
        with new_folder(out) as place:
            return _megatron(file, place, out, config, vocab, wanted)
    _refuse({"config": config, "vocab": vocab}, source)
    return _pickled(source.parent, source, out, wanted)


def _megatron(
    file: TorchFile, place: Workplace, out: Path, config: Path | None, vocab: Path | None, dtype: torch.dtype | None
) -> Converted:
    model = read_megatron(file, config, dtype)
    if vocab is not None:
        place_vocabulary(vocab, place.model, rows=model.config.vocab_size, longest=model.config.max_position_embeddings)
    model.config.save_pretrained(place.model)
    files = save_tensors(model.tensors, place.model, max_shard_size=LARGEST_SHARD)
    return _told(out, model.tensors, files, f"padless.{model.architecture}.from_pretrained({{}})")


def _pickled(folder: Path, file: Path | None, out: Path, dtype: torch.dtype | None) -> Converted:
    model = read_pickled_model(folder, file)
    with new_folder(out) as place:
        tensors, files = write_pickled_model(model, place.model, dtype)
        return _told(out, tensors, files, model.how)


def _told(out: Path, tensors: Sequence[Outgoing], files: int, how: str) -> Converted:
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})
    nbytes = sum(tensor.nbytes for tensor in tensors)
    return Converted(out, len(tensors), nbytes, files, tuple(dtypes), how.format(repr(str(out))))


def _refuse(options: dict[str, Path | None], source: Path) -> None:
    for name, value in options.items():
        if value is not None:
            raise OptionError(f"--{name}: is for a Megatron checkpoint, {source} is a model with files of its own")
