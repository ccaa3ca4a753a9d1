"""Embed a folder of Parquet files on all hosts of a Ray cluster, and go on where a stopped run left off.

    python docs/examples/embed_with_ray.py texts/ out/ --model path/to/model --workers 2

reads every Parquet file under INPUT, gives each row a vector (column `embedding`) or the reason why it has none
(`padless_error`), and writes OUTPUT/vectors/*.parquet. Ray notes in OUTPUT/checkpoint which rows are written; the same
command again does only the others. On a cluster INPUT, OUTPUT and the model must be the same on every host: a shared
file system, or s3:// and gs:// for the first two. See docs/ray.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from padless.engine.errors import InputError, JobError, OptionError, PadlessError
from padless.engine.hub import resolve_folder
from padless.engine.integrations.ray import ERROR_COLUMN, EmbedBatches
from padless.engine.jobs.manifest import fingerprint_model

ROW_HASH = "row_hash"
"""Ray's name for a row: made of its file's path and its place in the file."""

SMALL_TASK = 0.25
"""CPUs that Ray sets aside for a task that reads or writes: they wait for disks most of the time."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the job of the command line; ends with one line and status 2 where it cannot be done."""
    options = parser().parse_args(arguments)
    try:
        print(json.dumps(embed(options)))
    except PadlessError as error:
        print(f"embed_with_ray: {error}", file=sys.stderr)
        sys.exit(2)


def parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    options = argparse.ArgumentParser(description="Embed Parquet files with Ray Data; start it again to resume.")
    options.add_argument("input", help="folder of Parquet files, or a URI")
    options.add_argument("output", help="folder for vectors/, checkpoint/ and job.json, or a URI")
    options.add_argument("--model", required=True, help="model folder, the same path on every host")
    options.add_argument("--text-column", default="text", help="the column to embed")
    options.add_argument("--carry", nargs="*", metavar="COLUMN", help="other columns to keep; all where not given")
    options.add_argument("--prompt-name", help="one of the model's prompts")
    options.add_argument("--normalize", action="store_true", help="scale vectors to unit length")
    options.add_argument("--dtype", default="auto", help="what the model computes in")
    options.add_argument("--workers", type=int, default=2, help="actors, each with a model of its own")
    options.add_argument("--cpus-per-worker", type=float, default=1, help="torch uses as many threads")
    options.add_argument("--gpus-per-worker", type=float, default=0, help="1 gives each worker a GPU; 0 is the CPU")
    options.add_argument("--batch-size", type=int, default=4096, help="rows handed to a worker at a time")
    options.add_argument("--block-mib", type=float, default=128, help="what is read, and written as a file, at a time")
    options.add_argument("--address", help="auto joins the running cluster; a local one where not given")
    return options


def embed(options: argparse.Namespace) -> dict[str, Any]:
    """Embed what is not embedded yet; returns how many rows, vectors and errors OUTPUT then holds."""
    model = resolve_folder(options.model)
    source, inputs = place(options.input)
    target, output = place(options.output)
    files = parquet_files(source, inputs)
    if not files:
        raise InputError(f"{options.input}: no Parquet files")
    check_columns(options, source, files[0])
    claim(target, output, job_of(options, model, files))
    run(options, model, source, inputs, target, output)
    return counted(target, f"{output}/vectors", sum(rows_of(source, file) for file in files))


def run(
    options: argparse.Namespace, model: Path, source: fs.FileSystem, inputs: str, target: fs.FileSystem, output: str
) -> None:
    """Have Ray read, embed and write what its checkpoint does not name."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.data.checkpoint import CheckpointConfig
    from ray.exceptions import RayError

    if not ray.is_initialized():
        ray.init(address=options.address)
    check_cpus(options, ray.cluster_resources().get("CPU", 0))

    context = DataContext.get_current()
    context.target_max_block_size = int(options.block_mib * 2**20)
    context.checkpoint_config = CheckpointConfig(
        id_column=ROW_HASH,
        checkpoint_path=f"{output}/checkpoint",
        override_filesystem=target,
        # Kept: what says that a finished job is finished.
        delete_checkpoint_on_success=False,
    )
    columns = None if options.carry is None else list(dict.fromkeys([options.text_column, *options.carry]))
    # The folder, not its files: Ray 2.60 looks at several paths in threads, whose first import of fsspec can fail.
    rows = ray.data.read_parquet(inputs, filesystem=source, columns=columns, include_row_hash=True, num_cpus=SMALL_TASK)
    vectors = rows.map_batches(
        EmbedBatches,
        fn_constructor_kwargs={
            "model": str(model),
            "text_column": options.text_column,
            "prompt_name": options.prompt_name,
            "normalize_embeddings": options.normalize,
            "dtype": options.dtype,
            # Where Ray gives an actor no GPU, it hides none either.
            "device": "cuda" if options.gpus_per_worker else "cpu",
        },
        batch_format="pyarrow",
        batch_size=options.batch_size,
        compute=ActorPoolStrategy(size=options.workers),
        num_cpus=options.cpus_per_worker,
        num_gpus=options.gpus_per_worker,
    )
    try:
        vectors.write_parquet(f"{output}/vectors", filesystem=target, ray_remote_args={"num_cpus": SMALL_TASK})
    except RayError as error:
        # Ray has printed all of it; what a worker's model or a file had to say stands somewhere inside.
        ours = [line for line in str(error).splitlines() if line.startswith("padless.")]
        if not ours:
            raise
        raise JobError(ours[-1].partition(": ")[2]) from error


def place(name: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or a URI, and the path in it."""
    return fs.FileSystem.from_uri(name if "://" in name else str(Path(name).resolve()))


