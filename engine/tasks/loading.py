"""A folder to a task: the family's class with the head that the task needs, and the tokenizer both ways."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..config import CONFIG_NAME, model_type, read_json
from ..errors import ConfigError
from ..models import family_class
from ..models.pretrained import parameters_left_empty
from ..tokenization.auto import tokenizer_of
from ..tokenizer import Tokenizer, check_vocabulary
from ..tokenizer_files import read_tokenizer_folder
from ..weights import load_weights
from . import task_class
from .task import Loaded, Task

__all__ = ["load_task", "task_of_folder"]

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


def task_of_folder(folder: Path) -> str:
    """The task a model folder is made for: "embedding" unless its configuration names a class with another head."""
    if (folder / "modules.json").exists() or not (folder / CONFIG_NAME).exists():
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
    source = str(folder / CONFIG_NAME)
    try:
        model_class = family_class(model_type(folder), found.kind, source=source)
    except ConfigError as error:
        raise ConfigError(f"{error}; it is asked for by the task {found.name}") from None
    config = model_class.config_class.from_folder(folder)
    files = read_tokenizer_folder(folder)
    tokenizer = Tokenizer.from_folder(folder)
    check_vocabulary(tokenizer, config.vocab_size, folder)
    with parameters_left_empty():
        model = model_class(config)
    load_weights(model, folder, model_class.name_rules, dtype=dtype, device=device, tied=model.tie_table())
    model.read_beside(folder)
    model.eval().requires_grad_(False).bind(backend, deterministic)
    spelling = tokenizer_of(files)
    tokenizer.max_length = _longest(model, spelling.model_max_length)
    return found(Loaded(model, tokenizer, spelling, folder, device, dtype, token_budget), defaults or {})


def _longest(model: Any, of_tokenizer: float) -> int | None:
    """Tokens of a text: what the tokenizer's settings say, and never more than the model has positions for."""
    limits = [limit for limit in (of_tokenizer, model.base_model.longest) if limit is not None and limit < 1e20]
    return int(min(limits)) if limits else None
