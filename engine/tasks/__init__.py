"""Answers instead of tensors: what `padless.load(path, task=…)` and `padless.pipeline(task, model=path)` return.

task.py -> how a call runs: inputs, items, pieces, scores, answers
pieces.py, long_texts.py -> texts as the model takes them
running.py -> pieces through the model
options.py -> options of a call
loading.py -> a model and what feeds it
The other files are the tasks, one each; the table below is all of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..errors import OptionError

__all__ = ["ALIASES", "TASKS", "task_class"]

TASKS: dict[str, str] = {
    "text-classification": "text_classification:TextClassification",
    "zero-shot-classification": "zero_shot_classification:ZeroShotClassification",
    "next-sentence-prediction": "next_sentence_prediction:NextSentencePrediction",
    "multiple-choice": "multiple_choice:MultipleChoice",
    "rerank": "rerank:Rerank",
    "token-classification": "token_classification:TokenClassification",
    "fill-mask": "fill_mask:FillMask",
    "question-answering": "question_answering:QuestionAnswering",
    "text2text-generation": "text2text_generation:Text2TextGeneration",
    "summarization": "text2text_generation:Summarization",
    "text-generation": "text_generation:TextGeneration",
}
"""Name of a task -> file and class."""

ALIASES = {
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
}
"""Other names of tasks, as transformers has them."""


def task_class(name: str) -> Any:
    """The class of a task.

    Raises:
        OptionError: there is no such task; lists those that there are.
    """
    name = ALIASES.get(name, name)
    if name not in TASKS:
        raise OptionError(f"task: expected one of {', '.join(('embedding', *TASKS))}, got {name!r}")
    module, _, found = TASKS[name].partition(":")
    return getattr(import_module(f".{module}", __name__), found)
