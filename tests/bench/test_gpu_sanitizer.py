"""Part `sanitizer` of the GPU report: what compute-sanitizer prints is read, and what that means is judged.

The outputs have the form of the examples in NVIDIA's "Compute Sanitizer" documentation and of what its versions print
of Triton's kernels. No GPU is here that the tool could run on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from padless.bench.gpu import sanitizer
from padless.bench.gpu.case import Context
from padless.bench.gpu.sanitizer_output import DONE, RAN, parse
from padless.bench.gpu.sanitizer_target import GROUPS

OUTSIDE = f"""\
========= COMPUTE-SANITIZER
{RAN} full
========= Invalid __global__ read of size 16 bytes
=========     at attention_kernel+0xec0 in attention_forward.py:143
=========     by thread (18,0,0) in block (0,0,0)
=========     Access to 0x74505bcccca0 is out of bounds
=========     and is 161 bytes after the nearest allocation at 0x74505bccc800 of size 1,024 bytes
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: cuLaunchKernelEx [0x2f26f0] in libcuda.so.1
=========
========= Invalid __global__ read of size 16 bytes
=========     at attention_kernel+0xec0 in attention_forward.py:143
=========     by thread (19,0,0) in block (0,0,0)
=========
========= Invalid __shared__ write of size 4 bytes
=========     at 0xda0 in /home/user/norm.py:175:norm_kernel
=========     by thread (96,0,0) in block (44,0,0)
=========     Address 0x400 is misaligned
=========
========= Target application returned an error
========= ERROR SUMMARY: 3 errors
"""
RACE = f"""\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at linear_kernel+0x90 in linear_forward.py:13
=========     and Read access at linear_kernel+0xa0 in linear_forward.py:14 [2048 hazards]
=========     and Write access at linear_kernel+0x90 in linear_forward.py:13 [5 hazards]
=========
{RAN} gate
{DONE}
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
UNWRITTEN = f"""\
========= COMPUTE-SANITIZER
========= Uninitialized __global__ memory read of size 4 bytes
=========     at pool_parts_kernel(float *)+0x70 in pool.py:41
=========     by thread (31,0,0) in block (1,0,0)
=========     Address 0x7f3c7ec000fc
=========
{RAN} pool, mean
{DONE}
========= ERROR SUMMARY: 1 error
"""
CLEAN = f"""\
========= COMPUTE-SANITIZER
{RAN} full
{RAN} sliding
{DONE}
========= ERROR SUMMARY: 0 errors
"""
CLEAN_RACE = CLEAN.replace("ERROR SUMMARY: 0 errors", "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)")
REFUSED = """\
========= COMPUTE-SANITIZER
========= Error: Device not supported. Please refer to the "Supported Devices" section of the sanitizer documentation
=========
RuntimeError: CUDA error: unknown error
========= Target application returned an error
========= ERROR SUMMARY: 0 errors
"""
CUT = f"""\
========= COMPUTE-SANITIZER
{RAN} full
Segmentation fault
"""


def test_findings_have_a_kind_and_a_place() -> None:
    found = parse(OUTSIDE)
    assert found.listed() == [
        {
            "what": "Invalid __global__ read of size 16 bytes",
            "where": "attention_kernel+0xec0 in attention_forward.py:143",
        },
        {"what": "Invalid __shared__ write of size 4 bytes", "where": "0xda0 in /home/user/norm.py:175:norm_kernel"},
    ]
    assert (found.count, found.summary, found.ran, found.complete) == (3, True, ("full",), False)
    race = parse(RACE)
    assert (race.count, race.ran, race.complete) == (1, ("gate",), True)
    (only,) = race.findings
    assert only.what == "Race reported between Write access and another"
    assert only.where == "linear_kernel+0x90 in linear_forward.py:13"
    (only,) = parse(UNWRITTEN).findings
    assert only.where == "pool_parts_kernel(float *)+0x70 in pool.py:41"


def test_a_clean_output_has_none() -> None:
    for output in (CLEAN, CLEAN_RACE):
        found = parse(output)
        assert (found.findings, found.count, found.summary, found.complete) == ((), 0, True, True)
        assert found.ran == ("full", "sliding")


