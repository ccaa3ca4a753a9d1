"""Each processor by itself: bit for bit the scores that transformers' class of that duty gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from padless.engine.generate.options import GenerationOptions
from padless.engine.generate.processors import process, processors
from padless.engine.generate.running import Running

VOCABULARY, ENDS = 23, [1, 7]
LONGEST = 9
DEVICE = torch.device("cpu")


def history(rows: int, length: int, seed: int) -> Tensor:
    """Few different tokens, so that they repeat."""
    return torch.randint(2, 6, (rows, length), generator=torch.Generator().manual_seed(seed))


def scores_of(rows: int, seed: int) -> Tensor:
    scores = torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3
    scores[:, 11] = scores[:, 12]  # a tie
    scores[0, 3] = -float("inf")
    return scores


def ours(tokens: Tensor, scores: Tensor, prompt: int, **arguments: Any) -> Tensor:
    options = GenerationOptions.resolve(
        {"eos_token_id": ENDS, "max_length": LONGEST, **arguments}, config={"vocab_size": VOCABULARY}
    )
    running = Running.of([*tokens[:, :prompt]], options)
    for step in range(prompt, tokens.shape[1]):
        running = running.append(tokens[:, step])
    return process(processors(options, DEVICE), running, scores)


def words(ids: list[list[int]]) -> Callable[[int], Any]:
    return lambda prompt: transformers.NoBadWordsLogitsProcessor(ids, ENDS)


WORDS = [[3], [2, 4], [4, 4, 2], [5, 9], [3, 9], [1], [2, 5, 9], [4, 20, 21], [2] * 12]
TABLE: dict[str, tuple[dict[str, Any], Callable[[int], Any]]] = {
    "min_length": (
        {"min_length": 5},
        lambda prompt: transformers.MinLengthLogitsProcessor(5, ENDS),
    ),
    "min_new_tokens": (
        {"min_new_tokens": 3},
        lambda prompt: transformers.MinNewTokensLengthLogitsProcessor(prompt, 3, ENDS),
    ),
    **{
        f"{size}-grams": (
            {"no_repeat_ngram_size": size},
            lambda prompt, size=size: transformers.NoRepeatNGramLogitsProcessor(size),
        )
        for size in (1, 2, 3, 4)
    },
    **{
        f"penalty {penalty}": (
            {"repetition_penalty": penalty},
            lambda prompt, penalty=penalty: transformers.RepetitionPenaltyLogitsProcessor(penalty),
        )
        for penalty in (0.3, 1.7)
    },
    "bad words": ({"bad_words_ids": WORDS}, words(WORDS)),
    "one bad word": ({"bad_words_ids": [[4, 2]]}, words([[4, 2]])),
    "only an end token": ({"bad_words_ids": [[1], [7]]}, words([[1], [7]])),
    "forced first": ({"forced_bos_token_id": 8}, lambda prompt: transformers.ForcedBOSTokenLogitsProcessor(8)),
    "forced last": (
        {"forced_eos_token_id": [7, 9]},
        lambda prompt: transformers.ForcedEOSTokenLogitsProcessor(LONGEST, [7, 9]),
    ),
    "suppressed": (
        {"suppress_tokens": [0, 5, 11, 5]},
        lambda prompt: transformers.SuppressTokensLogitsProcessor([0, 5, 11, 5]),
    ),
    "suppressed at first": (
        {"begin_suppress_tokens": [2, 3]},
        lambda prompt: transformers.SuppressTokensAtBeginLogitsProcessor([2, 3], prompt),
    ),
    "temperature": (
        {"do_sample": True, "top_k": 0, "temperature": 0.37},
        lambda prompt: transformers.TemperatureLogitsWarper(0.37),
    ),
    **{
        f"top_k {kept}": (
            {"do_sample": True, "top_k": kept},
            lambda prompt, kept=kept: transformers.TopKLogitsWarper(kept),
        )
        for kept in (1, 4, 50)
    },
    **{
        f"top_p {share}": (
            {"do_sample": True, "top_k": 0, "top_p": share},
            lambda prompt, share=share: transformers.TopPLogitsWarper(share),
        )
        for share in (1e-6, 0.4, 0.9, 0.999)
    },
    "top_k of a beam": (
        {"do_sample": True, "top_k": 1, "num_beams": 2},
        lambda prompt: transformers.TopKLogitsWarper(1, min_tokens_to_keep=3),
    ),
    "top_p of a beam": (
        {"do_sample": True, "top_k": 0, "top_p": 0.01, "num_beams": 2},
        lambda prompt: transformers.TopPLogitsWarper(0.01, min_tokens_to_keep=3),
    ),
}
KEEPS_SCORES = {"only an end token", "top_k 50"}


@pytest.mark.parametrize("name", TABLE)
def test_scores_are_those_of_transformers(name: str) -> None:
    arguments, make = TABLE[name]
    changed = False
    for prompt in (1, 2, 3):
        theirs = make(prompt)
        for length in range(prompt, LONGEST):
            tokens, scores = history(6, length, seed=length), scores_of(6, seed=length)
            before = scores.clone()
            result = ours(tokens, scores, prompt, **arguments)
            assert torch.equal(result, theirs(tokens, scores.clone())), (prompt, length)
            assert torch.equal(scores, before)
            changed = changed or not torch.equal(result, before)
    assert changed != (name in KEEPS_SCORES)


@pytest.mark.parametrize("name", TABLE)
def test_rows_of_different_lengths_do_not_see_each_other(name: str) -> None:
    arguments, _ = TABLE[name]
    prompts = [history(1, length, seed=length)[0] for length in (1, 5, 2, 7, 3, 1)]
    options = GenerationOptions.resolve(
        {"eos_token_id": ENDS, "max_length": LONGEST, **arguments}, config={"vocab_size": VOCABULARY}
    )
    running, scores = Running.of(prompts, options), scores_of(6, seed=1)
    steps = processors(options, DEVICE)
    for step in range(2):
        for row, prompt in enumerate(prompts):
            alone = Running.of([prompt], options)
            for new in running.written[row]:
                alone = alone.append(new[None])
            expected = process(steps, alone, scores[row : row + 1])
            assert torch.equal(process(steps, running, scores)[row : row + 1], expected), (step, row)
        running = running.append(history(6, 1, seed=20 + step)[:, 0])


def test_the_order_is_that_of_transformers() -> None:
    """All at once, where every two of them can meet: a penalty before what is forced, what is suppressed after it."""
    together = {
        "repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "bad_words_ids": WORDS, "min_length": 6,
        "min_new_tokens": 2, "forced_bos_token_id": 3, "forced_eos_token_id": [7, 9], "suppress_tokens": [9, 14],
        "begin_suppress_tokens": [2, 13], "do_sample": True, "temperature": 0.7, "top_k": 12, "top_p": 0.9,
    }  # fmt: skip
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_layer=1, n_head=1, n_embd=2, bos_token_id=2, eos_token_id=1
    )
    model: Any = transformers.GPT2LMHeadModel(config)
    for prompt in (1, 2):
        asked = transformers.GenerationConfig(**together, eos_token_id=ENDS, max_length=LONGEST)
        model._prepare_special_tokens(asked, device="cpu")
        asked.min_length = asked.min_new_tokens + prompt
        theirs = model._get_logits_processor(asked, input_ids_seq_length=prompt, device="cpu")
        for length in range(prompt, LONGEST):
            tokens, scores = history(8, length, seed=length), scores_of(8, seed=length)
            assert torch.equal(ours(tokens, scores, prompt, **together), theirs(tokens, scores.clone())), (
                prompt,
                length,
            )


def test_forced_tokens_move_what_is_suppressed_at_first() -> None:
    """Behind a start token and a forced first one, the second new token is the first that is chosen."""
    arguments = {"forced_bos_token_id": 3, "begin_suppress_tokens": [2]}
    for prompt, length, suppressed in ((1, 1, True), (1, 2, True), (1, 3, False), (2, 2, True), (2, 3, False)):
        result = ours(history(2, length, seed=0), scores_of(2, seed=0), prompt, **arguments)
        assert bool(result[:, 2].isneginf().all()) == suppressed, (prompt, length)


def test_tokens_without_a_score_do_no_harm() -> None:
    """A prompt may hold ids that a model embeds and never gives."""
    tokens = torch.tensor([[VOCABULARY, 2, VOCABULARY + 5, 3, VOCABULARY, 2]])
    for arguments in ({"repetition_penalty": 2.0}, {"no_repeat_ngram_size": 2}):
        theirs: Any = (
            transformers.RepetitionPenaltyLogitsProcessor(2.0)
            if "repetition_penalty" in arguments
            else transformers.NoRepeatNGramLogitsProcessor(2)
        )
        scores = scores_of(1, seed=3)
        assert torch.equal(ours(tokens, scores, 6, **arguments), theirs(tokens, scores.clone()))
