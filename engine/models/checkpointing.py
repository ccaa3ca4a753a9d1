"""Training in less memory (Chen et al. 2016, "Training deep nets with sublinear memory cost"): of a layer its input
alone is kept, and the backward pass computes the rest again.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import OptionError
from .blocks import Block

__all__ = ["LayerStack", "WithCheckpointing"]

KNOWN = ("context_fn", "debug", "determinism_check", "preserve_rng_state", "use_reentrant")
"""Arguments of torch's function that may be given."""

logger = logging.getLogger(__name__)


class LayerStack(Block):
    """A module that runs layers one after the other, and asks `each` for them."""

    checkpointing: Mapping[str, Any] | None = None
    """Arguments of `torch.utils.checkpoint.checkpoint`; None where no layer is computed twice."""
    checkpoint_every: int = 1
    """Of so many layers the first is computed twice."""

    def each(self, layers: nn.ModuleList) -> Iterable[Any]:
        """The layers as they are to be called now: in training, where that was asked for, as checkpoints."""
        if self.checkpointing is None or not self.training or not torch.is_grad_enabled():
            return layers
        again = functools.partial(checkpoint, use_reentrant=False, **self.checkpointing)
        every = self.checkpoint_every
        return [layer if index % every else functools.partial(again, layer) for index, layer in enumerate(layers)]


class WithCheckpointing(Block):
    """What every model can be told about it."""

    supports_gradient_checkpointing: ClassVar[bool] = True

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether layers are computed again in the backward pass."""
        return any(isinstance(part, LayerStack) and part.checkpointing is not None for part in self.modules())

    @property
    def is_activation_checkpointing(self) -> bool:
        """Newer spelling of `is_gradient_checkpointing`."""
        return self.is_gradient_checkpointing

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Compute layers a second time in the backward pass of training, rather than keep what they computed.

        Outputs, losses and gradients are the same, under dropout too.

        Args:
            gradient_checkpointing_kwargs: of `torch.utils.checkpoint.checkpoint`. `use_reentrant` changes no result;
                it is False whatever is given.
            every_n_layers: of so many layers the first.
            offload: False; what is kept stays on the device.

        Raises:
            OptionError: an argument that torch's function does not have, or one out of range.
        """
        options = dict(gradient_checkpointing_kwargs or {})
        for name in options:
            if name not in KNOWN:
                raise OptionError(f"gradient_checkpointing_kwargs: {name}: expected one of {', '.join(KNOWN)}")
        if not isinstance(every_n_layers, int) or every_n_layers < 1:
            raise OptionError(f"every_n_layers: expected a whole number from 1, got {every_n_layers!r}")
        if offload:
            raise OptionError("offload: expected False, what is kept stays on the device")
        if options.pop("use_reentrant", False):
            logger.info("gradient checkpointing: use_reentrant=True is ignored, the other kind has the same results")
        self._set_checkpointing(options, every_n_layers)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Newer spelling of `gradient_checkpointing_enable`."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers, offload)

    def gradient_checkpointing_disable(self) -> None:
        """Keep what layers compute, as is usual."""
        self._set_checkpointing(None, 1)

    def activation_checkpointing_disable(self) -> None:
        """Newer spelling of `gradient_checkpointing_disable`."""
        self.gradient_checkpointing_disable()

    def _set_checkpointing(self, options: Mapping[str, Any] | None, every: int) -> None:
        for part in self.modules():
            if isinstance(part, LayerStack):
                part.checkpointing, part.checkpoint_every = options, every
