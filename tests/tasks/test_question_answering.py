"""Question answering against what transformers 4's pipeline says, worked out here from transformers' model outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from seeded_folders import HOSTILE, make_folder, real_texts

import padless
from padless.bench.workloads import news
from padless.engine.errors import InputError, OptionError
from padless.engine.tasks import answer_spans
from padless.engine.tasks.answer_spans import best_spans
from padless.engine.tasks.question_answering import Question

FAMILIES = ("Bert", "ModernBert", "MobileBert", "MegatronBert", "MT5")
QUESTIONS = ("Who was it?", "What did the king say to them?", "Where?", "when did that happen, and why", "unaffable?")


class Oracle:
    """transformers 4.46's answers: its windows, a softmax over the context and the first token, every span in turn."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        (name,) = json.loads((folder / "config.json").read_text())["architectures"]
        self.model = getattr(transformers, name).from_pretrained(folder).eval()

    def __call__(
        self,
        question: str,
        context: str,
        *,
        top_k: int = 1,
        doc_stride: int = 128,
        max_seq_len: int = 384,
        max_answer_len: int = 15,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
    ) -> Any:
        windows = self.tokenizer(
            question, context, truncation="only_second", max_length=max_seq_len, stride=doc_stride,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        # transformers looks for words in the window, whose last one may be cut; ours are always whole.
        words = self.tokenizer(question, context)[0]
        answers, nulls = [], []
        for number in range(len(windows["input_ids"])):
            encoding = windows[number]
            names = self.tokenizer.model_input_names
            inputs = {name: torch.tensor([windows[name][number]]) for name in names}
            with torch.no_grad():
                out = self.model(**inputs)
            inside = np.array([text == 1 for text in encoding.sequence_ids])
            counted = inside.copy()
            counted[0] = self.tokenizer.cls_token_id is not None
            start, end = (softmax(values[0].double().numpy(), counted) for values in (out.start_logits, out.end_logits))
            nulls.append(start[0] * end[0])
            tokens = inside.nonzero()[0].tolist()
            spans = [
                (start[first] * end[last], first, last)
                for first in tokens
                for last in range(first, min(first + max_answer_len, tokens[-1] + 1))
            ]
            spans.sort(key=lambda span: -span[0])
            for score, *span in spans[:top_k]:
                answers.append((score, *self.places(encoding, words if align_to_words else None, *span)))
        if handle_impossible_answer:
            answers.append((min(nulls), 0, 0))
        answers.sort(key=lambda answer: -answer[0])
        shown = [
            {"score": score, "start": begin, "end": stop, "answer": context[begin:stop]}
            for score, begin, stop in answers[:top_k]
        ]
        return shown[0] if top_k == 1 else shown

    @staticmethod
    def places(encoding: Any, words: Any, first: int, last: int) -> tuple[int, int]:
        if words is None:
            return encoding.offsets[first][0], encoding.offsets[last][1]
        begin, end = (words.word_to_chars(encoding.token_to_word(token), 1) for token in (first, last))
        return begin[0], end[1]


def softmax(logits: np.ndarray, counted: np.ndarray) -> np.ndarray:
    exponents = np.where(counted, np.exp(logits - logits[counted].max()), 0.0)
    return exponents / exponents.sum()


@pytest.fixture(scope="module", params=FAMILIES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Oracle]:
    """Ours and theirs from one folder."""
    return load_both(tmp_path_factory.mktemp(request.param) / "model", request.param)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Oracle]:
    return load_both(tmp_path_factory.mktemp("bert") / "model", "Bert")


def load_both(folder: Path, family: str) -> tuple[Any, Oracle]:
    make_folder(folder, family, "ForQuestionAnswering")
    ours = padless.load(folder, device="cpu", dtype="float32")
    assert ours.name == "question-answering"
    return ours, Oracle(folder)


