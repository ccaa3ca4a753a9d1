"""Part `profile` of the GPU report, off by default: what Nsight Compute says of one attention launch.

    python -m padless.bench.gpu.profile LENGTH

is the program that is profiled: three launches on texts of this length.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys

import torch

from .attention import equal
from .case import Case, Context, Figures
from .problem import make_inputs

__all__ = ["cases"]

SECTIONS = ("SpeedOfLight", "LaunchStats", "Occupancy", "ComputeWorkloadAnalysis", "WarpStateStats")
MOST_LINES = 120


def cases(context: Context) -> list[Case]:
    """One short and one long length."""
    return [Case(f"attention/{length}", functools.partial(_profile, length)) for length in (512, 8192)]


def _profile(length: int, context: Context) -> Figures:
    ncu = shutil.which("ncu")
    if context.dry or ncu is None:
        return {"status": "left out", "reason": "a dry run" if context.dry else "ncu is not on PATH"}
    # The third launch of the attention kernel; the clocks are left as they are.
    command = [ncu, "--clock-control", "none", "--kernel-name", "regex:attention", "--launch-skip", "2"]
    command += ["--launch-count", "1", *(part for section in SECTIONS for part in ("--section", section))]
    command += [sys.executable, "-m", f"{__package__}.profile", str(length)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    print(done.stdout, done.stderr, flush=True)
    lines = [line.rstrip() for line in done.stdout.splitlines() if line.strip() and not line.startswith("==PROF==")]
    if done.returncode != 0 or not lines:
        printed = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or ["no output"]
        return {"status": "error", "reason": f"ncu ended with {done.returncode}: {printed[-1]}"}
    return {"status": "ok", "profile": lines[:MOST_LINES]}


def main(length: int) -> None:
    from ...kernels.attention import varlen_attention

    inputs = make_inputs(equal(length, dtype=torch.bfloat16), torch.device("cuda", 0))
    for _ in range(3):
        varlen_attention(*inputs.arguments(), **inputs.options())
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(int(sys.argv[1]))
