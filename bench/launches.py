"""How many kernels a layer launches and how many bytes they move: found by watching what is dispatched; nothing runs.

A model of real widths is bound as for a GPU and called with tensors in this machine's memory. Each operator of torch is
stopped, counted and answered with memory of the right shape; each Triton kernel is stopped at its launch. A model of
one layer more, less the model, is a layer.

What counts as a launch: an operator of torch that computes or copies (views and allocations do not; the few that are
several kernels on a GPU count as one), and a Triton kernel. What counts as
a byte: those of each tensor that a kernel is given and gives, once a launch; of a table that is gathered from, no more
than what is gathered. Weights are counted apart, since only activations grow with the tokens.

Plain products are one operator of torch: "auto" leaves them to cuBLAS.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only
from triton.runtime.jit import JITFunction

from ..engine.batch import PackedBatch
from ..engine.models.bare import BareModel
from ..engine.models.bert import BertModel
from ..engine.models.blocks import Block
from ..engine.models.megatron_bert import MegatronBertModel
from ..engine.models.mobilebert import MobileBertModel
from ..engine.models.modernbert import ModernBertModel
from ..engine.models.mt5 import MT5EncoderModel
from ..engine.ops.bind import BoundOp

__all__ = ["FAMILIES", "LENGTHS", "Counts", "Layer", "counted", "layer_of", "page"]

FUSED = frozenset({"linear", "norm_linear", "norm", "rms_norm", "no_norm", "mobilebert_in", "mobilebert_out"})
"""Ops that eager serves in the count from before."""

LENGTHS = tuple(range(32, 1024, 64))
"""Of the texts that are counted with, 8,192 tokens together."""

SM = 90
"""Compute capability that ops are bound for."""

_ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")
_VIEWS = (
    "detach",
    "alias",
    "_unsafe_view",
    "_reshape_alias",
    "lift_fresh",
    "_local_scalar_dense",
    "item",
    "is_same_size",
)
_GATHERS = ("embedding", "index", "index_select", "gather")


@dataclass
class Counts:
    """What was launched.

    Attributes:
        launches: by name of the kernel or operator.
        activations: bytes that are no weights.
        weights: bytes of weights.
    """

    launches: Counter[str]
    activations: int = 0
    weights: int = 0

    @property
    def total(self) -> int:
        """Kernels launched."""
        return self.launches.total()


class _Counting(TorchDispatchMode):
    """Stops torch's operators and Triton's launches, and counts them."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self.found = Counts(Counter())
        self._weights = weights

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if func.is_view or name in _VIEWS or name in _ALLOCATIONS:
            return func(*args, **kwargs)
        out = _answered(func, args, kwargs)
        given, made = _tensors((args, kwargs)), _tensors(out)
        if not given and not made:
            return out  # a question about dtypes
        gathered = sum(map(_bytes, made)) if name in _GATHERS else None
        self._count(name, [*given, *(x for x in made if not any(x is y for y in given))], gathered)
        return out

    def launched(self, name: str, arguments: tuple[Any, ...]) -> None:
        """A Triton kernel; a tensor descriptor stands for its tensor."""
        self._count(name, _tensors([getattr(value, "base", value) for value in arguments]), None)

    def _count(self, name: str, tensors: list[Tensor], most: int | None) -> None:
        self.found.launches[name] += 1
        seen: set[tuple[Any, ...]] = set()
        for tensor in tensors:
            place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
            if place in seen:
                continue
            seen.add(place)
            size = _bytes(tensor) if most is None else min(_bytes(tensor), most)
            if tensor.untyped_storage().data_ptr() in self._weights:
                self.found.weights += size
            else:
                self.found.activations += size


