"""`configs.json` of a GPU report: entries on their way from the machine that measured to the files that are shipped.

    {
    "schema": 1,
    "kind": "tuned configurations",
    "note": what a person should know, such as why there is none,
    "records": [
    a file of `record.py` with one entry and its own checksum,
    ...
    ]}

Each record stands for itself, so that one that is damaged is refused alone. Filing replaces an older entry of the same
key and GPU whatever version made it: of a shipped file versions are no reason to miss, so one call must have one
answer there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.errors import InputError
from .key import KEYED_BY
from .record import LARGEST_FILE, SCHEMA, Entry, Record, RecordError, Tiling, decode, encode, read_record
from .user_cache import replace_file

__all__ = ["KIND", "Accepts", "Filed", "file_records", "read_exchange", "record_tree", "write_exchange"]

KIND = "tuned configurations"

Accepts = Callable[[str, Tiling], bool]
"""Whether the kernel of an op has this configuration among its candidates."""


@dataclass(frozen=True)
class Filed:
    """What became of the records of a file.

    Attributes:
        written: entries filed, by file.
        refused: a line for each record that was not, and why.
    """

    written: dict[Path, int]
    refused: tuple[str, ...]


def record_tree(target: str, op: str, entry: Entry) -> dict[str, Any]:
    """A record of one entry as plain values, for a report in JSON."""
    return json.loads(encode(Record(target, op, (entry,))))


def write_exchange(trees: Sequence[dict[str, Any]], note: str) -> str:
    """The text of a `configs.json`.

    Args:
        trees: from `record_tree`.
        note: for people.
    """
    head = f'"schema": {SCHEMA},\n"kind": {json.dumps(KIND)},\n"note": {json.dumps(note)},\n'
    lines = ",\n".join(map(json.dumps, trees))
    return "{\n" + head + (f'"records": [\n{lines}\n]}}\n' if trees else '"records": []}\n')


def read_exchange(path: Path, accepts: Accepts) -> tuple[list[Record], list[str]]:
    """The records of a file that are sound, and a line for each that is not.

    Args:
        path: the file.
        accepts: see `Accepts`.

    Raises:
        InputError: the file cannot be read, or is none of ours.
    """
    try:
        with open(path, "rb") as handle:
            content = handle.read(LARGEST_FILE + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) > LARGEST_FILE:
        raise InputError(f"{path}: expected at most {LARGEST_FILE:,} bytes, found more")
    try:
        tree = json.loads(content.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON, found something else ({type(error).__name__})") from None
    if not isinstance(tree, dict) or tree.get("kind") != KIND or not isinstance(tree.get("records"), list):
        raise InputError(f"{path}: expected the {KIND} of a GPU report, found something else")
    if type(tree.get("schema")) is not int or tree["schema"] != SCHEMA:
        raise InputError(f"{path}: schema: expected {SCHEMA}, found {str(tree.get('schema'))[:40]!r}")
    sound: list[Record] = []
    refused: list[str] = []
    for number, part in enumerate(tree["records"], start=1):
        try:
            sound.append(_checked(part, accepts))
        except RecordError as error:
            refused.append(f"{path}: record {number}: {error}")
    return sound, refused


def file_records(records: Sequence[Record], folder: Path) -> Filed:
    """Put the entries into `folder`/<GPU>/<op>.json, beside those that are there.

    Args:
        records: sound ones.
        folder: made where it is not there.

    Returns:
        What was written. A file that is there but is no record is left as it is, and its entries are refused.

    Raises:
        InputError: nothing can be written there.
    """
    written: dict[Path, int] = {}
    refused: list[str] = []
    places: dict[tuple[str, str], list[Entry]] = {}
    for record in records:
        places.setdefault((record.target, record.op), []).extend(record.entries)
    for (target, op), entries in places.items():
        path = folder / target / f"{op}.json"
        try:
            old = read_record(path, target, op)
            merged = _merged(() if old is None else old.entries, entries)
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, encode(Record(target, op, merged)), mode=0o644)
            written[path] = len(entries)
        except RecordError as error:
            refused.append(f"{error}: {len(entries)} entries not filed")
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    return Filed(written, tuple(refused))


def _checked(part: Any, accepts: Accepts) -> Record:
    """A record of entries that were measured on a named GPU, and whose configurations its op's kernel would take.

    Raises:
        RecordError: it is none.
    """
    try:
        text = json.dumps(part)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not JSON that can be read ({type(error).__name__})") from None
    record = decode(text.encode("ascii"))
    if not record.entries:
        raise RecordError("entries: expected one, found none")
    for entry in record.entries:
        if entry.provenance.gpu is None or record.target.startswith("sm_"):
            raise RecordError(f"{record.op}: expected what was measured on a GPU, found nothing measured")
        if not set(dict(entry.key)) <= set(KEYED_BY.get(record.op, ())):
            raise RecordError(
                f"{record.op}: expected a key of {', '.join(KEYED_BY.get(record.op, ('no op of ours',)))}"
            )
        if not accepts(record.op, entry.tiling):
            raise RecordError(f"{record.op}: {entry.tiling} is none of the kernel's candidates")
    return record


def _merged(old: Sequence[Entry], new: Sequence[Entry]) -> tuple[Entry, ...]:
    """Both, in the order of their keys; of one key and GPU the last."""
    found = {_place(entry): entry for entry in (*old, *new)}
    return tuple(found[place] for place in sorted(found, key=repr))


def _place(entry: Entry) -> tuple[object, ...]:
    made = entry.provenance
    return entry.key, made.gpu, made.sm, made.multiprocessors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name of an object stands twice")
    return found