def check(found: Any, expected: Any) -> None:
    """The same, scores to 1e-5 of themselves and at least 1e-7."""
    assert type(found) is type(expected)
    for ours, theirs in zip(
        *([answer] if isinstance(answer, dict) else answer for answer in (found, expected)), strict=True
    ):
        assert list(ours) == ["score", "start", "end", "answer"]
        assert ours["score"] == pytest.approx(theirs["score"], rel=1e-4, abs=1e-7)
        assert {**ours, "score": 0} == {**theirs, "score": 0}


def pairs(texts: Any) -> list[dict[str, str]]:
    return [{"question": QUESTIONS[row % len(QUESTIONS)], "context": text} for row, text in enumerate(texts)]


@pytest.mark.parametrize("options", [{}, {"top_k": 4, "handle_impossible_answer": True}], ids=["best", "four"])
def test_as_transformers(both: tuple[Any, Oracle], options: dict[str, Any]) -> None:
    ours, theirs = both
    asked = pairs([*real_texts(45), *(text for text in HOSTILE if text.strip() and text != "\ufffd")])
    assert len(asked) >= 50
    for found, item in zip(ours(asked, **options), asked, strict=True):
        check(found, theirs(**item, **options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"doc_stride": 0, "max_seq_len": 60},
        {"doc_stride": 30, "max_seq_len": 64, "top_k": 3},
        {"max_answer_len": 1, "top_k": 2},
        {"max_answer_len": 60, "align_to_words": False},
        {"handle_impossible_answer": True, "max_seq_len": 100, "doc_stride": 20, "top_k": 3, "align_to_words": False},
    ],
    ids=str,
)
def test_long_contexts(bert: tuple[Any, Oracle], options: dict[str, Any]) -> None:
    ours, theirs = bert
    asked = pairs([news()[0], " ".join(news()[1:4])])
    found = ours(asked, **options)
    for answer, item in zip(found, asked, strict=True):
        check(answer, theirs(**item, **options))
    assert max(row["end"] for answer in found for row in ([answer] if isinstance(answer, dict) else answer)) > 1000


def test_no_answer_is_an_answer_where_that_is_asked_for(bert: tuple[Any, Oracle]) -> None:
    ours, theirs = bert
    asked = pairs(real_texts(45)[:12])
    options: dict[str, Any] = {"handle_impossible_answer": True, "top_k": 100}
    found = ours(asked, **options)
    for answers, item in zip(found, asked, strict=True):
        check(answers, theirs(**item, **options))
    nulls = [row for answers in found for row in answers if row["answer"] == ""]
    assert nulls
    assert {(row["start"], row["end"]) for row in nulls} == {(0, 0)}


def test_of_several_windows_the_surest_of_an_answer_decides_that_there_is_none(bert: tuple[Any, Oracle]) -> None:
    ours, theirs = bert
    question, context = QUESTIONS[1], news()[0]
    options: dict[str, Any] = {"handle_impossible_answer": True, "max_seq_len": 60, "doc_stride": 10, "top_k": 10**5}
    rows = [
        [row for row in answers if not row["answer"]]
        for answers in (ours(question=question, context=context, **options), theirs(question, context, **options))
    ]
    assert len(rows[1]) == 1
    check(*rows)


def test_shapes(bert: tuple[Any, Oracle]) -> None:
    ours, _ = bert
    context, other = real_texts(45)[:2]
    one, two = {"question": "Who?", "context": context}, {"question": "Where?", "context": other}
    answer = ours(**one)
    assert ours(one) == ours([one]) == ours(("Who?", context)) == ours(question=["Who?"], context=[context]) == answer
    several = ours([one, two])
    assert isinstance(several, list)
    for asked in ([("Who?", context), two], iter([one, two]), (one, two)):
        assert ours(asked) == several
    assert ours(question=["Who?", "Where?"], context=[context, other]) == several
    assert ours({"question": ["Who?", "Where?"], "context": [context, other]}) == several
    assert ours(question=["Who?", "Where?"], context=context) == ours([one, {**two, "context": context}])
    assert ours([]) == []
    assert ours(one, topk=3) == ours(one, top_k=3)
    assert len(ours(one, top_k=3)) == 3
    assert isinstance(ours({"question": "a", "context": "b"}, top_k=3), list)
    assert ours(one, padding="max_length") == answer


