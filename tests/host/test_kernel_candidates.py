"""What is shipped is among what tuning tries: an entry of a cache must be one of the candidates."""

from __future__ import annotations

import itertools

import pytest
import torch

from padless.engine.contract import Call
from padless.kernels import attention, decode

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("sm", [80, 86, 89, 90, 100, 120, None])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("module", [attention, decode], ids=lambda module: module.__name__)
def test_the_shipped_tiling_is_a_candidate(module: object, dtype: torch.dtype, sm: int | None) -> None:
    for head_dim, bias in itertools.product((16, 24, 60, 64, 80, 128, 256), ("none", "t5")):
        call = Call("attention", "cuda", dtype, sm=sm, head_dim=head_dim, window="full", bias=bias)
        assert module.default_config(call) in module.CANDIDATES, call  # type: ignore[attr-defined]
