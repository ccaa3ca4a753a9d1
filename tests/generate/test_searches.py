"""The searches themselves: who leaves when, neighbours, distributions of draws, and answers that there are none."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from generate_decoders import Chain
from generate_models import END, PAD, Family, megatron_bert, mt5, settings
from torch import Tensor

from padless.engine.errors import InputError, OptionError
from padless.engine.generate.generate import Generated, decoder_prompts, generate
from padless.engine.generate.options import GenerationOptions
from padless.engine.generate.sampling import Draw

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[mt5, megatron_bert], ids=["mt5", "megatron_bert"])
def family(request: pytest.FixtureRequest) -> Family:
    return request.param()


def written(result: Generated) -> list[list[int]]:
    assert result.new_tokens is not None
    assert result.lengths is not None
    return [row[:length] for row, length in zip(result.new_tokens.tolist(), result.lengths.tolist(), strict=True)]


def chain(table: Tensor, prompts: list[list[int]], **arguments: Any) -> Generated:
    options = GenerationOptions.resolve(arguments, config={"vocab_size": len(table)})
    return generate(Chain(table), options, [torch.tensor(prompt) for prompt in prompts])


SEARCHES: list[dict[str, Any]] = [
    {},
    {"num_beams": 3, "num_return_sequences": 2},
    {"num_beams": 2, "early_stopping": "never", "max_length": 20, "max_new_tokens": None},
]


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_a_prompt_gives_among_others_what_it_gives_alone(family: Family, search: dict[str, Any]) -> None:
    """With everything that looks at what a sequence holds; prompts of all lengths in one batch."""
    options = settings(family)
    arguments = {"max_new_tokens": 12, **options["two-grams"], **options["penalty"], **options["bad words"], **search}
    prompts = family.prompts(15, seed=11)
    together = written(family.ours(prompts, **arguments)[0])
    alone = [row for prompt in prompts for row in written(family.ours([prompt], **arguments)[0])]
    assert together == alone
    backwards = written(family.ours(prompts[::-1], **arguments)[0])
    copies = search.get("num_return_sequences", 1)
    assert [row for i in range(15) for row in backwards[(14 - i) * copies : (15 - i) * copies]] == together


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}], ids=str)
def test_finished_sequences_leave_the_batch(family: Family, search: dict[str, Any]) -> None:
    result, decoder = family.ours(family.prompts(50), max_new_tokens=14, **search)
    assert result.lengths is not None
    if not search:
        assert decoder.rows == [int((result.lengths > step).sum()) for step in range(int(result.lengths.max()))]
        assert decoder.rows[-1] < 40
        return
    assert decoder.rows[0] == 50  # the beams of a prompt begin as one
    assert decoder.rows[1] <= 150
    assert decoder.rows[1:] == sorted(decoder.rows[1:], reverse=True)
    assert decoder.rows[-1] < 150
    # A prompt whose search was over at once needs no step.
    needed = [int(3 * (result.lengths > step).sum()) for step in range(1, len(decoder.rows))]
    assert all(rows >= least for rows, least in zip(decoder.rows[1:], needed, strict=True))


def test_samples_of_one_prompt_are_prefilled_once(family: Family) -> None:
    arguments = {"max_new_tokens": 6, "do_sample": True, "num_return_sequences": 4, "seed": 3}
    result, decoder = family.ours(family.prompts(6), **arguments)
    assert decoder.rows[0] == 6
    assert len(result.sequences) == 24
    assert len({tuple(row) for row in written(result)[-4:]}) > 1


def test_what_is_generated(family: Family) -> None:
    """Its fields also read as transformers' outputs do."""
    prompts = family.prompts(5)
    result, _ = family.ours(prompts, max_new_tokens=5, output_scores=True, return_dict_in_generate=True)
    assert result[0] is result.sequences
    assert "beam_indices" not in result
    assert result.scores is not None
    assert result.lengths is not None
    beginnings = [torch.tensor([PAD])] * 5 if family.seq2seq else prompts
    for row, beginning, new in zip(result.sequences, beginnings, written(result), strict=True):
        held = len(beginning) + len(new)
        assert row.tolist() == [*beginning.tolist(), *new, *[PAD] * (len(row) - held)]
    for step, scores in enumerate(result.scores):
        assert (scores.any(dim=1) == (result.lengths > step)).all()
    assert not result.sequences.is_inference()
    silent, _ = family.ours(prompts, max_new_tokens=5, output_scores=True, return_dict_in_generate=True, num_beams=2)
    assert silent.beam_indices is not None
    assert silent.beam_indices.shape == silent["new_tokens"].shape
    assert family.ours(prompts, max_new_tokens=5)[0].scores is None


def test_scores_are_kept_only_where_more_than_sequences_are_wanted(family: Family) -> None:
    """As in transformers; a vocabulary of 250,000 is a megabyte a token."""
    result, _ = family.ours(family.prompts(5), max_new_tokens=5, output_scores=True)
    assert result.scores is None


def test_no_prompts() -> None:
    result = chain(torch.zeros(3, 3), [])
    assert result.sequences.shape == (0, 0)
    assert result.lengths is not None
    assert result.lengths.shape == (0,)


