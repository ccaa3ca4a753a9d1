"""What stands as `forward` on an accelerated model of transformers."""

from __future__ import annotations

import inspect
from functools import cached_property
from typing import Any

import torch

from ...errors import PadlessError
from .caches import as_their_cache
from .calls import Call, NotServed, read_call
from .outputs import as_theirs, output_class
from .twin import Twin

__all__ = ["Forward"]


class Forward:
    """Takes the arguments of the original `forward` and returns what it returns: by our model where that serves the
    call, else by the original, with one log line for each reason.
    """

    __name__ = "forward"

    def __init__(self, twin: Twin) -> None:
        self.twin = twin

    def __getstate__(self) -> dict[str, Any]:
        return {"twin": self.twin}

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return type(self.twin.original).forward.__doc__

    @property
    def __signature__(self) -> inspect.Signature:
        """The original's: callers look at it to know what they may pass."""
        return self._signature

    @cached_property
    def _signature(self) -> inspect.Signature:
        return inspect.signature(self.original)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(name for name, item in self._signature.parameters.items() if item.kind is not item.VAR_KEYWORD)

    @cached_property
    def _output_class(self) -> Any:
        return output_class(self.twin.original)

    @property
    def original(self) -> Any:
        """The model's own `forward`."""
        model = self.twin.original
        return type(model).forward.__get__(model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        if traced or self.twin.aside:
            return self.original(*args, **kwargs)
        try:
            return self._served(args, kwargs)
        except NotServed as reason:
            self.twin.tell(str(reason))
        except PadlessError as error:
            # What we refuse, transformers refuses in its own words, or computes.
            self.twin.tell(str(error), type(error).__name__)
        return self.original(*args, **kwargs)

    def _served(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ours, why_not = self.twin.ready()
        if ours is None:
            raise NotServed(why_not)
        model, wanted = self.twin.original, self._output_class
        if len(args) > len(self._names) or wanted is None or any(name in kwargs for name in self._names[: len(args)]):
            raise NotServed("its arguments do not fit")
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        call = read_call(model, ours, frozenset(self._names), given)
        _share_problem_type(model, ours)
        output = ours(**call.arguments, return_dict=True)
        if "labels" in call.arguments:
            _tell_problem_type(model, call)
        others: dict[str, Any] = {}
        cache = getattr(output, "past_key_values", None)
        if cache is not None and call.own is not None:
            others["past_key_values"] = as_their_cache(cache, _decoder_config(model), call.own, call.across)
        if call.keeps_attentions and getattr(output, "cross_attentions", None) is None:
            others["cross_attentions"] = ()
        dtype = None if self.twin.shares else model.dtype
        found = as_theirs(output, wanted, dtype, **others)
        return found.to_tuple() if call.as_tuple else found


def _decoder_config(model: Any) -> Any:
    decoder = getattr(model, "decoder", None) or getattr(getattr(model, "transformer", None), "decoder", None)
    return getattr(decoder, "config", model.config)


def _share_problem_type(model: Any, ours: Any) -> None:
    """The kind of a classifier's loss may have been set on either side of the call."""
    found = getattr(model.config, "problem_type", None)
    if ours.config.problem_type != found:
        ours.config.problem_type = found


def _tell_problem_type(model: Any, call: Call) -> None:
    """Keep what the labels say of the loss, where transformers would: its configuration is saved with that."""
    if not type(model).__name__.endswith("ForSequenceClassification") or model.config.problem_type is not None:
        return
    labels = call.arguments["labels"]
    if model.config.num_labels == 1:
        model.config.problem_type = "regression"
    elif labels.dtype in (torch.long, torch.int):
        model.config.problem_type = "single_label_classification"
    else:
        model.config.problem_type = "multi_label_classification"
