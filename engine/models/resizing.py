"""The vocabulary of a model, which may grow and shrink: tokens are added to a tokenizer, and the model follows.

A family declares by `Vocabulary` which of its parameters have an axis of tokens; everything else is here, once.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import LIMITS
from ..errors import OptionError
from .blocks import Block

__all__ = ["Vocabulary", "WithVocabulary"]

SPREAD = 1e-9
"""Variance of new rows around the mean of the old ones, as a part of the old ones' own."""


@dataclass(frozen=True)
class Vocabulary:
    """Where a family keeps what has one row, or one column, for every token. What a class lacks is passed over.

    Attributes:
        tables: modules of the bare model, the word embeddings first, then further names of the same table.
        decoder: module whose outputs are the logits of the tokens, in classes that have it.
        bias: further name of the decoder's bias.
        columns: parameters `[…, tokens]`.
    """

    tables: tuple[str, ...] = ()
    decoder: str = ""
    bias: str = ""
    columns: tuple[str, ...] = ()


class WithVocabulary(Block):
    """What every model can do with its vocabulary, by the `vocabulary` of its family."""

    vocabulary: ClassVar[Vocabulary] = Vocabulary()
    config: Any

    @property
    @abstractmethod
    def base_model(self) -> Any:
        """The bare model inside a class with a head; the model itself where it has none."""

    @abstractmethod
    def tie_weights(self) -> None:
        """Make every tied name the same parameter as its source."""

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.base_model.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put other word embeddings in the place of ours. What was tied to them stays as it was; see `tie_weights`.

        Raises:
            OptionError: no `nn.Embedding`.
        """
        if not isinstance(value, nn.Embedding):
            raise OptionError(f"set_input_embeddings: expected an nn.Embedding, got {type(value).__name__}")
        first, *others = self.vocabulary.tables
        _put(self.base_model, first, value)
        for name in others:
            twin = nn.Embedding(value.num_embeddings, value.embedding_dim, _weight=value.weight.data)
            twin.weight = value.weight
            _put(self.base_model, name, twin)

    def get_output_embeddings(self) -> nn.Module | None:
        """The layer whose outputs are the logits of the tokens; None where the class has none."""
        try:
            return self.get_submodule(self.vocabulary.decoder) if self.vocabulary.decoder else None
        except AttributeError:
            return None

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Put another layer in the place of the decoder.

        Raises:
            OptionError: no `nn.Linear`, or the class has no decoder.
        """
        if self.get_output_embeddings() is None:
            raise OptionError(f"set_output_embeddings: {type(self).__name__} has no output embeddings")
        if not isinstance(value, nn.Linear):
            raise OptionError(f"set_output_embeddings: expected an nn.Linear, got {type(value).__name__}")
        _put(self, self.vocabulary.decoder, value)
        if self.vocabulary.bias:
            _put(self, self.vocabulary.bias, value.bias)

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Module:
        """Give the model a larger or smaller vocabulary: rows are added to and taken from its end.

        Whatever has a row or a column for every token follows: the word embeddings, the decoder and its bias; so does
        `config.vocab_size`. The others keep their values, tied parameters stay tied, the ops are bound again. The
        parameters are new ones: make the optimizer afterwards.

        Args:
            new_num_tokens: tokens from now on; None: as many as there are.
            pad_to_multiple_of: round the number up to a multiple of this.
            mean_resizing: new rows are the mean of the old ones with very little noise, as transformers makes them
                (Hewitt, "Initializing new word embeddings", 2021); False: normal weights by the configuration's
                `initializer_range` (mT5: `initializer_factor`). New biases are zero then, and under a tied decoder.

        Returns:
            The word embeddings.

        Raises:
            OptionError: a number out of range, or a layer that was replaced by one without such a parameter.
        """
        for name, value in (("new_num_tokens", new_num_tokens), ("pad_to_multiple_of", pad_to_multiple_of)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise OptionError(f"resize_token_embeddings: {name}: expected a whole number from 1, got {value!r}")
        if new_num_tokens is None and pad_to_multiple_of is None:
            return self.get_input_embeddings()
        found = [self._vocabulary_parameter(name) for name in self._vocabulary_names()]
        size = found[0].shape[0] if new_num_tokens is None else new_num_tokens
        size = -(-size // (pad_to_multiple_of or 1)) * (pad_to_multiple_of or 1)
        if size > LIMITS["vocab_size"][1]:
            raise OptionError(f"resize_token_embeddings: expected at most {LIMITS['vocab_size'][1]} tokens, got {size}")
        deviation = None if mean_resizing else getattr(self.config, "initializer_range", None)
        if not mean_resizing and deviation is None:
            deviation = self.config.initializer_factor
        tied = getattr(self.get_output_embeddings(), "weight", None) is found[0]
        resized: dict[int, nn.Parameter] = {}  # one for each old one, however many names it has
        for name, old in zip(self._vocabulary_names(), found, strict=True):
            axis = int(name in self.vocabulary.columns)
            if id(old) not in resized:
                spread = 0.0 if old.dim() == 1 and (tied or not mean_resizing) else deviation
                resized[id(old)] = old if old.shape[axis] == size else _resized(old, size, axis, spread)
            _put(self, name, resized[id(old)])
            _tell(self.get_submodule(name.rpartition(".")[0]), size)
        self.config.vocab_size = self.base_model.config.vocab_size = size
        self.tie_weights()
        self.bind()
        return self.get_input_embeddings()

    def _vocabulary_names(self) -> list[str]:
        """Parameters with an axis of tokens, the word embeddings first."""
        inside = next((f"{name}." for name, module in self.named_children() if module is self.base_model), "")
        names = [f"{inside}{table}.weight" for table in self.vocabulary.tables]
        decoder = self.get_output_embeddings()
        if decoder is None:
            return names
        names.append(f"{self.vocabulary.decoder}.weight")
        if getattr(decoder, "bias", None) is not None:
            names += [f"{self.vocabulary.decoder}.bias", *filter(None, [self.vocabulary.bias])]
        return [*names, *self.vocabulary.columns]

    def _vocabulary_parameter(self, name: str) -> nn.Parameter:
        owner, _, attribute = name.rpartition(".")
        module = self.get_submodule(owner)
        found = getattr(module, attribute, None)
        if not isinstance(found, nn.Parameter):
            kind = type(module).__name__
            raise OptionError(f"resize_token_embeddings: {owner}: expected a layer with a {attribute}, got a {kind}")
        return found


def _put(model: nn.Module, name: str, value: Any) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, value)


def _resized(old: nn.Parameter, size: int, axis: int, deviation: float | None) -> nn.Parameter:
    """A parameter of `size` along `axis`, with the old one's values as far as they reach."""
    rows = old.detach().movedim(axis, 0)
    new = torch.cat([rows[:size], _added(rows, max(size - len(rows), 0), deviation)])
    return nn.Parameter(new.movedim(0, axis).contiguous(), requires_grad=old.requires_grad)


def _added(rows: Tensor, count: int, deviation: float | None) -> Tensor:
    """`[count, …]` for the end of `rows`: around their mean, or normal with this standard deviation."""
    noise = torch.randn(count, *rows.shape[1:], device=rows.device)
    if deviation is not None:
        return (noise * deviation).to(rows.dtype)
    wide = rows.float()
    return (wide.mean(dim=0) + noise * wide.std(dim=0, correction=0) * SPREAD**0.5).to(rows.dtype)


def _tell(layer: nn.Module, size: int) -> None:
    """A layer knows the shape of its weight."""
    weight = getattr(layer, "weight", None)
    if isinstance(layer, nn.Embedding):
        layer.num_embeddings = size
    elif isinstance(layer, nn.Linear) and isinstance(weight, Tensor):
        layer.out_features, layer.in_features = weight.shape
