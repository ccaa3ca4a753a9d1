"""What stands as `generate` on an accelerated model of transformers."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from ...errors import PadlessError
from .calls import NotServed
from .twin import Twin

__all__ = ["Generate"]

INPUTS = ("inputs", "input_ids", "attention_mask", "token_type_ids", "inputs_embeds", "decoder_input_ids")


class Generate:
    """Takes the arguments of the original `generate` and returns the same tokens: by our loops where they know all
    options, else by the original, with one log line for each reason.
    """

    __name__ = "generate"

    def __init__(self, twin: Twin) -> None:
        self.twin = twin

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return type(self.twin.original).generate.__doc__

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.original)

    @property
    def original(self) -> Any:
        """The model's own `generate`."""
        model = self.twin.original
        return type(model).generate.__get__(model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._served(args, kwargs)
        except NotServed as reason:
            self.twin.tell(f"generate: {reason}")
        except PadlessError as error:
            self.twin.tell(f"generate: {str(error).removeprefix('generate: ')}", f"generate: {type(error).__name__}")
        with self.twin.left_aside():
            return self.original(*args, **kwargs)

    def _served(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        ours, why_not = self.twin.ready()
        if ours is None:
            raise NotServed(why_not)
        if len(args) > 1:
            raise NotServed("more than one argument without a name")
        given = {**dict(zip(("inputs",), args, strict=False)), **kwargs}
        given = {name: value for name, value in given.items() if value is not None or name not in INPUTS}
        effective = self._effective(given)
        for name in ("return_dict_in_generate", "assistant_model", "streamer"):
            if effective.get(name):
                raise NotServed(f"{name} is asked for")
        ours.generation_config = self.twin.original.generation_config.to_dict()
        found = ours.generate(**{**given, "return_dict_in_generate": True})
        return _filled(found, effective)

    def _effective(self, given: dict[str, Any]) -> dict[str, Any]:
        """The options of this call: its arguments, then its configuration, then the model's."""
        named = given.get("generation_config")
        chain = (self.twin.original.generation_config.to_dict(), {} if named is None else named.to_dict())
        said = {name: value for source in chain for name, value in source.items() if value is not None}
        return {**said, **{name: value for name, value in given.items() if name not in INPUTS}}


def _filled(found: Any, options: dict[str, Any]) -> Tensor:
    """The sequences; behind beams transformers takes the end token where the padding token is 0."""
    sequences, end = found.sequences, options.get("eos_token_id")
    if options.get("num_beams", 1) == 1 or options.get("pad_token_id") or end is None:
        return sequences
    ends = end if isinstance(end, (list, tuple)) else [end]
    start = sequences.shape[1] - found.new_tokens.shape[1]
    columns = torch.arange(found.new_tokens.shape[1])[None]
    behind = (columns >= found.lengths[:, None]).to(sequences.device)
    sequences[:, start:][behind] = int(ends[0])
    return sequences
