"""What all tasks share: inputs in, answers out in the same order, in windows, with the tokenising done ahead.

    inputs -> read (items) -> tokenise (pieces) -> score (one value a piece) -> answer (one an item)

A task says what these four are; this file runs them.
"""

from __future__ import annotations

import copy
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from ..batch import PackedBatch
from ..errors import InputError
from ..ops.bind import BoundOp, explain_ops, failed_kernels
from ..streaming.prefetch import Workers, prefetch
from ..streaming.stream import EncodeStats
from ..tokenization.base import PreTrainedTokenizerFast
from ..tokenizer import Tokenizer
from .options import read_options
from .pieces import Pieces
from .running import run_pieces

__all__ = ["Loaded", "Task"]

Item = TypeVar("Item")
Options = TypeVar("Options")

WINDOW_ITEMS = 1024
"""Inputs that are tokenised, sorted and run together: enough for batches of like lengths, little enough to hold."""


@dataclass
class Loaded:
    """A model with what is needed to feed it.

    Attributes:
        model: takes a PackedBatch in place of `input_ids`.
        tokenizer: ids of single texts, many at a time, never more of a long text than the model takes.
        spelling: the same vocabulary with the way back from tokens to characters; for pairs, windows and decoding.
        folder: where the model was loaded from.
        device: where it runs.
        dtype: what its activations are computed in.
        token_budget: most tokens in one batch; a longer piece gets a batch of its own.
    """

    model: Any
    tokenizer: Tokenizer
    spelling: PreTrainedTokenizerFast
    folder: Path
    device: torch.device
    dtype: torch.dtype
    token_budget: int

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    @property
    def max_length(self) -> int | None:
        """Tokens that the model takes, special tokens included; None where nothing limits them."""
        return self.tokenizer.max_length

    def limited(self, max_length: int | None) -> Loaded:
        """The same with so many tokens a text, or as many as the model has positions for; None changes nothing."""
        longest = self.model.base_model.longest
        if max_length is None:
            return self
        return self._with_length(max_length if longest is None else min(max_length, longest))

    def whole(self) -> Loaded:
        """The same with as many tokens a text as the model has positions for, whatever the tokenizer's settings say."""
        return self._with_length(self.model.base_model.longest)

    def _with_length(self, max_length: int | None) -> Loaded:
        tokenizer = copy.copy(self.tokenizer)
        tokenizer.max_length = max_length
        return replace(self, tokenizer=tokenizer)

    @property
    def typed(self) -> bool:
        """Whether the model is told token types."""
        return "token_type_ids" in self.spelling.model_input_names


