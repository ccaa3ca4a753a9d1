"""Varlen attention in a plain PyTorch module: no model, no configuration, no padding.

    python docs/examples/plain_pytorch.py

packs four texts of 3 to 90 tokens into `[tokens, heads, head_dim]`, attends to each of them alone, and sets the result
beside torch's own attention on each text. On a GPU the Triton kernel runs; without one the eager function does, which
has the same signature and any dtype. See docs/kernels_api.md.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LENGTHS = (17, 90, 3, 41)


def varlen_attention(device: str) -> Callable[..., Tensor]:
    """The kernel where there is a GPU for it, else the function that says what the kernel computes."""
    if device == "cuda":
        from padless.kernels.attention import varlen_attention
    else:
        from padless.engine.ops.attention import varlen_attention
    return varlen_attention  # type: ignore[return-value]


class PackedAttention(nn.Module):
    """Self-attention of every text of a packed batch to itself."""

    def __init__(self, hidden: int, heads: int, device: str) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden, device=device)
        self.attention = varlen_attention(device)

    def forward(self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """`[tokens, hidden]` to `[tokens, hidden]`; text i is rows `cu_seqlens[i]:cu_seqlens[i + 1]`."""
        q, k, v = self.qkv(x).view(len(x), 3, self.heads, -1).unbind(1)
        return self.attention(q, k, v, cu_seqlens, max_seqlen).flatten(1)


def main() -> None:
    """Run it, and print how far it is from torch's attention on each text."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        print("no CUDA device: the eager function of the same signature runs in place of the kernel")
    torch.manual_seed(0)
    lengths = torch.tensor(LENGTHS)
    cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).to(device, torch.int32)
    layer = PackedAttention(64, 4, device)
    x = torch.randn(int(lengths.sum()), 64, device=device)
    with torch.no_grad():
        out = layer(x, cu_seqlens, int(lengths.max()))
        expected = []
        for text in layer.qkv(x).split(LENGTHS):
            q, k, v = text.view(len(text), 3, 4, 16).permute(1, 2, 0, 3)
            expected.append(F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1))
    difference = float((out - torch.cat(expected)).abs().max())
    print(f"{len(LENGTHS)} texts, {len(x)} tokens, 0 of them padding; largest difference to torch: {difference:.1e}")


if __name__ == "__main__":
    main()
