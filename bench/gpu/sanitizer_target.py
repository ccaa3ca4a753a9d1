"""The program that part `sanitizer` watches: one tiny call of each kernel of a group.

    python -m padless.bench.gpu.sanitizer_target attention|products|rows

Sizes are odd, so that every mask is needed, and heads and widths those of models, so that the usual tilings run. What
is around a kernel (making inputs, preparing weights) stays small: the tool slows down all of it.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace

import torch

from ...engine.contract import Call
from .case import Context
from .correctness import HOSTILE_KEYS
from .decode import make_decode
from .fused_problems import head, linear, mobilebert_in, mobilebert_out, norm, norm_linear
from .problem import Problem, make_inputs
from .sanitizer_output import DONE, RAN

__all__ = ["GROUPS", "calls"]

GROUPS = ("attention", "products", "rows")
TOKENS = 131
LENGTHS = (0, 1, 65, 0, 130, 33)
HALF = torch.bfloat16

Calls = dict[str, Callable[[], object]]


def calls(group: str, context: Context) -> Calls:
    """The calls of one group by name; inputs are made when one is called."""
    return {"attention": _attention, "products": _products, "rows": _rows}[group](context)


def _attention(context: Context) -> Calls:
    base = Problem(LENGTHS, 2, 64, HALF)
    problems = {
        "full": base,
        "sliding": replace(base, window=(64, 64)),
        "causal": replace(base, causal=True),
        "bias": replace(base, bias="both"),
        "cross": replace(base, lengths_k=HOSTILE_KEYS[: len(LENGTHS)]),
        "grouped heads": replace(base, heads=4, heads_k=2),
        "head of 24": replace(base, head_dim=24),
        "head of 32": replace(base, head_dim=32),
        "head of 128": replace(base, head_dim=128),
        "fp32": replace(base, dtype=torch.float32),
    }

    def attend(problem: Problem) -> object:
        from ...kernels.attention import varlen_attention

        inputs = make_inputs(problem, context.device)
        return varlen_attention(*inputs.arguments(), **inputs.options(), return_lse=True)

    def decode() -> object:
        from ...kernels.decode import decode_attention

        return decode_attention(*make_decode([0, 1, 65, 257], 257, 2, 64, context), 257)

    found: Calls = {name: lambda problem=problem: attend(problem) for name, problem in problems.items()}
    return {**found, "decode": decode}


def _products(context: Context) -> Calls:
    makes = {
        "gelu and bias": linear(96, 200, epilogue="gelu", bias=True),
        "gate": linear(96, 208, epilogue="gelu", gated=True),
        "rope": linear(96, 384, head_dim=64),
        "residual": linear(200, 96, residual=True, bias=True),
        "plain, odd widths": linear(72, 40),
        "norm and product": norm_linear(96, 200, norm="layer_norm"),
        "norm, product and gate": norm_linear(64, 96, norm="rms_norm", epilogue="gelu_tanh", gated=True),
        "MobileBERT, in": mobilebert_in(512, 128),
        "MobileBERT, out": mobilebert_out(512, 128, 512, 4),
        "head": head(96, 1003, 5),
    }
    found: Calls = {name: lambda make=make: make(context, HALF, TOKENS).ours() for name, make in makes.items()}
    drawn = _drawing(context)

    def logits() -> object:
        from ...kernels.mlm_head import mlm_head

        dense, bias, scale, shift = drawn(96, 96), drawn(96), drawn(96), drawn(96)
        # MobileBERT's decoder: a part of its width is the word embeddings, and a part its own.
        return mlm_head(
            drawn(TOKENS, 96), dense, bias, scale, shift, drawn(1003, 64), drawn(1003), drawn(32, 1003)
        )  # fmt: skip

    def without_statistics() -> object:
        from ...kernels import norm_linear as kernels

        facts = {"hidden": 200, "inner": 96, "norm": "layer_norm"}
        call = Call("norm_linear", context.device.type, HALF, **facts)
        weights = kernels.prepare(drawn(96), drawn(96), drawn(200, 96), None, call=call)
        return kernels.norm_linear(drawn(TOKENS, 96), *weights, norm="layer_norm", eps=1e-6)

    return found | {"all logits, two tables": logits, "norm and product, without statistics": without_statistics}


def _drawing(context: Context) -> Callable[..., torch.Tensor]:
    return lambda *shape: torch.randn(shape, device=context.device).to(HALF)


def _rows(context: Context) -> Calls:
    drawn, device = _drawing(context), context.device
    ids = torch.arange(TOKENS, device=device) * 7 % 50
    lengths = (0, 1, 65, 0, TOKENS - 66)
    edges = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)

    def embed() -> object:
        from ...kernels.embed import embed

        tables = drawn(50, 200), drawn(16, 200), drawn(2, 200), drawn(200), drawn(200)
        return embed(ids, ids % 16, ids % 2, *tables, eps=1e-12)

    def trigram() -> object:
        from ...kernels.trigram import trigram

        return trigram(ids, edges, drawn(50, 40))

    def rope() -> object:
        from ...kernels.rope import rope

        fused = drawn(TOKENS, 6, 64)
        tables = (torch.rand(16, 32, device=device) for _ in range(2))
        return rope(fused[:, :2], fused[:, 2:4], ids % 16, *tables)

    def pool(mode: str) -> object:
        from ...kernels.pool import pool

        return pool(drawn(TOKENS, 200), edges, mode=mode, normalize=True)

    found: Calls = {"embed": embed, "trigram": trigram, "rope": rope}
    found |= {f"pool, {mode}": lambda mode=mode: pool(mode) for mode in ("mean", "max", "cls", "lasttoken")}
    norms = {f"norm, {kind}": norm(200, kind) for kind in ("layer", "rms", "none")}
    return found | {name: lambda make=make: make(context, HALF, TOKENS).ours() for name, make in norms.items()}


def main(group: str) -> None:
    """Make the calls, and tell of each."""
    # Whoever started this may be gone before it could end it.
    signal.alarm(int(os.environ.get("PADLESS_SANITIZED_SECONDS", "85")))
    context = Context(torch.device("cuda", 0), dry=False, memory=1 << 28)
    with torch.inference_mode():
        for name, call in calls(group, context).items():
            call()
            torch.cuda.synchronize()
            print(RAN, name, flush=True)
    print(DONE, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
