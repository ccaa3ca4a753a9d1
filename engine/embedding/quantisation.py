"""Vectors in fewer bytes: the precisions of sentence-transformers' `quantize_embeddings`, and float16."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import OptionError

__all__ = ["PRECISIONS", "Quantiser", "quantize_embeddings"]

PRECISIONS = ("float32", "float16", "int8", "uint8", "binary", "ubinary")

DTYPES = {
    "float32": np.float32,
    "float16": np.float16,
    "int8": np.int8,
    "uint8": np.uint8,
    "binary": np.int8,
    "ubinary": np.uint8,
}
SCALAR = ("int8", "uint8")
BINARY = ("binary", "ubinary")

FEW = 100
"""Vectors below which ranges taken from them are little worth; sentence-transformers warns there too."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Quantiser:
    """Makes vectors of one precision.

    Attributes:
        precision: of `PRECISIONS`.
        width: channels of a vector.
        ranges: of int8 and uint8, `[2, width]`: the lowest and the highest value of each channel.
        calibration_embeddings: float `[some, width]` that ranges are taken from where there are none; without either
            they are those of the vectors themselves.

    Raises:
        OptionError: `precision` is unknown, or `ranges` or `calibration_embeddings` are of another shape.
    """

    precision: str
    width: int
    ranges: np.ndarray | None = None
    calibration_embeddings: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise OptionError(f"precision: expected one of {', '.join(map(repr, PRECISIONS))}, got {self.precision!r}")
        for name, rows in (("ranges", 2), ("calibration_embeddings", None)):
            given = getattr(self, name)
            if given is None:
                continue
            values = np.asarray(given)
            if values.ndim != 2 or values.shape[1] != self.width or len(values) != (rows or max(len(values), 1)):
                expected = f"[{rows or 'some'}, {self.width}]"
                raise OptionError(f"{name}: expected numbers of shape {expected}, got {list(values.shape)}")
            object.__setattr__(self, name, values)

    @property
    def dtype(self) -> type[np.generic]:
        """Of a result."""
        return DTYPES[self.precision]

    @property
    def result_width(self) -> int:
        """Numbers of a result: eight channels make one byte of a binary one."""
        return (self.width + 7) // 8 if self.precision in BINARY else self.width

    @property
    def needs_all(self) -> bool:
        """Whether a vector's result depends on the other vectors."""
        return self.precision in SCALAR and self.ranges is None and self.calibration_embeddings is None

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """float32 `[vectors, width]` to `[vectors, result_width]`.

        Raises:
            OptionError: ranges would have to be taken from a single vector.
        """
        if self.precision in SCALAR:
            return self._scalar(vectors)
        if self.precision in BINARY:
            packed = np.packbits(vectors > 0, axis=-1)
            return packed if self.precision == "ubinary" else (packed ^ np.uint8(0x80)).view(np.int8)
        with np.errstate(over="ignore"):
            # What is too large for float16 becomes infinity, and is refused with all that is not finite.
            return vectors.astype(self.dtype, copy=False)

    def _scalar(self, vectors: np.ndarray) -> np.ndarray:
        if not len(vectors):
            return np.empty(vectors.shape, dtype=self.dtype)
        ranges = np.asarray(self.ranges_of(vectors), dtype=np.float32)
        steps = (ranges[1] - ranges[0]) / 255
        # A channel that is the same everywhere.
        steps = np.where(steps == 0, 1, steps)
        levels = np.clip(np.floor((vectors - ranges[0]) / steps), 0, 255)
        return (levels - 128 if self.precision == "int8" else levels).astype(self.dtype)

    def ranges_of(self, vectors: np.ndarray) -> np.ndarray:
        """`[2, width]`: those that are given, else those of what calibrates, else those of the vectors.

        Raises:
            OptionError: they would have to be taken from a single vector.
        """
        if self.ranges is not None:
            return self.ranges
        source = self.calibration_embeddings
        if source is None:
            source = vectors
            if len(vectors) == 1:
                raise OptionError(
                    f"precision: {self.precision} of a single vector needs ranges or calibration_embeddings"
                )
            if len(vectors) < FEW:
                logger.warning("ranges of %s are taken from only %d vectors", self.precision, len(vectors))
        return np.stack([np.min(source, axis=0), np.max(source, axis=0)])


def quantize_embeddings(
    embeddings: Tensor | np.ndarray | list[Tensor] | list[np.ndarray],
    precision: str,
    ranges: np.ndarray | None = None,
    calibration_embeddings: np.ndarray | None = None,
) -> Any:
    """Vectors in another precision, as `sentence_transformers.util.quantization.quantize_embeddings` makes them.

    Args:
        embeddings: float `[vectors, width]` or `[width]`, an array or a tensor of any device, or a list of `[width]`. A
            list of `[tokens, width]`, such as token embeddings, is quantised by ranges that all of them share.
        precision: of `PRECISIONS`; float16 is one more than there.
        ranges: of int8 and uint8, `[2, width]`: the lowest and the highest value of each channel.
        calibration_embeddings: float `[some, width]` that ranges are taken from where there are none; without either
            they are those of the vectors themselves.

    Returns:
        `[vectors, width]`, or `[vectors, ceil(width / 8)]` where the precision is binary; without the first axis for
        `[width]`, and a list of such for a list of matrices.

    Raises:
        OptionError: an argument is out of range, or ranges would have to be taken from a single vector.
    """
    if isinstance(embeddings, list):
        several = [_array(part) for part in embeddings]
        if not several or several[0].ndim == 2:
            return _matrices(several, precision, ranges, calibration_embeddings)
        if len({part.shape for part in several}) > 1:
            raise OptionError("embeddings: expected vectors of one width, got several widths")
        vectors = np.stack(several)
    else:
        vectors = _array(embeddings)
    single = vectors.ndim == 1
    vectors = vectors[None] if single else vectors
    _check_floats(vectors)
    made = Quantiser(precision, vectors.shape[1], ranges, calibration_embeddings)(vectors)
    return made[0] if single else made


def _matrices(
    matrices: list[np.ndarray], precision: str, ranges: np.ndarray | None, calibration: np.ndarray | None
) -> list[np.ndarray]:
    for matrix in matrices:
        _check_floats(matrix)
    widths = {matrix.shape[1] for matrix in matrices}
    if len(widths) > 1:
        raise OptionError(f"embeddings: expected matrices of one width, got {', '.join(map(str, sorted(widths)))}")
    if not widths:
        Quantiser(precision, 1)  # which refuses a precision that there is none of
        return []
    quantiser, whole = Quantiser(precision, widths.pop(), ranges, calibration), np.concatenate(matrices)
    if quantiser.needs_all and len(whole):
        quantiser = replace(quantiser, ranges=quantiser.ranges_of(whole))
    return [quantiser(matrix) for matrix in matrices]


def _array(values: Any) -> np.ndarray:
    """On the host; NumPy has no bfloat16, so that becomes float32."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    host = values.detach().cpu()
    return (host.float() if host.dtype == torch.bfloat16 else host).numpy()


def _check_floats(vectors: np.ndarray) -> None:
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise OptionError(
            f"embeddings: expected floats of shape [vectors, width], got {vectors.dtype} {list(vectors.shape)}"
        )
