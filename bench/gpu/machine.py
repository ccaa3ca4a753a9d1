"""What a GPU report must be read beside: the card, its driver, the versions and the commit."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ...autotune.device import identify
from ..machine import commit, versions

__all__ = ["describe_gpu", "driver_version"]

PEERS = ("flash-attn", "flash-attn-4", "fa3-fwd", "xformers")


def describe_gpu(dry: bool, known_commit: str | None = None) -> dict[str, Any]:
    """Facts for the head of the report.

    Args:
        dry: describe no GPU.
        known_commit: of the code that runs, where it lies outside of its checkout.
    """
    facts: dict[str, Any] = {"gpu": "none: a dry run through the interpreter", "slug": "dry-run"}
    if not dry:
        device, properties = identify("cuda"), torch.cuda.get_device_properties(0)
        facts = {
            "gpu": device.name,
            "slug": device.slug,
            "sm": device.sm,
            "multiprocessors": device.multiprocessors,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "l2_mib": round(getattr(properties, "L2_cache_size", 0) / 2**20, 1),
            "driver": driver_version(),
            "cuda": torch.version.cuda or f"ROCm {torch.version.hip}",
        }
    installed = {name: version for name, version in versions(*PEERS).items() if version != "not installed"}
    return {
        **facts,
        "torch": torch.__version__,
        **versions("triton"),
        **installed,
        "python": platform.python_version(),
        "padless": __version__,
        "commit": known_commit or commit(),
    }


def driver_version() -> str:
    """Of the GPU's kernel driver, from its own tool or else from the operating system."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()
        return found[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        pass
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "unknown"
    match = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", text)
    return match.group(1) if match else "unknown"
