"""Fill-mask: which tokens belong where a text is masked. Only masked positions meet the vocabulary."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from ..batch import PackedBatch
from ..errors import InputError, NotFiniteError, OptionError, TokenizerError
from .long_texts import tokenise_texts
from .options import at_least, one_of
from .pieces import Pieces
from .task import Loaded, Task
from .text_inputs import read_single_texts
from .tokenizer_arguments import TokenizerArguments

__all__ = ["FillMask", "FillMaskOptions"]

logger = logging.getLogger(__name__)

MOST_TARGETS = 64
"""Sets of targets whose ids are remembered."""


@dataclass(frozen=True)
class FillMaskOptions:
    """Of a call.

    Attributes:
        top_k: tokens for each mask, most likely first; all where there are fewer.
        targets: the words that are asked about; None is the whole vocabulary. A word that the vocabulary does not have
            counts as the first of its tokens, and the log says so.
        long_texts: "truncate" lets the model see the beginning of a text that is too long, "error" refuses it.
        tokenizer_kwargs: as in transformers: a dict of `truncation`, `max_length` and `padding`, see
            tokenizer_arguments.py.
    """

    top_k: int = 5
    targets: str | Sequence[str] | None = None
    long_texts: str = "truncate"
    tokenizer_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        at_least("top_k", self.top_k, 1)
        one_of("long_texts", self.long_texts, ("truncate", "error"))
        if self.targets is not None:
            targets = (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)
            if not targets or not all(isinstance(target, str) for target in targets):
                raise OptionError(f"targets: expected a word or a list of them, got {self.targets!r:.60}")
            object.__setattr__(self, "targets", targets)
        if not isinstance(self.tokenizer_kwargs, Mapping | None):
            raise OptionError(f"tokenizer_kwargs: expected a dict, got {self.tokenizer_kwargs!r:.60}")
        _ = self.tokenizer_arguments

    @property
    def tokenizer_arguments(self) -> TokenizerArguments:
        """What `tokenizer_kwargs` holds.

        Raises:
            OptionError: it has another entry, or a value is out of range.
        """
        return TokenizerArguments.read(self.tokenizer_kwargs or {}, "tokenizer_kwargs")


class Filled(NamedTuple):
    """Of one text, `[masks, k]` each, most likely first."""

    scores: np.ndarray
    ids: np.ndarray


class FillMask(Task[str, FillMaskOptions]):
    """A list of `{"score", "token", "token_str", "sequence"}` for each text, a list of such lists for several masks."""

    name: ClassVar[str] = "fill-mask"
    kind: ClassVar[str] = "ForMaskedLM"
    options_class: ClassVar[type] = FillMaskOptions

    def __init__(
        self, loaded: Loaded, defaults: Mapping[str, Any] | None = None, batch_size: int | None = None
    ) -> None:
        """As `Task`.

        Raises:
            TokenizerError: the tokenizer has no mask token.
        """
        super().__init__(loaded, defaults or {}, batch_size)
        if loaded.spelling.mask_token_id is None:
            raise TokenizerError(f"{loaded.folder}: the tokenizer has no mask token; fill-mask needs one")

    def read(self, inputs: Any, others: Mapping[str, Any]) -> tuple[list[str], bool]:
        """A text or a list of them, each with at least one mask token."""
        return read_single_texts(inputs)

    def tokenise(self, items: Sequence[str], options: FillMaskOptions) -> tuple[Pieces, dict[int, InputError]]:
        """A piece of each text."""
        self._targets(options)
        loaded, long_texts, truncation = options.tokenizer_arguments.applied(self.loaded, options.long_texts)
        pieces, faults = tokenise_texts(loaded, items, long_texts, truncation=truncation)
        missing = np.ones(len(items), dtype=bool)
        missing[pieces.owners[np.searchsorted(pieces.tokens.offsets, self._masks(pieces), side="right") - 1]] = False
        truncated = pieces.truncated(len(items))
        for row in missing.nonzero()[0].tolist():
            cut = " in the part that the model takes" if truncated[row] else ""
            faults.setdefault(row, InputError(f"no mask token ({self.loaded.spelling.mask_token}) in the text{cut}"))
        return pieces, faults

    def score(self, batch: PackedBatch, options: FillMaskOptions) -> Sequence[Filled]:
        """The most likely tokens of each mask of each piece."""
        # Known before the model runs, so that nothing waits for it before its answers do.
        asked = (batch.input_ids == self.loaded.spelling.mask_token_id).nonzero().flatten().cpu()
        targets = self._targets(options)
        if targets is None:
            top = self.loaded.model.top_predictions(batch, positions=asked, k=options.top_k)
            scores, ids = top.probabilities, top.ids
        else:
            logits = self.loaded.model(batch, positions=asked).logits.float()
            wanted = torch.from_numpy(targets).to(logits.device)
            likely = (logits[:, wanted] - logits.logsumexp(dim=1, keepdim=True)).exp()
            scores, places = likely.topk(min(options.top_k, len(targets)), dim=1)
            ids = wanted[places]
        # fp64 holds every id, and one copy is waited for instead of two.
        both = torch.stack((scores.double(), ids.double())).cpu().numpy()
        ends = np.cumsum(batch.lengths.numpy())
        stops = np.searchsorted(asked.numpy(), ends)
        return [Filled(*both[:, begin:stop]) for begin, stop in zip([0, *stops[:-1]], stops, strict=True)]

    def answer(
        self, item: str, place: int, pieces: Pieces, scores: Sequence[Filled], options: FillMaskOptions
    ) -> list[Any]:
        """What may stand at the mask, or at each mask."""
        filled = scores[0]
        if not np.isfinite(filled.scores).all():
            raise NotFiniteError("the model gave NaN or infinity; expected finite scores")
        begin, end = pieces.tokens.offsets[pieces.of(place).start :][:2]
        ids = pieces.tokens.input_ids[begin:end]
        masks = (ids == self.loaded.spelling.mask_token_id).nonzero()[0]
        rows = [
            [
                self._proposed(ids, mask, int(token), score, only=len(masks) == 1)
                for token, score in zip(tokens.tolist(), probabilities.tolist(), strict=True)
            ]
            for mask, tokens, probabilities in zip(masks.tolist(), filled.ids, filled.scores, strict=True)
        ]
        return rows[0] if len(rows) == 1 else rows

    def shaped(self, answers: list[Any], inputs: Any, single: bool, options: FillMaskOptions) -> Any:
        """A list of one text is answered as that text is, as in transformers."""
        return answers[0] if len(answers) == 1 else answers

    def _proposed(self, ids: np.ndarray, mask: int, token: int, score: float, *, only: bool) -> dict[str, Any]:
        spelling = self.loaded.spelling
        filled = ids.copy()
        filled[mask] = token
        if spelling.pad_token_id is not None:
            filled = filled[filled != spelling.pad_token_id]
        # With several masks the others have to be seen, so that special tokens stay.
        sequence = spelling.decode(filled.tolist(), skip_special_tokens=only)
        return {"score": score, "token": token, "token_str": spelling.decode([token]), "sequence": sequence}

    def _masks(self, pieces: Pieces) -> np.ndarray:
        """int64 `[masks]`, where they stand in `pieces.tokens.input_ids`."""
        return (pieces.tokens.input_ids == self.loaded.spelling.mask_token_id).nonzero()[0]

    @cached_property
    def _known_targets(self) -> dict[Any, np.ndarray]:
        return {}

    def _targets(self, options: FillMaskOptions) -> np.ndarray | None:
        """int64 `[targets]`, the ids that are asked about; None is all."""
        targets = options.targets
        if targets is None:
            return None
        if targets not in self._known_targets:
            if len(self._known_targets) >= MOST_TARGETS:
                self._known_targets.clear()
            self._known_targets[targets] = self._target_ids(targets)
        return self._known_targets[targets]

    def _target_ids(self, targets: Sequence[str]) -> np.ndarray:
        spelling = self.loaded.spelling
        vocabulary = spelling.get_vocab()
        found, replaced = set(), []
        for target in targets:
            if target in vocabulary:
                found.add(vocabulary[target])
                continue
            first = spelling(target, add_special_tokens=False, verbose=False)["input_ids"][:1]
            found.update(first)
            shown = repr(spelling.convert_ids_to_tokens(first[0])) if first else "nothing"
            replaced.append(f"{target!r} by {shown}")
        if replaced:
            logger.warning("fill-mask: targets that are not in the vocabulary are replaced: %s", ", ".join(replaced))
        if not found:
            raise OptionError("targets: expected at least one that the vocabulary can spell")
        return np.array(sorted(found), dtype=np.int64)
