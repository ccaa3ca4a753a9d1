"""The configuration a kernel runs with: a measured one where there is one for this call and GPU, else its own default.

Each file with `CANDIDATES` has one `TUNED`. Its answer for a kind of call is found once, from files; after that it is
kept here. Nothing is ever measured, for whoever runs a model has not asked for it: `padless tune` does that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton

from ..autotune.device import identify
from ..autotune.kernel_hash import source_hash
from ..autotune.lookup import DEFAULT, Answer, process_lookup
from ..engine.contract import Call
from .launch import Config

__all__ = ["Tuned", "compute_capability"]


class Tuned:
    """Configurations of the kernels of one file."""

    def __init__(self, name: str, default: Callable[..., Config], candidates: Sequence[Config]) -> None:
        """Nothing is looked up before it is asked for.

        Args:
            name: of the module, `__name__`.
            default: the configuration of a call where nothing was measured; told `aligned=False` where that is so.
            candidates: all that a file may point at.
        """
        self._module = name.rpartition(".")[2]
        self.default = default
        self.candidates = candidates
        self._known: dict[tuple[Any, ...], Config] = {}
        self._generation = process_lookup().generation

    def __call__(
        self,
        op: str,
        device: torch.device,
        dtype: torch.dtype,
        *,
        aligned: bool = True,
        measured: bool = True,
        **facts: Any,
    ) -> Config:
        """The configuration of `op` on `device`.

        Args:
            op: a key of the dispatch table.
            device: of the tensors.
            dtype: of the activations.
            aligned: rows of all operands begin at multiples of 16 bytes. What is measured is of such.
            measured: False: the default, whatever was measured.
            facts: others of the call that the configuration may depend on, see `KEYED_BY` of `autotune/key.py`.
        """
        lookup = process_lookup()
        if lookup.generation != self._generation:
            self._known, self._generation = {}, lookup.generation
        sm = compute_capability(device)
        place = (op, device, sm, dtype, aligned, measured, *facts.values())
        config = self._known.get(place)
        if config is None:
            call = Call(op, device="cuda", dtype=dtype, sm=sm, **facts)
            if not aligned:
                config = self.default(call, aligned=False)
            else:
                config = self._find(call, device).config if measured else self.default(call)
            self._known[place] = config
        return config

    def source(self, call: Call) -> str:
        """Where the configuration of `call` comes from on the GPU in use, in the words of `autotune/lookup.py`."""
        if call.device == "cuda" and not torch.cuda.is_available():
            return DEFAULT  # a question about a GPU that is not here
        return self._find(call, torch.device(call.device)).source

    def distrust(self, call: Call, reason: str) -> bool:
        """Serve calls of this kind with the default from now on; False where it is the default that serves.

        Args:
            call: the facts.
            reason: how the configuration failed, for the log.
        """
        if self.source(call) == DEFAULT:
            return False
        process_lookup().distrust(call, identify(call.device), reason)
        return True

    def kernel_hash(self) -> str | None:
        """Of the source as it is now."""
        return source_hash(self._module)

    def _find(self, call: Call, device: torch.device) -> Answer[Config]:
        """The answer of the process' lookup."""
        return process_lookup().find(
            call,
            identify(device),
            self.candidates,
            self.default(call),
            triton=triton.__version__,
            kernel_hash=self.kernel_hash,
        )


def compute_capability(device: torch.device) -> int | None:
    """90 for Hopper; None where the kernel is interpreted, or compiled for another maker's GPU."""
    return _capability(device)


@functools.cache
def _capability(device: torch.device) -> int | None:
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
