"""text2text-generation, summarization and text-generation against transformers: its model's `generate` and the v4 shape
by hand where version 5 dropped the pipeline, its pipeline where it is still there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from writing_folders import texts, write_megatron, write_mt5

import padless
from padless import InputError, OptionError
from padless.engine.streaming.stream import EncodeStats

GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1}


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity_warning()


@pytest.fixture(scope="module")
def mt5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mt5(tmp_path_factory.mktemp("mt5"))


@pytest.fixture(scope="module")
def megatron(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_megatron(tmp_path_factory.mktemp("megatron"))


@pytest.fixture(scope="module")
def writer(mt5: Path) -> Any:
    return padless.load(mt5, dtype="float32")


@pytest.fixture(scope="module")
def continuer(megatron: Path) -> Any:
    return padless.load(megatron, dtype="float32")


@pytest.fixture(scope="module")
def pipeline(megatron: Path) -> Any:
    return transformers.pipeline("text-generation", model=str(megatron), dtype=torch.float32)


class ByHand:
    """What the v4 pipeline did with one text: tokenise, generate, decode each sequence."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
        self.model: Any = transformers.MT5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)

    def __call__(self, text: str, name: str = "generated_text", **options: Any) -> list[dict[str, str]]:
        text = "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in text)
        ids = self.tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            written = self.model.generate(ids, **options)
        return [{name: self.tokenizer.decode(row, skip_special_tokens=True)} for row in written]


@pytest.fixture(scope="module")
def by_hand(mt5: Path) -> ByHand:
    return ByHand(mt5)


def test_a_checkpoint_says_what_it_is_for(writer: Any, continuer: Any) -> None:
    assert (writer.name, continuer.name) == ("text2text-generation", "text-generation")


def test_sixty_texts_are_answered_as_the_pipeline_of_transformers_4_did(writer: Any, by_hand: ByHand) -> None:
    given = texts(60)
    found = writer(given, max_new_tokens=7, **GREEDY)
    assert found == [by_hand(text, max_new_tokens=7, **GREEDY)[0] for text in given]
    assert len({answer["generated_text"] for answer in found}) > 20


def test_beams_and_several_answers(writer: Any, by_hand: ByHand) -> None:
    given = texts(14)
    options: dict[str, Any] = {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2}
    assert writer(given, **options) == [by_hand(text, **options) for text in given]


def test_without_options_four_beams_write_up_to_256_tokens(writer: Any, by_hand: ByHand) -> None:
    text = "the sun stood still"
    assert writer(text) == by_hand(text, max_new_tokens=256, num_beams=4)
    assert writer(text, max_length=5) == by_hand(text, max_length=5, num_beams=4)


def test_a_single_text_is_answered_by_a_list_and_several_by_one_answer_each(writer: Any) -> None:
    single = writer("moon river", max_new_tokens=3, **GREEDY)
    assert [list(answer) for answer in single] == [["generated_text"]]
    assert writer(["moon river"], max_new_tokens=3, **GREEDY) == single
    assert writer([]) == []


def test_summarization_has_a_name_of_its_own(mt5: Path, by_hand: ByHand) -> None:
    task = padless.load(mt5, task="summarization", dtype="float32")
    text = "the moon in the valley of Ajalon"
    assert task(text, max_new_tokens=5, **GREEDY) == by_hand(text, "summary_text", max_new_tokens=5, **GREEDY)


def test_ids_in_place_of_texts(writer: Any, by_hand: ByHand) -> None:
    (answer,) = writer("moon river", max_new_tokens=5, return_tensors=True, **GREEDY)
    ids = by_hand.tokenizer("moon river", return_tensors="pt").input_ids
    expected = by_hand.model.generate(ids, max_new_tokens=5, **GREEDY)[0]
    assert torch.equal(answer["generated_token_ids"], expected)


def test_a_prefix_and_truncation(writer: Any, by_hand: ByHand, mt5: Path) -> None:
    text = "the sun stood still over Gibeon"
    options = {"max_new_tokens": 5, **GREEDY}
    assert writer(text, prefix="translate: ", **options) == by_hand("translate: " + text, **options)
    # Whole unless asked, as in the pipeline: mT5 takes texts of any length.
    long = "moon river " * 150
    assert len(by_hand.tokenizer(long).input_ids) > 512
    stats = EncodeStats()
    assert writer(long, stats=stats, **options) == by_hand(long, **options)
    assert stats.truncated == 0
    writer.loaded.tokenizer.max_length = 9
    try:
        cut = writer([text + " and the moon", "a"], truncation=True, stats=stats, **options)
    finally:
        writer.loaded.tokenizer.max_length = None
    ids = by_hand.tokenizer(text + " and the moon", truncation=True, max_length=9, return_tensors="pt").input_ids
    written = by_hand.model.generate(ids, **options)[0]
    assert cut[0]["generated_text"] == by_hand.tokenizer.decode(written, skip_special_tokens=True)
    assert stats.truncated == 1


