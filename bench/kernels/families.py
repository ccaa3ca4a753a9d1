"""The sizes that the ops are measured at: one published checkpoint or more of each family that padless runs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FAMILIES", "TINY", "Family"]


@dataclass(frozen=True)
class Family:
    """The sizes of one checkpoint, by its `config.json`.

    Attributes:
        hidden: width of the residual stream.
        inner: width inside the feed-forward network, of one half where it is gated.
        heads: of the attention.
        head_dim: channels of a head.
        vocabulary: rows of the word embeddings.
        positions: rows of the position embeddings, or the longest text the model takes.
        epilogue: activation, a key of `ACTIVATIONS`.
        gated: whether half of the first feed-forward product gates the other.
        norm: "layer_norm", "rms_norm" or "no_norm".
        bias: whether products and norms have biases.
        rotates: queries and keys are turned by their positions (RoPE).
        before: norms stand in front of the products.
        window: keys that most of its layers see to the left and to the right, -1 for all.
    """

    hidden: int
    inner: int
    heads: int
    head_dim: int
    vocabulary: int
    positions: int = 512
    epilogue: str = "gelu"
    gated: bool = False
    norm: str = "layer_norm"
    bias: bool = True
    rotates: bool = False
    before: bool = False
    window: tuple[int, int] = (-1, -1)

    @property
    def attended(self) -> int:
        """Width of all heads side by side."""
        return self.heads * self.head_dim


FAMILIES: dict[str, Family] = {
    "MiniLM-L6": Family(384, 1536, 12, 32, 30522),
    "BERT-base": Family(768, 3072, 12, 64, 30522),
    "ModernBERT-base": Family(
        768, 1152, 12, 64, 50368, 8192, gated=True, bias=False, rotates=True, before=True, window=(64, 64)
    ),
    "MegatronBERT-345m": Family(1024, 4096, 16, 64, 29056, before=True),
    "mT5-small": Family(
        512, 1024, 6, 64, 250112, epilogue="gelu_tanh", gated=True, norm="rms_norm", bias=False, before=True
    ),
    # Its layers are 128 wide between two bottlenecks, as are its word embeddings.
    "MobileBERT": Family(512, 512, 4, 32, 30522, epilogue="relu", norm="no_norm"),
}

TINY: dict[str, Family] = {
    "MiniLM-L6": Family(16, 24, 2, 8, 61, 64),
    "BERT-base": Family(24, 40, 3, 8, 53, 64),
    "ModernBERT-base": Family(24, 12, 3, 8, 67, 64, gated=True, bias=False, rotates=True, before=True, window=(3, 3)),
    "MegatronBERT-345m": Family(32, 48, 4, 8, 59, 64, before=True),
    "mT5-small": Family(
        16, 20, 3, 8, 71, 64, epilogue="gelu_tanh", gated=True, norm="rms_norm", bias=False, before=True
    ),
    "MobileBERT": Family(32, 16, 2, 8, 53, 64, epilogue="relu", norm="no_norm"),
}
"""The same names and kinds in sizes for a test: nothing measured at them means anything."""
