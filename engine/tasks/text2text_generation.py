"""Text to text: a model with an encoder and a decoder reads a text and writes another, such as a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from ..batch import PackedBatch
from ..errors import InputError, OptionError
from .generating import WritingOptions, writing_options, written_rows
from .pieces import Pieces, pieces_of_encodings
from .task import Task
from .text_inputs import read_single_texts

__all__ = ["Summarization", "Text2TextGeneration"]


OF_PROMPTS = ("padding", "add_special_tokens", "tokenizer_encode_kwargs", "handle_long_generation", "return_full_text")
"""Options of text-generation alone."""


class Text2TextGeneration(Task[str, WritingOptions]):
    """`[{"generated_text"}]` of each text, one for each of `num_return_sequences`.

    Options are those of `generate` and of `WritingOptions`. Neither the call nor the model's own files naming them,
    answers have up to 256 tokens and come of a search with 4 beams, as in the last pipeline of this kind
    (transformers 4.57).
    """

    name: ClassVar[str] = "text2text-generation"
    kind: ClassVar[str] = "ForConditionalGeneration"
    options_class: ClassVar[type] = WritingOptions
    written: ClassVar[str] = "generated"
    """What the names in an answer begin with."""

    def options(self, given: Mapping[str, Any]) -> WritingOptions:
        """Those of the call before the model's own."""
        for name in OF_PROMPTS:
            if name in given or name in self.defaults:
                raise OptionError(
                    f"{self.name}: {name}: no such option, it is of text-generation; for long texts: truncation"
                )
        return writing_options(
            self.loaded.model, self.name, {"max_new_tokens": 256, "num_beams": 4}, self.defaults, given
        )

    def read(self, inputs: Any, others: Mapping[str, Any]) -> tuple[list[str], bool]:
        """A text, or a list of texts."""
        return read_single_texts(inputs)

    def tokenise(self, items: Sequence[str], options: WritingOptions) -> tuple[Pieces, dict[int, InputError]]:
        """A piece of each text; one without a token cannot be read."""
        loaded = self.loaded
        cut = options.truncation not in (None, False, "do_not_truncate")
        limit = loaded.max_length if cut else loaded.model.base_model.longest
        found = loaded.spelling(
            [options.prefix + item for item in items],
            truncation=limit is not None,
            max_length=limit,
            return_overflowing_tokens=False,
            verbose=False,
        )
        encodings = found.encodings or []
        lost = [bool(encoding.overflowing) for encoding in encodings]
        empty = {row: InputError("no token to read") for row, encoding in enumerate(encodings) if not len(encoding)}
        return pieces_of_encodings(encodings, range(len(items)), types=False, truncated=lost), empty

    def score(self, batch: PackedBatch, options: WritingOptions) -> Sequence[list[list[int]] | InputError]:
        """The ids that are written about each text, the start token in front."""
        return written_rows(self.loaded.model, batch, options, starts=True)

    def answer(
        self, item: str, place: int, pieces: Pieces, scores: Sequence[list[list[int]]], options: WritingOptions
    ) -> list[dict[str, Any]]:
        """The texts of the ids, or the ids."""
        (rows,) = scores
        if options.return_tensors:
            return [{f"{self.written}_token_ids": torch.tensor(ids)} for ids in rows]
        clean_up = bool(options.clean_up_tokenization_spaces)
        return [{f"{self.written}_text": self.loaded.spelling.decode(ids, True, clean_up)} for ids in rows]

    def shaped(self, answers: list[Any], inputs: Any, single: bool, options: WritingOptions) -> Any:
        """A text's answers, and of a list of texts with one answer each these, as in transformers 4."""
        if single:
            return answers[0]
        return [rows[0] for rows in answers] if all(len(rows) == 1 for rows in answers) else answers


class Summarization(Text2TextGeneration):
    """The same under its other name: `[{"summary_text"}]`."""

    name: ClassVar[str] = "summarization"
    written: ClassVar[str] = "summary"
