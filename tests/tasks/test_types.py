"""What type checkers are told of `load` and `pipeline`: `assert_type` is read by pyright in `make lint`, and the class
is the same when it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type, get_args, get_overloads, get_type_hints

import pytest
from task_models import ModelFolder
from writing_folders import write_megatron, write_mt5

import padless
from padless.engine.loading import load
from padless.engine.pipelines import pipeline
from padless.engine.tasks import ALIASES, TASKS
from padless.engine.tasks.fill_mask import FillMask
from padless.engine.tasks.multiple_choice import MultipleChoice
from padless.engine.tasks.next_sentence_prediction import NextSentencePrediction
from padless.engine.tasks.question_answering import QuestionAnswering
from padless.engine.tasks.rerank import Rerank
from padless.engine.tasks.text2text_generation import Summarization, Text2TextGeneration
from padless.engine.tasks.text_classification import TextClassification
from padless.engine.tasks.text_generation import TextGeneration
from padless.engine.tasks.token_classification import TokenClassification
from padless.engine.tasks.zero_shot_classification import ZeroShotClassification


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_mt5(tmp_path_factory.mktemp("mt5")), write_megatron(tmp_path_factory.mktemp("megatron"))


def test_load_has_the_type_of_its_task(model_folder: ModelFolder, writers: tuple[Path, Path]) -> None:
    labels, number = (model_folder("bert", "ForSequenceClassification", num_labels=count) for count in (3, 1))
    words, masks = model_folder("bert", "ForTokenClassification"), model_folder("bert", "ForMaskedLM")
    spans, choices = model_folder("bert", "ForQuestionAnswering"), model_folder("bert", "ForMultipleChoice")
    follows = model_folder("bert", "ForNextSentencePrediction")
    reader, writer = writers

    embed = assert_type(padless.load(masks, task="embedding", device="cpu", dtype="float32"), padless.Encoder)
    classify = assert_type(padless.load(labels, task="text-classification"), TextClassification)
    feel = assert_type(padless.load(str(labels), task="sentiment-analysis", device="cpu"), TextClassification)
    tag = assert_type(padless.load(words, task="token-classification"), TokenClassification)
    name = assert_type(padless.load(words, task="ner", backend="auto"), TokenClassification)
    fit = assert_type(padless.load(labels, task="zero-shot-classification"), ZeroShotClassification)
    rank = assert_type(padless.load(number, task="rerank", deterministic=False), Rerank)
    fill = assert_type(padless.load(masks, task="fill-mask", cuda_graphs=False), FillMask)
    find = assert_type(padless.load(spans, task="question-answering"), QuestionAnswering)
    choose = assert_type(padless.load(choices, task="multiple-choice"), MultipleChoice)
    follow = assert_type(padless.load(follows, task="next-sentence-prediction"), NextSentencePrediction)
    write = assert_type(padless.load(reader, task="text2text-generation"), Text2TextGeneration)
    sum_up = assert_type(padless.load(reader, task="summarization"), Summarization)
    go_on = assert_type(padless.load(writer, task="text-generation"), TextGeneration)
    # The folder says what it is, so that this can be anything.
    found = assert_type(padless.load(words), Any)

    assert type(embed) is padless.Encoder
    assert {type(classify), type(feel)} == {TextClassification}
    assert {type(tag), type(name), type(found)} == {TokenClassification}
    assert (type(fit), type(rank), type(fill)) == (ZeroShotClassification, Rerank, FillMask)
    assert (type(find), type(choose), type(follow)) == (QuestionAnswering, MultipleChoice, NextSentencePrediction)
    assert (type(write), type(sum_up), type(go_on)) == (Text2TextGeneration, Summarization, TextGeneration)


def test_pipeline_has_the_type_of_its_task(model_folder: ModelFolder, writers: tuple[Path, Path]) -> None:
    labels, masks = model_folder("bert", "ForSequenceClassification"), model_folder("bert", "ForMaskedLM")
    embed = assert_type(padless.pipeline("embedding", masks), padless.Encoder)
    classify = assert_type(padless.pipeline("sentiment-analysis", model=labels, top_k=2), TextClassification)
    fill = assert_type(padless.pipeline("fill-mask", model=str(masks), device=-1), FillMask)
    sum_up = assert_type(padless.pipeline(task="summarization", model=writers[0]), Summarization)
    found = assert_type(padless.pipeline(model=labels), Any)
    assert (type(embed), type(classify)) == (padless.Encoder, TextClassification)
    assert (type(fill), type(sum_up), type(found)) == (FillMask, Summarization, TextClassification)


@pytest.mark.parametrize("function", [load, pipeline])
def test_every_task_has_an_overload_that_names_its_class(function: Any) -> None:
    told: dict[str, str] = {}
    for overload in get_overloads(function):
        hint = get_type_hints(overload, localns={name: name for name in overload.__annotations__.values()})["task"]
        told |= dict.fromkeys(map(str, get_args(hint)), str(overload.__annotations__["return"]))
    classes = {task: place.partition(":")[2] for task, place in TASKS.items()}
    expected = {**classes, **{alias: classes[task] for alias, task in ALIASES.items()}, "embedding": "Encoder"}
    assert {task: told.get(task) for task in expected} == expected