@dataclass
class Task(ABC, Generic[Item, Options]):
    """A loaded model that answers. Safe to use from several threads.

    Attributes:
        loaded: the model and its tokenizer.
        defaults: options of every call that does not name them itself.
        batch_size: most pieces in a batch, of every call that does not say; None leaves that to the token budget.

    A task defines:
        name: as in `padless.load(path, task=name)`.
        kind: the model class, without its family, such as "ForMaskedLM".
        options_class: a frozen dataclass that refuses values out of range.
    """

    loaded: Loaded
    defaults: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int | None = None
    _workers: Workers = field(default_factory=Workers, init=False, repr=False, compare=False)

    name: ClassVar[str]
    kind: ClassVar[str]
    options_class: ClassVar[type]

    @abstractmethod
    def read(self, inputs: Any, others: Mapping[str, Any]) -> tuple[list[Item], bool]:
        """The inputs of a call, and whether it was called with a single one.

        Args:
            inputs: what the caller gave.
            others: inputs that were given by name, such as `question` and `context`.

        Raises:
            InputError: they are none; names the row.
        """

    input_names: ClassVar[tuple[str, ...]] = ()
    """Names under which inputs may be given."""

    window_items: ClassVar[int] = WINDOW_ITEMS
    """Inputs that are tokenised, sorted and run together; fewer where each of them makes many pieces."""

    @abstractmethod
    def tokenise(self, items: Sequence[Item], options: Options) -> tuple[Pieces, dict[int, InputError]]:
        """Pieces of the items, and what is wrong with those that have none."""

    def score(self, batch: PackedBatch, options: Options) -> Sequence[Any]:
        """Run the model on a batch that is on its device: a value on the host for each piece, or an InputError in place
        of one that does not exist.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither score nor score_pieces")

    def score_pieces(self, batch: PackedBatch, pieces: Pieces, chosen: np.ndarray, options: Options) -> Sequence[Any]:
        """In place of `score`, for a task that has to know which pieces a batch has: `chosen`, int64 `[batch]`."""
        return self.score(batch, options)

    @abstractmethod
    def answer(self, item: Item, place: int, pieces: Pieces, scores: Sequence[Any], options: Options) -> Any:
        """The answer to one item.

        Args:
            item: what was asked.
            place: its number among the items of `pieces`.
            pieces: of a window of items.
            scores: of this item's pieces, in their order.
            options: of the call.

        Raises:
            InputError: there is no answer, such as where the scores are no numbers.
        """

    def options(self, given: Mapping[str, Any]) -> Options:
        """The options of a call that names these.

        Raises:
            OptionError: an option is unknown or out of range.
        """
        return read_options(self.options_class, self.name, self.defaults, given)

    def shaped(self, answers: list[Any], inputs: Any, single: bool, options: Options) -> Any:
        """What a call returns: the answers, or the only one."""
        return answers[0] if single else answers

    def __call__(
        self,
        inputs: Any = None,
        *,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        stats: EncodeStats | None = None,
        **options: Any,
    ) -> Any:
        """Answer one input or several, in their order.

        Args:
            inputs: as the task's own documentation says; several are a list.
            batch_size: most pieces in a batch; None is the task's own.
            show_progress_bar: show a bar on standard error; None is False.
            stats: counters to add to.
            options: the task's own.

        Raises:
            InputError: an input is malformed, or has no answer; names the row. A NotFiniteError where the model gave no
                numbers, a MemoryLimitError where the input does not fit in memory.
            OptionError: an option is unknown or out of range.
        """
        others = {name: options.pop(name) for name in self.input_names if name in options}
        found = self.options(options)
        items, single = self.read(inputs, others)
        answers = []
        with tqdm(total=len(items), unit="text", disable=not show_progress_bar) as bar:
            for row, answer in enumerate(self.answers(items, found, batch_size=batch_size, stats=stats)):
                if isinstance(answer, InputError):
                    raise answer.of_row(row)
                answers.append(answer)
                bar.update()
        return self.shaped(answers, inputs, single, found)

    def answers(
        self,
        items: Iterable[Item],
        options: Options,
        *,
        batch_size: int | None = None,
        stats: EncodeStats | None = None,
        on_batch: Callable[[int, int], None] | None = None,
        on_truncated: Callable[[int], None] | None = None,
    ) -> Iterator[Any]:
        """An answer for each item, in order and in bounded memory; an InputError in place of one that has none.

        Args:
            items: from `read`.
            options: of `options_class`.
            batch_size, stats: as of a call.
            on_batch: called with (pieces, tokens) after each batch.
            on_truncated: called with the number of an item that the model did not see whole, before its answer comes.
        """
        stats = EncodeStats() if stats is None else stats
        first = 0
        for window, pieces, faults in prefetch(self._tokenised(iter(items), options)):
            truncated = pieces.truncated(len(window)).nonzero()[0].tolist()
            stats.texts += len(window)
            stats.truncated += len(truncated)
            stats.repaired += len(set(pieces.owners[pieces.tokens.repaired].tolist()))
            if on_truncated is not None:
                for place in truncated:
                    on_truncated(first + place)
            first += len(window)
            scores = run_pieces(
                pieces.tokens,
                partial(self._scored, pieces, options),
                workers=self._workers,
                device=self.loaded.device,
                token_budget=self.loaded.token_budget,
                batch_size=self.batch_size if batch_size is None else batch_size,
                stats=stats,
                on_batch=on_batch,
                alike=self.loaded.model.deterministic,
            )
            for place, item in enumerate(window):
                found = scores[pieces.of(place).start : pieces.of(place).stop]
                fault = faults.get(place) or next((score for score in found if isinstance(score, InputError)), None)
                try:
                    yield fault or self.answer(item, place, pieces, found, options)
                except InputError as error:
                    yield error

    def _scored(self, pieces: Pieces, options: Options, batch: PackedBatch, chosen: np.ndarray) -> Sequence[Any]:
        return self.score_pieces(batch.to(self.loaded.device), pieces, chosen, options)

    def _tokenised(
        self, items: Iterator[Item], options: Options
    ) -> Iterator[tuple[list[Item], Pieces, dict[int, InputError]]]:
        while window := list(itertools.islice(items, self.window_items)):
            pieces, faults = self.tokenise(window, options)
            yield window, pieces.without(faults), faults

    def bound_ops(self) -> tuple[BoundOp, ...]:
        """The ops of the model."""
        return self.loaded.model.bound_ops()

    def explain(self) -> str:
        """The dispatch table as resolved for this model: op, implementation, dtype, and why not the rows above."""
        return explain_ops(self.bound_ops())

    def failed_kernels(self) -> list[str]:
        """Kernels that could not be compiled or started here, and how: other implementations serve in their place."""
        return failed_kernels(self.bound_ops())
