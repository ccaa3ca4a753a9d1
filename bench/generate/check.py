"""Correctness before speed: the same tokens in fp32; in bf16 logits that rounding explains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .subjects import Subject

__all__ = ["check_logits", "check_tokens"]

_TEXTS, _STEPS = 3, 12
"""Of the comparison of logits, which are as wide as the vocabulary."""


def check_tokens(found: Tensor, expected: Tensor) -> str | None:
    """Why two greedy searches in fp32 are not the same; None where they are."""
    if found.shape != expected.shape:
        return f"tokens of shape {list(found.shape)}, expected {list(expected.shape)}"
    wrong = (found != expected).any(dim=1)
    return f"other tokens in {int(wrong.sum())} of {len(wrong)} sequences" if wrong.any() else None


@torch.no_grad()
def check_logits(subject: Subject, ours: Any, theirs: Any, written: Tensor) -> str | None:
    """Why logits in bf16 are not to be believed; None where they are: the 2x rule against transformers' own in bf16.

    Args:
        subject: its `theirs`, in fp32, is what both are held against.
        ours: in bf16.
        theirs: in bf16.
        written: int64 `[texts, tokens]`, what a greedy search in fp32 wrote, prompts included where there are any.
    """
    ids, mask, behind = subject.input_ids[:_TEXTS], subject.attention_mask[:_TEXTS], written[:_TEXTS]
    if subject.theirs.config.is_encoder_decoder:
        behind = behind[:, :_STEPS]
        inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": behind}
        there = torch.ones_like(behind)
    else:
        behind = behind[:, : ids.shape[1] + _STEPS]
        there = torch.nn.functional.pad(mask, (0, behind.shape[1] - mask.shape[1]), value=1)
        positions = (there.cumsum(dim=1) - 1).clamp(min=0)
        inputs = {"input_ids": behind, "attention_mask": there, "position_ids": positions}
    asked = there[:, -_STEPS:].bool()  # padding has no logits to speak of
    right, usual, found = (
        model(**inputs).logits[:, -_STEPS:][asked].double() for model in (subject.theirs, theirs, ours)
    )
    error, allowed = (found - right).abs().max(), 2 * (usual - right).abs().max() + 2**-8 * right.abs().max()
    # Written so that NaN fails.
    return None if error <= allowed else f"logits differ by {error:.2e}, expected at most {allowed:.2e}"
