"""Files in, shards of results out: the runner of jobs, whatever the task computes.

The life of a shard: read a window of rows, compute its good ones, write them; when the shard's last row is through,
give the file its name, append its bad rows to errors.jsonl, append its line to shards.jsonl. Only that line makes it
exist. docs/jobs.md tells the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import JobError, OptionError
from .commits import Commits
from .durable import TEMPORARY_SUFFIX, writing
from .factories import TaskFactory
from .identity import describe_job, environment, foreign_environment, refuse_other_fixed, refuse_other_job
from .inputs.input_file import TEXTS, InputColumns, InputFile
from .inputs.reader import id_type, kept_fields, open_inputs
from .inputs.sources import STANDARD_INPUT
from .layout import SUMMARY, check_output, claim_output
from .lock import FolderLock
from .manifest import Manifest, ShardRecord, read_manifest, read_shards, read_summary, write_manifest, write_summary
from .messages import Plan, packed
from .own_process import OwnProcess, Processes
from .report import Report
from .resume import committed_shards, remove_parts, remove_uncommitted
from .summary import Summary, summarise
from .task import JobTask
from .watch import InputWatch
from .windows import WINDOW_CHARACTERS, WINDOW_ROWS
from .writer import shard_schema

__all__ = ["ROWS_PER_SHARD", "check_job", "check_pairs", "fixed_before", "run_job", "run_job_on"]

ROWS_PER_SHARD = 50_000


def check_job(
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    columns: InputColumns = TEXTS,
    input_format: str | None = None,
    rows_per_shard: int = ROWS_PER_SHARD,
    resume: bool = True,
    overwrite: bool = False,
) -> tuple[InputFile, ...]:
    """Every check of a job that needs no model, changing nothing; `run_job` makes them again.

    Raises:
        InputError, OptionError, JobError: as `run_job` does.
    """
    if rows_per_shard < 1:
        raise OptionError(f"rows_per_shard: expected at least 1, got {rows_per_shard}")
    if "row" in (columns.id, *columns.kept):
        raise OptionError("'row' is the name of an output column, expected another name for an input's")
    files = open_inputs(inputs, columns, input_format=input_format)
    if resume and not overwrite and not all(file.rereadable for file in files):
        _refuse_to_resume(Path(output))
    check_output(Path(output), [file.path for file in files], overwrite=overwrite, resume=resume)
    return files


def _refuse_to_resume(output: Path) -> None:
    if read_manifest(output) is not None:
        raise JobError(
            f"{output}: holds a job already, and standard input cannot be read again to go on with it; "
            "expected an empty folder, or --overwrite"
        )


def fixed_before(output: str | Path) -> dict[str, Any]:
    """What the first run of the job in `output` fixed: dtype, device, token_budget, threads; empty without a job.

    Raises:
        JobError: its manifest cannot be read.
    """
    manifest = read_manifest(Path(output))
    return {} if manifest is None else dict(manifest.fixed)


def run_job(
    task: JobTask,
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    columns: InputColumns = TEXTS,
    input_format: str | None = None,
    rows_per_shard: int = ROWS_PER_SHARD,
    token_budget: int | None = None,
    resume: bool = True,
    overwrite: bool = False,
    report: Report | None = None,
) -> Summary:
    """Compute a result for every row of the inputs, into Parquet shards in the folder `output`.

    A bad row (null, no string, malformed, not UTF-8, with a result that is not finite or no memory for it) costs
    itself only: it is recorded in errors.jsonl and the job goes on. Memory is bounded by a few windows of rows, not by
    the inputs. A job that was stopped, in whatever way, goes on where it was, to the bytes of an unbroken run.

    Args:
        task: what is computed, with the model it is computed by.
        inputs: files, folders, globs and "-", as of `open_inputs`; their rows are numbered through in this order.
        output: a folder that is empty, absent, or holds the same job.
        columns: what is read of each row: what is computed on, and what is carried into the shards.
        input_format: the format of standard input and of files whose suffix tells none.
        rows_per_shard: input rows a shard covers.
        token_budget: most tokens in a batch; None finds it from the free memory, or takes that of the first run.
        resume: go on with the job that `output` holds; a finished one is left as it is.
        overwrite: remove an earlier job's files from `output` first.
        report: is told how the job goes.

    Raises:
        InputError: an input is missing, unreadable, of an unknown format, lacks a column, or changes meanwhile.
        OptionError: an argument is out of range, or the model has no such prompt.
        JobError: `output` is unusable, in use, or holds another job, or the disk refuses.
    """
    work = OwnProcess(task)
    return _run(
        work, inputs, output, columns, input_format, rows_per_shard, token_budget, resume, overwrite, report or Report()
    )


def run_job_on(
    make_task: TaskFactory,
    devices: Sequence[str],
    dtype: str,
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    columns: InputColumns = TEXTS,
    input_format: str | None = None,
    rows_per_shard: int = ROWS_PER_SHARD,
    token_budget: int | None = None,
    resume: bool = True,
    overwrite: bool = False,
    report: Report | None = None,
) -> Summary:
    """`run_job` in a process for each device, each of which computes whole shards.

    The folder gets the same files as on one device. `shards.jsonl` and `errors.jsonl` are written by this process
    alone, in the order of the shards.

    Args:
        make_task: loads the model on a device in a dtype, in each process; can be pickled.
        devices: from `find_devices`.
        dtype: of the model, or "auto".
        inputs: as of `run_job`, without standard input.
        output, columns, input_format, rows_per_shard, token_budget, resume, overwrite, report: as of `run_job`.

    Raises:
        InputError, OptionError, JobError: as `run_job` does.
        JobError: a process died.
    """
    from .spread import SeveralProcesses

    if any(str(name) == STANDARD_INPUT for name in inputs):
        raise OptionError("devices: standard input can be read by one process only, expected files")
    # Before the models are loaded, which may take a while, and again with them.
    check_job(
        inputs,
        output,
        columns=columns,
        input_format=input_format,
        rows_per_shard=rows_per_shard,
        resume=resume,
        overwrite=overwrite,
    )
    with SeveralProcesses(make_task, devices, dtype) as work:
        return _run(
            work, inputs, output, columns, input_format, rows_per_shard, token_budget, resume, overwrite,
            report or Report(),
        )  # fmt: skip


def _run(
    work: Processes,
    inputs: Sequence[str | Path],
    output: str | Path,
    columns: InputColumns,
    input_format: str | None,
    rows_per_shard: int,
    token_budget: int | None,
    resume: bool,
    overwrite: bool,
    report: Report,
) -> Summary:
    task, folder = work.task, Path(output)
    files = check_job(
        inputs,
        output,
        columns=columns,
        input_format=input_format,
        rows_per_shard=rows_per_shard,
        resume=resume,
        overwrite=overwrite,
    )
    check_pairs(task, columns)
    if token_budget is not None and token_budget < 1:
        raise OptionError(f"token_budget: expected at least 1, got {token_budget}")
    watch = InputWatch(files)
    id_field = None if columns.id is None else pa.field(columns.id, id_type(files))
    carried = kept_fields(files, columns)
    schema = shard_schema(task.fields, id_field, carried)
    job = describe_job(task, files, columns=columns, rows_per_shard=rows_per_shard)
    wanted = {"dtype": task.dtype, "device": task.device.split(":")[0], "token_budget": token_budget}
    goes_on = resume and not overwrite
    if goes_on and (summary := _finished(folder, job, wanted, rows_per_shard, report)) is not None:
        return summary
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(folder) as lock:
        manifest = read_manifest(folder) if goes_on else None
        shards: list[ShardRecord] = []
        if manifest is None:
            claim_output(folder, [file.path for file in files], overwrite=overwrite)
            manifest = Manifest(job, _fix(work, token_budget), environment(task))
            write_manifest(folder, manifest)
        else:
            refuse_other_job(folder, manifest, job)
            refuse_other_fixed(folder, manifest, wanted)
            shards = committed_shards(folder, rows_per_shard, digests=True)
            if (told := foreign_environment(manifest, task)) is not None:
                report.note(f"{folder}: {told}")
        remove_uncommitted(folder, shards)
        with report:
            rows_done = sum(shard.input_rows for shard in shards)
            report.begin({**_facts(work, manifest), "rows_done": rows_done, "shards_done": len(shards)})
            plan = Plan(
                folder,
                tuple(file.source for file in files),
                columns,
                packed(schema),
                has_id=id_field is not None,
                carried=len(carried),
                rows_per_shard=rows_per_shard,
                fixed=manifest.fixed,
            )
            commits = Commits(folder, report)
            with _nothing_half(folder):
                seconds, stages = work.compute(plan, files, shards, commits, watch, report, lock.descriptor)
            summary = summarise(
                folder,
                task,
                [*shards, *commits.shards],
                resumed=len(shards),
                seconds=seconds,
                stages=stages,
                token_budget=manifest.fixed["token_budget"],
                threads=manifest.fixed["threads"],
                versions={name: environment(task)[name] for name in ("padless", "python", "torch", "pyarrow")},
                devices=work.devices,
            )
            watch.check()
            write_summary(folder, asdict(summary))
            report.finish(asdict(summary))
    return summary


def _finished(
    folder: Path, job: dict[str, Any], wanted: dict[str, Any], rows_per_shard: int, report: Report
) -> Summary | None:
    """The summary of this very job, if `folder` holds it and it is finished; nothing is written."""
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    refuse_other_job(folder, manifest, job)
    refuse_other_fixed(folder, manifest, wanted)
    content = read_summary(folder)
    if content is None:
        return None
    committed_shards(folder, rows_per_shard, digests=False)
    try:
        summary = Summary(**content)
    except TypeError as error:
        raise JobError(f"{folder / SUMMARY}: is not the summary of a job ({error})") from error
    report.note(f"{folder}: this job is finished already, nothing is left to do")
    return summary


def check_pairs(task: JobTask, columns: InputColumns) -> None:
    """Raise OptionError where a pair column is missing, or is of no use."""
    if task.paired and columns.pair is None:
        raise OptionError(f"pair_column: expected the column of the second texts, which {task.name} needs, got none")
    if task.paired is False and columns.pair is not None:
        raise OptionError(f"pair_column: {task.name} has no use for one, got {columns.pair!r}")


def _fix(work: Processes, token_budget: int | None) -> dict[str, Any]:
    """What the bits of a result depend on beside the job itself, chosen at the first run."""
    return {
        "dtype": work.task.dtype,
        "device": work.task.device.split(":")[0],
        "token_budget": work.token_budget() if token_budget is None else token_budget,
        "threads": work.threads,
        "window_rows": WINDOW_ROWS,
        "window_characters": WINDOW_CHARACTERS,
    }


def _facts(work: Processes, manifest: Manifest) -> dict[str, Any]:
    """What a listener is told at the start."""
    inputs = [file["name"] for file in manifest.job["inputs"]]
    return {"task": work.task.name, "inputs": inputs, **manifest.fixed, "devices": list(work.devices)}


@contextmanager
def _nothing_half(folder: Path) -> Iterator[None]:
    """Leave no shard behind that is half written or not committed, wherever a stop comes; its error is raised."""
    try:
        yield
    except BaseException:
        with suppress(OSError, JobError):
            for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
                path.unlink()
            # Of several processes one may be through with a shard before those ahead of it are.
            remove_parts(folder, len(read_shards(folder)))
        raise
