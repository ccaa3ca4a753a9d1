"""Files in, shards of embeddings out: the job behind `padless embed`.

The life of a shard: read a window of rows, embed its good ones, write them; when the shard's last row is through, give
the file its name, append its bad rows to errors.jsonl, append its line to shards.jsonl. Only that line makes it exist.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ..errors import OptionError
from .durable import append_durably
from .errors_file import RowRecord, append_records, record_of
from .inputs.input_file import InputFile
from .inputs.reader import id_type, open_inputs, read_rows
from .layout import ERRORS, SHARDS, check_output, claim_output, part_name
from .manifest import ShardRecord, append_shard, describe_inputs, fingerprint_model, write_manifest, write_summary
from .progress import Progress, padding_avoided
from .windows import WINDOW_CHARACTERS, WINDOW_ROWS, Window, cut_windows
from .writer import ShardWriter, shard_schema

if TYPE_CHECKING:
    from ..encoder import Encoder

__all__ = ["ROWS_PER_SHARD", "EmbedOptions", "Summary", "check_embed", "embed_files"]

ROWS_PER_SHARD = 50_000


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """What is computed from each text; the arguments of `Encoder.encode` of the same names."""

    prompt_name: str | None = None
    normalize_embeddings: bool = False
    truncate_dim: int | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a finished job, also in summary.json.

    Attributes:
        output: the output folder.
        rows: input rows.
        vectors: rows that got a vector; `rows == vectors + errors`.
        errors: rows without a vector, each with its reason in errors.jsonl.
        repaired: rows whose text or id held lone surrogates, each in errors.jsonl.
        truncated: rows whose text was longer than the model takes.
        shards: Parquet files written.
        tokens: tokens computed, special tokens included.
        padded_tokens: tokens that batches of 32 in input order, each padded to its longest, would have computed.
        padding_avoided: `1 - tokens / padded_tokens`.
        seconds: wall time from the first row read to the last shard committed.
        rows_per_second: `rows / seconds`.
        tokens_per_second: `tokens / seconds`.
        dimension: numbers in a vector.
        dtype: what the model computed in.
        device: what the model computed on.
    """

    output: str
    rows: int
    vectors: int
    errors: int
    repaired: int
    truncated: int
    shards: int
    tokens: int
    padded_tokens: int
    padding_avoided: float
    seconds: float
    rows_per_second: float
    tokens_per_second: float
    dimension: int
    dtype: str
    device: str

    def text(self) -> str:
        """The summary for people, a few lines."""
        lines = [
            f"{self.vectors:,} vectors of {self.dimension} numbers, {self.shards} shard(s) in {self.output}",
            f"{self.seconds:,.1f} s, {self.rows_per_second:,.0f} rows/s, {self.tokens_per_second:,.0f} tokens/s, "
            f"{self.padding_avoided:.0%} padding avoided, {self.dtype} on {self.device}",
        ]
        if self.truncated:
            lines.append(f"{self.truncated:,} texts were longer than the model takes and were cut")
        if self.errors or self.repaired:
            where = Path(self.output) / ERRORS
            lines.append(f"{self.errors:,} rows without a vector, {self.repaired:,} repaired: see {where}")
        return "\n".join(lines)


def check_embed(
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    text_column: str = "text",
    id_column: str | None = None,
    rows_per_shard: int = ROWS_PER_SHARD,
    overwrite: bool = False,
) -> tuple[InputFile, ...]:
    """Every check of a job that needs no model, changing nothing; `embed_files` makes them again.

    Raises:
        InputError, OptionError, JobError: as `embed_files` does.
    """
    if rows_per_shard < 1:
        raise OptionError(f"rows_per_shard: expected at least 1, got {rows_per_shard}")
    if id_column in ("row", "embedding"):
        raise OptionError(f"id_column: {id_column!r} is the name of an output column, expected another name")
    files = open_inputs(inputs, text_column, id_column)
    check_output(Path(output), [file.path for file in files], overwrite=overwrite)
    return files


