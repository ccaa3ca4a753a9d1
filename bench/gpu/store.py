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
            InputError: the report there is of another GPU, of other versions or kernels, or cannot be read.
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
        self.save()

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
        """Write the files, each whole or not at all."""
        self.report["written"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        _write(self.folder / "report.json", json.dumps(self.report, indent=1) + "\n")
        _write(self.folder / "report.md", render(self.report))
        if "tune" in self.report["parts"]:
            _write(self.folder / "configs.json", self._configs())

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


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
