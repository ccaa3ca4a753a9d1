"""The pictures of reports: what is written in them, where, and that no text covers another. Figures are made up."""

from __future__ import annotations

import copy
import json
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from padless.bench.plots.bars import Group, pages
from padless.bench.plots.command import plot_report, plot_tree
from padless.bench.plots.figures import figures
from padless.bench.plots.labels import overlaps
from padless.bench.plots.padding import padded_lengths
from padless.bench.plots.roofline import Point, roofline
from padless.bench.plots.style import OURS_COLOUR, colours
from padless.bench.reports.report import check_report
from padless.engine.errors import InputError

Tree = dict[str, Any]

FRAME: Tree = {"schema": 1, "written": "2026-01-02T03:04:05+00:00", "kernel_hashes": {}}
CPU: Tree = {"cpu": "A CPU", "slug": "a-cpu", "threads": 2, "commit": "0123456789ab"}


def spread(median: float) -> Tree:
    return {"median": median, "p20": median * 0.98, "p80": median * 1.03}


def kernels() -> Tree:
    """Ten ops at a case each, attention at three lengths: rows of the table and peers, as `bench kernels` has them."""

    def case(op: str, name: str, flops: float, intensity: float, seqlen: int, *peers: float) -> Tree:
        us = {"cpu": 100.0, "eager": 180.0} | dict(zip(("compile", "sdpa-padded", "flex"), peers, strict=False))
        return {
            "op": op, "case": name, "dtype": "float32", "lengths": f"fixed {seqlen}", "seqlen": seqlen, "tokens": 2048,
            "flops": flops, "bytes": flops / intensity, "chosen": "cpu", "left_out": {"liger": "not installed"},
            "systems": [{"system": system, "us": spread(time)} for system, time in us.items()], "failed": {},
        }  # fmt: skip

    cases = [
        case("attention", "BERT-base full", 8e6 * n, 20.0 + n / 40, n, 120.0, 140.0, 150.0) for n in (128, 256, 512)
    ]
    crowd = ("linear", "norm_linear", "mobilebert_in", "mobilebert_out", "mlm_head", "decode_attention")
    cases += [case(op, f"{op} 768x3072", 6e9 + 1e8 * i, 60.0 + i, 128, 90.0) for i, op in enumerate(crowd)]
    cases += [case(op, "768", 2e6, 0.4, 128, 110.0) for op in ("norm", "rope", "pool")]
    ceilings = {"tflops": {"float32": 90.0}, "gbps": 400.0}
    return FRAME | {"kind": "kernels", "machine": CPU, "ceilings": ceilings, "cases": cases}


def models() -> Tree:
    """Four systems in two dtypes on the real workload, in schema 1, with one model at the top."""
    rates = {"sentence-transformers": (5600.0, 1.18), "transformers": (6500.0, 1.06), "openvino": (8400.0, 1.03)}
    systems = [
        {"system": name, "dtype": dtype, "tokens_per_second": spread(rate * gain),
         "ratio": spread(rate * gain / 5600.0), "padding_factor": padding}
        for name, (rate, padding) in (rates | {"padless": (8100.0, 1.0)}).items()
        for dtype, gain in (("float32", 1.0), ("bfloat16", 1.75))
    ]  # fmt: skip
    workload = {"name": "mixed_256", "source": "news", "texts": 512, "tokens": 66560}
    return FRAME | {"kind": "models", "machine": CPU, "model": "tiny", "workload": workload, "systems": systems}


def jobs() -> Tree:
    systems = [
        {"system": name, "dtype": "float32", "rows_per_second": spread(rate), "start_seconds": spread(3.0),
         "seconds": spread(5000 / rate), "peak_rss_mib": spread(700.0)}
        for name, rate in (("sentence-transformers", 140.0), ("padless, model only", 320.0), ("padless", 300.0))
    ]  # fmt: skip
    workload = {"name": "verses", "rows": 5000, "tokens": 175_000}
    return FRAME | {"kind": "jobs", "machine": CPU, "workload": workload, "dtype": "float32", "systems": systems}


def gpu(dry: bool = False) -> Tree:
    """What `make gpu-report` leaves, of a card that does not exist."""

    def case(tokens: int, us: dict[str, float], **rate: float) -> Tree:
        timed = {name: {"us": spread(time), "ratio": time / us["padless"], **rate} for name, time in us.items()}
        return {"status": "ok", "tokens": tokens, "timed": dict.fromkeys(us) if dry else timed}

    ceilings = {"status": "ok"} if dry else {"status": "ok", "gemm_tflops": 700.0, "copy_gbps": 4000.0}
    attention = {"ceilings": ceilings} | {
        f"{kind}/{length}": case(16384, {"padless": 100.0, "flash-attn 3": 95.0, "flex": 180.0}, tflops=400.0)
        for kind in ("equal", "window")
        for length in (512, 1024, 2048)
    }
    attention["mixed/512"] = case(16384, {"padless": 100.0, "padless, equal lengths": 97.0}, tflops=400.0)
    fused = {"ceilings": ceilings, "norm/768, bf16": case(65536, {"padless": 50.0, "op by op": 150.0}, gbps=3900.0)}
    machine = {"gpu": "No GPU", "slug": "no-gpu", "commit": "0123456789ab"}
    parts = {"attention": {"cases": attention}, "fused": {"cases": fused}}
    return FRAME | {"kind": "gpu-report", "machine": machine, "dry": dry, "parts": parts}