OPTIONS: dict[str, dict[str, Any]] = {
    "whole": {"max_new_tokens": 7, "do_sample": False},
    "new": {"max_new_tokens": 7, "do_sample": False, "return_full_text": False},
    "beams": {"max_new_tokens": 5, "do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "ids": {"max_new_tokens": 4, "do_sample": False, "return_tensors": True},
    "prefix": {"max_new_tokens": 4, "do_sample": False, "prefix": "moon "},
    "no pairs twice": {"max_new_tokens": 12, "do_sample": False, "no_repeat_ngram_size": 2},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_fifty_prompts_are_continued_as_by_the_pipeline(continuer: Any, pipeline: Any, options: dict[str, Any]) -> None:
    given = [text for text in texts(58) if len(text) < 200 and "\ud83d" not in text]
    assert len(given) >= 50
    # All of them once, greedily and by beams; of each other option the answers to every third.
    given = given if options in (OPTIONS["whole"], OPTIONS["beams"]) else given[::3]
    expected = [pipeline(text, **options) for text in given]
    assert continuer(given, **options) == expected
    assert continuer(given[3], **options) == expected[3]


def test_a_prompt_too_long_for_the_answer_is_cut_in_front_where_that_is_asked(continuer: Any, pipeline: Any) -> None:
    prompt = "word the sun " * 30
    options = {"max_new_tokens": 9, "do_sample": False, "handle_long_generation": "hole"}
    assert continuer(prompt, **options) == pipeline(prompt, **options)


def test_the_last_position_is_used_and_none_behind_it(continuer: Any) -> None:
    prompt = "the " * 58  # 60 tokens with the special ones
    options = {"do_sample": False, "min_new_tokens": 5, "return_tensors": True}
    (answer,) = continuer(prompt, max_new_tokens=5, **options)
    assert len(answer["generated_token_ids"]) == 65  # 64 positions; the last token is never read
    assert continuer(prompt, max_new_tokens=9, **options) == [answer]
    with pytest.raises(
        InputError, match="row 0: a prompt of 65 tokens, the model takes at most 64; expected a shorter"
    ):
        continuer("the " * 63, max_new_tokens=9, **options)


def test_a_prompt_without_room_costs_itself_only(continuer: Any) -> None:
    options = continuer.options({"max_new_tokens": 4, "do_sample": False})
    good, bad, other = continuer.answers(["moon", "word " * 90, "sun"], options)
    assert isinstance(bad, InputError)
    assert [good, other] == continuer(["moon", "sun"], max_new_tokens=4, do_sample=False)


def test_drawn_answers_repeat_with_a_seed(continuer: Any) -> None:
    first, again, other = (continuer("moon", max_new_tokens=12, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


MISUSE: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"max_tokens": 4}, "unknown argument max_tokens"),
    "both": ({"return_text": True, "return_tensors": True}, "return_text: given beside return_tensors"),
    "lengths": ({"min_new_tokens": 9, "max_new_tokens": 4, "do_sample": False}, "min_new_tokens"),
    "outputs": ({"return_dict_in_generate": True}, "a task gives texts"),
    "hole": ({"handle_long_generation": "pit"}, "handle_long_generation: expected None or 'hole'"),
    "prefix": ({"prefix": 3}, "prefix: expected a string"),
}


@pytest.mark.parametrize(("options", "message"), MISUSE.values(), ids=MISUSE)
def test_misuse_is_one_clear_line(continuer: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        continuer("moon", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inputs", [None, 3, b"moon", ["moon", None], [["moon"]], {"text": "moon"}])
def test_what_is_no_text_is_refused(writer: Any, inputs: Any) -> None:
    with pytest.raises(InputError, match=r"expected a (text|string)"):
        writer(inputs)


def test_nothing_is_logged_for_plain_calls(continuer: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="padless"):
        continuer("moon", max_new_tokens=2, do_sample=False)
    assert not caplog.records


def test_a_text_for_which_the_model_has_no_numbers_costs_itself_only(mt5: Path) -> None:
    """A piece's embedding is NaN: what holds the piece has no answer, its neighbours have theirs."""
    task = padless.load(mt5, dtype="float32")
    options: dict[str, Any] = {"max_new_tokens": 4, **GREEDY}
    spelt = {text: set(task.loaded.spelling(text).input_ids) for text in ("valley", "moon river", "the sun")}
    bad = min(spelt["valley"] - spelt["moon river"] - spelt["the sun"])
    options["bad_words_ids"] = [[bad]]  # the head is tied: its logit is NaN too, and no answer may hold it
    given = ["moon river", "valley of", "the sun", "valley"]
    assert [bad in task.loaded.spelling(text).input_ids for text in given] == [False, True, False, True]
    before = task(["moon river", "the sun"], **options)
    with torch.no_grad():
        task.loaded.model.shared.weight[bad] = float("nan")
    found = list(task.answers(given, task.options(options)))
    assert [type(answer).__name__ for answer in found] == ["list", "NotFiniteError", "list", "NotFiniteError"]
    assert [found[0][0], found[2][0]] == before
