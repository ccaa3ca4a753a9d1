"""Filling up encodings that were made before: what a data loader does with the rows it collects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from .decoding import plain
from .encoding import BatchEncoding
from .lengths import Padding, pad_rows

__all__ = ["pad_encoded"]


def pad_encoded(
    encoded: Any, name: str, padding: Padding | None, *, mask: bool, tensor_type: str | None
) -> BatchEncoding:
    """Fill up one encoding, a list of encodings, or one with lists of rows.

    Args:
        encoded: as said; values are lists, arrays or tensors.
        name: the entry whose lengths count, "input_ids".
        padding: None fills nothing up.
        mask: add an attention mask where there is none, and fill it up.
        tensor_type: "pt", "np", or None for what came in.

    Raises:
        InputError: there is no entry `name`, or entries differ in their number of rows.
    """
    if isinstance(encoded, list | tuple) and encoded and isinstance(encoded[0], Mapping):
        try:
            encoded = {key: [example[key] for example in encoded] for key in encoded[0]}
        except KeyError as error:
            raise InputError(f"pad: entry {error} is missing from some rows") from None
    if not isinstance(encoded, Mapping) or name not in encoded:
        found = list(encoded) if isinstance(encoded, Mapping) else type(encoded).__name__
        raise InputError(f"pad: expected encodings with {name}, got {found!s:.80}")
    rows = encoded[name]
    if tensor_type is None and len(rows):
        tensor_type = _kind(rows) or _kind(rows[0])
    columns = {key: plain(values) for key, values in encoded.items()}
    if not len(rows):
        return BatchEncoding({**columns, "attention_mask": []} if mask else columns)
    single = not isinstance(columns[name][0], list)
    if single:
        columns = {key: [values] for key, values in columns.items()}
    sizes = {key: len(values) for key, values in columns.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(f"pad: entries differ in their number of rows ({sizes})")
    padded = pad_rows(columns, name, padding, mask=mask)
    if single:
        padded = {key: values[0] for key, values in padded.items()}
    return BatchEncoding(padded, tensor_type=tensor_type)


def _kind(values: Any) -> str | None:
    return {"torch": "pt", "numpy": "np"}.get(type(values).__module__.split(".")[0])
