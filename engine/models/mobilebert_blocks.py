"""The layer of MobileBERT (Sun et al. 2020, sections 3.1 to 3.3): narrow inside, between two bottlenecks.

Where `no_norm` stands in for a norm nothing bounds the sums, so the residual stream is fp32 under half precision; only
what enters a GEMM or the attention is rounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..batch import PackedBatch
from ..ops.bind import BoundOp, Source
from .activations import ACTIVATIONS
from .blocks import Block, FeedForward, JoinedLayers, SelfAttention, attend, linear_op, norm_op
from .checkpointing import LayerStack
from .intact import TakingOver
from .mobilebert_config import MobileBertConfig
from .mobilebert_halves import entering, leaving, stacked
from .parameters import LayerNorm, Linear, NoNorm
from .record import Record

__all__ = ["DEFAULT_EPS", "NORMS", "MobileBertEncoder"]

DEFAULT_EPS = 1e-5
"""Of the layer norms that do not follow `layer_norm_eps`: of the embeddings, and of a layer's last narrow sum."""


class AddLayerNorm(LayerNorm, Block):
    """`normalization_type` "layer_norm", with the residual added before."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps=eps)
        self.op = norm_op(self)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """`[tokens, width]` to `[tokens, width]` in the dtype of the weights."""
        return self.op(input) if residual is None else self.op(input, residual=residual)[0]


class AddNoNorm(NoNorm, Block):
    """`normalization_type` "no_norm", with the residual added before."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width)
        weights = Source(self, "weight"), Source(self, "bias")
        self.op = BoundOp("no_norm", *weights, facts={"hidden": width}, wide=True)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """`[tokens, width]` to `[tokens, width]`, fp32 for half precision."""
        return self.op(input, residual=residual)


NORMS = {"layer_norm": AddLayerNorm, "no_norm": AddNoNorm}
"""By `normalization_type`."""


def dtype_of(layer: nn.Module) -> torch.dtype:
    """What a linear layer, or what was put in its place, computes in."""
    return next(layer.parameters()).dtype


class DenseNorm(Block):
    """A linear layer whose output is normalised, added to the residual stream before where one `adds`."""

    def __init__(
        self, in_features: int, width: int, kind: str, eps: float, dropout: float = 0.0, *, adds: bool = True
    ) -> None:
        super().__init__()
        self.dense = Linear(in_features, width)
        self.LayerNorm = NORMS[kind](width, eps)
        self.dropout = dropout
        self.project = linear_op(self.dense, residual=adds)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """`norm(residual + dense(x))`; x `[tokens, in_features]` in any dtype, residual `[tokens, width]`."""
        x = x.to(dtype_of(self.dense))
        if self.training and self.dropout:
            return self.LayerNorm(F.dropout(self.project(x), self.dropout), residual)
        return self.LayerNorm(self.project(x) if residual is None else self.project(x, residual=residual))


class LayerOutput(DenseNorm):
    """The end of a layer: of its last feed-forward network and, with bottlenecks, the way back to full width.

    Dropout acts on what is added at full width.
    """

    def __init__(self, config: MobileBertConfig) -> None:
        kind = config.normalization_type
        super().__init__(config.intermediate_size, config.true_hidden_size, kind, DEFAULT_EPS, config.inner_dropout)
        self.bottleneck = None
        if config.use_bottleneck:
            self.bottleneck = DenseNorm(
                config.true_hidden_size, config.hidden_size, kind, config.layer_norm_eps, config.hidden_dropout_prob
            )

    def leave(self, inner: Tensor, narrow: Tensor, entered: Tensor) -> Tensor:
        """The layer's output `[tokens, hidden]`.

        Args:
            inner: `[tokens, intermediate]`.
            narrow: `[tokens, true hidden]`, the input of the last feed-forward network.
            entered: `[tokens, hidden]`, the layer's input.
        """
        out = self(inner, narrow)
        return out if self.bottleneck is None else self.bottleneck(out, entered)