def parquet_files(source: fs.FileSystem, folder: str) -> list[fs.FileInfo]:
    """The Parquet files under a folder, by their paths; without those that Ray does not read, `_name` and `.name`."""
    found = source.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    inside = [file for file in found if not file.path.removeprefix(folder).lstrip("/").startswith(("_", "."))]
    return sorted((file for file in inside if file.path.endswith(".parquet")), key=lambda file: file.path)


def check_columns(options: argparse.Namespace, source: fs.FileSystem, file: fs.FileInfo) -> None:
    """Raise InputError where a file lacks a column, or has one of those that are added; Ray finds that late."""
    schema = pq.read_schema(file.path, filesystem=source)
    found = schema.names
    for column in (options.text_column, *(options.carry or ())):
        if column not in found:
            raise InputError(f"{file.path}: no column {column!r}; columns found: {', '.join(found) or 'none'}")
    kind = schema.field(options.text_column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)):
        raise InputError(f"{file.path}: column {options.text_column!r} has type {kind}, expected string")
    for column in ("embedding", ERROR_COLUMN, ROW_HASH):
        if column in (found if options.carry is None else options.carry):
            raise InputError(f"{file.path}: column {column!r} has the name of a result; leave it out with --carry")


def job_of(options: argparse.Namespace, model: Path, files: list[fs.FileInfo]) -> dict[str, Any]:
    """What makes two runs the same job: the rows it reads and what it computes from them."""
    return {
        "model": fingerprint_model(model),
        "text_column": options.text_column,
        "carry": options.carry,
        "prompt_name": options.prompt_name,
        "normalize": options.normalize,
        "dtype": options.dtype,
        "files": {file.path: file.size for file in files},
    }


def claim(target: fs.FileSystem, output: str, job: dict[str, Any]) -> None:
    """Write OUTPUT/job.json, unless the same job is in it; one that wrote nothing makes room for another.

    Raises:
        JobError: OUTPUT has rows of another job.
    """
    path = f"{output}/job.json"
    if target.get_file_info(path).type != fs.FileType.NotFound:
        with target.open_input_stream(path) as stream:
            earlier = json.loads(stream.read())
        changed = [name for name, value in job.items() if earlier.get(name) != value]
        if not changed:
            return
        if parquet_files(target, f"{output}/checkpoint") or parquet_files(target, f"{output}/vectors"):
            raise JobError(f"{output}: holds rows of a job with another {changed[0]}, expected an output of its own")
    target.create_dir(output, recursive=True)
    with target.open_output_stream(f"{path}.tmp") as stream:
        stream.write(json.dumps(job, indent=1).encode())
    target.move(f"{path}.tmp", path)


def check_cpus(options: argparse.Namespace, available: float) -> None:
    """Raise OptionError where the workers leave less than a CPU each to list files and to filter rows: Ray would wait
    for ever.
    """
    needed = options.workers * options.cpus_per_worker + 2
    if needed > available:
        raise OptionError(
            f"{options.workers} workers of {options.cpus_per_worker:g} CPUs and 2 CPUs for Ray's own tasks "
            f"are {needed:g}, the cluster has {available:g}; lower --workers or --cpus-per-worker (fractions are fine)"
        )


def rows_of(filesystem: fs.FileSystem, file: fs.FileInfo) -> int:
    """Rows of a Parquet file, from its footer."""
    return pq.read_metadata(file.path, filesystem=filesystem).num_rows


def counted(target: fs.FileSystem, folder: str, expected: int) -> dict[str, Any]:
    """Count what was written.

    Raises:
        JobError: not every row is there exactly once.
    """
    rows = errors = 0
    for file in parquet_files(target, folder):
        reasons = pq.read_table(file.path, filesystem=target, columns=[ERROR_COLUMN]).column(0)
        rows, errors = rows + len(reasons), errors + len(reasons) - reasons.null_count
    if rows != expected:
        raise JobError(f"{folder}: {rows:,} rows, expected {expected:,}")
    return {"rows": rows, "vectors": rows - errors, "errors": errors, "output": folder}


if __name__ == "__main__":
    main()
