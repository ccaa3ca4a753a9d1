"""The classes that are compared, the configurations they are compared in, and both sides of a comparison with the same
random weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers

import padless
from padless.engine.models import CLASSES, FAMILIES

SEED = 20261121

_BERT = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 36,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}

TINY: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "mobilebert": {
        **_BERT,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 28,
        "embedding_size": 12,
        "intra_bottleneck_size": 20,
        "num_feedforward_networks": 3,
        # Nothing normalises between its layers: wider weights let transformers' own rounding grow beyond the bounds.
        "initializer_range": 0.1,
    },
    "modernbert": {
        **_BERT,
        "num_hidden_layers": 4,
        "local_attention": 6,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
    "megatron-bert": _BERT,
    "mt5": {
        "vocab_size": 61,
        "d_model": 24,
        "d_kv": 5,
        "d_ff": 28,
        "num_layers": 3,
        "num_heads": 3,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16,
    },
}
"""`model_type` -> a configuration with no two sizes equal by accident: more than one layer, head and block."""

REAL: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert-base-uncased", {}),
    "mobilebert": ("mobilebert-uncased", {}),
    "modernbert": ("ModernBERT-base", {}),
    "megatron-bert": ("megatron-bert-uncased-345m", {}),
    "mt5": ("mt5-small", {}),
}
"""`model_type` -> a published checkpoint whose widths and depth the defaults of its configuration class are."""

LABELS = 9
"""Classes of a classification head: enough that the cosine of its logits says something."""


@dataclass(frozen=True)
class ModelClass:
    """One class of the seeds: `model_type`, and what its name ends with."""

    family: str
    kind: str

    @property
    def name(self) -> str:
        """Such as MobileBertForMaskedLM; the same on both sides."""
        return FAMILIES[self.family][1] + self.kind

    @property
    def is_bare(self) -> bool:
        return self.kind.endswith("Model")

    @property
    def has_decoder(self) -> bool:
        """An encoder and a decoder."""
        return self.family == "mt5" and self.kind not in ("EncoderModel", "ForTokenClassification")

    @property
    def takes_decoder_ids(self) -> bool:
        """What stands on the decoder's side is an input of its own; the other classes shift the text."""
        return self.has_decoder and self.kind in ("Model", "ForConditionalGeneration")

    @property
    def ours(self) -> Any:
        return getattr(padless, self.name)

    @property
    def theirs(self) -> Any:
        return getattr(transformers, self.name)

    def __str__(self) -> str:
        return self.name


def model_classes() -> list[ModelClass]:
    """Every class that padless has, family by family."""
    return [ModelClass(family, kind) for family, kinds in CLASSES.items() for kind in kinds if kind != "Config"]


def bare_class(family: str) -> ModelClass:
    """The family's class without a head."""
    return next(item for item in model_classes() if item.family == family and item.is_bare)


def their_config(item: ModelClass, fields: Mapping[str, Any]) -> Any:
    """transformers' configuration with these fields, and a head's usual number of classes unless they say another."""
    labels = {} if item.kind == "ForQuestionAnswering" or item.is_bare else {"num_labels": LABELS}
    causal = {"is_decoder": True} if item.kind == "ForCausalLM" else {}
    return getattr(transformers, FAMILIES[item.family][1] + "Config")(**{**labels, **causal, **fields})


def their_model(
    item: ModelClass,
    fields: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
    noise: float = 0.3,
    attention: str | None = "eager",
) -> Any:
    """transformers' model with random weights, in evaluation mode.

    Args:
        item: the class.
        fields: of its configuration.
        dtype: of its parameters.
        noise: standard deviation of what is added to biases, norms and other vectors; fresh ones are 0 or 1, and a
            mistake there would not show.
        attention: transformers' `attn_implementation`; "eager" can return attentions, None is its own choice.
    """
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = item.theirs._from_config(their_config(item, fields), attn_implementation=attention)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * noise)
    return model.to(dtype).eval()


def our_model(theirs: Any, item: ModelClass, **options: Any) -> Any:
    """padless' model with the weights and configuration that `theirs.save_pretrained` writes.

    Args:
        theirs: transformers' model.
        item: the class.
        options: of `from_pretrained`.
    """
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return item.ours.from_pretrained(folder, **options)
