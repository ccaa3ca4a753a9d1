"""Token for token what `generate` of transformers writes from the same fp32 logits of tiny models."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from generate_models import END, PAD, VOCABULARY, Family, assert_same, megatron_bert, mt5, settings

FAMILIES = {"mt5": mt5, "megatron_bert": megatron_bert}
NAMES = (
    "min_length", "min_new_tokens", "one-grams", "two-grams", "three-grams", "penalty", "reward", "bad words", "first",
    "last", "never", "not first", "several ends",
)  # fmt: skip
SEARCHES: dict[str, dict[str, Any]] = {"greedy": {}, "beams": {"num_beams": 3, "num_return_sequences": 2}}

# Every pair of values of two options is somewhere in the table.
BEAMS: list[dict[str, Any]] = [
    {"num_beams": beams, "early_stopping": early, "length_penalty": penalty, "num_return_sequences": returned}
    for beams, early, penalty, returned in (
        (2, False, 1.0, 1), (2, True, 0.0, 2), (2, "never", 2.5, 1), (2, True, -0.8, 1),
        (3, True, 1.0, 3), (3, "never", 0.0, 1), (3, False, 2.5, 2), (3, "never", -0.8, 3),
        (4, "never", 1.0, 2), (4, False, 0.0, 4), (4, True, 2.5, 3), (4, False, -0.8, 2),
        (5, "never", 1.0, 5), (5, True, 0.0, 1), (5, False, 2.5, 5), (5, False, -0.8, 1),
    )
]  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]()


@pytest.fixture(scope="module")
def options(family: Family) -> dict[str, dict[str, Any]]:
    return settings(family)


@pytest.fixture(scope="module")
def plain(family: Family) -> dict[str, list[list[int]]]:
    """What is written without any option, by the kind of search."""
    return {
        kind: assert_same(family, family.prompts(50), max_new_tokens=14, **search) for kind, search in SEARCHES.items()
    }


def test_the_models_have_no_ties_and_end_at_many_lengths(family: Family) -> None:
    """What makes the rest of this file a test: a tie would be decided by rounding, a common length hides mistakes."""
    result, _ = family.ours(family.prompts(50), max_new_tokens=14, output_scores=True, return_dict_in_generate=True)
    assert result.scores is not None
    assert result.lengths is not None
    assert len({*result.lengths.tolist()}) >= 7
    gaps = torch.cat([scores[scores.any(dim=1)].topk(2).values.diff() for scores in result.scores])
    assert gaps.max() < -1e-4


@pytest.mark.parametrize("count", [50, pytest.param(400, marks=pytest.mark.soak)])
@pytest.mark.parametrize("length", [{"max_new_tokens": 1}, {"max_new_tokens": 14}, {"max_length": 17}], ids=str)
def test_greedy(family: Family, count: int, length: dict[str, int]) -> None:
    assert_same(family, family.prompts(count), **length)


@pytest.mark.parametrize("kind", SEARCHES)
@pytest.mark.parametrize("name", NAMES)
def test_each_option(
    family: Family, options: dict[str, Any], plain: dict[str, list[list[int]]], name: str, kind: str
) -> None:
    written = assert_same(family, family.prompts(50), max_new_tokens=14, **options[name], **SEARCHES[kind])
    assert written != plain[kind] or (name == "first" and not family.seq2seq)


def test_the_table_names_all_options(options: dict[str, Any]) -> None:
    assert [*options] == [*NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_each_pair_of_options(family: Family, options: dict[str, Any], name: str) -> None:
    """With every option that stands behind it in the table, one kind of search after the other."""
    prompts = family.prompts(8, seed=7, lengths=(1, 5))
    for number, other in enumerate(NAMES[NAMES.index(name) + 1 :]):
        if not options[name].keys() & options[other].keys():
            search = [*SEARCHES.values()][number % 2]
            assert_same(family, prompts, max_length=16, **options[name], **options[other], **search)


@pytest.mark.soak
@pytest.mark.parametrize("kind", SEARCHES)
@pytest.mark.parametrize("name", NAMES)
def test_each_pair_of_options_in_both_searches(family: Family, options: dict[str, Any], name: str, kind: str) -> None:
    for other in NAMES[NAMES.index(name) + 1 :]:
        if not options[name].keys() & options[other].keys():
            asked = {**options[name], **options[other], **SEARCHES[kind]}
            assert_same(family, family.prompts(200, seed=9), max_length=22, **asked)


@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.soak)])
@pytest.mark.parametrize("search", BEAMS, ids=lambda search: "-".join(map(str, search.values())))
def test_beams(family: Family, search: dict[str, Any], count: int) -> None:
    ends = [END] if search["num_beams"] % 2 else [END, 9, 23]
    assert_same(family, family.prompts(count), max_new_tokens=12, eos_token_id=ends, **search)


@pytest.mark.soak
@pytest.mark.parametrize("ends", [[END], [END, 9, 23]], ids=str)
@pytest.mark.parametrize("early", [False, True, "never"])
def test_all_beams(family: Family, early: bool | str, ends: list[int]) -> None:
    for beams, penalty in itertools.product((2, 3, 6), (-2.0, -0.5, 0.5, 3.0)):
        search = {"num_beams": beams, "num_return_sequences": beams, "length_penalty": penalty, "early_stopping": early}
        assert_same(family, family.prompts(200), max_new_tokens=16, eos_token_id=ends, **search)


def test_beams_that_never_end(family: Family) -> None:
    assert_same(
        family, family.prompts(20), max_new_tokens=9, suppress_tokens=[END], num_beams=3, num_return_sequences=3
    )


@pytest.mark.parametrize("search", [{}, {"num_beams": 3, "num_return_sequences": 3}, {"num_beams": 5}], ids=str)
def test_ties(family: Family, search: dict[str, Any]) -> None:
    """Logits of three values, whatever the text: nearly every choice is one among equals.

    One prompt at a time: which of two equal hypotheses comes first in transformers depends on how long others search.
    """
    model = copy.deepcopy(family.model)
    head = model.lm_head if family.seq2seq else model.cls.predictions.decoder
    values = torch.randint(3, (VOCABULARY,), generator=torch.Generator().manual_seed(1)).float()
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(values)
    for asked in ({}, {"no_repeat_ngram_size": 2}, {"repetition_penalty": 1.5}, {"bad_words_ids": [[2], [4, 5]]}):
        for prompt in family.prompts(3, lengths=(1, 2, 9)):
            assert_same(Family(family.name, model), [prompt], max_new_tokens=8, **search, **asked)


@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    "drawn",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.7, "top_k": 5},
        {"top_p": 0.7, "top_k": 0},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "num_return_sequences": 3},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "top_p": 0.95},
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 4, "top_k": 4, "temperature": 0.7, "eos_token_id": [END, 9]},
        {"num_beams": 2, "top_p": 0.3},
    ],
    ids=str,
)
def test_draws_with_the_same_seed(family: Family, drawn: dict[str, Any], count: int) -> None:
    """The random numbers are those of transformers too, as long as its prompts make one batch."""
    length = None if family.seq2seq else 4
    prompts = [prompt for prompt in family.prompts(count * 5, seed=3) if length in (None, len(prompt))][:count]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        state = torch.random.get_rng_state()
        theirs = [
            row
            for output in family.theirs(prompts, max_new_tokens=10, do_sample=True, **drawn)
            for row in output.sequences
        ]
        torch.random.set_rng_state(state)
        from_torch, _ = family.ours(prompts, max_new_tokens=10, do_sample=True, **drawn)
    seeded, _ = family.ours(prompts, max_new_tokens=10, do_sample=True, seed=5, **drawn)
    other, _ = family.ours(prompts, max_new_tokens=10, do_sample=True, seed=6, **drawn)
    assert torch.equal(from_torch.sequences, seeded.sequences)
    assert not torch.equal(other.sequences, seeded.sequences)
    beginning = 1 if family.seq2seq else length
    assert seeded.lengths is not None
    for ours, row, new in zip(seeded.sequences, theirs, seeded.lengths.tolist(), strict=True):
        assert torch.equal(ours[: beginning + new], row[: beginning + new])


@pytest.mark.parametrize("search", [{}, {"num_beams": 3, "num_return_sequences": 3}], ids=str)
def test_scores(family: Family, search: dict[str, Any]) -> None:
    """Those of each step, of each sequence, and which beam each token came from."""
    prompts = [prompt for prompt in family.prompts(50) if family.seq2seq or len(prompt) == 4]
    asked = {"max_new_tokens": 10, "repetition_penalty": 1.3, **search}
    ours, _ = family.ours(prompts, output_scores=True, return_dict_in_generate=True, **asked)
    (theirs,) = family.theirs(prompts, **asked)
    assert ours.scores is not None
    assert len(ours.scores) == len(theirs.scores)
    going = 0
    for mine, other in zip(ours.scores, theirs.scores, strict=True):
        rows = mine.any(dim=1)
        going += int(rows.sum())
        torch.testing.assert_close(mine[rows], other[rows], rtol=1e-6, atol=1e-6)
    assert ours.lengths is not None
    if not search:
        assert torch.equal(ours.sequences, theirs.sequences)
        assert going == int(ours.lengths.sum())
        return
    torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores, rtol=1e-6, atol=1e-6)
    assert ours.beam_indices is not None
    assert torch.equal(ours.beam_indices, theirs.beam_indices.long())


def test_padding_is_the_pad_token_in_a_beam_search_too() -> None:
    """transformers fills with the end token where the pad token's id is 0; should it change, so can this package's
    documentation."""
    family = mt5()
    prompts = family.prompts(50)
    ours, _ = family.ours(prompts, max_new_tokens=10, num_beams=3)
    (theirs,) = family.theirs(prompts, max_new_tokens=10, num_beams=3)
    assert ours.lengths is not None
    behind = torch.arange(ours.sequences.shape[1]) > ours.lengths[:, None]
    assert behind.sum() > 20
    assert {*ours.sequences[behind].tolist()} == {PAD}
    assert {*theirs.sequences[behind].tolist()} == {END}
