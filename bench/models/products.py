"""The matrix products of a model folder, and what a token of its texts costs; counted by `bench/cost.py`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ...engine.config import CONFIG_NAME, model_type
from ...engine.models import family_class
from ..cost import flops_per_token, steps
from ..gemm import Product

__all__ = ["mean_flops", "products", "read_config"]


def read_config(folder: Path) -> Any:
    """The configuration of a model folder, as padless reads it.

    Raises:
        ConfigError: unknown family, or a field out of range.
    """
    source = str(folder / CONFIG_NAME)
    return family_class(model_type(folder), "Config", source=source).from_folder(folder)


def products(config: Any) -> tuple[Product, ...]:
    """The linear layers that every token goes through, poolers and heads left out.

    Raises:
        OptionError: what such a model costs is not known.
    """
    found = Counter((step.name, *sizes) for step in steps(config) for sizes in step.products)
    return tuple(
        Product(f"{name} {inputs}x{outputs}", inputs, outputs, count)
        for (name, inputs, outputs), count in found.items()
    )


def mean_flops(config: Any, lengths: np.ndarray) -> float:
    """FLOP a token costs in texts of these lengths, `[texts]`: the mean over all their tokens.

    Raises:
        OptionError: as `products`.
    """
    found, counts = np.unique(lengths, return_counts=True)
    tokens = found * counts
    flops = np.array([flops_per_token(config, int(length)) for length in found])
    return float((flops * tokens).sum() / tokens.sum())