def test_findings_that_no_summary_counts_are_counted() -> None:
    found = parse(OUTSIDE.partition("========= Target")[0])
    assert (found.count, found.summary) == (3, False)


@pytest.mark.parametrize(
    ("code", "output", "status", "reason"),
    [
        (0, CLEAN, "ok", None),
        (0, CLEAN_RACE, "ok", None),
        (
            1,
            OUTSIDE,
            "failed",
            "3 findings, the first: Invalid __global__ read of size 16 bytes, attention_kernel+0xec0",
        ),
        (
            0,
            RACE,
            "failed",
            "1 findings, the first: Race reported between Write access and another, linear_kernel+0x90",
        ),
        (0, UNWRITTEN, "failed", "1 findings, the first: Uninitialized __global__ memory read of size 4 bytes, pool"),
        (1, REFUSED, "left out", "compute-sanitizer: Error: Device not supported"),
        (139, CUT, "error", "exit code 139 without a verdict: Segmentation fault"),
        (None, CUT, "error", "it took too long without a verdict: Segmentation fault"),
        (0, CUT, "error", "exit code 0 without a verdict"),
        (0, CLEAN.replace(DONE, "Aborted"), "error", "exit code 0 without a verdict"),
        (0, "", "error", "exit code 0 without a verdict: no output"),
    ],
)
def test_what_a_run_means(code: int | None, output: str, status: str, reason: str | None) -> None:
    figures = sanitizer.judged(code, output)
    assert figures["status"] == status
    assert str(figures.get("reason", None)).startswith(str(reason))


def test_the_program_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "here"))
    monkeypatch.setattr(sanitizer, "FOLDERS", (str(tmp_path / "cuda"),))
    assert sanitizer.sanitizer() is None
    for folder in ("cuda", "here"):
        program = tmp_path / folder / "compute-sanitizer"
        program.parent.mkdir()
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        assert sanitizer.sanitizer() == str(program)
    command = sanitizer.command(str(program), "racecheck", "rows")
    assert command[:3] == [str(program), "--tool", "racecheck"]
    assert command[-4:] == [sys.executable, "-m", "padless.bench.gpu.sanitizer_target", "rows"]


def test_what_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path, ends: Callable[[Path], bool]) -> None:
    script = f"echo begun; sleep 600 & echo $! > {tmp_path / 'child'}; wait"
    start = time.monotonic()
    code, output = sanitizer._limited(["/bin/sh", "-c", script], 2.0)
    assert (code, output) == (None, "begun\n")
    assert time.monotonic() - start < 60
    child = Path(f"/proc/{(tmp_path / 'child').read_text().strip()}/stat")
    assert ends(child)
    code, output = sanitizer._limited(["/bin/sh", "-c", "echo $PYTORCH_NO_CUDA_MEMORY_CACHING; exit 3"], 60.0)
    assert (code, output) == (3, "1\n")


LAUNCHED = """
import torch, triton.runtime.interpreter as interpreter
from padless.bench.gpu.case import Context
from padless.bench.gpu.sanitizer_target import GROUPS, calls

names, run = set(), interpreter.InterpretedFunction.run

def watched(self, *args, **options):
    names.add(self.fn.__name__)
    return run(self, *args, **options)

interpreter.InterpretedFunction.run = watched
with torch.inference_mode():
    for group in GROUPS:
        for name, call in calls(group, Context(torch.device("cpu"), dry=False, memory=1 << 28)).items():
            call()
print(*sorted(names))
"""


def test_a_tiny_call_of_each_kernel_is_watched() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", LAUNCHED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = Path(sanitizer.__file__).parents[2] / "kernels"
    kernels = {
        line.split("(")[0].removeprefix("def ")
        for file in folder.glob("*.py")
        if "hopper" not in file.name
        for line in file.read_text().splitlines()
        if line.startswith("def ") and "_kernel(" in line
    }
    assert len(kernels) > 15
    assert kernels - set(done.stdout.split()) == set()


def test_in_a_dry_run_it_is_left_out() -> None:
    context = Context(torch.device("cpu"), dry=True, memory=1 << 28)
    found = sanitizer.cases(context)
    assert [case.name for case in found[: len(GROUPS)]] == [f"memcheck/{group}" for group in GROUPS]
    assert found[0].run(context) == {"status": "left out", "reason": "a dry run"}
