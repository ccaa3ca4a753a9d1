"""Token classification against transformers' pipeline: every strategy, long texts, words, hostile inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from seeded_folders import HOSTILE, make_folder, real_texts

import padless
from padless.bench.workloads import news
from padless.engine.errors import InputError, OptionError
from padless.engine.tasks.entities import without_overlaps

FAMILIES = ("Bert", "ModernBert", "MobileBert", "MegatronBert", "MT5")
STRATEGIES = ("none", "simple", "first", "average", "max")
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC", "X-Y", "B-X-Y")
POSITIONS = 64

pytestmark = pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")


@pytest.fixture(scope="module", params=FAMILIES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Ours and theirs from one folder."""
    return load_both(tmp_path_factory.mktemp(request.param) / "model", request.param)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return load_both(tmp_path_factory.mktemp("bert") / "model", "Bert")


def load_both(folder: Path, family: str) -> tuple[Any, Any]:
    labels = dict(enumerate(LABELS))
    ids = {name: number for number, name in labels.items()}
    make_folder(folder, family, "ForTokenClassification", positions=POSITIONS, id2label=labels, label2id=ids)
    ours = padless.load(folder, device="cpu", dtype="float32")
    assert ours.name == "token-classification"
    return ours, transformers.pipeline("token-classification", model=str(folder), device="cpu", dtype=torch.float32)


