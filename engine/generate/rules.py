"""The options of generation one by one: what each may be, and the form in which it is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import torch

__all__ = [
    "ARGUMENTS_ONLY",
    "FOR_SAMPLING",
    "IDLE",
    "IDLE_ARGUMENTS",
    "NOT_OPTIONS",
    "RULES",
    "SAMPLING_ONLY",
    "WITHOUT_EFFECT",
    "Rule",
    "Unexpected",
]

LARGEST = 2**24
"""Of a length or a number of sequences; far beyond any use, far below what breaks an allocation's arithmetic."""


class Unexpected(Exception):
    """A value that its rule refuses; the text is what was expected instead."""


Rule = Callable[[Any, int], Any]
"""Value and size of the vocabulary to the value as it is kept; raises Unexpected. None never gets here."""


def _whole(least: int, most: int = LARGEST) -> Rule:
    def rule(value: Any, vocab_size: int) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= most:
            raise Unexpected(f"a whole number from {least} to {most:,}")
        return int(value)

    return rule


def _number(expected: str, accepted: Callable[[float], bool]) -> Rule:
    def rule(value: Any, vocab_size: int) -> float:
        if not isinstance(value, Real) or isinstance(value, bool) or not accepted(float(value)):
            raise Unexpected(expected)
        return float(value)

    return rule


def _flag(value: Any, vocab_size: int) -> bool:
    if not isinstance(value, bool):
        raise Unexpected("True or False")
    return value


def _early_stopping(value: Any, vocab_size: int) -> bool | str:
    if not isinstance(value, bool) and value != "never":
        raise Unexpected("True, False or 'never'")
    return value


def _is_token(value: Any, vocab_size: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) < vocab_size


def _token(value: Any, vocab_size: int) -> int:
    if not _is_token(value, vocab_size):
        raise Unexpected(f"a token id from 0 to {vocab_size - 1}")
    return int(value)


def _tokens(value: Any, vocab_size: int) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not all(_is_token(token, vocab_size) for token in value):
        raise Unexpected(f"a list of token ids from 0 to {vocab_size - 1}")
    return tuple(map(int, value))


def _one_or_several(value: Any, vocab_size: int) -> tuple[int, ...]:
    several = value if isinstance(value, list | tuple) else [value]
    if not several or not all(_is_token(token, vocab_size) for token in several):
        raise Unexpected(f"a token id from 0 to {vocab_size - 1}, or a list of them that is not empty")
    return tuple(map(int, several))


def _words(value: Any, vocab_size: int) -> tuple[tuple[int, ...], ...]:
    right = isinstance(value, list | tuple) and len(value) > 0
    if not right or not all(isinstance(word, list | tuple) and len(word) > 0 for word in value):
        raise Unexpected("a list of lists of token ids, none of them empty")
    if not all(_is_token(token, vocab_size) for word in value for token in word):
        raise Unexpected(f"token ids from 0 to {vocab_size - 1}")
    return tuple(tuple(map(int, word)) for word in value)


def _generator(value: Any, vocab_size: int) -> torch.Generator:
    if not isinstance(value, torch.Generator):
        raise Unexpected("a torch.Generator")
    return value


RULES: dict[str, Rule] = {
    "max_new_tokens": _whole(1),
    "max_length": _whole(1),
    "min_length": _whole(0),
    "min_new_tokens": _whole(0),
    "num_beams": _whole(1),
    "early_stopping": _early_stopping,
    "length_penalty": _number("a finite number", math.isfinite),
    "no_repeat_ngram_size": _whole(0),
    "repetition_penalty": _number("a finite number above 0", lambda value: 0 < value < math.inf),
    "bad_words_ids": _words,
    "forced_bos_token_id": _token,
    "forced_eos_token_id": _one_or_several,
    "suppress_tokens": _tokens,
    "begin_suppress_tokens": _tokens,
    "do_sample": _flag,
    "temperature": _number(
        "a finite number above 0 (for the likeliest token do_sample=False)", lambda v: 0 < v < math.inf
    ),
    "top_k": _whole(0),
    "top_p": _number("a number above 0, at most 1", lambda value: 0 < value <= 1),
    "seed": _whole(0, 2**64 - 1),
    "generator": _generator,
    "num_return_sequences": _whole(1),
    "eos_token_id": _one_or_several,
    "pad_token_id": _token,
    "bos_token_id": _whole(0),  # most models name one that nothing reads: its range is checked where it is used
    "decoder_start_token_id": _one_or_several,
    "output_scores": _flag,
    "return_dict_in_generate": _flag,
}

FOR_SAMPLING = ("temperature", "top_k", "top_p", "seed", "generator")
"""Those of RULES that count where tokens are drawn."""

ARGUMENTS_ONLY = frozenset(("seed", "generator"))
"""Those of RULES that no file can name."""

SAMPLING_ONLY: dict[str, Any] = {
    "min_p": None,
    "top_h": None,
    "typical_p": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
}
"""As IDLE, for options that count where tokens are drawn."""

IDLE: dict[str, Any] = {
    **SAMPLING_ONLY,
    "assistant_early_exit": None,
    "constraints": None,
    "diversity_penalty": 0,
    "dola_layers": None,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1,
    "exponential_decay_length_penalty": None,
    "force_words_ids": None,
    "guidance_scale": 1,
    "max_time": None,
    "num_beam_groups": 1,
    "penalty_alpha": 0,
    "prompt_lookup_num_tokens": None,
    "remove_invalid_values": False,
    "renormalize_logits": False,
    "sequence_bias": None,
    "stop_strings": None,
    "token_healing": False,
    "use_mtp": False,
    "watermarking_config": None,
}
"""Options that transformers has and padless has not: the value with which each asks for nothing, beside None."""

IDLE_ARGUMENTS: dict[str, Any] = {
    "assistant_model": None,
    "custom_generate": None,
    "decoder_attention_mask": None,
    "decoder_inputs_embeds": None,
    "encoder_attention_mask": None,
    "encoder_hidden_states": None,
    "head_mask": None,
    "inputs_embeds": None,
    "labels": None,
    "logits_processor": [],
    "negative_prompt_attention_mask": None,
    "negative_prompt_ids": None,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_logits": False,
    "past_key_values": None,
    "position_ids": None,
    "prefix_allowed_tokens_fn": None,
    "stopping_criteria": [],
    "streamer": None,
    "synced_gpus": False,
    "token_type_ids": None,
}
"""As IDLE, for what counts as an argument only."""

WITHOUT_EFFECT = frozenset(
    (
        "cache_config",
        "cache_implementation",
        "compile_config",
        "disable_compile",
        "low_memory",
        "max_cache_len",
        "prefill_chunk_size",
        "tokenizer",
        "trust_remote_code",
        "use_cache",
    )
)
"""Arguments of transformers that change how it computes, and not what: any value is taken, none is needed."""

NOT_OPTIONS = frozenset(
    (
        "_from_model_config",
        "assistant_confidence_threshold",
        "assistant_ensemble_weight",
        "assistant_lookbehind",
        "continuous_batching_config",
        "generation_kwargs",
        "is_assistant",
        "max_matching_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "return_legacy_cache",
        "speculation_type",
        "target_lookbehind",
        "transformers_version",
    )
)
"""What a generation configuration of transformers also holds: of the file itself, or of a second model that there is
none of here."""
