"""Long texts of which a job is handed a beginning: what it reads, records and writes is as if it had them whole."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

import padless
from padless.engine.errors import InputError
from padless.engine.jobs.embedding import EmbeddingOptions, EmbeddingTask
from padless.engine.jobs.inputs import columnar, csv_input, json_lines_input, json_long_lines, long_texts, parquet_input
from padless.engine.jobs.inputs.input_file import InputColumns
from padless.engine.jobs.inputs.parquet_pages import find_pages
from padless.engine.jobs.inputs.reader import open_inputs, read_rows
from padless.engine.jobs.inputs.rows import Row
from padless.engine.jobs.run import run_job

COLUMNS = InputColumns(id="id", kept=("name",))


@pytest.fixture
def short_beginnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are long from 64 bytes on, and taken in pieces of 19: a pair of escapes is 12."""
    for module in (columnar, csv_input, json_long_lines, long_texts):
        monkeypatch.setattr(module, "BEGINNING", 64)
    for module in (json_long_lines, long_texts):
        monkeypatch.setattr(module, "PIECE", 19)
    monkeypatch.setattr(json_lines_input, "LONG_LINE_BYTES", 80)
    monkeypatch.setattr(parquet_input, "BATCH_BYTES", 60)


def random_text(some: random.Random, alphabet: str) -> str:
    return "".join(some.choices(alphabet, k=some.choice((3, 40, 63, 64, 65, 100, 300))))


def records(seed: int, alphabet: str) -> list[dict[str, Any]]:
    some = random.Random(seed)
    return [
        {"id": f"i{number}", "text": random_text(some, alphabet), "name": random_text(some, alphabet)}
        for number in range(60)
    ]


def assert_same_but_for_the_rest(found: list[Row], whole: list[Row], cut: int = 3) -> None:
    """Beginnings in the place of texts, at least `cut` of them, and nothing else."""
    assert len(found) == len(whole)
    for row, other in zip(found, whole, strict=True):
        text, full = row.text, other.text
        assert (text is None) == (full is None)
        if text is not None and full is not None:
            assert full.startswith(text)
            assert len(full) == len(text) + row.unseen
        assert row.characters == other.characters
        same = ("number", "file_row", "id", "kind", "reason", "pair", "kept")
        assert [getattr(row, name) for name in same] == [getattr(other, name) for name in same]
    assert sum(row.unseen > 0 for row in found) >= cut


def both(path: Path, columns: InputColumns = COLUMNS) -> tuple[list[Row], list[Row]]:
    """The rows with beginnings wherever they are possible, and whole."""
    found = list(read_rows(open_inputs([path], columns), is_enough=lambda _: True))
    return found, list(read_rows(open_inputs([path], columns)))


@pytest.mark.usefixtures("short_beginnings")
@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_json_lines(tmp_path: Path, seed: int, ascii_only: bool) -> None:
    """Escapes, surrogates in pairs and alone, quotes, backslashes; what is malformed stays so, at the same place."""
    some = random.Random(seed)
    path = tmp_path / "in.jsonl"
    lines = []
    for record in records(seed, 'ab "\\/\n\té漢😀\ud83d\ude00\ud800\udfff'):
        record["name"] = record["name"][: some.choice((5, 5, 5, 100))]
        line = json.dumps(record, ensure_ascii=True).encode()
        if not ascii_only:
            whole_pairs = {key: text.encode("utf-16", "surrogatepass") for key, text in record.items()}
            kept = {key: text.decode("utf-16", "replace") for key, text in whole_pairs.items()}
            line = json.dumps(kept, ensure_ascii=False).encode()
        fault = some.randrange(12)
        if fault == 0:
            line = line[: some.randrange(len(line))]
        elif fault == 1:
            place = some.randrange(len(line))
            line = line[:place] + some.choice((b'"', b"\\", b"\x01", b"\xff", b"\\u12", b"{")) + line[place:]
        elif fault == 2:
            line = line.replace(b'"text"', b'"name"')
        elif fault == 3:
            line = line[:-1] + b', "text": [' + line + b"]}"
        elif fault == 4:
            line = line[:-1] + b', "more": ' + json.dumps("x" * 200).encode() + b"}"
        lines.append(line)
    path.write_bytes(b"\n".join(lines))
    found, whole = both(path)
    assert_same_but_for_the_rest(found, whole)
    assert {row.kind for row in whole} >= {"error", "repaired" if ascii_only else "ok"}


