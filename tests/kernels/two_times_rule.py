"""The one rule by which a kernel is right: it errs at most twice as much as eager PyTorch in the same dtype."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["assert_two_times_rule"]


def assert_two_times_rule(
    got: Tensor, eager_same_dtype: Tensor, reference64: Tensor, what: str = "result", *, size: float = 0.0
) -> None:
    """`max|got - ref64| <= 2 * max|eager - ref64| + eps(dtype) * max|ref64|`; infinities and NaN where ref64 has them.

    Args:
        got: what the kernel computed.
        eager_same_dtype: the eager op on the same inputs; gives shape and dtype.
        reference64: the eager op on the same inputs in fp64.
        what: the name of the result, for the message.
        size: how large the terms are of which the result is a sum, where it may be one number that happens to be near
            0, and eager's error by luck too: eps is taken of this size at least.
    """
    assert got.shape == eager_same_dtype.shape == reference64.shape, (what, got.shape, reference64.shape)
    assert got.dtype == eager_same_dtype.dtype, (what, got.dtype, eager_same_dtype.dtype)
    assert reference64.dtype == torch.float64, (what, reference64.dtype)
    # What the dtype cannot hold counts as infinite.
    expected = reference64.to(got.dtype).double()
    finite = expected.isfinite()
    found = got.double()
    assert torch.equal(found.isnan(), expected.isnan()), f"{what}: NaN in other places than the reference"
    infinite = expected.isinf()
    assert torch.equal(found.isinf(), infinite), f"{what}: infinite in other places than the reference"
    assert torch.equal(found[infinite], expected[infinite]), f"{what}: infinite with another sign than the reference"
    if not finite.any():
        return
    reference = reference64[finite]
    error = (found[finite] - reference).abs().max().item()
    # Where eager overflows on the way to a finite result, the kernel has to do better.
    eager_gap = (eager_same_dtype[finite].double() - reference).abs()
    eager_error = eager_gap[eager_gap.isfinite()].max().item() if eager_gap.isfinite().any() else 0.0
    bound = 2 * eager_error + torch.finfo(got.dtype).eps * max(size, reference.abs().max().item())
    assert error <= bound, f"{what}: error {error:.3e} above {bound:.3e}, eager's own is {eager_error:.3e}"
