"""`attn_implementation="padless"` for any model of transformers that asks its AttentionInterface for its attention.

    import padless, transformers
    padless.register_attention()
    model = transformers.RobertaModel.from_pretrained(folder, attn_implementation="padless")

Attention alone then runs without padding, through the dispatch table; everything around it stays transformers' and
padded. For a family that padless knows, `padless.accelerate` takes the padding away from all of it.

What no op of ours computes goes to transformers' own functions, with the same result: dropout, gradients, position
biases, caches whose queries and keys differ, masks of the model's own, graphs that are traced (to its `sdpa`);
attention weights, attention sinks and capped scores (to the `eager` function of the model's own file).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, OptionError
from ..models.blocks import attention_op
from ..ops.bind import BoundOp
from .attention_mask import MaskFacts, facts_of, is_traced, make_mask

__all__ = ["register_attention"]

EVERYWHERE = 1 << 30
"""Tokens to the left that are as good as all."""

_HARMLESS = ("position_ids", "cache_position", "cu_seq_lens_q", "cu_seq_lens_k", "num_items_in_batch", "labels")
"""Tensors that models pass on to their attention and that do not change it; the third is read here."""

_SDPA_KNOWS = ("position_bias", "cache")

_OWN: dict[str, tuple[str, bool]] = {}
"""Names registered here, with their backend and determinism."""

Attention = tuple[Tensor, Tensor | None]


def register_attention(name: str = "padless", *, backend: str = "auto", deterministic: bool = False) -> None:
    """Let `attn_implementation=name` choose padless' attention in models of transformers.

    May be called again, also with other options, which then count for all models that have chosen this name.

    Args:
        name: as models will be told; must not contain "flash", by which transformers and sentence-transformers
            recognise what takes flattened inputs.
        backend: "auto", or the name of a row of the dispatch table, which then serves or raises.
        deterministic: only rows that promise the same bits for a sequence whatever its neighbours.

    Raises:
        OptionError: a name that is transformers' own, or one that contains "flash".
        ImportError: transformers is not installed.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    if "flash" in name or "|" in name or not name:
        raise OptionError(f"name: expected one without 'flash' and '|', which transformers reads, got {name!r}")
    taken = ["eager", *AttentionInterface().keys(), *AttentionMaskInterface().keys()]
    if name in taken and name not in _OWN:
        raise OptionError(f"name: {name!r} is registered already by somebody else, expected another")
    _OWN[name] = backend, deterministic
    AttentionInterface.register(name, functools.partial(attention, backend=backend, deterministic=deterministic))
    AttentionMaskInterface.register(name, make_mask)


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    *,
    backend: str = "auto",
    deterministic: bool = False,
    **others: Any,
) -> Attention:
    """Attention as transformers' AttentionInterface asks for it.

    Args:
        module: the layer that asks.
        query: `[batch, heads, queries, head_dim]`.
        key: `[batch, heads_k, keys, head_dim]`; `heads` is a multiple of `heads_k`; value as key.
        value: as key.
        attention_mask: what `make_mask` returned for this pass, a mask of the model's own, or None.
        dropout: of the weights.
        scaling: factor on the scores; None is `head_dim ** -0.5`.
        sliding_window: tokens seen to either side, the query's own included; read where there is no mask to say so.
        is_causal: likewise; None is the module's own.
        backend: as of `register_attention`, as is `deterministic`.
        deterministic: as of `register_attention`.
        others: what the layer passes on beside.

    Returns:
        `[batch, queries, heads, head_dim]`, zeros where padding asks, and None, or the weights where eager served.

    Raises:
        InputError: a mask of one row a sequence that comes from elsewhere, or that does not fit.
        OptionError: what only eager knows is asked of a model that has no eager function.
    """
    facts = facts_of(attention_mask)
    if attention_mask is None:
        facts = _without_mask(module, query, key, sliding_window, is_causal)
    elif facts is None and attention_mask.dim() == 2:
        raise InputError("attention_mask: expected one of padless' own or 4 axes, got 2: it was copied or moved")
    if facts is not None and others.get("cu_seq_lens_q") is not None:
        facts = facts.side_by_side(others["cu_seq_lens_q"])
    own_arguments = {"dropout": dropout, "scaling": scaling, "sliding_window": sliding_window, "is_causal": is_causal}
    if others.get("output_attentions") or others.get("softcap") is not None or _strangers(others):
        mask = attention_mask if facts is None else facts.additive(query.dtype)
        return _eager(module)(module, query, key, value, mask, **own_arguments, **others)
    op = None if facts is None or dropout else _op_for(facts, query, key, value, others, backend, deterministic)
    if op is None or facts is None:
        return _sdpa(module, query, key, value, attention_mask, facts, own_arguments, others)
    rows, columns = facts.packed_queries, facts.packed_keys
    q = rows.layout.pack(query.transpose(1, 2), "query")
    k, v = (columns.layout.pack(x.transpose(1, 2), "key") for x in (key, value))
    cross: dict[str, Any] = {}
    if rows is not columns:
        cross = {"cu_seqlens_k": columns.cu_seqlens, "max_seqlen_k": columns.max_seqlen}
    out = op(q, k, v, rows.cu_seqlens, rows.max_seqlen, memo=facts.memo, softmax_scale=scaling, **cross)
    return rows.layout.unpack(out), None


