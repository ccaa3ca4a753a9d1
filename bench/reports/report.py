"""A report on disk: its kind, its schema, its machine, and one clear line where it is none.

kernels      bench kernels, schema 1
models       bench models, schema 2; schema 1 had one model, whose fields stood at the top
generate     bench generate, schema 1
accelerate   bench accelerate-models, schema 1
jobs         bench jobs, schema 1
gpu-report   make gpu-report, schema 1
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...engine.errors import InputError
from .fields import Node

__all__ = ["KINDS", "Report", "check_report", "read_report"]

KINDS = {"kernels": (1,), "models": (1, 2), "generate": (1,), "accelerate": (1,), "jobs": (1,), "gpu-report": (1,)}
"""Kind to the schemas that are understood."""

_OF_A_MODEL = ("model", "workload", "systems", "left_out", "failed")


@dataclass(frozen=True)
class Report:
    """A report that has at least its frame: what it is of, when and where it was made.

    Attributes:
        where: the file, or "kernels report" where it comes from no file; how errors begin.
        kind: a key of `KINDS`.
        root: all of it; of models always schema 2.
        machine: where it was made.
        written: date and time, ISO 8601.
        hashes: hashes of the kernels it was made with, by module; empty where it carries none.
    """

    where: str
    kind: str
    root: Node
    machine: Node
    written: str
    hashes: Mapping[str, str]

    @property
    def machine_name(self) -> str:
        """GPU or CPU."""
        found = self.machine.any_text(("gpu", "cpu"))
        if found is None:
            raise InputError(f"{self.machine.where}: expected gpu or cpu, found neither")
        return found

    @property
    def commit(self) -> str:
        """Of the code that was measured."""
        return self.machine.any_text(("commit",)) or "unknown"


def read_report(path: Path) -> Report:
    """Read a report.

    Raises:
        InputError: no such file, not JSON, or no report of a kind and schema that is understood.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: expected a report, {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected a report in JSON, found {type(error).__name__}: {error}") from error
    return check_report(tree, str(path))


def check_report(tree: Any, where: str | None = None) -> Report:
    """The frame of a report.

    Args:
        tree: as `json.load` gives it, or as a command of `bench` has put it together.
        where: the file it comes from.

    Raises:
        InputError: the frame lacks something, or the kind or the schema is unknown.
    """
    root = Node(tree, where or "report")
    kind = root.text("kind")
    if kind not in KINDS:
        raise InputError(f"{root.where}: kind: expected one of {', '.join(KINDS)}, found {kind!r}")
    root = Node(tree, where or f"{kind} report")
    schema = root.number("schema")
    if schema not in KINDS[kind]:
        known = " or ".join(map(str, KINDS[kind]))
        raise InputError(f"{root.where}: schema: expected {known} of kind {kind}, found {schema:g}")
    if kind == "models" and "models" not in tree:
        root = Node({**tree, "models": [{name: tree[name] for name in _OF_A_MODEL if name in tree}]}, root.where)
    return Report(root.where, kind, root, root.node("machine"), root.text("written"), root.texts("kernel_hashes"))
