"""A model of transformers as ours: our module of the same class, with the very same parameters.

Our classes keep the names of transformers, so every parameter has its place. Sharing the objects, not only their
memory, means that whatever is done to them, a step of an optimiser, `load_state_dict`, `.to()`, is seen on both sides.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError, OptionError
from ...models.blocks import Dense, JoinedLayers
from ...models.pretrained import PreTrainedModel, parameters_left_empty
from ...precision import resolve_dtype
from .families import our_class
from .refusals import check_weights, unsupported_class

__all__ = ["adopt", "compute_dtype", "parameters_of"]


class ScaledHead(Dense):
    """The head of a language model behind a decoder whose states are scaled first, as the first T5 has it."""

    scale = 1.0

    def forward(self, input: Tensor) -> Tensor:
        """`[tokens, in_features]` to `[tokens, out_features]`."""
        return super().forward(input * self.scale)


def adopt(
    hf_model: Any, *, dtype: str | torch.dtype | None = None, backend: str = "auto", deterministic: bool = False
) -> Any:
    """Our model of the class of the same name, in evaluation mode, computing with the weights of `hf_model`.

    Its parameters are those of `hf_model`, the same objects. Those of layers that one product serves, such as query,
    key and value, become views of one buffer, values kept; transformers saves and reloads such views unchanged.

    Args:
        hf_model: a model of transformers, of a class that padless has; see `families.supported`.
        dtype: what to compute in; None is the dtype of the weights. Another one keeps a copy of the weights of its
            own, frozen: what is done to those of `hf_model` afterwards is then not seen.
        backend: "auto", or the name of a row of the dispatch table, which then serves or raises.
        deterministic: only rows that promise the same bits for a text whatever its neighbours.

    Raises:
        OptionError: a class padless does not have, weights it cannot take, or a configuration it does not compute;
            says what to do.
        BackendError: `backend` or `deterministic` cannot be served.
    """
    ours_class = our_class(hf_model)
    if ours_class is None:
        raise unsupported_class(hf_model)
    check_weights(hf_model)
    theirs = parameters_of(hf_model)
    source = type(hf_model).__name__
    try:
        config = ours_class.config_class.from_dict(hf_model.config.to_dict(), source=source)
        ours = _empty(ours_class, hf_model, config)
    except ConfigError as error:
        raise OptionError(f"accelerate: {error}: not supported, use the model as it is") from None
    _check_names(parameters_of(ours), theirs, source)
    wanted = compute_dtype(hf_model, dtype)
    shared = wanted == next(iter(theirs.values())).dtype
    _take(ours, theirs if shared else _copies(theirs, wanted))
    ours.eval()
    return ours.bind(backend, deterministic)


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every name with its parameter; a tied one has several."""
    return dict(model.named_parameters(remove_duplicate=False))


def compute_dtype(hf_model: Any, dtype: str | torch.dtype | None) -> torch.dtype:
    """What to compute in: `dtype`, or what the weights are where that is None.

    Raises:
        OptionError: not a floating dtype that padless computes in.
    """
    reference = next(hf_model.parameters())
    return reference.dtype if dtype is None else resolve_dtype(dtype, reference.device)


def _empty(ours_class: Any, hf_model: Any, config: Any) -> PreTrainedModel:
    """Our model, its parameters without memory."""
    options = {}
    if issubclass(ours_class, PreTrainedModel) and hasattr(hf_model, "pooler") and hf_model.pooler is None:
        options["add_pooling_layer"] = False
    with torch.device("meta"), parameters_left_empty():
        ours = ours_class(config, **options)
    if getattr(hf_model.config, "scale_decoder_outputs", False) and hasattr(ours, "lm_head"):
        ours.lm_head.__class__ = ScaledHead
        ours.lm_head.scale = config.d_model**-0.5
    return ours


def _take(ours: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        owner, _, attribute = name.rpartition(".")
        ours.get_submodule(owner)._parameters[attribute] = parameter
    for module in ours.modules():
        if isinstance(module, JoinedLayers):
            module._share()


def _copies(parameters: dict[str, nn.Parameter], dtype: torch.dtype) -> dict[str, nn.Parameter]:
    """Frozen copies in another dtype; what was one parameter stays one."""
    made: dict[int, nn.Parameter] = {}
    for parameter in parameters.values():
        if id(parameter) not in made:
            made[id(parameter)] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
    return {name: made[id(parameter)] for name, parameter in parameters.items()}


def _check_names(ours: dict[str, nn.Parameter], theirs: dict[str, nn.Parameter], source: str) -> None:
    different = sorted(
        name
        for name in {*ours, *theirs}
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape
    )
    if different:
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise OptionError(
            f"accelerate: {source}: parameters that are not those of the published class: "
            f"{', '.join(different[:3])}{more}; merge or remove adapters first, such as by merge_and_unload()"
        )