def _without_mask(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    sliding_window: int | None,
    is_causal: bool | None,
) -> MaskFacts | None:
    """What is known where the model made no mask: the layer says the rest, as for transformers' `sdpa`."""
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    (batch, _, queries, _), keys = query.shape, key.shape[2]
    if queries != keys and (causal or sliding_window is not None):
        return None
    side = -1 if sliding_window is None else sliding_window - 1
    return MaskFacts(batch, queries, keys, query.device, causal=causal, window=(side, -1 if causal else side))


def _op_for(
    facts: MaskFacts,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    others: dict[str, Any],
    backend: str,
    deterministic: bool,
) -> BoundOp | None:
    """The op that serves this call; None where transformers does it better, or we cannot."""
    if is_traced():
        return None
    if any(others.get(name) is not None for name in _SDPA_KNOWS):
        return None
    if (query.shape[0], query.shape[2], key.shape[2]) != (facts.batch, facts.queries, facts.keys):
        return None
    if value.shape != key.shape or value.shape[-1] != query.shape[-1] or not query.numel():
        return None
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    if wanted and backend == "auto":
        return None
    op = _op(
        query.device,
        query.dtype,
        query.shape[-1],
        facts.window,
        facts.causal,
        facts.queries != facts.keys,
        backend,
        deterministic,
    )
    served_by = op.resolution.impl.name if op.resolution is not None else None
    return None if backend == "auto" and served_by == "eager" else op


@functools.cache
def _op(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    window: tuple[int, int],
    causal: bool,
    cross: bool,
    backend: str,
    deterministic: bool,
) -> BoundOp:
    if causal and device.type == "cpu":
        causal, window = False, (window[0] if window[0] >= 0 else EVERYWHERE, 0)  # the cpu row knows windows
    op = attention_op(head_dim, window=window, causal=causal, cross=cross)
    op.bind(device, dtype, backend=backend, deterministic=deterministic)
    return op


def _sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    facts: MaskFacts | None,
    own_arguments: dict[str, Any],
    others: dict[str, Any],
) -> Attention:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    arguments = dict(own_arguments)
    if facts is not None:
        mask = None if facts.plain else facts.dense
        arguments["is_causal"] = facts.causal
    return sdpa_attention_forward(module, query, key, value, mask, **arguments, **others)


def _strangers(others: dict[str, Any]) -> list[str]:
    """Tensors of which nobody here knows what they do."""
    known = (*_HARMLESS, *_SDPA_KNOWS)
    return [name for name, value in others.items() if isinstance(value, Tensor) and name not in known]


def _eager(module: torch.nn.Module) -> Callable[..., Attention]:
    """The function that the model's own file has for what needs more than attention."""
    for kind in type(module).__mro__:
        found = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if found is not None:
            return found
    raise OptionError(f"{type(module).__name__}: no eager attention to ask for weights or sinks, choose another")
