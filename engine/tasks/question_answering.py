"""Question answering: the stretch of a context that answers a question, as in transformers 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from tokenizers import Encoding

from ..batch import PackedBatch
from ..errors import InputError, NotFiniteError, OptionError
from .answer_spans import Spans, best_spans
from .characters import Characters
from .context_windows import Windows, windows_of
from .options import at_least
from .pieces import Pieces
from .task import Task
from .text_inputs import described

__all__ = ["Question", "QuestionAnswering", "QuestionAnsweringOptions"]

USUAL_LENGTH, USUAL_STRIDE = 384, 128


class Question(NamedTuple):
    """What is asked, and the text that has the answer."""

    question: str
    context: str


@dataclass(frozen=True)
class QuestionAnsweringOptions:
    """Of a call.

    Attributes:
        top_k: answers of each question, best first; above 1 they are a list.
        topk: an older name of `top_k`.
        doc_stride: tokens of a long context that each window repeats of the one before; None is 128, or half a window
            where that is less.
        max_answer_len: most tokens of an answer.
        max_seq_len: most tokens of a window; None is 384, or what the model takes where that is less.
        max_question_len: tokens of a question beyond this are cut off; None cuts none, as transformers did.
        handle_impossible_answer: "" may be the answer.
        align_to_words: answers are whole words.
        padding: without effect: nothing is padded.
    """

    top_k: int | None = None
    topk: int | None = None
    doc_stride: int | None = None
    max_answer_len: int = 15
    max_seq_len: int | None = None
    max_question_len: int | None = None
    handle_impossible_answer: bool = False
    align_to_words: bool = True
    padding: bool | str | None = None

    def __post_init__(self) -> None:
        for name, least in (("topk", 1), ("doc_stride", 0), ("max_seq_len", 1), ("max_question_len", 1)):
            if getattr(self, name) is not None:
                at_least(name, getattr(self, name), least)
        top_k = (self.topk or 1) if self.top_k is None else self.top_k
        at_least("top_k", top_k, 1)
        object.__setattr__(self, "top_k", top_k)
        at_least("max_answer_len", self.max_answer_len, 1)


class QuestionAnswering(Task[Question, QuestionAnsweringOptions]):
    """`{"score", "start", "end", "answer"}` for each question; `start` and `end` are characters of the context."""

    name: ClassVar[str] = "question-answering"
    kind: ClassVar[str] = "ForQuestionAnswering"
    options_class: ClassVar[type] = QuestionAnsweringOptions
    input_names: ClassVar[tuple[str, ...]] = ("question", "context")

    def read(self, inputs: Any, others: Mapping[str, Any]) -> tuple[list[Question], bool]:
        """`{"question": …, "context": …}`, a pair of strings, or a list of these; or both by keyword: a string each, or
        a list of questions with a list of contexts, or with the one context of all.
        """
        if others:
            if inputs is not None:
                raise InputError("inputs: expected either questions with contexts, or question= and context=, got both")
            inputs = dict(others)
        if isinstance(inputs, Mapping) and isinstance(inputs.get("question"), list | tuple):
            return _paired(inputs), False
        if isinstance(inputs, Mapping) or _is_pair(inputs):
            return [_read_question(inputs, "")], True
        if isinstance(inputs, str | bytes) or not hasattr(inputs, "__iter__"):
            expected = 'question= and context=, {"question": …, "context": …}, or a list of such'
            raise InputError(f"inputs: expected {expected}, got {described(inputs)}")
        return [_read_question(value, f"row {row}: ") for row, value in enumerate(inputs)], False

    def tokenise(
        self, items: Sequence[Question], options: QuestionAnsweringOptions
    ) -> tuple[Pieces, dict[int, InputError]]:
        """The windows of each context, behind its question."""
        length = options.max_seq_len or min(USUAL_LENGTH, self.loaded.max_length or USUAL_LENGTH)
        if self.loaded.max_length is not None and length > self.loaded.max_length:
            raise OptionError(f"max_seq_len: the model takes at most {self.loaded.max_length} tokens, got {length}")
        overlap = min(length // 2, USUAL_STRIDE) if options.doc_stride is None else options.doc_stride
        if overlap > length:
            raise OptionError(f"doc_stride: expected at most {length}, the tokens of a window, got {overlap}")
        faults = {}
        for row, item in enumerate(items):
            for name, text in zip(item._fields, item, strict=True):
                if not text:
                    faults[row] = InputError(f"{name}: expected a text, got an empty one")
        rows = [row for row in range(len(items)) if row not in faults]
        pairs = [tuple(Characters([text]).text for text in items[row]) for row in rows]
        found = self.loaded.spelling(
            pairs if self._question == 0 else [pair[::-1] for pair in pairs], truncation=False, verbose=False
        )
        windows, refused = windows_of(
            found.encodings or [],
            rows,
            question=self._question,
            max_length=length,
            overlap=overlap,
            max_question=options.max_question_len,
            typed=self.loaded.typed,
        )
        return windows, {**faults, **refused}

    def score_pieces(
        self, batch: PackedBatch, pieces: Pieces, chosen: np.ndarray, options: QuestionAnsweringOptions
    ) -> Sequence[Spans]:
        """The best spans of each window."""
        assert isinstance(pieces, Windows)
        found = self.loaded.model(batch)
        return best_spans(
            found.start_logits,
            found.end_logits,
            batch.cu_seqlens,
            pieces.spans[chosen],
            null=self.loaded.spelling.cls_token_id is not None,
            top_k=options.top_k or 1,
            longest=options.max_answer_len,
        )

    def answer(
        self, item: Question, place: int, pieces: Pieces, scores: Sequence[Spans], options: QuestionAnsweringOptions
    ) -> Any:
        """The best answers of all windows; a context without a token is answered by "", with a score of 0."""
        assert isinstance(pieces, Windows)
        context = Characters([item.context])
        answers = []
        for piece, spans in zip(pieces.of(place), scores, strict=True):
            if not np.isfinite([spans.null, *spans.scores]).all():
                raise NotFiniteError("the model gave NaN or infinity; expected finite scores")
            first = int(pieces.firsts_of_context[piece])
            for score, start, end in zip(spans.scores.tolist(), spans.starts, spans.ends, strict=True):
                encoding = pieces.encodings[piece]
                begin, stop = self._characters(encoding, first + int(start), first + int(end), options.align_to_words)
                answers.append((score, begin, stop))
        if options.handle_impossible_answer or not answers:
            null = min(spans.null for spans in scores) if options.handle_impossible_answer else 0.0
            answers.append((null, 0, 0))
        answers.sort(key=lambda answer: -answer[0])
        shown = [
            {
                "score": score,
                "start": context.place(begin),
                "end": context.place(stop),
                "answer": context.text[begin:stop],
            }
            for score, begin, stop in answers[: options.top_k or 1]
        ]
        return shown[0] if options.top_k == 1 else shown

    def shaped(self, answers: list[Any], inputs: Any, single: bool, options: QuestionAnsweringOptions) -> Any:
        """A list of one question is answered as that question is, as in transformers."""
        return answers[0] if len(answers) == 1 else answers

    @property
    def _question(self) -> int:
        """Which text of a pair is the question: as in transformers the second where padding is on the left."""
        return 0 if self.loaded.spelling.padding_side == "right" else 1

    def _characters(self, encoding: Encoding, start: int, end: int, words: bool) -> tuple[int, int]:
        """The characters of the context from one token to another."""
        first, last = encoding.token_to_chars(start), encoding.token_to_chars(end)
        if words:
            first, last = (self._word(encoding, start) or first), (self._word(encoding, end) or last)
        return (0, 0) if first is None or last is None else (first[0], last[1])

    def _word(self, encoding: Encoding, token: int) -> tuple[int, int] | None:
        word = encoding.token_to_word(token)
        return None if word is None else encoding.word_to_chars(word, 1 - self._question)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _read_question(value: Any, where: str) -> Question:
    if isinstance(value, Mapping) and set(value) == {"question", "context"}:
        value = (value["question"], value["context"])
    if _is_pair(value):
        return Question(*value)
    expected = '{"question": …, "context": …}, strings both'
    raise InputError(f"{where}expected {expected}, got {described(value)}")


def _paired(inputs: Mapping[str, Any]) -> list[Question]:
    questions, contexts = list(inputs["question"]), inputs.get("context")
    contexts = [contexts] * len(questions) if isinstance(contexts, str) else contexts
    if not isinstance(contexts, list | tuple):
        raise InputError(f"context: expected a string, or a list of {len(questions)}, got {described(contexts)}")
    if len(contexts) != len(questions):
        raise InputError(f"context: expected as many as questions ({len(questions)}), got {len(contexts)}")
    return [_read_question(pair, f"row {row}: ") for row, pair in enumerate(zip(questions, contexts, strict=True))]
