"""A folder to a task: the family's class with the head that the task needs, and the tokenizer both ways."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..config import CONFIG_NAME, model_type, read_json
from ..errors import ConfigError, WeightsError
from ..folders.cross_encoder import MODULES_NAME, is_cross_encoder, read_cross_encoder_folder
from ..models import family_class
from ..models.pretrained import parameters_left_empty
from ..tokenization.auto import tokenizer_of
from ..tokenizer import Tokenizer, check_vocabulary
from ..tokenizer_files import read_tokenizer_folder
from ..weights import load_weights
from . import task_class
from .task import Loaded, Task

__all__ = ["load_task", "longest_text", "task_of_folder"]

TASK_OF_HEAD = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
    "ForNextSentencePrediction": "next-sentence-prediction",
    "ForConditionalGeneration": "text2text-generation",
    "ForCausalLM": "text-generation",
}
"""What a checkpoint's class was made for. A masked language model is not here: it is what embeddings come from."""


ALIKE = ("ForSequenceClassification", "ForTokenClassification", "ForMultipleChoice")
"""Heads whose tensors have one name."""


def task_of_folder(folder: Path) -> str:
    """The task a model folder is made for: "embedding" unless its configuration names a class with another head. A
    CrossEncoder of one label reranks.
    """
    if is_cross_encoder(folder):
        settings = read_cross_encoder_folder(folder).transformer_folder / CONFIG_NAME
        labels = read_json(settings, what="model configuration").get("id2label")
        return "rerank" if isinstance(labels, dict) and len(labels) == 1 else "text-classification"
    if (folder / MODULES_NAME).exists() or not (folder / CONFIG_NAME).exists():
        return "embedding"
    named = read_json(folder / CONFIG_NAME, what="model configuration").get("architectures")
    first = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
    return next((task for head, task in TASK_OF_HEAD.items() if first.endswith(head)), "embedding")


def load_task(
    folder: Path,
    task: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    backend: str,
    deterministic: bool,
    token_budget: int,
    defaults: Mapping[str, Any] | None = None,
) -> Task[Any, Any]:
    """Load a model for a task.

    Args:
        folder: of the model.
        task: of `TASKS`, or one of `ALIASES`.
        device: where it will run.
        dtype: what it will compute in.
        backend: "auto", or the name of a row of the dispatch table.
        deterministic: as of `padless.load`.
        token_budget: most tokens in a batch.
        defaults: options of every call.

    Raises:
        OptionError: there is no such task.
        ConfigError: the family has no class for the task.
        WeightsError: the checkpoint lacks the task's head: its answers would be noise.
        BackendError: `backend` or `deterministic` cannot be served.
    """
    found = task_class(task)
    own = read_cross_encoder_folder(folder) if is_cross_encoder(folder) else None
    source = folder if own is None else own.transformer_folder
    try:
        model_class = family_class(model_type(source), found.kind, source=str(source / CONFIG_NAME))
    except ConfigError as error:
        raise ConfigError(f"{error}; it is asked for by the task {found.name}") from None
    _refuse_other_head(source, found)
    config = model_class.config_class.from_folder(source)
    files = read_tokenizer_folder(source)
    tokenizer = Tokenizer.from_folder(source, lowercase=own is not None and own.do_lower_case)
    check_vocabulary(tokenizer, config.vocab_size, source)
    with parameters_left_empty():
        model = model_class(config)
    report = load_weights(
        model,
        source,
        model_class.name_rules,
        dtype=dtype,
        device=device,
        optional=model.optional_parts(),
        tied=model.tie_table(),
    )
    lacking = [name for name in report.initialised if not model.fill_missing(name)]
    if lacking:
        needed = f"{', '.join(lacking)}, which the task {found.name} needs: its answers would be noise"
        raise WeightsError(f"{folder}: no weights for {needed}")
    model.read_beside(source)
    model.eval().requires_grad_(False).bind(backend, deterministic)
    spelling = tokenizer_of(files)
    limit = None if own is None else own.max_seq_length
    tokenizer.max_length = longest_text(model, spelling.model_max_length if limit is None else limit)
    return found(Loaded(model, tokenizer, spelling, folder, device, dtype, token_budget), defaults or {})


def _refuse_other_head(folder: Path, task: type[Task[Any, Any]]) -> None:
    """A head of another kind whose tensors have the same names would load, and answer noise."""
    named = read_json(folder / CONFIG_NAME, what="model configuration").get("architectures")
    first = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
    if any(first.endswith(kind) and kind != task.kind for kind in ALIKE if task.kind in ALIKE):
        raise WeightsError(
            f"{folder / CONFIG_NAME}: architectures names {first}, the task {task.name} needs a model {task.kind}: its "
            "answers would be noise"
        )


def longest_text(model: Any, of_tokenizer: float) -> int | None:
    """Tokens of a text: what the tokenizer's settings say, and never more than the model has positions for."""
    limits = [limit for limit in (of_tokenizer, model.base_model.longest) if limit is not None and limit < 1e20]
    return int(min(limits)) if limits else None
