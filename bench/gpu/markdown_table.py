"""What the sections of report.md are written with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["NOT_MEASURED", "Cases", "number", "table"]

NOT_MEASURED = "not measured"
Cases = Mapping[str, Mapping[str, Any]]


def number(value: float | None, digits: int) -> str:
    """With thousands set apart, or the words for what was not measured."""
    return NOT_MEASURED if value is None else f"{value:,.{digits}f}"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of Markdown; none without rows."""
    lines = [" | ".join(str(cell).replace("|", "\\|") for cell in row) for row in rows]
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {line} |" for line in lines)] if lines else []
