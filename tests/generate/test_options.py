"""Options: where they come from, beside transformers' own order, and what is refused in which words."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from generate_decoders import Chain
from generate_models import END, PAD, VOCABULARY, Family, assert_same, megatron_bert

from padless.engine.errors import ConfigError, InputError, OptionError
from padless.engine.generate.generate import generate
from padless.engine.generate.options import GenerationOptions
from padless.engine.generate.rules import IDLE, IDLE_ARGUMENTS, NOT_OPTIONS, RULES, WITHOUT_EFFECT
from padless.engine.generate.sources import read_generation_config, write_generation_config

CONFIG = {"vocab_size": VOCABULARY}


@pytest.fixture(scope="module")
def family() -> Family:
    return megatron_bert()


SOURCES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"max_new_tokens": 6}),
    ({"max_new_tokens": 5}, {"max_length": 14}),
    ({"max_length": 15}, {}),
    ({"max_length": 15}, {"max_new_tokens": 3}),
    ({"max_new_tokens": 5}, {"max_new_tokens": None, "max_length": 15}),
    ({"min_new_tokens": 4, "max_new_tokens": 9}, {"min_length": 1}),
    ({"min_length": 10, "max_new_tokens": 9}, {"min_new_tokens": 1}),
    ({"min_length": 10, "max_new_tokens": 9}, {"min_length": None}),
    ({"no_repeat_ngram_size": 2, "num_beams": 2, "max_new_tokens": 9}, {"num_beams": 1}),
    ({"no_repeat_ngram_size": None, "num_beams": None, "max_new_tokens": 9}, {}),
    ({"suppress_tokens": [*range(5, 20)], "max_new_tokens": 9}, {"suppress_tokens": None}),
    ({"suppress_tokens": [*range(5, 20)], "max_new_tokens": 9}, {}),
    ({"max_new_tokens": 9}, {"eos_token_id": None}),
    ({"max_new_tokens": 9}, {"eos_token_id": [9, 23]}),
    ({"max_new_tokens": 9, "repetition_penalty": 1.5}, {"repetition_penalty": None}),
    ({"max_new_tokens": 9, "typical_p": 0.5, "temperature": 0.0}, {}),
    ({"max_new_tokens": 9}, {"use_cache": False}),
]


def with_file(family: Family, file: dict[str, Any]) -> Family:
    """The same model with another `generation_config.json`."""
    model = family.model
    model.generation_config = transformers.GenerationConfig(**{"pad_token_id": PAD, "eos_token_id": END, **file})
    return Family("megatron_bert", model)


@pytest.mark.parametrize(("file", "arguments"), SOURCES, ids=str)
def test_sources_count_as_in_transformers(family: Family, file: dict[str, Any], arguments: dict[str, Any]) -> None:
    assert_same(with_file(family, file), family.prompts(10), **arguments)


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default:UserWarning")
def test_without_any_length_there_are_twenty_new_tokens_but_no_more_than_positions(family: Family) -> None:
    prompts = [torch.randint(4, VOCABULARY, (length,)) for length in (3, 55)]
    written = assert_same(with_file(family, {}), prompts, suppress_tokens=[END])
    assert [*map(len, written)] == [20, 64 - 55]


def test_a_generation_config_of_the_call_stands_between(family: Family) -> None:
    """Above the file, and below the other arguments; transformers refuses to mix the latter two for long."""
    given = transformers.GenerationConfig(no_repeat_ngram_size=2, max_new_tokens=7)
    changed = with_file(family, {"max_new_tokens": 3, "suppress_tokens": [*range(5, 15)]})
    assert_same(changed, family.prompts(10), generation_config=given)
    options = changed.options(generation_config={"no_repeat_ngram_size": 2, "top_k": None}, no_repeat_ngram_size=3)
    assert (options.no_repeat_ngram_size, options.max_new_tokens, options.top_k) == (3, 3, 50)


def test_drawing_without_top_k_or_with_the_default(family: Family) -> None:
    """As an argument None is off, in a file it says nothing."""
    for file, arguments, expected in (
        ({}, {}, 50),
        ({}, {"top_k": None}, 0),
        ({"top_k": None}, {}, 50),
        ({"top_k": 7}, {}, 7),
    ):
        options = with_file(family, {"do_sample": True, **file}).options(**arguments)
        assert options.top_k == expected


def test_where_there_is_no_file_the_configuration_counts(family: Family, tmp_path: Path) -> None:
    family.model.generation_config = transformers.GenerationConfig(pad_token_id=PAD, eos_token_id=END)
    family.model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"no_repeat_ngram_size": 2, "max_length": 15, "eos_token_id": 9, "hidden_dropout_prob": 0.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_generation_config(tmp_path) is None
    theirs: Any = transformers.GenerationConfig.from_pretrained(tmp_path, "config.json", _from_model_config=True)
    options = GenerationOptions.resolve({}, config=config)
    for name in ("no_repeat_ngram_size", "max_length", "pad_token_id"):
        assert getattr(options, name) == getattr(theirs, name)
    assert options.eos_token_id == (theirs.eos_token_id,) == (9,)
    beside_a_file = GenerationOptions.resolve({}, config=config, generation_config={"eos_token_id": END})
    assert (beside_a_file.max_length, beside_a_file.no_repeat_ngram_size, beside_a_file.eos_token_id) == (
        None,
        0,
        (END,),
    )


def test_every_option_of_transformers_is_known() -> None:
    """Asked for, it works or is refused by its name; a new release's options are seen here."""
    for name in transformers.GenerationConfig().to_dict():
        assert name in {*RULES, *IDLE, *IDLE_ARGUMENTS, *WITHOUT_EFFECT, *NOT_OPTIONS}, name
    mixin: Any = transformers.GenerationMixin
    for name in inspect.signature(mixin.generate).parameters:
        assert name in {*RULES, *IDLE, *IDLE_ARGUMENTS, "self", "inputs", "generation_config", "kwargs"}, name


