"""What jobs cost: the parts of a job against sums done by hand, and `docs/scaling.md` against its generator."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from padless.bench.scaling.job_cost import (
    DOCUMENTS,
    HOST,
    MODELS,
    Documents,
    Figure,
    Host,
    Tokenisation,
    job,
    read_tokenisation,
)
from padless.bench.scaling.page import RESULTS, main, page
from padless.bench.scaling.roofline import H200, tokens_per_second
from padless.bench.workloads import default_model
from padless.engine.errors import InputError

ROOT = Path(__file__).parents[2]
BY_NAME = {model.name: model for model in MODELS}
BERT = BY_NAME["BERT-base"]
NEWS = Documents("news", 300, "news")
SHARE = HOST.share(1)


def rates(a_core: float = 1e12, a_process: float = 1e12) -> Tokenisation:
    return Tokenisation({("wordpiece", "news"): a_core}, {("wordpiece", "news"): a_process}, {})


def test_a_job_that_waits_for_nothing_takes_what_the_gpu_takes() -> None:
    done = job(BERT, NEWS, 1e9, H200, rates(), host=SHARE)
    assert done.bound == "GPU"
    assert done.seconds == pytest.approx(300e9 / tokens_per_second(BERT.config, 300, H200))
    assert done.gpu_hours == pytest.approx(done.seconds / 3600)
    eight = job(BERT, NEWS, 1e9, H200, rates())
    assert eight.seconds == pytest.approx(done.seconds / 8)
    assert eight.gpu_hours == pytest.approx(done.gpu_hours)


def test_cores_that_tokenise_are_those_that_processes_leave() -> None:
    host = Host(2, Figure(10, "assumed", ""), HOST.storage)
    done = job(BERT, NEWS, 1e6, H200, rates(a_core=1000.0), host=host, hosts=3)
    assert done.bound == "tokenising"
    assert done.seconds == pytest.approx(300e6 / (1000 * (30 - 6)))
    crowded = job(BERT, NEWS, 1e6, H200, rates(a_core=1000.0), host=host, hosts=3, processes_a_gpu=3)
    assert crowded.seconds == pytest.approx(300e6 / (1000 * (30 - 18)))


def test_more_processes_help_where_python_is_waited_for() -> None:
    one = job(BERT, NEWS, 1e6, H200, rates(a_process=1000.0), host=SHARE)
    assert (one.bound, one.seconds) == ("Python", pytest.approx(300e6 / 1000))
    assert job(BERT, NEWS, 1e6, H200, rates(a_process=1000.0), host=SHARE, processes_a_gpu=3).seconds == (
        pytest.approx(one.seconds / 3)
    )


def test_vectors_are_written_by_hosts_and_carried_by_links() -> None:
    slow_disk = replace(HOST, storage=Figure(1e6, "assumed", ""))
    done = job(BERT, NEWS, 1e9, H200, rates(), host=slow_disk, hosts=2)
    assert (done.bound, done.seconds) == ("storage", pytest.approx(1e9 * 768 * 4 / 2e6))
    slow_link = replace(H200, link=Figure(1e6, "assumed", ""))
    done = job(BERT, NEWS, 1e9, slow_link, rates(), hosts=2)
    assert (done.bound, done.seconds) == ("link", pytest.approx(1e9 * (300 * 16 + 768 * 4) / 16e6))


def test_a_process_takes_whole_shards() -> None:
    host = HOST.share(2)
    even, odd = (job(BERT, NEWS, 50_000 * shards, H200, rates(), host=host).seconds for shards in (4, 3))
    assert odd == pytest.approx(even)
    alone = job(BERT, NEWS, 150_000, H200, rates(), host=SHARE).seconds
    assert odd == pytest.approx(alone * 2 / 3)


def test_texts_are_cut_to_what_the_model_keeps() -> None:
    long = Documents("long", 2000, "news")
    assert job(BERT, long, 1e6, H200, rates()).tokens == 512e6
    assert job(BY_NAME["ModernBERT-base"], long, 1e6, H200, rates()).tokens == 2000e6


def test_minilm_is_the_one_that_installs() -> None:
    model, folder = BY_NAME["MiniLM-L6 (BERT)"], default_model()
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        assert getattr(model.config, name) == fields[name]
    sentence = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))
    assert (model.limit, model.dimension) == (sentence["max_seq_length"], fields["hidden_size"])


def test_a_report_of_another_kind_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "tokenisation.json"
    other.write_text('{"rates": [{"threads": 1}]}', encoding="utf-8")
    with pytest.raises(InputError, match=r"tokenisation.json: expected a report of padless.bench.scaling.tokenisation"):
        read_tokenisation(other)
    shutil.copy(RESULTS / "tokenisation.json", other)
    models = tmp_path / "models_minilm.json"
    models.write_text('{"systems": []}', encoding="utf-8")
    with pytest.raises(InputError, match=r"models_minilm.json: kind: missing, expected a text"):
        page(results=tmp_path)
    report = json.loads((RESULTS / "models_minilm.json").read_text(encoding="utf-8"))
    for system in report["models"][0]["systems"]:
        system["dtype"] = "float32"
    models.write_text(json.dumps(report), encoding="utf-8")
    with pytest.raises(InputError, match=r"models_minilm.json: expected padless in .*, found none in bfloat16"):
        page(results=tmp_path)


def test_the_command_writes_the_page_and_names_what_it_cannot_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--out", str(tmp_path / "page.md")])
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page()
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(tmp_path / "none" / "page.md")])
    assert "No such file" in capsys.readouterr().err


def test_the_committed_page_is_the_generated_one() -> None:
    assert (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8") == page(), "make scaling"


def cells(text: str, heading: str, row: str) -> list[str]:
    """The cells of the row of that name, of the first table behind a heading that has one."""
    behind = text[text.index(heading) :]
    (found,) = re.findall(rf"^\| {re.escape(row)} \|(.*)\|$", behind.partition("\n## ")[0], re.MULTILINE)[:1]
    return [cell.strip() for cell in found.split("|")]


def test_the_page_says_what_the_model_says() -> None:
    text = page()
    assert "modelled, not measured" in text.partition("## In short")[0]
    hours = [float(cell.partition(" ")[0]) for cell in cells(text, "## A billion documents", "BERT-base")]
    tokenisation = read_tokenisation(RESULTS / "tokenisation.json")
    modelled = [job(BERT, kind, 1e9, H200, tokenisation, host=SHARE).gpu_hours for kind in DOCUMENTS]
    assert hours == pytest.approx(modelled, abs=0.05)
    assert float(cells(text, "## A token", "BERT-base")[3]) == 4.37  # 790 TFLOP/s over 180.9 MFLOP
    terabytes = cells(text, "## Vectors", "768")
    assert [float(cell) for cell in terabytes] == [3.07, 1.54, 0.77, 0.10]


def test_the_price_multiplies_the_money() -> None:
    def dollars(price: float) -> int:
        return int(cells(page(price), "News-like documents again", "MegatronBERT-345m")[0].partition("$")[2])

    assert dollars(6.0) == pytest.approx(2 * dollars(3.0), abs=1)


def test_the_page_says_whether_others_used_the_machine(tmp_path: Path) -> None:
    shutil.copytree(RESULTS, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenisation.json"
    report = json.loads(file.read_text(encoding="utf-8"))
    for waited, said in ((1.0, False), (2.5, True)):
        for rate in report["rates"]:
            rate["tokens_per_second"]["median"] = rate["tokens_per_core_second"]["median"] / waited
        file.write_text(json.dumps(report), encoding="utf-8")
        assert ("the clock ran 2.5 times as long" in page(results=tmp_path)) is said
        assert ("Others used the machine" in page(results=tmp_path)) is said


def test_the_page_says_what_was_measured_on_a_cpu() -> None:
    report = json.loads((RESULTS / "models_minilm.json").read_text(encoding="utf-8"))
    (rate,) = (
        system["tokens_per_second"]["median"]
        for system in report["models"][0]["systems"]
        if (system["system"], system["dtype"]) == ("padless", "bfloat16")
    )
    text = page()
    assert f"{rate:,.0f} tokens/s in bfloat16" in text
    assert f"take {256e6 / rate / 3600:.1f} hours" in " ".join(text.split())
