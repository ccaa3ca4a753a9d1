"""The attention kernels of others, and an unproven one of ours, each behind one call with our packed inputs.

Absent ones say why. What a peer needs beyond the inputs (another layout, a mask, a compilation) is made before, outside
of its time.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ...engine.relative_position import bucket_table
from .problem import BIAS_REACH, BUCKETS, Inputs

__all__ = ["PEERS", "UNPROVEN", "Absent", "Peer", "build_peer"]


UNPROVEN = "padless gluon"
"""Our kernel that no GPU has run. It might hang, and take with it the case that it is in: it has cases of its own."""


@dataclass(frozen=True)
class Peer:
    """One kernel, ready to be called.

    Attributes:
        call: what is timed.
        packed: its result as `[tokens, heads, head_dim]`; not timed.
    """

    call: Callable[[], Any]
    packed: Callable[[Any], Tensor]


class Absent(Exception):
    """This peer cannot take part here; the message says why."""


def build_peer(name: str, inputs: Inputs) -> Peer:
    """The kernel of this name for these inputs.

    Raises:
        Absent: not installed, or it has no such attention.
    """
    problem = inputs.problem
    if inputs.q.device.type != "cuda" and not name.startswith("sdpa"):
        raise Absent("needs a GPU")
    if problem.lengths_k is not None:
        raise Absent("only self-attention is compared")
    if problem.bias is not None and name != "flex":
        raise Absent("has no relative position bias")
    return PEERS[name](inputs)


def _torch_varlen(inputs: Inputs) -> Peer:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise Absent(f"torch {torch.__version__} has no torch.nn.attention.varlen") from error
    options = _window_option(varlen_attn, "window_size", inputs)
    if inputs.problem.causal and "window_size" not in options:
        options["is_causal"] = True
    cu_seqlens, longest = inputs.arguments()[3:]
    q, k, v = inputs.q, inputs.k, inputs.v
    return Peer(lambda: varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest, **options), _first)


def _padless_gluon(inputs: Inputs) -> Peer:
    from ...kernels import attention_hopper
    from .correctness import attention_call

    reasons = attention_hopper.refusals(attention_call(inputs.problem, inputs.q.device))
    if reasons:
        raise Absent("; ".join(reasons))
    arguments, options = inputs.arguments(), inputs.options()
    return Peer(lambda: attention_hopper.varlen_attention(*arguments, **options), _first)


def _window_option(function: Callable[..., Any], name: str, inputs: Inputs) -> dict[str, Any]:
    problem = inputs.problem
    left, right = problem.window
    if (left, right) == (-1, -1) and not problem.causal:
        return {}
    if name not in inspect.signature(function).parameters:
        if problem.window == (-1, -1):
            return {}
        raise Absent(f"torch {torch.__version__} has no {name}")
    return {name: (left, 0 if problem.causal else right)}


def _flash_attn(module: str, inputs: Inputs) -> Peer:
    """flash-attn 2, 3 or 4: one function name, three modules."""
    try:
        function = importlib.import_module(module).flash_attn_varlen_func
    except (ImportError, AttributeError, OSError) as error:
        raise Absent(f"{module}: {_first_line(error)}") from error
    problem = inputs.problem
    unbounded = None if module.endswith("cute") else -1
    window = tuple(unbounded if side < 0 else side for side in problem.window)
    cu_seqlens, longest = inputs.arguments()[3:]
    known = inspect.signature(function).parameters
    options = {
        "cu_seqlens_q": cu_seqlens,
        "cu_seqlens_k": cu_seqlens,
        "max_seqlen_q": longest,
        "max_seqlen_k": longest,
        "causal": problem.causal,
        "window_size": window,
    }
    options = {name: value for name, value in options.items() if name in known}
    q, k, v = inputs.q, inputs.k, inputs.v
    return Peer(lambda: function(q, k, v, **options), _first)


def _flash_attn_3(inputs: Inputs) -> Peer:
    """Under the name of its own builds, or of the forward-only wheel."""
    try:
        return _flash_attn("flash_attn_interface", inputs)
    except Absent as own:
        try:
            return _flash_attn("fa3_fwd_interface", inputs)
        except Absent as wheel:
            raise Absent(f"{own}; {wheel}") from wheel


def _sdpa(backend: SDPBackend, inputs: Inputs) -> Peer:
    problem = inputs.problem
    if len(set(problem.lengths)) != 1:
        raise Absent("needs texts of equal length")
    if problem.window != (-1, -1):
        raise Absent("has no window")
    q, k, v = (_by_text(x, problem.lengths[0]) for x in (inputs.q, inputs.k, inputs.v))
    grouped = q.shape[1] != k.shape[1]
    options: dict[str, Any] = {"is_causal": problem.causal, **({"enable_gqa": True} if grouped else {})}

    def call() -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, **options)

    return Peer(call, _from_texts)


def _flex(inputs: Inputs) -> Peer:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    problem = inputs.problem
    equal = len(set(problem.lengths)) == 1
    length = problem.lengths[0] if equal else problem.tokens
    left, right = problem.window[0], 0 if problem.causal else problem.window[1]
    device = inputs.q.device
    counts = torch.tensor(problem.lengths, device=device)
    text = torch.arange(len(counts), device=device).repeat_interleave(counts)

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = query >= 0
        if not equal:
            seen = seen & (text[query] == text[key])
        if left >= 0:
            seen = seen & (query - key <= left)
        if right >= 0:
            seen = seen & (key - query <= right)
        return seen

    mask = None
    if not equal or left >= 0 or right >= 0:
        mask = create_block_mask(visible, None, None, length, length, device=str(device))
    bias = inputs.position_bias
    options: dict[str, Any] = {"block_mask": mask, "enable_gqa": inputs.q.shape[1] != inputs.k.shape[1]}
    if bias is not None:
        buckets = bucket_table(BUCKETS, BIAS_REACH, problem.bias == "both").to(device)
        by_distance = bias[buckets].float()

        def score(value: Tensor, _batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return value + by_distance[(key - query).clamp(-BIAS_REACH, BIAS_REACH) + BIAS_REACH, head]

        options["score_mod"] = score
    q, k, v = (_by_text(x, length) for x in (inputs.q, inputs.k, inputs.v))
    # It recompiles for every shape, and would give up after eight of them.
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    return Peer(lambda: compiled(q, k, v, **options), _from_texts)


def _by_text(x: Tensor, length: int) -> Tensor:
    """`[texts, heads, length, head_dim]`, a view of the packed rows."""
    return x.unflatten(0, (-1, length)).transpose(1, 2)


def _from_texts(result: Any) -> Tensor:
    return _first(result).transpose(1, 2).flatten(0, 1)


def _first(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


PEERS: dict[str, Callable[[Inputs], Peer]] = {
    "torch varlen": _torch_varlen,
    "flash-attn 2": functools.partial(_flash_attn, "flash_attn"),
    "flash-attn 3": _flash_attn_3,
    "flash-attn 4": functools.partial(_flash_attn, "flash_attn.cute"),
    "sdpa flash": functools.partial(_sdpa, SDPBackend.FLASH_ATTENTION),
    "sdpa cudnn": functools.partial(_sdpa, SDPBackend.CUDNN_ATTENTION),
    "flex": _flex,
    UNPROVEN: _padless_gluon,
}
