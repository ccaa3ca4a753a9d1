"""MobileBERT against BERT-base: does a model made to be small run faster here, and by how much in whose hands.

Both models, in padless and in transformers, take turns on the same texts in one run; the ratio is taken in each round.
Each is checked first: a system whose vectors are wrong for one of the models has no ratio.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...engine.errors import InputError
from ..timing import Spread, interleave, ratio
from ..workloads import Workload, load_workload
from .check import check_vectors
from .measure import EncodeCall, cut_of
from .system import Job, max_length
from .torch_systems import Padless, Transformers

__all__ = ["AgainstBert", "against_bert"]

PAPER = 5.5
"""Times faster than BERT-base on a Pixel 4 (Sun et al. 2020, abstract)."""


@dataclass(frozen=True)
class AgainstBert:
    """How many times faster than BERT-base MobileBERT is.

    Attributes:
        workload: name of the texts.
        texts, tokens: how many.
        ratios: label of the system to the ratio of each round, median and p20 to p80.
        failed: label to why a system has no ratio.
        paper: what the paper claims, on a phone.
    """

    workload: str
    texts: int
    tokens: int
    ratios: dict[str, Spread]
    failed: dict[str, str]
    paper: float = PAPER

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def sentences(self) -> list[str]:
        """One for each dtype."""
        lines = []
        for dtype in dict.fromkeys(label.split()[-1] for label in self.ratios):
            each = [
                f"{label.split()[0]} {found.median:.2f} times (p20 {found.p20:.2f}, p80 {found.p80:.2f})"
                for label, found in self.ratios.items()
                if label.endswith(dtype)
            ]
            lines.append(
                f"MobileBERT is faster than BERT-base, {dtype}, the same {self.texts} texts ({self.tokens:,} tokens): "
                f"{', '.join(each)}; the paper claims {self.paper} times, on a phone"
            )
        lines += [f"MobileBERT against BERT-base, {label}: fails: {reason}" for label, reason in self.failed.items()]
        return lines


def against_bert(
    mobilebert: Path,
    bert: Path,
    *,
    workload: str,
    tokens: int | None,
    dtypes: Sequence[str],
    threads: int,
    repeats: int,
) -> AgainstBert:
    """Time both models on the texts that BERT-base runs; arguments as of `measure.measure`.

    Raises:
        InputError: transformers is not installed, or a corpus.
    """
    texts = cut_of(load_workload(workload, bert), bert, tokens)
    timed = [dtype for dtype in dtypes if dtype != "int8"]
    with tempfile.TemporaryDirectory(prefix="padless_bench_") as scratch:
        calls: dict[str, EncodeCall] = {}
        failed: dict[str, str] = {}
        for model, folder in (("mobilebert", mobilebert), ("bert", bert)):
            job = Job(folder, Path(scratch), threads, texts.batch_size, texts.texts, texts.one_by_one)
            found, reasons = _checked(texts, job, timed)
            calls |= {f"{label} {model}": call for label, call in found.items()}
            failed |= reasons
    sound = {name: call for name, call in calls.items() if name.rsplit(" ", 1)[0] not in failed}
    # The check was everybody's warm-up.
    seconds = interleave(sound, repeats, warmups=0)
    labels = dict.fromkeys(name.rsplit(" ", 1)[0] for name in sound)
    ratios = {label: ratio(seconds, f"{label} mobilebert", f"{label} bert") for label in labels}
    return AgainstBert(texts.name, len(texts.texts), texts.kept_tokens(max_length(bert)), ratios, failed)


def _checked(texts: Workload, job: Job, dtypes: Sequence[str]) -> tuple[dict[str, EncodeCall], dict[str, str]]:
    """By label, what to time of one model, having run once, and why some of it must not be."""
    systems = [kind(dtype) for dtype in dtypes for kind in (Padless, Transformers)]
    reference = Transformers("float32")
    reason = reference.missing()
    if reason is not None:
        raise InputError(f"{reference.label}: {reason}")
    calls = {system.label: EncodeCall(system, texts) for system in (reference, *systems)}
    for call in calls.values():
        call.system.prepare(job)
        call()
    right = calls[reference.label].vectors
    checks = {
        label: check_vectors(call.system.name, call.system.dtype, call.vectors, right) for label, call in calls.items()
    }
    failed = {label: check.failure for label, check in checks.items() if check.failure is not None}
    return {system.label: calls[system.label] for system in systems}, failed