def test_names_that_nobody_knows_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In a file and in an object, which a newer transformers may have made; what a mapping says is a mistake."""
    (tmp_path / "generation_config.json").write_text(
        '{"num_beams": 2, "foo": 1, "bar": null, "transformers_version": "6"}'
    )
    given = transformers.GenerationConfig(max_new_tokens=3, foo=4, num_assistant_tokens=2)
    with caplog.at_level(logging.WARNING, "padless"):
        read_generation_config(tmp_path)
        assert GenerationOptions.resolve({"generation_config": given}, config=CONFIG).max_new_tokens == 3
    assert [record.message.removeprefix(f"{tmp_path}/") for record in caplog.records] == [
        "generation_config.json: no effect, unknown here: foo",
        "generation_config: no effect, unknown here: foo",
    ]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    given = transformers.GenerationConfig(num_beams=3, eos_token_id=[1, 2], early_stopping="never", top_k=None)
    write_generation_config(tmp_path, given)
    held = read_generation_config(tmp_path)
    assert GenerationOptions.resolve({}, config=CONFIG, generation_config=held) == GenerationOptions.resolve(
        {}, config=CONFIG, generation_config=given.to_dict()
    )
    assert transformers.GenerationConfig.from_pretrained(tmp_path).to_diff_dict() == given.to_diff_dict()
    for folder, what in ((tmp_path / "none", {}), (tmp_path, {"a": torch.zeros(1)})):
        with pytest.raises(ConfigError, match=r"generation_config.json: cannot be written \("):
            write_generation_config(folder, what)


def test_the_file_is_read_with_suspicion(tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text('{"eos_token_id": 1, "transformers_version": "4.1", "_from_model_config": true, "unheard_of": [1]}')
    held = read_generation_config(tmp_path)
    assert held is not None
    assert GenerationOptions.resolve({}, config=CONFIG, generation_config=held).eos_token_id == (1,)
    path.write_text("[1]")
    with pytest.raises(ConfigError, match=r"generation configuration .*generation_config.json: expected a JSON object"):
        read_generation_config(tmp_path)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"num_beams": 0}, "generation_config.json: num_beams: expected a whole number from 1 to 16,777,216, got 0"),
        ({"max_length": 1e30}, "generation_config.json: max_length: expected a whole number"),
        ({"max_length": 10**30}, "generation_config.json: max_length: expected a whole number"),
        ({"eos_token_id": [1, VOCABULARY]}, "generation_config.json: eos_token_id: expected a token id from 0 to 46"),
        ({"pad_token_id": -1}, "generation_config.json: pad_token_id: expected a token id from 0 to 46, got -1"),
        ({"num_beam_groups": 3}, "generation_config.json: num_beam_groups: 3 is not supported, expected 1"),
        ({"do_sample": True, "min_p": 0.1}, "generation_config.json: min_p: 0.1 is not supported, expected None"),
        (
            {"do_sample": True, "temperature": 0},
            "generation_config.json: temperature: expected a finite number above 0",
        ),
        ({"do_sample": "yes"}, "generation_config.json: do_sample: expected True or False, got 'yes'"),
    ],
    ids=str,
)
def test_what_a_file_may_not_say(file: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GenerationOptions.resolve({}, config=CONFIG, generation_config=file)
    assert str(caught.value).startswith(message)
    overridden = dict.fromkeys(file, None)
    GenerationOptions.resolve(overridden, config=CONFIG, generation_config=file)


IDS = "expected a list of token ids from 0 to 46"
ONE_OR_SEVERAL = "expected a token id from 0 to 46, or a list of them that is not empty"
ABOVE_ZERO = "expected a finite number above 0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokns": 3}, "generate: unknown argument max_new_tokns"),
        ({"foo": None, "bar": 1, "num_beams": 2}, "generate: unknown argument bar, foo"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected a whole number from 1 to 16,777,216, got 0"),
        ({"max_new_tokens": 2.0}, "max_new_tokens: expected a whole number from 1 to 16,777,216, got 2.0"),
        ({"max_new_tokens": True}, "max_new_tokens: expected a whole number from 1"),
        ({"max_length": 0}, "max_length: expected a whole number from 1"),
        ({"max_length": "9"}, "max_length: expected a whole number from 1 to 16,777,216, got '9'"),
        ({"min_length": -1}, "min_length: expected a whole number from 0"),
        ({"min_new_tokens": -1}, "min_new_tokens: expected a whole number from 0"),
        ({"num_beams": 0}, "num_beams: expected a whole number from 1"),
        ({"num_beams": -3}, "num_beams: expected a whole number from 1"),
        ({"num_return_sequences": 0}, "num_return_sequences: expected a whole number from 1"),
        ({"num_return_sequences": 2}, "num_return_sequences: expected 1 without beams or do_sample, got 2"),
        ({"num_return_sequences": 4, "num_beams": 3}, "num_return_sequences: expected at most num_beams, 3, got 4"),
        ({"early_stopping": "sometimes"}, "early_stopping: expected True, False or 'never', got 'sometimes'"),
        ({"early_stopping": 1}, "early_stopping: expected True, False or 'never', got 1"),
        ({"length_penalty": float("nan")}, "length_penalty: expected a finite number, got nan"),
        ({"length_penalty": "1"}, "length_penalty: expected a finite number, got '1'"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size: expected a whole number from 0"),
        ({"repetition_penalty": 0}, f"repetition_penalty: {ABOVE_ZERO}, got 0"),
        ({"repetition_penalty": -1.5}, f"repetition_penalty: {ABOVE_ZERO}, got -1.5"),
        ({"bad_words_ids": []}, "bad_words_ids: expected a list of lists of token ids, none of them empty, got []"),
        ({"bad_words_ids": [[3], []]}, "bad_words_ids: expected a list of lists of token ids, none of them empty"),
        ({"bad_words_ids": [3]}, "bad_words_ids: expected a list of lists of token ids, none of them empty, got [3]"),
        ({"bad_words_ids": [[3, -1]]}, "bad_words_ids: expected token ids from 0 to 46, got [[3, -1]]"),
        ({"bad_words_ids": [[VOCABULARY]]}, "bad_words_ids: expected token ids from 0 to 46, got [[47]]"),
        ({"bad_words_ids": [[2.0]]}, "bad_words_ids: expected token ids from 0 to 46"),
        ({"forced_bos_token_id": VOCABULARY}, "forced_bos_token_id: expected a token id from 0 to 46, got 47"),
        ({"forced_bos_token_id": [1]}, "forced_bos_token_id: expected a token id from 0 to 46, got [1]"),
        ({"forced_eos_token_id": []}, f"forced_eos_token_id: {ONE_OR_SEVERAL}, got []"),
        ({"forced_eos_token_id": -1}, f"forced_eos_token_id: {ONE_OR_SEVERAL}, got -1"),
        ({"suppress_tokens": 3}, f"suppress_tokens: {IDS}, got 3"),
        ({"suppress_tokens": [-2]}, f"suppress_tokens: {IDS}, got [-2]"),
        ({"begin_suppress_tokens": [99]}, f"begin_suppress_tokens: {IDS}, got [99]"),
        ({"begin_suppress_tokens": [True]}, f"begin_suppress_tokens: {IDS}, got [True]"),
        ({"forced_eos_token_id": [1, 2], "suppress_tokens": [2, 1, 0]}, "forced_eos_token_id: 1, 2 cannot be chosen"),
        ({"forced_bos_token_id": 4, "suppress_tokens": [4]}, "forced_bos_token_id: 4 cannot be chosen"),
        ({"do_sample": 1}, "do_sample: expected True or False, got 1"),
        ({"temperature": 0}, f"temperature: {ABOVE_ZERO} (for the likeliest token do_sample=False), got 0"),
        ({"do_sample": True, "temperature": -0.1}, f"temperature: {ABOVE_ZERO}"),
        ({"temperature": float("inf")}, f"temperature: {ABOVE_ZERO}"),
        ({"top_k": -1}, "top_k: expected a whole number from 0 to 16,777,216, got -1"),
        ({"top_k": 2.5}, "top_k: expected a whole number from 0"),
        ({"top_p": 0.0}, "top_p: expected a number above 0, at most 1, got 0.0"),
        ({"top_p": 1.01}, "top_p: expected a number above 0, at most 1, got 1.01"),
        ({"top_p": float("nan")}, "top_p: expected a number above 0, at most 1, got nan"),
        ({"seed": -1}, "seed: expected a whole number from 0"),
        ({"seed": 2**64}, "seed: expected a whole number from 0"),
        ({"generator": 3}, "generator: expected a torch.Generator, got 3"),
        ({"seed": 1, "generator": torch.Generator()}, "seed: given beside generator"),
        ({"eos_token_id": []}, f"eos_token_id: {ONE_OR_SEVERAL}, got []"),
        ({"eos_token_id": [1, VOCABULARY]}, f"eos_token_id: {ONE_OR_SEVERAL}, got [1, 47]"),
        ({"pad_token_id": -1}, "pad_token_id: expected a token id from 0 to 46, got -1"),
        ({"decoder_start_token_id": []}, f"decoder_start_token_id: {ONE_OR_SEVERAL}, got []"),
        ({"output_scores": "all"}, "output_scores: expected True or False, got 'all'"),
        ({"generation_config": 3}, "generation_config: expected a mapping or None, got a int"),
        ({"generation_config": {"num_beams": 0}}, "num_beams: expected a whole number from 1"),
        ({"generation_config": {"max_newtokens": 3}}, "generation_config: unknown option max_newtokens"),
        ({"num_assistant_tokens": 3}, "generate: unknown argument num_assistant_tokens"),
        ({"past_key_values": ()}, "past_key_values: () is not supported, expected None"),
        (
            {"position_ids": torch.zeros(3, 4)},
            "position_ids: tensor([[0., 0., 0., 0.], [0., 0., 0., 0.], [0., 0., 0., ...",
        ),
        ({"labels": np.zeros(3)}, "labels: array([0., 0., 0.]) is not supported, expected None"),
        ({"bad_words_ids": torch.ones(2, 3)}, "bad_words_ids: expected a list of lists of token ids, none of them"),
        ({"streamer": print}, "streamer: <built-in function print> is not supported, expected None"),
        ({"logits_processor": [print]}, "logits_processor: [<built-in function print>] is not supported"),
        ({"output_attentions": True}, "output_attentions: True is not supported, expected False"),
        ({"renormalize_logits": True}, "renormalize_logits: True is not supported, expected False"),
        ({"do_sample": True, "typical_p": 0.9}, "typical_p: 0.9 is not supported, expected 1"),
        ({"num_beams": 2, "eos_token_id": [*range(47)]}, "num_beams: 47 end tokens take 48 candidates a beam"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_an_argument_may_not_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        GenerationOptions.resolve(arguments, config=CONFIG)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_idle_values_of_what_is_not_supported_pass() -> None:
    GenerationOptions.resolve(
        {
            "typical_p": 1.0, "num_beam_groups": 1, "streamer": None, "logits_processor": [], "synced_gpus": False,
            "cache_implementation": "static", "output_attentions": False, "suppress_tokens": [], "top_k": 0,
            "past_key_values": None, "token_type_ids": None, "tokenizer": None,
        },
        config=CONFIG,
    )  # fmt: skip


PROMPTS = [torch.tensor([4, 5, 6]), torch.tensor([7])]


def run(prompts: list[torch.Tensor] | None = None, **arguments: Any) -> None:
    options = GenerationOptions.resolve(arguments, config=CONFIG)
    generate(Chain(torch.randn(VOCABULARY, VOCABULARY)), options, PROMPTS if prompts is None else prompts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 3, "pad_token_id": 0}, "max_length: 3 leaves no room behind a prompt of 3 tokens"),
        ({"max_length": 8}, "pad_token_id: expected a token id, the sequences will have several lengths"),
        ({"min_length": 9, "max_length": 8, "eos_token_id": 1}, "min_length: 9 tokens at least, but at most 8"),
        ({"min_length": 9, "max_new_tokens": 5, "eos_token_id": 1}, "min_length: 9 tokens at least, but at most 8"),
        (
            {"min_new_tokens": 6, "max_new_tokens": 5, "eos_token_id": 1},
            "min_new_tokens: 9 tokens at least, but at most 8",
        ),
        ({"min_new_tokens": 6, "max_length": 8, "eos_token_id": 1}, "min_new_tokens: 9 tokens at least, but at most 8"),
        (
            {"num_beams": 2, "length_penalty": 1e5, "max_new_tokens": 5, "pad_token_id": 0},
            "length_penalty: 100000 is beyond reason",
        ),
    ],
    ids=str,
)
def test_lengths_that_do_not_fit_the_prompts(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        run(**arguments)
    assert str(caught.value).startswith(message)


def test_a_least_length_of_the_file_gives_way(caplog: pytest.LogCaptureFixture) -> None:
    """Who asks for three tokens shall not have to know what the model's file asks for."""
    options = GenerationOptions.resolve(
        {"max_new_tokens": 3}, config=CONFIG, generation_config={"min_length": 56, "eos_token_id": 1, "pad_token_id": 0}
    )
    with caplog.at_level(logging.WARNING, "padless"):
        result = generate(Chain(torch.randn(VOCABULARY, VOCABULARY)), options, PROMPTS)
    assert result.lengths is not None
    assert result.lengths.tolist() == [3, 3]
    assert [record.message for record in caplog.records] == [
        "min_length: 56 tokens at least, but at most 6, prompt included (from the model's files); "
        "sequences end at the latter"
    ]


