"""Correctness before speed: a system's vectors beside those of the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["LARGEST_DIFFERENCE", "LOWEST_COSINE", "Check", "check_vectors"]

LOWEST_COSINE = {"float32": 0.99999, "bfloat16": 0.999, "int8": 0.99}
"""By dtype, of any text's vector with the reference's."""

LARGEST_DIFFERENCE = 1e-5
"""Of any component of our float32 vectors, which have unit length, to the reference's."""


@dataclass(frozen=True)
class Check:
    """How close a system's vectors are to the reference's.

    Attributes:
        lowest_cosine: over all texts.
        largest_difference: over all components of the unit-length vectors.
        failure: why the system's figures are not to be believed, or None.
    """

    lowest_cosine: float
    largest_difference: float
    failure: str | None


def check_vectors(system: str, dtype: str, vectors: np.ndarray, reference: np.ndarray) -> Check:
    """Hold a system's unit vectors against the reference's, in float64.

    Cosines must reach `LOWEST_COSINE` of the dtype; padless in float32 must also stay within `LARGEST_DIFFERENCE` in
    every component.
    """
    if vectors.shape != reference.shape:
        return Check(float("nan"), float("nan"), f"shape {vectors.shape}, expected {reference.shape}")
    ours, right = vectors.astype(np.float64), reference.astype(np.float64)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(right, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = float(((ours * right).sum(axis=1) / norms).min())
    difference = float(np.abs(ours - right).max())
    failure = None
    # Written so that NaN fails.
    if not cosine >= LOWEST_COSINE[dtype]:
        failure = f"lowest cosine {cosine:.6f}, expected at least {LOWEST_COSINE[dtype]}"
    elif system.startswith("padless") and dtype == "float32" and not difference <= LARGEST_DIFFERENCE:
        failure = f"largest difference {difference:.2e}, expected at most {LARGEST_DIFFERENCE:.0e}"
    return Check(cosine, difference, failure)
