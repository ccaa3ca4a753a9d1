"""Classes that choose by `config.json`: `AutoModelForMaskedLM.from_pretrained(folder)` is the family's own class.

Their `from_pretrained` takes what `PreTrainedModel.from_pretrained` takes; `from_config` builds with random weights.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

from .config import CONFIG_NAME, ModelConfig, model_type
from .errors import OptionError
from .hub import resolve_folder
from .models import family_class

__all__ = [
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForMultipleChoice",
    "AutoModelForNextSentencePrediction",
    "AutoModelForPreTraining",
    "AutoModelForQuestionAnswering",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
]


class AutoConfig:
    """The configuration class of a folder's family."""

    @staticmethod
    def from_pretrained(
        path: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False, **overrides: Any
    ) -> Any:
        """Read a folder's `config.json`; `overrides` are fields whose value in the file does not count. Arguments of
        transformers' are accepted where they ask for nothing, such as `trust_remote_code`: no code is run.
        """
        folder = resolve_folder(path, revision=revision, local_files_only=local_files_only)
        source = str(folder / CONFIG_NAME)
        return family_class(model_type(folder), "Config", source=source).from_folder(folder, **overrides)


class _AutoClass:
    """Base of the classes below, which only differ in what they choose."""

    kind: ClassVar[str]

    def __init__(self) -> None:
        name = type(self).__name__
        raise OptionError(f"{name}: call {name}.from_pretrained(path) or {name}.from_config(config)")

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], **options: Any) -> Any:
        """The family's class of this kind, filled with the folder's weights; see `PreTrainedModel.from_pretrained`."""
        where = {name: options[name] for name in ("revision", "local_files_only") if name in options}
        folder = resolve_folder(path, **where)
        config = options.get("config")
        found = model_type(folder) if config is None else config.model_type
        return family_class(found, cls.kind, source=str(folder / CONFIG_NAME)).from_pretrained(folder, **options)

    @classmethod
    def from_config(cls, config: ModelConfig) -> Any:
        """The family's class of this kind, with random weights."""
        return family_class(config.model_type, cls.kind, source=type(config).__name__)(config)


class AutoModel(_AutoClass):
    """The bare model."""

    kind = "Model"


class AutoModelForPreTraining(_AutoClass):
    """Both heads of BERT's pre-training."""

    kind = "ForPreTraining"


class AutoModelForCausalLM(_AutoClass):
    """Language models that continue a prompt."""

    kind = "ForCausalLM"


class AutoModelForSeq2SeqLM(_AutoClass):
    """Language models that read a text and write another."""

    kind = "ForConditionalGeneration"


class AutoModelForMaskedLM(_AutoClass):
    """Masked language models."""

    kind = "ForMaskedLM"


class AutoModelForNextSentencePrediction(_AutoClass):
    """Whether one text follows another."""

    kind = "ForNextSentencePrediction"


class AutoModelForSequenceClassification(_AutoClass):
    """Classifiers of texts."""

    kind = "ForSequenceClassification"


class AutoModelForMultipleChoice(_AutoClass):
    """Choosing between texts."""

    kind = "ForMultipleChoice"


class AutoModelForTokenClassification(_AutoClass):
    """Classifiers of tokens."""

    kind = "ForTokenClassification"


class AutoModelForQuestionAnswering(_AutoClass):
    """An answer's first and last token."""

    kind = "ForQuestionAnswering"
