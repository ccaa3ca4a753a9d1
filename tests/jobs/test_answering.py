"""Jobs of tasks: the shards hold what the task answers, whatever stands between the good rows."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

import padless
from padless.engine.jobs.answering import AnsweringTask
from padless.engine.jobs.inputs.input_file import InputColumns
from padless.engine.jobs.run import run_job
from padless.engine.jobs.summary import Summary

# The models of the tests of tasks.
sys.path.insert(0, str(Path(__file__).parents[1] / "tasks"))
from seeded_folders import make_folder
from writing_folders import write_megatron, write_mt5

TEXTS = [
    "The sun stood still in the sky.",
    "And God said, Let there be light: and there was light.",
    "x",
    "🙂 emoji and שלום",
    "light " * 90,
    "He maketh me to lie down in green pastures.",
]
MASKED = ["The sun [MASK] still.", "[MASK] wept.", "Let there be [MASK]: and there [MASK] light.", "[MASK] " * 3]
LISTS = [["a", "the sun", "light"], ["no"], ["day", "night " * 80]]
LONGEST = 64

Folder = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """`folder(kind, **config)`: a seeded BERT of that kind, which takes 64 tokens; or a model that writes."""
    made: dict[str, Path] = {}

    def make(kind: str, **config: Any) -> Path:
        key = repr((kind, config))
        if key not in made:
            path = tmp_path_factory.mktemp("model")
            if kind in ("mt5", "megatron"):
                made[key] = {"mt5": write_mt5, "megatron": write_megatron}[kind](path)
            else:
                made[key] = make_folder(path, "Bert", kind, positions=LONGEST, **config)
        return made[key]

    return make


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models are so small that two threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def loaded(path: Path, task: str) -> Any:
    return padless.load(path, task=task, device="cpu", dtype="float32")


def job(
    task: AnsweringTask, output: Path, texts: list[Any], pairs: list[Any] | None = None, **options: Any
) -> tuple[list[dict[str, Any]], dict[int, str], Summary, pa.Schema]:
    """Run a job over a Parquet file with ids and a kept column; its rows, its errors, its summary, its columns."""
    columns: dict[str, Any] = {"key": [f"k{row}" for row in range(len(texts))], "text": texts}
    columns["kept"] = [row * row for row in range(len(texts))]
    if pairs is not None:
        columns["second"] = pairs
    source = output.with_suffix(".parquet")
    pq.write_table(pa.table(columns), source)
    read = InputColumns("text", None if pairs is None else "second", "key", ("kept",))
    summary = run_job(task, [source], output, columns=read, token_budget=4096, **options)
    table = pa.concat_tables(pq.read_table(path) for path in sorted(output.glob("part-*.parquet")))
    rows = table.to_pylist()
    records = [json.loads(line) for line in (output / "errors.jsonl").read_text().splitlines()]
    assert sorted([row["row"] for row in rows] + [record["row"] for record in records]) == list(range(len(texts)))
    assert all((row["key"], row["kept"]) == (f"k{row['row']}", row["row"] ** 2) for row in rows)
    assert all(record["id"] == f"k{record['row']}" for record in records)
    assert (summary.results, summary.errors) == (len(rows), len(records))
    return rows, {record["row"]: record["reason"] for record in records}, summary, table.schema


def single(value: Any) -> Any:
    """Scores as the shards have them, which are fp32."""
    if isinstance(value, dict):
        return {name: single(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [single(part) for part in value]
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return pa.scalar(value, pa.float32()).as_py() if isinstance(value, float) else value


def columns_of(answer: Any, name: str) -> Any:
    """A field of a label, or of each in lists of any depth."""
    return answer[name] if isinstance(answer, dict) else [columns_of(part, name) for part in answer]


LABELS: dict[str, Any] = {"num_labels": 3, "id2label": {0: "low", 1: "mid", 2: "high"}}
SCORE = pa.float32()


def listed(kind: pa.DataType, depth: int) -> pa.DataType:
    for _ in range(depth):
        kind = pa.list_(kind)
    return kind


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


def assert_close(found: Any, expected: Any) -> None:
    """The same but for the last bits of scores."""
    assert type(found) is type(expected)
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(found[name], value)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-7)
    else:
        assert found == expected


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
    assert bad == {0: "expected a text, got str ('')", 1: "null, expected a string"}
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


def with_word(path: Path, folder: Path, word: str, size: float) -> Path:
    """The model, with so large numbers in the embedding of a word."""
    folder.mkdir()
    for file in path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(path / "model.safetensors")
    place = (folder / "vocab.txt").read_text().splitlines().index(word)
    for key, weight in weights.items():
        if key.endswith("word_embeddings.weight"):
            weight[place] = size * torch.tensor([1.0, -1.0]).repeat(weight.shape[1] // 2)
        if key.endswith("position_embeddings.weight") and size < 1e6:
            weight += size / 60 * torch.tensor([1.0, -1.0]).repeat(weight.shape[1] // 2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("kind", "name", "pairs"),
    [
        ("ForSequenceClassification", "text-classification", None),
        ("ForTokenClassification", "token-classification", None),
        ("ForQuestionAnswering", "question-answering", ["sun and sky"] * 4),
        ("ForMultipleChoice", "multiple-choice", [["sun", "sky"]] * 4),
    ],
)
def test_scores_that_are_not_finite_are_recorded(
    folder: Folder, tmp_path: Path, kind: str, name: str, pairs: list[Any] | None
) -> None:
    """The sum of two such numbers is infinite in float32 too; the neighbours in the batch are as ever."""
    path = with_word(folder(kind), tmp_path / "model", "bomb", 3e38)
    texts = ["the sun [MASK]", "the bomb [MASK]", "the moon [MASK]", "bomb [MASK]"]
    rows, bad, summary, schema = job(AnsweringTask(loaded(path, name)), tmp_path / "out", texts, pairs)
    assert [row["row"] for row in rows] == [0, 2]
    assert bad == dict.fromkeys((1, 3), "the model gave NaN or infinity; expected finite scores")
    assert (summary.fallbacks, summary.errors) == (2, 2)
    other, *_ = job(AnsweringTask(loaded(folder(kind), name)), tmp_path / "other", texts, pairs)
    for field in schema.names:
        assert_close([row[field] for row in rows], [row[field] for row in other if row["row"] in (0, 2)])


def test_overflow_of_fp16_is_answered_in_float32(folder: Folder, tmp_path: Path) -> None:
    """The word's embedding and the position's are finite in fp16, their sum is not."""
    path = with_word(folder("ForSequenceClassification", **LABELS), tmp_path / "model", "bomb", 65_000.0)
    texts = ["the sun", "the bomb", "the moon", "bomb"]
    half = padless.load(path, task="text-classification", device="cpu", dtype="float16")
    with pytest.raises(padless.InputError, match="NaN or infinity"):
        half(texts[1])
    rows, bad, summary, _ = job(AnsweringTask(half, {"top_k": None}), tmp_path / "out", texts)
    assert (bad, summary.fallbacks) == ({}, 2)
    exact = loaded(path, "text-classification")(texts, top_k=None)
    for row in (1, 3):
        assert_close(rows[row]["scores"], single(columns_of(exact[row], "score")))
    for row, answer in zip((0, 2), half([texts[0], texts[2]], top_k=None), strict=True):
        assert_close(rows[row]["scores"], single(columns_of(answer, "score")))


class Stopped(Exception):
    """Of this test."""


def test_a_stopped_job_goes_on_to_the_bytes_of_an_unbroken_one(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder("ForSequenceClassification", **LABELS)
    texts = [*TEXTS, None] * 6
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")

    def run(name: str, stop_after: int | None = None) -> dict[str, bytes]:
        task = AnsweringTask(loaded(path, "text-classification"), {"top_k": 2})
        compute, calls = task.run, iter(range(99))

        def counted(*arguments: Any) -> Any:
            if next(calls) == stop_after:
                raise Stopped
            return compute(*arguments)

        monkeypatch.setattr(task, "run", counted)
        run_job(task, [tmp_path / "in.parquet"], tmp_path / name, rows_per_shard=10, token_budget=4096)
        kept = ("errors.jsonl", "shards.jsonl", *(f"part-{part:05}.parquet" for part in range(5)))
        return {file: (tmp_path / name / file).read_bytes() for file in kept}

    unbroken = run("unbroken")
    with pytest.raises(Stopped):
        run("stopped", 2)
    assert not (tmp_path / "stopped" / "part-00002.parquet").exists()
    assert run("stopped") == unbroken
    # The shape is part of the job: another one is not mixed in.
    other = AnsweringTask(loaded(path, "text-classification"), {"top_k": 3})
    with pytest.raises(padless.JobError, match=r"holds another job: options.top_k was 2, now is 3"):
        run_job(other, [tmp_path / "in.parquet"], tmp_path / "stopped", rows_per_shard=10)


def test_pair_columns_where_they_do_not_belong(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a", "pair": "b"}\n')
    for kind, name, pair, message in (
        (
            "ForNextSentencePrediction",
            "next-sentence-prediction",
            None,
            "which next-sentence-prediction needs, got none",
        ),
        ("ForMaskedLM", "fill-mask", "pair", "fill-mask has no use for one, got 'pair'"),
    ):
        task = AnsweringTask(loaded(folder(kind), name))
        with pytest.raises(padless.OptionError, match=message):
            run_job(task, [tmp_path / "in.jsonl"], tmp_path / "out", columns=InputColumns("text", pair))
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "name", "options", "message"),
    [
        ("ForSequenceClassification", "text-classification", {"topk": 2}, "topk: no such option"),
        (
            *("ForSequenceClassification", "text-classification"),
            *({"long_texts": "chunk", "overlap": 62}, "overlap: expected less than the 62 tokens of a piece, got 62"),
        ),
        ("ForSequenceClassification", "zero-shot-classification", {}, "candidate_labels: expected one label or more"),
        ("ForSequenceClassification", "rerank", {}, "rerank: expected a model of one label, got 3"),
        ("ForQuestionAnswering", "question-answering", {"max_seq_len": 65}, "the model takes at most 64 tokens"),
        ("mt5", "text2text-generation", {"num_beams": "four"}, "num_beams: "),
    ],
)
def test_options_are_refused_before_a_job_begins(
    folder: Folder, kind: str, name: str, options: dict[str, Any], message: str
) -> None:
    task = loaded(folder(kind, **(LABELS if kind == "ForSequenceClassification" else {})), name)
    with pytest.raises(padless.OptionError, match=message):
        AnsweringTask(task, options)
