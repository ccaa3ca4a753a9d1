"""`truncation`, `max_length` and `padding` in calls of tasks: answers are those of transformers' pipelines that are
given the same, and where these do not take them, ours refuse them too.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from task_models import LONGEST, ModelFolder, assert_alike
from writing_folders import write_megatron, write_mt5

import padless
from padless import InputError, OptionError

POSITIONS = 128
"""Of the models of `model_folder`: more than `LONGEST`, which is what their tokenizers' settings say."""

CALLS: dict[str, dict[str, Any]] = {
    "cut": {"truncation": True},
    "cut to 12": {"truncation": True, "max_length": 12},
    "cut beyond the settings": {"truncation": True, "max_length": 120},
    "length alone": {"max_length": 17},
    "longest": {"truncation": "longest_first", "max_length": 31},
    "padded": {"truncation": True, "max_length": 40, "padding": "max_length"},
    "padding alone": {"padding": True},
    "no pads": {"truncation": True, "max_length": 9, "padding": False},
    "strategy": {"truncation": transformers.tokenization_utils_base.TruncationStrategy.LONGEST_FIRST},
}
OF_PAIRS: dict[str, dict[str, Any]] = {
    "first": {"truncation": "only_first", "max_length": 20},
    "second": {"truncation": "only_second", "max_length": 33},
    "second, padded": {"truncation": "only_second", "max_length": 64, "padding": "longest"},
}
WHOLE: dict[str, dict[str, Any]] = {
    "not cut": {"truncation": False},
    "not cut by name": {"truncation": "do_not_truncate"},
    "a length without effect": {"truncation": False, "max_length": 9},
}


@functools.cache
def ours(name: str, folder: Path) -> Any:
    return padless.load(folder, task=name, device="cpu", dtype="float32")


@functools.cache
def theirs(name: str, folder: Path) -> Any:
    make: Any = transformers.pipeline
    return make(name, model=str(folder), device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def classifier(model_folder: ModelFolder) -> Path:
    return model_folder("bert", "ForSequenceClassification", num_labels=3)


@pytest.fixture(scope="module")
def filler(model_folder: ModelFolder) -> Path:
    return model_folder("bert", "ForMaskedLM")


def fits(text: str | dict[str, str], folder: Path) -> bool:
    tokenizer = padless.AutoTokenizer.from_pretrained(folder)
    pair = (text, None) if isinstance(text, str) else (text["text"], text["text_pair"])
    return len(tokenizer(*pair, verbose=False).input_ids) <= POSITIONS


@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS)
def test_texts_are_classified_as_by_the_pipeline(
    options: dict[str, Any], classifier: Path, texts: list[str], long_texts: list[str]
) -> None:
    task = ours("text-classification", classifier)
    reference = theirs("text-classification", classifier)
    given = [*texts[:9], *texts[-4:]] + ([*long_texts[:4], long_texts[-1]] if options != {"padding": True} else [])
    assert_alike(task(given, **options), reference(given, **options))
    # As defaults of every call, in the other spelling.
    again = padless.pipeline("text-classification", classifier, device=-1, dtype="float32", **options)
    assert_alike(again(given[-6:]), task(given[-6:], **options))


@pytest.mark.parametrize("options", [*CALLS.values(), *OF_PAIRS.values()], ids=[*CALLS, *OF_PAIRS])
def test_pairs_are_cut_as_by_the_pipeline(options: dict[str, Any], classifier: Path, long_texts: list[str]) -> None:
    task = ours("text-classification", classifier)
    reference = theirs("text-classification", classifier)
    short, long = "the sun", [long_texts[0], long_texts[-1]]
    pairs = [{"text": one, "text_pair": other} for one, other in zip(long, long_texts[3:], strict=False)]
    mixed = [{"text": one, "text_pair": short} for one in long] + [{"text": short, "text_pair": one} for one in long]
    both_short = [{"text": short, "text_pair": "stood still"}]
    given = both_short if options == {"padding": True} else [*pairs, *mixed, *both_short]
    items, _ = task.read(given, {})
    answers = list(task.answers(items, task.options(options)))
    refused = 0
    for inputs, answer in zip(given, answers, strict=True):
        if isinstance(answer, InputError):
            # There they fail with a line of the tokenizers library.
            with pytest.raises(Exception, match="Truncation error"):
                reference(inputs, **options)
            refused += 1
        else:
            assert_alike(answer, reference(inputs, **options))
    assert bool(refused) == str(options.get("truncation", "")).startswith("only")
    assert refused < len(given)