def embed_files(
    encoder: Encoder,
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    text_column: str = "text",
    id_column: str | None = None,
    rows_per_shard: int = ROWS_PER_SHARD,
    options: EmbedOptions | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Summary:
    """Embed every row of the inputs into Parquet shards in the folder `output`.

    A bad row (null, no string, malformed, not UTF-8, or with a vector that is not finite) costs itself only: it is
    recorded in errors.jsonl and the job goes on. Memory is bounded by a window of rows, not by the inputs.

    Args:
        encoder: from `padless.load`; its dtype, device and token budget are the job's.
        inputs: files of the formats of `open_inputs`, their rows numbered through in this order.
        output: a folder that is empty or absent.
        text_column: the column or field to embed.
        id_column: a column of integers or strings to carry into the shards.
        rows_per_shard: input rows a shard covers.
        options: what is computed from each text.
        overwrite: remove an earlier job's files from `output` first.
        progress: show a bar on stderr.

    Raises:
        InputError: an input is missing, unreadable, of an unknown format, or lacks a column.
        OptionError: an argument is out of range, or the model has no such prompt.
        JobError: `output` is unusable, or the disk refuses.
    """
    options = options or EmbedOptions()
    folder = Path(output)
    files = check_embed(
        inputs,
        output,
        text_column=text_column,
        id_column=id_column,
        rows_per_shard=rows_per_shard,
        overwrite=overwrite,
    )
    dimension = _output_dimension(encoder, options)
    job = {
        "task": "embedding",
        "model": {"name": encoder.folder.name, "blake2b": fingerprint_model(encoder.folder)},
        "inputs": describe_inputs(files),
        "text_column": text_column,
        "id_column": id_column,
        "options": asdict(options),
        "max_seq_length": encoder.max_seq_length,
        "dimension": dimension,
        "rows_per_shard": rows_per_shard,
    }
    claim_output(folder, [file.path for file in files], overwrite=overwrite)
    write_manifest(folder, job, _fixed(encoder), _environment(encoder))
    append_durably(folder / ERRORS, "")
    append_durably(folder / SHARDS, "")
    with Progress(show=progress) as bar:
        started = time.perf_counter()
        run = _Run(encoder, folder, files, options, shard_schema(dimension, id_column, id_type(files)), bar)
        shards = [
            run.embed_shard(index, windows)
            for index, windows in groupby(
                cut_windows(read_rows(files), rows_per_shard), key=lambda window: window.shard
            )
        ]
        # An input without rows still gets a shard, so that whoever reads the folder finds the columns.
        shards = shards or [run.embed_shard(0, [])]
        seconds = time.perf_counter() - started
    summary = _summarise(folder, shards, seconds, dimension, encoder)
    write_summary(folder, asdict(summary))
    return summary


class _Run:
    """One run of a job: reads the windows of a shard, writes the shard, commits it."""

    def __init__(
        self,
        encoder: Encoder,
        folder: Path,
        files: Sequence[InputFile],
        options: EmbedOptions,
        schema: pa.Schema,
        bar: Progress,
    ) -> None:
        self._encoder, self._folder, self._files = encoder, folder, files
        self._options, self._schema, self._bar = options, schema, bar
        self._rows_read = 0

    def embed_shard(self, index: int, windows: Iterable[Window]) -> ShardRecord:
        """Embed, write and commit shard `index`."""
        first_row = self._rows_read
        tokens = padded_tokens = truncated = 0
        records: list[RowRecord] = []
        with ShardWriter(self._folder / part_name(index), self._schema) as writer:
            for window in windows:
                counts = self._embed_window(window, writer, records)
                tokens, padded_tokens = tokens + counts[0], padded_tokens + counts[1]
                truncated += counts[2]
            size, digest = writer.commit()
        errors = sum(record.kind == "error" for record in records)
        shard = ShardRecord(
            name=writer.path.name,
            first_row=first_row,
            input_rows=self._rows_read - first_row,
            rows=writer.rows_written,
            tokens=tokens,
            padded_tokens=padded_tokens,
            truncated=truncated,
            repaired=len(records) - errors,
            errors=errors,
            errors_bytes=append_records(self._folder / ERRORS, sorted(records, key=lambda record: record.row)),
            bytes=size,
            blake2b=digest,
        )
        append_shard(self._folder, shard)
        return shard

    def _embed_window(self, window: Window, writer: ShardWriter, records: list[RowRecord]) -> tuple[int, int, int]:
        """Write the window's vectors, note its bad rows; returns tokens, padded tokens and truncated texts."""
        from ..encoder import EncodeStats  # brings torch: not needed to check or describe a job

        self._rows_read += len(window.rows)
        self._bar.expect(self._rows_read, self._fraction_read())
        good = [row for row in window.rows if row.text is not None]
        stats = EncodeStats()
        vectors = self._encoder.encode(
            [row.text for row in good if row.text is not None],
            prompt_name=self._options.prompt_name,
            normalize_embeddings=self._options.normalize_embeddings,
            truncate_dim=self._options.truncate_dim,
            check_finite=False,  # here such a row costs itself only
            stats=stats,
            on_batch=self._bar.advance,
        )
        finite = np.isfinite(vectors).all(axis=1)
        records += [record_of(row) for row in window.rows if row.kind == "error"]
        records += [record_of(row) for row, ok in zip(good, finite, strict=True) if ok and row.kind == "repaired"]
        reason = "the model's vector is not finite"
        records += [record_of(row, reason) for row, ok in zip(good, finite, strict=True) if not ok]
        writer.write([row for row, ok in zip(good, finite, strict=True) if ok], vectors[finite])
        self._bar.skip(len(window.rows) - len(good))
        self._bar.window_done(stats.tokens, stats.padded_tokens)
        return stats.tokens, stats.padded_tokens, stats.truncated

    def _fraction_read(self) -> float:
        size = sum(file.bytes for file in self._files)
        return sum(file.bytes * file.fraction_read for file in self._files) / size if size else 1.0


def _output_dimension(encoder: Encoder, options: EmbedOptions) -> int:
    """Numbers in a vector of this job; raises OptionError where the options do not fit the model."""
    if options.prompt_name is not None and options.prompt_name not in encoder.prompts:
        known = ", ".join(sorted(encoder.prompts)) or "none"
        raise OptionError(f"prompt_name: {options.prompt_name!r} is not a prompt of the model; its prompts: {known}")
    if options.truncate_dim is None:
        return encoder.dimension
    if not 1 <= options.truncate_dim <= encoder.dimension:
        raise OptionError(f"truncate_dim: expected 1 to {encoder.dimension}, got {options.truncate_dim}")
    return options.truncate_dim


def _fixed(encoder: Encoder) -> dict[str, object]:
    """What the bits of a vector depend on beside the job itself."""
    import torch

    return {
        "dtype": _dtype_name(encoder),
        "token_budget": encoder.token_budget,
        "threads": torch.get_num_threads(),
        "window_rows": WINDOW_ROWS,
        "window_characters": WINDOW_CHARACTERS,
    }


def _environment(encoder: Encoder) -> dict[str, object]:
    import torch

    return {
        "padless": _version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(encoder.device),
        "explain": encoder.explain().splitlines(),
    }


def _version() -> str:
    try:
        return version("padless")
    except PackageNotFoundError:  # imported from a path, never installed
        return "not installed"


def _dtype_name(encoder: Encoder) -> str:
    return str(encoder.dtype).removeprefix("torch.")


def _summarise(
    folder: Path, shards: Sequence[ShardRecord], seconds: float, dimension: int, encoder: Encoder
) -> Summary:
    rows = sum(shard.input_rows for shard in shards)
    tokens = sum(shard.tokens for shard in shards)
    padded_tokens = sum(shard.padded_tokens for shard in shards)
    return Summary(
        output=str(folder),
        rows=rows,
        vectors=sum(shard.rows for shard in shards),
        errors=sum(shard.errors for shard in shards),
        repaired=sum(shard.repaired for shard in shards),
        truncated=sum(shard.truncated for shard in shards),
        shards=len(shards),
        tokens=tokens,
        padded_tokens=padded_tokens,
        padding_avoided=padding_avoided(tokens, padded_tokens),
        seconds=seconds,
        rows_per_second=rows / seconds,
        tokens_per_second=tokens / seconds,
        dimension=dimension,
        dtype=_dtype_name(encoder),
        device=str(encoder.device),
    )
