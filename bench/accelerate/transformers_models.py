"""`padless bench accelerate-models`: models of transformers, with `padless.accelerate` called on them and without.

Batches as users make them: texts as they come, each batch padded to its longest. One interleaved run a model, all in
one process from the same weights. Every batch is checked first, and what fails, or is not computed by padless, has no
figure.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...engine.errors import OptionError
from ...engine.integrations.accelerate.accelerate import accelerate
from ..machine import describe, versions
from ..models.batches import PaddedBatches
from ..models.measure import cut_of, threads_of_all
from ..models.seeded import SEEDED, model_folder
from ..models.system import quieten_transformers
from ..reports.files import check_folders, frame, write_json
from ..reports.systems import systems_of, table_of
from ..timing import interleave
from ..workloads import load_workload

__all__ = ["DTYPES", "MODELS", "check", "run"]

MODELS = tuple(SEEDED)
DTYPES = ("float32", "bfloat16")
THEIRS, OURS = "transformers", "padless.accelerate"
BASELINE = f"{THEIRS} float32"
LARGEST_DIFFERENCE, LOWEST_COSINE = 1e-5, 0.999
"""In float32 of the largest value; in bfloat16 of any token with transformers' float32."""

Batch = tuple[Tensor, Tensor]
"""Ids and mask, int64 `[texts, longest]`."""


def run(
    models: Sequence[str] = ("modernbert-base", "mobilebert"),
    *,
    folder: Path,
    workload: str = "mixed_256",
    tokens: int | None = 8192,
    batch_size: int = 32,
    dtypes: Sequence[str] = DTYPES,
    threads: int | None = None,
    repeats: int = 5,
    json_path: Path | None = None,
) -> dict[str, Any]:
    """Check, time and print.

    Args:
        models: names from `MODELS`, of random weights in the published shape.
        folder: where they are written, or were before.
        workload: a name from `workloads.WORKLOADS`.
        tokens: run a cut of about so many real tokens; None runs all.
        batch_size: texts of a batch.
        dtypes: what padless computes in; transformers runs in each of them too, and always in float32.
        threads: of every system; None takes torch's setting.
        repeats: rounds of the interleaved run, at least 1.
        json_path: also write the report here.

    Returns:
        What is written as JSON.

    Raises:
        OptionError: an argument is out of range.
        InputError: transformers, a corpus or the tokenizer is not installed; a file cannot be written.
    """
    for name, value in (("repeats", repeats), ("threads", threads), ("tokens", tokens), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise OptionError(f"{name}: expected at least 1, got {value}")
    for kind, given, known in (("model", models, MODELS), ("dtype", dtypes, DTYPES)):
        for one in given:
            if one not in known:
                raise OptionError(f"{kind} {one!r}: expected some of {', '.join(known)}")
    check_folders(json_path)
    quieten_transformers()
    with threads_of_all(threads) as count:
        machine, reports = describe(count), []
        for name in dict.fromkeys(models):
            place = model_folder(name, folder)
            texts = cut_of(load_workload(workload, place), place, tokens)
            batches = [
                (torch.from_numpy(ids), torch.from_numpy(mask))
                for _, ids, mask in PaddedBatches(place, batch_size, by_length=False)(texts.texts)
            ]
            source = {"name": workload, "source": texts.source, "texts": len(texts.texts)}
            reports.append({"model": name, "workload": source, **_measured(place, batches, dtypes, repeats)})
            print(_table(reports[-1], repeats), flush=True)
    report = frame("accelerate", machine, repeats=repeats, baseline=BASELINE, models=reports)
    print(f"{machine['cpu']}, {machine['threads']} threads of {machine['cpus']} CPUs, commit {machine['commit']}")
    if json_path is not None:
        write_json(report, json_path)
    return report


def check(found: Sequence[Tensor], expected: Sequence[Tensor], batches: Sequence[Batch], dtype: str) -> str | None:
    """Why hidden states `[texts, longest, hidden]` of the batches are not to be believed; None where they are."""
    for ours, theirs, (_, mask) in zip(found, expected, batches, strict=True):
        got, right = ours[mask.bool()].double(), theirs[mask.bool()].double()
        if got.shape != right.shape:
            return f"shape {list(ours.shape)}, expected {list(theirs.shape)}"
        # Written so that NaN fails.
        if dtype == "float32":
            gap, bound = (got - right).abs().max().item(), LARGEST_DIFFERENCE * max(1.0, right.abs().max().item())
            if not gap <= bound:
                return f"differs by {gap:.2e}, expected at most {bound:.2e}"
        elif not (cosine := torch.cosine_similarity(got, right, dim=1).min().item()) >= LOWEST_COSINE:
            return f"lowest cosine {cosine:.6f}, expected at least {LOWEST_COSINE}"
    return None


def _measured(place: Path, batches: Sequence[Batch], dtypes: Sequence[str], repeats: int) -> dict[str, Any]:
    tokens = sum(int(mask.sum()) for _, mask in batches)
    slots = sum(mask.numel() for _, mask in batches)
    model = _loaded(place)
    cases: dict[str, Callable[[], list[Tensor]]] = {BASELINE: _call(model, batches)}
    failed: dict[str, str] = {}
    expected = cases[BASELINE]()
    for dtype in dict.fromkeys(dtypes):
        kind = getattr(torch, dtype)
        if dtype != "float32":
            cases[f"{THEIRS} {dtype}"] = _call(copy.deepcopy(model).to(kind), batches)
        ours, label = accelerate(copy.deepcopy(model), dtype=kind), f"{OURS} {dtype}"
        served: list[int] = []
        hook = vars(ours)["forward"].twin.ours.register_forward_hook(lambda *_, served=served: served.append(1))
        reason = check(_call(ours, batches)(), expected, batches, dtype)
        hook.remove()
        if len(served) != len(batches):
            reason = f"padless computed {len(served)} of {len(batches)} batches"
        if reason is None:
            cases[label] = _call(ours, batches)
        else:
            failed[label] = reason
    seconds = interleave(cases, repeats)
    both = versions("torch", "transformers")
    systems = systems_of(seconds, tokens, baseline=BASELINE, versions_of=lambda _: both)
    shape = {"batches": len(batches), "tokens": tokens, "padding_factor": slots / tokens}
    return {"weights": "seeded random", **shape, "systems": systems, "left_out": {}, "failed": failed}


def _loaded(place: Path) -> Any:
    from transformers import AutoConfig, AutoModel, MT5EncoderModel

    kind = MT5EncoderModel if AutoConfig.from_pretrained(place).model_type == "mt5" else AutoModel
    return kind.from_pretrained(place, dtype=torch.float32, local_files_only=True).eval()


def _call(model: Any, batches: Sequence[Batch]) -> Callable[[], list[Tensor]]:
    @torch.inference_mode()
    def call() -> list[Tensor]:
        return [model(input_ids=ids, attention_mask=mask).last_hidden_state for ids, mask in batches]

    return call


def _table(report: Mapping[str, Any], repeats: int) -> str:
    factor = report["padding_factor"]
    head = (
        f"{report['model']}, {report['tokens']:,} tokens of {report['workload']['name']}, {factor:.2f} times that with "
        f"padding, in {report['batches']} batches; {repeats} interleaved rounds"
    )
    return "\n".join([head, *table_of(report, "tok/s")])
