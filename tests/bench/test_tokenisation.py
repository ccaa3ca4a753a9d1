"""`python -m padless.bench.scaling.tokenisation` on a few texts, and what it says of bad arguments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as RustTokenizer

from padless.bench.scaling.tokenisation import CORPORA, main
from padless.bench.workloads import default_model


def test_the_report_holds_every_tokenizer_and_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    main(["--threads", "1", "--repeats", "2", "--texts", "4", "--json", str(file)])
    report = json.loads(file.read_text(encoding="utf-8"))
    found = {(rate["tokenizer"], rate["corpus"]): rate for rate in report["rates"]}
    assert set(found) == {(tokenizer, corpus) for tokenizer in ("wordpiece", "unigram") for corpus in CORPORA}
    library = RustTokenizer.from_file(str(default_model() / "tokenizer.json"))
    library.no_truncation()
    library.no_padding()
    printed = capsys.readouterr().out
    for (tokenizer, corpus), rate in found.items():
        texts = CORPORA[corpus][1]()[:4]
        assert rate["characters"] == sum(map(len, texts))
        if tokenizer == "wordpiece":
            assert rate["tokens"] == sum(len(library.encode(text).ids) for text in texts)
        for clock in ("seconds", "cpu_seconds", "serial_seconds"):
            assert len(rate[clock]) == 2
            assert min(rate[clock]) > 0
        slow, fast = (rate["tokens"] / seconds for seconds in sorted(rate["seconds"], reverse=True))
        assert slow <= rate["tokens_per_second"]["median"] <= fast
        assert f"{rate['tokens_per_core_second']['median']:,.0f}" in printed
    assert report["machine"]["threads"] == 1


@pytest.mark.parametrize("flag", ["--threads", "--repeats", "--texts"])
def test_numbers_below_one_end_in_one_line(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([flag, "0"])
    assert f"{flag[2:]}: expected at least 1, got 0" in capsys.readouterr().err


def test_a_process_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")  # which the process inherits, and where no Python is
    with pytest.raises(SystemExit, match="2"):
        main(["--texts", "1"])
    assert "1 thread(s): " in capsys.readouterr().err