@pytest.mark.parametrize("options", WHOLE.values(), ids=WHOLE)
def test_what_is_not_to_be_cut_is_seen_whole_or_refused(
    options: dict[str, Any], classifier: Path, filler: Path, texts: list[str], long_texts: list[str]
) -> None:
    """Up to the model's positions, whatever the tokenizer's settings say; transformers fails behind them."""
    between = "word " * (LONGEST + 10)
    task = ours("text-classification", classifier)
    reference = theirs("text-classification", classifier)
    given = [*texts[:9], between]
    assert all(fits(text, classifier) for text in given)
    assert_alike(task(given, **options), reference(given, **options))
    assert task(between, **options) != task(between)
    with pytest.raises(InputError, match=f"^row 1: the text is longer than the {POSITIONS} tokens"):
        task(["a", long_texts[-1]], **options)
    with pytest.raises(RuntimeError):
        reference(long_texts[-1], **options)
    fill = ours("fill-mask", filler)
    masked = between + "[MASK]"
    expected = theirs("fill-mask", filler)(masked, tokenizer_kwargs=options)
    found = fill(masked, tokenizer_kwargs=options)
    assert [one["token"] for one in found] == [one["token"] for one in expected]
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-5)


def test_pieces_have_the_length_that_is_asked_for(classifier: Path, long_texts: list[str]) -> None:
    task = ours("text-classification", classifier)
    (answers,) = task(long_texts[-1:], max_length=22, long_texts="chunk", aggregate="each")
    tokens = len(task.loaded.spelling(long_texts[-1], add_special_tokens=False, verbose=False).input_ids)
    assert len(answers) == -(-tokens // 20)


@pytest.mark.parametrize(
    ("family", "name"),
    [*(("bert", name) for name in CALLS), ("modernbert", "cut to 12"), ("modernbert", "length alone")],
)
def test_masks_are_filled_as_by_the_pipeline(
    family: str, name: str, model_folder: ModelFolder, long_texts: list[str]
) -> None:
    kwargs = CALLS[name]
    folder = model_folder(family, "ForMaskedLM")
    task = ours("fill-mask", folder)
    reference = theirs("fill-mask", folder)
    given = [f"the sun [MASK] {text}" for text in long_texts[:4]] if kwargs != {"padding": True} else []
    given += ["[MASK] wept.", "the [MASK] of [MASK] in the valley"]
    for found, expected in zip(
        task(given, tokenizer_kwargs=kwargs), reference(given, tokenizer_kwargs=kwargs), strict=True
    ):
        rows = [(found, expected)] if isinstance(found[0], dict) else list(zip(found, expected, strict=True))
        for answer, expectation in rows:
            assert [(one["token"], one["sequence"]) for one in answer] == [
                (one["token"], one["sequence"]) for one in expectation
            ]
            assert [one["score"] for one in answer] == pytest.approx([one["score"] for one in expectation], abs=1e-5)


def test_a_single_text_has_no_second_to_cut(classifier: Path, filler: Path, long_texts: list[str]) -> None:
    for name, folder, options in (
        ("text-classification", classifier, {"truncation": "only_second"}),
        ("fill-mask", filler, {"tokenizer_kwargs": {"truncation": "only_second"}}),
    ):
        task = ours(name, folder)
        long = long_texts[0] + (" [MASK]" if name == "fill-mask" else "")
        first, second = task.answers(["a [MASK]", long], task.options(options))
        assert not isinstance(first, InputError)
        assert "no second to cut" in str(second)
        with pytest.raises(Exception, match="Truncation error"):
            theirs(name, folder)(long, **options)


# Writing.


@pytest.fixture(scope="module")
def continuer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_megatron(tmp_path_factory.mktemp("megatron"))


PROMPTS = {
    "cut": {"truncation": True, "max_new_tokens": 1},
    "cut to 12": {"truncation": True, "max_length": 12, "max_new_tokens": 6},
    "length alone": {"max_length": 9, "max_new_tokens": 4},
    "of the prompt only": {"max_new_tokens": 7, "tokenizer_encode_kwargs": {"truncation": True, "max_length": 10}},
    "both lengths": {"max_length": 20, "tokenizer_encode_kwargs": {"max_length": 8}},
    "padded": {"truncation": True, "max_length": 11, "padding": True, "max_new_tokens": 4},
    "no special tokens": {"add_special_tokens": False, "truncation": True, "max_length": 12, "max_new_tokens": 4},
    "no special tokens of the prompt": {
        "max_new_tokens": 4,
        "tokenizer_encode_kwargs": {"add_special_tokens": False, "truncation": True, "max_length": 7},
    },
    "the end": {"truncation": True, "max_length": 12, "max_new_tokens": 3, "return_full_text": False},
    "ids": {"truncation": True, "max_length": 12, "max_new_tokens": 3, "return_tensors": True},
}


@pytest.mark.parametrize("options", PROMPTS.values(), ids=PROMPTS)
def test_prompts_are_cut_as_by_the_pipeline(options: dict[str, Any], continuer: Path) -> None:
    transformers.logging.set_verbosity_error()
    reference = theirs("text-generation", continuer)
    task = ours("text-generation", continuer)
    given = ["moon", "the sun stood still over Gibeon and a moon in the valley of Ajalon", "river stone " * 40]
    options = {"do_sample": False, **options}
    expected = [reference(text, **options) for text in given]
    assert task(given, **options) == expected
    flagged: list[int] = []
    list(task.answers(given, task.options(options), on_truncated=flagged.append))
    assert flagged in ([1, 2], [2])


def test_a_length_that_leaves_nothing_to_write_costs_its_row_only(continuer: Path) -> None:
    task = ours("text-generation", continuer)
    options = task.options({"max_length": 9, "do_sample": False, "truncation": True})
    first, second = task.answers(["moon", "river stone " * 40], options)
    assert isinstance(first, list)
    assert str(second) == "a prompt of 9 tokens leaves no room within max_length"


@pytest.fixture(scope="module")
def mt5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mt5(tmp_path_factory.mktemp("mt5"))


@pytest.mark.parametrize("truncation", [None, False, "do_not_truncate", True, "longest_first", "only_first"])
def test_texts_to_be_summed_up_are_cut_where_that_is_asked(truncation: bool | str | None, mt5: Path) -> None:
    task = ours("text2text-generation", mt5)
    task.loaded.tokenizer.max_length = 9
    flagged: list[int] = []
    options = task.options({"max_new_tokens": 2, "num_beams": 1, "truncation": truncation})
    list(task.answers(["moon", "river stone " * 20], options, on_truncated=flagged.append))
    assert flagged == ([1] if truncation in (True, "longest_first", "only_first") else [])


# Elsewhere.

REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("token-classification", "ForTokenClassification", {}, r" \(for long texts: stride\)"),
    ("question-answering", "ForQuestionAnswering", {}, r" \(for long texts: max_seq_len, doc_stride\)"),
    ("fill-mask", "ForMaskedLM", {}, r" \(for long texts: tokenizer_kwargs, long_texts\)"),
    ("multiple-choice", "ForMultipleChoice", {}, r" \(for long texts: long_texts, overlap\)"),
    ("rerank", "ForSequenceClassification", {"num_labels": 1}, r" \(for long texts: long_texts, overlap\)"),
    ("zero-shot-classification", "ForSequenceClassification", {"num_labels": 3}, r" \(for long texts: long_texts, ov"),
]


