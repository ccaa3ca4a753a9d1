"""Decoding in the GPU report: one query a sequence against kept keys, which is bound by memory and nothing else.

Bytes are counted once each: every visible key and value, and the queries and outputs, which are small beside them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ...engine.ops.decode import decode_attention as eager_decode
from .case import Case, Context, Figures
from .ceilings import copy_gigabytes
from .oracle import relative_error, two_times_rule
from .timing import measure, ratio_of_rounds

__all__ = ["cases", "decode_references", "make_decode"]

OURS = "padless"
COPY = "copy of as many bytes"


def cases(context: Context) -> list[Case]:
    """Self-attention of MegatronBERT's size and of mT5-small's, at one length and at mixed ones."""
    if context.dry:
        return [Case("decode/9", functools.partial(_decode, [9, 5, 0], 9, 2, 16))]
    even = [4096] * 64
    mixed = [2048 + 97 * row for row in range(64)]
    return [
        Case("decode/64 x 4096, 16 heads", functools.partial(_decode, even, 4096, 16, 64)),
        Case("decode/64 x 2048..8159, 16 heads", functools.partial(_decode, mixed, 8192, 16, 64)),
        Case("decode/64 x 4096, 6 heads", functools.partial(_decode, even, 4096, 6, 64)),
        Case("decode/4 x 32768, 16 heads", functools.partial(_decode, [32768] * 4, 32768, 16, 64)),
    ]


def make_decode(
    lengths: Sequence[int], capacity: int, heads: int, head_dim: int, context: Context, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Seeded q, k, v, starts and lengths of a static cache with room for `capacity` keys a sequence; bf16 as a rule."""
    dtype = dtype or (torch.float32 if context.dry else torch.bfloat16)
    generator = torch.Generator(context.device).manual_seed(3)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=context.device, dtype=torch.float32).to(dtype)

    sequences = len(lengths)
    q = drawn(sequences, heads, head_dim)
    k, v = (drawn(sequences * capacity, heads, head_dim) for _ in range(2))
    starts = torch.arange(sequences, device=context.device) * capacity
    return q, k, v, starts, torch.tensor(lengths, dtype=torch.int32, device=context.device)


def decode_references(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, lengths: Tensor, capacity: int, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What eager gives in the same dtype, and in fp64."""
    wide = None if bias is None else bias.double()
    eager = eager_decode(q, k, v, starts, lengths, capacity, position_bias=bias)
    reference = eager_decode(q.double(), k.double(), v.double(), starts, lengths, capacity, position_bias=wide)
    assert isinstance(eager, Tensor)
    assert isinstance(reference, Tensor)
    return eager, reference


def _decode(lengths: list[int], capacity: int, heads: int, head_dim: int, context: Context) -> Figures:
    from ...kernels.decode import decode_attention

    q, k, v, starts, counts = make_decode(lengths, capacity, heads, head_dim, context)
    visible = 2 * sum(lengths) * heads * head_dim * q.element_size() + 2 * q.numel() * q.element_size()

    def ours() -> Tensor:
        result = decode_attention(q, k, v, starts, counts, capacity)
        assert isinstance(result, Tensor)
        return result

    if context.warm:
        ours()
        return {"status": "ok"}
    eager, reference = decode_references(q, k, v, starts, counts, capacity)
    *_, broken = two_times_rule(ours(), eager, reference)
    if broken is not None:
        return {"status": "failed", "reason": broken}
    calls: dict[str, Callable[[], object]] = {OURS: ours}
    absent: dict[str, str] = {}
    if len(set(lengths)) > 1:
        absent["sdpa flash"] = "needs sequences of equal length"
    else:
        _add_sdpa(q, k, v, capacity, reference, calls, absent)
    # Half is read and half is written: as many bytes cross the memory bus as decoding must read.
    source = torch.randint(0, 1 << 30, (max(visible // 8, 1),), dtype=torch.int32, device=context.device)
    target = torch.empty_like(source)
    timings = measure(calls | {COPY: lambda: target.copy_(source)}, context)
    figures: Figures = {"status": "ok", "bytes": visible, "target_of_copy": 0.8, "absent": absent}
    if timings is None:
        return figures | {"timed": dict.fromkeys(calls)}
    figures["timed"] = {
        name: {
            **timing.figures(),
            "gbps": round(visible / timing.device.median / 1e3, 1),
            "ratio": round(ratio_of_rounds(timings, OURS, name), 3),
        }
        for name, timing in timings.items()
    }
    figures["timed"][COPY]["gbps"] = round(copy_gigabytes(source, timings[COPY].device.median), 1)
    return figures | {"of_copy": round(figures["timed"][OURS]["gbps"] / figures["timed"][COPY]["gbps"], 3)}


def _add_sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    capacity: int,
    reference: Tensor,
    calls: dict[str, Callable[[], object]],
    absent: dict[str, str],
) -> None:
    """torch's flash attention with one query a sequence; it too splits over the keys."""
    queries = q[:, :, None]
    keys, values = (x.unflatten(0, (-1, capacity)).transpose(1, 2) for x in (k, v))

    def call() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return scaled_dot_product_attention(queries, keys, values)

    try:
        error = relative_error(call()[:, :, 0], reference)
    except Exception as failure:
        absent["sdpa flash"] = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
        if q.device.type == "cuda":
            torch.cuda.synchronize()
    else:
        if error <= 2e-2:
            calls["sdpa flash"] = call
        else:
            absent["sdpa flash"] = f"wrong result: relative error {error:.2e}"
