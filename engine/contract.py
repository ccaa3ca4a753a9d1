"""The vocabulary shared by the dispatch table and by every implementation: what is asked, and what a row needs.

Only static, hashable facts appear here, so that an implementation is chosen once, when a block binds its ops, and
never again while tokens flow. Nothing in this file imports an implementation.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any

import torch

__all__ = ["Call", "Impl", "Requires"]


@dataclass(frozen=True)
class Call:
    """The static facts about one use of an op.

    Attributes:
        op: name of the op, a key of the dispatch table.
        device: "cpu" or "cuda".
        dtype: dtype of the activations.
        sm: CUDA compute capability as an integer (90 for 9.0); None on a CPU.
        head_dim: channels per attention head; None for ops without heads.
        window: "full", "sliding" or "causal"; None for ops that do not attend.
        bias: "none" or "t5" (relative position bias); None for ops that do not attend.
        hidden: width of the output rows; None where it does not matter.
        epilogue: what is fused behind a GEMM, see `engine/ops/linear.py`; None for other ops.
        gated: half of the GEMM's outputs gates the other.
        inner: width of the rows that enter a GEMM; None for other ops.
        norm: "layer_norm" or "rms_norm", of the rows that enter the GEMM of `norm_linear`; None for other ops.
        statistics: what the norm behind a GEMM needs is asked for as well.
        residual: something is added behind the GEMM, as a rule.
        rope: part of the GEMM's outputs is rotated.
        cross: keys and values come from other texts than the queries (`cu_seqlens_k`).
        lse: the log-sum-exp of the attention scores is asked for as well.
        deterministic: the same text must give the same bits whatever its neighbours.
    """

    op: str
    device: str
    dtype: torch.dtype
    sm: int | None = None
    head_dim: int | None = None
    window: str | None = None
    bias: str | None = None
    hidden: int | None = None
    epilogue: str | None = None
    gated: bool = False
    inner: int | None = None
    norm: str | None = None
    statistics: bool = False
    residual: bool = False
    rope: bool = False
    cross: bool = False
    lse: bool = False
    deterministic: bool = False

    def __str__(self) -> str:
        facts = {field.name: getattr(self, field.name) for field in fields(self)}
        facts["dtype"] = str(self.dtype).removeprefix("torch.")
        return ", ".join(f"{name}={value}" for name, value in facts.items() if value not in (None, False))


@dataclass(frozen=True)
class Requires:
    """What a row of the table needs, as data: checked before anything of that row is imported.

    Attributes:
        device: device type it runs on; None for any.
        sm: lowest CUDA compute capability; None for any.
        packages: names that must be importable.
        dtypes: activation dtypes it takes; empty for any.
    """

    device: str | None = None
    sm: int | None = None
    packages: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()

    def unmet(self, call: Call, *, interpreted: bool = False) -> list[str]:
        """Each requirement that `call` does not meet, with the observed and the required value; empty when all are.

        Args:
            call: what is asked.
            interpreted: the row's kernels run in an interpreter, which needs no GPU.
        """
        reasons = []
        if interpreted:
            return [f"needs package {name}, not installed" for name in self.packages if not _installed(name)]
        if self.device is not None and call.device != self.device:
            reasons.append(f"needs device {self.device}, got {call.device}")
        if self.sm is not None and (call.sm or 0) < self.sm:
            reasons.append(f"needs sm_{self.sm} or newer, got {'no GPU' if call.sm is None else f'sm_{call.sm}'}")
        reasons += [f"needs package {name}, not installed" for name in self.packages if not _installed(name)]
        if self.dtypes and call.dtype not in self.dtypes:
            reasons.append(f"needs dtype {' or '.join(map(_short, self.dtypes))}, got {_short(call.dtype)}")
        return reasons


@dataclass(frozen=True)
class Impl:
    """One row of the dispatch table: an implementation of an op, known only by its dotted name.

    The module named by `target` may define, beside the function itself:
        `unsupported(call) -> list[str]`: reasons why it cannot serve this call, empty when it can;
        `defers(call) -> list[str]`: reasons to leave this call to the rows below though it could serve it, asked only
            where no row was named, and of no effect where none of those can serve;
        `prepare(*weights, call) -> tuple`: the weights in the layout it wants (fused, permuted, prepacked);
        `TUNED`: its `source(call) -> str` says where the tiling for this call comes from, and `distrust(call, reason)`
            has the default serve it, where what was measured fails.

    Attributes:
        name: what `backend=` and `explain` call it.
        target: "package.module:function".
        requires: checked before the module is imported.
        differentiable: whether autograd flows through it; rows that say no are never used where a gradient is needed.
        deterministic: whether a text's bits are independent of its neighbours.
        just_in_time: its code is compiled at the first call, which can fail where every requirement is met: no C
            compiler, a driver too old. Under "auto" the next row then takes over.
        traceable: whether torch.compile and torch.export can follow it, or see one operator. While they trace, the
            differentiable row stands in for one that says no.
    """

    name: str
    target: str
    requires: Requires = Requires()
    differentiable: bool = False
    deterministic: bool = False
    just_in_time: bool = False
    traceable: bool = True


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        # The parent of a dotted name is missing.
        return False


def _short(value: Any) -> str:
    return str(value).removeprefix("torch.")
