from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from padless.autotune.device import cpu_features, cpu_name, identify, slugify

CPUINFO = Path("/proc/cpuinfo")


def kernel_flags() -> set[str]:
    """The operating system's own list of instruction sets: an oracle that shares no code with torch."""
    found = re.search(r"^flags\s*:(.*)$", CPUINFO.read_text(), re.MULTILINE) if CPUINFO.exists() else None
    if found is None:
        pytest.skip("this system lists no x86 flags in /proc/cpuinfo")
    return set(found.group(1).split())


@pytest.mark.parametrize(
    ("feature", "flag"),
    [
        ("avx2", "avx2"),
        ("avx512", "avx512f"),
        ("avx512_bf16", "avx512_bf16"),
        ("avx512_vnni", "avx512_vnni"),
        ("amx_bf16", "amx_bf16"),
        ("amx_int8", "amx_int8"),
    ],
)
def test_cpu_features_are_those_the_kernel_lists(feature: str, flag: str) -> None:
    assert (feature in identify("cpu").features) == (flag in kernel_flags())


def test_older_torch_answers_through_its_predicates(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"_is_avx2_supported": True, "_is_avx512_bf16_supported": False, "_is_amx_tile_supported": True}
    for name in ["get_capabilities", *(name for name in dir(torch.cpu) if name.startswith("_is_"))]:
        monkeypatch.delattr(torch.cpu, name, raising=False)
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
    cpu_features.cache_clear()
    try:
        assert cpu_features() == {"avx2", "amx_int8", "amx_bf16"}
    finally:
        cpu_features.cache_clear()


def test_torch_without_any_predicate_claims_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ["get_capabilities", *(name for name in dir(torch.cpu) if name.startswith("_is_"))]:
        monkeypatch.delattr(torch.cpu, name, raising=False)
    cpu_features.cache_clear()
    try:
        assert cpu_features() == frozenset()
    finally:
        cpu_features.cache_clear()


def test_cpu_has_a_name_and_no_gpu_facts() -> None:
    device = identify(torch.device("cpu", 0))
    assert (device.type, device.sm, device.multiprocessors) == ("cpu", None, None)
    assert device.name == cpu_name()
    assert device.name.strip() == device.name != ""
    assert device == identify("cpu")


def test_the_slug_is_a_safe_folder_name() -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", identify("cpu").slug)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("NVIDIA H200", "nvidia-h200"),
        ("Intel(R) Xeon(R) Platinum 8480+", "intel-xeon-platinum-8480"),
        ("Intel(R) Core(TM) i7-13700K", "intel-core-i7-13700k"),
        ("AMD EPYC 9554 64-Core Processor", "amd-epyc-9554-64-core-processor"),
        ("../../etc/passwd", "etc-passwd"),
        ("飞腾", "unknown"),
        ("", "unknown"),
    ],
)
def test_slugs(name: str, slug: str) -> None:
    assert slugify(name) == slug


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_gpu_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(RuntimeError, match=f"device '{device}': torch .* sees no GPU"):
        identify(device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_facts_are_those_torch_reports() -> None:
    device = identify("cuda")
    assert device.name == torch.cuda.get_device_name()
    major, minor = torch.cuda.get_device_capability()
    assert device.sm == (None if torch.version.hip else major * 10 + minor)
    assert device.multiprocessors is not None
    assert device.multiprocessors > 0


def test_other_devices_are_named_by_their_type() -> None:
    device = identify("meta")
    assert (device.type, device.slug, device.sm, device.features) == ("meta", "meta", None, frozenset())
