"""One command in a process of its own: its wall clock, its exit code and the most memory it held.

    python bench/process.py OUT.json COMMAND ...

What Linux says of a child's memory begins with that of the process it was forked from. So a large process starts this
file, which needs the standard library alone, and it is this small process that starts and waits for the command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["main"]


def main(out: str, command: list[str]) -> int:
    """Run `command` and write {"seconds", "peak_rss_mib"} to `out`; returns the command's exit code."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    # Kibibytes on Linux, bytes on macOS.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    Path(out).write_text(json.dumps({"seconds": seconds, "peak_rss_mib": usage.ru_maxrss / unit}), encoding="utf-8")
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
