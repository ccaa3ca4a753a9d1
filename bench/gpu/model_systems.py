"""The systems of part `models`, each behind one call: token ids on the host to unit vectors on the host.

All of them do what a careful user would: texts sorted by length, batches cut by a budget of tokens, the next batch made
on the host while the GPU computes, one wait at the end. All pool by the mean, in fp32. All share one set of weights.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...engine.batch import PackedBatch, TokenizedTexts, pack, plan_batches
from ...engine.cuda_graphs import CudaGraphs
from ...engine.embedding.pooling import SentenceHead
from ...engine.folders.sentence_transformer import NormalizeSpec, PoolingSpec
from ...engine.models.bare import BareModel
from ...engine.ops.bind import BoundOp, explain_ops
from .case import first_line
from .model_shapes import Shape
from .model_work import Work
from .peers import Absent

__all__ = ["Padless", "System", "Transformers", "peer_model"]

FAILED = "failed when it was called"
"""How `engine/ops/bind.py` begins the reason of a row that could not be compiled or started."""


class System(Protocol):
    """One way from ids to vectors."""

    def vectors(self, work: Work) -> Tensor:
        """fp32 `[texts, hidden]` of unit length on the host, in the order of the texts."""
        ...

    def padding(self, work: Work) -> float:
        """Tokens computed, over tokens there are."""
        ...

    def problem(self) -> str | None:
        """What makes its figures another system's than its name says, or None."""
        ...


class Padless:
    """This package: packed batches."""

    def __init__(self, model: BareModel, device: torch.device, *, backend: str = "auto", graphs: bool = False) -> None:
        """Take a filled and bound model.

        Args:
            model: bound with `backend`.
            device: where it is.
            backend: for the pooling.
            graphs: record small batches and replay them.

        Raises:
            BackendError: `backend` cannot serve.
        """
        self.model, self.device = model, device
        specs = [PoolingSpec(("mean",)), NormalizeSpec()]
        self.head = SentenceHead.from_specs(specs, model.config.hidden_size, "the GPU report").eval()
        self.head.bind(device, model.dtype, backend=backend, deterministic=False)
        self._graphs = CudaGraphs() if graphs else None

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return self.model, self.head

    def bound_ops(self) -> tuple[BoundOp, ...]:
        return *self.model.bound_ops(), *self.head.pooling.pools

    def compute(self, batch: PackedBatch, prompt_tokens: int = 0) -> Tensor:
        return self.head(self.model.run(batch), batch, prompt_tokens)

    def vectors(self, work: Work) -> Tensor:
        plan = list(plan_batches(work.lengths, work.budget))
        parts = [self._one(work.texts, rows) for rows in plan]
        return _in_order(parts, plan)

    def padding(self, work: Work) -> float:
        return 1.0

    def problem(self) -> str | None:
        if self._graphs is not None and not self._graphs.replayed:
            return f"no batch was replayed; {self._graphs.refused} recordings refused, see log.txt"
        reasons = {
            f"{op.op}: {name} {reason}"
            for op in self.bound_ops()
            if op.resolution is not None
            for name, found in op.resolution.rejected
            for reason in found
            if reason.startswith(FAILED)
        }
        return "; ".join(sorted(reasons)) or None

    def explain(self) -> list[str]:
        """What serves each op, in lines."""
        return explain_ops(self.bound_ops()).splitlines()

    def _one(self, texts: TokenizedTexts, rows: np.ndarray) -> Tensor:
        batch = pack(texts, rows)
        if self._graphs is not None:
            vectors = self._graphs.run(batch, self, longest=self.model.longest)
            if vectors is not None:
                return vectors
        return self.compute(batch.to(self.device))


class Transformers:
    """A model of transformers on padded batches."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self._model, self._device = model, device

    def vectors(self, work: Work) -> Tensor:
        plan = list(_padded_batches(work.lengths, work.budget))
        parts = [self._one(work.texts, rows) for rows in plan]
        return _in_order(parts, plan)

    def padding(self, work: Work) -> float:
        computed = sum(len(rows) * int(work.lengths[rows[0]]) for rows in _padded_batches(work.lengths, work.budget))
        return computed / work.tokens

    def problem(self) -> str | None:
        return None

    def _one(self, texts: TokenizedTexts, rows: np.ndarray) -> Tensor:
        lengths = texts.lengths[rows]
        kept = np.arange(int(lengths[0])) < lengths[:, None]
        ids = np.zeros(kept.shape, dtype=np.int64)
        ids[kept] = np.concatenate([texts.input_ids[start : start + n] for start, n in self._edges(texts, rows)])
        on_device = _sent(torch.from_numpy(ids), self._device)
        if kept.all():
            # Without a mask its attention is fastest, and there is nothing to hide.
            hidden = self._model(input_ids=on_device).last_hidden_state
            return F.normalize(hidden.float().mean(1), dim=1)
        mask = _sent(torch.from_numpy(kept.astype(np.int64)), self._device)
        hidden = self._model(input_ids=on_device, attention_mask=mask).last_hidden_state.float()
        weights = mask[:, :, None].float()
        return F.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)

    def _edges(self, texts: TokenizedTexts, rows: np.ndarray) -> Iterator[tuple[int, int]]:
        starts = texts.offsets
        return ((int(starts[row]), int(texts.lengths[row])) for row in rows)


def peer_model(
    shape: Shape, weights: nn.Module, device: torch.device, *, attention: str, dry: bool, compiled: str | None = None
) -> Callable[..., Any]:
    """transformers' model on the weights of ours, whose memory it shares.

    Args:
        shape: which.
        weights: our model.
        device: where that is.
        attention: "eager", "sdpa" or "flash_attention_2".
        dry: the small one.
        compiled: torch.compile's mode for shapes that never change; None leaves the model as it is.

    Raises:
        Absent: not installed, or it has no such attention.
    """
    if importlib.util.find_spec("transformers") is None:
        raise Absent("transformers is not installed")
    import transformers

    fields = dict(shape.tiny if dry else shape.real)
    if shape.family == "modernbert":
        # It would compile parts of itself where triton is there, for every shape anew.
        fields["reference_compile"] = False
    config = getattr(transformers, shape.peer_config)(**fields)
    try:
        with device:
            model = getattr(transformers, shape.peer)._from_config(
                config, attn_implementation=attention, **shape.peer_options
            )
    except (ImportError, ValueError) as error:
        raise Absent(first_line(error)) from error
    model.load_state_dict(weights.state_dict(), assign=True)
    model.tie_weights()
    model.eval().requires_grad_(False)
    if compiled is None:
        return model
    torch._dynamo.reset()
    return torch.compile(model, dynamic=False, mode=compiled)


def _padded_batches(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Longest first, as many texts as fit into `budget` when they are padded to their first one."""
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    start = 0
    while start < len(order):
        stop = start + max(budget // max(int(lengths[order[start]]), 1), 1)
        yield order[start:stop]
        start = stop


def _in_order(parts: Sequence[Tensor], plan: Sequence[np.ndarray]) -> Tensor:
    together = torch.cat(list(parts)).to("cpu", torch.float32)
    vectors = torch.empty_like(together)
    vectors[torch.from_numpy(np.concatenate(plan))] = together
    return vectors


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
