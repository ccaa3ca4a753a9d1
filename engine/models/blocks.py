"""What the model families are built from. Parameters live in stock torch modules under the checkpoint's names; the
computing is done by ops that each block declares here and binds through the dispatch table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..batch import PackedBatch
from ..memo import Memo
from ..ops.attention import attention_with_weights
from ..ops.bind import BoundOp, Source, share_storage
from ..ops.linear import finish
from .parameters import LayerNorm, Linear, NoNorm
from .record import Record

__all__ = [
    "Block",
    "Dense",
    "FeedForward",
    "JoinedLayers",
    "Projection",
    "ResidualProjection",
    "SelfAttention",
    "attend",
    "attention_op",
    "linear_op",
    "norm_op",
    "residual_added",
    "rms_norm_op",
]


class Block(nn.Module):
    """A module that owns ops. `BoundOp` attributes are bound by `bind`, and again whenever the weights move or change
    dtype.
    """

    backend = "auto"
    deterministic = False

    def bind(self, backend: str | None = None, deterministic: bool | None = None) -> Self:
        """Bind the ops of this module and of all blocks inside it; None keeps what was asked for before.

        Raises:
            BackendError: if `backend` names rows that cannot serve.
        """
        for module in self.modules():
            if isinstance(module, Block):
                module.backend = module.backend if backend is None else backend
                module.deterministic = module.deterministic if deterministic is None else deterministic
                module._bind_own()
        return self

    def bound_ops(self) -> Iterator[BoundOp]:
        """The ops of this module and of all blocks inside it, in the order of the modules."""
        for module in self.modules():
            yield from (value for value in vars(module).values() if isinstance(value, BoundOp))

    def _bind_own(self) -> None:
        ops = [value for value in vars(self).values() if isinstance(value, BoundOp)]
        if not ops:
            return
        reference = next(self.parameters())
        for op in ops:
            op.watch(self._modules)
            op.bind(reference.device, reference.dtype, backend=self.backend, deterministic=self.deterministic)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._bind_own()
        return self


class LinearOp(BoundOp):
    """The `linear` op on one layer or several, which it calls where their weights are not all there is to them: where
    one was replaced by something else (an adapter, a quantised layer) or has hooks.
    """

    @property
    def plain(self) -> bool:
        """Whether every layer is a stock one without hooks."""
        return all(map(_is_stock, self._layers()))

    def bind(self, device: torch.device, dtype: torch.dtype, *, backend: str, deterministic: bool) -> None:
        """As `BoundOp.bind`, with the widths that the layers have by now."""
        layers = [layer for layer in self._layers() if isinstance(layer, nn.Linear)]
        if len(layers) == len(self._layers()):
            self._facts = {**self._facts, **_widths(*layers)}
        super().bind(device, dtype, backend=backend, deterministic=deterministic)

    def through(self, *inputs: Any, **options: Any) -> Any:
        """The outputs of the layers, side by side, and then what the op does with them."""
        outputs = [layer(*inputs) for layer in self._layers()]
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        statistics = options.pop("statistics", False)
        out = finish(out, **{**self.options, **options})
        return (out, None) if statistics else out

    def takes(self, old: nn.Module, new: nn.Module | None) -> bool:
        """Whatever takes and gives what the layer did."""
        return new is not None

    def _layers(self) -> list[nn.Module]:
        weights = self._weights[0]
        return [source.module for source in weights] if isinstance(weights, tuple) else []


def _is_stock(layer: nn.Module) -> bool:
    if isinstance(layer, Block):
        return True  # it computes through this very op
    hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return not hooks and type(layer).forward is nn.Linear.forward and "forward" not in vars(layer)


def linear_op(
    *layers: nn.Linear,
    epilogue: str = "none",
    gated: bool = False,
    residual: bool = False,
    turned: int = 0,
    head_dim: int | None = None,
) -> BoundOp:
    """The `linear` op on one layer, or on several at once whose outputs lie side by side.

    Args:
        layers: of the same input.
        epilogue: as in `engine/ops/linear.py`, as is `gated`.
        residual: calls will pass one, as a rule; what is chosen depends on it.
        turned: outputs that are rotated by the `rope` that calls will pass.
        head_dim: channels of a head, where there are such.
    """
    weights = tuple(Source(layer, "weight") for layer in layers)
    biases = tuple(Source(layer, "bias") for layer in layers)
    facts = {**_widths(*layers), "epilogue": epilogue, "gated": gated, "residual": residual}
    options: dict[str, Any] = {"epilogue": epilogue}
    if gated:
        options["gated"] = True
    if turned:
        facts |= {"rope": True, "head_dim": head_dim}
        options["turned"] = turned
    return LinearOp("linear", weights, biases, facts=facts, **options)


def _widths(*layers: nn.Linear) -> dict[str, Any]:
    return {"hidden": sum(layer.out_features for layer in layers), "inner": layers[0].in_features}


class NormOp(BoundOp):
    """The `norm` op where its weights may be wider than the model: what comes out is no wider than what went in."""

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        found = super().__call__(*inputs, **options)
        dtype = inputs[0].dtype
        out = found[0] if isinstance(found, tuple) else found
        if out.dtype.itemsize <= dtype.itemsize:
            return found
        return (out.to(dtype), *found[1:]) if isinstance(found, tuple) else out.to(dtype)


def norm_op(layer: nn.LayerNorm) -> BoundOp:
    """The `norm` op with the weights of a stock layer norm."""
    facts = {"hidden": layer.normalized_shape[0]}
    return NormOp("norm", Source(layer, "weight"), Source(layer, "bias"), facts=facts, eps=layer.eps)


def rms_norm_op(layer: nn.Module, hidden_size: int, eps: float) -> BoundOp:
    """The `rms_norm` op with the `weight` of a layer."""
    return BoundOp("rms_norm", Source(layer, "weight"), facts={"hidden": hidden_size}, eps=eps)


def attention_op(
    head_dim: int,
    *,
    window: tuple[int, int] = (-1, -1),
    causal: bool = False,
    bias: str = "none",
    cross: bool = False,
    **options: Any,
) -> BoundOp:
    """The `attention` op, with the options of `engine/ops/attention.py`; `cross`: calls will pass `cu_seqlens_k`."""
    left, right = (max(edge, -1) for edge in window)
    if causal and left >= 0:
        # Some keys to the left and none to the right: a window, which more rows serve.
        causal, right = False, 0
    kind = "causal" if causal else "full" if (left, right) == (-1, -1) else "sliding"
    if kind == "causal":
        options["causal"] = True
    if kind == "sliding":
        options["window"] = (left, right)
    facts = {"head_dim": head_dim, "window": kind, "bias": bias}
    facts |= {"cross": cross, "lse": bool(options.get("return_lse"))}
    return BoundOp("attention", facts=facts, **options)


def attend(
    op: BoundOp,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: PackedBatch,
    record: Record | None = None,
    *,
    dropout: float = 0.0,
    **options: Any,
) -> Tensor:
    """Attention through its op, or through eager where its weights are to be kept or dropped out.

    Args:
        op: from `attention_op`.
        q: `[tokens, heads, head_dim]`, as are k and v.
        batch: where the texts begin and end.
        record: may ask for the weights.
        dropout: of the weights; callers pass 0 when they do not train.
        options: of this call, such as `position_bias`.

    Returns:
        `[tokens, heads * head_dim]`.
    """
    if dropout or (record is not None and record.wants_attentions):
        out, weights = attention_with_weights(
            q, k, v, batch.cu_seqlens, batch.max_seqlen, dropout=dropout, **op.options, **options
        )
        if record is not None and record.wants_attentions:
            record.attentions.append(weights)
        return out.flatten(1)
    return op(q, k, v, batch.cu_seqlens, batch.max_seqlen, memo=batch.memo, **options).flatten(1)


def residual_added(op: BoundOp, x: Tensor, residual: Tensor, memo: Memo | None) -> Tensor:
    """`residual + op(x)`; where there is a memo, the sum's statistics are handed on in it to the norm that comes next.

    Args:
        op: a `linear` op.
        x: `[tokens, in_features]`.
        residual: `[tokens, out_features]`.
        memo: of the pass; None where nobody asks for statistics.
    """
    if memo is None:
        return op(x, residual=residual)
    out, statistics = op(x, residual=residual, statistics=True)
    if statistics is not None:
        memo.hand_on(out, statistics)
    return out


class Dense(Linear, Block):
    """A stock linear layer, with an activation behind it, that computes through the `linear` op."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, activation: str = "none") -> None:
        super().__init__(in_features, out_features, bias)
        self.op = linear_op(self, epilogue=activation)

    def forward(self, input: Tensor) -> Tensor:
        """`[tokens, in_features]` to `[tokens, out_features]`."""
        return self.op(input)


