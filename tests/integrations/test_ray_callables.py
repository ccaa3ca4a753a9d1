"""The callables for Ray Data without Ray: a table in, the same table with results out, whatever its rows are."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import padless
from padless.engine.integrations.ray import AnswerBatches, EmbedBatches

TEXTS = ["the sun stood still", None, "moon", "", "the bomb", "river and stone and bread " * 40, "night"]
REASONS = {
    1: "null, expected a string",
    4: "the model's vector is not finite, nor is that of the eager implementation in float32",
}
"""Of the rows of TEXTS that have no vector."""

NOT_UTF8 = pa.StringArray.from_buffers(
    3, pa.py_buffer(b"\0\0\0\0\3\0\0\0\5\0\0\0\6\0\0\0"), pa.py_buffer(b"sun\xff\xfea")
)


@pytest.fixture(scope="module")
def embed(embedding_folder: Path) -> EmbedBatches:
    return EmbedBatches(embedding_folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def encoder(embedding_folder: Path) -> padless.Encoder:
    return padless.load(embedding_folder, device="cpu", dtype="float32")


def table(texts: Any, kind: pa.DataType | None = None) -> pa.Table:
    return pa.table({"id": pa.array(range(len(texts)), pa.int64()), "text": pa.array(texts, kind or pa.string())})


def vectors_of(result: pa.Table, column: str = "embedding") -> np.ndarray:
    return np.array([row for row in result[column].to_pylist() if row is not None], dtype=np.float32)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_vectors_stand_in_the_rows_of_their_texts(
    embed: EmbedBatches, encoder: padless.Encoder, kind: pa.DataType
) -> None:
    given = pa.concat_tables([table(TEXTS[:3], kind), table(TEXTS[3:], kind)])  # two chunks
    result = embed(given)
    result.validate(full=True)
    assert result.select(["id", "text"]).equals(given)
    assert result.column_names == ["id", "text", "embedding", "padless_error"]
    assert result.schema.field("embedding").type == pa.list_(pa.field("element", pa.float32(), nullable=False), 32)
    assert {row: reason for row, reason in enumerate(result["padless_error"].to_pylist()) if reason} == REASONS
    assert [row for row, vector in enumerate(result["embedding"].to_pylist()) if vector is None] == [1, 4]
    good = [text for row, text in enumerate(TEXTS) if row not in REASONS and text is not None]
    # Alone, one by one: what is tested is also that a bad neighbour changes nothing.
    expected = np.stack([encoder.encode(text) for text in good])
    np.testing.assert_allclose(vectors_of(result), expected, atol=1e-6, rtol=0)


def test_options_are_those_of_encode(embedding_folder: Path, encoder: padless.Encoder) -> None:
    options: dict[str, Any] = {"normalize_embeddings": True, "truncate_dim": 7, "long_texts": "chunk", "overlap": 5}
    found = EmbedBatches(
        embedding_folder, "body", embedding_column="v", error_column="e", device="cpu", dtype="float32", **options
    )(pa.table({"body": [TEXTS[0], TEXTS[5]]}))
    assert found.column_names == ["body", "v", "e"]
    expected = encoder.encode([TEXTS[0], TEXTS[5]], **options)
    np.testing.assert_allclose(vectors_of(found, "v"), expected, atol=1e-6, rtol=0)
    assert not np.allclose(expected, encoder.encode([TEXTS[0], TEXTS[5]], truncate_dim=7), atol=1e-3)


@pytest.mark.parametrize("texts", [[], [None, None], ["the bomb"]])
def test_a_table_without_a_good_row_has_the_same_columns(embed: EmbedBatches, texts: list[str | None]) -> None:
    result = embed(table(texts))
    assert result.schema == embed(table(["sun"])).schema
    assert result["embedding"].null_count == result["padless_error"].length() == len(texts)
    assert result["padless_error"].null_count == 0


def test_a_row_that_is_no_utf8_costs_itself_only(embed: EmbedBatches, encoder: padless.Encoder) -> None:
    result = embed(pa.table({"text": NOT_UTF8}))
    assert result["padless_error"].to_pylist() == [None, "invalid UTF-8 at byte 0 of the text", None]
    np.testing.assert_allclose(vectors_of(result), encoder.encode(["sun", "a"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("texts", "reasons"),
    [
        ([1, None], ["int 1, expected a string", "null, expected a string"]),
        ([b"sun", b"x" * 99], ["bytes b'sun', expected a string", f"bytes b'{'x' * 35}..., expected a string"]),
        ([["sun"]], ["list ['sun'], expected a string"]),
    ],
)
def test_values_that_are_no_strings_are_bad_rows(embed: EmbedBatches, texts: list[Any], reasons: list[str]) -> None:
    """A block of a data set of several types may happen to hold one of the others only."""
    result = embed(pa.table({"text": texts}))
    assert result["padless_error"].to_pylist() == reasons
    assert result["embedding"].null_count == len(texts)


def test_a_copy_by_pickle_computes_the_same(embedding_folder: Path) -> None:
    ours = EmbedBatches(embedding_folder, device="cpu", dtype="float32", truncate_dim=5, token_budget=77)
    copy = pickle.loads(pickle.dumps(ours))
    assert copy.task is not ours.task
    assert copy.task.token_budget == 77
    assert copy(table(TEXTS)).equals(ours(table(TEXTS)))


@pytest.mark.parametrize(("given", "named", "expected"), [(2, "1", 2), (None, "3", 3), (None, "2,1", 1)])
def test_threads_are_those_of_the_actor(
    embedding_folder: Path, monkeypatch: pytest.MonkeyPatch, given: int | None, named: str, expected: int
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", named)
    EmbedBatches(embedding_folder, device="cpu", num_threads=given)
    assert torch.get_num_threads() == expected


def test_neither_ray_nor_a_command_line_is_imported() -> None:
    code = "import sys, padless.engine.integrations.ray; print({'ray', 'typer', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr


def test_answers_are_those_of_the_task(classifier_folder: Path) -> None:
    task = padless.load(classifier_folder, device="cpu", dtype="float32")
    answer = AnswerBatches(classifier_folder, device="cpu", dtype="float32", prefix="mood_")
    result = answer(table(TEXTS[:5]))
    result.validate(full=True)
    assert result.column_names == ["id", "text", "mood_label", "mood_score", "padless_error"]
    for row in (0, 2, 3):
        expected = task(TEXTS[row])
        (expected,) = expected if isinstance(expected, list) else [expected]
        assert result["mood_label"][row].as_py() == expected["label"]
        assert result["mood_score"][row].as_py() == pytest.approx(expected["score"], abs=1e-6)
    assert result["mood_label"].to_pylist()[1] is result["mood_score"].to_pylist()[4] is None
    errors = result["padless_error"].to_pylist()
    assert [row for row, error in enumerate(errors) if error] == [1, 4]
    assert errors[1] == "null, expected a string"
    assert "finite" in errors[4] or "NaN" in errors[4]


def test_pairs_are_read_from_their_column(reader_folder: Path) -> None:
    task = padless.load(reader_folder, device="cpu", dtype="float32")
    answer = AnswerBatches(reader_folder, None, "question", "context", device="cpu", dtype="float32")
    contexts = ["the moon stood still", None, "night and river"]
    result = answer(pa.table({"question": ["moon", "sun", "river"], "context": contexts}))
    assert result["padless_error"].to_pylist() == [None, "pair: null, expected a string", None]
    for row in (0, 2):
        expected = task(question=result["question"][row].as_py(), context=contexts[row])
        assert (result["start"][row].as_py(), result["end"][row].as_py()) == (expected["start"], expected["end"])
        assert result["answer"][row].as_py() == expected["answer"] == contexts[row][expected["start"] : expected["end"]]
    copy = pickle.loads(pickle.dumps(answer))
    assert copy(pa.table({"question": ["sun"], "context": ["the sun"]}))["answer"].null_count == 0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"txt": ["sun"]}, "no column 'text'; columns found: txt"),
        ({"text": ["sun"], "embedding": [1]}, "column 'embedding' is in the table already, expected another name"),
        ({"text": ["sun"], "padless_error": [""]}, "column 'padless_error' is in the table already"),
    ],
)
def test_a_wrong_table_is_told_in_one_line(embed: EmbedBatches, columns: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(padless.InputError) as error:
        embed(pa.table(columns))
    assert str(error.value).startswith(message)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m, c, r: EmbedBatches("/nowhere"), "model '/nowhere': no such folder"),
        (lambda m, c, r: EmbedBatches(m, "a", error_column="a"), "columns: expected different names, got 'a' twice"),
        (lambda m, c, r: EmbedBatches(m, truncate_dim=33), "truncate_dim: expected 1 to 32, got 33"),
        (lambda m, c, r: EmbedBatches(m, prompt_name="q"), "prompt_name: "),
        (lambda m, c, r: EmbedBatches(m, long_texts="chunk", overlap=99), "overlap: "),
        (lambda m, c, r: EmbedBatches(m, precision="int8"), "precision: expected one of 'float32', "),
        (lambda m, c, r: EmbedBatches(m, aggregate="each"), "aggregate: expected one of 'mean', 'max', got 'each'"),
        (lambda m, c, r: EmbedBatches(m, token_budget=0), "token_budget: expected at least 1, got 0"),
        (lambda m, c, r: EmbedBatches(m, num_threads=0), "num_threads: expected at least 1, got 0"),
        (lambda m, c, r: EmbedBatches(m, task="rerank"), "task: no such option"),
        (lambda m, c, r: EmbedBatches(m, batch_size=3), "batch_size: no such option"),
        (lambda m, c, r: AnswerBatches(m), "task: None is embeddings for "),
        (lambda m, c, r: AnswerBatches(c, "no-task"), "task: "),
        (lambda m, c, r: AnswerBatches(c, options={"no": 1}), "text-classification: no: no such option"),
        (lambda m, c, r: AnswerBatches(r), "pair_column: question-answering needs one, got None"),
        (
            lambda m, c, r: AnswerBatches(
                c, "zero-shot-classification", pair_column="p", options={"candidate_labels": ["sun"]}
            ),
            "pair_column: zero-shot-classification has no use for one, got 'p'",
        ),
    ],
)
def test_a_wrong_argument_ends_the_actor_in_one_line(
    embedding_folder: Path,
    classifier_folder: Path,
    reader_folder: Path,
    make: Callable[[Path, Path, Path], object],
    message: str,
) -> None:
    with pytest.raises(padless.PadlessError) as error:
        make(embedding_folder, classifier_folder, reader_folder)
    assert str(error.value).startswith(message)
    assert len(str(error.value).splitlines()) == 1
