"""Which device this is: its name, and the few hardware facts that decide between implementations.

A leaf: stdlib and torch only. Every fact is read once per device and process; none of them can change while it runs.
"""

from __future__ import annotations

import functools
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Device", "cpu_features", "cpu_name", "identify", "slugify"]

_CPU_CAPABILITIES = {
    "avx2": "avx2",
    "avx512_f": "avx512",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "amx_fp16": "amx_fp16",
    "neon": "neon",
    "sve": "sve",
    "bf16": "arm_bf16",
}
_CPU_PREDICATES = {
    "_is_avx2_supported": ("avx2",),
    "_is_avx512_supported": ("avx512",),
    "_is_vnni_supported": ("avx512_vnni",),
    "_is_avx512_bf16_supported": ("avx512_bf16",),
    "_is_amx_tile_supported": ("amx_int8", "amx_bf16"),
    "_is_amx_fp16_supported": ("amx_fp16",),
}


@dataclass(frozen=True)
class Device:
    """One device, in the terms the dispatch table and the tuned configurations are keyed by.

    Attributes:
        type: "cpu" or "cuda" (ROCm parts are "cuda" too, as torch calls them), or another torch device type.
        name: the maker's name, for people: "NVIDIA H200", "Intel(R) Xeon(R) Platinum 8480+".
        slug: `name` as a folder name: "nvidia-h200", "intel-xeon-platinum-8480".
        sm: compute capability times ten (90 for Hopper), None off NVIDIA hardware.
        multiprocessors: streaming multiprocessors (compute units on AMD), None on a CPU.
        features: instruction sets ({"avx512", "avx512_bf16", "amx_bf16", ...}) on a CPU, the gfx name on an AMD GPU.
    """

    type: str
    name: str
    slug: str
    sm: int | None
    multiprocessors: int | None
    features: frozenset[str]


def slugify(name: str) -> str:
    """`name` in lower case with single hyphens between its letters and digits; trademark signs are dropped.

    "Intel(R) Xeon(R) Platinum 8480+" becomes "intel-xeon-platinum-8480"; nothing left becomes "unknown".
    """
    without_marks = re.sub(r"\((?:r|tm|c)\)", " ", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", without_marks).strip("-") or "unknown"


@functools.cache
def cpu_name() -> str:
    """The processor's name from the operating system; the machine type ("x86_64") where it gives none."""
    try:
        found = re.search(r"^model name\s*:\s*(\S.*)$", Path("/proc/cpuinfo").read_text(errors="replace"), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine() or "unknown"


@functools.cache
def cpu_features() -> frozenset[str]:
    """Instruction sets of this CPU that change which implementation is fastest.

    Newer torch tells them all at once (`torch.cpu.get_capabilities`); older torch has one private predicate each,
    and its AMX predicate stands for int8 and bf16 together, which no shipped processor has apart.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        found = capabilities()
        return frozenset(feature for key, feature in _CPU_CAPABILITIES.items() if found.get(key) is True)
    present = {name for name in _CPU_PREDICATES if hasattr(torch.cpu, name) and getattr(torch.cpu, name)()}
    return frozenset(feature for name in present for feature in _CPU_PREDICATES[name])


def identify(device: torch.device | str) -> Device:
    """Describe `device`; "cuda" without an index is the current one.

    Raises:
        RuntimeError: a "cuda" device is asked for and torch sees none, or the string is no device.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return Device("cpu", cpu_name(), slugify(cpu_name()), None, None, cpu_features())
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError(f"device {str(device)!r}: torch {torch.__version__} sees no GPU")
        return _identify_gpu(torch.cuda.current_device() if device.index is None else device.index)
    return Device(device.type, device.type, slugify(device.type), None, None, frozenset())


@functools.cache
def _identify_gpu(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    rocm = torch.version.hip is not None
    return Device(
        type="cuda",
        name=properties.name,
        slug=slugify(properties.name),
        sm=None if rocm else properties.major * 10 + properties.minor,
        multiprocessors=properties.multi_processor_count,
        features=frozenset({properties.gcnArchName.split(":")[0]}) if rocm else frozenset(),
    )
