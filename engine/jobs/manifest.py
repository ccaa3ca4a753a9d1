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
from typing import Any

from ..errors import JobError
from .durable import append_durably, write_durably
from .inputs.input_file import InputFile
from .layout import MANIFEST, SHARDS, SUMMARY

__all__ = [
    "SCHEMA",
    "Manifest",
    "ShardRecord",
    "append_shard",
    "describe_inputs",
    "fingerprint_model",
    "read_manifest",
    "read_shards",
    "read_summary",
    "whole_lines_bytes",
    "write_manifest",
    "write_summary",
]

SCHEMA = 2
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
        rows: results in the file.
        tokens: tokens computed for it.
        padded_tokens: tokens that batches of 32 in input order, each padded to its longest, would have computed.
        truncated: rows whose text was longer than the model takes.
        repaired: rows with a "repaired" record.
        errors: rows with an "error" record, and no result.
        retries: batches that ran out of memory and were computed in halves.
        fallbacks: rows computed again in float32, because their result was not finite.
        errors_bytes: length of errors.jsonl once the shard's records are in it; what follows the last shard's is torn.
        bytes: size of the file.
        blake2b: BLAKE2b-256 of the file, hexadecimal.
        failed_kernels: kernels that could not be compiled or started in the process that wrote it, and how; other
            implementations served in their place.
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
    retries: int
    fallbacks: int
    errors_bytes: int
    bytes: int
    blake2b: str
    failed_kernels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of manifest.json.

    Attributes:
        job: what is computed; a job with another is another job.
        fixed: what the first run chose and every later run repeats, for equal bytes.
        environment: where the first run was made.
    """

    job: dict[str, Any]
    fixed: dict[str, Any]
    environment: dict[str, Any]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json atomically.

    Raises:
        JobError: if the disk refuses.
    """
    content = {"schema": SCHEMA, "job_blake2b": _digest(manifest.job), **asdict(manifest)}
    write_durably(folder / MANIFEST, _pretty(content))


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of the job in `folder`; None where there is none.

    Raises:
        JobError: if it cannot be read, is of another schema, or was changed by hand.
    """
    path = folder / MANIFEST
    content = _read_json(path)
    if content is None:
        return None
    if content.get("schema") != SCHEMA:
        found = content.get("schema")
        raise JobError(f"{path}: has schema {found!r}, of another version of padless; expected {SCHEMA}")
    parts = [content.get(name) for name in ("job", "fixed", "environment")]
    if not all(isinstance(part, dict) for part in parts) or content.get("job_blake2b") != _digest(parts[0]):
        raise JobError(f"{path}: is damaged: the job does not have the digest that stands beside it")
    return Manifest(*parts)  # type: ignore[arg-type]


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
            content = json.loads(line)
            records.append(ShardRecord(**{**content, "failed_kernels": tuple(content.get("failed_kernels", ()))}))
        except (ValueError, TypeError) as error:
            raise JobError(f"{path}: line {number} is not a shard record ({error})") from error
    return records


def whole_lines_bytes(folder: Path) -> int:
    """Length of shards.jsonl up to its last line end; what follows is torn."""
    path = folder / SHARDS
    return path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0


def write_summary(folder: Path, summary: dict[str, object]) -> None:
    """Write summary.json atomically; its presence says that the job is finished.

    Raises:
        JobError: if the disk refuses.
    """
    write_durably(folder / SUMMARY, _pretty(summary))


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The content of summary.json; None where there is none, and the job is not finished.

    Raises:
        JobError: if it cannot be read.
    """
    return _read_json(folder / SUMMARY)


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


def _digest_of_ends(file: InputFile) -> str | None:
    if not file.rereadable:
        return None
    with file.path.open("rb") as handle:
        digest = hashlib.blake2b(handle.read(_ENDS_BYTES), digest_size=32)
        handle.seek(max(0, file.bytes - _ENDS_BYTES))
        digest.update(handle.read(_ENDS_BYTES))
    return digest.hexdigest()


def _digest(job: object) -> str:
    return hashlib.blake2b(json.dumps(job, sort_keys=True).encode(), digest_size=32).hexdigest()


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise JobError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise JobError(f"{path}: is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise JobError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _pretty(content: dict[str, object]) -> str:
    return json.dumps(content, indent=2) + "\n"