MODELS = models()
TREES: dict[str, Tree] = {"kernels": kernels(), "models": MODELS, "jobs": jobs(), "gpu-report": gpu()}


@pytest.fixture(scope="module")
def drawn() -> dict[str, dict[str, Figure]]:
    return {kind: rendered(tree) for kind, tree in TREES.items()}


def rendered(tree: Tree) -> dict[str, Figure]:
    found = dict(figures(check_report(tree)))
    for figure in found.values():
        figure.canvas.draw()
    return found


def each(drawn: dict[str, dict[str, Figure]]) -> Iterator[tuple[str, Figure]]:
    return ((f"{kind}: {name}", figure) for kind, found in drawn.items() for name, figure in found.items())


def written(figure: Figure) -> list[Text]:
    """The texts that are seen in a figure that was drawn, so that its ticks are those of the picture."""
    # matplotlib keeps ticks beyond the limits of an axis, and does not draw them.
    beyond = {
        id(label)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_visible() and text.get_text()]
    return [text for text in texts if id(text) not in beyond]


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in written(figure)]


def boxes(figure: Figure, texts: list[Text]) -> np.ndarray:
    assert isinstance(figure.canvas, FigureCanvasAgg)
    renderer = figure.canvas.get_renderer()
    return np.array([text.get_window_extent(renderer).extents for text in texts])


def test_the_pictures_of_each_kind(drawn: dict[str, dict[str, Figure]]) -> None:
    assert {kind: sorted(found) for kind, found in drawn.items()} == {
        "kernels": ["kernels_attention_float32", "kernels_float32", "lengths", "roofline_float32"],
        "models": ["models", "padding"],
        "jobs": ["jobs"],
        "gpu-report": ["attention", "ceilings", "fused", "lengths"],  # four and no more
    }


def test_no_text_covers_another_or_leaves_the_picture(drawn: dict[str, dict[str, Figure]]) -> None:
    for name, figure in each(drawn):
        # A slanted text's box is mostly empty; that of an axis' name turned by a right angle is not.
        texts = [text for text in written(figure) if text.get_rotation() % 90 == 0]
        found = boxes(figure, texts)
        width, height = figure.bbox.width, figure.bbox.height
        for text, (left, low, right, high) in zip(texts, found, strict=True):
            assert left >= 0, (name, text)
            assert low >= 0, (name, text)
            assert right <= width, (name, text)
            assert high <= height, (name, text)
        covered = [(texts[i].get_text(), texts[j].get_text()) for i, j in overlaps(found)]
        assert covered == [], name


def test_the_title_says_machine_dtype_and_commit(drawn: dict[str, dict[str, Figure]]) -> None:
    dtypes = {"kernels": "float32", "models": "float32, bfloat16", "jobs": "float32", "gpu-report": "bfloat16"}
    for kind, found in drawn.items():
        machine = TREES[kind]["machine"]
        for name, figure in found.items():
            _, below = figure.texts[:2]
            parts = below.get_text().split("  ·  ")
            assert parts[0].startswith(machine.get("gpu") or machine["cpu"]), name
            assert dtypes[kind] in parts, name
            assert f"commit {machine['commit']}" in parts, name


def test_every_system_of_every_case_is_named_beside_its_figures(drawn: dict[str, dict[str, Figure]]) -> None:
    texts = words(drawn["models"]["models"])
    for system in MODELS["systems"]:
        assert f"{system['system']} {system['dtype']}" in texts
        assert f"{system['tokens_per_second']['median']:,.0f}" in texts
        assert f"{system['ratio']['median']:.2f}x" in texts
    texts = words(drawn["kernels"]["kernels_float32"])
    ops = {case["op"] for case in TREES["kernels"]["cases"]}
    assert {text.partition(":")[0] for text in texts if ": " in text} == ops
    # padless is the row that was chosen; of attention's three lengths the largest stands for the op.
    assert texts.count("padless (cpu)") == texts.count("eager") == texts.count("compile") == len(ops)
    assert texts.count("sdpa-padded") == texts.count("flex") == 1
    texts = words(drawn["kernels"]["kernels_attention_float32"])
    assert texts.count("flex") == 3
    # 120 µs of the fastest peer over 100: of all three lengths.
    assert texts.count("1.20x") == 3
    texts = words(drawn["jobs"]["jobs"])
    assert {"padless", "padless, model only", "sentence-transformers"} <= set(texts)
    assert {"300", "140", "3.0 + 16.7 s", "700 MiB"} <= set(texts)


