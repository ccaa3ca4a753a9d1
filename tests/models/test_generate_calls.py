"""`generate` as callers call it: padding, types, modes, files, and what is answered with one line."""

from __future__ import annotations

import copy
import logging
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from generation_pairs import FAMILIES, padded, pair, prompts
from torch import Tensor

from padless import InputError, OptionError
from padless.engine.batch import PackedBatch

IDS = torch.tensor([[15, 2, 41, 5, 3], [15, 15, 3, 12, 24]])


def both(family: str, **arguments: Any) -> tuple[Tensor, Tensor]:
    """What transformers and what we return for the same call."""
    theirs, ours = pair(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs.generate(**arguments)
    return expected, ours.generate(**arguments)


MASKS = {
    "left": [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]],
    "middle": [[1, 1, 0, 1, 1], [1, 0, 0, 1, 1]],
    "whole": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
}


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float32], ids=str)
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_masked_tokens_are_not_seen_and_come_back_as_they_were(family: str, name: str, kind: torch.dtype) -> None:
    mask = torch.tensor(MASKS[name]).to(kind)
    expected, found = both(family, input_ids=IDS, attention_mask=mask, max_new_tokens=6, eos_token_id=None)
    if (family, name) == ("mt5", "middle"):
        # Here a text is what the mask leaves of it; transformers' mT5 counts its distances over the gaps.
        rows = [row[here != 0][None] for row, here in zip(IDS, mask, strict=True)]
        asked = {"max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0}
        expected = torch.cat([both(family, input_ids=row, **asked)[0] for row in rows])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_the_right_is_padding_too(family: str) -> None:
    """transformers lets a causal prompt's last token be padding; here what is written is that of the text alone."""
    _, ours = pair(family)
    ids = torch.tensor([[7, 8, 9, 0, 0], [15, 15, 3, 12, 24]])
    found = ours.generate(ids, attention_mask=(ids != 0).long(), max_new_tokens=6, eos_token_id=None)
    alone = ours.generate(ids[:1, :3], max_new_tokens=6, eos_token_id=None)
    if family == "megatron":
        assert torch.equal(found[:, :5], ids)
    assert torch.equal(found[0, -6:], alone[0, -6:])


@pytest.mark.parametrize("asked", [{}, {"eos_token_id": None}, {"pad_token_id": None}, {"pad_token_id": 1}], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_without_a_mask_is_what_transformers_takes_for_it(family: str, asked: dict[str, Any]) -> None:
    """A causal model's pad tokens, unless they end a sequence; an encoder's are read."""
    ids = padded(prompts(8, seed=2))["input_ids"]
    expected, found = both(family, input_ids=ids, max_new_tokens=5, **asked)
    assert torch.equal(found, expected)
    masked = pair(family)[1].generate(ids, attention_mask=(ids != 0).long(), max_new_tokens=5, **asked)
    assert torch.equal(found, masked) == (family == "megatron" and asked.get("pad_token_id", 0) == 0)


def test_a_tokenizer_s_types_are_taken() -> None:
    types, mask = torch.zeros_like(IDS), torch.ones_like(IDS)
    given = {"input_ids": IDS, "token_type_ids": types, "attention_mask": mask}
    expected, found = both("megatron", **given, max_new_tokens=6)
    assert torch.equal(found, expected)
    ours = pair("megatron")[1]
    with pytest.raises(OptionError, match="token_type_ids: expected zeros, prompts of several types are not supported"):
        ours.generate(**{**given, "token_type_ids": types + 1})
    with pytest.raises(InputError, match="token_type_ids: expected a tensor of the shape of input_ids"):
        ours.generate(**{**given, "token_type_ids": types[:1]})
    edges, places = torch.tensor([0, 5], dtype=torch.int32), torch.arange(5)
    lengths = edges[1:]
    packed = PackedBatch(IDS[0], places, types[0] + 1, edges, lengths, 5)
    with pytest.raises(OptionError, match="token_type_ids: expected zeros"):
        ours.generate(packed)
    with pytest.raises(InputError, match="a PackedBatch holds all inputs"):
        ours.generate(PackedBatch(IDS[0], places, types[0], edges, lengths, 5), token_type_ids=types[:1])
    with pytest.raises(OptionError, match=r"token_type_ids: tensor.* is not supported"):
        pair("mt5")[1].generate(**given)


def test_rows_of_one_width_need_no_pad_token() -> None:
    """Nothing ends early, and the padding of the prompts is the caller's."""
    given = padded(prompts(6, seed=2))
    asked = {"max_new_tokens": 3, "eos_token_id": None, "pad_token_id": None}
    expected, found = both("megatron", **given, **asked)
    assert torch.equal(found, expected)
    lengths = given["attention_mask"].sum(dim=1)
    ids = given["input_ids"][given["attention_mask"] != 0]
    edges = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    places = torch.cat([torch.arange(int(length)) for length in lengths])
    batch = PackedBatch(ids, places, None, edges, lengths.int(), int(lengths.max()))
    with pytest.raises(OptionError, match="pad_token_id: expected a token id"):
        pair("megatron")[1].generate(batch, **asked)


@pytest.mark.parametrize("family", FAMILIES)
def test_calls_of_other_shapes(family: str) -> None:
    for asked in (
        {"inputs": IDS.int()},
        {"inputs": IDS, "num_beams": 60},
        {"inputs": IDS, "cache_implementation": "static"},
        {"inputs": IDS, "eos_token_id": [2, 37, 45]},
        {"inputs": IDS, "past_key_values": None, "use_cache": False, "logits_processor": []},
        {"input_ids": IDS, "generation_config": transformers.GenerationConfig(max_new_tokens=4, num_beams=2)},
    ):
        arguments = {"attention_mask": torch.ones_like(IDS), "pad_token_id": 0, "decoder_start_token_id": 0, **asked}
        if "generation_config" not in asked:
            arguments["max_new_tokens"] = 4
        expected, found = both(family, **arguments)
        assert found.dtype == torch.int64
        # In beams transformers pads with the end token.
        assert found.shape == expected.shape
        assert torch.equal(found[expected != 1], expected[expected != 1])
    nothing = pair(family)[1].generate(IDS[:0], max_new_tokens=4)
    assert (len(nothing), nothing.dtype) == (0, torch.int64)


@pytest.mark.parametrize("asked", [{}, {"num_beams": 2}], ids=str)
def test_a_sequence_ends_where_the_positions_do(asked: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """transformers reads outside its table there; up to there both are the same."""
    ids = torch.randint(2, 53, (1, 90), generator=torch.Generator().manual_seed(1))
    asked = {**asked, "suppress_tokens": [1], "pad_token_id": 0}
    expected, fits = both("megatron", input_ids=ids, max_new_tokens=7, **asked)
    assert torch.equal(fits, expected)
    with caplog.at_level(logging.WARNING, "padless"):
        assert torch.equal(pair("megatron")[1].generate(ids, max_new_tokens=500, **asked), expected)
    assert [record.message for record in caplog.records] == [
        "max_new_tokens: 590 tokens, prompt included, but the model has positions for 96: sequences end at 97"
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_modes_of_torch(family: str) -> None:
    ours, given = copy.deepcopy(pair(family, torch.float32)[1]), padded(prompts(4, seed=2))
    expected = ours.generate(**given, max_new_tokens=8)
    with torch.inference_mode():
        assert torch.equal(ours.generate(**given, max_new_tokens=8), expected)
    assert torch.equal(ours.generate(**given, max_new_tokens=8), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours.generate(**given, max_new_tokens=8), expected)
        assert torch.is_autocast_enabled("cpu")
    with torch.enable_grad():
        scores = ours.generate(**given, max_new_tokens=2, output_scores=True, return_dict_in_generate=True).scores
        assert not scores[0].requires_grad
    ours.train()
    drawn = [ours.generate(**given, max_new_tokens=8, eos_token_id=None, pad_token_id=0) for _ in range(2)]
    assert ours.training
    assert not torch.equal(*drawn)  # dropout, as in transformers
    assert torch.equal(ours.eval().generate(**given, max_new_tokens=8), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_writes(family: str, dtype: torch.dtype) -> None:
    """Held against transformers in the same precision by how much agrees: rounding decides some tokens."""
    theirs, ours = (copy.deepcopy(model).to(dtype) for model in pair(family, torch.float32))
    given = padded(prompts(20, seed=5))
    asked = {**given, "max_new_tokens": 2, "eos_token_id": None, "pad_token_id": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs.generate(**asked)
    assert (ours.generate(**asked) == expected)[:, -2:].float().mean() > 0.8


@pytest.mark.parametrize("family", FAMILIES)
def test_calls_at_once_do_not_disturb_each_other(family: str) -> None:
    ours = pair(family)[1]
    calls = [{**padded(prompts(3, seed=seed)), "max_new_tokens": 8, "num_beams": 1 + seed % 2} for seed in range(4)]
    expected = [ours.generate(**call) for call in calls]
    found: list[Any] = [None] * 4

    def write(number: int) -> None:
        found[number] = ours.generate(**calls[number])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(mine, other) for mine, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_interrupted_call_leaves_the_model_as_it_was(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, given = pair(family)[1], padded(prompts(4, seed=2))
    expected = ours.generate(**given, max_new_tokens=8)
    head, calls = ours.language_model_head, []

    def interrupted(hidden: Tensor) -> Tensor:
        calls.append(len(hidden))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return head(hidden)

    with monkeypatch.context() as patch:
        patch.setattr(ours, "language_model_head", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ours.generate(**given, max_new_tokens=8)
    assert len(calls) == 4
    assert torch.equal(ours.generate(**given, max_new_tokens=8), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_of_a_prompt_are_those_of_the_seed(family: str) -> None:
    ours = pair(family)[1]
    asked = {"do_sample": True, "temperature": 1.5, "num_return_sequences": 5, "max_new_tokens": 8}
    first, again, other = (ours.generate(IDS, **asked, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)
    assert len({tuple(row) for row in first[:5].tolist()}) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_dictionary_holds_is_what_transformers_returns(family: str) -> None:
    asked = {"output_scores": True, "return_dict_in_generate": True, "max_new_tokens": 6, "num_beams": 3}
    theirs, ours = pair(family)
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "suppress_tokens": [1], **asked}
    expected, found = theirs.generate(**given), ours.generate(**given)
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(found.beam_indices, expected.beam_indices.long())
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores)
    assert len(found.scores) == len(expected.scores) == 6
    for mine, other in zip(found.scores, expected.scores, strict=True):
        torch.testing.assert_close(mine, other.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_generation_configuration_is_saved(family: str, tmp_path: Path) -> None:
    """A model that was read, saved and read again writes what it wrote."""
    ours = copy.deepcopy(pair(family)[1])
    held = {"num_beams": 3, "max_new_tokens": 5, "suppress_tokens": [40, 37], "eos_token_id": 1, "pad_token_id": 0}
    ours.generation_config = {**held, "decoder_start_token_id": 0}
    ours.save_pretrained(tmp_path)
    again = type(ours).from_pretrained(tmp_path)
    assert again.generation_config == ours.generation_config
    assert torch.equal(again.generate(IDS), ours.generate(IDS))
    assert not torch.equal(again.generate(IDS, suppress_tokens=None), ours.generate(IDS))
    ours.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        ("mt5", {"inputs": [[1, 2]]}, r"input_ids: expected a tensor \[batch, sequence\], got a list"),
        ("megatron", {"inputs": "a text"}, r"input_ids: expected a tensor \[batch, sequence\], got a str"),
        ("megatron", {"inputs": IDS, "attention_mask": [[1] * 5] * 2}, "attention_mask: expected a tensor"),
        ("megatron", {"inputs": IDS[0]}, r"input_ids: expected 2 axes, got shape \[5\]"),
        ("megatron", {"inputs": IDS.float()}, "input_ids: expected int64, got float32"),
        ("megatron", {"bos_token_id": 3}, "generate: input_ids: expected prompts to continue, got none"),
        ("megatron", {"inputs": IDS[:, :0]}, "generate: prompt 0: expected at least one token, got none"),
        ("mt5", {"inputs": IDS[:, :0]}, "generate: text 0: expected at least one token, got none"),
        ("mt5", {"inputs": IDS, "decoder_input_ids": IDS + 40}, "decoder_input_ids: expected 0 to 52, got 55"),
        ("mt5", {"inputs": IDS, "decoder_input_ids": IDS[:1]}, "decoder_input_ids: expected 2 rows, one for each"),
        ("mt5", {"inputs": IDS, "max_new_tokens": 10**9}, "max_new_tokens: expected a whole number from 1 to"),
        ("megatron", {"inputs": IDS, "inputs_embeds": torch.ones(2, 5, 24)}, "inputs_embeds: tensor.* not supported"),
        ("megatron", {"inputs": IDS, "streamer": object()}, "streamer: <object .* is not supported, expected None"),
        ("megatron", {"inputs": IDS, "generation_config": {"beams": 3}}, "generation_config: unknown option beams"),
    ],
)
def test_a_bad_call_is_one_clear_error(family: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, OptionError), match=message) as caught:
        pair(family)[1].generate(**arguments)
    assert "\n" not in str(caught.value)


def test_a_bert_tokenizer_s_batch_goes_straight_in(tmp_path: Path) -> None:
    """`generate(**tokenizer(...))`: ids, types and a mask."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer: Any = transformers.BertTokenizer(str(tmp_path / "vocab.txt"), padding_side="left")
    batch = tokenizer(["a b c d", "x y"], padding=True, return_tensors="pt")
    assert "token_type_ids" in batch
    expected, found = both("megatron", **batch, max_new_tokens=5)
    assert torch.equal(found, expected)