@pytest.mark.parametrize(("name", "head", "config", "hint"), REFUSED, ids=[row[0] for row in REFUSED])
@pytest.mark.parametrize("option", [{"max_length": 9}, {"truncation": True}])
def test_elsewhere_they_are_refused(
    name: str, head: str, config: dict[str, Any], hint: str, option: dict[str, Any], model_folder: ModelFolder
) -> None:
    task = ours(name, model_folder("bert", head, **config))
    with pytest.raises(OptionError, match=f"^{name}: {next(iter(option))}: no such option{hint}") as caught:
        task.options(option)
    assert len(str(caught.value).splitlines()) == 1


def test_values_out_of_range_are_refused(classifier: Path, continuer: Path, mt5: Path) -> None:
    classify = ours("text-classification", classifier)
    write = ours("text-generation", continuer)
    sum_up = ours("summarization", mt5)
    rows: list[tuple[Any, dict[str, Any], str]] = [
        (classify, {"truncation": "left"}, "truncation: expected one of"),
        (classify, {"padding": "right"}, "padding: expected one of"),
        (classify, {"max_length": 0}, "max_length: expected a whole number from 1, got 0"),
        (classify, {"tokenizer_kwargs": {"max_length": 9}}, "tokenizer_kwargs: no such option"),
        (write, {"truncation": "left"}, "truncation: expected one of"),
        (write, {"tokenizer_encode_kwargs": 3}, "tokenizer_encode_kwargs: expected a dict, got 3"),
        (write, {"tokenizer_encode_kwargs": {"stride": 3}}, "tokenizer_encode_kwargs: stride: no such entry"),
        (write, {"add_special_tokens": "yes"}, "add_special_tokens: expected one of"),
        (sum_up, {"padding": True}, "summarization: padding: no such option, it is of text-generation"),
        (sum_up, {"tokenizer_encode_kwargs": {}}, "tokenizer_encode_kwargs: no such option"),
        (sum_up, {"truncation": "left"}, "truncation: expected one of"),
    ]
    for task, options, message in rows:
        with pytest.raises(OptionError, match=message):
            task.options(options)
    # No room for the special tokens.
    for text, length, message in (("a", 1, "expected at least 2"), (("a", "b"), 3, "expected more than 3")):
        with pytest.raises(OptionError, match=f"^max_length: {message}, the special tokens of this model, got"):
            classify([text], max_length=length)
    with pytest.raises(OptionError, match="max_length: "):
        write("moon", max_length=1, max_new_tokens=2)
