"""`padless tune` where there is no GPU: what it says, and the import of what another machine found."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from padless.autotune.device import Device
from padless.autotune.entries import default_of, entry_of
from padless.autotune.exchange import record_tree, write_exchange
from padless.autotune.record import read_record
from padless.autotune.search import Found
from padless.engine.cli.app import run
from padless.engine.contract import Call
from padless.kernels import norm

Tune = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tune:
    """Run `padless tune` in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PADLESS_CACHE", str(tmp_path / "cache"))

    def call(*arguments: object) -> tuple[int, str, str]:
        code = run(["tune", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def complaints(done: tuple[int, str, str]) -> list[str]:
    """The lines of a refused call."""
    code, _, errors = done
    assert code == 2, errors
    lines = errors.splitlines()
    assert lines
    assert all(line.startswith("padless: ") for line in lines)
    return [line.removeprefix("padless: ") for line in lines]


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """What a GPU report leaves: two entries."""
    device = Device("cuda", "NVIDIA H200", "nvidia-h200", 90, 132, frozenset())
    trees = []
    for hidden in (768, 1024):
        call = Call("norm", "cuda", torch.bfloat16, sm=90, hidden=hidden)
        best = norm.CANDIDATES[-1]
        entry = entry_of(Found(call, default_of(call), best, 9.0, 9.9, 1.1, {}, 1, {}, (), ""), device, "580.95.05")
        assert entry is not None
        trees.append(record_tree(device.slug, "norm", entry))
    path = tmp_path / "configs.json"
    path.write_text(write_exchange(trees, "by a test"))
    return path


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU, on which it would run")
@pytest.mark.parametrize("what", ["attention", "no-model"])
def test_without_a_gpu_it_says_what_it_needs(tune: Tune, tmp_path: Path, what: str) -> None:
    done = tune(what)
    (line,) = complaints(done)
    assert line.startswith("tune: needs a GPU of compute capability 8.0 or newer")
    assert done[1] == ""
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected a MODEL, an OP or --import, got none of them"),
        (("attention", "--budget", "0"), "'--budget'"),
        (("attention", "--budget", "long"), "'--budget'"),
        (("attention", "--device", "cpu"), "--device: expected cuda or cuda:N, got 'cpu'"),
        (("attention", "--dtype", "int8"), "'--dtype'"),
        (("attention", "--into", "here"), "--into: expected --import beside it"),
        (("attention", "--import", "configs.json"), "--import: expected no MODEL or OP beside it"),
        (("--import", "nothing.json"), "nothing.json: cannot be read (No such file or directory)"),
        (("--import", "."), ".: cannot be read (Is a directory)"),
        (("--import", "empty.json"), "empty.json: expected JSON"),
    ],
)
def test_a_wrong_call_is_one_line(tune: Tune, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "empty.json").write_text("")
    (line,) = complaints(tune(*arguments))
    assert message in line


def test_entries_are_imported(tune: Tune, tmp_path: Path, configs: Path) -> None:
    written = f"{Path('there', 'nvidia-h200', 'norm.json')}: 2 entries\n"
    assert tune("--import", configs, "--into", "there") == (0, written, "")
    record = read_record(tmp_path / "there" / "nvidia-h200" / "norm.json", "nvidia-h200", "norm")
    assert record is not None
    assert [dict(entry.key)["hidden"] for entry in record.entries] == [1024, 768]


def test_a_refused_entry_is_a_line_and_exit_code_2_and_the_others_are_filed(
    tune: Tune, tmp_path: Path, configs: Path
) -> None:
    tree = json.loads(configs.read_text())
    tree["records"] += [{"schema": 1}, dict(tree["records"][0], op="embed")]
    configs.write_text(json.dumps(tree))
    done = tune("--import", configs, "--into", "there")
    lines = complaints(done)
    assert [line.split(": ")[1] for line in lines] == ["record 3", "record 4"]
    assert "checksum" in lines[1]
    assert done[1].endswith("norm.json: 2 entries\n")


def test_a_dry_run_s_file_holds_nothing_and_is_no_error(tune: Tune, tmp_path: Path) -> None:
    (tmp_path / "configs.json").write_text(write_exchange([], "no entries: a dry run measures nothing"))
    done = tune("--import", "configs.json", "--into", "there")
    assert done == (0, "configs.json: holds no entries\n", "")
    assert not (tmp_path / "there").exists()


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from padless.engine.cli.app import run\n"
        "run(['tune', '--help'])\n"
        "print(sorted({'torch', 'triton', 'numpy', 'tqdm'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[]", done.stderr
    assert "--budget" in done.stdout
