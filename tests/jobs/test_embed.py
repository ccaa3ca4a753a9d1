"""The job from files to shards: vectors, order, shard edges, manifest, errors file; with a real encoder throughout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

import padless
from padless.engine.jobs.embedding import EmbeddingOptions, EmbeddingTask
from padless.engine.jobs.inputs.input_file import InputColumns
from padless.engine.jobs.inputs.rows import Row
from padless.engine.jobs.manifest import fingerprint_model, read_shards
from padless.engine.jobs.run import run_job
from padless.engine.jobs.summary import Summary
from padless.engine.jobs.windows import cut_windows

TEXTS = [
    "The sun stood still in the sky.",
    "",
    "And God said, Let there be light: and there was light.",
    "light " * 400,
    "nul \x00 byte",
    "🙂 emoji and שלום",
    "In the beginning was the Word",
    "x",
    "   ",
    "He maketh me to lie down in green pastures: he leadeth me beside the still waters.",
    "Jesus wept.",
]


def table_of(folder: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("part-*.parquet")))


def vectors_of(table: pa.Table) -> np.ndarray:
    column = table["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def records(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "errors.jsonl").read_text().splitlines()]


@pytest.fixture
def write_parquet(tmp_path: Path) -> Callable[..., Path]:
    def write(**columns: object) -> Path:
        pq.write_table(pa.table(columns), tmp_path / "in.parquet")
        return tmp_path / "in.parquet"

    return write


def test_vectors_are_those_of_encode_in_the_order_of_the_rows(
    minilm: padless.Encoder, write_parquet: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_parquet(key=[f"k{i}" for i in range(len(TEXTS))], text=TEXTS)
    summary = run_job(EmbeddingTask(minilm), [path], tmp_path / "out", columns=InputColumns(id="key"), rows_per_shard=4)
    table = table_of(tmp_path / "out")
    assert table.schema.names == ["row", "key", "embedding", "truncated"]
    assert table.schema.field("row").type == pa.int64()
    assert table.schema.field("embedding").type.list_size == 384
    assert table.schema.field("embedding").type.value_type == pa.float32()
    assert table["row"].to_pylist() == list(range(11))
    assert table["key"].to_pylist() == [f"k{i}" for i in range(11)]
    np.testing.assert_allclose(vectors_of(table), minilm.encode(TEXTS), atol=1e-6, rtol=0)
    assert (summary.rows, summary.results, summary.errors, summary.repaired, summary.shards) == (11, 11, 0, 0, 3)
    assert summary.truncated == 1
    assert summary.tokens == sum(min(minilm.tokenizer.count_tokens(text), 256) for text in TEXTS)


def test_batches_stay_within_a_shard(tiny: padless.Encoder, tmp_path: Path) -> None:
    """A shard has the bits of its own texts encoded alone: what comes before and after it never matters."""
    texts = [("sun moon river " * (i % 17)).strip() for i in range(103)]
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n")
    run_job(EmbeddingTask(tiny), [tmp_path / "in.txt"], tmp_path / "out", rows_per_shard=25)
    parts = sorted((tmp_path / "out").glob("part-*.parquet"))
    assert [pq.read_table(part)["row"].to_pylist() for part in parts] == [
        list(range(first, min(first + 25, 103))) for first in range(0, 103, 25)
    ]
    for first, part in zip(range(0, 103, 25), parts, strict=True):
        np.testing.assert_array_equal(vectors_of(pq.read_table(part)), tiny.encode(texts[first : first + 25]))


def test_a_second_run_writes_the_same_bytes(tiny: padless.Encoder, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "sun"}\n{"text": 1}\n{"text": "moon"}\n' * 33)
    for name in ("a", "b"):
        run_job(EmbeddingTask(tiny), [tmp_path / "in.jsonl"], tmp_path / name, rows_per_shard=30)
    names = [path.name for path in sorted((tmp_path / "a").iterdir()) if path.name != "summary.json"]
    assert names == ["errors.jsonl", "manifest.json", *(f"part-0000{i}.parquet" for i in range(4)), "shards.jsonl"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_shards_file_tells_the_truth(tiny: padless.Encoder, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(
        '{"text": "the sun"}\n{"text": null}\nbroken\n{"text": "\\ud800"}\n{"text": "moon"}\n'
    )
    out = tmp_path / "out"
    run_job(EmbeddingTask(tiny), [tmp_path / "in.jsonl"], out, rows_per_shard=2)
    shards = read_shards(out)
    assert [shard.name for shard in shards] == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert [(shard.first_row, shard.input_rows, shard.rows) for shard in shards] == [(0, 2, 1), (2, 2, 1), (4, 1, 1)]
    assert [(shard.errors, shard.repaired) for shard in shards] == [(1, 0), (1, 1), (0, 0)]
    assert [shard.tokens for shard in shards] == [4, 2, 3]  # BERT's normaliser drops U+FFFD
    lines = (out / "errors.jsonl").read_bytes().splitlines(keepends=True)
    ends = [sum(map(len, lines[:count])) for count in (1, 3, 3)]
    assert [shard.errors_bytes for shard in shards] == ends
    for shard in shards:
        content = (out / shard.name).read_bytes()
        assert len(content) == shard.bytes
        assert hashlib.blake2b(content, digest_size=32).hexdigest() == shard.blake2b
        assert pq.read_metadata(out / shard.name).num_rows == shard.rows


def test_torn_last_line_of_the_shards_file_is_no_shard(tiny: padless.Encoder, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\nb\nc\n")
    run_job(EmbeddingTask(tiny), [tmp_path / "in.txt"], tmp_path / "out", rows_per_shard=1)
    path = tmp_path / "out" / "shards.jsonl"
    whole = path.read_bytes()
    ends = [position + 1 for position, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        assert len(read_shards(tmp_path / "out")) == sum(end <= length for end in ends)


def test_bad_rows_are_recorded_and_their_neighbours_embedded(tiny: padless.Encoder, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    lines = [
        b'{"text": "sun", "id": "a"}',
        b'{"text": null, "id": "b"}',
        b'{"text": 7, "id": "c"}',
        b"",
        b'{"text": "moon',
        b'{"text": "\xff"}',
        rb'{"text": "x\ud800y", "id": "g"}',
        b'{"text": "river", "id": "h"}',
        b'{"text": false, "id": "i"}',
    ]
    path.write_bytes(b"\n".join(lines))
    summary = run_job(EmbeddingTask(tiny), [path], tmp_path / "out", columns=InputColumns(id="id"))
    table = table_of(tmp_path / "out")
    assert list(zip(table["row"].to_pylist(), table["id"].to_pylist(), strict=True)) == [(0, "a"), (5, "g"), (6, "h")]
    np.testing.assert_allclose(vectors_of(table), tiny.encode(["sun", "x\ufffdy", "river"]), atol=1e-6, rtol=0)
    assert [(record["row"], record["id"], record["kind"]) for record in records(tmp_path / "out")] == [
        (1, "b", "error"),
        (2, "c", "error"),
        (3, None, "error"),
        (4, None, "error"),
        (5, "g", "repaired"),
        (7, "i", "error"),
    ]
    assert all(record["file"] == str(path) and record["reason"] for record in records(tmp_path / "out"))
    assert (summary.rows, summary.results, summary.errors, summary.repaired) == (8, 3, 5, 1)


def test_vector_that_is_not_finite_is_never_written(tiny_folder: Path, tmp_path: Path) -> None:
    """One word's embedding is near the largest float, so that its texts overflow; every other text is untouched."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "vocab.txt", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_folder / name).read_bytes())
    weights = load_file(tiny_folder / "model.safetensors")
    name = next(key for key in weights if key.endswith("word_embeddings.weight"))
    word = (folder / "vocab.txt").read_text().splitlines().index("bomb")
    weights[name][word] = 3e38 * torch.tensor([1.0, -1.0]).repeat(16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    encoder = padless.load(folder, device="cpu", dtype="float32")
    texts = ["sun", "the bomb", "moon", "stone and bread"]
    (tmp_path / "in.txt").write_text("\n".join(texts))
    summary = run_job(EmbeddingTask(encoder), [tmp_path / "in.txt"], tmp_path / "out")
    table = table_of(tmp_path / "out")
    assert table["row"].to_pylist() == [0, 2, 3]
    np.testing.assert_allclose(vectors_of(table), encoder.encode([texts[i] for i in (0, 2, 3)]), atol=1e-6, rtol=0)
    (record,) = records(tmp_path / "out")
    assert (record["row"], record["kind"]) == (1, "error")
    assert str(record["reason"]).startswith("the model's vector is not finite, nor is that of the eager")
    assert (summary.results, summary.errors) == (3, 1)


def test_manifest_states_the_job(tiny: padless.Encoder, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("n,body\n1,sun\n")
    (tmp_path / "more.jsonl").write_text('{"n": 2, "body": "moon"}\n')
    inputs = [tmp_path / "in.csv", tmp_path / "more.jsonl"]
    options = EmbeddingOptions(normalize_embeddings=True, truncate_dim=20)
    run_job(
        EmbeddingTask(tiny, options), inputs, tmp_path / "out", columns=InputColumns("body", id="n"), rows_per_shard=7
    )
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    job = manifest["job"]
    assert manifest["schema"] == 2
    assert [(entry["name"], entry["format"], entry["bytes"]) for entry in job["inputs"]] == [
        (str(inputs[0]), "csv", 13),
        (str(inputs[1]), "jsonl", 25),
    ]
    assert job["model"]["blake2b"] == fingerprint_model(tiny.folder)
    assert (job["text_column"], job["id_column"], job["rows_per_shard"]) == ("body", "n", 7)
    assert job["columns"] == {"embedding": "fixed_size_list<element: float not null>[20]"}
    options = {
        **{"prompt_name": None, "normalize_embeddings": True, "truncate_dim": 20, "max_seq_length": 64},
        **{"precision": "float32", "long_texts": "truncate", "overlap": 0, "aggregate": "mean"},
    }
    assert (job["task"], job["options"]) == ("embedding", options)
    fixed = manifest["fixed"]
    assert (fixed["dtype"], fixed["token_budget"]) == ("float32", tiny.token_budget)
    assert fixed["threads"] == torch.get_num_threads()
    vectors = vectors_of(table_of(tmp_path / "out"))
    expected = tiny.encode(["sun", "moon"])[:, :20]
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("changed", ["config.json", "vocab.txt", "model.safetensors"])
def test_fingerprint_follows_every_model_file(tiny_folder: Path, tmp_path: Path, changed: str) -> None:
    for path in tiny_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert fingerprint_model(tmp_path) == fingerprint_model(tiny_folder)
    content = bytearray((tmp_path / changed).read_bytes())
    content[-1] ^= 1
    (tmp_path / changed).write_bytes(content)
    assert fingerprint_model(tmp_path) != fingerprint_model(tiny_folder)


def test_summary_file_is_the_summary(tiny: padless.Encoder, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("sun\nthe moon stood still\n" * 40)
    summary = run_job(EmbeddingTask(tiny), [tmp_path / "in.txt"], tmp_path / "out")
    assert Summary(**json.loads((tmp_path / "out" / "summary.json").read_text())) == summary
    assert summary.tokens == 40 * (3 + 6)
    assert summary.padded_tokens == 80 * 6
    assert summary.padding_avoided == pytest.approx(1 - 9 / 12)
    assert summary.rows_per_second == pytest.approx(summary.rows / summary.seconds)


@pytest.mark.parametrize("name", ["in.txt", "in.jsonl", "in.csv", "in.parquet"])
def test_input_without_rows_gives_an_empty_table(tiny: padless.Encoder, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "in.parquet":
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    else:
        path.write_text("text\n" if name == "in.csv" else "")
    summary = run_job(EmbeddingTask(tiny), [path], tmp_path / "out")
    assert (summary.rows, summary.results, summary.tokens) == (0, 0, 0)
    table = table_of(tmp_path / "out")
    assert table.num_rows == 0
    assert table.schema.field("embedding").type.list_size == 32


def test_shard_of_bad_rows_only(tiny: padless.Encoder, tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": ["sun", None, None, None, "moon"]}), path)
    run_job(EmbeddingTask(tiny), [path], tmp_path / "out", rows_per_shard=2)
    assert [(shard.rows, shard.errors) for shard in read_shards(tmp_path / "out")] == [(1, 1), (0, 2), (1, 0)]
    assert table_of(tmp_path / "out")["row"].to_pylist() == [0, 4]


def test_document_far_longer_than_the_model_takes(minilm: padless.Encoder, tmp_path: Path) -> None:
    document = "sun and moon " * 300_000
    (tmp_path / "in.txt").write_text(f"sun\n{document}\nmoon\n")
    summary = run_job(EmbeddingTask(minilm), [tmp_path / "in.txt"], tmp_path / "out")
    assert summary.truncated == 1
    expected = minilm.encode(["sun", "sun and moon " * 300, "moon"])
    np.testing.assert_allclose(vectors_of(table_of(tmp_path / "out")), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows_per_shard": 0}, "rows_per_shard: expected at least 1, got 0"),
        (
            {"columns": InputColumns(id="row")},
            "'row' is the name of an output column, expected another name for an input's",
        ),
        ({"token_budget": 0}, "token_budget: expected at least 1, got 0"),
        ({"truncate_dim": 33}, "truncate_dim: expected 1 to 32, got 33"),
        ({"truncate_dim": 0}, "truncate_dim: expected 1 to 32, got 0"),
        (
            {"prompt_name": "passage"},
            "prompt_name: 'passage' is not a prompt of the model; its prompts: document, query",
        ),
    ],
)
def test_refused_options_leave_no_trace(
    tiny: padless.Encoder, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    (tmp_path / "in.csv").write_text("row,text\n1,a\n")
    options = {name: arguments.pop(name) for name in ("truncate_dim", "prompt_name") if name in arguments}
    with pytest.raises(padless.OptionError) as caught:
        run_job(EmbeddingTask(tiny, EmbeddingOptions(**options)), [tmp_path / "in.csv"], tmp_path / "out", **arguments)
    assert str(caught.value) == message
    assert not (tmp_path / "out").exists()


def test_windows_end_at_shards_rows_and_characters() -> None:
    lengths = [1, 1, 1, 50, 1, 120, 1, 1, 1, 1, 1]
    rows = [Row(number, "f", number, None, "x" * length) for number, length in enumerate(lengths)]
    rows[8] = Row(8, "f", 8, None, None, "error", "null")
    windows = [
        (window.shard, [row.number for row in window.rows])
        for window in cut_windows(rows, rows_per_shard=7, window_rows=3, window_characters=100)
    ]
    assert windows == [(0, [0, 1, 2]), (0, [3, 4, 5]), (0, [6]), (1, [7, 8, 9]), (1, [10])]
