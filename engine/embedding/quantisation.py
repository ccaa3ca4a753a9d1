"""Vectors in fewer bytes: the precisions of sentence-transformers' `quantize_embeddings`, and float16."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

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
        ranges = np.asarray(self._ranges(vectors), dtype=np.float32)
        steps = (ranges[1] - ranges[0]) / 255
        # A channel that is the same everywhere.
        steps = np.where(steps == 0, 1, steps)
        levels = np.clip(np.floor((vectors - ranges[0]) / steps), 0, 255)
        return (levels - 128 if self.precision == "int8" else levels).astype(self.dtype)

    def _ranges(self, vectors: np.ndarray) -> np.ndarray:
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
    embeddings: np.ndarray,
    precision: str,
    ranges: np.ndarray | None = None,
    calibration_embeddings: np.ndarray | None = None,
) -> np.ndarray:
    """Vectors in another precision, as `sentence_transformers.quantize_embeddings` makes them.

    Args:
        embeddings: float `[vectors, width]`.
        precision, ranges, calibration_embeddings: as of `Quantiser`.

    Returns:
        `[vectors, width]`, or `[vectors, ceil(width / 8)]` where the precision is binary.

    Raises:
        OptionError: an argument is out of range, or ranges would have to be taken from a single vector.
    """
    vectors = np.asarray(embeddings)
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise OptionError(
            f"embeddings: expected floats of shape [vectors, width], got {vectors.dtype} {list(vectors.shape)}"
        )
    return Quantiser(precision, vectors.shape[1], ranges, calibration_embeddings)(vectors)
