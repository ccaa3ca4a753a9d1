"""What a job is and how far it got: manifest.json, shards.jsonl and summary.json.

manifest.json   written once, before the first shard: `job` says what is computed (another job on the same folder is
                told by it), `fixed` what the first run chose and every later run of the job must repeat for equal
                bytes, `environment` where it ran (for people).
shards.jsonl    one line a shard, appended and fsynced after the shard's file is in place and its errors are on disk.
                A shard without a line does not exist; a last line without a line end is no line.
summary.json    written at the end; a folder with one is a finished job.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import JobError
from .durable import append_durably, write_durably
from .inputs.input_file import InputFile
from .layout import MANIFEST, SHARDS, SUMMARY

__all__ = [
    "SCHEMA",
    "ShardRecord",
    "append_shard",
    "describe_inputs",
    "fingerprint_model",
    "read_shards",
    "write_manifest",
    "write_summary",
]

SCHEMA = 1
"""Version of the layout; raised when a reader of the older one would misunderstand a file."""

_MODEL_SUFFIXES = {".json", ".safetensors", ".txt", ".model"}
_ENDS_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One line of shards.jsonl: a shard that is whole.

    Attributes:
        name: file name of the shard.
        first_row: number of the first input row it covers.
        input_rows: input rows it covers, bad ones included; the next shard begins at `first_row + input_rows`.
        rows: vectors in the file.
        tokens: tokens computed for it.
        padded_tokens: tokens that batches of 32 in input order, each padded to its longest, would have computed.
        truncated: rows whose text was longer than the model takes.
        repaired: rows with a "repaired" record.
        errors: rows with an "error" record, and no vector.
        errors_bytes: length of errors.jsonl once the shard's records are in it; what follows the last shard's is torn.
        bytes: size of the file.
        blake2b: BLAKE2b-256 of the file, hexadecimal.
    """

    name: str
    first_row: int
    input_rows: int
    rows: int
    tokens: int
    padded_tokens: int
    truncated: int
    repaired: int
    errors: int
    errors_bytes: int
    bytes: int
    blake2b: str


def write_manifest(
    folder: Path, job: dict[str, object], fixed: dict[str, object], environment: dict[str, object]
) -> None:
    """Write manifest.json atomically.

    Raises:
        JobError: if the disk refuses.
    """
    digest = hashlib.blake2b(json.dumps(job, sort_keys=True).encode(), digest_size=32).hexdigest()
    content = {"schema": SCHEMA, "job_blake2b": digest, "job": job, "fixed": fixed, "environment": environment}
    write_durably(folder / MANIFEST, _pretty(content))


def append_shard(folder: Path, record: ShardRecord) -> None:
    """Commit a shard: the last step, after its file and its errors are on disk.

    Raises:
        JobError: if the disk refuses.
    """
    append_durably(folder / SHARDS, json.dumps(asdict(record)) + "\n")


def read_shards(folder: Path) -> list[ShardRecord]:
    """The committed shards, in order; a torn last line is left out.

    Raises:
        JobError: if a whole line cannot be understood.
    """
    path = folder / SHARDS
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(ShardRecord(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise JobError(f"{path}: line {number} is not a shard record ({error})") from error
    return records


def write_summary(folder: Path, summary: dict[str, object]) -> None:
    """Write summary.json atomically; its presence says that the job is finished.

    Raises:
        JobError: if the disk refuses.
    """
    write_durably(folder / SUMMARY, _pretty(summary))


def describe_inputs(inputs: Sequence[InputFile]) -> list[dict[str, object]]:
    """What tells the input files from others: name, format, size, and a digest of their first and last 64 KiB."""
    return [
        {"name": file.name, "format": file.format, "bytes": file.bytes, "blake2b_of_ends": _digest_of_ends(file)}
        for file in inputs
    ]


def fingerprint_model(folder: Path) -> str:
    """BLAKE2b-256 over the names and contents of the files a model is loaded from, hexadecimal."""
    whole = hashlib.blake2b(digest_size=32)
    for path in sorted(folder.rglob("*")):
        if path.suffix in _MODEL_SUFFIXES and path.is_file():
            with path.open("rb") as handle:
                digest = hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=32)).hexdigest()
            whole.update(f"{path.relative_to(folder).as_posix()}\0{digest}\n".encode())
    return whole.hexdigest()


def _digest_of_ends(file: InputFile) -> str:
    with file.path.open("rb") as handle:
        digest = hashlib.blake2b(handle.read(_ENDS_BYTES), digest_size=32)
        handle.seek(max(0, file.bytes - _ENDS_BYTES))
        digest.update(handle.read(_ENDS_BYTES))
    return digest.hexdigest()


def _pretty(content: dict[str, object]) -> str:
    return json.dumps(content, indent=2) + "\n"
