"""`docs/scaling.md`: what jobs cost, from the cost model and two measurements on a CPU.

python -m padless.bench.scaling.page --out docs/scaling.md [--price 3]
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from textwrap import TextWrapper
from typing import Any

from ...engine.errors import InputError, PadlessError
from ..reports.report import read_report
from .job_cost import DOCUMENTS, DOCUMENTS_A_SHARD, HOST, MODELS, Documents, Job, Model, read_tokenisation
from .roofline import H200, attention_crossover, tokens_per_second
from .tables import Tables, listed
from .text import PAGE

__all__ = ["PRICE", "main", "page"]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "amd-epyc"

PRICE = 3.0
"""Dollars a GPU-hour: an assumption, to be multiplied."""

PUBLISHED = {"model": "BERT-base", "length": 512, "rate": 1.64e6}
"""The best that was published on an H200: Arctic Inference, read off the chart of its README."""

RAY_TASK = (1.606 - 0.165) / 10_000
"""Seconds a task, from the page "Over-parallelizing with too fine-grained tasks" of Ray's documentation."""

START = 60.0
"""Seconds until a process computes: an assumption."""

MOST_WAITED = 1.1
"""Wall clock over CPU time of one thread, from which on a measurement is said to have been disturbed."""

BILLION = 1e9

WIDTH = 130
"""Characters of a line."""


def page(price: float = PRICE, results: Path = RESULTS) -> str:
    """The page.

    Args:
        price: dollars a GPU-hour.
        results: folder of the two measurements.

    Raises:
        InputError: a measurement is missing or of another kind.
    """
    tokenisation = read_tokenisation(results / "tokenisation.json")
    tables = Tables(tokenisation, H200, price)
    machine = tokenisation.report["machine"]
    filled = PAGE.format(
        cpu=machine["cpu"],
        cpus=machine["cpus"],
        commit=machine["commit"],
        measured_on=tokenisation.report["written"][:10],
        tokenizers_version=tokenisation.report["versions"]["tokenizers"],
        pieces=f"{tokenisation.report['pieces']:,}",
        price=f"{price:g}",
        gemm=f"{H200.gemm.value / 1e12:.0f}",
        attention=f"{H200.attention.value / 1e12:.0f}",
        multiprocessors=H200.multiprocessors,
        balance=f"{H200.gemm.value / H200.bandwidth.value:.0f}",
        storage=f"{HOST.storage.value / 1e9:g}",
        cores_a_gpu=f"{HOST.cores.value / HOST.gpus:.0f}",
        crossovers=_crossovers(),
        disturbed=_disturbed(tokenisation.report["rates"]),
        **_in_short(tables),
        **tables.all(),
        **_cluster(),
        **_cpu(results / "models_minilm.json"),
    )
    return _reflowed(filled)


def _in_short(tables: Tables) -> dict[str, str]:
    news = _kind("news")
    answers = []
    for name in ("BERT-base", "ModernBERT-base", "MegatronBERT-345m"):
        hours = tables.on_one(_model(name), news).gpu_hours
        answers.append(f"{hours:,.0f} GPU-hours (${hours * tables.price:,.0f}) with {name}")
    pairs = [(model, kind) for model in MODELS for kind in DOCUMENTS]
    alone = [(model, kind, tables.on_one(model, kind)) for model, kind in pairs]
    together = [(model, kind, tables.on_hosts(model, kind, 1)) for model, kind in pairs]
    modelled = tokens_per_second(_model(PUBLISHED["model"]).config, PUBLISHED["length"], H200)
    return {
        "short_answer": listed(answers),
        "published_rate": f"{PUBLISHED['rate'] / 1e6:.2f}",
        "published_share": f"{PUBLISHED['rate'] / modelled:.0%}",
        "plan_factor": f"{modelled / PUBLISHED['rate']:.1f}",
        "write_small": f"{tables.written(MODELS[0], DOCUMENTS[0]) / 1e6:,.0f}",
        "write_base": f"{tables.written(_model('BERT-base'), DOCUMENTS[0]) / 1e6:,.0f}",
        "tokenising_bound": _waiting(alone, ("tokenising", "Python")),
        "storage_bound": _waiting(together, ("storage",)),
        "host_gpus": str(HOST.gpus),
    }


def _waiting(jobs: Sequence[tuple[Model, Documents, Job]], parts: tuple[str, ...]) -> str:
    """Which models wait for one of these parts, by kind of documents."""
    kinds: dict[str, list[str]] = {}
    for kind in DOCUMENTS:
        names = [model.family for model, other, done in jobs if other is kind and done.bound in parts]
        if names:
            kinds.setdefault(listed(names), []).append(kind.name)
    return "; ".join(f"with {listed(found)} documents {names}" for names, found in kinds.items()) or "none"


