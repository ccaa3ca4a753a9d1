"""How long the rows of a batch become: the arguments `padding`, `truncation` and `max_length`, and padding itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding

from ..errors import OptionError
from .backend import Truncation

__all__ = ["Lengths", "Padding", "lengths_of_call", "pad_encodings", "pad_rows"]

PADDING = {False: None, True: "longest", "do_not_pad": None, "longest": "longest", "max_length": "max_length"}
TRUNCATION = {
    **{None: None, False: None, True: "longest_first", "do_not_truncate": None},
    **{"longest_first": "longest_first", "only_first": "only_first", "only_second": "only_second"},
}

# A tokenizer without a limit of its own has 10**30 here; beyond this no limit is meant.
LARGEST_LIMIT = 10**20


@dataclass(frozen=True)
class Padding:
    """How rows are filled up.

    Attributes:
        length: tokens of each row, longer ones stay as they are; None for those of the longest.
        multiple_of: the length is raised to a multiple of it.
        side: "right" or "left".
        token: the padding token and its id.
    """

    length: int | None
    multiple_of: int | None
    side: str
    token: str
    token_id: int

    def target(self, lengths: Sequence[int]) -> int:
        """Tokens of each row, for rows of these lengths."""
        target = max(lengths, default=0) if self.length is None else self.length
        over = target % self.multiple_of if self.multiple_of else 0
        return target + self.multiple_of - over if self.multiple_of and over else target


@dataclass(frozen=True)
class Lengths:
    """What a call asks of the lengths of its rows.

    Attributes:
        padding: None for rows as long as they are.
        truncation: None for whole texts.
        max_length: as asked for, or the tokenizer's own where that is used.
    """

    padding: Padding | None
    truncation: Truncation | None
    max_length: int | None


def lengths_of_call(
    *,
    padding: bool | str,
    truncation: bool | str | None,
    max_length: int | None,
    stride: int,
    pad_to_multiple_of: int | None,
    padding_side: str | None,
    truncation_side: str,
    model_max_length: float,
    pad_token: str | None,
    pad_token_id: int | None,
) -> Lengths:
    """Read the arguments of a call as transformers does.

    `max_length` alone means `truncation=True`. Where a length is needed and not given, `model_max_length` is taken; a
    tokenizer without a limit then neither pads nor truncates.

    Raises:
        OptionError: an argument is out of range, or the tokenizer has no padding token to pad with.
    """
    fill = _choice("padding", padding, PADDING)
    cut = _choice("truncation", truncation, TRUNCATION)
    _number("max_length", max_length, 1)
    _number("stride", stride, 0)
    _number("pad_to_multiple_of", pad_to_multiple_of, 1)
    if padding_side not in ("left", "right"):
        raise OptionError(f"padding_side: expected 'left' or 'right', got {padding_side!r:.60}")
    if max_length is not None and padding is False and truncation is None:
        cut = "longest_first"
    if max_length is None:
        limit = int(model_max_length) if model_max_length <= LARGEST_LIMIT else None
        if fill == "max_length" or cut is not None:
            max_length = limit
        if limit is None:
            fill, cut = None if fill == "max_length" else fill, None
    if fill is not None and pad_token_id is None:
        raise OptionError(
            "padding: this tokenizer has no padding token; choose one, such as tokenizer.pad_token = '[PAD]'"
        )
    if cut and fill and pad_to_multiple_of and max_length is not None and max_length % pad_to_multiple_of:
        raise OptionError(
            f"max_length: expected a multiple of pad_to_multiple_of ({pad_to_multiple_of}), got {max_length}"
        )
    filling = cutting = None
    if fill is not None and pad_token is not None and pad_token_id is not None:
        length = max_length if fill == "max_length" else None
        filling = Padding(length, pad_to_multiple_of, padding_side, pad_token, pad_token_id)
    if cut is not None and max_length is not None:
        cutting = Truncation(max_length, stride, cut, truncation_side)
    return Lengths(filling, cutting, max_length)


def pad_encodings(encodings: Sequence[Encoding], padding: Padding) -> None:
    """Fill up encodings, and the rest of their texts where that was kept, in place."""
    target = padding.target([len(encoding) for encoding in encodings])
    for encoding in encodings:
        encoding.pad(target, direction=padding.side, pad_id=padding.token_id, pad_type_id=0, pad_token=padding.token)


def pad_rows(columns: dict[str, Any], name: str, padding: Padding | None, *, mask: bool) -> dict[str, Any]:
    """Fill up the rows of ready encodings.

    Args:
        columns: name -> a list for each row; `name` among them. Columns that are not known here stay as they are.
        name: the column whose lengths count, "input_ids".
        padding: None fills nothing up, and only adds the mask.
        mask: add an attention mask where there is none, and fill it up.
    """
    rows = columns[name]
    target = 0 if padding is None else padding.target([len(row) for row in rows])
    filling = {"attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}
    if padding is not None:
        filling[name] = padding.token_id
    padded = dict(columns)
    if mask and "attention_mask" not in padded:
        padded["attention_mask"] = [[1] * len(row) for row in rows]
    for column in filling.keys() & padded.keys():
        if column == "attention_mask" and not mask:
            continue
        padded[column] = [
            _filled(list(row), [filling[column]] * (target - len(ids)), padding)
            for row, ids in zip(padded[column], rows, strict=True)
        ]
    return padded


def _filled(row: list[int], filling: list[int], padding: Padding | None) -> list[int]:
    return filling + row if padding is not None and padding.side == "left" else row + filling


def _choice(name: str, value: Any, known: dict[Any, str | None]) -> str | None:
    # 1 and 0 are equal to True and False, and no strategies.
    if isinstance(value, str | bool | None) and value in known:
        return known[value]
    choices = ", ".join(repr(choice) for choice in known)
    raise OptionError(f"{name}: expected one of {choices}, got {value!r:.60}")


def _number(name: str, value: int | None, least: int) -> None:
    if value is None and name != "stride":
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise OptionError(f"{name}: expected a number of {least} or more, got {value!r:.60}")