def test_the_fastest_is_on_top(drawn: dict[str, dict[str, Figure]]) -> None:
    axes = drawn["models"]["models"].axes[0]
    assert axes.yaxis_inverted()
    named = [label.get_text() for label in axes.get_yticklabels()]
    rates = {f"{s['system']} {s['dtype']}": s["tokens_per_second"]["median"] for s in MODELS["systems"]}
    assert named == sorted(rates, key=lambda name: -rates[name])


def test_a_page_takes_whole_groups() -> None:
    groups = [Group(str(size), (None,) * size) for size in (3, 4, 2, 9, 1)]  # pyright: ignore[reportArgumentType]
    assert [[group.name for group in page] for page in pages(groups, most=7)] == [["3", "4"], ["2"], ["9"], ["1"]]


def test_lengths_has_a_line_for_each_system(drawn: dict[str, dict[str, Figure]]) -> None:
    figure = drawn["kernels"]["lengths"]
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert lines.keys() == {"padless", "eager", "compile", "sdpa-padded", "flex"}
    assert np.asarray(lines["padless"].get_xdata()).tolist() == [128, 256, 512]
    # 2,048 tokens in 100 microseconds.
    assert np.asarray(lines["padless"].get_ydata()).tolist() == pytest.approx([20.48e6] * 3)
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == lines.keys()
    titles = [axes.get_title(loc="left") for axes in drawn["gpu-report"]["lengths"].axes]
    assert titles == ["attention: equal, bfloat16", "attention: window, bfloat16"]


def test_the_gpu_s_ceilings_are_those_of_the_run(drawn: dict[str, dict[str, Figure]]) -> None:
    texts = words(drawn["gpu-report"]["ceilings"])
    assert {"57%  (400 TFLOP/s)", "98%  (3,900 GB/s)"} <= set(texts)
    assert {"of a matrix product: 700 TFLOP/s", "of a copy: 4,000 GB/s"} <= set(texts)
    assert "mixed/512" not in words(drawn["gpu-report"]["attention"])  # itself at equal lengths is no peer


def test_padless_has_one_colour_that_nobody_else_has(drawn: dict[str, dict[str, Figure]]) -> None:
    own = matplotlib.colors.to_rgba(OURS_COLOUR)
    axes = drawn["models"]["models"].axes[0]
    bars = sorted((bar for bar in axes.patches if isinstance(bar, Rectangle)), key=lambda bar: bar.get_y())
    for label, bar in zip(axes.get_yticklabels(), bars, strict=True):
        assert (bar.get_facecolor() == own) == label.get_text().startswith("padless ")
    line = next(line for line in drawn["kernels"]["lengths"].axes[0].get_lines() if line.get_label() == "padless")
    assert matplotlib.colors.to_rgba(line.get_color()) == own
    peers = ["eager", "compile", "sdpa-padded", "flex", "torch-varlen", "flash-attn-3", "xformers", "something new"]
    found = colours([*peers, "padless"])
    assert len(set(found.values())) == len(peers) + 1
    assert colours(reversed([*peers, "padless"])) == found


def test_the_roofline_is_where_the_figures_say() -> None:
    points = [Point("one", 2.0, 0.5, 0.25), Point("two", 100.0, 8.0), Point("", 50.0, 4.0)]
    figure = roofline("a title", "below", points, 10.0, 1000.0)
    figure.canvas.draw()
    (axes,) = figure.axes
    roof = max(axes.get_lines(), key=lambda line: line.get_linewidth())
    # 10 TFLOP/s at 1,000 GB/s: the ridge is at 10 FLOPs a byte.
    xs, ys = np.asarray(roof.get_xdata()), np.asarray(roof.get_ydata())
    assert xs[1] == 10.0
    assert ys.tolist() == [pytest.approx(xs[0]), 10.0, 10.0]
    clouds = {cloud.get_label(): np.asarray(cloud.get_offsets()) for cloud in axes.collections}
    assert clouds["padless"].tolist() == [[2.0, 0.5], [100.0, 8.0]]
    assert clouds["fastest peer"].tolist() == [[2.0, 0.25]]
    texts = words(figure)
    # 2 FLOPs a byte at 1,000 GB/s allow 2 TFLOP/s: a quarter is reached.
    assert {"one  25%", "two  80%", "memory: 1,000 GB/s", "matrix products: 10.0 TFLOP/s"} <= set(texts)


