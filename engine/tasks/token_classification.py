"""Token classification: what each token of a text is, or which entities there are in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from tokenizers import Encoding

from ..batch import PackedBatch
from ..errors import InputError, NotFiniteError, OptionError
from .characters import Characters
from .entities import STRATEGIES, Labels, Tokens, entities_of, without_overlaps
from .options import at_least, one_of
from .pieces import Pieces, pieces_of_encodings
from .task import Task
from .text_inputs import described, read_single_texts

__all__ = ["TokenClassification", "TokenClassificationOptions", "Words"]


@dataclass(frozen=True)
class Words:
    """A text in words, and what stands between two of them where places are counted."""

    words: tuple[str, ...]
    delimiter: str = " "


@dataclass(frozen=True)
class TokenClassificationOptions:
    """Of a call.

    Attributes:
        aggregation_strategy: of `STRATEGIES`, see entities.py.
        ignore_labels: labels that are left out; None is "O" alone.
        stride: the model sees all of a long text, in pieces that repeat so many tokens of the one before; None is only
            its beginning.
    """

    aggregation_strategy: str = "none"
    ignore_labels: Sequence[str] | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        given = self.aggregation_strategy
        strategy = str(getattr(given, "value", given)).lower()
        one_of("aggregation_strategy", strategy, STRATEGIES)
        object.__setattr__(self, "aggregation_strategy", strategy)
        ignored = ("O",) if self.ignore_labels is None else self.ignore_labels
        if isinstance(ignored, str) or not all(isinstance(label, str) for label in ignored):
            raise OptionError(f"ignore_labels: expected a list of labels, got {ignored!r:.60}")
        object.__setattr__(self, "ignore_labels", tuple(ignored))
        if self.stride is not None:
            at_least("stride", self.stride, 0)
            if strategy == "none":
                raise OptionError("stride: pieces are joined by their entities; expected an aggregation_strategy")


class TokenClassification(Task["str | Words", TokenClassificationOptions]):
    """A list for each text: `{"entity", "score", "index", "word", "start", "end"}` of its tokens, or under a strategy
    `{"entity_group", "score", "word", "start", "end"}` of its entities. `start` and `end` are characters of the text.
    """

    name: ClassVar[str] = "token-classification"
    kind: ClassVar[str] = "ForTokenClassification"
    options_class: ClassVar[type] = TokenClassificationOptions
    input_names: ClassVar[tuple[str, ...]] = ("is_split_into_words", "delimiter")

    def read(self, inputs: Any, others: Mapping[str, Any]) -> tuple[list[str | Words], bool]:
        """A text or a list of them; with `is_split_into_words` a list of words or a list of such lists, whose places
        are those in the words with `delimiter` between them, by default a space.
        """
        delimiter = others.get("delimiter")
        if delimiter is not None and not isinstance(delimiter, str):
            raise OptionError(f"delimiter: expected a string, got {described(delimiter)}")
        if not others.get("is_split_into_words"):
            texts, single = read_single_texts(inputs)
            return list(texts), single
        if isinstance(inputs, str) or not isinstance(inputs, Sequence):
            raise InputError(f"inputs: expected a list of words, or a list of such lists, got {described(inputs)}")
        several = bool(inputs) and all(isinstance(text, list | tuple) for text in inputs)
        rows = []
        for row, words in enumerate(inputs if several or not inputs else [inputs]):
            for word in words:
                if not isinstance(word, str):
                    raise InputError(f"row {row}: expected a list of words, got {described(word)} in it")
            rows.append(Words(tuple(words), " " if delimiter is None else delimiter))
        # As in transformers: a list of words is answered by a list of one.
        return rows, False

    def tokenise(
        self, items: Sequence[str | Words], options: TokenClassificationOptions
    ) -> tuple[Pieces, dict[int, InputError]]:
        """A piece of each text, or with `stride` as many as it takes."""
        words = bool(items) and isinstance(items[0], Words)
        texts = [_characters(item) for item in items]
        found = self.loaded.spelling(
            [text.words if words else text.text for text in texts],
            is_split_into_words=words,
            truncation=self.loaded.max_length is not None,
            max_length=self.loaded.max_length,
            stride=options.stride or 0,
            return_overflowing_tokens=True,
            verbose=False,
        )
        assert found.encodings is not None
        owners = np.asarray(found["overflow_to_sample_mapping"], dtype=np.int64)
        chosen, truncated = np.arange(len(owners)), np.zeros(len(owners), dtype=bool)
        if options.stride is None:
            chosen = np.unique(owners, return_index=True)[1]
            truncated = np.bincount(owners) > 1
        encodings = [found.encodings[place] for place in chosen.tolist()]
        return pieces_of_encodings(encodings, owners[chosen], types=self.loaded.typed, truncated=truncated), {}

    def score(self, batch: PackedBatch, options: TokenClassificationOptions) -> Sequence[np.ndarray]:
        """float32 of each piece: `[tokens, labels]` where they are averaged, else `[tokens, 2]`, the highest score and
        its label.
        """
        scores = torch.softmax(self.loaded.model(batch).logits.float(), dim=-1)
        if options.aggregation_strategy != "average":
            highest, label = scores.max(dim=-1)
            scores = torch.stack((highest, label.float()), dim=1)
        return np.split(scores.cpu().numpy(), np.cumsum(batch.lengths.numpy())[:-1])

    def answer(
        self,
        item: str | Words,
        place: int,
        pieces: Pieces,
        scores: Sequence[np.ndarray],
        options: TokenClassificationOptions,
    ) -> list[dict[str, Any]]:
        """The tokens, or the entities."""
        text = _characters(item)
        found = []
        for encoding, values in zip(pieces.encodings_of(place), scores, strict=True):
            if not np.isfinite(values).all():
                raise NotFiniteError("the model gave NaN or infinity; expected finite scores")
            tokens, subword, every = self._tokens(encoding, values, text, isinstance(item, Words), options)
            found += entities_of(
                tokens,
                subword,
                every,
                self._labels,
                strategy=options.aggregation_strategy,
                ignored=options.ignore_labels or (),
                join=self.loaded.spelling.convert_tokens_to_string,
            )
        found = without_overlaps(found) if len(scores) > 1 else found
        return [{**entity, "start": text.place(entity["start"]), "end": text.place(entity["end"])} for entity in found]

    def _tokens(
        self, encoding: Encoding, scores: np.ndarray, text: Characters, words: bool, options: TokenClassificationOptions
    ) -> tuple[Tokens, np.ndarray, np.ndarray | None]:
        """The tokens of a piece, which of them belong to the word before them, and all scores where there are any."""
        indices = (np.asarray(encoding.special_tokens_mask) == 0).nonzero()[0]
        places = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)[indices]
        if words:
            own_words = encoding.word_ids
            numbers = [own_words[index] for index in indices.tolist()]
            places += np.array([0 if word is None else text.starts[word] for word in numbers]).reshape(-1, 1)
        starts, ends = places.T
        all_spelled = encoding.tokens
        spelled = [all_spelled[index] for index in indices.tolist()]
        subword = self._subwords(text.text, spelled, starts, ends)
        unknown = (np.asarray(encoding.ids)[indices] == self._unknown).nonzero()[0]
        subword[unknown] = False
        for token in unknown.tolist():
            spelled[token] = text.text[starts[token] : ends[token]]
        own = scores[indices]
        if options.aggregation_strategy == "average":
            return Tokens(spelled, starts, ends, indices, own.argmax(axis=1), own.max(axis=1)), subword, own
        return Tokens(spelled, starts, ends, indices, own[:, 1].astype(np.int64), own[:, 0]), subword, None

    def _subwords(self, text: str, spelled: Sequence[str], starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        if self._marks_subwords:
            # A token is spelled longer than it stands in the text by the mark of a word that goes on.
            return np.fromiter(map(len, spelled), dtype=np.int64, count=len(spelled)) != ends - starts
        # Without marks, as in transformers: no space at the token's first character, nor before it.
        return np.array([start > 0 and " " not in text[start - 1 : start + 1] for start in starts.tolist()], dtype=bool)

    @cached_property
    def _marks_subwords(self) -> bool:
        return bool(getattr(self.loaded.spelling.backend_tokenizer.model, "continuing_subword_prefix", None))

    @cached_property
    def _unknown(self) -> int:
        unknown = self.loaded.spelling.unk_token_id
        return -1 if unknown is None else unknown

    @cached_property
    def _labels(self) -> Labels:
        return Labels(self.loaded.config.id2label)


def _characters(item: str | Words) -> Characters:
    return Characters(item.words, item.delimiter) if isinstance(item, Words) else Characters([item])
