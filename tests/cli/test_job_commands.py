"""padless embed, classify and run, in this process: what they write, and every wrong call in one line."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import padless
from padless.engine.cli.app import run

# The models of the tests of tasks.
sys.path.insert(0, str(Path(__file__).parents[1] / "tasks"))
from seeded_folders import make_folder

TEXTS = ["The sun stood still.", "light " * 90, "x", "Jesus wept."]
PAIRS = ["moon", "b", "", "He did."]
LABELS = {0: "low", 1: "mid", 2: "high"}

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with seeded BERTs that take 64 tokens: vectors, classes, masks, next (sentences) and so on."""
    folder = tmp_path_factory.mktemp("models")
    for name, kind, config in (
        ("vectors", "Model", {}),
        ("classes", "ForSequenceClassification", {"num_labels": 3, "id2label": LABELS}),
        ("masks", "ForMaskedLM", {}),
        ("next", "ForNextSentencePrediction", {}),
        ("number", "ForSequenceClassification", {"num_labels": 1}),
        ("choices", "ForMultipleChoice", {}),
        ("spans", "ForQuestionAnswering", {}),
    ):
        make_folder(folder / name, "Bert", kind, positions=64, **config)
    return folder


@pytest.fixture
def call(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command line in an empty folder: exit code, stdout, stderr. {vectors} stands for that model."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()

    def padless_(line: str) -> tuple[int, str, str]:
        arguments = shlex.split(line.format_map({path.name: path for path in models.iterdir()}))
        common = ["--device", "cpu", "--dtype", "float32"] if "--help" not in arguments else []
        capsys.readouterr()
        torch.set_num_threads(1)
        try:
            code = run([*arguments, *common])
        finally:
            torch.set_num_threads(threads)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return padless_


def parquet(**columns: Any) -> None:
    pq.write_table(pa.table(columns), "in.parquet")


def result(folder: str = "out") -> pa.Table:
    return pq.read_table(Path(folder) / "part-00000.parquet")


def task(models: Path, name: str, kind: str) -> Any:
    return padless.load(models / name, task=kind, device="cpu", dtype="float32")


@pytest.mark.parametrize("precision", ["float16", "binary", "ubinary"])
def test_embed_in_a_precision(call: Call, models: Path, precision: str) -> None:
    parquet(text=TEXTS)
    code, shown, complaint = call(f"embed in.parquet out -m {{vectors}} --precision {precision}")
    assert (code, complaint) == (0, "")
    width = 32 if precision == "float16" else 4
    assert shown.startswith(f"4 vectors of {width} numbers")
    expected = task(models, "vectors", "embedding").encode(TEXTS, precision=precision)
    column = result()["embedding"].combine_chunks()
    assert column.type.list_size == width
    assert str(column.type.value_type) == {"float16": "halffloat", "binary": "int8", "ubinary": "uint8"}[precision]
    np.testing.assert_array_equal(column.flatten().to_numpy().reshape(4, width), expected)


@pytest.mark.parametrize("long_texts", ["truncate", "chunk --overlap 5", "chunk --aggregate max", "error"])
def test_embed_long_texts(call: Call, models: Path, long_texts: str) -> None:
    parquet(text=TEXTS)
    assert call(f"embed in.parquet out -m {{vectors}} --long-texts {long_texts} --quiet") == (0, "", "")
    encoder = task(models, "vectors", "embedding")
    truncated, chunk = encoder.encode(TEXTS), long_texts.startswith("chunk")
    table = result()
    found = np.array(table["embedding"].to_pylist(), dtype=np.float32)
    if long_texts == "error":
        assert table["row"].to_pylist() == [0, 2, 3]
        record = json.loads(Path("out/errors.jsonl").read_text())
        assert (record["row"], record["reason"]) == (1, "the text is longer than the 64 tokens that the model takes")
        np.testing.assert_allclose(found, truncated[[0, 2, 3]], atol=1e-6)
    else:
        options = {"overlap": 5} if "overlap" in long_texts else {"aggregate": "max"}
        expected = encoder.encode(TEXTS, long_texts="chunk", **options) if chunk else truncated
        assert chunk == (not np.allclose(expected[1], truncated[1], atol=1e-3))
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert table["truncated"].to_pylist() == [long_texts == "truncate" and row == 1 for row in table["row"].to_pylist()]


def test_embed_from_standard_input_to_standard_output(
    call: Call, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing but the rows is there; no folder named - appears."""
    stdin = io.TextIOWrapper(io.BytesIO(b"sun\n\n" + b"light " * 90 + b"\nmoon \xff\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    code, written, complaint = call("embed - - -m {vectors} --input-format text")
    assert (code, complaint) == (0, "")
    rows = [json.loads(line) for line in written.splitlines()]
    assert [list(row) for row in rows] == [["row", "embedding", "truncated"]] * 3 + [["row", "error"]]
    expected = task(models, "vectors", "embedding").encode(["sun", "", TEXTS[1]])
    np.testing.assert_allclose([row["embedding"] for row in rows[:3]], expected, atol=1e-6)
    assert [row["truncated"] for row in rows[:3]] == [False, False, True]
    assert "UTF-8" in rows[3]["error"]
    assert list(Path().iterdir()) == []


def test_a_reader_that_leaves_ends_the_command(models: Path, tmp_path: Path) -> None:
    """As `padless embed … - | head -n 1` does: exit code 141, and not a word."""
    (tmp_path / "in.txt").write_text("sun\n" * 3000)
    command = [sys.executable, "-m", "padless", "embed", "in.txt", "-", "-m", str(models / "vectors")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["row"] == 0
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 141)


@pytest.mark.parametrize(
    ("line", "options", "names"),
    [
        ("", {}, ("label", "score")),
        ("--top-k 2", {"top_k": 2}, ("labels", "scores")),
        (
            "--all-labels --function-to-apply sigmoid",
            {"top_k": None, "function_to_apply": "sigmoid"},
            ("labels", "scores"),
        ),
        (
            "--long-texts chunk --overlap 7 --aggregate each",
            {"long_texts": "chunk", "overlap": 7, "aggregate": "each"},
            ("labels", "scores"),
        ),
    ],
)
def test_classify(call: Call, models: Path, line: str, options: dict[str, Any], names: tuple[str, str]) -> None:
    parquet(review=[*TEXTS, None], n=[5, 4, 3, 2, 1])
    code, shown, complaint = call(
        f"classify in.parquet out -m {{classes}} --text-column review --id-column n --keep review {line}"
    )
    assert (code, complaint) == (0, "")
    assert shown.startswith("4 results, 1 shard(s) in out")
    table = result()
    assert table.schema.names == ["row", "n", "review", *names, "truncated"]
    expected = task(models, "classes", "text-classification")(TEXTS, **options)
    for name, ours in zip(names, ("label", "score"), strict=True):
        for found, answer in zip(table[name].to_pylist(), expected, strict=True):
            wanted = answer[ours] if isinstance(answer, dict) else [part[ours] for part in answer]
            assert found == (wanted if ours == "label" else pytest.approx(wanted, rel=1e-6))
    assert table["truncated"].to_pylist() == [False, "chunk" not in line, False, False]


def test_classify_pairs(call: Call, models: Path) -> None:
    parquet(text=TEXTS, second=PAIRS)
    assert call("classify in.parquet out -m {classes} --pair-column second -q") == (0, "", "")
    asked = [(text, pair) if pair else text for text, pair in zip(TEXTS, PAIRS, strict=True)]
    expected = task(models, "classes", "text-classification")(asked)
    assert result()["score"].to_pylist() == pytest.approx([answer["score"] for answer in expected], rel=1e-6)
    alone = task(models, "classes", "text-classification")(TEXTS)
    assert result()["score"].to_pylist() != pytest.approx([answer["score"] for answer in alone], rel=1e-3)


def test_run_reads_options_as_json_or_text(call: Call, models: Path) -> None:
    parquet(text=["the [MASK] stood still", "no mask"])
    line = 'run in.parquet - -m {masks} -t fill-mask -o top_k=2 -o \'targets=["sun","moon","1"]\' -o long_texts=error'
    code, written, complaint = call(line)
    assert (code, complaint) == (0, "")
    first, second = map(json.loads, written.splitlines())
    (expected,) = [task(models, "masks", "fill-mask")("the [MASK] stood still", top_k=2, targets=["sun", "moon", "1"])]
    assert [found["token_str"] for found in first["predictions"][0]] == [found["token_str"] for found in expected]
    assert second == {"row": 1, "error": "no mask token ([MASK]) in the text"}


@pytest.mark.parametrize("name", ["text-classification", "sentiment-analysis"])
def test_run_knows_other_names_of_tasks(call: Call, name: str) -> None:
    parquet(text=TEXTS)
    assert call(f"run in.parquet out -m {{classes}} -t {name} -q") == (0, "", "")
    assert json.loads(Path("out/manifest.json").read_text())["job"]["task"] == "text-classification"


def test_run_embedding_is_embed(call: Call) -> None:
    parquet(text=TEXTS)
    assert (
        call("run in.parquet one -m {vectors} -t embedding -o truncate_dim=8 -o normalize_embeddings=true -q")[0] == 0
    )
    assert call("embed in.parquet two -m {vectors} --truncate-dim 8 --normalize -q")[0] == 0
    assert result("one").equals(result("two"))
    assert result("one")["embedding"].type.list_size == 8


RUN = "run in.parquet out -m"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{RUN} {{classes}} -t sing", "task: expected one of embedding, text-classification, "),
        (f"{RUN} {{classes}}", "Missing option '--task'"),
        (f"{RUN} {{classes}} -t fill-mask", "no weights for cls, which the task fill-mask needs: its answers would be"),
        (f"{RUN} {{classes}} -t text-classification -o top_k", "expected NAME=VALUE, got 'top_k'"),
        (f"{RUN} {{classes}} -t text-classification -o =2", "expected NAME=VALUE, got '=2'"),
        (f"{RUN} {{classes}} -t text-classification -o top_k=2 -o top_k=3", "'top_k' is given twice"),
        (f"{RUN} {{classes}} -t text-classification -o topk=2", "topk: no such option; expected one of top_k, "),
        (f"{RUN} {{classes}} -t text-classification -o top_k=two", "top_k: expected a whole number from 1, got 'two'"),
        (f"{RUN} {{next}} -t next-sentence-prediction", "pair_column: expected the column of the second texts"),
        (f"{RUN} {{next}} -t next-sentence-prediction --pair-column no", "in.parquet: no column 'no'"),
        (f"{RUN} {{masks}} -t fill-mask --pair-column second", "pair_column: fill-mask has no use for one"),
        (f"{RUN} {{classes}} -t rerank --pair-column second", "rerank: expected a model of one label, got 3"),
        (f"{RUN} {{vectors}} -t embedding -o sing=1", "embedding: 'sing': no such option"),
        (f"{RUN} {{vectors}} -t embedding -o truncate_dim=ten", "truncate_dim: expected 1 to 32, got 'ten'"),
        (f"{RUN} {{vectors}} -t embedding -o precision=int8", "precision: expected one of 'float32', 'float16'"),
        (f"{RUN} {{vectors}} -t embedding -o prompt_name=3", "prompt_name: expected a string, got 3"),
        ("embed in.parquet out -m {vectors} --long-texts chunk --overlap 62", "overlap: expected less than the 62 "),
        ("embed in.parquet out -m {vectors} --precision int8", "'--precision'"),
        ("embed in.parquet - -m {vectors} --keep error", "'error' is the name of a result"),
        ("classify in.parquet out -m {classes} --top-k 0", "'--top-k'"),
        ("classify in.parquet out -m {classes} --top-k 1 --all-labels", "expected --top-k or --all-labels, got both"),
        ("classify in.parquet out -m {classes} --pair-column no", "in.parquet: no column 'no'"),
        ("classify in.parquet out -m {vectors}", "classifier"),
        ("classify no.parquet - -m {classes}", "no.parquet: no such file"),
        ("embed", "expected inputs IN and then OUT, a folder or - for standard output"),
        ("embed in.parquet", "expected inputs IN and then OUT, a folder or - for standard output"),
        ("embed in.parquet in.parquet -m {vectors}", "in.parquet: is a file, expected a folder for the output"),
        ("embed in.parquet in.parquet/out -m {vectors}", "in.parquet/out: cannot be written (Not a directory)"),
        ("embed in.parquet full -m {vectors} --overwrite", "full: holds files that are not a job's (mine.txt)"),
        ("embed torn.parquet out -m {vectors}", "torn.parquet: not a readable Parquet file"),
        (
            "embed in.parquet out -m in.parquet",
            "model 'in.parquet': is a file, expected the folder that holds",
        ),
        ("embed in.parquet out -m full", "model configuration full/config.json: no such file"),
        ("embed in.parquet out -m ''", "model '': expected a folder or an id"),
        ("embed in.parquet out -m {vectors} --long-texts drop", "for '--long-texts': 'drop' is not one of 'truncate'"),
        ("embed in.parquet out -m {vectors} --text-column lists", "column 'lists' has type list<element: string>, exp"),
        ("embed in.parquet out -m {vectors} --id-column text --keep text", "'text' is the name of several output col"),
        ("embed in.parquet out -m {vectors} --keep row", "'row' is the name of an output column"),
        ("embed in.parquet out -m {vectors} --pair-column second", "No such option: --pair-column"),
        ("embed in.parquet out -m {vectors} --input-format csv", "csv was asked for, but the suffix of in.parquet say"),
        ("embed in.parquet out -m {vectors} --overlap 5", "overlap: expected only beside long_texts 'chunk', got long"),
        ("embed in.parquet out -m {vectors} --aggregate mean", "aggregate: expected only beside long_texts 'chunk'"),
        ("classify in.parquet out -m {classes} --long-texts error --aggregate each", "got long_texts 'error'"),
        (f"{RUN} {{classes}} -t text-classification -o overlap=5", "overlap: expected only beside long_texts 'chunk'"),
        ("embed in.parquet - -m {vectors} --overwrite", "overwrite: expected only where OUT is a folder"),
        ("embed in.parquet - -m {vectors} --no-resume", "no_resume: expected only where OUT is a folder"),
        ("embed in.parquet - -m {vectors} --rows-per-shard 9", "rows_per_shard: expected only where OUT is a folder"),
        ("classify in.parquet out -m {classes} --pair-column lists", "text-classification needs string"),
        ("classify in.parquet - -m {classes} --pair-column lists", "text-classification needs string"),
        (
            f"{RUN} {{choices}} -t multiple-choice --pair-column second",
            "has type string, multiple-choice needs list<",
        ),
        (f"{RUN} {{number}} -t rerank --pair-column second", "has type string, rerank needs list<string>"),
        (f"{RUN} {{spans}} -t question-answering", "pair_column: expected the column of the second texts, which quest"),
        (f"{RUN} {{spans}} -t question-answering --pair-column lists", "question-answering needs string"),
        (f"{RUN} {{classes}} -t token-classification", "names BertForSequenceClassification, the task token-classific"),
        (f"{RUN} {{number}} -t multiple-choice --pair-column lists", "needs a model ForMultipleChoice"),
        ("classify in.parquet out -m {choices}", "needs a model ForSequenceClassification: its answers would be noise"),
        (f"{RUN} {{classes}} -t zero-shot-classification", "candidate_labels: expected one label or more, got ()"),
        (
            f'{RUN} {{classes}} -t zero-shot-classification -o \'candidate_labels=["a", "b"\'',
            "candidate_labels: malformed JSON (Expecting ',' delimiter",
        ),
        (
            f"{RUN} {{masks}} -t fill-mask -o max_length=9",
            "max_length: no such option (for long texts: token",
        ),
        (f"{RUN} {{masks}} -t fill-mask -o top_k=None", "top_k: expected a whole number from 1, got None"),
    ],
)
def test_wrong_call(call: Call, line: str, message: str) -> None:
    parquet(text=TEXTS, second=PAIRS, lists=[["a"], ["b"], ["c"], ["d"]])
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    Path("torn.parquet").write_bytes(Path("in.parquet").read_bytes()[:50])
    code, shown, complaint = call(line)
    assert (code, shown) == (2, "")
    assert complaint.startswith("padless: ")
    assert message in complaint
    assert complaint.count("\n") == 1
    assert not Path("out").exists()


@pytest.mark.parametrize("command", ["embed", "classify", "run"])
def test_help_names_every_option_and_result(call: Call, command: str) -> None:
    code, shown, complaint = call(f"{command} --help")
    assert (code, complaint) == (0, "")
    assert f"Usage: padless {command} [OPTIONS]" in shown
    for option in ("--model", "--id-column", "--keep", "--resume", "--log-json"):
        assert option in shown
    if command == "run":
        from padless.engine.tasks import TASKS

        assert [name for name in ("embedding", *TASKS) if f"\n  {name} " not in shown] == []
