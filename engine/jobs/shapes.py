"""The rows of a job as inputs of a task, and the task's answers as columns: a shape for each task.

task                        columns of a row              columns of its answer
text-classification         text [, pair]                 label, score; with top_k or chunks lists of them
next-sentence-prediction    text, pair                    label, score
zero-shot-classification    text                          labels, scores
token-classification        text                          entities: list of entity, score, word, start, end
fill-mask                   text                          predictions: a list for each mask
question-answering          text: question, pair: context answer, score, start, end; with top_k a list of them
multiple-choice             text, pair: the choices       choice, answer, score, scores
rerank                      text: query, pair: documents  ranking: list of corpus_id, score
text2text-generation, text-generation, summarization
                            text                          generated_text; with several sequences a list of them
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..errors import InputError
from ..tasks.generating import WritingOptions, generation_options
from ..tasks.task import Task
from .inputs.rows import Row

__all__ = ["Shape", "draws_unseeded", "shape_of"]

Columns = tuple[pa.Field, ...]
SCORE = pa.float32()
LABEL = pa.field("label", pa.string())
SCORES = (LABEL, pa.field("score", SCORE))
PREDICTION = pa.struct([("score", SCORE), ("token", pa.int32()), ("token_str", pa.string()), ("sequence", pa.string())])
SPAN = (
    pa.field("answer", pa.string()),
    pa.field("score", SCORE),
    pa.field("start", pa.int32()),
    pa.field("end", pa.int32()),
)


@dataclass(frozen=True)
class Shape:
    """Of one task and its options.

    Attributes:
        item: a row as the task's `read` takes one input. Raises InputError for a row that has not what it needs.
        fields: columns of the answers.
        values: an answer to a value for each of them.
        paired: whether rows need a pair column (True), have no use for one (False), or may have one (None).
        several: whether a pair is a list of strings.
    """

    item: Callable[[Row], Any]
    fields: Columns
    values: Callable[[Any], tuple[Any, ...]]
    paired: bool | None = False
    several: bool = False


def shape_of(task: Task[Any, Any], options: Any) -> Shape:
    """The shape of a task under its options."""
    if isinstance(options, WritingOptions):
        return _written(options, generation_options(task.loaded.model, options).num_return_sequences > 1)
    return _SHAPES[task.name](options)


def draws_unseeded(task: Task[Any, Any], options: Any) -> bool:
    """Whether the answers are written with tokens that are drawn otherwise every time."""
    if not isinstance(options, WritingOptions):
        return False
    found = generation_options(task.loaded.model, options)
    return found.do_sample and found.seed is None and found.generator is None


def _text(row: Row) -> str:
    return row.text or ""


def _text_or_pair(row: Row) -> Any:
    return _text(row) if row.pair is None else (_text(row), _second(row))


def _pair(row: Row) -> tuple[str, str]:
    return _text(row), _second(row)


def _second(row: Row) -> str:
    if not isinstance(row.pair, str):
        raise InputError(f"pair: expected a string, got {'none' if row.pair is None else 'a list'}")
    return row.pair


def _several(row: Row) -> list[str]:
    if not isinstance(row.pair, list):
        raise InputError(f"pair: expected a list of strings, got {'none' if row.pair is None else 'a string'}")
    return row.pair


def _classification(options: Any) -> Shape:
    alone = options.top_k == ""
    each = getattr(options, "long_texts", "") == "chunk" and options.aggregate == "each"
    fields = SCORES if alone else tuple(pa.field(f"{field.name}s", pa.list_(field.type)) for field in SCORES)
    if each:
        fields = tuple(
            pa.field(field.name if not alone else f"{field.name}s", pa.list_(field.type)) for field in fields
        )

    def values(answer: Any) -> tuple[Any, ...]:
        return tuple(_taken(answer, name) for name in ("label", "score"))

    return Shape(_text_or_pair, fields, values, None)


def _taken(answer: Any, name: str) -> Any:
    """A field of an answer, or of each answer in lists of any depth."""
    return answer[name] if isinstance(answer, Mapping) else [_taken(part, name) for part in answer]


def _next_sentence(options: Any) -> Shape:
    found = _classification(options)
    return Shape(_pair, found.fields, found.values, True)


def _zero_shot(options: Any) -> Shape:
    fields = (pa.field("labels", pa.list_(pa.string())), pa.field("scores", pa.list_(SCORE)))
    return Shape(_text, fields, lambda answer: (answer["labels"], answer["scores"]))


def _tokens(options: Any) -> Shape:
    grouped = options.aggregation_strategy != "none"
    places = [("word", pa.string()), ("start", pa.int32()), ("end", pa.int32())]
    kind = [("entity_group" if grouped else "entity", pa.string()), ("score", SCORE)]
    index = [] if grouped else [("index", pa.int32())]
    field = pa.field("entities", pa.list_(pa.struct([*kind, *index, *places])))
    return Shape(_text, (field,), lambda answer: (answer,))


def _masks(options: Any) -> Shape:
    field = pa.field("predictions", pa.list_(pa.list_(PREDICTION)))
    return Shape(_text, (field,), lambda answer: (answer if isinstance(answer[0], list) else [answer],))


def _spans(options: Any) -> Shape:
    def item(row: Row) -> dict[str, str]:
        return {"question": _text(row), "context": _second(row)}

    if options.top_k == 1:
        return Shape(item, SPAN, lambda answer: tuple(answer[field.name] for field in SPAN), True)
    whole = pa.field("answers", pa.list_(pa.struct(SPAN)))
    return Shape(item, (whole,), lambda answer: (answer if isinstance(answer, list) else [answer],), True)


def _choices(options: Any) -> Shape:
    fields = (
        pa.field("choice", pa.int32()),
        pa.field("answer", pa.string()),
        pa.field("score", SCORE),
        pa.field("scores", pa.list_(SCORE)),
    )
    return Shape(
        lambda row: {"prompt": _text(row), "choices": _several(row)},
        fields,
        lambda answer: (answer["choice"], answer["text"], answer["score"], answer["scores"]),
        True,
        True,
    )


def _ranking(options: Any) -> Shape:
    text = [("text", pa.string())] if options.return_documents else []
    field = pa.field("ranking", pa.list_(pa.struct([("corpus_id", pa.int32()), ("score", SCORE), *text])))

    def item(row: Row) -> dict[str, Any]:
        return {"query": _text(row), "documents": _several(row)}

    return Shape(item, (field,), lambda answer: (answer,), True, True)


def _written(options: WritingOptions, several: bool) -> Shape:
    kind = pa.list_(pa.int32()) if options.return_tensors else pa.string()
    name = "generated_token_ids" if options.return_tensors else "generated_text"

    def value(record: Mapping[str, Any]) -> Any:
        (found,) = record.values()
        return found.tolist() if hasattr(found, "tolist") else found

    if several:
        field = pa.field(f"{name}s", pa.list_(kind))
        return Shape(_text, (field,), lambda answer: ([value(record) for record in answer],))
    return Shape(_text, (pa.field(name, kind),), lambda answer: (value(answer[0]),))


_SHAPES: dict[str, Callable[[Any], Shape]] = {
    "text-classification": _classification,
    "next-sentence-prediction": _next_sentence,
    "zero-shot-classification": _zero_shot,
    "token-classification": _tokens,
    "fill-mask": _masks,
    "question-answering": _spans,
    "multiple-choice": _choices,
    "rerank": _ranking,
}
