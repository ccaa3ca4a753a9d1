"""The one way in which commands run a job: checks first, then the model, then the rows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OptionError
from .job_report import run_reported

if TYPE_CHECKING:
    from ..jobs.factories import TaskFactory
    from ..jobs.report import Report

__all__ = ["JobArguments", "refuse_idle_pieces", "run_command"]

STANDARD_OUTPUT = Path("-")
ROWS_PER_SHARD = 50_000
"""Where nobody says."""


@dataclass(frozen=True)
class JobArguments:
    """What all commands of jobs are told; the names are those of their options."""

    inputs: Sequence[str]
    output: Path
    text_column: str
    pair_column: str | None
    id_column: str | None
    keep: Sequence[str]
    input_format: str | None
    rows_per_shard: int
    device: str
    dtype: str
    token_budget: int | None
    resume: bool
    overwrite: bool
    log_json: bool
    quiet: bool
    devices: str | None = None


def refuse_idle_pieces(options: Mapping[str, Any]) -> None:
    """Refuse options of pieces where no text becomes pieces: whoever names them means that it should.

    Args:
        options: of the task; those that have the values they have anyway are not named.
    """
    if options.get("long_texts") == "chunk":
        return
    for name in ("overlap", "aggregate"):
        if name in options:
            found = options.get("long_texts", "truncate")
            raise OptionError(f"{name}: expected only beside long_texts 'chunk', got long_texts {found!r}")


def run_command(given: JobArguments, make_task: TaskFactory) -> None:
    """Run a job.

    Args:
        given: from the command line.
        make_task: loads the model, here or in the processes of several devices.
    """
    # oneDNN and, in every thread, torch's layer above it each remember 1,024 products, one for every shape they have
    # seen: hundreds of megabytes in a long job. A batch needs those of its own lengths again in every layer (at 32 of
    # oneDNN's, attention was compiled anew all the time, 16% slower), but hardly those of earlier batches; the layer
    # above spares only a look-up. Arrow's own allocator held 25 MB more than the system's. All three are read once,
    # before the first use.
    for variable, value in (
        ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64"),
        ("LRU_CACHE_CAPACITY", "16"),
        ("ARROW_DEFAULT_MEMORY_POOL", "system"),
    ):
        os.environ.setdefault(variable, value)
    _check_devices(given)
    _check_standard_output(given)
    to_folder = given.output != STANDARD_OUTPUT
    job = _into_folder if to_folder else _to_standard_output
    run_reported(lambda report: job(given, make_task, report), given.output, quiet=given.quiet, log_json=given.log_json)


def _check_devices(given: JobArguments) -> None:
    if given.devices is None:
        return
    if given.device != "auto":
        raise OptionError("devices: --device is given too, expected one of them")
    if "-" in given.inputs:  # before anything is read of it
        raise OptionError("devices: standard input can be read by one process only, expected files")
    if given.output == STANDARD_OUTPUT:
        raise OptionError("devices: the output is one stream of standard output, expected a folder")


def _check_standard_output(given: JobArguments) -> None:
    if given.output != STANDARD_OUTPUT:
        return
    idle = {
        "overwrite": given.overwrite,
        "no_resume": not given.resume,
        "rows_per_shard": given.rows_per_shard != ROWS_PER_SHARD,
    }
    for name, named in idle.items():
        if named:
            raise OptionError(f"{name}: expected only where OUT is a folder, got standard output")


def _into_folder(given: JobArguments, make_task: TaskFactory, report: Report) -> None:
    from ..jobs.devices import find_devices
    from ..jobs.inputs.input_file import InputColumns
    from ..jobs.run import check_job, fixed_before, run_job, run_job_on

    columns = InputColumns(given.text_column, given.pair_column, given.id_column, tuple(given.keep))
    # Before the model is loaded, which may take a while, and again with it.
    check_job(
        given.inputs,
        given.output,
        columns=columns,
        input_format=given.input_format,
        rows_per_shard=given.rows_per_shard,
        resume=given.resume,
        overwrite=given.overwrite,
    )
    before = fixed_before(given.output) if given.resume and not given.overwrite else {}
    dtype = before.get("dtype", given.dtype) if given.dtype == "auto" else given.dtype
    options: dict[str, Any] = {
        "columns": columns,
        "input_format": given.input_format,
        "rows_per_shard": given.rows_per_shard,
        "token_budget": given.token_budget,
        "resume": given.resume,
        "overwrite": given.overwrite,
        "report": report,
    }
    if given.devices is not None:
        devices = find_devices(given.devices)
        summary = run_job_on(make_task, devices, dtype, given.inputs, given.output, **options)
    else:
        device = before.get("device", given.device) if given.device == "auto" else given.device
        summary = run_job(make_task(device, dtype), given.inputs, given.output, **options)
    if not given.quiet and not given.log_json:
        print(summary.text())


def _to_standard_output(given: JobArguments, make_task: TaskFactory, report: Report) -> None:
    from ..jobs.inputs.input_file import InputColumns
    from ..jobs.standard_output import write_json_lines

    columns = InputColumns(given.text_column, given.pair_column, given.id_column, tuple(given.keep))
    write_json_lines(
        lambda: make_task(given.device, given.dtype),
        given.inputs,
        columns=columns,
        input_format=given.input_format,
        token_budget=given.token_budget,
        report=report,
    )