def test_without_an_end_token_all_go_to_the_full_length() -> None:
    table = torch.full((4, 4), 0.0)
    table[:, 1] = 5.0
    assert written(chain(table, [[2], [0]], max_new_tokens=4)) == [[1, 1, 1, 1]] * 2
    assert written(chain(table, [[2], [0]], max_new_tokens=4, num_beams=2)) == [[1, 1, 1, 1]] * 2
    assert written(chain(table, [[2], [0, 3]], max_length=4, pad_token_id=0)) == [[1, 1, 1], [1, 1]]
    assert written(chain(table, [[2], [0, 3]], max_length=4, pad_token_id=0, num_beams=2)) == [[1, 1, 1], [1, 1]]


CRITICAL = {3: 16.3, 4: 18.5, 5: 20.5, 11: 31.3}
"""Of chi-square, by degrees of freedom: one correct sampler in a thousand comes beyond it."""


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({"top_k": 0}, 12),
        ({"top_k": 0, "temperature": 0.5}, 12),
        ({"top_k": 0, "temperature": 2.0}, 12),
        ({"top_k": 4}, 4),
        ({"top_k": 0, "top_p": 0.8}, None),
        ({"top_k": 5, "top_p": 0.9, "temperature": 1.5}, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("copies", [50, 20_000])
def test_draws_have_the_distribution_that_is_asked_for(
    arguments: dict[str, Any], kept: int | None, copies: int
) -> None:
    """20,000 draws by chi-square against probabilities that are computed here, token by token, in plain Python."""
    logits = torch.randn(12, generator=torch.Generator().manual_seed(4)) * 1.2
    expected = plain_probabilities(logits.tolist(), **arguments)
    assert kept in (None, len(expected))
    total = 20_000
    result = chain(
        logits.expand(12, 12), [[3]] * (total // copies), max_new_tokens=1, do_sample=True, seed=17,
        num_return_sequences=copies, **arguments,
    )  # fmt: skip
    counts = Counter(token for (token,) in written(result))
    assert {*counts} <= {*expected}
    statistic = sum((counts[token] - total * p) ** 2 / (total * p) for token, p in expected.items())
    assert statistic < CRITICAL[len(expected) - 1]


def plain_probabilities(
    logits: list[float], top_k: int, top_p: float = 1.0, temperature: float = 1.0
) -> dict[int, float]:
    """Token -> probability, of those that may be drawn."""
    weights = {token: 2.718281828459045 ** (logit / temperature) for token, logit in enumerate(logits)}
    order = sorted(weights, key=weights.__getitem__, reverse=True)[: top_k or None]
    total, so_far, nucleus = sum(weights[token] for token in order), 0.0, []
    for token in order:
        if so_far >= top_p:
            break
        nucleus.append(token)
        so_far += weights[token] / total
    return {token: weights[token] / sum(weights[other] for other in nucleus) for token in nucleus}


def test_successive_draws_follow_the_chain() -> None:
    """Second tokens given the first: draws of different steps and rows have random numbers of their own."""
    table = torch.randn(5, 5, generator=torch.Generator().manual_seed(8))
    rows = written(chain(table, [[2]] * 20_000, max_new_tokens=2, do_sample=True, top_k=0, seed=1))
    first, second = table.softmax(dim=1)[2], table.softmax(dim=1)
    counts = Counter(map(tuple, rows))
    expected = {(a, b): 20_000 * float(first[a] * second[a, b]) for a in range(5) for b in range(5)}
    statistic = sum((counts[pair] - count) ** 2 / count for pair, count in expected.items())
    assert statistic < 51.2  # 24 degrees of freedom, one in a thousand


def test_draws_do_not_depend_on_when_others_end() -> None:
    """A row's random numbers are its own: an end token that others draw changes nothing for it."""
    table = torch.randn(9, 9, generator=torch.Generator().manual_seed(3))
    asked = {"max_new_tokens": 10, "do_sample": True, "top_k": 0, "seed": 12}
    free = written(chain(table, [[4]] * 40, **asked))
    ending = written(chain(table, [[4]] * 40, eos_token_id=1, **asked))
    assert any(len(row) < 10 for row in ending)
    for long, short in zip(free, ending, strict=True):
        assert short == long[: long.index(1) + 1 if 1 in long else 10]


def test_a_generator_of_the_callers_goes_on() -> None:
    """Two calls with one generator draw different tokens, and the same again from the same state."""
    table = torch.zeros(50, 50)
    drawn = [
        [written(chain(table, [[4]] * 5, max_new_tokens=6, do_sample=True, generator=generator)) for _ in range(2)]
        for generator in (torch.Generator().manual_seed(1), torch.Generator().manual_seed(1))
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]


@pytest.mark.parametrize(
    "search", [{}, {"do_sample": True}, {"num_beams": 2}, {"num_beams": 2, "do_sample": True}], ids=str
)
def test_logits_that_are_no_numbers_are_refused(search: dict[str, Any]) -> None:
    """The second prompt meets one after two tokens; greedy transformers would write token 0 without a word."""
    table = torch.full((8, 8), -20.0)
    for token, following in ((2, 3), (3, 3), (4, 5), (5, 6)):
        table[token, following] = 20.0
    table[6, 7] = float("nan")
    where = r"\d, step \d" if "num_beams" in search else "1, step 3"  # a beam comes to unlikely tokens too
    with pytest.raises(
        OptionError, match=rf"generate: prompt {where}: no token is left; the options forbid all, or the"
    ):
        chain(table, [[2], [4]], max_new_tokens=6, **search)


@pytest.mark.parametrize("search", [{}, {"do_sample": True}], ids=str)
def test_options_that_forbid_every_token_are_refused(search: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="generate: prompt 0, step 4: no token is left"):
        chain(torch.zeros(4, 4), [[0]], max_new_tokens=9, no_repeat_ngram_size=1, **search)


def test_hypotheses_that_the_options_forbid_are_missed() -> None:
    """Four tokens, none twice: the beams come to three sequences at most that end, and no fourth."""
    table = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    asked = {"max_new_tokens": 9, "eos_token_id": 1, "no_repeat_ngram_size": 1, "early_stopping": "never"}
    found = written(chain(table, [[0]], num_beams=4, num_return_sequences=3, **asked))
    assert len({tuple(row) for row in found}) == 3
    assert all(row[-1] == 1 for row in found)
    only_one = torch.full((4, 4), -float("inf"))
    only_one[:, 1] = 0.0
    with pytest.raises(
        OptionError, match=r"num_return_sequences: 2 are asked for, but only 1 of prompt 0 come to an end"
    ):
        chain(only_one, [[0]], num_beams=2, num_return_sequences=2, max_new_tokens=9, eos_token_id=1)


def test_a_generator_of_another_device_is_refused() -> None:
    asked = GenerationOptions.resolve({"do_sample": True, "generator": torch.Generator()}, config={"vocab_size": 4})
    with pytest.raises(OptionError, match="generator: expected one of device meta, got one of cpu"):
        Draw(asked, 1, torch.device("meta"))


def options(**arguments: Any) -> GenerationOptions:
    return GenerationOptions.resolve(arguments, config={"vocab_size": 20})


def test_a_decoder_begins_with_its_start_token() -> None:
    assert [row.tolist() for row in decoder_prompts(options(decoder_start_token_id=4), 2, CPU)] == [[4], [4]]
    assert [row.tolist() for row in decoder_prompts(options(decoder_start_token_id=[4, 5]), 2, CPU)] == [[4], [5]]
    assert [row.tolist() for row in decoder_prompts(options(bos_token_id=6), 1, CPU)] == [[6]]
    both = options(bos_token_id=6, decoder_start_token_id=0)
    assert [row.tolist() for row in decoder_prompts(both, 1, CPU)] == [[0]]


def test_given_decoder_tokens_get_the_start_token_as_in_transformers() -> None:
    family = mt5()
    for given in ([[5, 6], [7, 8], [9, 10], [0, 4]], [[5, 6], [7, 8], [9, 10], [11, 4]]):
        ids = torch.tensor(given)
        ours = decoder_prompts(family.options(), 4, CPU, [*ids])
        theirs, _ = family.model._prepare_decoder_input_ids_for_generation(
            4, "input_ids", {"decoder_input_ids": ids}, torch.tensor(PAD)
        )
        assert torch.equal(torch.stack(ours), theirs)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[1, 2]], "decoder_input_ids: expected 2 rows, one for each text, got 1"),
        ([[1, 2], [3, 20]], "decoder_input_ids: expected 0 to 19, got 20"),
        ([[1, -1], [3, 2]], "decoder_input_ids: expected 0 to 19, got -1"),
        ([[True], [True]], "decoder_input_ids: expected int64, got bool"),
        ([[1.0], [1.0]], "decoder_input_ids: expected int64, got float32"),
    ],
    ids=str,
)
def test_decoder_tokens_that_are_none(given: list[list[Any]], message: str) -> None:
    with pytest.raises(InputError) as caught:
        decoder_prompts(options(decoder_start_token_id=4), 2, CPU, [*torch.tensor(given)])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "decoder_start_token_id: expected a token id, neither it nor bos_token_id is set"),
        ({"bos_token_id": 50281}, "bos_token_id: expected a token id from 0 to 19, got 50281"),
        ({"decoder_start_token_id": [1, 2]}, "decoder_start_token_id: expected one, or one for each of 3 texts, got 2"),
    ],
    ids=str,
)
def test_a_start_token_that_is_none(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        decoder_prompts(options(**arguments), 3, CPU)
    assert str(caught.value) == message


def test_the_longest_prompt_and_the_most_sequences_are_announced(family: Family) -> None:
    """What a cache is made for: the decoders of these tests refuse more; here it is not more than is used."""
    _, decoder = family.ours(family.prompts(10), max_new_tokens=7, num_beams=3, suppress_tokens=[END])
    assert (decoder.steps, decoder.sequences) == (6, 30)
    assert len(decoder.rows) == 7
    assert max(decoder.rows) == 30
