"""One pytest run in as many processes as there are CPUs, each of which takes tests as it gets to them:
`python tests/shards.py ARGS`.

For tests that keep one CPU busy most of the time, as interpreted kernels do. ARGS are pytest's, and `--whole-files`;
that and `--claims`, a folder in which processes claim what they run, are options of tests/conftest.py.
"""

from __future__ import annotations

import compileall
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("engine", "kernels", "autotune", "bench")
NO_TESTS = 5
"""Exit status of pytest where nothing was selected: a share may be empty, all of them must not be."""


def main(arguments: Sequence[str]) -> int:
    """Run all shares at once and print what each has to say, one after the other.

    Returns:
        0 where every test of every share passed, otherwise pytest's status for the first share that did not.
    """
    count = len(os.sched_getaffinity(0))
    # Threads of one process that wait for each other by spinning would take the CPU from the other process.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    # Where Python is told to keep no bytecode, every process that a test starts would compile the package again.
    for package in PACKAGES:
        compileall.compile_dir(ROOT / package, quiet=2)
    running: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
    with tempfile.TemporaryDirectory() as claims:
        for _ in range(count):
            log = tempfile.TemporaryFile()  # noqa: SIM115
            command = [sys.executable, "-m", "pytest", *arguments, f"--claims={claims}"]
            running.append((subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment), log))
        try:
            statuses = [_finished(process, log) for process, log in running]
        finally:
            for process, _ in running:
                process.kill()
                process.wait()
    failed = [status for status in statuses if status not in (0, NO_TESTS)]
    return failed[0] if failed else 0 if 0 in statuses else NO_TESTS


def _finished(process: subprocess.Popen[bytes], log: IO[bytes]) -> int:
    status = process.wait()
    log.seek(0)
    sys.stdout.buffer.write(log.read())
    sys.stdout.flush()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