def test_no_sequence_goes_beyond_the_positions_of_the_model(caplog: pytest.LogCaptureFixture) -> None:
    """One token behind the last position is chosen, as nothing reads it."""
    for named in ({"max_new_tokens": 9}, {"max_length": 12}):
        options = GenerationOptions.resolve(
            {**named, "pad_token_id": 0}, config={**CONFIG, "max_position_embeddings": 8}
        )
        with caplog.at_level(logging.WARNING, "padless"):
            result = generate(Chain(torch.randn(VOCABULARY, VOCABULARY)), options, [torch.arange(5), torch.arange(8)])
        assert result.lengths is not None
        assert result.lengths.tolist() == [4, 1]
    assert [record.message for record in caplog.records if "max_length" in record.message] == [
        "max_length: 12 tokens, prompt included, but the model has positions for 8: sequences end at 9"
    ]
    with pytest.raises(OptionError, match="the model's max_position_embeddings: 9 leaves no room behind a prompt of 9"):
        generate(Chain(torch.randn(VOCABULARY, VOCABULARY)), options, [torch.arange(9)])
    least = GenerationOptions.resolve(
        {"max_new_tokens": 9, "min_length": 10}, config={**CONFIG, "max_position_embeddings": 8}
    )
    with pytest.raises(OptionError, match="min_length: 10 tokens at least, but at most 9, prompt included"):
        generate(Chain(torch.randn(VOCABULARY, VOCABULARY)), least, [torch.arange(5)])


