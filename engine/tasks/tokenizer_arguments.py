"""Arguments of a tokenizer's call, in the tasks whose pipelines in transformers take them, with the same meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from ..errors import OptionError
from .options import at_least, one_of
from .task import Loaded

__all__ = ["TokenizerArguments"]

TRUNCATIONS = (None, True, False, "longest_first", "only_first", "only_second", "do_not_truncate")
PADDINGS = (None, True, False, "longest", "max_length", "do_not_pad")


@dataclass(frozen=True)
class TokenizerArguments:
    """Of a call.

    Attributes:
        truncation: True or "longest_first" cuts what is longer than `max_length`, of a pair the longer text;
            "only_first" and "only_second" cut one text of a pair; False or "do_not_truncate" refuses what is longer
            than the model takes. None is True where there is a `max_length` and no `padding`.
        max_length: tokens to cut to, special tokens included; None is what the tokenizer's settings say. Never more
            than the model has positions for.
        padding: without effect of its own: nothing is padded.
    """

    truncation: bool | str | None = None
    max_length: int | None = None
    padding: bool | str | None = None

    def __post_init__(self) -> None:
        one_of("truncation", self.truncation, TRUNCATIONS)
        one_of("padding", self.padding, PADDINGS)
        if self.max_length is not None:
            at_least("max_length", self.max_length, 1)

    @classmethod
    def read(cls, given: Mapping[str, Any], source: str) -> Self:
        """From a mapping, such as the option `source` of fill-mask.

        Raises:
            OptionError: it has another entry, or a value is out of range.
        """
        known = [item.name for item in fields(cls)]
        for name in given:
            if name not in known:
                raise OptionError(f"{source}: {name}: no such entry; expected one of {', '.join(known)}")
        return cls(**given)

    @property
    def strategy(self) -> str | None:
        """A name of `TRUNCATIONS`; None where nothing is said."""
        if self.truncation is None:
            return "longest_first" if self.max_length is not None and not self.padding else None
        if self.truncation is True:
            return "longest_first"
        # Members of transformers' enumeration are strings too.
        return str.__str__(self.truncation) if self.truncation else "do_not_truncate"

    def applied(self, loaded: Loaded, long_texts: str) -> tuple[Loaded, str, str]:
        """What `tokenise_texts` goes by: a model of that length, what is done with long texts, and which of two is cut.

        Args:
            loaded: the model.
            long_texts: as the call has it; that something is not to be cut makes "truncate" an "error".

        Raises:
            OptionError: the length leaves no room for the special tokens.
        """
        strategy = self.strategy
        if strategy is None:
            return loaded, long_texts, "longest_first"
        if strategy == "do_not_truncate":
            if long_texts != "truncate":
                return loaded, long_texts, "longest_first"
            return loaded.whole(), "error", "longest_first"
        return loaded.limited(self.max_length), long_texts, strategy
