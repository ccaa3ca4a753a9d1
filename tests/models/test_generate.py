"""`generate` of our models, held against transformers' token for token: same weights, same prompts, same options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from generation_pairs import (
    FAMILIES,
    MEGATRON,
    T5,
    new_tokens,
    padded,
    pair,
    prompts,
    theirs_alone,
)

import padless
from padless import InputError, OptionError
from padless.engine.batch import PackedBatch

PROCESSORS: dict[str, dict[str, Any]] = {
    "none": {},
    "penalty": {"repetition_penalty": 1.7},
    "no pairs twice": {"no_repeat_ngram_size": 2},
    "not before": {"min_length": 13},
    "new not before": {"min_new_tokens": 9},
    "bad words": {"bad_words_ids": [[40], [2, 5], [37, 37], [37, 33], [45, 52]]},
    "forced first": {"forced_bos_token_id": 11},
    "forced end": {"forced_eos_token_id": 1},
    "suppressed": {"suppress_tokens": [2, 37]},
    "not first": {"begin_suppress_tokens": [2, 20, 40, 37, 45]},
    "together": {"repetition_penalty": 1.3, "min_new_tokens": 5, "bad_words_ids": [[40]], "no_repeat_ngram_size": 3},
}
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
}
BEAMS: dict[str, dict[str, Any]] = {
    "early": {"num_beams": 4, "num_return_sequences": 4, "early_stopping": True},
    "long": {"num_beams": 3, "length_penalty": 2.0, "early_stopping": "never"},
    "short": {"num_beams": 2, "length_penalty": -1.0},
}
DTYPES = {"fp32": torch.float32, "fp64": torch.float64}


def compare(family: str, count: int, options: dict[str, Any], seed: int, dtype: torch.dtype) -> list[list[int]]:
    """What both write, or else an AssertionError."""
    texts = prompts(count, seed)
    given = padded(texts)
    options = {"max_new_tokens": 14, **options}
    ours = pair(family, dtype)[1].generate(**given, **options)
    found = new_tokens(ours, family, given["input_ids"].shape[1])
    expected = theirs_alone(family, texts, dtype, **options)
    different = sum(mine != other for mine, other in zip(found, expected, strict=True))
    assert found == expected, f"{different} of {len(found)} sequences"
    return found


@pytest.fixture(scope="module")
def plain() -> dict[tuple[str, str], list[list[int]]]:
    """What our models write without a processor, by family and search."""
    given, found = padded(prompts(50)), {}
    for family in FAMILIES:
        for search in SEARCHES:
            written = pair(family, torch.float32)[1].generate(**given, max_new_tokens=14, **SEARCHES[search])
            found[family, search] = new_tokens(written, family, given["input_ids"].shape[1])
    return found


@pytest.mark.parametrize(
    ("family", "name", "search"),
    # Each processor in both searches, one in each family; all four in `make soak`, with more prompts.
    [
        (family, name, search)
        for number, name in enumerate(PROCESSORS)
        for place, family in enumerate(FAMILIES)
        for search in [[*SEARCHES][(number + place) % len(SEARCHES)]]
    ],
)
def test_fifty_prompts_token_for_token_in_fp32(
    family: str, name: str, search: str, plain: dict[tuple[str, str], list[list[int]]]
) -> None:
    """With each processor and without; each changes what is written."""
    options = {**PROCESSORS[name], **SEARCHES[search]}
    written = compare(family, 50, options, seed=0, dtype=torch.float32)
    # The forced first token stands behind a prompt of one token.
    assert (written != plain[family, search]) == (name != "none")


@pytest.mark.parametrize("name", BEAMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_fifty_prompts_with_other_beams(family: str, name: str) -> None:
    compare(family, 50, BEAMS[name], seed=1, dtype=torch.float32)


@pytest.mark.soak
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("family", FAMILIES)
def test_two_hundred_prompts_token_for_token(family: str, name: str, search: str, dtype: str) -> None:
    compare(family, 200, {**PROCESSORS[name], **SEARCHES[search]}, seed=100 + len(name), dtype=DTYPES[dtype])


@pytest.mark.soak
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BEAMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_two_hundred_prompts_with_other_beams(family: str, name: str, dtype: str) -> None:
    compare(family, 200, BEAMS[name], seed=200 + len(name), dtype=DTYPES[dtype])


@pytest.mark.parametrize("family", FAMILIES)
def test_sequences_end_at_several_lengths(family: str) -> None:
    """What the tests above stand on: some end early and leave, others go on to the last step."""
    given = padded(prompts(50, seed=len("greedy")))
    written = pair(family)[1].generate(**given, max_new_tokens=14, return_dict_in_generate=True)
    assert len(set(written.lengths.tolist())) > 3
    assert len({tuple(row) for row in new_tokens(written.new_tokens, "megatron", 0)}) > 25
    assert len(set(written.new_tokens.flatten().tolist())) > 15


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_prompts_and_padded_ones_are_the_same(family: str) -> None:
    ours, texts = pair(family)[1], prompts(9, seed=3)
    lengths = torch.tensor([len(text) for text in texts], dtype=torch.int32)
    edges = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    places = torch.cat([torch.arange(int(length)) for length in lengths])
    batch = PackedBatch(torch.cat(texts), places, None, edges, lengths, int(lengths.max()))
    written = ours.generate(batch, max_new_tokens=10, return_dict_in_generate=True)
    given = padded(texts)
    by_rows = ours.generate(**given, max_new_tokens=10)
    width = given["input_ids"].shape[1]
    assert new_tokens(written.new_tokens, "megatron", 0) == new_tokens(by_rows, family, width)


@pytest.mark.parametrize("family", FAMILIES)
def test_drawn_tokens_are_those_of_the_seed(family: str) -> None:
    ours, given = pair(family)[1], padded(prompts(4, seed=9))
    options = {"do_sample": True, "temperature": 2.0, "top_k": 20, "top_p": 0.9, "max_new_tokens": 12}
    first, again, other = (ours.generate(**given, **options, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_the_folder_s_generation_configuration_counts(tmp_path: Path) -> None:
    _, ours = pair("mt5")
    ours.save_pretrained(tmp_path)
    asked = {"num_beams": 3, "max_new_tokens": 5, "bad_words_ids": [[7]]}
    tokens = {name: T5[name] for name in ("eos_token_id", "pad_token_id", "decoder_start_token_id")}
    (tmp_path / "generation_config.json").write_text(json.dumps({**asked, **tokens}))
    loaded: Any = padless.MT5ForConditionalGeneration.from_pretrained(tmp_path)
    given = padded(prompts(6, seed=4))
    expected = ours.generate(**given, **asked)
    assert torch.equal(loaded.generate(**given), expected)
    assert not torch.equal(loaded.generate(**given, num_beams=1, bad_words_ids=None), expected)


@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        (
            "mt5",
            {"input_ids": torch.zeros(1, 3, dtype=torch.long), "attention_mask": torch.zeros(1, 3)},
            "text 0: expected",
        ),
        (
            "megatron",
            {"input_ids": torch.ones(1, 3, dtype=torch.long), "attention_mask": torch.zeros(1, 3)},
            "prompt 0",
        ),
        ("megatron", {"input_ids": torch.ones(1, 97, dtype=torch.long)}, "97 tokens, the model takes at most 96"),
        ("megatron", {"input_ids": torch.ones(1, 96, dtype=torch.long)}, "leaves no room behind a prompt of 96"),
        ("mt5", {"input_ids": torch.full((1, 3), 53)}, "input_ids: expected 0 to 52"),
        ("mt5", {"input_ids": torch.ones(1, 3, dtype=torch.long), "min_length": 30, "max_length": 9}, "min_length"),
        (
            "mt5",
            {"input_ids": torch.ones(1, 3, dtype=torch.long), "num_beams": 2, "num_return_sequences": 3},
            "num_beams",
        ),
        ("mt5", {"input_ids": torch.ones(1, 3, dtype=torch.long), "bad_words_ids": [[]]}, "bad_words_ids"),
        (
            "mt5",
            {"input_ids": torch.ones(1, 3, dtype=torch.long), "max_newtokens": 3},
            "unknown argument max_newtokens",
        ),
    ],
)
def test_bad_input_is_one_clear_error(family: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, OptionError), match=message):
        pair(family)[1].generate(**arguments)


def test_an_encoder_does_not_write() -> None:
    config = padless.MegatronBertConfig(**{**MEGATRON, "is_decoder": False})
    with pytest.raises(OptionError, match="expected is_decoder in the configuration"):
        padless.MegatronBertForCausalLM(config).generate(torch.ones(1, 3, dtype=torch.long))