def test_a_crowd_of_points_is_labelled_without_covering() -> None:
    generator = np.random.default_rng(5)
    crowd = [
        Point(f"kernel number {i}", generator.uniform(80.0, 300.0), generator.uniform(3.0, 9.5), 2.0) for i in range(18)
    ]
    figure = roofline("a title", "below", crowd, 10.0, 1000.0)
    figure.canvas.draw()
    texts = [text for text in written(figure) if text.get_text().startswith("kernel number")]
    assert len(texts) == 18
    assert overlaps(boxes(figure, texts)) == []


def test_padding_is_counted_in_batches(drawn: dict[str, dict[str, Figure]]) -> None:
    assert padded_lengths(np.array([3, 1, 2, 5, 4]), 2).tolist() == [3, 3, 5, 5, 4]
    texts = words(drawn["models"]["padding"])
    assert {f"{s['padding_factor']:.2f}" for s in MODELS["systems"]} <= set(texts)
    # 512 lengths from 4 to 256, sorted: transformers' own sorted batches of 32 computed 1.06 as well.
    assert "sorted, in batches of 32: 1.06 tokens for each real one" in texts


def test_lengths_that_the_report_states_need_no_corpus() -> None:
    tree = copy.deepcopy(MODELS)
    tree["workload"] |= {"name": "elsewhere", "lengths": [4] * 31 + [8] + [2] * 32}
    texts = words(rendered(tree)["padding"])
    assert f"as they come, in batches of 32: {(32 * 8 + 64) / (31 * 4 + 8 + 64):.2f} tokens for each real one" in texts
    del tree["workload"]["lengths"]
    texts = words(rendered(tree)["padding"])
    assert not any("as they come" in text for text in texts)


def test_the_files_are_png_of_a_readable_size(tmp_path: Path) -> None:
    source = tmp_path / "report.json"
    source.write_text(json.dumps(jobs()))
    (file,) = plot_report(source, tmp_path / "made" / "here")
    content = file.read_bytes()
    assert (file.name, content[:8]) == ("jobs.png", b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert width == 1400
    assert 400 <= height <= 600
    assert {path.name for path in file.parent.iterdir()} == {"jobs.png"}
    (again,) = plot_report(source, tmp_path / "again")
    assert again.read_bytes() == content


@pytest.mark.parametrize(
    "tree",
    [
        kernels() | {"cases": []},
        MODELS | {"systems": []},
        jobs() | {"systems": []},
        gpu() | {"parts": {}},
        gpu(dry=True),
    ],
    ids=["kernels", "models", "jobs", "gpu-report", "dry run"],
)
def test_an_empty_report_has_no_picture_and_says_so(
    tree: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plot_tree(tree, tmp_path / "out") == []
    assert capsys.readouterr().out == f"no picture: the {tree['kind']} report holds no figure\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "path", "message"),
    [
        ("kernels", ("ceilings",), "ceilings: missing, expected a JSON object"),
        ("kernels", ("ceilings", "gbps"), "ceilings.gbps: missing, expected a number"),
        ("kernels", ("ceilings", "tflops", "float32"), "ceilings.tflops.float32: missing, expected a number"),
        ("kernels", ("cases", 3, "op"), "cases[3].op: missing, expected a text"),
        ("models", ("machine",), "machine: missing, expected a JSON object"),
        ("models", ("systems", 2, "ratio"), "models[0].systems[2].ratio: missing, expected a JSON object"),
        ("models", ("systems", 2, "padding_factor"), "models[0].systems[2].padding_factor: missing, expected a number"),
        ("models", ("workload", "texts"), "models[0].workload.texts: missing, expected a number"),
        ("jobs", ("systems", 0, "peak_rss_mib"), "systems[0].peak_rss_mib: missing, expected a JSON object"),
        ("gpu-report", ("parts",), "parts: missing, expected a JSON object"),
        ("gpu-report", ("parts", "fused", "cases"), "parts.fused.cases: missing, expected a JSON object"),
        ("gpu-report", ("machine", "gpu"), "machine: expected gpu or cpu, found neither"),
    ],
)  # fmt: skip
def test_a_missing_field_is_one_line(tmp_path: Path, kind: str, path: tuple[str | int, ...], message: str) -> None:
    tree = copy.deepcopy(TREES[kind])
    owner: Any = tree
    for step in path[:-1]:
        owner = owner[step]
    del owner[path[-1]]
    with pytest.raises(InputError, match=f"^{kind} report: {re.escape(message)}$"):
        plot_tree(tree, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(InputError, match=r"taken: expected a folder for pictures, File exists$"):
        plot_tree(jobs(), tmp_path / "taken")


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"^matplotlib: not installed, .*pip install 'padless\[bench\]'$"):
        plot_tree(jobs(), tmp_path)