class JoinedLayers(Block):
    """A block with layers that one GEMM serves: their parameters keep their names and are views of one buffer.

    A class defines `_together`, and calls `_share` once it has its layers.
    """

    def _together(self) -> tuple[nn.Module, ...]:
        """The layers whose input is the same."""
        raise NotImplementedError

    def _groups(self) -> Iterable[tuple[nn.Module, ...]]:
        """Layers whose parameters belong together, where there is more than one such group."""
        return (self._together(),)

    def _share(self) -> None:
        for layers in self._groups():
            if not all(isinstance(layer, (nn.Linear, nn.LayerNorm, NoNorm)) for layer in layers):
                continue  # one was replaced: the others stay where they are
            for name in ("weight", "bias"):
                parameters = tuple(getattr(layer, name) for layer in layers)
                if parameters[0] is not None:
                    share_storage(parameters)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copied or unpickled module has parameters of separate storage.
        super().__setstate__(state)
        self._share()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if next(self.parameters()).device.type != "meta":
            self._share()
        return self


class SelfAttention(JoinedLayers):
    """Full self-attention of every text to itself: one GEMM for Q, K and V, then varlen attention.

    Parameters (`query`, `key`, `value`) keep their names and are views of one buffer. With `value_size` V comes from
    another input, of that width, and has a GEMM of its own.
    """

    def __init__(self, hidden_size: int, heads: int, dropout: float = 0.0, *, value_size: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = hidden_size // heads
        self.dropout = dropout
        self.query = Linear(hidden_size, hidden_size)
        self.key = Linear(hidden_size, hidden_size)
        self.value = Linear(hidden_size if value_size is None else value_size, hidden_size)
        self.value_apart = value_size is not None
        self._share()
        self.qkv = linear_op(*self._together())
        self.own_v = linear_op(self.value) if self.value_apart else None
        self.attention = attention_op(self.head_dim)

    def forward(
        self,
        x: Tensor,
        batch: PackedBatch,
        record: Record | None = None,
        values: Tensor | None = None,
        qkv: Tensor | None = None,
    ) -> Tensor:
        """`[tokens, hidden]` to `[tokens, hidden]`, before the output projection.

        Args:
            x: the rows that attend.
            batch: where the texts begin and end.
            record: may ask for the weights.
            values: V's input, if apart.
            qkv: what the product of x gives, if the caller has it.
        """
        product = self.qkv(x) if qkv is None else qkv
        parts = product.view(-1, len(self._together()), self.heads, self.head_dim).unbind(1)
        q, k, v = parts if self.own_v is None else (*parts, self.own_v(values).view_as(parts[0]))
        return attend(self.attention, q, k, v, batch, record, dropout=self.dropout if self.training else 0.0)

    def _together(self) -> tuple[nn.Linear, ...]:
        """The layers whose input is the same."""
        return (self.query, self.key) if self.value_apart else (self.query, self.key, self.value)


class ResidualProjection(Block):
    """A linear layer whose output is added to the residual stream."""

    def __init__(self, in_features: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.dense = Linear(in_features, hidden_size)
        self.dropout = dropout
        self.project = linear_op(self.dense, residual=True)

    def forward(self, x: Tensor, residual: Tensor, memo: Memo | None = None) -> Tensor:
        """`residual + dense(x)`; x `[tokens, in_features]`, residual `[tokens, hidden]`; memo as `residual_added`."""
        if self.training and self.dropout:
            return residual + F.dropout(self.project(x), self.dropout)
        return residual_added(self.project, x, residual, memo)


class Projection(ResidualProjection):
    """The same, then normalised (post-norm, as in BERT)."""

    def __init__(self, in_features: int, hidden_size: int, eps: float, dropout: float) -> None:
        super().__init__(in_features, hidden_size, dropout)
        self.LayerNorm = LayerNorm(hidden_size, eps=eps)
        self.norm = norm_op(self.LayerNorm)

    def forward(self, x: Tensor, residual: Tensor, memo: Memo | None = None) -> Tensor:
        """`norm(residual + dense(x))`; x `[tokens, in_features]`, residual `[tokens, hidden]`; nobody needs a memo."""
        return self.norm(super().forward(x, residual, memo))


class FeedForward(Block):
    """A linear layer with its activation: the widening half of a feed-forward block."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str) -> None:
        super().__init__()
        self.dense = Linear(hidden_size, intermediate_size)
        self.up = linear_op(self.dense, epilogue=activation)

    def forward(self, x: Tensor) -> Tensor:
        """`[tokens, hidden]` to `[tokens, intermediate]`."""
        return self.up(x)
