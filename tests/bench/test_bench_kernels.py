"""`padless bench kernels`: nothing that is wrong gets a number, and the files say what was printed."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from padless.autotune.kernel_hash import kernel_hashes
from padless.bench.gpu.attention import checked_heads
from padless.bench.gpu.peers import Absent
from padless.bench.kernels import check
from padless.bench.kernels.case import Case, Ready
from padless.bench.kernels.ceilings import Ceilings
from padless.bench.kernels.check import Oracle
from padless.bench.kernels.csv_file import COLUMNS
from padless.bench.kernels.families import FAMILIES, TINY
from padless.bench.kernels.measure import measure_case
from padless.bench.kernels.peers import PEERS, Peer, choose_peers
from padless.bench.kernels.run import batches, run
from padless.bench.kernels.shapes import BY_LENGTHS, shapes
from padless.bench.kernels.systems import ready_row, rows_of
from padless.bench.kernels.timing import time_systems
from padless.bench.lengths import DISTRIBUTIONS, draw_lengths
from padless.bench.reports.report import read_report
from padless.engine.dispatch import TABLE
from padless.engine.errors import InputError

CPU = torch.device("cpu")
CEILINGS = Ceilings({"float32": 1.0, "bfloat16": 1.0}, 10.0)
BATCH = draw_lengths("variable", 60, 20)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Shared between threads a product is rounded by how it is cut, and the oracle may cut it otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def case_of(op: str, place: int = 0, dtype: torch.dtype = torch.float32) -> Case:
    return shapes([op], TINY)[place].make(BATCH, dtype, CPU)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A real run of every op in tiny sizes, and the folder of its files."""
    folder = tmp_path_factory.mktemp("kernels")
    report = run(
        tokens=40, seqlens=[16], repeats=2, families=TINY, device="cpu",
        json_path=folder / "report.json", csv_path=folder / "report.csv",
    )  # fmt: skip
    return report, folder


def test_every_op_of_the_table_is_measured_beside_eager(measured: tuple[dict[str, Any], Path]) -> None:
    report, _ = measured
    assert {case["op"] for case in report["cases"]} == set(TABLE)
    for case in report["cases"]:
        systems = {system["system"]: system for system in case["systems"]}
        assert case["failed"] == {}, case
        assert systems["eager"]["ratio"] == 1.0
        assert {*systems, *case["left_out"]} >= set(rows_of(case["op"]))
        assert case["chosen"] in systems
        for name in ("triton", "flash_attn", "torch_varlen"):
            assert case["left_out"].get(name, "needs device cuda, got cpu") == "needs device cuda, got cpu"
        # Eager is half of what is allowed away from fp64, and not nothing, but where it gathers or adds few bits.
        exact = case["op"] in ("trigram", "no_norm") or (case["op"], case["case"]) == ("embed", "mT5-small")
        assert 0.0 < systems["eager"]["check"]["of_bound"] <= 0.5 or exact
        for system in systems.values():
            assert system["check"]["of_bound"] <= 1.0
            assert system["check"]["checked"] == "all"


def test_every_figure_follows_from_time_flops_and_bytes(measured: tuple[dict[str, Any], Path]) -> None:
    report, _ = measured
    ceilings = report["ceilings"]
    for case in report["cases"]:
        for system in case["systems"]:
            if system["system"] == "product-alone":
                continue  # its bytes are those of the product
            seconds = system["us"]["median"] / 1e6
            assert system["us"]["p20"] <= system["us"]["median"] <= system["us"]["p80"]
            assert system["tflops"] == pytest.approx(case["flops"] / seconds / 1e12)
            assert system["gbps"] == pytest.approx(case["bytes"] / seconds / 1e9)
            assert system["tokens_per_second"] == pytest.approx(case["tokens"] / seconds)
            least = max(
                case["flops"] / ceilings["tflops"][case["dtype"]] / 1e12, case["bytes"] / ceilings["gbps"] / 1e9
            )
            assert system["of_ceiling"] == pytest.approx(least / seconds)
            assert system["peak_bytes"] is None


def test_the_report_reads_back_as_it_was_and_has_what_it_must_be_read_beside(
    measured: tuple[dict[str, Any], Path],
) -> None:
    report, folder = measured
    found = read_report(folder / "report.json")
    assert (found.kind, found.root.tree) == ("kernels", report)
    assert (report["schema"], report["kind"], report["baseline"], report["repeats"]) == (1, "kernels", "eager", 2)
    assert report["kernel_hashes"] == kernel_hashes()
    assert report["machine"]["threads"] == torch.get_num_threads()
    assert set(report["ceilings"]) == {"tflops", "gbps"}
    assert set(report["ceilings"]["tflops"]) == {"float32", "bfloat16"}


