"""Do the tests of this folder notice when a kernel is wrong? `TRITON_INTERPRET=1 python tests/kernels/mutants.py`.

Every mutant of `mutant_list.py` is one small error in the source of a kernel. Its tests, those of `make test`, run on
the mutated source up to their first failure: then it is killed. One that survives is an error nobody would notice,
unless its list says why there is nothing to notice. No file of the package is touched: a mutant is a copy in a folder
that goes away with it, which the import system of one process takes in place of the original.

Processes are forked from one that has imported torch and Triton, and nothing of padless. They are limited in the CPU
time they may take, not in the time that passes, so that a busy machine kills no mutant.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.util
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from mutant import Kernel, Mutant
from mutant_list import KERNELS

__all__ = ["Outcome", "RunError", "run_tests"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PRELOADED = ["numpy", "torch", "triton", "triton.language", "triton.runtime.interpreter"]
SHARE = 0.9
"""Of the mutants must be killed."""
CRASHES = (signal.SIGXCPU, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE)
"""By these a kernel can end its process, SIGXCPU when it takes too long; SIGKILL would be somebody else's."""
LONGEST_WAIT = 1800.0
"""Seconds until a process is given up that neither ends nor takes CPU time."""


class RunError(Exception):
    """The run says nothing about the tests: they fail as they are, or never saw the mutated source."""


@dataclass(frozen=True)
class Outcome:
    """What the tests made of a source."""

    failed: bool
    how: str
    seconds: float


def run_tests(module: str, source: str, tests: Sequence[str], *, cpu_seconds: float = 600.0) -> Outcome:
    """Run tests of this folder, up to the first failure, where `module` has this source.

    Args:
        module: full name of a module of the package.
        source: its text.
        tests: files, or files and tests, as pytest takes them.
        cpu_seconds: beyond this the process is ended, which is a failure too.

    Raises:
        RunError: the tests could not be run, or they imported the module from elsewhere.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / f"{module.rpartition('.')[2]}.py"
        file.write_text(source, encoding="utf-8")
        arguments = (module, str(file), [str(HERE / test) for test in tests], name, round(cpu_seconds))
        process = context.Process(target=_child, args=arguments)
        process.start()
        process.join(LONGEST_WAIT)
        if process.is_alive():
            process.kill()
            process.join()
            raise RunError(f"{module}: no end after {LONGEST_WAIT:.0f} s")
        log = (folder / "log").read_text(encoding="utf-8", errors="replace")
        if not (folder / "result").exists():
            if -(process.exitcode or 0) not in CRASHES:
                raise RunError(f"{module}: the process ended with {process.exitcode} before its tests did\n{log}")
            return Outcome(True, signal.Signals(-(process.exitcode or 0)).name, cpu_seconds)
        result = json.loads((folder / "result").read_text())
    if result["status"] not in (0, 1) or not result["imported"]:
        raise RunError(f"{module}: pytest ended with {result['status']}, imported: {result['imported']}\n{log}")
    failure = re.search(r"^FAILED .*?::(.*)$|^(ERROR .*)$", log, re.MULTILINE)
    return Outcome(result["status"] == 1, (failure[1] or failure[2]) if failure else "", result["seconds"])


def _child(module: str, file: str, tests: list[str], folder: str, cpu_seconds: int) -> None:
    """In a process of its own: the tests, with `module` from `file`; what came of it is left in `folder`."""
    log = os.open(os.path.join(folder, "log"), os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 60))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Wide enough for pytest to say in one line what failed and how.
    os.environ |= {"HYPOTHESIS_STORAGE_DIRECTORY": folder, "COLUMNS": "300"}
    sys.dont_write_bytecode = True
    sys.meta_path.insert(0, _InPlaceOf(module, file))
    import pytest

    options = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "--basetemp", os.path.join(folder, "tests")]
    status = pytest.main(
        [*options, "-p", "no:cacheprovider", "-q", "-x", "--tb=line", *tests], plugins=[_FarAddressesFirst]
    )
    imported = getattr(sys.modules.get(module), "__file__", None) == file
    result = {"status": int(status), "imported": imported, "seconds": time.process_time()}
    Path(folder, "result").write_text(json.dumps(result))


class _FarAddressesFirst:
    """Tests of addresses beyond 2^31 run first: they are quick, and no other sees what they see."""

    @staticmethod
    def pytest_collection_modifyitems(items: list[Any]) -> None:
        items.sort(key=lambda item: "two_to_the_31" not in item.name)


class _InPlaceOf(importlib.abc.MetaPathFinder):
    """Finds one module in another file."""

    def __init__(self, module: str, file: str) -> None:
        self.module, self.file = module, file

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(fullname, self.file) if fullname == self.module else None


def source_of(kernel: Kernel) -> str:
    """The text of a kernel's file as it is."""
    return (ROOT / "kernels" / f"{kernel.name}.py").read_text(encoding="utf-8")


