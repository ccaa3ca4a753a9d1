"""The report on disk: written whole after every case, so that a run that is cut off leaves all it had found."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

from ...autotune.exchange import write_exchange
from ...engine.errors import InputError
from .case import Figures
from .markdown import render

__all__ = ["Store"]

SCHEMA = 1
SAME = ("gpu", "torch", "triton", "padless")


class Store:
    """`report.json`, `report.md` and `configs.json` of one folder.

    A folder that holds a report already is continued, if that was made by the same kernels on the same machine.
    """

    def __init__(self, folder: Path, machine: dict[str, Any], hashes: dict[str, str], dry: bool) -> None:
        """Open or begin the report of `folder`.

        Raises:
            InputError: the report there is of another GPU, of other versions or kernels, or cannot be read; or nothing
                can be written.
        """
        self.folder = folder
        self.report: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": "gpu-report",
            "written": "",
            "dry": dry,
            "machine": machine,
            "kernel_hashes": hashes,
            "parts": {},
        }
        path = folder / "report.json"
        if path.exists():
            self.report["parts"] = self._parts_of(path)
        self.unsaved: str | None = None
        self.save()
        if self.unsaved is not None:
            raise InputError(f"{folder}: expected a folder to write to, {self.unsaved}")

    def part(self, name: str) -> dict[str, Any]:
        """What is known of one part.

        `cases` by name; `complete` once each has a result; `not_run`, those that time did not suffice for; `failure`,
        why the part could not be run at all; `seconds`.
        """
        empty = {"complete": False, "seconds": 0.0, "failure": None, "not_run": [], "cases": {}}
        return self.report["parts"].setdefault(name, empty)

    def add(self, part: str, name: str, figures: Figures) -> None:
        """Keep a case's figures, at once."""
        self.part(part)["cases"][name] = figures
        self.save()

    def save(self) -> None:
        """Write the files, each whole or not at all.

        A full disk is no error: `unsaved` says what was wrong, and the next call that can writes everything.
        """
        self.report["written"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.unsaved = None
        try:
            _write(self.folder / "report.json", json.dumps(self.report, indent=1, default=str) + "\n")
            _write(self.folder / "report.md", _page(self.report))
            if "tune" in self.report["parts"]:
                _write(self.folder / "configs.json", self._configs())
        except OSError as error:
            self.unsaved = error.strerror or str(error)
        except Exception as error:  # of the configurations; the figures are written before them
            self.unsaved = f"configs.json: {error!r}"

    def _configs(self) -> str:
        """What part `tune` found, for `padless tune --import`."""
        found = [figures["record"] for figures in self.part("tune")["cases"].values() if "record" in figures]
        note = f"measured on {self.report['machine']['gpu']}, padless {self.report['machine'].get('commit')}"
        if self.report["dry"]:
            note = "no entries: a dry run measures nothing"
        return write_exchange(found, note)

    def _parts_of(self, path: Path) -> dict[str, Any]:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            theirs = {name: found["machine"].get(name) for name in SAME} | {
                "kernel_hashes": found["kernel_hashes"],
                "dry": found["dry"],
                "schema": found["schema"],
            }
            parts = found["parts"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: expected a GPU report to continue, found {error!r}") from error
        ours = {name: self.report["machine"].get(name) for name in SAME} | {
            name: self.report[name] for name in ("kernel_hashes", "dry", "schema")
        }
        other = [name for name in ours if ours[name] != theirs[name]]
        if other:
            raise InputError(f"{path}: a report of another {' and another '.join(other)}; name an empty folder")
        return parts


def _page(report: dict[str, Any]) -> str:
    """The page; where a figure is not as it expects, a line that says so: the figures are in report.json."""
    try:
        return render(report)
    except Exception as error:
        return f"# GPU report\n\nThis page could not be made: {error!r}. `report.json` has every figure.\n"


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
