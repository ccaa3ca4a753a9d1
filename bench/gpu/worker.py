"""A process of its own for the cases of one part: a kernel that faults takes this process with it, not the report.

    python -m padless.bench.gpu.worker PART [--dry] [--warm]

PART is one of `MODULES`, files beside this one, or the dotted name of another module with `cases(context)` (and, for
--warm, `warm_cases`).
Reads a case's name from each line of standard input and answers with a line of JSON. What anything else prints goes to
standard error, which is the report's log.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

import torch

from ..timing import only_new_garbage
from .case import Case, Context, Figures, context, first_line

__all__ = ["MODULES", "main"]

MODULES = ("correctness", "attention", "fused", "models", "generate", "tune", "sanitizer", "profile")


def main(arguments: Sequence[str]) -> None:
    """Serve until standard input ends, or until the device is lost."""
    part, *flags = arguments
    # Libraries and compilers print where they like; only answers may reach the pipe.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    here = context("--dry" in flags, "--warm" in flags)
    module: Any = importlib.import_module(f".{part}" if part in MODULES else part, __package__)
    found: list[Case] = (module.warm_cases if here.warm else module.cases)(here)
    cases = {case.name: case for case in found}
    print(json.dumps([[case.name, case.heavy] for case in found]), file=answers)
    # Garbage is collected behind every case: what the imports have made is none, and takes a tenth of a second a look.
    with only_new_garbage(), torch.inference_mode():
        for line in sys.stdin:
            name = json.loads(line)
            unknown = {"status": "error", "reason": "this process knows no case of this name"}
            figures = _run(cases[name], here) if name in cases else unknown
            lost = not _alive(here)
            # A number of another library's is better kept as text than a reason to die.
            print(json.dumps({"figures": figures, "lost": lost}, default=str), file=answers)
            if lost:
                # The usual way out would ask the lost device to clean up.
                answers.flush()
                os._exit(3)


def _run(case: Case, here: Context) -> Figures:
    start = time.monotonic()
    figures, full = _tried(case, here)
    if full:
        # Others share the card, and a moment later there may be room.
        if here.device.type == "cuda":
            torch.cuda.empty_cache()
        time.sleep(3.0)
        figures, _ = _tried(case, here)
    return figures | {"seconds": round(time.monotonic() - start, 2)}


def _tried(case: Case, here: Context) -> tuple[Figures, bool]:
    """What a case found, and whether memory did not suffice."""
    full = False
    try:
        figures = case.run(here)
    except torch.OutOfMemoryError as error:
        figures, full = {"status": "left out", "reason": f"out of memory: {first_line(error)}"}, True
    except Exception as error:
        _log(error)
        figures = {"status": "error", "reason": f"{type(error).__name__}: {first_line(error)}"}
    gc.collect()
    return figures, full


def _alive(here: Context) -> bool:
    if here.device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return bool(torch.ones(8, device=here.device).sum() == 8)
    except RuntimeError as error:
        _log(error)
        return False


def _log(error: Exception) -> None:
    # The disk of the log may be full, which is no reason to lose a case.
    with contextlib.suppress(OSError):
        traceback.print_exception(error)


if __name__ == "__main__":
    main(sys.argv[1:])
