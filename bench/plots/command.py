"""Drawing where matplotlib may be missing: it is of the extra `bench`, and nothing else needs it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from ...engine.errors import InputError
from ..reports.report import read_report

__all__ = ["check_plotting", "plot_report", "plot_tree"]


def check_plotting() -> None:
    """Raise where nothing can be drawn, before hours of measuring.

    Raises:
        InputError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("matplotlib: not installed, pictures are drawn with it; pip install 'padless[bench]'")


def plot_report(path: Path, folder: Path) -> list[Path]:
    """Draw a report's file; see `plot_tree`."""
    return plot_tree(read_report(path).root.tree, folder)


def plot_tree(report: dict[str, Any], folder: Path) -> list[Path]:
    """Draw a report.

    Args:
        report: of a kind and schema in `reports/report.py`.
        folder: for the PNG.

    Raises:
        InputError: matplotlib is not installed, a field is missing or of another type, or the folder is unusable.
    """
    check_plotting()
    from .figures import draw

    return draw(report, folder)
