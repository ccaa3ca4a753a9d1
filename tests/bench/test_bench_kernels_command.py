"""`padless bench kernels` as a user meets it: options, what is printed, and wrong calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from padless.bench.kernels.run import run
from padless.engine.cli.app import run as command
from padless.engine.errors import OptionError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ops": ["sort"]}, r"^op 'sort': unknown, expected one of attention, "),
        ({"device": "tpu"}, r"^device 'tpu': "),
        ({"device": "meta"}, r"^device 'meta': kernels are measured on cpu and cuda$"),
        ({"dtypes": ["int8"]}, r"^dtype 'int8': unknown, expected one of float32, bfloat16, float16$"),
        ({"dtypes": []}, r"^dtype: expected at least one of float32, "),
        ({"lengths": ["zipf"]}, r"^lengths 'zipf': unknown, expected one of fixed, "),
        ({"seqlens": []}, r"^seqlens: expected at least one length$"),
        ({"seqlens": [0]}, r"^seqlens: expected at least 1, got 0$"),
        ({"tokens": 0}, r"^tokens: expected at least 1, got 0$"),
        ({"repeats": 0}, r"^repeats: expected at least 1, got 0$"),
        ({"peers": ["tensorrt"]}, r"^peer 'tensorrt': unknown, expected all, none or some of compile, "),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        run(**{"device": "cpu", **options})


def test_the_command_measures_what_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    arguments = "bench kernels --op rms_norm,pool --device cpu --seqlens 8,16 --lengths single,news --dtype float32"
    options = ["--tokens", "32", "--repeats", "3", "--peers", "none", "--json", str(file)]
    assert command([*arguments.split(), *options]) == 0
    report = json.loads(file.read_text())
    found = [(case["op"], case["lengths"], case["tokens"]) for case in report["cases"]]
    assert found[:4] == [("rms_norm", "news", 32), ("rms_norm", "single 8", 8)] * 2
    assert found[4:] == [("pool", "single 8", 8), ("pool", "single 16", 16), ("pool", "news", 32)] * 3
    printed = capsys.readouterr().out
    for case in report["cases"]:
        for system in case["systems"]:
            times = [f"{system['us'][name]:,.1f}" for name in ("median", "p20", "p80")]
            assert [*times, f"{system['ratio']:.2f}x"] in [line.split()[-8:-4] for line in printed.splitlines()]
    assert "triton" in printed.partition("Left out:")[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "sort"], "op 'sort': unknown"),
        (["--seqlens", "128,x"], "'x' is no whole number of tokens"),
        (["--json", "no/such/folder/report.json"], "no folder no/such/folder"),
        (["--wrong"], "No such option"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["bench", "kernels", "--device", "cpu", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert message in line
