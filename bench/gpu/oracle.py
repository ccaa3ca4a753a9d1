"""Right or wrong: a kernel's output held against plain PyTorch in fp64, by the rule that all kernels are held to.

    max|kernel - ref64| <= 2 * max|eager in the same dtype - ref64| + eps(dtype) * max|ref64|

The oracle of a long text is large (`[heads, length, length]`, several times over), so heads are taken in groups that
fit, and a caller may choose the texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...engine.ops.attention import varlen_attention as eager_attention
from .case import Figures
from .problem import BIAS_REACH, Inputs, alone, last_queries

__all__ = ["Verdict", "bits", "check_attention", "relative_error", "two_times_rule"]

COPIES = 8
"""Matrices `[length, length]` of 8 bytes that the oracle holds at once for one head."""


@dataclass
class Verdict:
    """The worst that was seen; grows with every `add`.

    Attributes:
        ratio: largest error over its bound; above 1 the rule is broken.
        error: largest error of the kernel.
        eager_error: largest error of eager in the same dtype.
        broken: where the rule was broken, or what was not finite, in words; the first of them.
    """

    ratio: float = 0.0
    error: float = 0.0
    eager_error: float = 0.0
    broken: str | None = None

    def add(self, where: str, got: Tensor, eager: Tensor, reference: Tensor) -> None:
        """Hold one piece against its reference."""
        ratio, error, eager_error, reason = two_times_rule(got, eager, reference)
        self.ratio, self.error = max(self.ratio, ratio), max(self.error, error)
        self.eager_error = max(self.eager_error, eager_error)
        if reason is not None and self.broken is None:
            self.broken = f"{where}: {reason}"

    def figures(self) -> Figures:
        return {"error": self.error, "eager_error": self.eager_error, "of_bound": self.ratio}


def two_times_rule(got: Tensor, eager: Tensor, reference: Tensor) -> tuple[float, float, float, str | None]:
    """Error over bound, error, eager's error, and the reason if the rule is broken."""
    if got.shape != reference.shape or got.dtype != eager.dtype:
        return float("inf"), float("inf"), 0.0, f"{list(got.shape)} {got.dtype}, expected {list(reference.shape)}"
    if got.numel() == 0:
        return 0.0, 0.0, 0.0, None
    wide = got.double()
    if not torch.equal(wide.isfinite(), reference.isfinite()):
        wrong = int((wide.isfinite() != reference.isfinite()).sum())
        return float("inf"), float("inf"), 0.0, f"{wrong} values finite where the reference is not, or the other way"
    if not torch.equal(wide[~wide.isfinite()], reference[~reference.isfinite()]):
        return float("inf"), float("inf"), 0.0, "other infinities than the reference, or NaN"
    infinite = ~reference.isfinite()
    right = reference.masked_fill(infinite, 0.0)
    error = float((wide.masked_fill(infinite, 0.0) - right).abs().max())
    eager_error = float((eager.double().masked_fill(infinite, 0.0) - right).abs().max())
    bound = 2.0 * eager_error + torch.finfo(got.dtype).eps * float(right.abs().max())
    # Zeros that must be zeros have a bound of 0, and are right only if they are.
    ratio = error / bound if bound else (0.0 if error == 0.0 else float("inf"))
    reason = None if error <= bound else f"error {error:.3e}, allowed {bound:.3e} (eager {eager_error:.3e})"
    return ratio, error, eager_error, reason


def relative_error(got: Tensor, reference: Tensor) -> float:
    """Length of the difference over the length of the reference; NaN where `got` has one."""
    return float((got.double() - reference).norm() / reference.norm().clamp(min=1e-300))


def bits(x: Tensor) -> Tensor:
    """The same memory as integers, so that NaN equals itself and -0 is not 0."""
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def check_attention(
    inputs: Inputs,
    out: Tensor,
    lse: Tensor | None,
    memory: int,
    texts: Iterable[int] | None = None,
    most_queries: int | None = None,
    visit: Callable[[slice, slice, Tensor, Tensor], None] | None = None,
) -> Verdict:
    """Hold `out` (and `lse`) against the oracle, text by text and a few heads at a time.

    Each text has a bound of its own: the outputs of long texts are small beside those of short ones.

    Args:
        inputs: what the kernel was given.
        out: `[tokens, heads, head_dim]`, what it returned.
        lse: `[heads, tokens]`, or None.
        memory: bytes the oracle may take.
        texts: which texts; all if None.
        most_queries: of each text, look only at as many queries, its last ones.
        visit: called with rows, heads, and what eager gives for them in the same dtype and in fp64.
    """
    verdict = Verdict()
    edges = [0, *torch.tensor(inputs.problem.lengths, dtype=torch.int64).cumsum(0).tolist()]
    for text in range(len(inputs.problem.lengths)) if texts is None else texts:
        rows = slice(edges[text], edges[text + 1])
        if rows.start == rows.stop:
            continue
        single = alone(inputs, text)
        if most_queries is not None:
            single = last_queries(single, most_queries)
            rows = slice(rows.stop - single.problem.tokens, rows.stop)
        for heads, heads_k in _head_groups(single, memory):
            reference, reference_lse = _eager(single, heads, heads_k, torch.float64)
            eager, eager_lse = _eager(single, heads, heads_k, inputs.q.dtype)
            where = f"text {text} ({rows.stop - rows.start} tokens), heads {heads.start}..{heads.stop - 1}"
            verdict.add(where, out[rows, heads], eager, reference)
            if lse is not None:
                verdict.add(f"LSE of {where}", lse[heads, rows], eager_lse, reference_lse)
            if visit is not None:
                visit(rows, heads, eager, reference)
    return verdict


def _head_groups(single: Inputs, memory: int) -> list[tuple[slice, slice]]:
    """Slices of q's heads and of the heads of k that serve them, as many at a time as fit."""
    heads, heads_k = single.q.shape[1], single.k.shape[1]
    group = heads // heads_k
    matrix = max(len(single.q), 1) * max(len(single.k), 1) * 8 * COPIES
    if group > 1 and matrix * group > memory:
        return [(slice(head, head + 1), slice(head // group, head // group + 1)) for head in range(heads)]
    step = max(min(memory // (matrix * group), heads_k), 1)
    starts = range(0, heads_k, step)
    return [(slice(at * group, min(at + step, heads_k) * group), slice(at, min(at + step, heads_k))) for at in starts]


def _eager(single: Inputs, heads: slice, heads_k: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    options = single.options()
    if single.position_bias is not None:
        options |= {"position_bias": single.position_bias[:, heads].to(dtype), "bias_max_distance": BIAS_REACH}
    q, k, v = single.q[:, heads].to(dtype), single.k[:, heads_k].to(dtype), single.v[:, heads_k].to(dtype)
    result = eager_attention(q, k, v, *single.arguments()[3:], **options, return_lse=True)
    assert isinstance(result, tuple)
    return result
