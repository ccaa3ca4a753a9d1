"""The options of a call of `generate`: from its arguments, `generation_config.json` and the model's configuration."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import torch

from ..errors import OptionError
from .rules import FOR_SAMPLING
from .sources import GENERATION_CONFIG_NAME, OFF, checked_values

__all__ = ["GenerationOptions"]

DEFAULT_NEW_TOKENS = 20
"""Where no source names a length."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Checked options, in transformers' names and with its defaults; made by `resolve`.

    Attributes:
        vocab_size: tokens that the model can choose from.
        max_position_embeddings: tokens that the model has positions for, so that no sequence has more than one
            behind them, which is never read; where generation ends if no source names a length. None for no such end.
        asked: names that came as arguments of the call.
        max_new_tokens: the most tokens behind a prompt; counts before `max_length`.
        max_length: the most tokens of a sequence, its prompt included.
        min_length: before so many tokens, prompt included, no sequence ends.
        min_new_tokens: the same without the prompt; counts before `min_length`.
        num_beams: 1 is no beam search.
        early_stopping: whether a beam search ends with its `num_beams`-th finished sequence (True), when a better one
            is unlikely (False) or impossible ("never").
        length_penalty: exponent of the length by which a beam's log probability is divided; above 0 favours long ones.
        no_repeat_ngram_size: no sequence holds so many tokens in a row twice, its prompt included; 0 for off.
        repetition_penalty: divides positive logits of tokens that a sequence holds, multiplies negative ones.
        bad_words_ids: tokens, or tokens in a row, that are never chosen.
        forced_bos_token_id: the second token of each sequence.
        forced_eos_token_id: what the last token is chosen from, where a sequence comes to its full length.
        suppress_tokens: never chosen.
        begin_suppress_tokens: never chosen as the first new token, or the second behind `forced_bos_token_id`.
        do_sample: draw tokens instead of taking the likeliest.
        temperature: divides logits before a token is drawn.
        top_k: draw from so many likeliest tokens; 0 for all.
        top_p: draw from the likeliest tokens that have this probability together.
        seed: of the random numbers of this call.
        generator: source of the random numbers, on the model's device; torch's own without it and without a seed.
        num_return_sequences: sequences for each prompt.
        eos_token_id: each of them ends a sequence.
        pad_token_id: what stands behind finished sequences; without one the first end token.
        bos_token_id: start token of a decoder that has no other.
        decoder_start_token_id: start token of an encoder-decoder's decoder; several: one for each text.
        output_scores: keep the processed logits (log probabilities for beams) of each step; only beside the next.
        return_dict_in_generate: whether a caller of transformers' spelling wants more than the sequences.
    """

    vocab_size: int
    max_position_embeddings: int | None = None
    asked: frozenset[str] = frozenset()
    max_new_tokens: int | None = None
    max_length: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    num_beams: int = 1
    early_stopping: bool | Literal["never"] = False
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    seed: int | None = None
    generator: torch.Generator | None = None
    num_return_sequences: int = 1
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    decoder_start_token_id: tuple[int, ...] = ()
    output_scores: bool = False
    return_dict_in_generate: bool = False

    @classmethod
    def resolve(
        cls,
        arguments: Mapping[str, Any],
        *,
        config: Mapping[str, Any],
        generation_config: Mapping[str, Any] | None = None,
        source: str = GENERATION_CONFIG_NAME,
    ) -> Self:
        """Put the sources together, as transformers does: what the call asks for, then what the model asks for.

        An argument counts even where it is None, which switches its option off. An argument `generation_config`, a
        mapping or an object with `to_dict`, stands between the other arguments and the model; a None in it, as one in
        the model's file, says nothing.

        Args:
            arguments: of the call.
            config: the model's configuration; `vocab_size` and `max_position_embeddings` are read from it, and where
                the model has no generation configuration, options too.
            generation_config: what the model's `generation_config.json` holds; None where there is none.
            source: that file, for messages.

        Raises:
            OptionError: an argument that is unknown, not supported or out of range, or contradicts another option.
            ConfigError: the same of a value in the model's file.
        """
        defaults = {item.name: item.default for item in fields(cls)}
        values, asked = checked_values(arguments, config, generation_config, source, defaults)
        positions = config.get("max_position_embeddings")
        options = cls(vocab_size=config["vocab_size"], max_position_embeddings=positions, asked=asked, **values)
        options._check()
        return options

    def longest(self, prompt: int) -> int:
        """The most tokens of a sequence whose prompt has `prompt` tokens, these included."""
        named, positions = self._named(prompt), self.max_position_embeddings
        if positions is None:
            return prompt + DEFAULT_NEW_TOKENS if named is None else named
        return min(prompt + DEFAULT_NEW_TOKENS, positions) if named is None else min(named, positions + 1)

    def shortest(self, prompt: int) -> int:
        """The fewest tokens of a sequence whose prompt has `prompt` tokens, these included, before it may end."""
        return self.min_length if self.min_new_tokens is None else prompt + self.min_new_tokens

    @property
    def filler(self) -> int | None:
        """What stands behind finished sequences; None where nothing can."""
        return self.pad_token_id if self.pad_token_id is not None or not self.eos_token_id else self.eos_token_id[0]

    def _check(self) -> None:
        if self.num_return_sequences > 1 and self.num_beams == 1 and not self.do_sample:
            raise OptionError(
                f"num_return_sequences: expected 1 without beams or do_sample, got {self.num_return_sequences}"
            )
        if self.num_return_sequences > self.num_beams > 1:
            raise OptionError(
                f"num_return_sequences: expected at most num_beams, {self.num_beams}, got {self.num_return_sequences}"
            )
        for name, forced in (
            ("forced_bos_token_id", set() if self.forced_bos_token_id is None else {self.forced_bos_token_id}),
            ("forced_eos_token_id", {*self.forced_eos_token_id}),
        ):
            if forced and forced <= {*self.suppress_tokens}:
                raise OptionError(
                    f"{name}: {', '.join(map(str, sorted(forced)))} cannot be chosen, suppress_tokens names it too"
                )
        if self.seed is not None and self.generator is not None:
            raise OptionError("seed: given beside generator, expected one or the other")
        if self.num_beams * self.vocab_size < self.candidates:
            raise OptionError(
                f"num_beams: {len(self.eos_token_id)} end tokens take {self.candidates // self.num_beams} candidates a "
                f"beam, the vocabulary has {self.vocab_size}"
            )
        self._warn_of_idle()

    def check_prompts(self, lengths: set[int], *, in_rows: bool = False) -> None:
        """Refuse prompts that leave no room for a token, or none for the fewest tokens.

        Args:
            lengths: of the prompts, in tokens.
            in_rows: they stand in rows of one width already: only what is written behind them needs padding.

        Raises:
            OptionError: naming the length and the option.
        """
        self._warn_of_positions(max(lengths))
        for prompt in sorted(lengths, reverse=True):
            longest, shortest = self.longest(prompt), self.shortest(prompt)
            if longest <= prompt:
                limit = "max_length" if longest == self.max_length else "the model's max_position_embeddings"
                raise OptionError(f"{limit}: {longest} leaves no room behind a prompt of {prompt} tokens")
            if shortest > longest:
                least = "min_length" if self.min_new_tokens is None else "min_new_tokens"
                self._too_long(f"{least}: {shortest} tokens at least, but at most {longest}, prompt included", least)
                break
        several = {(self.longest(prompt) - prompt, 0 if in_rows else prompt) for prompt in lengths}
        if self.filler is None and len(several) > 1:
            raise OptionError("pad_token_id: expected a token id, the sequences will have several lengths")

    @property
    def candidates(self) -> int:
        """Continuations that a beam search looks at in each step: at least `num_beams` of them end no sequence."""
        return max(2, 1 + len(self.eos_token_id)) * self.num_beams

    def _named(self, prompt: int) -> int | None:
        """The most tokens that a source names, prompt included; None where none does."""
        return self.max_length if self.max_new_tokens is None else prompt + self.max_new_tokens

    def _too_long(self, message: str, name: str) -> None:
        if name in self.asked:
            raise OptionError(message)
        logger.warning("%s (from the model's files); sequences end at the latter", message)

    def _warn_of_positions(self, prompt: int) -> None:
        named, longest = self._named(prompt), self.longest(prompt)
        if named is not None and longest < named:
            name = "max_length" if self.max_new_tokens is None else "max_new_tokens"
            most = "%s: %d tokens, prompt included, but the model has positions for %d: sequences end at %d"
            logger.warning(most, name, named, self.max_position_embeddings, longest)

    def _warn_of_idle(self) -> None:
        idle = [name for name in FOR_SAMPLING if name in self.asked and not self.do_sample]
        idle += [name for name in ("early_stopping", "length_penalty") if name in self.asked and self.num_beams == 1]
        defaults = {item.name: item.default for item in fields(self)}
        idle = [name for name in idle if getattr(self, name) not in (defaults[name], OFF.get(name))]
        if idle:
            needed = "do_sample=True" if set(idle) <= {*FOR_SAMPLING} else "do_sample=True or num_beams above 1"
            logger.warning("generate: %s: no effect without %s", ", ".join(idle), needed)
