"""Our model behind a model of transformers: made at the first call, made anew where the original was changed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import PadlessError
from ...models.mobilebert import MobileBertFamily
from .adopt import adopt, compute_dtype, parameters_of
from .rows import see_beyond_edges
from .watch import Watch

__all__ = ["Twin"]

TRAINING = "in training mode: call model.eval() to have padless compute"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Made:
    """Our model, or why there is none, and what the original was when it was made."""

    ours: Any
    failure: str
    watch: Watch


class Twin:
    """Our model of one of transformers, and whether it may serve now.

    What is copied and pickled is the original and the options; a copy makes a model of its own.
    """

    def __init__(self, original: nn.Module, dtype: Any, backend: str, deterministic: bool) -> None:
        """Nothing is made yet; see `adopt` for the options."""
        self.original: Any = original
        self.options = {"dtype": dtype, "backend": backend, "deterministic": deterministic}
        self._begin()

    def _begin(self) -> None:
        self._made: _Made | None = None
        self._own: dict[int, nn.Parameter] = {}
        self._told: set[str] = set()
        self._making = threading.Lock()
        self._aside = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"original": self.original, "options": self.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def make(self) -> Any:
        """Our model, made now.

        Raises:
            PadlessError: the original cannot be adopted; says what to do.
        """
        original = self.original
        before = {id(p): p.data_ptr() for p in original.parameters()}
        ours, failure = None, None
        try:
            ours = adopt(original, **self.options)
            if isinstance(ours, MobileBertFamily):
                see_beyond_edges(ours)
        except PadlessError as error:
            failure = error
        moved = {id(p): p for p in original.parameters() if before.get(id(p)) != p.data_ptr()}
        self._own = {key: p for key, p in {**self._own, **moved}.items() if key in before}
        # At once, for threads that look while this is made anew.
        self._made = _Made(ours, str(failure or ""), Watch(original, writes=not self.shares))
        if failure is not None:
            raise failure
        return ours

    def ready(self) -> tuple[Any, str]:
        """(our model, "") where it may serve, else (None, why not)."""
        if torch.is_autocast_enabled(self.original.device.type):
            return None, "under autocast: leave it, or ask for a dtype, such as accelerate(model, dtype='bfloat16')"
        if self.original.training:  # where weights change with each step, nothing need be made of them
            return None, TRAINING
        made = self._made
        if made is None or not made.watch.unchanged:
            made = self._made_anew()
        if made.watch.training:
            return None, TRAINING
        if made.watch.hooked:
            return None, "modules have hooks or a forward of their own: remove them to have padless compute"
        return made.ours, made.failure

    def _made_anew(self) -> _Made:
        with self._making:
            # Another thread may have been quicker.
            if self._made is None or not self._made.watch.unchanged:
                with suppress(PadlessError):  # kept, and told by who asks
                    self.make()
        assert self._made is not None
        return self._made

    @property
    def aside(self) -> bool:
        """Whether this thread is inside a method of the original that was left to it as a whole."""
        return getattr(self._aside, "deep", False)

    @contextmanager
    def left_aside(self) -> Iterator[None]:
        """What the original's own methods call inside is the original too."""
        self._aside.deep = True
        try:
            yield
        finally:
            self._aside.deep = False

    def tell(self, reason: str, kind: str | None = None) -> None:
        """One line for each reason, or each kind of reason, why transformers computes."""
        if (key := kind or reason) not in self._told:
            self._told.add(key)
            name = type(self.original).__name__
            logger.warning("accelerate: %s: transformers computes this call: %s", name, reason)

    @property
    def shares(self) -> bool:
        """Whether it computes with the original's own parameters."""
        reference = next(self.original.parameters())
        return compute_dtype(self.original, self.options["dtype"]) == reference.dtype

    @property
    def ours(self) -> Any:
        """Our model as it was made last; None before and where that failed."""
        return None if self._made is None else self._made.ours

    def copied(self) -> int:
        """Bytes beside the original's weights: of a copy in another dtype, of matrices in layouts that rows prepare."""
        ours = self.ours
        if ours is None:
            return 0
        distinct = {id(p): p for p in parameters_of(ours).values()}
        copy = 0 if self.shares else sum(p.nbytes for p in distinct.values())
        prepared = 0
        for op in ours.bound_ops():
            if op.resolution is not None and op.resolution.prepare is not None:
                weights = [source.tensor for source in op._sources]
                prepared += sum(w.nbytes for w in weights if w is not None and w.dim() > 1)
        return copy + prepared

    def leave(self) -> None:
        """Give the original's parameters memory of their own again, values kept."""
        for parameter in self._own.values():
            parameter.data = parameter.data.clone()
        self._made, self._own = None, {}
