"""Part `sanitizer` of the GPU report: NVIDIA's compute-sanitizer over one tiny call of each kernel.

    memcheck     reads and writes outside of memory, and unaligned ones
    racecheck    two threads at one place of shared memory without a barrier between them
    initcheck    reads of memory that nothing has written

It is part of a report where the program is found. torch's allocator is told to ask for each tensor's memory by itself
(PYTORCH_NO_CUDA_MEMORY_CACHING=1): in its large blocks the byte behind a tensor is another's, and would be found fine.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .case import Case, Context, Figures
from .sanitizer_output import parse
from .sanitizer_target import GROUPS

__all__ = ["cases", "command", "judged", "sanitizer"]

TOOLS = ("memcheck", "racecheck", "initcheck")
FOLDERS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
SECONDS = 85.0
"""For one program under the tool; less than a case may take, so that the tool is ended by us."""

MOST_FINDINGS = 20


def sanitizer() -> str | None:
    """Path of the program, on PATH or in CUDA's usual folder; None where it is not."""
    places = (shutil.which("compute-sanitizer"), *(shutil.which("compute-sanitizer", path=path) for path in FOLDERS))
    return next((place for place in places if place), None)


def cases(context: Context) -> list[Case]:
    """Each tool over each group of kernels; the tool that finds most stands first."""
    return [Case(f"{tool}/{group}", functools.partial(_run, tool, group)) for tool in TOOLS for group in GROUPS]


def command(program: str, tool: str, group: str) -> list[str]:
    """What is run: only findings are printed, not what CUDA answers to questions of libraries."""
    options = ["--tool", tool, "--print-limit", str(MOST_FINDINGS), "--report-api-errors", "no"]
    return [program, *options, sys.executable, "-m", f"{__package__}.sanitizer_target", group]


def _run(tool: str, group: str, context: Context) -> Figures:
    program = sanitizer()
    if context.dry or program is None:
        return {"status": "left out", "reason": "a dry run" if context.dry else "compute-sanitizer is not here"}
    return judged(*_limited(command(program, tool, group), SECONDS))


def judged(code: int | None, output: str) -> Figures:
    """What a run of the tool means.

    Args:
        code: of its end; None if it had to be ended.
        output: what it and the program printed.
    """
    found = parse(output)
    if found.refusal is not None:
        return {"status": "left out", "reason": f"compute-sanitizer: {found.refusal}"}
    figures: Figures = {"found": found.count, "ran": list(found.ran), "findings": found.listed()[:MOST_FINDINGS]}
    if found.count:
        first = found.findings[0] if found.findings else None
        what = "see log.txt" if first is None else f"{first.what}, {first.where}"
        return {"status": "failed", "reason": f"{found.count} findings, the first: {what}", **figures}
    if code != 0 or not found.summary or not found.complete:
        return {"status": "error", "reason": f"{_ended(code)} without a verdict: {_last_line(output)}", **figures}
    return {"status": "ok", **figures}


def _limited(arguments: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Exit code, None if time was up, and what was printed. All that it started ends with it."""
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PADLESS_SANITIZED_SECONDS": str(int(SECONDS))}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        arguments, stdout=pipe, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment, process_group=0
    )
    code: int | None
    try:
        output, _ = process.communicate(timeout=max(seconds, 1.0))
        code = process.returncode
    except subprocess.TimeoutExpired:
        code = None
        os.killpg(process.pid, signal.SIGKILL)
        try:
            output, _ = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            output = "it cannot be ended"
    # Standard output of a worker is the report's log.
    print(f"$ {Path(arguments[0]).name} {' '.join(arguments[1:])}\n{output}", flush=True)
    return code, output


def _ended(code: int | None) -> str:
    return "it took too long" if code is None else f"exit code {code}"


def _last_line(output: str) -> str:
    return next((line.strip()[:200] for line in reversed(output.splitlines()) if line.strip()), "no output")
