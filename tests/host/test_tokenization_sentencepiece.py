"""Sentencepiece models: read to the last piece, tokenised as transformers does, and refused in one line when broken."""

from __future__ import annotations

import base64
import importlib.util
import json
import random
import shutil
import struct
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

from padless.bench import workloads
from padless.engine.errors import TokenizerError
from padless.engine.text_cut import TextCutter
from padless.engine.tokenization import AutoTokenizer, T5Tokenizer
from padless.engine.tokenization.charsmap import check_character_map
from padless.engine.tokenization.sentencepiece import (
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    SentencePieceModel,
    read_sentencepiece,
)
from padless.engine.tokenizer import Tokenizer

SPACE = "\u2581"
PIECES: list[tuple[str, float, int]] = [
    *(("<pad>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), ("<unk>", 0.0, UNKNOWN), ("<mine>", -1.5, USER_DEFINED)),
    *(
        (SPACE, -2.0, 1),
        (f"{SPACE}the", -2.5, 1),
        ("dog", -3.25, 1),
        ("do", -4.0, 1),
        ("漢字", -5.0, 1),
        ("VIII", -6.0, 1),
    ),
    *((letter, -7.0 - 0.125 * number, 1) for number, letter in enumerate("abcdefgiklmnorstuwyA.,!é漢한")),
]


def real_model() -> Path | None:
    found = importlib.util.find_spec("seqio")
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(found.submodule_search_locations[0]) / "test_data" / "sentencepiece" / "sentencepiece.model"
    return path if path.exists() else None


REAL = real_model()
needs_real = pytest.mark.skipif(REAL is None, reason="no sentencepiece model: pip install --no-deps seqio==0.0.20")


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, value: int | float | bytes) -> bytes:
    """A field of a protocol buffer, as its specification spells it."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 0) + varint(value)


def piece(text: str | bytes, score: float = 0.0, kind: int = 1) -> bytes:
    content = text.encode() if isinstance(text, str) else text
    return field(1, field(1, content) + field(2, score) + (field(3, kind) if kind != 1 else b""))


def character_map() -> bytes:
    assert REAL is not None
    return read_sentencepiece(REAL).character_map


def model(
    pieces: Iterable[tuple[Any, float, int]] = PIECES,
    trainer: bytes = field(3, 1) + field(40, 2),
    normalizer: bytes = b"",
) -> bytes:
    """A model file. Fields that the reader has no use for stand between the others, as in real files."""
    unused = field(4, field(1, b"self test")) + varint(200 << 3 | 1) + b"12345678"
    body = b"".join(piece(*entry) for entry in pieces)
    return body + field(2, trainer + field(1, b"corpus.txt") + field(10, 0.9995)) + unused + field(3, normalizer)


def folder_of(tmp_path: Path, data: bytes, **config: Any) -> Path:
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "spiece.model").write_bytes(data)
    (tmp_path / "config.json").write_text('{"model_type": "mt5"}')
    if config:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_every_piece_is_read(tmp_path: Path) -> None:
    path = tmp_path / "spiece.model"
    path.write_bytes(model(normalizer=field(1, b"identity")))
    found = read_sentencepiece(path)
    assert [(entry.text, entry.score, entry.kind) for entry in found.pieces] == PIECES
    assert (found.unknown_id, found.character_map) == (2, b"")


@needs_real
def test_a_real_model_has_the_pieces_that_its_list_names() -> None:
    assert REAL is not None
    found = read_sentencepiece(REAL)
    listed = [line.split("\t") for line in REAL.with_suffix(".vocab").read_text(encoding="utf-8").splitlines()]
    assert [entry.text for entry in found.pieces] == [text for text, _ in listed]
    assert [entry.score for entry in found.pieces] == pytest.approx([float(score) for _, score in listed], rel=1e-5)
    assert [entry.kind for entry in found.pieces[:4]] == [CONTROL, CONTROL, UNKNOWN, 1]


def theirs_of(found: SentencePieceModel, extra_ids: int) -> Any:
    """transformers' tokenizer of the same pieces, put together by its constructor."""
    sentinels = [f"<extra_id_{number}>" for number in range(extra_ids)]
    return transformers.T5Tokenizer(
        vocab=[(entry.text, entry.score) for entry in found.pieces] + [(name, 0.0) for name in reversed(sentinels)],
        _spm_precompiled_charsmap=found.character_map or None,
        extra_ids=extra_ids,
        additional_special_tokens=[
            AddedToken(entry.text, normalized=False, special=entry.kind == CONTROL)
            for entry in found.pieces
            if entry.kind in (CONTROL, USER_DEFINED)
        ]
        + sentinels,
    )


TEXTS = [
    *(
        "the dog",
        "  the\tdog \n\n",
        "Ⅷ ﬁ ½ ㌔",
        "漢字漢 한국",
        "e\u0301 é E\u0300",
        "<extra_id_0>the<extra_id_1> <mine>dog",
        "",
    ),
    *(
        "</s> <pad> <unk> x</s>",
        "\u00a0no\u2028break\u3000",
        "👩\u200d👧",
        "\0\ufffd\ufeff",
        "ｱﾞ ﾊﾟ",
        "\u0600 a",
        "a" * 500,
    ),
]
WORDS = st.sampled_from([*TEXTS[:-1], " ", "\n", "the", "dog", "漢", "\u0301", "<", "extra", ".", "é", "\u200d"])
ANY = st.lists(WORDS, max_size=10).map("".join) | st.text(max_size=40)


def compare(ours: Any, theirs: Any, texts: Iterable[str]) -> None:
    for text in texts:
        found, expected = ours(text, return_offsets_mapping=True), theirs(text, return_offsets_mapping=True)
        assert dict(found) == dict(expected), text
        assert ours.decode(found.input_ids) == theirs.decode(expected["input_ids"])
        assert ours.decode(found.input_ids, skip_special_tokens=True) == theirs.decode(
            expected["input_ids"], skip_special_tokens=True
        )


@pytest.mark.parametrize("extra_ids", [0, 3, 100])
def test_ids_are_those_of_transformers(tmp_path: Path, extra_ids: int) -> None:
    folder = folder_of(tmp_path, model(), extra_ids=extra_ids, tokenizer_class="T5Tokenizer")
    ours = AutoTokenizer.from_pretrained(folder)
    theirs = theirs_of(read_sentencepiece(folder / "spiece.model"), extra_ids)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.convert_tokens_to_ids("<extra_id_0>") == (len(PIECES) + extra_ids - 1 if extra_ids else 2)
    compare(ours, theirs, [*TEXTS, *workloads.verses()[:200]])


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Tokenizers with the character map of a real model, T5's own, and pieces in several scripts."""
    if REAL is None:
        pytest.skip("no sentencepiece model: pip install --no-deps seqio==0.0.20")
    folder = folder_of(tmp_path_factory.mktemp("t5"), model(normalizer=field(2, character_map())))
    return T5Tokenizer.from_pretrained(folder), theirs_of(read_sentencepiece(folder / "spiece.model"), 100)


def test_texts_are_normalised_as_in_transformers(both: tuple[Any, Any]) -> None:
    compare(*both, [*TEXTS, *workloads.news()[:50]])


@settings(deadline=None, max_examples=300)
@given(text=ANY)
def test_any_text_is_tokenised_as_in_transformers(both: tuple[Any, Any], text: str) -> None:
    compare(*both, [text])


@needs_real
@pytest.mark.parametrize(
    "config",
    [{}, {"extra_ids": 0, "additional_special_tokens": None}, {"extra_ids": 7, "model_max_length": 12}],
    ids=["no settings", "mT5's settings", "seven sentinels"],
)
def test_a_real_model_is_what_transformers_makes_of_it(tmp_path: Path, config: dict[str, Any]) -> None:
    """Its own reader needs two more packages, so that both readers are compared only where they are."""
    pytest.importorskip("sentencepiece", reason="transformers reads .model files with it: pip install sentencepiece")
    pytest.importorskip("google.protobuf", reason="transformers reads .model files with it: pip install protobuf")
    assert REAL is not None
    settings = {**config, "tokenizer_class": "T5Tokenizer"} if config else {}
    folder = folder_of(tmp_path / "model", REAL.read_bytes(), **settings)
    ours, theirs = AutoTokenizer.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert ours.all_special_ids == theirs.all_special_ids
    compare(ours, theirs, TEXTS)
    ours.save_pretrained(tmp_path / "ours")
    compare(ours, transformers.AutoTokenizer.from_pretrained(tmp_path / "ours"), TEXTS)
    theirs.save_pretrained(tmp_path / "theirs")
    compare(AutoTokenizer.from_pretrained(tmp_path / "theirs"), theirs, TEXTS)


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model", "other.model"])
def test_any_name_is_found(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(model())
    assert AutoTokenizer.from_pretrained(tmp_path).convert_ids_to_tokens(6) == "dog"
    assert (
        T5Tokenizer(vocab_file=tmp_path / name)("dog").input_ids == T5Tokenizer(str(tmp_path / name))("dog").input_ids
    )


def test_the_batch_path_takes_sentencepiece_folders(both: tuple[Any, Any], tmp_path: Path) -> None:
    theirs = both[1]
    folder = folder_of(tmp_path, model(normalizer=field(2, character_map())))
    tokenizer = Tokenizer.from_folder(folder, max_length=20)
    texts = [*TEXTS, *workloads.news()[:40]]
    encoded = tokenizer.encode(texts)
    expected = theirs(texts, truncation=True, max_length=20)["input_ids"]
    assert [ids.tolist() for ids in np.split(encoded.input_ids, np.cumsum(encoded.lengths)[:-1])] == expected
    assert (tokenizer.leading, tokenizer.trailing, tokenizer.vocab_size) == ((), (1,), len(theirs))
    assert tokenizer.source == folder / "spiece.model"


@settings(deadline=None, max_examples=120)
@given(
    parts=st.lists(st.tuples(WORDS, st.sampled_from([1, 1, 2, 40])), max_size=25),
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=6),
)
def test_the_beginning_of_a_text_has_the_ids_of_the_whole(
    both: tuple[Any, Any], parts: list[tuple[str, int]], sizes: list[int]
) -> None:
    rust = both[0].backend_tokenizer
    cutter = TextCutter.for_tokenizer(rust)
    assert cutter is not None
    text = "".join(unit * times for unit, times in parts)
    whole = rust.encode(text, add_special_tokens=False).ids
    for size in sizes:
        beginning = cutter.beginning(text, size, shorten_runs=True)
        found = rust.encode(beginning, add_special_tokens=False).ids
        assert found == (whole if size >= len(text) else whole[: len(found)]), size


@pytest.mark.parametrize(
    "unit", ["the dog. ", "Привет, мир\n", "漢字かな。\n", "한국어 문장\t", "مرحبا بالعالم ", "שלום עולם ", "x1 2y\n"]
)
def test_long_texts_of_many_scripts_are_cut(both: tuple[Any, Any], unit: str) -> None:
    cutter = TextCutter.for_tokenizer(both[0].backend_tokenizer)
    assert cutter is not None
    assert 900 < len(cutter.beginning(unit * 10_000, 1_000)) <= 1_000


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no pieces"),
    "text": (b"hello world, this is no model", "wire type"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 466247\n", ""),
    "cut in a piece": (model()[:20], "announced"),
    "long number": (b"\x08" + b"\xff" * 11, "more than 64 bits"),
    "cut in a number": (b"\x0a\x80", "cut short"),
    "cut in a score": (field(1, varint(2 << 3 | 5) + b"\0"), "cut short"),
    "announces 8 exabytes": (b"\x0a" + varint(2**63 - 1), "bytes announced"),
    "group": (b"\x0b", "wire type 3"),
    "field 0": (varint(2) + b"\0", "field 0"),
    "pieces are numbers": (field(1, 5), "pieces: of the wrong type"),
    "piece is a number": (field(1, field(1, 5)), "piece: of the wrong type"),
    "score is bytes": (field(1, field(1, b"a") + field(2, b"x")), "score: of the wrong type"),
    "kind is bytes": (field(1, field(1, b"a") + field(3, b"x")), "type: of the wrong type"),
    "trainer is a number": (model() + field(2, 5), "trainer_spec: of the wrong type"),
    "unknown id is bytes": (model(trainer=field(40, b"x")), "unk_id: of the wrong type"),
    "empty piece": (model([("", 0.0, 1)]), "a piece of 0 bytes"),
    "endless piece": (model([("x" * 5_000, 0.0, 1)]), "a piece of 5000 bytes"),
    "not UTF-8": (model([(b"\xff", 0.0, 1)]), "not UTF-8"),
    "score nan": (model([("a", float("nan"), 1)]), "score nan"),
    "score infinite": (model([("a", float("-inf"), 1)]), "score -inf"),
    "unknown kind": (model([("a", 0.0, 9)]), "type 9"),
    "twice": (model([*PIECES, ("dog", -9.0, 1)]), "piece 'dog' is there twice"),
    "no unknown piece": (model(trainer=field(40, 0)), "unk_id 0: expected the id of the unknown piece"),
    "unknown id too large": (model(trainer=field(40, 10**6)), "unk_id 1000000"),
    "unknown id below 0": (model(trainer=field(40, 2**64 - 1)), "unk_id"),
    "byte pairs": (model(trainer=field(3, 2) + field(40, 2)), "model_type: expected Unigram, found BPE"),
    "words": (model(trainer=field(3, 3) + field(40, 2)), "found word"),
    "byte fallback": (model(trainer=field(35, 1) + field(40, 2)), "byte_fallback"),
    "map of nothing": (model(normalizer=field(2, b"\1")), "map of characters"),
    "map announces too much": (model(normalizer=field(2, b"\xff\xff\xff\xff" + b"\0" * 64)), "map of characters"),
    "map is a number": (model(normalizer=field(2, 7)), "precompiled_charsmap: of the wrong type"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_model_is_named_in_one_line(tmp_path: Path, kind: str) -> None:
    data, reason = BROKEN[kind]
    folder = folder_of(tmp_path, data)
    for load in (AutoTokenizer.from_pretrained, T5Tokenizer.from_pretrained, Tokenizer.from_folder):
        with pytest.raises(TokenizerError) as error:
            load(folder)
        message = str(error.value)
        assert message.startswith(f"{folder / 'spiece.model'}: ")
        assert message.count(str(folder)) == 1
        assert reason in message
        assert len(message.splitlines()) == 1


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "spiece.model"
    with path.open("wb") as file:
        file.truncate(4 * 2**30)
    with pytest.raises(TokenizerError, match="4,294,967,296 bytes, expected at most"):
        read_sentencepiece(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(TokenizerError, match=r"spiece.model: cannot be read \("):
        read_sentencepiece(path)


@pytest.mark.parametrize("count", [1_000, pytest.param(2_000, marks=pytest.mark.soak)])
def test_changed_bytes_are_refused_or_read_within_little_memory(tmp_path: Path, count: int) -> None:
    """Models with a few bytes changed or cut: a tokenizer or one typed line, nothing else."""
    data = model()
    order = random.Random(7)
    path = tmp_path / "spiece.model"
    read, messages = 0, []
    tracemalloc.start()
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(order.choice([1, 1, 3, 10])):
            changed[order.randrange(len(changed))] = order.randrange(256)
        path.write_bytes(changed[: order.choice([len(changed), order.randrange(len(changed))])])
        try:
            T5Tokenizer(vocab_file=path, extra_ids=1)("the dog \u00e9")
            read += 1
        except TokenizerError as error:
            messages.append(str(error))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert min(read, len(messages)) > 100
    assert all(message.startswith(str(path)) and len(message.splitlines()) == 1 for message in messages)
    assert peak < 20 * 2**20


@needs_real
def test_changed_maps_of_characters_never_end_the_thread() -> None:
    """Every map that passes the check can be walked with any text; the library would panic otherwise."""
    real = character_map()
    check_character_map(real)
    order = random.Random(11)
    size = int.from_bytes(real[:4], "little")
    texts = [*TEXTS, "".join(map(chr, [*range(32, 0x3100), *range(0xF900, 0xFB00), *range(0xFE00, 0xFFFE)]))]
    passed = refused = 0
    for _ in range(60):
        changed = bytearray(real)
        for _ in range(order.choice([1, 2, 30])):
            changed[order.choice([order.randrange(4, 2_000), order.randrange(4, 4 + size)])] = order.randrange(256)
        try:
            check_character_map(bytes(changed))
        except ValueError:
            refused += 1
            continue
        passed += 1
        walked = normalizers.Precompiled(bytes(changed))
        for text in texts:
            walked.normalize_str(text)
    assert passed > 5
    assert refused > 5


@pytest.mark.parametrize("units", [[], [0], [1 << 10] * 255, [(300 << 10) | 0] + [0] * 299])
def test_maps_that_lead_out_of_themselves(units: list[int]) -> None:
    array = struct.pack(f"<{len(units)}I", *units)
    with pytest.raises(ValueError, match="map of characters"):
        check_character_map(struct.pack("<I", len(array)) + array + b"a\0")


def test_a_map_whose_value_lies_beyond_the_replacements() -> None:
    """One key, "a": the root's children begin at 0, the unit of "a" ends a key whose value is at its own base."""
    replacements = "b\0é\0".encode()
    for value, expected in ((0, "xby"), (2, "xéy"), (4, "xy"), (3, None), (5, None), (10**6, None)):
        units = [0] * 512
        # The children of "a" begin at 256.
        units[97] = 97 | 1 << 8 | (256 ^ 97) << 10
        units[256] = 1 << 31 | value
        data = struct.pack("<I512I", 4 * 512, *units) + replacements
        if expected is None:
            with pytest.raises(ValueError, match="map of characters: a value leads out"):
                check_character_map(data)
        else:
            check_character_map(data)
            assert normalizers.Precompiled(data).normalize_str("xay") == expected


@needs_real
def test_a_stranger_s_map_inside_a_tokenizer_file_is_checked_too(tmp_path: Path) -> None:
    assert REAL is not None
    T5Tokenizer(vocab_file=REAL).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    changed = bytearray(base64.b64decode(written["normalizer"]["precompiled_charsmap"]))
    changed[4:8] = b"\xff\xff\xff\x7f"
    written["normalizer"]["precompiled_charsmap"] = base64.b64encode(changed).decode()
    path.write_text(json.dumps(written), encoding="utf-8")
    for cls in ("T5Tokenizer", "PreTrainedTokenizerFast"):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": cls}))
        with pytest.raises(TokenizerError, match=r"tokenizer.json: .*map of characters"):
            AutoTokenizer.from_pretrained(tmp_path)


def test_a_model_beside_a_tokenizer_file_is_not_read(tmp_path: Path) -> None:
    T5Tokenizer([(text, score) for text, score, _ in PIECES], extra_ids=0).save_pretrained(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"junk")
    assert AutoTokenizer.from_pretrained(tmp_path).convert_ids_to_tokens(6) == "dog"
    shutil.rmtree(tmp_path)
