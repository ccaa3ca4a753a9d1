"""The head of a masked language model in Triton: `engine/ops/mlm_head.py`, on the rows that are asked for.

Maths: `x = layer_norm(activation(hidden W_d^T + b_d))`, then `x[:width] W^T + x[width:] V + b`, W the word embeddings
where they are tied, V the channels that MobileBERT's narrow word embeddings lack; all of it, or of each row the k
highest and the log-sum-exp.

    hidden ──linear + activation──> ──layer_norm──> x ──┬── all logits ──> [rows, vocab]
                                                        └── top k ──> pairs of each part ──joined──> values, ids, lse

Tiling: the transform is `linear.py` and `norm.py`, the products with the vocabulary are described in `top_k.py`; a
plain decoder whose logits are all wanted is `linear.py`'s GEMM.

What is fused: bias and activation behind the first product; V's product, the decoder's bias, the selection and the
softmax's sum behind the second. With `top_k` logits are never rounded nor written, where eager rounds them to the dtype
of the rows first: of two that differ by less than that, the higher comes first here, the lower id there.

Bytes: the decoder's `element * vocab * hidden` are read once, 47 MB for 30,522 tokens of 768 channels in 16 bits; the
rest is small beside them while rows are few. FLOPs: `2 * hidden * (hidden + vocab)` a row. Memory is the bound below
some 200 rows on an H200, products above.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from ..engine.contract import Call
from ..engine.errors import InputError
from .launch import Config
from .limits import (
    dtype_reasons,
    hidden_reasons,
    require_dtype,
    require_no_gradient,
    require_same_device,
    require_shape,
)
from .linear import linear
from .norm import layer_norm
from .registration import traceable
from .top_k import MAX_TOP_K, highest_logits, logits
from .tuned import Tuned

__all__ = ["CANDIDATES", "TUNED", "default_config", "mlm_head", "unsupported"]


def default_config(call: Call) -> Config:
    """Tiling of the products with the vocabulary where nothing was measured.

    64 rows fill the tensor cores' widest instruction, though most of them may be empty: the weights' way from memory
    takes longer. Steps of 32 channels with five in flight hold as much of it as 64 with three, in fewer registers. fp32
    products have no tensor core, and cost what rows there are. 128 parts are about a program for each multiprocessor;
    more would write more pairs. No number here may depend on how many rows there are.
    """
    if call.dtype == torch.float32:
        return Config.of(num_warps=8, num_stages=3, max_registers=128, BLOCK_M=16, BLOCK_N=64, BLOCK_K=16, PARTS=128)
    return Config.of(num_warps=8, num_stages=5, BLOCK_M=64, BLOCK_N=128, BLOCK_K=32, PARTS=128)


CANDIDATES = tuple(
    Config.of(num_warps=warps, num_stages=stages, BLOCK_M=rows, BLOCK_N=tokens, BLOCK_K=channels, PARTS=parts)
    for warps, rows, tokens in ((4, 16, 64), (4, 16, 128), (4, 64, 64), (8, 64, 64), (8, 64, 128), (8, 128, 128))
    for channels, stages in ((16, 3), (32, 3), (32, 5), (64, 3), (64, 4))
    for parts in (128, 256)
)
"""What tuning tries."""

TUNED = Tuned(__name__, default_config, CANDIDATES)
"""Which of them serves a call."""


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`."""
    return dtype_reasons(call) + hidden_reasons(call)


@traceable("mlm_head")
def mlm_head(
    hidden: Tensor,
    dense_weight: Tensor,
    dense_bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    decoder_weight: Tensor,
    decoder_bias: Tensor | None,
    own_weight: Tensor | None = None,
    *,
    epilogue: str = "gelu",
    eps: float = 1e-12,
    top_k: int | None = None,
    config: Config | None = None,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """As `engine/ops/mlm_head.py`, in fp32, fp16 or bf16, all tensors of one dtype; rows up to 8,192 wide.

    Beyond 64, `top_k` sorts logits that are written in fp32.

    Args:
        config: tiling of the products with the vocabulary to use instead of the shipped one.

    Raises:
        InputError: shapes, dtypes or devices do not fit together, `top_k` is below 1, or a gradient is asked for.
    """
    count = None if top_k is None else _checked_count(top_k)
    _check(hidden, dense_weight, dense_bias, norm_weight, norm_bias, decoder_weight, decoder_bias, own_weight)
    x = linear(hidden, dense_weight, dense_bias, epilogue=epilogue)
    assert isinstance(x, Tensor)
    normed = layer_norm(x, norm_weight, norm_bias, eps=eps)
    assert isinstance(normed, Tensor)
    weight, own = _dense(decoder_weight), None if own_weight is None or not len(own_weight) else _dense(own_weight)
    bias = None if decoder_bias is None else decoder_bias.contiguous()
    config = config or TUNED("mlm_head", hidden.device, hidden.dtype, hidden=hidden.shape[1])
    rows, vocab = hidden.shape[0], weight.shape[0]
    if count is not None and count <= MAX_TOP_K and rows and vocab:
        return highest_logits(normed, weight, bias, own, min(count, vocab), config)
    dtype = hidden.dtype if count is None else torch.float32
    if rows == 0 or vocab == 0:
        found = normed.new_empty((rows, vocab), dtype=dtype)
    elif own is None:
        found = linear(normed, weight, bias, wide=count is not None)
        assert isinstance(found, Tensor)
    else:
        found = logits(normed, weight, bias, own, dtype, config)
    if count is None:
        return found
    values, ids = found.sort(dim=1, descending=True, stable=True)
    return values[:, :count].contiguous(), ids[:, :count].contiguous(), found.logsumexp(dim=1)


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _checked_count(top_k: Any) -> int:
    try:
        count = 0 if isinstance(top_k, Tensor) else operator.index(top_k)
    except TypeError:
        count = 0
    if count < 1:
        raise InputError(f"mlm_head: top_k: expected None or an integer from 1 on, got {top_k!r}")
    return count


def _check(
    hidden: Tensor, dense_weight: Tensor, dense_bias: Tensor | None, norm_weight: Tensor, norm_bias: Tensor | None,
    decoder_weight: Tensor, decoder_bias: Tensor | None, own_weight: Tensor | None,
) -> None:  # fmt: skip
    """Refuse tensors that do not fit together."""
    given = {
        "hidden": hidden,
        "dense_weight": dense_weight,
        "dense_bias": dense_bias,
        "norm_weight": norm_weight,
        "norm_bias": norm_bias,
        "decoder_weight": decoder_weight,
        "decoder_bias": decoder_bias,
        "own_weight": own_weight,
    }
    present = {name: x for name, x in given.items() if x is not None}
    require_no_gradient("mlm_head", *present.values())
    require_dtype("mlm_head", **present)
    require_shape("mlm_head", "hidden", hidden, None, None)
    channels = hidden.shape[1]
    require_shape("mlm_head", "dense_weight", dense_weight, channels, channels)
    for name in ("dense_bias", "norm_weight", "norm_bias"):
        if name in present:
            require_shape("mlm_head", name, present[name], channels)
    require_shape("mlm_head", "decoder_weight", decoder_weight, None, channels if own_weight is None else None)
    vocab, width = decoder_weight.shape
    if decoder_bias is not None:
        require_shape("mlm_head", "decoder_bias", decoder_bias, vocab)
    if own_weight is not None:
        require_shape("mlm_head", "own_weight", own_weight, channels - width, vocab)
    require_same_device("mlm_head", **present)
