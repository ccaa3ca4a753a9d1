"""The launchers as operators `padless::…`, so that torch.compile and torch.export see one node, not a Python function.

`@traceable("rope")` above a launcher is all it takes. Run as usual the launcher is called straight, at the price of one
Python call; while something is traced its operator goes into the graph instead. The operator calls the launcher itself,
never the decorated name: a compiler may run operators (constants, tuning) while it is still compiling.

Operators are defined with `torch.library.Library` rather than `custom_op`, which wraps every call in Python's autograd
and in a search for mutated inputs: 31 us a call where this takes 9 us and the bare function 3 us (one CPU core, torch
2.13, two tensors in and out). They have no gradient, as the launchers have none, and refuse inputs that require one; a
BoundOp takes the eager function there.

Token and text counts are dynamic. As with any tensor of torch, a count of 0 or 1 is a graph of its own, and a program
exported from more texts takes no fewer than two.

Operators take no tuples and return one kind of thing: a window is two integers; attention, decode attention and pool
always return two tensors, the second without elements where it was not asked for; a configuration is the
names of its blocks and its numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from .launch import Config
from .limits import require_no_gradient

__all__ = ["OPERATORS", "Operator", "traceable"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Operator:
    """One launcher as an operator.

    Attributes:
        schema: its arguments and results in torch's notation, without the name.
        call: called with the operator and the launcher's arguments; returns what the launcher would.
        run: called with the launcher and the operator's arguments; returns what the operator does.
        fake: shapes, dtypes and strides of the operator's results, from its arguments.
    """

    schema: str
    call: Callable[..., Any]
    run: Callable[..., Any]
    fake: Callable[..., Any]


def traceable(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let torch.compile and torch.export see the launcher below as the operator `padless::name`.

    The operator is registered once in a process, also where this package is imported under two names.

    Args:
        name: a key of `OPERATORS`.
    """

    def decorated(launcher: Callable[P, R]) -> Callable[P, R]:
        operator = OPERATORS[name]
        _register(name, operator, launcher)
        overload = getattr(torch.ops.padless, name).default

        @functools.wraps(launcher)
        def either(*args: P.args, **options: P.kwargs) -> R:
            if torch.compiler.is_compiling():
                # Here, not in the graph: what autograd makes of an operator without a gradient runs without a word.
                require_no_gradient(name, *(x for x in (*args, *options.values()) if isinstance(x, Tensor)))
                return operator.call(overload, *args, **options)
            return launcher(*args, **options)

        return either

    return decorated


LIBRARY = torch.library.Library("padless", "FRAGMENT")


def _register(name: str, operator: Operator, launcher: Callable[..., Any]) -> None:
    if hasattr(torch.ops.padless, name):
        return
    run = functools.partial(operator.run, launcher)
    LIBRARY.define(name + operator.schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, run, "CUDA")
    LIBRARY.impl(name, run, "CPU")  # Triton's interpreter
    torch.library.register_fake(f"padless::{name}", operator.fake, lib=LIBRARY)


def _written(config: Config | None) -> tuple[str, list[int]]:
    """`config` as operators take it: `"BLOCK_M BLOCK_N", [num_warps, num_stages, 0, 128, 64]`; empty for None.

    The third number is `max_registers`, 0 for None. Numbers stay numbers, as a tracer may hold symbols in their place.
    """
    if config is None:
        return "", []
    names, values = [name for name, _ in config.blocks], [value for _, value in config.blocks]
    return " ".join(names), [config.num_warps, config.num_stages, config.max_registers or 0, *values]


def _read(blocks: str, config: Sequence[int]) -> Config | None:
    """The configuration that `_written` wrote."""
    if not config:
        return None
    num_warps, num_stages, max_registers, *values = config
    return Config(tuple(zip(blocks.split(), values, strict=True)), num_warps, num_stages, max_registers or None)


def _nothing(like: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.float32, device=like.device)


def _rows_and_lse(q: Tensor, return_lse: bool) -> tuple[Tensor, Tensor]:
    """Fake results of both attentions: `[rows, heads, head_dim]` and fp32 `[heads, rows]`, contiguous."""
    rows, heads, head_dim = q.shape
    out = torch.empty((rows, heads, head_dim), dtype=q.dtype, device=q.device)
    return out, torch.empty((heads, rows), dtype=torch.float32, device=q.device) if return_lse else _nothing(q)


def _call_varlen_attention(
    operator: Any, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, *,
    cu_seqlens_k: Tensor | None = None, max_seqlen_k: int | None = None, window: tuple[int, int] = (-1, -1),
    causal: bool = False, softmax_scale: float | None = None, position_bias: Tensor | None = None,
    bias_max_distance: int = 128, bias_bidirectional: bool = True, return_lse: bool = False,
    config: Config | None = None,
) -> Any:  # fmt: skip
    left, right = window
    out, lse = operator(
        q, k, v, cu_seqlens, max_seqlen, cu_seqlens_k, max_seqlen_k, left, right, causal, softmax_scale, position_bias,
        bias_max_distance, bias_bidirectional, return_lse, *_written(config),
    )  # fmt: skip
    return (out, lse) if return_lse else out


