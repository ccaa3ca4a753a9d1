"""`generate` of our models, held against transformers' token for token: same weights, same prompts, same options."""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import padless
from padless import InputError, OptionError
from padless.engine.batch import PackedBatch

T5: dict[str, Any] = {
    "vocab_size": 53,
    "d_model": 24,
    "d_kv": 5,
    "d_ff": 28,
    "num_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "tie_word_embeddings": False,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
MEGATRON: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 36,
    "max_position_embeddings": 96,
    "initializer_range": 0.5,
    "is_decoder": True,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
FAMILIES = ("mt5", "megatron")
END = 1

OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "repetition": {"repetition_penalty": 1.7},
    "no pairs twice": {"no_repeat_ngram_size": 2},
    "not before": {"min_new_tokens": 9},
    "bad words": {"bad_words_ids": [[7], [3, 9], [12, 4]]},
    "forced end": {"forced_eos_token_id": 1},
    "suppressed": {"suppress_tokens": [2, 5], "begin_suppress_tokens": [9]},
    "beams": {"num_beams": 3},
    "beams, all": {"num_beams": 4, "num_return_sequences": 4, "early_stopping": True},
    "beams, long": {"num_beams": 3, "length_penalty": 2.0, "early_stopping": "never", "no_repeat_ngram_size": 3},
    "beams, together": {"num_beams": 2, "repetition_penalty": 1.3, "min_new_tokens": 5, "bad_words_ids": [[7]]},
}


@cache
def pair(family: str) -> tuple[Any, Any]:
    """transformers' model and ours, in fp64: what rounding decides between equal tokens is nobody's claim."""
    torch.manual_seed(5)
    if family == "mt5":
        theirs: Any = transformers.MT5ForConditionalGeneration(transformers.MT5Config(**T5))
        ours: Any = padless.MT5ForConditionalGeneration(padless.MT5Config(**T5))
        with torch.no_grad():  # so that what is written depends on text and past, and ends at several lengths
            for name, parameter in theirs.named_parameters():
                if name.endswith((".q.weight", ".o.weight", ".relative_attention_bias.weight", ".wo.weight")):
                    parameter.mul_(4)
            theirs.shared.weight.mul_(0.1)
            theirs.lm_head.weight[END].mul_(1.3)
    else:
        theirs = transformers.MegatronBertForCausalLM(transformers.MegatronBertConfig(**MEGATRON))
        ours = padless.MegatronBertForCausalLM(padless.MegatronBertConfig(**MEGATRON))
        with torch.no_grad():
            theirs.cls.predictions.decoder.bias[1] += 2.0
    ours.load_state_dict(theirs.state_dict())
    return theirs.double().eval(), ours.double().eval()


def prompts(count: int, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 13, (count,), generator=draw).tolist()
    return [torch.randint(2, 53, (length,), generator=draw) for length in lengths]


def padded(texts: list[Tensor]) -> dict[str, Tensor]:
    width = max(map(len, texts))
    rows = [torch.cat([torch.zeros(width - len(text), dtype=torch.long), text]) for text in texts]
    masks = [torch.cat([torch.zeros(width - len(text), dtype=torch.long), torch.ones_like(text)]) for text in texts]
    return {"input_ids": torch.stack(rows), "attention_mask": torch.stack(masks)}


def new_tokens(sequences: Tensor, family: str, width: int) -> list[list[int]]:
    """What was written, up to its end token; behind it transformers' beams have end tokens, others have padding."""
    rows = sequences[:, 1 if family == "mt5" else width :].tolist()
    return [row[: row.index(END) + 1] if END in row else row for row in rows]


def theirs_alone(family: str, texts: list[Tensor], **options: Any) -> list[list[int]]:
    """Of each text by itself: where texts are padded, transformers' positions are not those of the text alone."""
    model, found = pair(family)[0], []
    for text in texts:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sequences = model.generate(text[None], attention_mask=torch.ones_like(text)[None], **options)
        found += new_tokens(sequences, family, len(text))
    return found


def compare(family: str, count: int, options: dict[str, Any], seed: int) -> None:
    texts = prompts(count, seed)
    given = padded(texts)
    options = {"max_new_tokens": 14, **options}
    ours = pair(family)[1].generate(**given, **options)
    found = new_tokens(ours, family, given["input_ids"].shape[1])
    expected = theirs_alone(family, texts, **options)
    assert found == expected


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_fifty_prompts_token_for_token(family: str, name: str) -> None:
    plain = name in ("greedy", "beams")
    compare(family, 50 if plain else 12, OPTIONS[name], seed=len(name))


@pytest.mark.soak
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_two_hundred_prompts_token_for_token(family: str, name: str) -> None:
    compare(family, 200, OPTIONS[name], seed=100 + len(name))


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
