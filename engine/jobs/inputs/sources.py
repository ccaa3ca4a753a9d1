"""From what the command line names to files: globs and folders expanded, the format found by the suffix."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError, OptionError
from ..layout import MANIFEST, SHARDS

__all__ = ["COMPRESSIONS", "FORMATS", "STANDARD_INPUT", "Source", "find_sources"]

STANDARD_INPUT = "-"

FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".lz4": "lz4"}

_BINARY = ("parquet", "arrow")


@dataclass(frozen=True)
class Source:
    """One input before it is opened.

    Attributes:
        path: the file, or `Path("-")`.
        format: one of the values of `FORMATS`.
        compression: one of the values of `COMPRESSIONS`, or None.
        is_standard_input: whether "-" was given; a file of that name is spelled with its folder.
        assumed: whether the format is the default of standard input, which nobody named.
    """

    path: Path
    format: str
    compression: str | None = None
    is_standard_input: bool = False
    assumed: bool = False


def find_sources(names: Sequence[str | Path], input_format: str | None = None) -> list[Source]:
    """The files behind `names`, in their order; those of a glob or a folder sorted by path.

    Args:
        names: files; quoted globs (`data/**/*.parquet`); folders, of which every file with a known suffix is taken, at
            any depth, except hidden ones (names that begin with "." or "_") and the outputs of jobs; "-" for standard
            input.
        input_format: the format of standard input (JSON Lines unless named) and of files whose suffix tells none.

    Raises:
        InputError: naming the source, if it does not exist, holds or matches no file, is of no known format, or if a
            file is found twice.
        OptionError: if there is no such format, or all inputs tell by their suffixes that they have another one.
    """
    if input_format is not None and input_format not in FORMATS.values():
        known = ", ".join(dict.fromkeys(FORMATS.values()))
        raise OptionError(f"input format: {input_format!r}, expected one of {known}")
    if not names:
        raise InputError("no input file given")
    sources = [source for name in names for source in _expanded(name, input_format)]
    _check_use(sources, input_format)
    seen: set[str] = set()
    for source in sources:
        place = STANDARD_INPUT if source.is_standard_input else _place(source.path)
        if place in seen:
            raise InputError(f"{source.path}: given twice, expected each input once")
        seen.add(place)
    return sources


def _check_use(sources: Sequence[Source], input_format: str | None) -> None:
    """Whoever names a format for files of another suffix would have them read as what they did not say."""
    if input_format is None or any(input_format == source.format for source in sources):
        return
    first = sources[0]
    raise OptionError(
        f"input format: {input_format} was asked for, but the suffix of {first.path} says {first.format}, which "
        "counts; leave it out, or rename the file"
    )


def _expanded(name: str | Path, input_format: str | None) -> Iterator[Source]:
    if str(name) == STANDARD_INPUT:
        yield _standard_input(input_format)
        return
    path = Path(name)
    try:
        if path.is_dir():
            yield from (_source(file, input_format) for file in _files_below(path))
        elif path.exists():
            if not path.is_file():
                raise InputError(f"{path}: not a regular file; a pipe can be read as standard input, '-'")
            yield _source(path, input_format)
        elif glob.has_magic(str(name)):
            yield from (_source(file, input_format) for file in _matches(str(name)))
        else:
            raise InputError(f"{path}: no such file")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _standard_input(input_format: str | None) -> Source:
    if input_format == "parquet":
        raise InputError("-: Parquet cannot be read from standard input, expected arrow, jsonl, csv, tsv or text")
    # Lines of text read as JSON fail loudly; JSON read as lines of text would give vectors of braces and field names.
    return Source(Path(STANDARD_INPUT), input_format or "jsonl", None, True, input_format is None)


def _source(path: Path, input_format: str | None) -> Source:
    found, compression = _by_suffix(path)
    if found is None and input_format is not None:
        found = input_format
    if found is None:
        suffix = f"suffix {path.suffix!r}" if path.suffix else "no suffix"
        raise InputError(
            f"{path}: {suffix}, expected one of {', '.join(FORMATS)}, or --input-format; "
            f"those of lines also with {', '.join(COMPRESSIONS)}"
        )
    if compression is not None and found in _BINARY:
        raise InputError(f"{path}: {found} files compressed as a whole are not read, expected it decompressed")
    return Source(path, found, compression)


def _by_suffix(path: Path) -> tuple[str | None, str | None]:
    compression = COMPRESSIONS.get(path.suffix.lower())
    inner = path.with_suffix("") if compression is not None else path
    return FORMATS.get(inner.suffix.lower()), compression


def _matches(pattern: str) -> list[Path]:
    found = [Path(match) for match in glob.glob(pattern, recursive=True) if Path(match).is_file()]
    if not found:
        raise InputError(f"{pattern}: no file matches")
    return sorted(found, key=lambda path: path.parts)


def _files_below(folder: Path) -> list[Path]:
    """The files of known formats below `folder`; of a job's output given by its own name, the shards."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error

    found: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        is_output = {MANIFEST, SHARDS} <= set(files)
        if is_output and Path(parent) != folder:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        for name in files:
            known = _by_suffix(Path(name))[0]
            if known is not None and not name.startswith((".", "_")) and (known == "parquet" or not is_output):
                found.append(Path(parent, name))
    if not found:
        raise InputError(f"{folder}: no file in this folder has a known suffix ({', '.join(FORMATS)})")
    return sorted(found, key=lambda path: path.parts)


def _place(path: Path) -> str:
    # Links to folders are followed, links to files not: two names that a folder gives to one content are two inputs.
    return str(path.parent.resolve() / path.name)