def test_the_csv_has_a_line_for_every_system_of_every_case(measured: tuple[dict[str, Any], Path]) -> None:
    report, folder = measured
    with (folder / "report.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == COLUMNS
    figures = [(case, system) for case in report["cases"] for system in case["systems"]]
    timed = [line for line in lines if line["us_median"]]
    assert [(line["op"], line["case"], line["dtype"], line["lengths"], line["system"]) for line in timed] == [
        (case["op"], case["case"], case["dtype"], case["lengths"], system["system"]) for case, system in figures
    ]
    assert [float(line["us_median"]) for line in timed] == [system["us"]["median"] for _, system in figures]
    assert [float(line["ratio"]) for line in timed] == [system["ratio"] for _, system in figures]
    absent = [line["no_number"] for line in lines if not line["us_median"]]
    assert absent == [reason for case in report["cases"] for reason in case["left_out"].values()]


@pytest.mark.parametrize("text", ["", "[]", '{"kind": "models", "schema": 1}', '{"kind": "kernels", "schema": 2}'])
def test_another_file_is_no_report(tmp_path: Path, text: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"^.*other\.json: "):
        read_report(file)


def sabotaged(op: str, harm: Callable[[Tensor], Tensor]) -> Peer:
    """A peer that is the eager row, its first result harmed."""

    def build(case: Case) -> Ready:
        eager = ready_row(case, "eager")

        def results(returned: Any) -> tuple[Tensor, ...]:
            first, *others = eager.results(returned)
            return harm(first.clone()), *others

        return Ready(eager.call, results)

    return Peer("sabotaged", (op,), lambda case: None, build)


def one_value(x: Tensor) -> Tensor:
    x.view(-1)[x.numel() // 2] += 0.01
    return x


def one_nan(x: Tensor) -> Tensor:
    x.view(-1)[-1] = float("nan")
    return x


HARMS = {"one value": one_value, "NaN": one_nan, "short": lambda x: x[:-1], "wide": lambda x: x.double()}


@pytest.mark.parametrize("op", TABLE)
@pytest.mark.parametrize("harm", HARMS)
def test_a_wrong_result_gets_a_reason_and_no_number(op: str, harm: str) -> None:
    figures = measure_case(case_of(op), {"sabotaged": sabotaged(op, HARMS[harm])}, 1, CEILINGS)
    assert list(figures["failed"]) == ["sabotaged"]
    assert "sabotaged" not in {system["system"] for system in figures["systems"]}
    assert "eager" in {system["system"] for system in figures["systems"]}


def test_what_raises_and_what_is_absent_have_no_number_either() -> None:
    def breaks(_case: Case) -> Ready:
        raise ValueError("no such\nthing")

    def refuses(_case: Case) -> Ready:
        raise Absent("not on a Sunday")

    peers = {
        "broken": Peer("broken", ("norm",), lambda case: None, breaks),
        "absent": Peer("absent", ("norm",), lambda case: None, refuses),
        "missing": Peer("missing", ("norm",), lambda case: "not installed", breaks),
        "other": Peer("other", ("linear",), lambda case: None, breaks),
    }
    figures = measure_case(case_of("norm"), peers, 1, CEILINGS)
    assert figures["failed"] == {"broken": "ValueError: no such"}
    assert {"absent": "not on a Sunday", "missing": "not installed"}.items() <= figures["left_out"].items()
    assert "other" not in figures["left_out"]
    assert [system["system"] for system in figures["systems"]] == ["eager"]


def test_a_harmed_row_of_a_large_result_is_seen_where_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large product some rows are checked: the first and last ones always, and the report says how many."""
    monkeypatch.setattr(check, "EVERYTHING", 0.0)
    monkeypatch.setattr(check, "ROWS", 16)
    case = case_of("linear")
    oracle = Oracle(case, 0)
    right = ready_row(case, "eager")
    (out,) = right.results(right.call())
    figures, reason = oracle.judge((out,))
    assert (reason, figures["checked"]) == (None, "16 rows")
    seen = []
    for place in range(case.rows):
        harmed = out.clone()
        harmed[place, 3] += 0.5
        if oracle.judge((harmed,))[1] is not None:
            seen.append(place)
    assert len(seen) == 16
    assert {0, 1, 2, 3, case.rows - 4, case.rows - 1} <= set(seen)


def test_of_a_large_attention_some_texts_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "PAIRS", 0)
    case = case_of("attention")
    oracle = Oracle(case, 1 << 20)
    right = ready_row(case, "eager")
    (out,) = right.results(right.call())
    figures, reason = oracle.judge((out,))
    assert reason is None
    assert "texts, 2 heads" in figures["checked"]
    assert case.attention is not None
    assert checked_heads(case.attention).problem.heads == 2
    harmed = out.clone()
    harmed[0, 1, 2] += 0.5
    assert oracle.judge((harmed,))[1] is not None


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sdpa-padded", "fixed"), ("sdpa-padded", "variable"), ("sdpa-nested", "variable"), ("product-alone", "variable")],
)
def test_peers_that_run_here_are_right_or_say_why_not(name: str, kind: str) -> None:
    peer = PEERS[name]
    served = 0
    for op in peer.ops:
        for shape in shapes([op], TINY)[:: 3 if op == "linear" else 1]:
            case = shape.make(draw_lengths(kind, 60, 20), torch.float32, CPU)
            figures = measure_case(case, {name: peer}, 1, CEILINGS)
            timed = {system["system"] for system in figures["systems"]}
            assert figures["failed"] == {}
            assert (name in figures["left_out"]) != (name in timed)
            served += name in timed
    assert served >= 2


def test_the_product_alone_is_rated_by_its_own_bytes() -> None:
    case = next(shape.make(BATCH, torch.float32, CPU) for shape in shapes(["linear"], TINY) if "residual" in shape.name)
    figures = measure_case(case, {"product-alone": PEERS["product-alone"]}, 1, CEILINGS)
    systems = {system["system"]: system for system in figures["systems"]}
    alone, eager = systems["product-alone"], systems["eager"]
    residual = case.options["residual"]
    bias = case.weights[1]
    assert bias is not None
    smaller = (residual.numel() + bias.numel()) * 4
    assert alone["gbps"] * alone["us"]["median"] * 1e3 == pytest.approx(case.cost.bytes - smaller)
    assert eager["gbps"] * eager["us"]["median"] * 1e3 == pytest.approx(case.cost.bytes)


def test_a_turn_of_a_quick_call_is_several_and_its_time_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    def work(seconds: float) -> None:
        nonlocal clock
        clock += seconds

    monkeypatch.setattr("padless.bench.timing.time.perf_counter", lambda: clock)
    calls = {"quick": lambda: work(2.5e-4), "slow": lambda: work(0.5)}
    seconds = time_systems(calls, CPU, 3)
    assert seconds["quick"] == pytest.approx([2.5e-4] * 3)
    assert seconds["slow"] == pytest.approx([0.5] * 3)
    # A call to warm up, one to see how long it is, and three turns: of one call, or of a millisecond.
    assert clock == pytest.approx(5 * 0.5 + (2 + 3 * 4) * 2.5e-4)


def test_without_names_costly_peers_say_how_to_ask_for_them() -> None:
    case = case_of("attention")
    unasked, asked = choose_peers(None), choose_peers(["flex", "compile"])
    assert set(unasked) == set(PEERS)
    assert unasked["flex"].missing(case) == (
        "compiled for each case, for many seconds: asked for by name only (--peers flex)"
    )
    assert asked["flex"].missing(case) is None
    assert unasked["compile"].missing(case) == PEERS["compile"].missing(case)
    assert choose_peers(["all"]) == PEERS
    assert choose_peers(["none"]) == {}


def test_attention_whose_scores_do_not_fit_is_left_out() -> None:
    case = case_of("attention")
    assert case.attention is not None
    long = replace(case.attention, problem=replace(case.attention.problem, lengths=(1 << 20,)))
    with pytest.raises(Absent, match=r"^its scores take .* GiB, more than half of the .* GiB free$"):
        ready_row(replace(case, attention=long), "eager")


def test_an_op_meets_the_batches_that_change_its_work() -> None:
    kinds, seqlens = list(DISTRIBUTIONS), [512, 128]
    for op in TABLE:
        names = [batch.name for batch in batches(op, kinds, seqlens, 2048)]
        if op in BY_LENGTHS:
            assert names[:4] == ["fixed 128", "fixed 512", "variable 128", "variable 512"]
            assert len(names) == len(set(names)) == 4 * 2 + 2
        else:
            assert names == ["fixed 128", "single 128"]
    assert [batch.name for batch in batches("norm", ["news"], seqlens, 2048)] == ["news"]


def test_the_tiny_families_have_the_kinds_of_the_real_ones() -> None:
    assert list(TINY) == list(FAMILIES)
    for name, family in FAMILIES.items():
        tiny = TINY[name]
        for kind in ("epilogue", "gated", "norm", "bias", "rotates", "before"):
            assert getattr(tiny, kind) == getattr(family, kind)
        assert (tiny.window == (-1, -1)) == (family.window == (-1, -1))


def test_the_five_families_are_those_of_the_models_configurations() -> None:
    from padless.engine.models.mobilebert_config import MobileBertConfig
    from padless.engine.models.modernbert_config import ModernBertConfig

    modern, mobile = ModernBertConfig(), MobileBertConfig()
    family = FAMILIES["ModernBERT-base"]
    assert (family.hidden, family.inner, family.heads, family.vocabulary) == (
        modern.hidden_size,
        modern.intermediate_size,
        modern.num_attention_heads,
        modern.vocab_size,
    )
    family = FAMILIES["MobileBERT"]
    assert (family.hidden, family.inner, family.heads, family.attended) == (
        mobile.hidden_size,
        mobile.intermediate_size,
        mobile.num_attention_heads,
        mobile.embedding_size,
    )
