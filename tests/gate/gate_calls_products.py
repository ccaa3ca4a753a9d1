"""Products and norms, called as users' models call them: at the sizes of the families, see `gate_calls`."""

from __future__ import annotations

from typing import Any

import torch
from gate_calls import DTYPES, TOKENS, rows
from torch import Tensor

from padless.engine.contract import Call
from padless.kernels import linear, mlm_head, mobilebert, norm, norm_linear, row_statistics
from padless.kernels.launch import Config

__all__ = [
    "LINEAR_USES",
    "MORE_LINEAR_USES",
    "MORE_NORM_LINEAR_USES",
    "NORM_LINEAR_USES",
    "STATISTICS_USES",
    "call_linear",
    "call_linear_statistics",
    "call_mlm_head",
    "call_mobilebert_in",
    "call_mobilebert_out",
    "call_norm",
    "call_norm_linear",
    "call_row_statistics",
]

LINEAR_USES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "modernbert up": (2304, 768, {"epilogue": "gelu", "gated": True}),
    "modernbert qkv": (2304, 768, {"head_dim": 64}),
    "bert up": (3072, 768, {"epilogue": "gelu", "bias": True}),
    "bert down": (768, 3072, {"residual": True, "bias": True}),
    "mt5 up": (2048, 512, {"epilogue": "gelu_tanh", "gated": True, "wide": True}),
    "mt5 down": (512, 1024, {"residual": True, "stream": "fp32"}),
}
"""Outputs of the product, inputs, and what is asked for behind it."""

MORE_LINEAR_USES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "modernbert down": (768, 1152, {"residual": True}),
    "plain": (1000, 776, {"bias": True}),
    "modernbert-large up": (5248, 1024, {"epilogue": "gelu", "gated": True}),
    "modernbert-large qkv": (3072, 1024, {"head_dim": 64}),
    "modernbert-large down": (1024, 2624, {"residual": True}),
    "megatron up": (4096, 1024, {"epilogue": "gelu", "bias": True}),
    "megatron down": (1024, 4096, {"residual": True, "bias": True}),
    "minilm up": (1536, 384, {"epilogue": "gelu", "bias": True}),
    "minilm down": (384, 1536, {"residual": True, "bias": True}),
    "pooler": (768, 768, {"epilogue": "tanh", "bias": True}),
    "relu": (512, 128, {"epilogue": "relu", "bias": True}),
    "swiglu": (2304, 768, {"epilogue": "silu", "gated": True, "bias": True}),
}
"""Of the complete set alone."""

STATISTICS_USES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "modernbert down": (768, 1152, {"residual": True, "statistics": True}),
    "megatron down": (1024, 4096, {"residual": True, "bias": True, "statistics": True}),
    "mt5 down": (512, 1024, {"residual": True, "stream": "fp32", "statistics": True}),
    "gelu": (1000, 776, {"epilogue": "gelu", "bias": True, "statistics": True}),
}
"""Products that leave the statistics of their results."""

NORM_LINEAR_USES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "modernbert up": (2304, 768, {"epilogue": "gelu", "gated": True}),
    "modernbert qkv": (2304, 768, {"head_dim": 64}),
    "megatron up": (4096, 1024, {"epilogue": "gelu", "bias": True}),
    "mt5 up": (2048, 512, {"epilogue": "gelu_tanh", "gated": True, "norm": "rms_norm"}),
    "mt5 qkv": (1152, 512, {"norm": "rms_norm"}),
}

MORE_NORM_LINEAR_USES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "modernbert-large up": (5248, 1024, {"epilogue": "gelu", "gated": True}),
    "modernbert-large qkv": (3072, 1024, {"head_dim": 64}),
    "megatron qkv": (3072, 1024, {"bias": True}),
    "mt5-xxl up": (20_480, 4096, {"epilogue": "gelu_tanh", "gated": True, "norm": "rms_norm"}),
    "odd": (1000, 776, {"epilogue": "relu", "bias": True}),
}
"""Of the complete set alone."""


