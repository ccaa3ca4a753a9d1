"""Whether a job is the one that a folder holds: what it is, what its first run fixed, and what differs."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import JobError
from .inputs.input_file import InputColumns, InputFile
from .manifest import Manifest, describe_inputs, fingerprint_model
from .task import JobTask

__all__ = ["describe_job", "environment", "foreign_environment", "refuse_other_fixed", "refuse_other_job"]

_SHOWN = 60


def describe_job(
    task: JobTask,
    inputs: Sequence[InputFile],
    *,
    columns: InputColumns,
    rows_per_shard: int,
) -> dict[str, Any]:
    """What determines the rows of the output, as JSON knows it."""
    job = {
        "task": task.name,
        "model": {"name": task.folder.name, "blake2b": fingerprint_model(task.folder)},
        "inputs": describe_inputs(inputs),
        "text_column": columns.text,
        "pair_column": columns.pair,
        "id_column": columns.id,
        "carried_columns": list(columns.kept),
        "options": task.description,
        "columns": {field.name: str(field.type) for field in task.fields},
        "rows_per_shard": rows_per_shard,
    }
    return json.loads(json.dumps(job))  # as it will be read again: tuples are lists


def environment(task: JobTask) -> dict[str, Any]:
    """Where a run is made, for people and bug reports."""
    return {**_versions(), "device": task.device, "explain": task.explain().splitlines()}


def foreign_environment(manifest: Manifest, task: JobTask) -> str | None:
    """What a resumed job does not share with its first run and may change bits; None where it shares all."""
    before, now = manifest.environment, environment(task)
    differing = [name for name in ("padless", "torch", "explain") if before.get(name) != now[name]]
    if not differing:
        return None
    shown = [f"{name} {before.get(name)}, now {now[name]}" for name in differing if name != "explain"]
    told = "; ".join(shown) or "other implementations serve the model"
    return f"begun with {told}: the rest may not have the bytes of an unbroken run"


def refuse_other_job(folder: Path, manifest: Manifest, job: dict[str, Any]) -> None:
    """Raise JobError, naming what differs, unless `job` is the one of the manifest."""
    found = list(_differences(manifest.job, job))
    if found:
        name, old, new = found[0]
        more = f" ({len(found) - 1} more differ)" if len(found) > 1 else ""
        raise JobError(
            f"{folder}: holds another job: {name} was {_shown(old)}, now is {_shown(new)}{more}; "
            "expected the same job, an empty folder, or --overwrite"
        )


def refuse_other_fixed(folder: Path, manifest: Manifest, wanted: dict[str, Any]) -> None:
    """Raise JobError unless what is asked for is what the first run fixed; None asks for nothing."""
    for name, value in wanted.items():
        before = manifest.fixed.get(name)
        if value is not None and value != before:
            raise JobError(
                f"{folder}: its job was begun with {name} {before}, now is {value}; "
                "expected the same, an empty folder, or --overwrite"
            )


def _differences(old: Any, new: Any, name: str = "") -> Any:
    """Yield (name, old, new) for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _differences(before, after, f"{name}[{index}]")
    elif old != new:
        yield name, old, new


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = json.dumps(value)
    # Of two paths the ends differ more often than the beginnings.
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 4]}...{text[-_SHOWN * 3 // 4 :]}"


def _versions() -> dict[str, str]:
    import torch

    try:
        ours = version("padless")
    except PackageNotFoundError:  # imported from a path, never installed
        ours = "not installed"
    return {"padless": ours, "python": platform.python_version(), "torch": torch.__version__, "pyarrow": pa.__version__}