def test_a_string_cannot_pass_for_a_long_one(tmp_path: Path) -> None:
    """The text is short here, and named like whatever may stand for the long string beside it."""
    long = "long " * (json_long_lines.LONG_LINE_BYTES // 4)
    names = ["long string 0", json_long_lines.__doc__ or ""]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": name, "more": long}) + "\n" for name in names))
    found, _ = both(path, InputColumns())
    assert [row.text for row in found] == names


@pytest.mark.usefixtures("short_beginnings")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["in.csv", "in.txt", "in.txt.gz"])
def test_lines_and_csv(tmp_path: Path, name: str, seed: int) -> None:
    some = random.Random(seed)
    quoted = seed % 2
    lines = [b"id,text,name"]
    for record in records(seed, "ab é漢😀" + '"\r\n,' * quoted):
        if "csv" in name:
            fields = [f'"{value.replace(chr(34), chr(34) * 2)}"' if quoted else value for value in record.values()]
            line = ",".join(fields).encode()
        else:
            line = record["text"].replace("\r", " ").replace("\n", " ").encode()
        if some.randrange(8) == 0:
            place = some.randrange(len(line))
            line = line[:place] + some.choice((b"\xff", b"\xe6\xbc", b"\xf0\x9f\x98")) + line[place:]
        lines.append(line)
    content = b"\n".join(lines)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    found, whole = both(tmp_path / name, COLUMNS if "csv" in name else InputColumns())
    assert_same_but_for_the_rest(found, whole)
    assert {row.kind for row in whole} >= {"ok", "error"}


def write_table(path: Path, table: pa.Table, **options: Any) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table, path, **options)
        return
    make = pa.ipc.new_file if path.suffix == ".arrow" else pa.ipc.new_stream
    with make(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=17)


def strings_with_faults(texts: list[Any], faults: random.Random) -> pa.Array:
    """A string column of bytes, some of them null, some of them no UTF-8."""
    raw = [None if faults.randrange(9) == 0 else text.encode() for text in texts]
    raw = [text and text + b"\xe6\xbc" if faults.randrange(9) == 0 else text for text in raw]
    return pa.array(raw, pa.binary()).view(pa.string())


@pytest.mark.usefixtures("short_beginnings")
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ["in.parquet", "in.arrow", "in.arrows"])
@pytest.mark.parametrize("columns", [COLUMNS, InputColumns(), InputColumns(kept=("text",))], ids=["more", "1", "kept"])
def test_columns(tmp_path: Path, name: str, seed: int, columns: InputColumns) -> None:
    some = random.Random(seed)
    rows = records(seed, "ab é漢😀")
    table = pa.table({name: [row[name] for row in rows] for name in ("id", "name")})
    table = table.append_column("text", strings_with_faults([row["text"] for row in rows], some))
    path = tmp_path / name
    write_table(path, table, **({"row_group_size": 25} if name == "in.parquet" else {}))
    found, whole = both(path, columns)
    assert_same_but_for_the_rest(found, whole)
    assert {row.kind for row in whole} >= {"ok", "error"}
    for skip in (1, 25, 26, 59, 60):
        assert list(read_rows(open_inputs([path], columns), skip, lambda _: True)) == found[skip:]


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "brotli"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_pages_have_the_values_that_arrow_reads(
    tmp_path: Path, compression: str, version: str, dictionary: bool
) -> None:
    """Dictionaries that repeat and that overflow, pages small and large, nulls in runs, columns without nulls."""
    some = random.Random(20250117)
    for case in range(6):
        count = some.choice((0, 1, 7, 8, 9, 1000, 5000))
        known = ["".join(some.choices("abé漢", k=some.randrange(30))) for _ in range(some.choice((1, 2, 300, 5000)))]
        texts: list[str | None] = some.choices(known, k=count)
        nullable = case % 3 > 0
        if nullable:
            chance = some.random()
            texts = [None if some.random() < chance else text for text in texts]
        schema = pa.schema([pa.field("n", pa.int64()), pa.field("text", pa.string(), nullable=nullable)])
        table = pa.table({"n": range(count), "text": texts}, schema)
        path = tmp_path / f"{case}.parquet"
        pq.write_table(
            table, path, compression=compression, data_page_version=version, use_dictionary=dictionary,
            data_page_size=some.choice((100, 10_000, 1 << 20)), dictionary_pagesize_limit=some.choice((500, 1 << 20)),
            row_group_size=some.choice((700, 10_000)),
        )  # fmt: skip
        metadata, found = pq.read_metadata(path), []
        with path.open("rb") as handle:
            for group in range(metadata.num_row_groups):
                pages = find_pages(handle, metadata, group, "text", -1)
                assert pages is not None or not metadata.row_group(group).num_rows
                values: Iterator[Any] = iter(()) if pages is None else pages.values()
                found += [None if value is None else str(value, "utf-8") for value in values]
        assert found == texts


def rows_or_complaint(path: Path) -> tuple[str, list[Row]]:
    try:
        return "", list(read_rows(open_inputs([path]), is_enough=lambda _: True))
    except InputError as error:
        return str(error), []


