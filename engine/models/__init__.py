"""The model families padless knows, by the `model_type` of their `config.json`; imported when they are asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..errors import ConfigError

__all__ = ["CLASSES", "FAMILIES", "encoder_class", "family_class"]

FAMILIES = {
    "bert": ("bert", "Bert"),
    "megatron-bert": ("megatron_bert", "MegatronBert"),
    "mobilebert": ("mobilebert", "MobileBert"),
    "modernbert": ("modernbert", "ModernBert"),
    "mt5": ("mt5", "MT5"),
}
"""`model_type` -> (module of this folder, what the names of its classes begin with)."""

_BERT_TASKS = (
    "ForPreTraining",
    "ForMaskedLM",
    "ForNextSentencePrediction",
    "ForSequenceClassification",
    "ForMultipleChoice",
    "ForTokenClassification",
    "ForQuestionAnswering",
)

CLASSES = {
    "bert": ("Config", "Model", *_BERT_TASKS),
    "megatron-bert": ("Config", "Model", *_BERT_TASKS, "ForCausalLM"),
    "mobilebert": ("Config", "Model", *_BERT_TASKS),
    "modernbert": (
        "Config",
        "Model",
        "ForMaskedLM",
        "ForSequenceClassification",
        "ForMultipleChoice",
        "ForTokenClassification",
        "ForQuestionAnswering",
    ),
    "mt5": (
        "Config",
        "EncoderModel",
        "Model",
        "ForConditionalGeneration",
        "ForSequenceClassification",
        "ForTokenClassification",
        "ForQuestionAnswering",
    ),
}
"""`model_type` -> the classes of the family, without what their names begin with."""


def family_class(model_type: str, kind: str, *, source: str) -> Any:
    """One class of the family that `config.json` names.

    Args:
        model_type: as `config.json` has it.
        kind: "Config", "Model", "ForMaskedLM" and so on.
        source: the file it came from, for the message.

    Raises:
        ConfigError: an unknown model type, or a family without this class; lists those that are known.
    """
    if model_type not in FAMILIES:
        raise ConfigError(f"{source}: model_type: expected one of {', '.join(FAMILIES)}, got {model_type!r}")
    module, prefix = FAMILIES[model_type]
    if kind not in CLASSES[model_type]:
        able = [name for name, kinds in CLASSES.items() if kind in kinds]
        raise ConfigError(f"{source}: model_type: {kind} needs one of {', '.join(able) or 'none'}, got {model_type!r}")
    return getattr(import_module(f".{module}", __name__), prefix + kind)


def encoder_class(model_type: str, *, source: str) -> Any:
    """The family's class that turns texts into vectors: its encoder where there is one by itself, else its bare model.

    Raises:
        ConfigError: an unknown model type.
    """
    alone = "EncoderModel" in CLASSES.get(model_type, ())
    return family_class(model_type, "EncoderModel" if alone else "Model", source=source)
