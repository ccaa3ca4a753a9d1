"""Peers of the op `attention`: torch's padded and nested forms, and the packed kernels of others.

Those that the GPU report knows already (`bench/gpu/peers.py`) are taken from there.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ...engine.relative_position import relative_position_bucket
from ..gpu.peers import PEERS as REPORTED
from ..gpu.peers import Absent, build_peer
from ..gpu.problem import BIAS_REACH, BUCKETS, Inputs
from .case import Case, Ready, Results
from .systems import available_memory

__all__ = ["BUILD", "missing"]

_REPORTED = {
    "sdpa-flash": "sdpa flash",
    "sdpa-cudnn": "sdpa cudnn",
    "flex": "flex",
    "torch-varlen": "torch varlen",
    "flash-attn-2": "flash-attn 2",
    "flash-attn-3": "flash-attn 3",
    "flash-attn-4": "flash-attn 4",
}
_ON_CPU = ("sdpa-padded", "sdpa-nested", "flex")


def missing(name: str, case: Case) -> str | None:
    """Why the peer of this name cannot serve the case, as far as that is known without trying."""
    problem = _inputs(case).problem
    windowed, biased, crossed = problem.window != (-1, -1), problem.bias is not None, problem.lengths_k is not None
    if case.device.type != "cuda" and name not in _ON_CPU:
        return "needs a GPU"
    if crossed and name not in ("sdpa-padded", "sdpa-nested", "xformers"):
        return "only self-attention is compared"
    if biased and name not in ("sdpa-padded", "flex"):
        return "has no relative position bias"
    if windowed and name == "sdpa-nested":
        return "has no window"
    if windowed and name == "xformers":
        return "has no window to both sides of packed texts"
    if problem.causal and name == "sdpa-nested" and case.device.type != "cuda":
        return "nested tensors are not attended to causally on a CPU"
    return None


def _padded(case: Case) -> Ready:
    """SDPA on texts padded to the longest, under a mask: what a padded model does. Padding is not timed."""
    inputs = _inputs(case)
    problem, device = inputs.problem, case.device
    lengths = torch.tensor(problem.lengths, device=device)
    lengths_k = lengths if problem.lengths_k is None else torch.tensor(problem.lengths_k, device=device)
    longest, longest_k = int(lengths.max()), int(lengths_k.max())
    rows = len(lengths) * (2 * longest * inputs.q.shape[1] + 2 * longest_k * inputs.k.shape[1])
    needed, free = rows * problem.head_dim * problem.dtype.itemsize, available_memory(device)
    if needed > free // 4:
        raise Absent(f"padded, it takes {needed / 2**30:.1f} GiB, over a quarter of the {free / 2**30:.1f} GiB free")
    real = torch.arange(longest, device=device) < lengths[:, None]
    real_k = torch.arange(longest_k, device=device) < lengths_k[:, None]
    q, k, v = _spread(inputs.q, real), _spread(inputs.k, real_k), _spread(inputs.v, real_k)
    options: dict[str, Any] = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    if problem.causal:
        # Texts start at the left: no query sees the padding to its right.
        options["is_causal"] = True
    else:
        options["attn_mask"] = _mask(inputs, longest, longest_k, real_k)
    return Ready(
        lambda: scaled_dot_product_attention(q, k, v, **options),
        lambda out: (out.transpose(1, 2)[real],),
    )


def _spread(x: Tensor, real: Tensor) -> Tensor:
    """`[texts, heads, longest, head_dim]`, zeros where there is no token."""
    padded = x.new_zeros(*real.shape, *x.shape[1:])
    padded[real] = x
    return padded.transpose(1, 2).contiguous()


def _mask(inputs: Inputs, longest: int, longest_k: int, real_k: Tensor) -> Tensor | None:
    """What is added to scores, or which pairs see each other; None where all do."""
    problem, device = inputs.problem, real_k.device
    left, right = problem.window
    distance = torch.arange(longest_k, device=device) - torch.arange(longest, device=device)[:, None]
    seen = torch.ones_like(distance, dtype=torch.bool)
    if left >= 0:
        seen &= distance >= -left
    if right >= 0:
        seen &= distance <= right
    padded = not bool(real_k.all())
    if padded:
        # Padded queries see themselves at least: a row that sees nothing would be NaN.
        seen = (seen & real_k[:, None]) | (distance == 0)
    bias = inputs.position_bias
    if bias is None:
        return (seen[:, None] if padded else seen) if padded or problem.window != (-1, -1) else None
    buckets = relative_position_bucket(distance, BUCKETS, BIAS_REACH, problem.bias == "both")
    added = bias[buckets].permute(2, 0, 1)[None]
    return added.masked_fill(~seen[:, None], -torch.inf) if padded else added


def _nested(case: Case) -> Ready:
    """SDPA on jagged nested tensors, torch's own form of a packed batch."""
    inputs = _inputs(case)
    edges = inputs.cu_seqlens.long()
    edges_k = edges if inputs.cu_seqlens_k is None else inputs.cu_seqlens_k.long()
    causal = inputs.problem.causal
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nested tensors are a prototype
        nest = torch.nested.nested_tensor_from_jagged
        q = nest(inputs.q.contiguous(), edges).transpose(1, 2)
        k, v = (nest(x.contiguous(), edges_k).transpose(1, 2) for x in (inputs.k, inputs.v))
        try:
            scaled_dot_product_attention(q, k, v, is_causal=causal)
        except Exception as error:
            raise Absent(_first_line(error)) from error
    return Ready(
        lambda: scaled_dot_product_attention(q, k, v, is_causal=causal),
        lambda out: (out.transpose(1, 2).values(),),
    )


def _xformers(case: Case) -> Ready:
    """xformers' memory-efficient attention under a block-diagonal mask."""
    try:
        ops = importlib.import_module("xformers.ops")
        biases = importlib.import_module("xformers.ops.fmha.attn_bias")
    except (ImportError, OSError) as error:
        raise Absent(_first_line(error)) from error
    inputs = _inputs(case)
    problem = inputs.problem
    keys = None if problem.lengths_k is None else list(problem.lengths_k)
    mask = biases.BlockDiagonalMask.from_seqlens(list(problem.lengths), keys, device=case.device)
    mask = mask.make_causal() if problem.causal else mask
    q, k, v = inputs.q[None], inputs.k[None], inputs.v[None]
    return Ready(lambda: ops.memory_efficient_attention(q, k, v, attn_bias=mask), lambda out: (out[0],))


def _reported(name: str, case: Case) -> Ready:
    """A peer of the GPU report; flex_attention also on a CPU."""
    inputs = _inputs(case)
    build = REPORTED[name] if name == "flex" else functools.partial(build_peer, name)
    peer = build(inputs)

    def packed(returned: Any) -> Results:
        return (peer.packed(returned),)

    return Ready(peer.call, packed)


def _inputs(case: Case) -> Inputs:
    assert case.attention is not None
    return case.attention


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


BUILD: dict[str, Callable[[Case], Ready]] = {
    "sdpa-padded": _padded,
    "sdpa-nested": _nested,
    "xformers": _xformers,
    **{name: functools.partial(_reported, reported) for name, reported in _REPORTED.items()},
}
