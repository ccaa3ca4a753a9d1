"""The models of part `models`: published shapes, seeded random weights, and how many operations a batch costs them.

Weights are drawn so that the check can tell right from wrong: with a standard deviation of half the inverse root of the
inputs' number, activations keep their size through 24 layers that nothing normalises (MobileBERT), softmax is not
saturated where scores are not scaled (mT5), and texts get vectors of their own. All are bf16 numbers, so that systems
of every dtype compute with the same ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ...engine.models import encoder_class
from ...engine.models.bare import BareModel
from ...engine.models.pretrained import parameters_left_empty
from .problem import Problem, visible_pairs

__all__ = ["SHAPES", "Shape", "build", "fill", "flops"]

_GAIN = 0.5
_SEED = 5


@dataclass(frozen=True)
class Shape:
    """One model.

    Attributes:
        family: `model_type`.
        peer: transformers' class of the bare model.
        real: fields of the configuration where they differ from its defaults, which are those of a published model.
        tiny: fields for a dry run.
        tokens: of a workload, in thousands: what a GPU takes some tens of milliseconds for.
        peer_options: arguments of transformers' class.
        cosine: least cosine between a text's vector in bf16 and the one of eager in fp32; see `model_check.py`.
    """

    family: str
    peer: str
    real: Mapping[str, Any] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 131_072
    peer_options: Mapping[str, Any] = field(default_factory=dict)
    cosine: float = 0.999

    @property
    def peer_config(self) -> str:
        """Name of transformers' configuration class."""
        return self.peer.removesuffix("EncoderModel").removesuffix("Model") + "Config"


_TINY = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 36,
    "max_position_embeddings": 64,
}
_TINY_MOBILE = {
    **_TINY,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 28,
    "embedding_size": 12,
    "intra_bottleneck_size": 20,
    "num_feedforward_networks": 2,
}
_TINY_MODERN = {
    **_TINY,
    "local_attention": 6,
    **{f"{name}_token_id": place for place, name in enumerate(("pad", "bos", "eos", "cls", "sep"))},
}
_TINY_T5 = {
    "vocab_size": 61,
    "d_model": 24,
    "d_kv": 8,
    "d_ff": 28,
    "num_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}
_NO_POOLER = {"add_pooling_layer": False}
_MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}

SHAPES = {
    "ModernBERT-base": Shape("modernbert", "ModernBertModel", tiny=_TINY_MODERN),
    "BERT-base": Shape("bert", "BertModel", tiny=_TINY, peer_options=_NO_POOLER),
    "MobileBERT": Shape("mobilebert", "MobileBertModel", tiny=_TINY_MOBILE, tokens=262_144, peer_options=_NO_POOLER),
    "mT5-small encoder": Shape("mt5", "MT5EncoderModel", tiny=_TINY_T5, tokens=262_144),
    "MegatronBERT-345m": Shape(
        "megatron-bert", "MegatronBertModel", tiny=_TINY, tokens=65_536, peer_options=_NO_POOLER
    ),
    "MiniLM-L6": Shape("bert", "BertModel", real=_MINILM, tiny=_TINY, tokens=262_144, peer_options=_NO_POOLER),
}


def build(shape: Shape, device: torch.device, dtype: torch.dtype, *, dry: bool, backend: str = "auto") -> BareModel:
    """The bare model with unfilled parameters on `device`, bound and in evaluation mode.

    Raises:
        BackendError: `backend` cannot serve.
    """
    family = encoder_class(shape.family, source="the GPU report")
    config = family.config_class(**(shape.tiny if dry else shape.real))
    with parameters_left_empty():
        model = family.without_pooler(config)
    return model.to(device, dtype).eval().requires_grad_(False).bind(backend)


def fill(model: BareModel) -> None:
    """Seeded weights as described above; the same on every device of one kind.

    The vector of the padding token is zero, as a fresh table's is: transformers' MobileBERT reads it behind the last
    token of a text that is padded, where there is nothing to read.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(_SEED)
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator, device=device)
            if parameter.dim() > 1 and id(parameter) not in tables:
                drawn *= _GAIN * parameter.shape[1] ** -0.5
            elif parameter.dim() == 1:
                drawn = 1 + 0.05 * drawn if name.endswith("weight") else 0.02 * drawn
            parameter.copy_(drawn.to(torch.bfloat16))
        model.word_embeddings.weight[0] = 0.0


def flops(model: BareModel, lengths: Sequence[int]) -> float:
    """Of one pass over texts of these lengths: two a multiplication, in linear layers and attention's two products.

    Args:
        model: any family; its embeddings, norms and activations count nothing.
        lengths: tokens of each text.
    """
    layers = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    counts = Counter(lengths)
    pairs = {
        window: sum(
            count * visible_pairs(Problem((length,), 1, 1, torch.float32, window=window))
            for length, count in counts.items()
        )
        for window in set(_windows(model.config))
    }
    attention = sum(pairs[window] for window in _windows(model.config)) * _attended_width(model.config)
    return 2.0 * layers * sum(lengths) + 4.0 * attention


def _attended_width(config: Any) -> int:
    if config.model_type == "mt5":
        return config.num_heads * config.d_kv
    return config.true_hidden_size if config.model_type == "mobilebert" else config.hidden_size


def _windows(config: Any) -> Iterator[tuple[int, int]]:
    """What each layer sees to its left and right; -1 is everything."""
    if config.model_type == "modernbert":
        side = config.local_attention // 2
        for kind in config.layer_types:
            yield (side, side) if kind == "sliding_attention" else (-1, -1)
        return
    layers = config.num_layers if config.model_type == "mt5" else config.num_hidden_layers
    for _ in range(layers):
        yield (-1, -1)
