"""The training losses of the task heads: what transformers computes, on tokens that are there.

Half-precision logits are widened first: a cross-entropy over thousands of classes does not fit in eight bits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..batch import PackedBatch
from ..errors import InputError

__all__ = ["IGNORED", "class_loss", "next_token_loss", "sequence_loss", "span_loss"]

IGNORED = -100
"""Label of what does not count."""


def class_loss(logits: Tensor, labels: Tensor, ignored: int = IGNORED) -> Tensor:
    """Mean cross-entropy.

    Args:
        logits: `[items, classes]`.
        labels: int64 of as many items; `ignored` leaves one out.

    Raises:
        InputError: another number of labels, or one that is no class.
    """
    if labels.is_floating_point():
        raise InputError(f"labels: expected whole numbers, got {str(labels.dtype).removeprefix('torch.')}")
    flat = labels.reshape(-1).to(logits.device)
    if len(flat) != len(logits):
        raise InputError(f"labels: expected {len(logits)} of them, got shape {list(labels.shape)}")
    flat = flat.long()
    if flat.device.type == "cpu":  # on a GPU looking would wait for the device
        wrong = flat[(flat != ignored) & ((flat < 0) | (flat >= logits.shape[-1]))]
        if len(wrong):
            raise InputError(f"labels: expected 0 to {logits.shape[-1] - 1}, or {ignored}, got {wrong[0].item()}")
    return F.cross_entropy(_wide(logits), flat, ignore_index=ignored)


def next_token_loss(logits: Tensor, labels: Tensor, batch: PackedBatch) -> Tensor:
    """Mean cross-entropy of each label with what was predicted one token before it, within each text.

    Args:
        logits: `[tokens, classes]`, packed.
        labels: int64 `[tokens]`, packed; -100 leaves one out.
        batch: where the texts begin and end.

    Raises:
        InputError: another number of labels, or one that is no class.
    """
    if len(labels) != len(logits):
        raise InputError(f"labels: expected {len(logits)} of them, got shape {list(labels.shape)}")
    following = labels.roll(-1)
    ends = batch.cu_seqlens[1:][batch.cu_seqlens.diff() > 0].long() - 1
    return class_loss(logits, following.index_fill(0, ends.to(following.device), IGNORED))


def sequence_loss(logits: Tensor, labels: Tensor, problem_type: str | None) -> Tensor:
    """The loss of sequence classification: mean squared error, cross-entropy, or binary cross-entropy of each label.

    Args:
        logits: `[batch, labels]`.
        labels: `[batch]` or `[batch, labels]`.
        problem_type: of the configuration; None: one label is a regression, integer labels are a class each, and other
            labels are one yes or no for each class.
    """
    count = logits.shape[-1]
    labels = labels.to(logits.device)
    if problem_type is None:
        whole = labels.dtype in (torch.int64, torch.int32)
        problem_type = "regression" if count == 1 else f"{'single' if whole else 'multi'}_label_classification"
    if problem_type == "single_label_classification":
        return class_loss(logits.reshape(-1, count), labels)
    if labels.numel() != logits.numel():
        raise InputError(f"labels: expected shape {list(logits.shape)}, got {list(labels.shape)}")
    labels = labels.reshape(logits.shape)
    wide = _wide(logits)
    if problem_type == "regression":
        return F.mse_loss(wide, labels.to(wide.dtype))
    return F.binary_cross_entropy_with_logits(wide, labels.to(wide.dtype))


def span_loss(start_logits: Tensor, end_logits: Tensor, start: Tensor, end: Tensor, present: Tensor) -> Tensor:
    """Mean cross-entropy of the first and the last token of an answer, each over the tokens of its own text.

    Args:
        start_logits: `[batch, sequence]`, the lowest finite value at padding; `end_logits` likewise.
        start: int64 `[batch]` or `[batch, 1]`, indices into the sequence; `end` likewise. What points at no token is
            left out.
        present: bool `[batch, sequence]`, where there are tokens.
    """
    return (_position_loss(start_logits, start, present) + _position_loss(end_logits, end, present)) / 2


def _position_loss(logits: Tensor, position: Tensor, present: Tensor) -> Tensor:
    width = logits.shape[1]
    if position.is_floating_point():
        found = str(position.dtype).removeprefix("torch.")
        raise InputError(f"start_positions, end_positions: expected whole numbers, got {found}")
    position = position.reshape(-1).to(logits.device).clamp(min=0)
    if len(position) != len(logits):
        raise InputError(f"start_positions, end_positions: expected {len(logits)} of them, got {len(position)}")
    inside = position < width
    known = inside & present.gather(1, position.clamp(max=width - 1)[:, None])[:, 0]
    # Padding is as far below the rest as can be, and so adds nothing to the sum of the softmax.
    return F.cross_entropy(_wide(logits), position.where(known, IGNORED), ignore_index=IGNORED)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
