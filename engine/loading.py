"""From a model folder to something that runs: an encoder, or one of the tasks."""

from __future__ import annotations

import os
from typing import Any

import torch

from .config import CONFIG_NAME, model_type
from .cuda_graphs import wanted
from .dispatch import backends
from .embedding.encoder import Encoder
from .embedding.pooling import SentenceHead
from .errors import OptionError
from .folders.sentence_transformer import read_sentence_folder
from .hub import resolve_folder
from .models import encoder_class
from .models.pretrained import parameters_left_empty
from .precision import resolve_device, resolve_dtype
from .tasks import task_class
from .tasks.loading import load_task, task_of_folder
from .tokenizer import Tokenizer, check_vocabulary
from .weights import load_weights

__all__ = ["TOKEN_BUDGET", "load"]

TOKEN_BUDGET = {"cpu": 4096, "cuda": 65536}
"""Tokens in a batch, by device type. On a CPU a batch's activations should stay in the last cache; a GPU wants work."""


def load(
    path: str | os.PathLike[str],
    *,
    device: str | int | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    backend: str = "auto",
    deterministic: bool = False,
    task: str | None = None,
    cuda_graphs: bool | str = "auto",
) -> Any:
    """Load a model and return what runs it: an `Encoder` for embeddings, else a `Task` of engine/tasks.

    Args:
        path: a model folder (sentence-transformers or transformers), or `org/name` under `$PADLESS_MODELS`.
        device: "auto", "cpu", "cuda", "cuda:N"; "auto" is the GPU where there is one.
        dtype: "auto", "float32", "bfloat16", "float16", "float64" or a torch dtype; "auto" is the fastest the hardware
            computes in (bf16 on a GPU and on CPUs with bf16 instructions, else fp32).
        backend: "auto", or the name of a row of the dispatch table, which then serves or raises.
        deterministic: only rows that promise the same bits for a text whatever its neighbours.
        task: "embedding", or one of `engine/tasks`; None is what the folder is made for: the task of the head that its
            `config.json` names, and "embedding" for sentence-transformers folders, bare models and masked language
            models.
        cuda_graphs: whether what is done for small batches is recorded and replayed, see `engine/cuda_graphs.py`;
            "auto" on every GPU. The first batches of a size take longer.

    Raises:
        ModelNotFoundError, ConfigError, WeightsError, TokenizerError: the folder; one line that names file and field.
        BackendError: `backend` or `deterministic` cannot be served; lists the reasons.
        OptionError: an argument is out of range.
    """
    if task not in (None, "embedding"):
        task_class(task)
    if backend not in backends():
        raise OptionError(f"backend: expected one of {', '.join(backends())}, got {backend!r}")
    target = resolve_device(device)
    precision = resolve_dtype(dtype, target)
    wanted(cuda_graphs, target)
    folder = resolve_folder(path)
    if task is None:
        task = task_of_folder(folder)
    if task != "embedding":
        budget = TOKEN_BUDGET[target.type]
        return load_task(
            folder,
            task,
            device=target,
            dtype=precision,
            backend=backend,
            deterministic=deterministic,
            token_budget=budget,
        )
    sentence = read_sentence_folder(folder)
    source = sentence.transformer_folder
    family = encoder_class(model_type(source), source=str(source / CONFIG_NAME))
    config = family.config_class.from_folder(source)
    tokenizer = Tokenizer.from_folder(source, max_length=sentence.max_seq_length, lowercase=sentence.do_lower_case)
    check_vocabulary(tokenizer, config.vocab_size, source)
    with parameters_left_empty():
        model = family.without_pooler(config)
    if model.longest is not None and (tokenizer.max_length is None or tokenizer.max_length > model.longest):
        tokenizer.max_length = model.longest
    load_weights(model, source, family.name_rules, dtype=precision, device=target, tied=model.tie_table())
    model.eval().requires_grad_(False).bind(backend, deterministic)
    head = SentenceHead.from_specs(sentence.modules, config.hidden_size, str(folder))
    head.to(target, torch.promote_types(precision, torch.float32))
    head.eval().requires_grad_(False)
    head.bind(target, precision, backend=backend, deterministic=deterministic)
    return Encoder(
        model=model,
        head=head,
        tokenizer=tokenizer,
        folder=folder,
        device=target,
        dtype=precision,
        token_budget=TOKEN_BUDGET[target.type],
        prompts=dict(sentence.prompts),
        default_prompt_name=sentence.default_prompt_name,
        cuda_graphs=cuda_graphs,
    )
