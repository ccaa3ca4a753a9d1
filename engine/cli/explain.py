"""`padless explain`: which implementation serves each op of a model here, and why the others do not."""

from __future__ import annotations

from typing import Annotated

import typer

from .choices import Backend, Deterministic, Device, Dtype

__all__ = ["explain"]


def explain(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model folder, or org/name under $PADLESS_MODELS.")],
    dtype: Dtype = "auto",
    device: Device = "auto",
    backend: Backend = "auto",
    deterministic: Deterministic = False,
) -> None:
    """Show which implementation serves each op.

    One line an op of MODEL: the implementation, its dtype, and why those preferred to it were rejected.
    """
    from ..loading import load

    print(load(model, device=device, dtype=dtype, backend=backend, deterministic=deterministic).explain())