class Greedy(Chain):
    """It needs more memory than any machine has."""

    def start(self, prompts: Sequence[torch.Tensor], *, steps: int, sequences: int) -> torch.Tensor:
        torch.empty(steps * sequences, 2**30)
        raise AssertionError


def test_too_little_memory_is_told_in_one_line() -> None:
    options = GenerationOptions.resolve({"max_new_tokens": 2**20, "num_beams": 4, "pad_token_id": 0}, config=CONFIG)
    with pytest.raises(
        OptionError, match=r"^generate: no memory for 8 sequences of up to 1,048,579 tokens: ask for fewer of either$"
    ):
        generate(Greedy(torch.zeros(1, 1)), options, PROMPTS)


@pytest.mark.parametrize("prompt", [torch.tensor([], dtype=torch.int64), torch.tensor([[1, 2]])], ids=str)
def test_a_prompt_is_a_row_of_tokens(prompt: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"generate: prompt 1: expected a row of tokens, got shape \["):
        run([PROMPTS[0], prompt], max_new_tokens=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.5, "seed": 3}, "generate: temperature, seed: no effect without do_sample=True"),
        ({"early_stopping": True}, "generate: early_stopping: no effect without do_sample=True or num_beams above 1"),
        ({"temperature": 1.0, "top_k": None, "early_stopping": False}, None),
        ({"do_sample": True, "temperature": 0.5}, None),
        ({"num_beams": 2, "length_penalty": 0.5}, None),
    ],
    ids=str,
)
def test_an_argument_without_effect_is_told(
    arguments: dict[str, Any], message: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "padless"):
        GenerationOptions.resolve(arguments, config=CONFIG)
    assert [record.message for record in caplog.records] == ([message] if message else [])