@pytest.mark.usefixtures("short_beginnings")
def test_damaged_pages_are_one_line(tmp_path: Path) -> None:
    """Whatever is wrong with the bytes, no other exception and no row that was not in the file before the damage."""
    table = pa.table({"text": [f"{number} " + "moon " * 40 for number in range(50)]})
    path, some = tmp_path / "in.parquet", random.Random(20250117)
    pq.write_table(table, path, compression="none", use_dictionary=False)
    content = path.read_bytes()
    end = pq.read_metadata(path).row_group(0).column(0).total_compressed_size + 4
    stopped = 0
    for _ in range(150):
        place = some.randrange(4, end)
        path.write_bytes(content[:place] + some.randbytes(some.randint(1, 4)) + content[place:][4:])
        complaint, rows = rows_or_complaint(path)
        if complaint:
            assert "unreadable after row" in complaint
            assert "\n" not in complaint
            stopped += 1
        else:
            assert len(rows) == 50
    assert stopped > 5


class SeesWhole(EmbeddingTask):
    """Is handed every text whole."""

    @property
    def is_enough(self) -> None:
        return None


def big_records() -> list[dict[str, Any]]:
    """Documents around and beyond the length of a beginning, of which some are not enough; short rows between them."""
    size = long_texts.BEGINNING
    units = ["😀 sun ", " ", 'she said "no"\n']
    texts = [unit * (9 * size // 8 // len(unit.encode())) for unit in units]
    texts += [
        "the sun " * (size // 8),
        "the sun " * (size // 8) + "x",
        "bread " * 2_000_000,
        " " * size * 2 + "bread sun",
    ]
    rows = [text for long in texts for text in ("stood still", long, "night bomb")]
    return [{"id": number, "text": text} for number, text in enumerate(rows)]


@pytest.mark.parametrize("name", ["in.jsonl", "in.parquet", "in.csv"])
def test_a_job_writes_the_bytes_it_would_write_with_whole_texts(
    tiny: padless.Encoder, tmp_path: Path, name: str
) -> None:
    """Windows, batches, counters and records, too; JSON has a lone surrogate, and a fault, behind the beginning."""
    rows, path = big_records(), tmp_path / name
    if name == "in.parquet":
        pq.write_table(pa.table({"id": [row["id"] for row in rows], "text": [row["text"] for row in rows]}), path)
    elif name == "in.csv":
        fields = [row["text"].replace('"', '""') for row in rows]
        path.write_text("id,text\n" + "".join(f'{number},"{field}"\n' for number, field in enumerate(fields)))
    else:
        bad = "moon " * long_texts.BEGINNING
        lines = [json.dumps(row, ensure_ascii=row["id"] % 2 == 0) for row in rows]
        lines += [json.dumps({"id": 1, "text": bad + "\ud800"}), json.dumps({"id": 2, "text": bad})[:-1]]
        path.write_text("\n".join(lines))
    columns = InputColumns(id="id")
    handed = [row.unseen for row in read_rows(open_inputs([path], columns), is_enough=EmbeddingTask(tiny).is_enough)]
    assert sum(map(bool, handed)) >= 2
    found = []
    for task in (EmbeddingTask(tiny), SeesWhole(tiny)):
        out = tmp_path / type(task).__name__
        run_job(task, [path], out, columns=columns, rows_per_shard=20)
        names = [*sorted(file.name for file in out.glob("part-*")), "errors.jsonl", "shards.jsonl"]
        found.append({name: (out / name).read_bytes() for name in names})
    assert found[0] == found[1]
    assert len(found[0]["errors.jsonl"].splitlines()) == (2 if name == "in.jsonl" else 0)


@pytest.mark.parametrize("unit", ["In the beginning was the Word. ", "漢字仮名交文", "Él está, 😀 y ahí. ", "[SEP] a"])
@pytest.mark.parametrize("prompt", ["", "query: "])
def test_what_is_enough_has_the_first_tokens_of_a_full_encode(minilm: padless.Encoder, unit: str, prompt: str) -> None:
    """The oracle tokenises all of the document, and knows nothing of cutting it."""
    document, tokenizer = unit * (100_000 // len(unit)), minilm.tokenizer
    rust = tokenizer._rust
    limit = tokenizer.max_length
    assert limit is not None
    beginning = document[: len(document) // 3]
    assert tokenizer.is_enough(beginning, prompt=prompt)
    assert not tokenizer.is_enough(document[:200], prompt=prompt)
    assert not tokenizer.is_enough(" " * 100_000 + document[:200], prompt=prompt)
    whole = rust.encode(prompt + document).ids
    assert tokenizer.encode([beginning], prompt=prompt).input_ids.tolist() == [*whole[: limit - 1], whole[-1]]


def test_who_sees_all_of_a_text_gets_it_whole(tiny: padless.Encoder, tmp_path: Path) -> None:
    text = "moon " * (long_texts.BEGINNING // 2)
    pq.write_table(pa.table({"text": [text], "pair": ["sun"]}), tmp_path / "in.parquet")
    assert EmbeddingTask(tiny, EmbeddingOptions(long_texts="chunk")).is_enough is None
    cut = EmbeddingTask(tiny, EmbeddingOptions(long_texts="error")).is_enough
    for columns, characters in ((InputColumns(), long_texts.BEGINNING), (InputColumns(pair="pair"), len(text))):
        (row,) = read_rows(open_inputs([tmp_path / "in.parquet"], columns), is_enough=cut)
        assert len(row.text or "") == characters
