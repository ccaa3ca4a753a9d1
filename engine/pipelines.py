"""`padless.pipeline`: tasks in transformers' spelling, so that code is ported by changing one import."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import torch

from .errors import OptionError
from .loading import TOKEN_BUDGET, load
from .tasks import task_class
from .tasks.loading import longest_text
from .tasks.task import Loaded, Task
from .tokenization.backend import alike
from .tokenization.base import PreTrainedTokenizerFast
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from .embedding.encoder import Encoder
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

__all__ = ["pipeline"]

Model: TypeAlias = "str | os.PathLike[str] | Any"
"""A folder, an id, or a loaded model."""


# Options of the task stand among the arguments, so that these overloads cannot name them all.
@overload
def pipeline(task: Literal["embedding"], model: Model, **options: Any) -> Encoder: ...
@overload
def pipeline(
    task: Literal["text-classification", "sentiment-analysis"], model: Model, **options: Any
) -> TextClassification: ...
@overload
def pipeline(task: Literal["token-classification", "ner"], model: Model, **options: Any) -> TokenClassification: ...
@overload
def pipeline(task: Literal["zero-shot-classification"], model: Model, **options: Any) -> ZeroShotClassification: ...
@overload
def pipeline(task: Literal["next-sentence-prediction"], model: Model, **options: Any) -> NextSentencePrediction: ...
@overload
def pipeline(task: Literal["multiple-choice"], model: Model, **options: Any) -> MultipleChoice: ...
@overload
def pipeline(task: Literal["rerank"], model: Model, **options: Any) -> Rerank: ...
@overload
def pipeline(task: Literal["fill-mask"], model: Model, **options: Any) -> FillMask: ...
@overload
def pipeline(task: Literal["question-answering"], model: Model, **options: Any) -> QuestionAnswering: ...
@overload
def pipeline(task: Literal["summarization"], model: Model, **options: Any) -> Summarization: ...
@overload
def pipeline(task: Literal["text2text-generation"], model: Model, **options: Any) -> Text2TextGeneration: ...
@overload
def pipeline(task: Literal["text-generation"], model: Model, **options: Any) -> TextGeneration: ...
@overload
def pipeline(task: str | None = None, model: Model = None, **options: Any) -> Any: ...
def pipeline(
    task: str | None = None,
    model: Model = None,
    *,
    tokenizer: Any = None,
    device: str | int | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    torch_dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    batch_size: int | None = None,
    backend: str = "auto",
    deterministic: bool = False,
    require_kernels: bool = False,
    trust_remote_code: bool | None = None,
    **options: Any,
) -> Any:
    """Load a model for a task, as `padless.load(model, task=task)` does, or put one that is loaded behind a task.

    Args:
        task: a name of engine/tasks, such as "fill-mask"; None is what the folder is made for.
        model: a folder, an id such as "org/name", or a model of padless that is loaded; then with its `tokenizer`.
        tokenizer: of a loaded model; that of a folder is read from it.
        device: "auto", "cpu", "cuda", "cuda:N" or N, which is the CPU where there is no GPU; -1 is the CPU, None is
            "auto".
        dtype: as of `padless.load`; None is "auto".
        torch_dtype: older spelling of `dtype`.
        device_map: "auto" is the device "auto"; a device is that device.
        batch_size: most pieces in a batch; None leaves that to a token budget.
        backend, deterministic, require_kernels: as of `padless.load`.
        trust_remote_code: accepted where it asks for nothing: code of a folder is never run.
        options: of every call that does not name them itself.

    Raises:
        OptionError: an argument or an option is unknown or out of range.
        ModelNotFoundError, ConfigError, WeightsError, TokenizerError: the folder; one line that names file and field.
    """
    if trust_remote_code:
        raise OptionError("trust_remote_code: expected False, no code of a folder is ever run")
    if model is None:
        raise OptionError("model: expected a folder or an id; padless has no default models")
    wanted = device_map if device is None else device
    precision = dtype if torch_dtype is None else torch_dtype
    if isinstance(model, str | os.PathLike):
        if tokenizer is not None and str(tokenizer) != str(model):
            raise OptionError("tokenizer: expected that of the model's folder, or a loaded model beside it")
        found = load(
            model,
            task=task,
            device="auto" if wanted is None else wanted,
            dtype="auto" if precision is None else precision,
            backend=backend,
            deterministic=deterministic,
            require_kernels=require_kernels,
        )
    else:
        found = _behind(task, model, tokenizer)
    if not isinstance(found, Task):
        if options or batch_size is not None:
            raise OptionError(f"{', '.join(options) or 'batch_size'}: embeddings take options in calls of encode")
        return found
    found.defaults, found.batch_size = dict(options), batch_size
    found.options({})
    return found


def _behind(task: str | None, model: Any, tokenizer: Any) -> Task[Any, Any]:
    """A loaded model as a task."""
    if task is None:
        raise OptionError("task: expected a name beside a loaded model")
    chosen = task_class(task)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise OptionError(f"tokenizer: expected one of padless beside a loaded model, got {type(tokenizer).__name__}")
    if not type(model).__name__.endswith(chosen.kind) or not hasattr(model, "bound_ops"):
        raise OptionError(f"model: {task} needs a class of padless {chosen.kind}, got {type(model).__name__}")
    single = Tokenizer(
        alike(tokenizer.backend_tokenizer),
        source=Path(tokenizer.name_or_path),
        max_length=longest_text(model, tokenizer.model_max_length),
        cut_from_left=tokenizer.truncation_side == "left",
    )
    model.eval()
    budget = TOKEN_BUDGET[model.device.type]
    return chosen(Loaded(model, single, tokenizer, Path(tokenizer.name_or_path), model.device, model.dtype, budget))