class FeedForwardNetwork(nn.Module):
    """One of the stacked networks before the last (section 3.2)."""

    def __init__(self, config: MobileBertConfig) -> None:
        super().__init__()
        width, inner = config.true_hidden_size, config.intermediate_size
        self.intermediate = FeedForward(width, inner, ACTIVATIONS[config.hidden_act])
        self.output = DenseNorm(inner, width, config.normalization_type, config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """`[tokens, true hidden]` to `[tokens, true hidden]`, both of the residual stream."""
        return self.output(self.intermediate(x.to(dtype_of(self.intermediate))), x)


class MobileBertLayer(TakingOver, JoinedLayers):
    """Down to the bottleneck's width, attention, feed-forward networks, and back; the nesting is the checkpoint's.

    A layer of the published kind is two ops around its attention, where a row serves them that computes each at once;
    otherwise, and where something has to happen in between, its modules are called one by one.
    """

    taken_over = ("attention", "intermediate", "output", "bottleneck", "ffn")
    enter: BoundOp | None = None
    leave: BoundOp | None = None

    def __init__(self, config: MobileBertConfig) -> None:
        super().__init__()
        hidden, width, inner = config.hidden_size, config.true_hidden_size, config.intermediate_size
        kind, eps = config.normalization_type, config.layer_norm_eps
        shared = config.use_bottleneck and config.key_query_shared_bottleneck
        self.attends_to_narrow = not config.use_bottleneck or config.use_bottleneck_attention
        self.value_apart = shared and not self.attends_to_narrow
        self.attention = nn.ModuleDict(
            {
                "self": SelfAttention(
                    width,
                    config.num_attention_heads,
                    config.attention_probs_dropout_prob,
                    value_size=hidden if self.value_apart else None,
                ),
                "output": DenseNorm(width, width, kind, eps, config.inner_dropout),
            }
        )
        self.intermediate = FeedForward(width, inner, ACTIVATIONS[config.hidden_act])
        self.output = LayerOutput(config)
        # The second is there, unused, in checkpoints whose attention looks at the first.
        names = ("input", "attention") if shared else ("input",) if config.use_bottleneck else ()
        self.bottleneck = nn.ModuleDict({name: DenseNorm(hidden, width, kind, eps, adds=False) for name in names})
        self.ffn = nn.ModuleList(FeedForwardNetwork(config) for _ in range(config.num_feedforward_networks - 1))
        self.kind = kind
        self._take_over()
        self._share()

    def forward(self, x: Tensor, batch: PackedBatch, record: Record | None = None) -> Tensor:
        """`[tokens, hidden]` to `[tokens, hidden]`, both of the residual stream."""
        if self.enter is not None and self.leave is not None and self._in_one_go(self.enter, self.leave, x):
            narrow, qkv = self.enter(x)
            attention: Any = self.attention["self"]
            q, k, v = qkv.view(-1, 3, attention.heads, attention.head_dim).unbind(1)
            return self.leave(attend(attention.attention, q, k, v, batch, record), narrow, x)
        dtype = dtype_of(self.intermediate)
        entered = x.to(dtype)
        narrow = self.bottleneck["input"](entered) if "input" in self.bottleneck else x
        if self.value_apart:
            queries = self.bottleneck["attention"](entered)
        else:
            queries = narrow if self.attends_to_narrow else entered
        attended = self.attention["self"](queries.to(dtype), batch, record, values=entered)
        narrow = self.attention["output"](attended, narrow)
        for network in self.ffn:
            narrow = network(narrow)
        return self.output.leave(self.intermediate(narrow.to(dtype)), narrow, x)

    def _in_one_go(self, enter: BoundOp, leave: BoundOp, x: Tensor) -> bool:
        """Whether both halves have a row that fuses, and nothing is to happen inside them but what it computes."""
        if not (enter.fused and leave.fused and self.intact):
            return False
        dropping: Any = (self.attention["self"], self.attention["output"], self.output, self.output.bottleneck)
        if any(part.training and part.dropout for part in dropping):
            return False
        return not (enter.wants_gradient(x) or leave.wants_gradient())

    def _stand_in(self) -> dict[str, BoundOp]:
        if not self.value_apart:
            return {}
        parts = tuple(op for op in self.bound_ops() if op.op in ("linear", "norm", "no_norm"))
        ops = {"enter": entering(self, self.kind), "leave": leaving(self, self.kind)}
        for op in ops.values():
            op.parts = parts
        return ops

    def _groups(self) -> Iterable[tuple[nn.Module, ...]]:
        """What the stacked networks have of each kind: one op takes it as one weight."""
        return stacked(self) if self.value_apart and self._made() == self._make else ()


class MobileBertEncoder(LayerStack):
    """The layers, one after the other."""

    def __init__(self, config: MobileBertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(MobileBertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, batch: PackedBatch, record: Record | None, dtype: torch.dtype) -> Tensor:
        """The residual stream `[tokens, hidden]` to the last hidden state, which like those recorded is in `dtype`."""
        for layer in self.each(self.layer):
            if record is not None:
                record.hidden_state(x.to(dtype))
            x = layer(x, batch, record)
        x = x.to(dtype)
        if record is not None:
            record.hidden_state(x)
        return x