def outcomes(
    jobs: Iterable[tuple[Kernel, Mutant]], limits: dict[str, float], workers: int
) -> Iterator[tuple[Kernel, Mutant, Outcome]]:
    """What became of each mutant, in their order."""

    def run(job: tuple[Kernel, Mutant]) -> tuple[Kernel, Mutant, Outcome]:
        kernel, mutant = job
        source = mutant.applied_to(source_of(kernel))
        return kernel, mutant, run_tests(kernel.module, source, kernel.tests, cpu_seconds=limits[kernel.name])

    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(run, jobs)


def time_limits(kernels: Sequence[Kernel], workers: int) -> dict[str, float]:
    """CPU seconds that the tests of a kernel may take; here they run on the sources as they are, and must pass."""
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda kernel: run_tests(kernel.module, source_of(kernel), kernel.tests), kernels))
    limits = {}
    for kernel, outcome in zip(kernels, found, strict=True):
        if outcome.failed:
            raise RunError(f"{kernel.name}: its tests fail as it is: {outcome.how}")
        print(f"{kernel.name}: tests pass on the source as it is, {outcome.seconds:.1f} s of CPU time", flush=True)
        limits[kernel.name] = 3 * outcome.seconds + 20
    return limits


def main() -> int:
    """The command; 0 where enough mutants were killed, and each of the others has its reason."""
    parser = argparse.ArgumentParser(description="Mutate the kernels and see whether the tests notice.")
    parser.add_argument(
        "--kernel", action="append", choices=[kernel.name for kernel in KERNELS], help="all unless given"
    )
    parser.add_argument(
        "--mutant", action="append", type=int, help="number of a mutant of that kernel; all unless given"
    )
    parser.add_argument("--every", type=int, default=1, help="only each N-th mutant, for a run that must be short")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("expected TRITON_INTERPRET=1 in the environment")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    kernels = [kernel for kernel in KERNELS if options.kernel is None or kernel.name in options.kernel]
    jobs = [
        (kernel, mutant)
        for kernel in kernels
        for number, mutant in enumerate(kernel.mutants)
        if options.mutant is None or number in options.mutant
    ][:: options.every]
    # Before anything runs: no mutant may have lost its place.
    for kernel, mutant in jobs:
        mutant.applied_to(source_of(kernel))

    began = time.perf_counter()
    killed: Counter[str] = Counter()
    unexplained = []
    for kernel, mutant, outcome in outcomes(jobs, time_limits(kernels, options.jobs), options.jobs):
        number = kernel.mutants.index(mutant)
        killed[kernel.name] += outcome.failed
        if not outcome.failed and not mutant.survives:
            unexplained.append(mutant)
        fate = "killed" if outcome.failed else "survived" if mutant.survives else "SURVIVED"
        detail = outcome.how[:200] if outcome.failed else mutant.survives
        print(f"{fate:8} {kernel.name} {number:2} {outcome.seconds:5.1f} s  {mutant.why}  [{detail}]", flush=True)
        if outcome.failed and mutant.survives:
            print(f"         it was said to survive: {mutant.survives}")
    print(f"\nin {time.perf_counter() - began:.0f} s")
    counts = Counter(kernel.name for kernel, _ in jobs)
    for name, count in counts.items():
        print(f"{name}: killed {killed[name]} of {count}")
    for mutant in unexplained:
        print(f"nobody noticed: {mutant.why}")
    print(f"killed {killed.total()} of {counts.total()}")
    return 0 if not unexplained and killed.total() >= SHARE * counts.total() else 1


if __name__ == "__main__":
    sys.exit(main())