def _run_varlen_attention(
    launcher: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int,
    cu_seqlens_k: Tensor | None, max_seqlen_k: int | None, window_left: int, window_right: int, causal: bool,
    softmax_scale: float | None, position_bias: Tensor | None, bias_max_distance: int, bias_bidirectional: bool,
    return_lse: bool, blocks: str, config: Sequence[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    result = launcher(
        q, k, v, cu_seqlens, max_seqlen, cu_seqlens_k=cu_seqlens_k, max_seqlen_k=max_seqlen_k,
        window=(window_left, window_right), causal=causal, softmax_scale=softmax_scale, position_bias=position_bias,
        bias_max_distance=bias_max_distance, bias_bidirectional=bias_bidirectional, return_lse=return_lse,
        config=_read(blocks, config),
    )  # fmt: skip
    return result if return_lse else (result, _nothing(q))


def _fake_varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, cu_seqlens_k: Tensor | None,
    max_seqlen_k: int | None, window_left: int, window_right: int, causal: bool, softmax_scale: float | None,
    position_bias: Tensor | None, bias_max_distance: int, bias_bidirectional: bool, return_lse: bool,
    blocks: str, config: Sequence[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _rows_and_lse(q, return_lse)


def _call_decode_attention(
    operator: Any, q: Tensor, k: Tensor, v: Tensor, starts: Tensor, lengths: Tensor, max_length: int, *,
    softmax_scale: float | None = None, position_bias: Tensor | None = None, bias_max_distance: int = 128,
    bias_bidirectional: bool = False, query_positions: Tensor | None = None, return_lse: bool = False,
    config: Config | None = None,
) -> Any:  # fmt: skip
    out, lse = operator(
        q, k, v, starts, lengths, max_length, softmax_scale, position_bias, bias_max_distance, bias_bidirectional,
        query_positions, return_lse, *_written(config),
    )  # fmt: skip
    return (out, lse) if return_lse else out


def _run_decode_attention(
    launcher: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, starts: Tensor, lengths: Tensor, max_length: int,
    softmax_scale: float | None, position_bias: Tensor | None, bias_max_distance: int, bias_bidirectional: bool,
    query_positions: Tensor | None, return_lse: bool, blocks: str, config: Sequence[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    result = launcher(
        q, k, v, starts, lengths, max_length, softmax_scale=softmax_scale, position_bias=position_bias,
        bias_max_distance=bias_max_distance, bias_bidirectional=bias_bidirectional, query_positions=query_positions,
        return_lse=return_lse, config=_read(blocks, config),
    )  # fmt: skip
    return result if return_lse else (result, _nothing(q))


def _fake_decode_attention(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, lengths: Tensor, max_length: int, softmax_scale: float | None,
    position_bias: Tensor | None, bias_max_distance: int, bias_bidirectional: bool, query_positions: Tensor | None,
    return_lse: bool, blocks: str, config: Sequence[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _rows_and_lse(q, return_lse)


def _call_rope(
    operator: Any, q: Tensor, k: Tensor, rows: Tensor, cos: Tensor, sin: Tensor, *, config: Config | None = None
) -> Any:
    return operator(q, k, rows, cos, sin, *_written(config))


def _run_rope(
    launcher: Callable[..., Any],
    q: Tensor,
    k: Tensor,
    rows: Tensor,
    cos: Tensor,
    sin: Tensor,
    blocks: str,
    config: Sequence[int],
) -> tuple[Tensor, Tensor]:
    return launcher(q, k, rows, cos, sin, config=_read(blocks, config))


def _fake_rope(
    q: Tensor, k: Tensor, rows: Tensor, cos: Tensor, sin: Tensor, blocks: str, config: Sequence[int]
) -> tuple[Tensor, Tensor]:
    out_q, out_k = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    return out_q, out_k


def _call_pool(
    operator: Any, hidden: Tensor, cu_seqlens: Tensor, *, mode: str, skip: int = 0, normalize: bool = False,
    return_finite: bool = False, config: Config | None = None,
) -> Any:  # fmt: skip
    pooled, finite = operator(hidden, cu_seqlens, mode, skip, normalize, return_finite, *_written(config))
    return (pooled, finite) if return_finite else pooled


def _run_pool(
    launcher: Callable[..., Any], hidden: Tensor, cu_seqlens: Tensor, mode: str, skip: int, normalize: bool,
    return_finite: bool, blocks: str, config: Sequence[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    result = launcher(
        hidden, cu_seqlens, mode=mode, skip=skip, normalize=normalize, return_finite=return_finite,
        config=_read(blocks, config),
    )  # fmt: skip
    return result if return_finite else (result, _nothing(hidden).bool())


def _fake_pool(
    hidden: Tensor,
    cu_seqlens: Tensor,
    mode: str,
    skip: int,
    normalize: bool,
    return_finite: bool,
    blocks: str,
    config: Sequence[int],
) -> tuple[Tensor, Tensor]:
    texts = cu_seqlens.shape[0] - 1
    pooled = torch.empty((texts, hidden.shape[1]), dtype=torch.float32, device=hidden.device)
    return pooled, torch.empty(texts if return_finite else 0, dtype=torch.bool, device=hidden.device)


def _call_embed(
    operator: Any, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor | None, word: Tensor,
    position: Tensor | None = None, token_type: Tensor | None = None, norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None, *, eps: float | None = None, config: Config | None = None,
) -> Any:  # fmt: skip
    return operator(
        input_ids,
        position_ids,
        token_type_ids,
        word,
        position,
        token_type,
        norm_weight,
        norm_bias,
        eps,
        *_written(config),
    )


def _run_embed(
    launcher: Callable[..., Any], input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor | None, word: Tensor,
    position: Tensor | None, token_type: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None,
    eps: float | None, blocks: str, config: Sequence[int],
) -> Tensor:  # fmt: skip
    return launcher(
        input_ids, position_ids, token_type_ids, word, position, token_type, norm_weight, norm_bias, eps=eps,
        config=_read(blocks, config),
    )  # fmt: skip


def _fake_embed(
    input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor | None, word: Tensor, position: Tensor | None,
    token_type: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float | None,
    blocks: str, config: Sequence[int],
) -> Tensor:  # fmt: skip
    return torch.empty((input_ids.shape[0], word.shape[1]), dtype=word.dtype, device=word.device)


def _call_trigram(
    operator: Any, input_ids: Tensor, cu_seqlens: Tensor, word: Tensor, *, config: Config | None = None
) -> Any:
    return operator(input_ids, cu_seqlens, word, *_written(config))


def _run_trigram(
    launcher: Callable[..., Any],
    input_ids: Tensor,
    cu_seqlens: Tensor,
    word: Tensor,
    blocks: str,
    config: Sequence[int],
) -> Tensor:
    return launcher(input_ids, cu_seqlens, word, config=_read(blocks, config))


def _fake_trigram(input_ids: Tensor, cu_seqlens: Tensor, word: Tensor, blocks: str, config: Sequence[int]) -> Tensor:
    return torch.empty((input_ids.shape[0], 3 * word.shape[1]), dtype=word.dtype, device=word.device)


OPERATORS: dict[str, Operator] = {
    "varlen_attention": Operator(
        "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, SymInt max_seqlen, Tensor? cu_seqlens_k, "
        "SymInt? max_seqlen_k, SymInt window_left, SymInt window_right, bool causal, float? softmax_scale, "
        "Tensor? position_bias, SymInt bias_max_distance, bool bias_bidirectional, bool return_lse, "
        "str blocks, SymInt[] config) -> (Tensor, Tensor)",
        _call_varlen_attention,
        _run_varlen_attention,
        _fake_varlen_attention,
    ),
    "decode_attention": Operator(
        "(Tensor q, Tensor k, Tensor v, Tensor starts, Tensor lengths, SymInt max_length, float? softmax_scale, "
        "Tensor? position_bias, SymInt bias_max_distance, bool bias_bidirectional, Tensor? query_positions, "
        "bool return_lse, str blocks, SymInt[] config) -> (Tensor, Tensor)",
        _call_decode_attention,
        _run_decode_attention,
        _fake_decode_attention,
    ),
    "rope": Operator(
        "(Tensor q, Tensor k, Tensor rows, Tensor cos, Tensor sin, str blocks, SymInt[] config) -> (Tensor, Tensor)",
        _call_rope,
        _run_rope,
        _fake_rope,
    ),
    "pool": Operator(
        "(Tensor hidden, Tensor cu_seqlens, str mode, SymInt skip, bool normalize, bool return_finite, "
        "str blocks, SymInt[] config) -> (Tensor, Tensor)",
        _call_pool,
        _run_pool,
        _fake_pool,
    ),
    "embed": Operator(
        "(Tensor input_ids, Tensor position_ids, Tensor? token_type_ids, Tensor word, Tensor? position, "
        "Tensor? token_type, Tensor? norm_weight, Tensor? norm_bias, float? eps, str blocks, "
        "SymInt[] config) -> Tensor",
        _call_embed,
        _run_embed,
        _fake_embed,
    ),
    "trigram": Operator(
        "(Tensor input_ids, Tensor cu_seqlens, Tensor word, str blocks, SymInt[] config) -> Tensor",
        _call_trigram,
        _run_trigram,
        _fake_trigram,
    ),
}