@contextmanager
def counted(model: Block | None = None) -> Iterator[Counts]:
    """Count what is launched within, instead of running it; results are memory with anything in it.

    Args:
        model: whose weights are counted apart.
    """
    mode = _Counting(set() if model is None else _weights_of(model))

    def launched(kernel: Any, *args: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        mode.launched(kernel.__name__, (*args, *keywords.values()))

    with patch.object(JITFunction, "run", launched), mode:
        yield mode.found


@dataclass(frozen=True)
class Layer:
    """A layer of a family at the widths of a published checkpoint.

    Attributes:
        checkpoint: whose widths these are, which are the defaults of its configuration class.
        model_class: the bare model.
        layers: number of layers below the one that is looked at.
        field: of the configuration, that says how many.
    """

    checkpoint: str
    model_class: type[BareModel]
    layers: int = 1
    field: str = "num_hidden_layers"


FAMILIES = {
    "MobileBERT": Layer("mobilebert-uncased", MobileBertModel),
    "ModernBERT": Layer("ModernBERT-base, a layer with a window", ModernBertModel, layers=2),
    "MegatronBERT": Layer("megatron-bert-uncased-345m", MegatronBertModel),
    "mT5": Layer("mt5-small, encoder", MT5EncoderModel, field="num_layers"),
    "BERT": Layer("bert-base-uncased", BertModel),
}


def layer_of(layer: Layer, *, fused: bool, lengths: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> Counts:
    """What one layer launches and moves for texts of these lengths, bound under "auto" for a GPU of sm_90.

    Args:
        layer: one of `FAMILIES`.
        fused: False: the ops of `FUSED` are served by eager, as before they had kernels.
        lengths: tokens of each text.
        dtype: of the weights.
    """
    more, less = (_counts(layer, count, fused, lengths, dtype) for count in (layer.layers + 1, layer.layers))
    launches = Counter(more.launches)
    launches.subtract(less.launches)
    assert all(count >= 0 for count in launches.values()), launches
    return Counts(+launches, more.activations - less.activations, more.weights - less.weights)


def _counts(layer: Layer, layers: int, fused: bool, lengths: tuple[int, ...], dtype: torch.dtype) -> Counts:
    # Words are read in front of the first layer only.
    fields: dict[str, Any] = {layer.field: layers, "vocab_size": 128}
    config = layer.model_class.config_class(**fields)
    with torch.no_grad():
        model = layer.model_class.without_pooler(config).to(dtype).eval().requires_grad_(False)
        _bind_as_on_a_gpu(model, fused)
        batch = _batch(lengths)
        with counted(model):
            model.run(batch)  # prepares the weights
        with counted(model) as counts:
            model.run(batch)
    return counts


def _bind_as_on_a_gpu(model: Block, fused: bool) -> None:
    for op in model.bound_ops():
        assert op.resolution is not None
        call = replace(op.resolution.call, device="cuda", sm=SM)
        backend = "auto" if fused or call.op not in FUSED else "eager"
        op.bind_as(call, backend=backend)


def _weights_of(model: Block) -> set[int]:
    ops: list[BoundOp] = list(model.bound_ops())
    prepared = [weight for op in ops for weight in tree_leaves(op._prepared) if isinstance(weight, Tensor)]
    return {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *prepared)}


def _batch(lengths: tuple[int, ...]) -> PackedBatch:
    places = torch.cat([torch.arange(length) for length in lengths])
    edges = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    sizes = torch.tensor(lengths, dtype=torch.int32)
    return PackedBatch(torch.zeros_like(places), places, None, edges, sizes, max(lengths))


def _answered(func: Any, args: Any, kwargs: Any) -> Any:
    """Memory in the place of results; an argument that is written to is its own result."""
    written = [argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments]
    if any(written):
        flat = [*args, *kwargs.values()]
        return flat[written.index(True)]

    def hollow(x: Tensor) -> Tensor:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")

    def filled(x: Tensor) -> Tensor:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)

    args, kwargs = tree_map_only(Tensor, hollow, (args, kwargs))
    kwargs = {**kwargs, "device": "meta"} if "device" in kwargs else kwargs
    return tree_map_only(Tensor, filled, func(*args, **kwargs))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """Of the elements that differ: an expanded axis is read once."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride or not size else 1
    return elements * tensor.element_size()


def page() -> str:
    """`docs/launches.md`."""
    lines = [
        "| family | launches before | launches now | activations before | activations now | weights |",
        "|---|---|---|---|---|---|",
    ]
    for family, layer in FAMILIES.items():
        before, now = (layer_of(layer, fused=fused, lengths=LENGTHS) for fused in (False, True))
        was, moved = (counts.activations / sum(LENGTHS) / 1000 for counts in (before, now))
        lines.append(
            f"| {family} ({layer.checkpoint}) | {before.total} | {now.total} | {was:.1f} kB | {moved:.1f} kB "
            f"| {now.weights / 1e6:.2f} MB |"
        )
    return f"{_HEAD}\n" + "\n".join(lines) + f"\n\n{_FOOT}"


_HEAD = """# Launches and bytes of a layer

Written by `make launches` (`bench/launches.py`): found by watching what is dispatched, without a GPU, and checked by
`tests/bench/test_launches.py`. Nothing here is a time.
"""

_FOOT = f"""One layer in bf16, bound under `auto` for a GPU of sm_{SM}, for {len(LENGTHS)} texts of {LENGTHS[0]} to {LENGTHS[-1]} tokens.
Activations are bytes a token; weights are read once a batch. *Before*: attention by its kernel; linear layers, norms and
MobileBERT's two halves by eager PyTorch.

- A launch is a Triton kernel, or an operator of torch that computes or copies; views and allocations are none. Plain
  products go to cuBLAS under `auto` and are one launch, with their bias.
- Bytes are those of the tensors that a launch is given and gives, each once; of a table that is gathered from, no more
  than what is gathered. What a kernel reads a second time (attention its keys, for each block of queries) is not in
  them.
- Not in a layer: what is made once a batch for all layers. That is the list of attention's tiles, where texts have
  several lengths, and T5's bias by distance.
"""  # noqa: E501


def main() -> None:
    """Write the page, or show it."""
    parser = argparse.ArgumentParser(description=page.__doc__)
    parser.add_argument("--out", type=Path, help="file to write to")
    arguments = parser.parse_args()
    if arguments.out is None:
        print(page())
    else:
        arguments.out.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
