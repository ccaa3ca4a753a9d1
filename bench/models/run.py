"""`padless bench models`: whole models, texts in and vectors out, beside the systems people use today.

One interleaved run a model; a model's systems are gone before the next one's are loaded. Families whose published
weights do not install from a package index run with random weights in the published shape (`seeded.py`): speed does not
depend on them, but cosines do, and on random weights those of int8 say little about a trained checkpoint's.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...engine.errors import InputError, OptionError
from ..machine import describe
from ..reports.files import check_folders, write_json, writing
from ..workloads import WORKLOADS
from .measure import ModelReport, measure, threads_of_all
from .mobilebert import AgainstBert, against_bert
from .output import report_of, write_csv
from .seeded import MINILM, MODELS, model_folder
from .systems import make_systems
from .tables import machine_line, markdown, screen

__all__ = ["run"]


def run(
    device: str = "cpu",
    *,
    models: Sequence[str] | None = None,
    model: str | os.PathLike[str] | None = None,
    workload: str = "skewed_256",
    tokens: int | None = None,
    dtypes: Sequence[str] = ("float32", "bfloat16", "int8"),
    peers: Sequence[str] | None = None,
    threads: int | None = None,
    repeats: int = 5,
    csv_path: str | os.PathLike[str] | None = None,
    json_path: str | os.PathLike[str] | None = None,
    markdown_path: str | os.PathLike[str] | None = None,
    plot: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Check, time and print padless and its peers.

    Args:
        device: "cpu".
        models: names from `seeded.MODELS`, or "all"; None takes MiniLM.
        model: a folder instead: of sentence-transformers with mean pooling, or without modules, which means the same.
        workload: a name from `workloads.WORKLOADS`.
        tokens: run a cut of about so many tokens; None leaves that to the cost of the model (`measure.CUTS`).
        dtypes: "float32", "bfloat16", "int8"; each system runs in each of them that it has.
        peers: names from `systems.SYSTEMS`; None takes all. sentence-transformers in float32 always runs: it is the
            reference. A peer that is not installed is named and left out.
        threads: threads of every system; None takes torch's setting.
        repeats: rounds of the interleaved runs, at least 1.
        csv_path, json_path, markdown_path: also write the facts here.
        plot: also draw them, into this folder.

    Returns:
        What is written as JSON; see `output.report_of`.

    Raises:
        OptionError: an argument is out of range.
        InputError: sentence-transformers, a corpus, the model or what draws is not installed; a file cannot be written.
    """
    if device != "cpu":
        raise OptionError(f"device {device!r}: models are measured on 'cpu'")
    for name, value in (("repeats", repeats), ("threads", threads), ("tokens", tokens)):
        if value is not None and value < 1:
            raise OptionError(f"{name}: expected at least 1, got {value}")
    if models is not None and model is not None:
        raise OptionError("model and models: expected one of them, got both")
    if workload not in WORKLOADS:
        raise InputError(f"workload {workload!r}: unknown, expected one of {', '.join(WORKLOADS)}")
    names = _names(models)
    make_systems(peers, dtypes)
    check_folders(csv_path, json_path, markdown_path)
    draw = None if plot is None else _drawer()
    reports: list[ModelReport] = []
    against: AgainstBert | None = None
    with threads_of_all(threads) as count, tempfile.TemporaryDirectory(prefix="padless_bench_") as made:
        machine = describe(count)
        options: dict[str, Any] = {"workload": workload, "tokens": tokens, "dtypes": dtypes}
        options |= {"threads": count, "repeats": repeats}
        for name in names if model is None else [str(model)]:
            print(f"{name}:", flush=True)
            if model is not None:
                folder, shown, weights = Path(model), Path(model).absolute().name, "given"
            else:
                folder, shown = model_folder(name, Path(made)), name
                weights = "published" if name == MINILM else "seeded random"
            reports.append(measure(shown, folder, weights, make_systems(peers, dtypes), **options))
            print(screen(reports[-1], repeats), flush=True)
        if {"mobilebert", "bert-base"} <= set(names):
            pair = (model_folder(name, Path(made)) for name in ("mobilebert", "bert-base"))
            against = against_bert(*pair, **options)
            print("\n" + "\n".join(against.sentences()))
    report = report_of(reports, against, machine, repeats)
    print(machine_line(report))
    if json_path is not None:
        write_json(report, json_path)
    if csv_path is not None:
        write_csv(reports, Path(csv_path))
    if markdown_path is not None:
        with writing(markdown_path) as file:
            file.write(markdown(reports, against, machine_line(report), repeats))
    if draw is not None and plot is not None:
        for file in draw(report, Path(plot)):
            print(file)
    return report


def _names(models: Sequence[str] | None) -> list[str]:
    wanted = [MINILM] if models is None else list(MODELS) if list(models) == ["all"] else list(dict.fromkeys(models))
    for name in wanted:
        if name not in MODELS:
            raise OptionError(f"model {name!r}: unknown, expected all, or some of {', '.join(MODELS)}")
    if not wanted:
        raise OptionError("models: expected at least one")
    return wanted


def _drawer() -> Callable[[dict[str, Any], Path], list[Path]]:
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("plots are drawn with matplotlib, which is not installed: pip install 'padless[bench]'")
    try:
        from ..plots.figures import draw  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(f"plots cannot be drawn: {error}") from error
    return draw
