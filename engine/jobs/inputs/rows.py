"""A row on its way through a job: the text, or the reason why there is none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Row", "good_row", "note_replaced", "shown", "surrogates_replaced", "without_surrogates"]

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Row:
    """One input row.

    Attributes:
        number: position among all rows of all inputs, from 0; the column `row` of the output.
        file: the input file, as the caller named it.
        file_row: position among the rows of that file, from 0.
        id: value of the id column, or None.
        text: what to compute on, or None where the row is bad.
        kind: "ok"; "repaired" where a value was changed before use; "error" where there is no text.
        reason: what was found and what was expected; empty for "ok".
        pair: the second text of a pair, or the choices that belong to `text`; None where the job has none.
        kept: values of the columns that are carried into the output, in the job's order of them, as
            `pa.array(values, type)` takes them for the types of `kept_fields`; empty in a bad row.
        unseen: characters that follow those of `text` in the input; the task sees none of them.
    """

    number: int
    file: str
    file_row: int
    id: int | str | None
    text: str | None
    kind: Literal["ok", "repaired", "error"] = "ok"
    reason: str = ""
    pair: str | list[str] | None = None
    kept: tuple[object, ...] = ()
    unseen: int = 0

    @property
    def characters(self) -> int:
        """Characters and bytes of all values, unseen ones too: windows must not depend on what the task sees."""
        size = len(self.text or "") + self.unseen
        if self.pair is not None:
            size += len(self.pair) if isinstance(self.pair, str) else sum(map(len, self.pair))
        return size + sum(len(value) for value in self.kept if isinstance(value, str | bytes)) if self.kept else size


def good_row(
    number: int,
    file: str,
    file_row: int,
    row_id: int | str | None,
    text: str,
    pair: str | list[str] | None,
    kept: tuple[object, ...],
    repairs: Sequence[str] = (),
    unseen: int = 0,
) -> Row:
    """A row with a text; `repairs` says what was changed in it, if anything was."""
    if repairs:
        return Row(number, file, file_row, row_id, text, "repaired", "; ".join(repairs), pair, kept, unseen)
    return Row(number, file, file_row, row_id, text, "ok", "", pair, kept, unseen)


def without_surrogates(text: str, what: str, repairs: list[str]) -> str:
    """The text with lone surrogates replaced by U+FFFD, and a line about `what` in `repairs` where there were any.

    No UTF-8 file and no tokenizer takes half of a surrogate pair; left in, one such row would fail its whole batch.
    """
    text, count = surrogates_replaced(text)
    note_replaced(count, what, repairs)
    return text


def surrogates_replaced(text: str) -> tuple[str, int]:
    """The text with lone surrogates replaced by U+FFFD, and how many there were."""
    return (text, 0) if text.isascii() or not _SURROGATE.search(text) else _SURROGATE.subn("\ufffd", text)


def note_replaced(count: int, what: str, repairs: list[str]) -> None:
    """A line about `what` in `repairs`, where lone surrogates were replaced in it."""
    if count:
        repairs.append(f"{what}: {count} lone surrogates replaced by U+FFFD")


def shown(value: object, limit: int = 40) -> str:
    """A value as it appears in a message: one line, ASCII, cut to `limit` characters."""
    text = ascii(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