def _crossovers() -> str:
    parts = []
    for name in ("BERT-base", "ModernBERT-base", "mT5-small, encoder"):
        tokens = attention_crossover(_model(name).config, H200)
        place = "nowhere" if tokens is None else f"from {round(tokens, -2):,} tokens on"
        parts.append(f"{place} in {_model(name).family}")
    return listed(parts)


def _disturbed(rates: Sequence[Mapping[str, Any]]) -> str:
    """A sentence where the clock ran on while the one thread that was measured did not."""
    alone = [rate for rate in rates if rate["threads"] == 1]
    waited = median(rate["tokens_per_core_second"]["median"] / rate["tokens_per_second"]["median"] for rate in alone)
    if waited < MOST_WAITED:
        return ""
    clock = f"the clock ran {waited:.1f} times as long as the thread"
    return f" Others used the machine meanwhile: {clock}, so look at *a core*."


def _cluster() -> dict[str, str]:
    tasks, gpus = BILLION / DOCUMENTS_A_SHARD, 8 * HOST.gpus
    rounds = -(-tasks // gpus)
    return {
        "ray_ms": f"{RAY_TASK * 1e3:.2f}",
        "shard_documents": f"{DOCUMENTS_A_SHARD:,}",
        "tasks": f"{tasks:,.0f}",
        "small_tasks": f"{1e6 / DOCUMENTS_A_SHARD:.0f}",
        "ray_seconds": f"{tasks * RAY_TASK:.0f}",
        "start": f"{START:.0f}",
        "start_hours": f"{START * gpus / 3600:.1f}",
        "cluster_gpus": f"{gpus}",
        "tail": f"{1 - tasks / (rounds * gpus):.1%}",
    }


def _cpu(file: Path) -> dict[str, str]:
    report = read_report(file)
    systems = [system for model in report.root.items("models") for system in model.items("systems")]
    rates = {
        system.text("dtype"): system.spread("tokens_per_second").median
        for system in systems
        if system.text("system") == "padless"
    }
    if missing := {"bfloat16", "float32"} - set(rates):
        raise InputError(
            f"{file}: expected padless in bfloat16 and float32, found none in {', '.join(sorted(missing))}"
        )
    bf16, fp32 = rates["bfloat16"], rates["float32"]
    news, short = (_model("MiniLM-L6 (BERT)").kept(_kind(name).tokens) for name in ("news", "short"))
    return {
        "model_cpu": report.machine_name,
        "model_cpus": f"{report.machine.number('threads'):g}",
        "cpu_bf16": f"{bf16:,.0f}",
        "cpu_fp32": f"{fp32:,.0f}",
        "million_bf16": f"{1e6 * news / bf16 / 3600:.1f}",
        "million_fp32": f"{1e6 * news / fp32 / 3600:.1f}",
        "million_short": f"{1e6 * short / bf16 / 60:.0f} minutes",
        "billion_years": f"{BILLION * news / bf16 / 3600 / 24 / 365:.1f}",
    }


def _model(name: Any) -> Model:
    return next(model for model in MODELS if model.name == name)


def _kind(name: str) -> Documents:
    return next(kind for kind in DOCUMENTS if kind.name == name)


def _reflowed(text: str) -> str:
    """Paragraphs and items of lists in lines of one width; headings and tables as they are."""
    blocks = []
    for block in text.strip().split("\n\n"):
        if block.startswith(("#", "|")):
            blocks.append(block)
            continue
        items = re.split(r"\n(?=- )", block)
        indent = "  " if block.startswith("- ") else ""
        blocks.append("\n".join(_WRAPPERS[indent].fill(" ".join(item.split())) for item in items))
    return "\n\n".join(blocks) + "\n"


_WRAPPERS = {
    indent: TextWrapper(WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    for indent in ("", "  ")
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page, or show it."""
    parser = argparse.ArgumentParser(prog="python -m padless.bench.scaling.page", description="What a job costs.")
    parser.add_argument("--out", type=Path, help="file to write to")
    parser.add_argument("--price", type=float, default=PRICE, help="dollars a GPU-hour")
    given = parser.parse_args(arguments)
    try:
        written = page(given.price)
        if given.out is None:
            print(written, end="")
        else:
            given.out.write_text(written, encoding="utf-8")
    except (PadlessError, OSError) as error:
        parser.error(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