def call_linear(*, dtype: str, use: str, aligned: bool, config: Config | None) -> None:
    """use: a key of `LINEAR_USES` or `MORE_LINEAR_USES`."""
    _call_linear(*(LINEAR_USES | MORE_LINEAR_USES)[use], dtype=dtype, aligned=aligned, config=config)


def call_linear_statistics(*, dtype: str, use: str, aligned: bool, config: Config | None) -> None:
    """use: a key of `STATISTICS_USES`."""
    _call_linear(*STATISTICS_USES[use], dtype=dtype, aligned=aligned, config=config)


def _call_linear(
    out_features: int, in_features: int, asked: dict[str, Any], *, dtype: str, aligned: bool, config: Config | None
) -> None:
    gated, head_dim, kind = asked.get("gated", False), asked.get("head_dim"), DTYPES[dtype]
    width = out_features // 2 if gated else out_features
    x = rows(TOKENS, in_features, dtype=kind, aligned=aligned)
    weight = rows(out_features, in_features, dtype=kind, aligned=aligned)
    bias = torch.empty(out_features, dtype=kind) if asked.get("bias") else None
    if gated or head_dim:
        # What is written is what `prepare` gives: contiguous, whatever it was made from.
        call = Call("linear", "cuda", kind, hidden=out_features, gated=gated, rope=bool(head_dim), head_dim=head_dim)
        weight, bias = linear.prepare(weight, bias, call=call)
    options: dict[str, Any] = {"epilogue": asked.get("epilogue", "none"), "gated": gated, "wide": "wide" in asked}
    options["statistics"] = "statistics" in asked
    if asked.get("residual"):
        stream = DTYPES[asked.get("stream", dtype)]
        options["residual"] = rows(TOKENS, width, dtype=stream, aligned=aligned)
    if head_dim:
        cos, sin = rows(2, 8192, head_dim // 2, dtype=torch.float32, aligned=aligned).unbind(0)
        options |= {"rope": (torch.empty(TOKENS, dtype=torch.int64), cos, sin), "turned": out_features // 3 * 2}
    linear.linear(x, weight, bias, **options, config=config)


def call_norm_linear(*, dtype: str, use: str, statistics: str, aligned: bool, config: Config | None) -> None:
    """use: a key of `NORM_LINEAR_USES` or `MORE_NORM_LINEAR_USES`; statistics: "handed on" in runs of 64, or "own"."""
    out_features, in_features, asked = (NORM_LINEAR_USES | MORE_NORM_LINEAR_USES)[use]
    gated, head_dim, kind = asked.get("gated", False), asked.get("head_dim"), DTYPES[dtype]
    weight = rows(out_features, in_features, dtype=kind, aligned=aligned)
    added = torch.empty(out_features) if asked.get("bias") else None
    norm_kind = asked.get("norm", "layer_norm")
    options: dict[str, Any] = {"epilogue": asked.get("epilogue", "none"), "gated": gated, "norm": norm_kind}
    if head_dim:
        cos, sin = rows(2, 8192, head_dim // 2, dtype=torch.float32, aligned=aligned).unbind(0)
        options |= {"rope": (torch.empty(TOKENS, dtype=torch.int64), cos, sin), "turned": out_features // 3 * 2}
    if statistics == "handed on":
        options["statistics"] = torch.empty(TOKENS, -(-in_features // 64), 2)
    sums = torch.empty(out_features) if norm_kind == "layer_norm" else None
    x = rows(TOKENS, in_features, dtype=kind, aligned=aligned)
    norm_linear.norm_linear(x, weight, sums, added, eps=1e-5, **options, config=config)


def call_row_statistics(*, dtype: str, hidden: int, aligned: bool, config: Config | None) -> None:
    """Of rows that nobody left statistics of; its configuration is its own business."""
    row_statistics.row_statistics(rows(TOKENS, hidden, dtype=DTYPES[dtype], aligned=aligned))


def call_norm(*, dtype: str, hidden: int, kind: str, aligned: bool, config: Config | None) -> None:
    """kind: which norm, and whether a residual is added before, in the same dtype or in fp32."""
    name, _, residual = kind.partition(" + ")
    x = rows(TOKENS, hidden, dtype=DTYPES[dtype], aligned=aligned)
    weight, bias = rows(2, hidden, dtype=DTYPES[dtype], aligned=aligned).unbind(0)
    stream = {"": None, "residual": DTYPES[dtype], "fp32": torch.float32}[residual]
    added: Tensor | None = None if stream is None else rows(TOKENS, hidden, dtype=stream, aligned=aligned)
    match name:
        case "layer":
            norm.layer_norm(x, weight, bias, eps=1e-12, residual=added, config=config)
        case "layer without bias":
            norm.layer_norm(x, weight, None, eps=1e-5, residual=added, config=config)
        case "rms":
            norm.rms_norm(x, weight, eps=1e-6, residual=added, config=config)
        case "no norm":
            norm.no_norm(x, weight, bias, residual=added, wide=residual == "fp32", config=config)
        case _:
            raise ValueError(f"kind: expected a norm, got {kind}")


def call_mlm_head(*, dtype: str, family: str, asked: str, aligned: bool, config: Config | None) -> None:
    """family: whose sizes; asked: "top 5", "top 1" or "all" the logits."""
    hidden, width, vocabulary = {
        "bert": (768, 768, 30_522), "modernbert": (768, 768, 50_368), "mobilebert": (512, 128, 30_522),
    }[family]  # fmt: skip
    kind, count = DTYPES[dtype], 63
    dense, bias, weight = (torch.empty(size, dtype=kind) for size in ((hidden, hidden), (hidden,), (hidden,)))
    decoder = rows(vocabulary, width, dtype=kind, aligned=aligned)
    own = rows(hidden - width, vocabulary, dtype=kind, aligned=aligned) if width < hidden else None
    top_k = None if asked == "all" else int(asked.removeprefix("top "))
    mlm_head.mlm_head(
        rows(count, hidden, dtype=kind, aligned=aligned), dense, bias, weight, bias, decoder,
        torch.empty(vocabulary, dtype=kind), own, epilogue="gelu", top_k=top_k, config=config,
    )  # fmt: skip


FEW_TOKENS = 63
HIDDEN, WIDTH, INNER, NETWORKS = 512, 128, 512, 4
"""Of the published MobileBERT."""


def call_mobilebert_in(*, dtype: str, tokens: str, norm: str, aligned: bool, config: Config | None) -> None:
    """tokens: "many" or "few", for which there is another tiling."""
    kind, count = DTYPES[dtype], TOKENS if tokens == "many" else FEW_TOKENS
    line = torch.empty(WIDTH, dtype=kind)
    bottleneck = (torch.empty(WIDTH, HIDDEN, dtype=kind), line, line, line)
    projections = (torch.empty(2 * WIDTH, WIDTH, dtype=kind), torch.empty(2 * WIDTH, dtype=kind))
    x = rows(count, HIDDEN, dtype=torch.float32 if norm == "no_norm" else kind, aligned=aligned)
    mobilebert.mobilebert_in(x, *bottleneck, *bottleneck, *projections, *bottleneck[:2], norm=norm, config=config)


def call_mobilebert_out(*, dtype: str, tokens: str, norm: str, aligned: bool, config: Config | None) -> None:
    """tokens: as above."""
    kind, count = DTYPES[dtype], TOKENS if tokens == "many" else FEW_TOKENS
    stream = torch.float32 if norm == "no_norm" else kind
    line, stack, full = (torch.empty(size, dtype=kind) for size in (WIDTH, NETWORKS * WIDTH, HIDDEN))
    mobilebert.mobilebert_out(
        rows(count, WIDTH, dtype=kind, aligned=aligned),
        rows(count, WIDTH, dtype=stream, aligned=aligned),
        rows(count, HIDDEN, dtype=stream, aligned=aligned),
        torch.empty(WIDTH, WIDTH, dtype=kind), line, line, line,
        torch.empty(NETWORKS * INNER, WIDTH, dtype=kind), torch.empty(NETWORKS * INNER, dtype=kind),
        torch.empty(NETWORKS * WIDTH, INNER, dtype=kind), stack, stack, stack,
        torch.empty(HIDDEN, WIDTH, dtype=kind), full, full, full,
        networks=NETWORKS, norm=norm, config=config,
    )  # fmt: skip
