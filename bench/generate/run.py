"""`padless bench generate`: texts read and written about, beside transformers' own `generate`.

One interleaved run a model, all systems in one process with the same weights. Each writes exactly so many tokens for
every text, greedily: what ends early would be measured by chance. The first call of each is its check, and what fails
has no figure.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...engine.errors import OptionError
from ..machine import describe, versions
from ..models.measure import threads_of_all
from ..models.system import quieten_transformers
from ..reports.files import check_folders, frame, write_json
from ..reports.rows import OURS
from ..reports.systems import systems_of, table_of
from ..timing import interleave
from .check import check_logits, check_tokens
from .subjects import SUBJECTS, Subject, make_subject

__all__ = ["DTYPES", "run"]

DTYPES = ("float32", "bfloat16")
THEIRS = "transformers"
BASELINE = f"{THEIRS} float32"


def run(
    models: Sequence[str] = ("mt5-small",),
    *,
    workload: str = "skewed_256",
    texts: int = 16,
    new_tokens: int = 64,
    dtypes: Sequence[str] = DTYPES,
    threads: int | None = None,
    repeats: int = 5,
    json_path: Path | None = None,
    fields: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Check, time and print.

    Args:
        models: names from `subjects.SUBJECTS`, or "all".
        workload: a name from `workloads.WORKLOADS`.
        texts: of one call, from the workload's shortest to its longest.
        new_tokens: written for each text.
        dtypes: "float32", "bfloat16"; transformers in float32 always runs: it is the reference.
        threads: of every system; None takes torch's setting.
        repeats: rounds of the interleaved run, at least 1.
        json_path: also write the report here.
        fields: of the models' configurations, where they are not the checkpoint's.

    Returns:
        What is written as JSON.

    Raises:
        OptionError: an argument is out of range.
        InputError: transformers, a corpus or the tokenizer is not installed; a file cannot be written.
    """
    for name, value in (("repeats", repeats), ("threads", threads), ("texts", texts), ("new_tokens", new_tokens)):
        if value is not None and value < 1:
            raise OptionError(f"{name}: expected at least 1, got {value}")
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise OptionError(f"dtype {dtype!r}: expected some of {', '.join(DTYPES)}")
    names = list(SUBJECTS) if list(models) == ["all"] else list(dict.fromkeys(models))
    if not names:
        raise OptionError("models: expected at least one")
    check_folders(json_path)
    quieten_transformers()
    with threads_of_all(threads) as count:
        machine = describe(count)
        reports = []
        for name in names:
            subject = make_subject(name, workload, texts, fields)
            reports.append(_measure(subject, new_tokens, dtypes, repeats))
            print(_table(reports[-1], repeats), flush=True)
    report = frame("generate", machine, repeats=repeats, baseline=BASELINE, models=reports)
    print(f"{machine['cpu']}, {machine['threads']} threads of {machine['cpus']} CPUs, commit {machine['commit']}")
    if json_path is not None:
        write_json(report, json_path)
    return report


def _measure(subject: Subject, new_tokens: int, dtypes: Sequence[str], repeats: int) -> dict[str, Any]:
    cases: dict[str, Callable[[], Tensor]] = {}
    failed: dict[str, str] = {}
    kept: dict[str, Any] = {}
    for dtype in dict.fromkeys(("float32", *dtypes)):
        for software, model in ((THEIRS, subject.theirs), (OURS, subject.ours)):
            if dtype in dtypes or software == THEIRS:
                kept[f"{software} {dtype}"] = model if dtype == "float32" else _in_bf16(model)
    for label, model in kept.items():
        cases[label] = _call(model, subject, new_tokens)
    expected = cases[BASELINE]()
    for label in [*cases]:
        software, dtype = label.split()
        reason = None
        if dtype == "bfloat16" and software == OURS:
            theirs = kept.get(f"{THEIRS} bfloat16")
            reason = check_logits(subject, kept[label], theirs, expected)
        elif label != BASELINE and dtype == "float32":
            reason = check_tokens(cases[label](), expected)
        if reason is not None:
            failed[label] = reason
            del cases[label]
    seconds = interleave(cases, repeats)
    count = len(subject.input_ids)
    return {
        "model": subject.name,
        "weights": "seeded random",
        "workload": {
            "name": f"{new_tokens} tokens behind each of {count} texts of {subject.workload.name}",
            "source": subject.workload.source,
            "texts": count,
            "read": subject.tokens,
            "new_tokens": new_tokens,
        },
        "tokens": count * new_tokens,
        "systems": systems_of(seconds, count * new_tokens, baseline=BASELINE, versions_of=_versions),
        "left_out": {},
        "failed": failed,
    }


def _call(model: Any, subject: Subject, new_tokens: int) -> Callable[[], Tensor]:
    options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}

    def call() -> Tensor:
        return model.generate(input_ids=subject.input_ids, attention_mask=subject.attention_mask, **options)

    return call


def _versions(system: str) -> dict[str, str]:
    return versions("torch", *([THEIRS] if system == THEIRS else []))


def _in_bf16(model: Any) -> Any:
    return copy.deepcopy(model).to(torch.bfloat16)


def _table(report: Mapping[str, Any], repeats: int) -> str:
    workload = report["workload"]
    head = f"{report['model']}, {workload['name']} ({workload['read']:,} tokens read); {repeats} interleaved rounds"
    return "\n".join([head, *table_of(report, "new tok/s", digits=1)])
