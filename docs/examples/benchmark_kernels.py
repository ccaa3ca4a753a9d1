"""Time padless' attention beside torch's on a padded batch of the same texts.

    python docs/examples/benchmark_kernels.py [--texts 32] [--longest 256] [--rounds 20]

prints the median time of each with the 20th and 80th percentile, measured in turns, after both gave the same result.
Without a GPU the rows for CPUs are timed instead of the kernel. `padless bench kernels` does this for every op, against
every peer that is installed.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from padless.bench.timing import interleave, spread

ROWS = {
    "cuda": {"triton": "padless.kernels.attention"},
    "cpu": {"cpu": "padless.engine.ops.cpu.attention", "eager": "padless.engine.ops.attention"},
}
"""Of each device: row of the dispatch table, and the module of its `varlen_attention`."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, time and print."""
    options = parser().parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        print("no CUDA device: the rows for CPUs are timed, not the kernel")
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, options.longest + 1, (options.texts,), generator=generator)
    present = (torch.arange(int(lengths.max())) < lengths[:, None]).to(device)
    cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).to(device, torch.int32)
    shape = (options.texts, int(lengths.max()), 12, 32)
    padded = [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3)]
    packed = [x[present] for x in padded]
    calls: dict[str, Callable[[], Tensor]] = {
        name: partial(importlib.import_module(module).varlen_attention, *packed, cu_seqlens, int(lengths.max()))
        for name, module in ROWS[device].items()
    }
    q, k, v = (x.transpose(1, 2) for x in padded)
    mask = present[:, None, None, :]
    calls["torch, padded"] = lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    with torch.no_grad():
        for name, call in calls.items():
            out = call()
            out = out[present] if name.startswith("torch") else out
            reference = calls["torch, padded"]()[present]
            tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
            assert float((out - reference).abs().max()) <= tolerance, f"{name} computes something else"
        seconds = interleave({name: partial(_waited, call) for name, call in calls.items()}, options.rounds)
    real = int(lengths.sum())
    print(f"{options.texts} texts, {real} tokens, {present.numel() - real} places of padding, {dtype}, {device}")
    for name, times in seconds.items():
        found = spread([1e3 * each for each in times])
        print(f"{name:>14}  {found.median:8.3f} ms  ({found.p20:.3f} to {found.p80:.3f})")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--texts", type=int, default=32)
    made.add_argument("--longest", type=int, default=256, help="tokens of the longest text; lengths are drawn evenly")
    made.add_argument("--rounds", type=int, default=20)
    return made


def _waited(call: Callable[[], Tensor]) -> None:
    if call().is_cuda:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