def check(found: Any, expected: Any) -> None:
    """The same, scores to 1e-5."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(theirs, list):
            check(ours, theirs)
            continue
        assert list(ours) == list(theirs)
        assert ours["score"] == pytest.approx(float(theirs["score"]), abs=1e-5)
        assert {**ours, "score": 0} == {**theirs, "score": 0}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_as_transformers(both: tuple[Any, Any], strategy: str) -> None:
    ours, theirs = both
    texts = [*real_texts(45)[::3], *HOSTILE]
    expected = theirs(texts, aggregation_strategy=strategy)
    check(ours(texts, aggregation_strategy=strategy), expected)
    kinds = {entity.get("entity_group", entity.get("entity")) for row in expected for entity in row}
    assert len(kinds) > 3


@pytest.mark.parametrize(
    ("strategy", "stride"), [("simple", 0), ("simple", 20), ("first", 20), ("average", 20), ("max", 20)]
)
def test_long_texts_in_pieces(bert: tuple[Any, Any], strategy: str, stride: int) -> None:
    ours, theirs = bert
    texts = [*news()[:6], *real_texts(45)[::9], "", "unaffable " * 200]
    expected = [theirs(text, aggregation_strategy=strategy, stride=stride) for text in texts]
    assert any(entity["start"] > 1500 for entity in expected[0])
    check(ours(texts, aggregation_strategy=strategy, stride=stride), expected)


def test_without_stride_a_long_text_is_cut_and_counted(bert: tuple[Any, Any]) -> None:
    from padless.engine.streaming.stream import EncodeStats

    ours, theirs = bert
    texts = [news()[0], "short", "word " * 10_000]
    stats = EncodeStats()
    check(ours(texts, stats=stats), theirs(texts))
    assert stats.truncated == 2
    with_all = ours(texts[2], stride=10, aggregation_strategy="simple", ignore_labels=[])
    assert with_all[-1]["end"] == len(texts[2]) - 1


@pytest.mark.parametrize("ignored", [[], ["O", "PER", "B-PER", "X-Y", "Y"]])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_labels_that_are_left_out(bert: tuple[Any, Any], strategy: str, ignored: list[str]) -> None:
    ours, theirs = bert
    texts = list(real_texts(45)[::6])
    options = {"aggregation_strategy": strategy, "ignore_labels": ignored}
    check(ours(texts, **options), theirs(texts, **options))


@pytest.mark.parametrize(
    ("strategy", "delimiter"), [*((strategy, None) for strategy in STRATEGIES), ("first", ""), ("average", "--")]
)
def test_words(bert: tuple[Any, Any], strategy: str, delimiter: str | None) -> None:
    ours, theirs = bert
    texts = [text.split() for text in (*real_texts(45)[::5], "don't unaffable \U0001f600 שלום", "e\u0301cole x.y")]
    options = {"aggregation_strategy": strategy, "is_split_into_words": True, "delimiter": delimiter}
    check(ours(texts, **options), theirs(texts, **options))
    check(ours(texts[0], **options), theirs(texts[0], **options))


def test_shapes(bert: tuple[Any, Any]) -> None:
    ours, theirs = bert
    text = real_texts(45)[0]
    check(ours(text), theirs(text))
    check(ours([text]), theirs([text]))
    assert ours([]) == ours([], is_split_into_words=True) == []
    check(ours(iter([text, "", text]), batch_size=1), ours([text, "", text]))
    assert ours(text, aggregation_strategy="SIMPLE") == ours(text, aggregation_strategy="simple")


def test_by_its_other_name_with_options_of_every_call(bert: tuple[Any, Any]) -> None:
    ours, theirs = bert
    folder = ours.loaded.folder
    ner = padless.pipeline("ner", model=folder, device="cpu", dtype="float32", aggregation_strategy="max", stride=8)
    text = news()[1]
    check(ner(text), theirs(text, aggregation_strategy="max", stride=8))
    check(ner([text], aggregation_strategy="first"), theirs([text], aggregation_strategy="first", stride=8))


def test_a_byte_level_vocabulary_has_no_marks_for_subwords(tmp_path: Path) -> None:
    import tokenizers

    folder = make_folder(tmp_path / "model", "ModernBert", "ForTokenClassification", positions=64, num_labels=5)
    rust = tokenizers.ByteLevelBPETokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    rust.train_from_iterator(list(real_texts(45)), vocab_size=600, special_tokens=special, show_progress=False)
    rust._tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names: dict[str, Any] = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True)
    )
    for name in ("vocab.txt", "special_tokens_map.json"):
        (folder / name).unlink()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=rust._tokenizer,
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
        **names,
    ).save_pretrained(folder)
    ours = padless.load(folder, device="cpu", dtype="float32")
    theirs = transformers.pipeline("token-classification", model=str(folder), device="cpu", dtype=torch.float32)
    texts = [*real_texts(45)[::3], *HOSTILE]
    for strategy in STRATEGIES:
        check(ours(texts, aggregation_strategy=strategy), theirs(texts, aggregation_strategy=strategy))


def test_surrogates_keep_the_places_of_the_text_that_was_given(bert: tuple[Any, Any]) -> None:
    ours, _ = bert
    plain = ours("smile \U0001f600 and Paris", ignore_labels=[])
    paired = ours("smile \ud83d\ude00 and Paris", ignore_labels=[])
    assert [token["word"] for token in paired] == [token["word"] for token in plain]
    assert [(token["start"], token["end"]) for token in plain][-2:] == [(8, 11), (12, 17)]
    assert [(token["start"], token["end"]) for token in paired][-2:] == [(9, 12), (13, 18)]
    lone = ours("a \udc00 Paris", ignore_labels=[])
    assert (lone[-1]["word"], lone[-1]["start"], lone[-1]["end"]) == ("paris", 4, 9)
    words = ours(["smile \ud83d\ude00", "Paris"], ignore_labels=[], is_split_into_words=True)[0]
    assert (words[-1]["start"], words[-1]["end"]) == (9, 14)


def test_a_model_that_gives_nan_has_no_answer(bert: tuple[Any, Any]) -> None:
    ours, _ = bert
    table = ours.loaded.model.get_input_embeddings().weight
    token = ours.loaded.spelling.convert_tokens_to_ids("paris")
    kept = table.data[token].clone()
    table.data[token] = float("nan")
    try:
        with pytest.raises(InputError, match=r"row 1: the model gave NaN"):
            ours(["london", "in paris", "rome"])
        options = ours.options_class()
        found = list(ours.answers(["london", "in paris", "rome"], options))
    finally:
        table.data[token] = kept
    assert [isinstance(answer, InputError) for answer in found] == [False, True, False]
    assert found[2] == ours("rome")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregation_strategy": "best"}, "aggregation_strategy: expected one of"),
        ({"ignore_labels": "O"}, "ignore_labels: expected a list"),
        ({"stride": 3}, "stride: pieces are joined by their entities"),
        ({"stride": 62, "aggregation_strategy": "simple"}, "stride: expected less than 62"),
        ({"grouped_entities": True}, "grouped_entities: no such option"),
        ({"delimiter": 3}, "delimiter: expected a string"),
    ],
)
def test_options_out_of_range(bert: tuple[Any, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        bert[0]("a text", **options)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (["a", 3], {}, "row 1: expected a string, got int"),
        ({"text": "a"}, {}, "inputs: expected a text or a list"),
        (None, {}, "inputs: expected a text or a list"),
        ("a b", {"is_split_into_words": True}, "inputs: expected a list of words"),
        ([["a"], ["b", None]], {"is_split_into_words": True}, "row 1: expected a list of words, got NoneType"),
    ],
)
def test_inputs_that_are_none(bert: tuple[Any, Any], inputs: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bert[0](inputs, **options)


def test_of_overlapping_entities_the_longest_is_kept_then_the_surest() -> None:
    def entity(start: int, end: int, score: float) -> dict[str, Any]:
        return {"start": start, "end": end, "score": score}

    a, b, c, d = entity(0, 4, 0.5), entity(2, 8, 0.1), entity(9, 12, 0.2), entity(9, 12, 0.4)
    assert without_overlaps([c, a, b, d]) == [b, d]
    assert without_overlaps([]) == []
