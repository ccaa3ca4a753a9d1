"""Tensors on their way from one file to another: read in pieces, cast where asked for, never all in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..errors import OptionError, WeightsError
from ..weights.pickle_tree import TensorPiece
from ..weights.torch_file import TYPES, TorchFile
from ..weights.writing import Outgoing

__all__ = ["FLOATS", "named_dtype", "outgoing", "sent"]

FLOATS: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def named_dtype(name: str) -> torch.dtype | None:
    """The dtype of an option; None for "auto", which keeps what is stored.

    Raises:
        OptionError: another name.
    """
    if name != "auto" and name not in FLOATS:
        raise OptionError(f"dtype: expected auto, {', '.join(FLOATS)}, got {name!r}")
    return FLOATS.get(name)


def outgoing(name: str, file: TorchFile, tensor: TensorPiece, dtype: torch.dtype | None) -> Outgoing:
    """A checked tensor of `file` under a new name; `dtype` is that of floating-point values, None keeps theirs."""
    stored = TYPES[tensor.storage.dtype]
    return sent(name, file.label, stored, tensor.shape, lambda: file.pieces(tensor), dtype)


def sent(
    name: str,
    source: Path,
    stored: torch.dtype,
    shape: tuple[int, ...],
    pieces: Callable[[], Iterable[Tensor]],
    dtype: torch.dtype | None,
) -> Outgoing:
    """A tensor whose values `pieces` makes in the dtype `stored`; `source` is for messages."""
    target = dtype if dtype is not None and stored.is_floating_point else stored
    return Outgoing(name, target, shape, lambda: _cast(name, source, pieces(), target))


def _cast(name: str, source: Path, pieces: Iterable[Tensor], target: torch.dtype) -> Iterator[Tensor]:
    for piece in pieces:
        values = piece.to(target)
        # Temporaries of the size of the piece only where the extremes show that there is something to count.
        if values.dtype != piece.dtype and values.numel() and not torch.stack(values.aminmax()).isfinite().all():
            lost = int((piece.isfinite() & ~values.isfinite()).sum())
            if lost:
                kind = str(target).removeprefix("torch.")
                raise WeightsError(
                    f"{source}: {name}: {lost:,} values are too large for {kind}, expected another dtype"
                )
        yield values
