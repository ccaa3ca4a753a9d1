"""Many compilations at once, one process a CPU, none of which sees what the user's other kernels were compiled to."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import threading
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager

import torch
from gate_cases import Case, launches
from gate_compile import TARGETS, Compiled, compile_launch

__all__ = ["Outcome", "compile_all", "private_cache"]

Outcome = list[Compiled] | str
"""A case's kernels, or what went wrong."""


@contextmanager
def private_cache() -> Iterator[None]:
    """Keep what Triton compiles, here and in processes started from here, in a folder that is removed in the end."""
    before = os.environ.get("TRITON_CACHE_DIR")
    folder = tempfile.mkdtemp(prefix="gate-")
    os.environ["TRITON_CACHE_DIR"] = folder
    try:
        yield
    finally:
        os.environ.pop("TRITON_CACHE_DIR")
        if before is not None:
            os.environ["TRITON_CACHE_DIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


def compile_all(cases: Iterable[Case]) -> Iterator[tuple[Case, Outcome]]:
    """Each case and what came of it, in the order in which they are done."""
    context = multiprocessing.get_context("spawn")
    workers = len(os.sched_getaffinity(0))
    with private_cache(), ProcessPoolExecutor(workers, context, initializer=_started) as pool:
        waiting = {pool.submit(_compiled, case): case for case in cases}
        for done in as_completed(waiting):
            yield waiting[done], done.result()


def _started() -> None:
    """Set up a process: one thread of torch, and an end when whoever started it has ended, also without a word."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _compiled(case: Case) -> Outcome:
    try:
        return [compile_launch(launch, TARGETS[case.target], aligned=case.aligned) for launch in launches(case)]
    except Exception:
        # A compiler's exceptions need not survive the way to another process.
        return traceback.format_exc()
