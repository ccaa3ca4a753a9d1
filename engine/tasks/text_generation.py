"""Text generation: a decoder by itself goes on where a prompt ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from tokenizers import Encoding

from ..batch import PackedBatch, TokenizedTexts
from ..errors import InputError
from ..generate.options import GenerationOptions
from .generating import WritingOptions, writing_options, written_rows
from .pieces import Pieces, pieces_of_texts
from .task import Task
from .text_inputs import read_single_texts

__all__ = ["TextGeneration"]


class TextGeneration(Task[str, WritingOptions]):
    """`[{"generated_text"}]` of each prompt, the prompt in front unless `return_full_text=False`.

    Options are those of `generate` and of `WritingOptions`. Neither the call nor the model's own files naming them, up
    to 256 tokens are drawn at a temperature of 0.7, as in transformers' pipeline; `seed` makes draws repeatable.
    """

    name: ClassVar[str] = "text-generation"
    kind: ClassVar[str] = "ForCausalLM"
    options_class: ClassVar[type] = WritingOptions

    def options(self, given: Mapping[str, Any]) -> WritingOptions:
        """Those of the call before the model's own."""
        defaults = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}
        return writing_options(self.loaded.model, self.name, defaults, self.defaults, given)

    def read(self, inputs: Any, others: Mapping[str, Any]) -> tuple[list[str], bool]:
        """A prompt, or a list of prompts."""
        return read_single_texts(inputs)

    def tokenise(self, items: Sequence[str], options: WritingOptions) -> tuple[Pieces, dict[int, InputError]]:
        """A piece of each prompt that leaves room for an answer."""
        limit = self.loaded.model.base_model.longest
        lengths = GenerationOptions.resolve(
            options.generate,
            config=self.loaded.config.to_dict(),
            generation_config=self.loaded.model.generation_config,
        )
        prompts = self._encoded([options.prefix + item for item in items], options)
        rows: list[list[int]] = []
        faults: dict[int, InputError] = {}
        for place, encoding in enumerate(prompts):
            ids = encoding.ids
            wanted = lengths.max_new_tokens
            new = lengths.longest(len(ids)) - len(ids) if wanted is None else wanted
            if limit is not None and options.handle_long_generation == "hole" and 0 < new < limit < len(ids) + new:
                ids = ids[len(ids) - (limit - new) :]
            reason = _why_not(len(ids), new, limit)
            if reason:
                faults[place] = InputError(reason)
            rows.append(ids)
        sizes = np.fromiter(map(len, rows), dtype=np.int32, count=len(rows))
        whole = np.fromiter((token for ids in rows for token in ids), dtype=np.int32, count=int(sizes.sum()))
        lost = (bool(one.overflowing) or len(ids) < len(one) for ids, one in zip(rows, prompts, strict=True))
        cut = np.fromiter(lost, dtype=bool, count=len(rows))
        return pieces_of_texts(TokenizedTexts(whole, sizes, None, cut, np.zeros(len(rows), dtype=bool))), faults

    def _encoded(self, prompts: Sequence[str], options: WritingOptions) -> Sequence[Encoding]:
        arguments = options.tokenizer_arguments
        limit = None
        if arguments.strategy not in (None, "do_not_truncate"):
            limit = self.loaded.limited(arguments.max_length).max_length
        found = self.loaded.spelling(
            prompts,
            truncation=limit is not None,
            max_length=limit,
            return_overflowing_tokens=False,
            add_special_tokens=options.special_tokens is not False,
            verbose=False,
        )
        return found.encodings or []

    def score(self, batch: PackedBatch, options: WritingOptions) -> Sequence[list[list[int]] | InputError]:
        """The ids that are written behind each prompt."""
        return written_rows(self.loaded.model, batch, options, starts=False)

    def answer(
        self, item: str, place: int, pieces: Pieces, scores: Sequence[list[list[int]]], options: WritingOptions
    ) -> list[dict[str, Any]]:
        """The prompt and what follows, or the ids of both."""
        (rows,) = scores
        if options.return_tensors:
            own, tokens = pieces.of(place).start, pieces.tokens
            prompt = tokens.input_ids[tokens.offsets[own] : tokens.offsets[own + 1]].tolist()
            return [{"generated_token_ids": prompt + ids} for ids in rows]
        before = "" if options.return_full_text is False else item
        decode = self.loaded.spelling.decode
        clean_up = options.clean_up_tokenization_spaces
        return [{"generated_text": before + decode(ids, True, clean_up)} for ids in rows]


def _why_not(prompt: int, new: int, limit: int | None) -> str:
    """Why nothing can be written behind a prompt of so many tokens; empty where it can."""
    if not prompt:
        return "the prompt has no token"
    if limit is not None and prompt > limit:
        expected = "expected a shorter one, or handle_long_generation='hole'"
        return f"a prompt of {prompt} tokens, the model takes at most {limit}; {expected}"
    return f"a prompt of {prompt} tokens leaves no room within max_length" if new < 1 else ""