@pytest.mark.parametrize(
    ("inputs", "named", "message"),
    [
        (None, {}, "inputs: expected question= and context="),
        ("Who?", {}, "inputs: expected question= and context="),
        (None, {"question": "Who?"}, 'expected {"question": …, "context": …}'),
        (None, {"question": "Who?", "context": ["a"]}, "strings both"),
        (None, {"question": ["Who?", "a"], "context": ["a"]}, r"context: expected as many as questions \(2\), got 1"),
        ({"question": "a", "context": "b"}, {"question": "a", "context": "b"}, "got both"),
        ([{"question": "a", "context": "b"}, {"question": "a"}], {}, "row 1: expected"),
        ([{"question": "a", "context": "b"}, {"question": "", "context": "b"}], {}, "row 1: question: .* empty"),
        ({"question": "a", "context": ""}, {}, "row 0: context: expected a text, got an empty one"),
        ({"question": "a " * 400, "context": "b"}, {}, "row 0: the question has 400 tokens, which leaves no room"),
    ],
)
def test_inputs_that_are_none(bert: tuple[Any, Oracle], inputs: Any, named: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bert[0](inputs, **named)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k: expected a whole number from 1"),
        ({"topk": 0}, "topk: expected a whole number from 1"),
        ({"max_answer_len": 0}, "max_answer_len: expected a whole number from 1"),
        ({"max_seq_len": 513}, "max_seq_len: the model takes at most 512 tokens, got 513"),
        ({"doc_stride": 50, "max_seq_len": 40}, "doc_stride: expected at most 40"),
        ({"version_2_with_negative": True}, "version_2_with_negative: no such option"),
    ],
)
def test_options_out_of_range(bert: tuple[Any, Oracle], options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        bert[0](question="Who?", context="A man.", **options)


def test_bad_rows_leave_the_others_alone(bert: tuple[Any, Oracle]) -> None:
    ours, _ = bert
    asked = [(item["question"], item["context"]) for item in pairs(real_texts(45)[:4])]
    rows = [("", "a"), asked[0], ("a " * 500, "b"), asked[1], asked[2], ("a", ""), asked[3]]
    found = list(ours.answers([Question(*row) for row in rows], ours.options_class()))
    assert [isinstance(answer, InputError) for answer in found] == [True, False, True, False, False, True, False]
    for answer, expected in zip((found[1], *found[3:5], found[6]), ours(asked), strict=True):
        check(answer, expected)
    assert all(isinstance(answer, InputError) for answer in ours.answers([Question("", "a")], ours.options_class()))


def test_a_context_without_a_token_has_the_empty_answer(bert: tuple[Any, Oracle]) -> None:
    ours, _ = bert
    nothing = {"score": 0.0, "start": 0, "end": 0, "answer": ""}
    assert ours(question="Who?", context=" \n") == nothing
    assert ours(question="Who?", context="\x00", top_k=2) == [nothing]
    certain = ours(question="Who?", context=" ", handle_impossible_answer=True)
    assert certain == {**nothing, "score": pytest.approx(1.0)}


def test_a_long_question(bert: tuple[Any, Oracle]) -> None:
    ours, theirs = bert
    question, context = " ".join(["who"] * 300), news()[0]
    check(ours(question=question, context=context, max_question_len=5), theirs(" ".join(["who"] * 5), context))
    # No room for the usual stride: half of what there is.
    check(ours(question=question, context=context), theirs(question, context, doc_stride=(384 - 303) // 2))


def test_surrogates_keep_the_places_of_the_text_that_was_given(bert: tuple[Any, Oracle]) -> None:
    ours, _ = bert
    plain = ours(question="Who?", context="\U0001f600 \ufffd in Paris", top_k=20)
    given = ours(question="Who?", context="\ud83d\ude00 \udc00 in Paris", top_k=20)
    assert [answer["answer"] for answer in given] == [answer["answer"] for answer in plain]
    ends = {answer["end"] for answer in plain}
    assert max(ends) == len("\U0001f600 \ufffd in Paris")
    for answer, expected in zip(given, plain, strict=True):
        assert answer["start"] == expected["start"] + (expected["start"] > 0)
        assert answer["end"] == expected["end"] + 1


def test_a_huge_context(bert: tuple[Any, Oracle]) -> None:
    ours, theirs = bert
    context = " ".join(news()[:60])[:50_000]
    assert context.count(" ") > 8000
    check(ours(question="Who?", context=context), theirs("Who?", context))


def test_a_model_that_gives_nan_has_no_answer(bert: tuple[Any, Oracle]) -> None:
    ours, _ = bert
    table = ours.loaded.model.get_input_embeddings().weight
    token = ours.loaded.spelling.convert_tokens_to_ids("paris")
    kept = table.data[token].clone()
    table.data[token] = float("nan")
    try:
        with pytest.raises(InputError, match="row 1: the model gave NaN"):
            ours(question=["a", "b", "c"], context=["in london", "in paris", "in rome"])
        assert ours(question="a", context="in rome")["answer"] in "in rome"
    finally:
        table.data[token] = kept


@pytest.mark.parametrize("null", [True, False])
@pytest.mark.parametrize(("top_k", "longest"), [(1, 15), (3, 2), (7, 1), (1000, 4), (1, 10**6), (4, 30)])
def test_spans_are_those_of_a_search_through_all(
    monkeypatch: pytest.MonkeyPatch, top_k: int, longest: int, null: bool
) -> None:
    monkeypatch.setattr(answer_spans, "MOST_SPANS", 100)
    draw = np.random.default_rng(5)
    lengths = [30, 12, 12, 7, 3, 2]
    allowed = np.array([[5, 29], [1, 12], [4, 4], [2, 6], [1, 2], [1, 1]])
    ends = np.cumsum([0, *lengths])
    logits = torch.from_numpy(draw.normal(0, 4, (2, ends[-1])))
    logits[0, :30] += 1e4
    found = best_spans(
        logits[0], logits[1], torch.from_numpy(ends).int(), allowed, null=null, top_k=top_k, longest=longest
    )
    assert len(found) == len(lengths)
    for text, (begin, length) in enumerate(zip(ends, lengths, strict=False)):
        counted = np.zeros(length, dtype=bool)
        counted[slice(*allowed[text])] = True
        inside = counted.nonzero()[0]
        counted[0] |= null
        if not counted.any():
            assert (len(found[text].scores), found[text].null) == (0, 0.0)
            continue
        start, end = (softmax(row[begin : begin + length].numpy(), counted) for row in logits)
        every = [(start[a] * end[b], a, b) for a in inside for b in inside if a <= b < a + longest]
        every.sort(key=lambda span: -span[0])
        scores, firsts, lasts, chance = found[text]
        shift = allowed[text, 0]
        assert [(a + shift, b + shift) for a, b in zip(firsts, lasts, strict=True)] == [
            span[1:] for span in every[:top_k]
        ]
        np.testing.assert_allclose(scores, [span[0] for span in every[:top_k]], rtol=1e-9)
        assert chance == pytest.approx(start[0] * end[0] if null else 0.0, rel=1e-9)


def test_spans_are_told_apart_whose_products_no_fp32_number_holds() -> None:
    logits = torch.tensor([[200.0, -90.0, -50.0, -120.0], [200.0, -110.0, -90.0, -60.0]])
    found = best_spans(logits[0], logits[1], torch.tensor([0, 4]), np.array([[1, 4]]), null=True, top_k=2, longest=3)[0]
    assert list(zip(found.starts.tolist(), found.ends.tolist(), strict=True)) == [(1, 2), (1, 1)]
    np.testing.assert_allclose(found.scores, np.exp([-510.0, -540.0]), rtol=1e-9)
    assert np.float32(found.scores[0]) == 0
    assert found.null == pytest.approx(1.0)
