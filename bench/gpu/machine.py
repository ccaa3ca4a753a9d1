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

__all__ = ["describe_gpu", "driver_version", "settings"]

PEERS = ("flash-attn", "flash-attn-4", "fa3-fwd", "xformers", "transformers", "sentence-transformers", "tokenizers")


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
            **settings(),
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


_ASKED = {
    "clocks.sm": "sm_clock_mhz",
    "clocks.max.sm": "highest_sm_clock_mhz",
    "clocks.mem": "memory_clock_mhz",
    "clocks.max.mem": "highest_memory_clock_mhz",
    "power.limit": "power_limit_w",
    "power.max_limit": "highest_power_limit_w",
    "temperature.gpu": "temperature_c",
    "memory.used": "memory_used_before_mib",
    "ecc.mode.current": "ecc",
    "mig.mode.current": "mig",
}
"""What nvidia-smi calls it -> what the report calls it."""


def settings() -> dict[str, Any]:
    """Clocks, power limit and who else uses the card, before anything runs; what cannot be told is left out."""
    values = _ask([*_ASKED])
    if not values:
        # One name that this version does not know spoils the answer to all.
        values = {name: value for known in _ASKED for name, value in _ask([known]).items()}
    found: dict[str, Any] = {_ASKED[name]: _numeric(value) for name, value in values.items()}
    others = _nvidia_smi(["--query-compute-apps=pid", "--format=csv,noheader"])
    if others is not None:
        found["other_processes"] = len([line for line in others.splitlines() if line.strip().isdigit()])
    return found


def _ask(names: list[str]) -> dict[str, str]:
    told = _nvidia_smi([f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits", *_chosen()])
    cells = (told or "").splitlines()[:1]
    values = [value.strip() for value in cells[0].split(",")] if cells else []
    if len(values) != len(names):
        return {}
    # "[N/A]", "[Not Supported]", "Field … is not a valid field to query."
    return {name: value for name, value in zip(names, values, strict=True) if value and "[" not in value}


def _chosen() -> list[str]:
    """The card that torch calls the first, however the visible ones are ordered; all where it has no name."""
    try:
        return [f"--id=GPU-{str(torch.cuda.get_device_properties(0).uuid).removeprefix('GPU-')}"]
    except (AttributeError, RuntimeError, AssertionError):
        return []


def _nvidia_smi(options: list[str]) -> str | None:
    try:
        told = subprocess.run(["nvidia-smi", *options], capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return told.stdout


def _numeric(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def driver_version() -> str:
    """Of the GPU's kernel driver, from its own tool or else from the operating system."""
    told = _nvidia_smi(["--query-gpu=driver_version", "--format=csv,noheader"])
    if told and told.split():
        return told.split()[0]
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "unknown"
    match = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", text)
    return match.group(1) if match else "unknown"
