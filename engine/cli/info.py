"""`padless info`: versions, devices, threads and tuned configurations, as a bug report needs them."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

__all__ = ["info", "installed_version"]

_PACKAGES = ("torch", "triton", "numpy", "tokenizers", "safetensors", "pyarrow")
_OPTIONAL = ("flash-attn", "huggingface-hub", "transformers", "sentence-transformers", "openvino", "ray")


def info(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Also say where the configuration of each op of this model comes from."),
    ] = None,
) -> None:
    """Print versions, devices, threads and tuned configurations.

    For each GPU: what `padless tune` found and what is shipped, how much faster than the default, and whether it serves
    or why not. With MODEL, the hits and misses of that model's ops.
    """
    for name, value in _facts():
        print(f"{name:<22} {value}")
    for line in _tuned():
        print(line)
    if model is not None:
        for name, value in _hits(model):
            print(f"{name:<22} {value}")


def _facts() -> Iterator[tuple[str, str]]:
    import torch

    from ... import __version__
    from ...autotune.device import identify

    yield "padless", __version__
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield from ((name, installed_version(name)) for name in _PACKAGES)
    for name in ["cpu", *_gpus()]:
        device = identify(name)
        facts = [device.name]
        if device.sm is not None:
            facts.append(f"sm_{device.sm}, {device.multiprocessors} multiprocessors")
        facts += sorted(device.features)
        yield name, ", ".join(facts)
    yield "threads", f"{torch.get_num_threads()} in an op, {torch.get_num_interop_threads()} between ops"
    yield from ((f"optional: {name}", installed_version(name)) for name in _OPTIONAL)


def _gpus() -> list[str]:
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]


def _tuned() -> Iterator[str]:
    """One line for the user's cache, one for each GPU, and one for each entry that is known of it."""
    from ...autotune.device import identify
    from ...autotune.inventory import inventory
    from ...autotune.lookup import Lookup
    from ...autotune.store import Store
    from ...autotune.user_cache import cache_folder

    store = Store(cache_folder())
    yield f"{'tuned: user cache':<22} {store.folder or 'none: there is no home folder, padless tune keeps nothing'}"
    gpus = _gpus()
    if not gpus:
        yield f"{'tuned: here':<22} nothing: only kernels on a GPU have configurations"
        return
    subjects = _subjects()
    for name in gpus:
        device = identify(name)
        known = inventory(Lookup(store), device, subjects, installed_version("triton"))
        serving = sum(item.verdict == "serves" for item in known)
        yield f"{f'tuned: {name}':<22} {device.slug}: {len(known)} entries, {serving} of them serve"
        for item in known:
            measured, key = item.entry.provenance, " ".join(f"{fact}={value}" for fact, value in item.entry.key)
            times = "by rule" if measured.us is None else f"{measured.us:.1f} us (default {measured.default_us:.1f})"
            yield f"  {item.op:<18} {key}: {times}, {item.source}: {item.verdict}"


def _subjects() -> list:
    """Each op whose Triton kernel can be tuned."""
    from ...autotune.inventory import Subject
    from ..dispatch import TABLE

    found = []
    for op, rows in TABLE.items():
        for target in (row.target for row in rows if row.name == "triton"):
            tuned = import_module(target.partition(":")[0]).TUNED
            found.append(Subject(op, tuned.candidates, tuned.default, tuned.kernel_hash))
    return found


def _hits(model: str) -> Iterator[tuple[str, str]]:
    """How many kinds of call have a measured configuration, and which kind has it from where."""
    from ...autotune.key import key_of
    from ..loading import load

    sources: dict[tuple[str, str], str] = {}
    for op in load(model).bound_ops():
        found = op.resolution
        if found is not None and found.config_source != "none":
            facts = " ".join(f"{fact}={value}" for fact, value in key_of(found.call))
            sources[op.op, facts] = found.config_source
    counts = Counter(sources.values())
    misses = counts.pop("default", 0)
    told = ", ".join(f"{count} {source}" for source, count in counts.items()) or "0"
    yield "tuned: hits", told if sources else "no op of this model has a configuration on this device"
    yield "tuned: misses", f"{misses} kinds of call, with the kernel's default"
    yield from ((f"  {op}", f"{facts}: {source}") for (op, facts), source in sources.items())


def installed_version(package: str) -> str:
    """Version of a distribution, or \"not installed\"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
