"""`padless bench accelerate`: sentence-transformers itself, beside the same with `padless.accelerate` called on it.

Texts in, vectors out, both by `SentenceTransformer.encode`; padless by its own `encode` beside them says what is left
in the library's hands. One interleaved run, and the rules of `bench/models`: whose vectors are wrong has no figure.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...engine.errors import InputError, OptionError
from ..machine import describe
from ..models.measure import measure, threads_of_all
from ..models.output import report_of, write_csv
from ..models.system import Job, System, quieten_transformers
from ..models.systems import make_systems
from ..models.tables import machine_line, markdown, screen
from ..reports.files import check_folders, write_json, writing
from ..workloads import WORKLOADS, default_model

__all__ = ["Accelerated", "run"]

DTYPES = ("float32", "bfloat16")


class Accelerated(System):
    """sentence-transformers as its users call it, loaded in float32, with one line more."""

    name = "padless.accelerate"
    distributions = ("sentence-transformers", "transformers", "torch")
    modules = ("sentence_transformers",)

    def prepare(self, job: Job) -> None:
        from sentence_transformers import SentenceTransformer

        from ...engine.integrations.accelerate.accelerate import accelerate
        from ...engine.integrations.accelerate.sentence_loop import loop_of

        quieten_transformers()
        model = SentenceTransformer(str(job.model), device="cpu", model_kwargs={"local_files_only": True})
        self._model = accelerate(model, dtype=self.dtype)
        self._loop = loop_of(model)
        self.settings = {"batch_size": "by its token budget"}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        assert self._loop is not None
        before = self._loop.stats.tokens
        vectors = self._model.encode(list(texts), show_progress_bar=False, normalize_embeddings=True)
        self.computed_tokens = self._loop.stats.tokens - before
        if self._loop.fallbacks:
            raise InputError(f"{self.name}: sentence-transformers computed: {', '.join(self._loop.fallbacks)}")
        return np.asarray(vectors)


def run(
    *,
    model: str | os.PathLike[str] | None = None,
    workload: str = "mixed_256",
    tokens: int | None = None,
    dtypes: Sequence[str] = DTYPES,
    threads: int | None = None,
    repeats: int = 5,
    csv_path: str | os.PathLike[str] | None = None,
    json_path: str | os.PathLike[str] | None = None,
    markdown_path: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Check, time and print.

    Args:
        model: a folder of sentence-transformers with mean pooling; None takes the MiniLM that installs from PyPI.
        workload: a name from `workloads.WORKLOADS`.
        tokens: run a cut of about so many tokens.
        dtypes: what padless computes in; sentence-transformers computes in float32, which is the reference.
        threads: threads of every system; None takes torch's setting.
        repeats: rounds of the interleaved run, at least 1.
        csv_path, json_path, markdown_path: also write the facts here, as `padless bench models` does.

    Returns:
        What is written as JSON: a report of kind "models".

    Raises:
        OptionError: an argument is out of range.
        InputError: sentence-transformers, a corpus or the model is not installed; a file cannot be written.
    """
    for name, value in (("repeats", repeats), ("threads", threads), ("tokens", tokens)):
        if value is not None and value < 1:
            raise OptionError(f"{name}: expected at least 1, got {value}")
    if workload not in WORKLOADS:
        raise InputError(f"workload {workload!r}: unknown, expected one of {', '.join(WORKLOADS)}")
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise OptionError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    check_folders(csv_path, json_path, markdown_path)
    baseline, *own = make_systems((), dtypes)
    systems = [baseline, *(Accelerated(dtype) for dtype in dict.fromkeys(dtypes)), *own]
    with threads_of_all(threads) as count:
        machine = describe(count)
        folder = default_model() if model is None else Path(model)
        shown, weights = ("minilm", "published") if model is None else (folder.absolute().name, "given")
        print(f"{shown}:", flush=True)
        found = measure(
            shown,
            folder,
            weights,
            systems,
            workload=workload,
            tokens=tokens,
            dtypes=dtypes,
            threads=count,
            repeats=repeats,
        )
        print(screen(found, repeats), flush=True)
    report = report_of([found], None, machine, repeats)
    print(machine_line(report))
    if json_path is not None:
        write_json(report, json_path)
    if csv_path is not None:
        write_csv([found], Path(csv_path))
    if markdown_path is not None:
        with writing(markdown_path) as file:
            file.write(markdown([found], None, machine_line(report), repeats))
    return report
