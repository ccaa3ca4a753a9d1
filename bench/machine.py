"""What a measurement must be read beside: the machine, the versions and the commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from ..autotune.device import identify

__all__ = ["commit", "describe", "versions"]

_TELLING_FEATURES = ("avx2", "avx512", "avx512_bf16", "amx_bf16", "neon", "arm_bf16")


def commit() -> str:
    """Short hash of the checkout that runs, "+changes" after it where files differ; "unknown" outside a checkout."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # An installed package may lie inside somebody else's checkout; only our own root counts.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return "unknown"
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def versions(*distributions: str) -> dict[str, str]:
    """Installed version of each distribution, "not installed" where it is missing."""

    def version(distribution: str) -> str:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    return {distribution: version(distribution) for distribution in distributions}


def describe(threads: int) -> dict[str, Any]:
    """Facts for a report's hardware line: CPU, the instruction sets that matter, CPUs, threads, Python, commit."""
    device = identify("cpu")
    return {
        "cpu": device.name,
        "slug": device.slug,
        "features": [feature for feature in _TELLING_FEATURES if feature in device.features],
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "commit": commit(),
    }
