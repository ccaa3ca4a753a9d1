"""Jobs of tasks: the shards hold what the task answers, whatever stands between the good rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from padless.engine.jobs.answering import AnsweringTask
from padless.engine.jobs.inputs.input_file import InputColumns
from padless.engine.jobs.run import run_job

sys.path.insert(0, str(Path(__file__).parent))
from answering_jobs import (
    LABELS,
    LISTS,
    MASKED,
    SCORE,
    TEXTS,
    Folder,
    assert_close,
    columns_of,
    folders,
    job,
    listed,
    loaded,
    single,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """`folder(kind, **config)`: see answering_jobs.py."""
    return folders(tmp_path_factory)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models are so small that two threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("options", "names", "depth"),
    [
        ({}, ("label", "score"), 0),
        ({"top_k": 1}, ("labels", "scores"), 1),
        ({"top_k": None, "function_to_apply": "sigmoid"}, ("labels", "scores"), 1),
        ({"long_texts": "chunk", "overlap": 8, "aggregate": "each"}, ("labels", "scores"), 1),
        ({"long_texts": "chunk", "aggregate": "each", "top_k": 2}, ("labels", "scores"), 2),
        ({"long_texts": "chunk", "aggregate": "max"}, ("label", "score"), 0),
    ],
)
@pytest.mark.parametrize("paired", [False, True])
def test_text_classification(
    folder: Folder, tmp_path: Path, options: dict[str, Any], names: tuple[str, str], depth: int, paired: bool
) -> None:
    path = folder("ForSequenceClassification", **LABELS)
    texts: list[Any] = [*TEXTS, None, *TEXTS[:2]]
    # An empty second text is none, a null is a fault.
    pairs: list[Any] | None = ["", *TEXTS[1:], "lost", None, "moon"] if paired else None
    if paired:
        texts[4] = "sun"  # of a pair the second text is the one in pieces
    rows, bad, summary, schema = job(
        AnsweringTask(loaded(path, "text-classification"), options), tmp_path / "out", texts, pairs
    )
    assert set(bad) == ({6, 7} if paired else {6})
    good = [row for row in range(len(texts)) if row not in bad]
    asked = [(texts[row], pairs[row]) if pairs and pairs[row] else texts[row] for row in good]
    task = loaded(path, "text-classification")
    expected = task(asked, **options)
    for ours, theirs in zip(("label", "score"), names, strict=True):
        found = [row[theirs] for row in rows]
        assert_close(found, [single(columns_of(answer, ours)) for answer in expected])
    assert schema.field(names[0]).type == listed(pa.string(), depth)
    assert schema.field(names[1]).type == listed(SCORE, depth)
    whole = options.get("long_texts") == "chunk"
    if options.get("aggregate") == "each":
        assert [len(row[names[0]]) > 1 for row in rows] == [row["row"] == 4 for row in rows]
    assert [row["row"] for row in rows if row["truncated"]] == ([] if whole else [4])
    assert summary.truncated == (0 if whole else 1)


def test_next_sentence_prediction(folder: Folder, tmp_path: Path) -> None:
    path = folder("ForNextSentencePrediction")
    texts, pairs = [*TEXTS, "sun", None], [*reversed(TEXTS), None, "moon"]
    task = AnsweringTask(loaded(path, "next-sentence-prediction"))
    rows, bad, _, schema = job(task, tmp_path / "out", texts, pairs)
    assert bad == {6: "pair: null, expected a string", 7: "null, expected a string"}
    expected = loaded(path, "next-sentence-prediction")(list(zip(TEXTS, reversed(TEXTS), strict=True)))
    assert_close([{"label": row["label"], "score": row["score"]} for row in rows], single(expected))
    assert {row["label"] for row in rows} <= {"IsNext", "NotNext"}
    assert (schema.field("label").type, schema.field("score").type) == (pa.string(), SCORE)


@pytest.mark.parametrize("multi_label", [False, True])
def test_zero_shot_classification(folder: Folder, tmp_path: Path, multi_label: bool) -> None:
    path = folder("ForSequenceClassification", label2id={"no": 0, "maybe": 1, "entailment": 2}, num_labels=3)
    options = {"candidate_labels": ["praise", "bug", "weather"], "multi_label": multi_label}
    texts = ["", None, *TEXTS]
    rows, bad, _, schema = job(
        AnsweringTask(loaded(path, "zero-shot-classification"), options), tmp_path / "out", texts
    )
    assert bad == {0: "expected a text, got an empty one", 1: "null, expected a string"}
    expected = loaded(path, "zero-shot-classification")(TEXTS, **options)
    assert_close(
        [{"sequence": texts[row["row"]], "labels": row["labels"], "scores": row["scores"]} for row in rows],
        single(expected),
    )
    assert schema.field("labels").type == pa.list_(pa.string())
    assert schema.field("scores").type == pa.list_(SCORE)


@pytest.mark.parametrize("strategy", ["none", "simple", "average"])
def test_token_classification(folder: Folder, tmp_path: Path, strategy: str) -> None:
    path = folder("ForTokenClassification", id2label={0: "O", 1: "B-PER", 2: "I-PER"}, num_labels=3)
    options = {"aggregation_strategy": strategy}
    rows, bad, _, schema = job(
        AnsweringTask(loaded(path, "token-classification"), options), tmp_path / "out", [*TEXTS, None, ""]
    )
    assert set(bad) == {6}
    expected = loaded(path, "token-classification")([*TEXTS, ""], **options)
    assert_close([row["entities"] for row in rows], single(expected))
    assert any(expected)
    kinds = {field.name: field.type for field in schema.field("entities").type.value_type}
    first = "entity" if strategy == "none" else "entity_group"
    assert (kinds[first], kinds["score"], kinds["start"], kinds["end"]) == (pa.string(), SCORE, pa.int32(), pa.int32())
    assert ("index" in kinds) == (strategy == "none")


@pytest.mark.parametrize("options", [{}, {"top_k": 2, "targets": ["sun", "moon", "bread"], "long_texts": "error"}])
def test_fill_mask(folder: Folder, tmp_path: Path, options: dict[str, Any]) -> None:
    path = folder("ForMaskedLM")
    texts = [*MASKED, "no mask", None, "sun " * 90 + "[MASK]", "[MASK]" + " sun" * 90]
    rows, bad, _, schema = job(AnsweringTask(loaded(path, "fill-mask"), options), tmp_path / "out", texts)
    refused = {4, 5, 6, 7} if "long_texts" in options else {4, 5, 6}
    assert set(bad) == refused
    assert bad[4] == "no mask token ([MASK]) in the text"
    too_long = "the text is longer than the 64 tokens that the model takes"
    assert bad[6] == (too_long if options else "no mask token ([MASK]) in the text in the part that the model takes")
    expected = loaded(path, "fill-mask")([text for row, text in enumerate(texts) if row not in refused], **options)
    # A text with one mask is answered by one list, and has a list of one in the shards.
    lists = [answer if isinstance(answer[0], list) else [answer] for answer in expected]
    assert [len(answer) for answer in lists[:4]] == [1, 1, 2, 3]
    assert_close([row["predictions"] for row in rows], single(lists))
    fields = {field.name: field.type for field in schema.field("predictions").type.value_type.value_type}
    assert fields == {"score": SCORE, "token": pa.int32(), "token_str": pa.string(), "sequence": pa.string()}
    assert [row["row"] for row in rows if row["truncated"]] == ([] if "long_texts" in options else [7])


@pytest.mark.parametrize("top_k", [1, 3])
def test_question_answering(folder: Folder, tmp_path: Path, top_k: int) -> None:
    path = folder("ForQuestionAnswering")
    questions = ["Who wept?", "What stood still?", "Where?", "", "Why?", None]
    contexts = [*TEXTS[:2], TEXTS[4], "sun", "", "moon"]
    task = AnsweringTask(loaded(path, "question-answering"), {"top_k": top_k})
    rows, bad, _, schema = job(task, tmp_path / "out", questions, contexts)
    assert bad[3] == "question: expected a text, got an empty one"
    assert bad[4] == "context: expected a text, got an empty one"
    assert set(bad) == {3, 4, 5}
    asked = [{"question": questions[row], "context": contexts[row]} for row in range(3)]
    expected = single(loaded(path, "question-answering")(asked, top_k=top_k))
    names = ("score", "start", "end", "answer")
    found = [{name: row[name] for name in names} for row in rows] if top_k == 1 else [row["answers"] for row in rows]
    assert_close(found, expected)
    kinds = {field.name: field.type for field in (schema if top_k == 1 else schema.field("answers").type.value_type)}
    assert (kinds["answer"], kinds["score"], kinds["start"], kinds["end"]) == (
        pa.string(),
        SCORE,
        pa.int32(),
        pa.int32(),
    )


def test_multiple_choice(folder: Folder, tmp_path: Path) -> None:
    path = folder("ForMultipleChoice")
    texts = [*TEXTS[:3], "none", "null in it", None]
    task = AnsweringTask(loaded(path, "multiple-choice"))
    rows, bad, _, schema = job(task, tmp_path / "out", texts, [*LISTS, [], ["a", None], ["a"]])
    assert set(bad) == {3, 4, 5}
    asked = [{"prompt": text, "choices": choices} for text, choices in zip(TEXTS, LISTS, strict=False)]
    expected = single(loaded(path, "multiple-choice")(asked))
    assert_close(
        [
            {"choice": row["choice"], "text": row["answer"], "score": row["score"], "scores": row["scores"]}
            for row in rows
        ],
        expected,
    )
    assert [schema.field(name).type for name in ("choice", "answer", "score", "scores")] == [
        pa.int32(),
        pa.string(),
        SCORE,
        pa.list_(SCORE),
    ]
    assert [row["truncated"] for row in rows] == [False, False, True]


@pytest.mark.parametrize("options", [{}, {"top_k": 2, "return_documents": True}])
def test_rerank(folder: Folder, tmp_path: Path, options: dict[str, Any]) -> None:
    path = folder("ForSequenceClassification", num_labels=1)
    rows, bad, _, schema = job(
        AnsweringTask(loaded(path, "rerank"), options), tmp_path / "out", [*TEXTS[:3], None], [*LISTS, ["a"]]
    )
    assert set(bad) == {3}
    asked = [{"query": text, "documents": documents} for text, documents in zip(TEXTS, LISTS, strict=False)]
    assert_close([row["ranking"] for row in rows], single(loaded(path, "rerank")(asked, **options)))
    kinds = {field.name: field.type for field in schema.field("ranking").type.value_type}
    assert kinds == {"corpus_id": pa.int32(), "score": SCORE} | ({"text": pa.string()} if options else {})


def test_a_pair_of_the_wrong_kind_costs_its_row_only(folder: Folder, tmp_path: Path) -> None:
    """In JSON lines a pair may be a list in one row and a string in the next."""
    (tmp_path / "in.jsonl").write_text('{"text": "a", "pair": "b"}\n{"text": "a", "pair": ["b"]}\n')
    columns = InputColumns("text", "pair")
    for kind, name, reason, row in (
        ("ForNextSentencePrediction", "next-sentence-prediction", "pair: expected a string, got a list", 1),
        ("ForMultipleChoice", "multiple-choice", "pair: expected a list of strings, got a string", 0),
    ):
        run_job(AnsweringTask(loaded(folder(kind), name)), [tmp_path / "in.jsonl"], tmp_path / name, columns=columns)
        (record,) = [json.loads(line) for line in (tmp_path / name / "errors.jsonl").read_text().splitlines()]
        assert (record["row"], record["reason"]) == (row, reason)
        assert pq.read_table(tmp_path / name / "part-00000.parquet")["row"].to_pylist() == [1 - row]


@pytest.mark.parametrize(
    ("model", "name", "options"),
    [
        ("mt5", "text2text-generation", {"max_new_tokens": 6, "num_beams": 1}),
        ("mt5", "text2text-generation", {"max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 2}),
        ("mt5", "text2text-generation", {"max_new_tokens": 5, "num_beams": 1, "return_tensors": True}),
        ("mt5", "summarization", {"max_new_tokens": 5, "num_beams": 2}),
        ("megatron", "text-generation", {"max_new_tokens": 6, "do_sample": False}),
        ("megatron", "text-generation", {"max_new_tokens": 4, "do_sample": False, "return_tensors": True}),
        ("megatron", "text-generation", {"max_new_tokens": 5, "do_sample": True, "num_return_sequences": 2, "seed": 4}),
    ],
)
def test_tasks_that_write(folder: Folder, tmp_path: Path, model: str, name: str, options: dict[str, Any]) -> None:
    texts = [TEXTS[0], TEXTS[2], None, "the moon and the river", "sun " * 80]
    task = AnsweringTask(loaded(folder(model), name), options)
    rows, bad, _, schema = job(task, tmp_path / "out", texts)
    assert set(bad) == ({2, 4} if model == "megatron" else {2})
    good = [text for row, text in enumerate(texts) if row not in bad]
    expected = loaded(folder(model), name)(good, **options)
    several, ids = options.get("num_return_sequences", 1) > 1, "return_tensors" in options
    column = ("generated_token_ids" if ids else "generated_text") + ("s" if several else "")
    values = [
        [single(next(iter(record.values()))) for record in (answer if isinstance(answer, list) else [answer])]
        for answer in expected
    ]
    assert [row[column] for row in rows] == (values if several else [value for (value,) in values])
    assert any(values)
    assert schema.field(column).type == listed(pa.list_(pa.int32()) if ids else pa.string(), int(several))


def test_draws_without_a_seed_are_the_same_in_every_run(folder: Folder, tmp_path: Path) -> None:
    """And a resumed job goes on with them: transformers draws by default."""
    path = folder("megatron")
    texts = [TEXTS[0], "the moon and the river"]
    found = []
    for name in ("one", "two"):
        task = AnsweringTask(loaded(path, "text-generation"), {"max_new_tokens": 8})
        assert task.description["seed"] == 0
        found.append([row["generated_text"] for row in job(task, tmp_path / name, texts)[0]])
    assert found[0] == found[1]
    assert "seed" not in AnsweringTask(loaded(path, "text-generation"), {"do_sample": False}).description


def test_sequences_that_the_models_own_file_asks_for(folder: Folder, tmp_path: Path) -> None:
    """The shape of the answers follows all sources of options, not the call's alone."""
    path = folder("mt5")
    model = tmp_path / "model"
    model.mkdir()
    for file in path.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    own = {**json.loads((path / "generation_config.json").read_text()), "num_beams": 2, "num_return_sequences": 2}
    (model / "generation_config.json").write_text(json.dumps(own))
    task = AnsweringTask(loaded(model, "text2text-generation"), {"max_new_tokens": 4})
    rows, *_ = job(task, tmp_path / "out", TEXTS[:2])
    expected = loaded(model, "text2text-generation")(TEXTS[:2], max_new_tokens=4)
    texts = [[record["generated_text"] for record in answer] for answer in expected]
    assert [len(answer) for answer in texts] == [2, 2]
    assert [row["generated_texts"] for row in rows] == texts
