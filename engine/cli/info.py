"""`padless info`: versions, devices and threads, as a bug report needs them."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

__all__ = ["info", "installed_version"]

_PACKAGES = ("torch", "triton", "numpy", "tokenizers", "safetensors", "pyarrow")
_OPTIONAL = ("flash-attn", "huggingface-hub", "transformers", "sentence-transformers", "openvino", "ray")


def info() -> None:
    """Print versions, devices and threads."""
    for name, value in _facts():
        print(f"{name:<22} {value}")


def _facts() -> Iterator[tuple[str, str]]:
    import torch

    from ... import __version__
    from ...autotune.device import identify

    yield "padless", __version__
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield from ((name, installed_version(name)) for name in _PACKAGES)
    cuda = torch.cuda.is_available()
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count() if cuda else 0))]
    for name in devices:
        device = identify(name)
        facts = [device.name]
        if device.sm is not None:
            facts.append(f"sm_{device.sm}, {device.multiprocessors} multiprocessors")
        facts += sorted(device.features)
        yield name, ", ".join(facts)
    yield "threads", f"{torch.get_num_threads()} in an op, {torch.get_num_interop_threads()} between ops"
    yield from ((f"optional: {name}", installed_version(name)) for name in _OPTIONAL)


def installed_version(package: str) -> str:
    """Version of a distribution, or \"not installed\"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
