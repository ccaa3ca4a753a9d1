"""From a model folder to something that runs: an encoder, or one of the tasks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, Unpack, overload

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

if TYPE_CHECKING:
    from .tasks.fill_mask import FillMask
    from .tasks.multiple_choice import MultipleChoice
    from .tasks.next_sentence_prediction import NextSentencePrediction
    from .tasks.question_answering import QuestionAnswering
    from .tasks.rerank import Rerank
    from .tasks.text2text_generation import Summarization, Text2TextGeneration
    from .tasks.text_classification import TextClassification
    from .tasks.text_generation import TextGeneration
    from .tasks.token_classification import TokenClassification
    from .tasks.zero_shot_classification import ZeroShotClassification

__all__ = ["TOKEN_BUDGET", "load"]

Source: TypeAlias = "str | os.PathLike[str]"

TOKEN_BUDGET = {"cpu": 4096, "cuda": 65536}
"""Tokens in a batch, by device type. On a CPU a batch's activations should stay in the last cache; a GPU wants work."""


class How(TypedDict, total=False):
    """Arguments of `load` beside folder and task."""

    device: str | int | torch.device
    dtype: str | torch.dtype
    backend: str
    deterministic: bool
    require_kernels: bool
    cuda_graphs: bool | str


# What a folder is made for is known when it is read: without a task the type says nothing.
@overload
def load(path: Source, *, task: Literal["embedding"], **how: Unpack[How]) -> Encoder: ...
@overload
def load(
    path: Source, *, task: Literal["text-classification", "sentiment-analysis"], **how: Unpack[How]
) -> TextClassification: ...
@overload
def load(path: Source, *, task: Literal["token-classification", "ner"], **how: Unpack[How]) -> TokenClassification: ...
@overload
def load(path: Source, *, task: Literal["zero-shot-classification"], **how: Unpack[How]) -> ZeroShotClassification: ...
@overload
def load(path: Source, *, task: Literal["next-sentence-prediction"], **how: Unpack[How]) -> NextSentencePrediction: ...
@overload
def load(path: Source, *, task: Literal["multiple-choice"], **how: Unpack[How]) -> MultipleChoice: ...
@overload
def load(path: Source, *, task: Literal["rerank"], **how: Unpack[How]) -> Rerank: ...
@overload
def load(path: Source, *, task: Literal["fill-mask"], **how: Unpack[How]) -> FillMask: ...
@overload
def load(path: Source, *, task: Literal["question-answering"], **how: Unpack[How]) -> QuestionAnswering: ...
@overload
def load(path: Source, *, task: Literal["summarization"], **how: Unpack[How]) -> Summarization: ...
@overload
def load(path: Source, *, task: Literal["text2text-generation"], **how: Unpack[How]) -> Text2TextGeneration: ...
@overload
def load(path: Source, *, task: Literal["text-generation"], **how: Unpack[How]) -> TextGeneration: ...
@overload
def load(path: Source, *, task: str | None = None, **how: Unpack[How]) -> Any: ...
def load(
    path: Source,
    *,
    device: str | int | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    backend: str = "auto",
    deterministic: bool = False,
    require_kernels: bool = False,
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
        require_kernels: a kernel that cannot be compiled or started when it is called is a BackendError; otherwise the
            next row serves, with a warning, from then on.
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
        loaded = load_task(
            folder,
            task,
            device=target,
            dtype=precision,
            backend=backend,
            deterministic=deterministic,
            token_budget=budget,
        )
        return _requiring(loaded, require_kernels)
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
    encoder = Encoder(
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
    return _requiring(encoder, require_kernels)


def _requiring(loaded: Any, require_kernels: bool) -> Any:
    for op in loaded.bound_ops():
        op.kernel_required = require_kernels
    return loaded
