"""FLOPs from a configuration, against those that torch counts while the real module runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from padless.bench.models.flops import attention_flops, flops_per_token, mean_flops, products
from padless.bench.models.seeded import SEEDED
from padless.engine.models import family_class

LENGTH = 40


def ours(model_type: str, fields: dict[str, Any]) -> Any:
    return family_class(model_type, "Config", source="a test")(**fields)


def counted(model_type: str, fields: dict[str, Any], length: int) -> float:
    """Of one text, by torch; the tables of ModernBERT's rotation are made by a product that is none of a token's."""
    config: Any = transformers.AutoConfig.for_model(model_type, **fields)
    config._attn_implementation = "eager"
    if model_type == "mt5":
        model: Any = transformers.MT5EncoderModel(config)
    else:
        options = {} if model_type == "modernbert" else {"add_pooling_layer": False}
        model = transformers.AutoModel.from_config(config, **options)
    with torch.no_grad(), FlopCounterMode(display=False) as mode:
        model.eval()(input_ids=torch.arange(5, 5 + length).unsqueeze(0))
    found = mode.get_flop_counts()
    rotation = sum(sum(each.values()) for name, each in found.items() if name.endswith("rotary_emb"))
    return sum(found["Global"].values()) - rotation


@pytest.mark.parametrize("model_type", [model_type for model_type, _ in SEEDED.values()])
def test_flops_are_those_that_torch_counts(small_fields: dict[str, Any], model_type: str) -> None:
    fields = {**small_fields[model_type], "vocab_size": 97}
    if model_type == "modernbert":
        fields |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    expected = counted(model_type, fields, LENGTH)
    assert flops_per_token(ours(model_type, fields), LENGTH) * LENGTH == expected > 0


@pytest.mark.parametrize("fields", [{"use_bottleneck": False}, {"use_bottleneck_attention": True}])
def test_mobilebert_s_other_bottlenecks(small_fields: dict[str, Any], fields: dict[str, Any]) -> None:
    fields = {**small_fields["mobilebert"], "vocab_size": 97, **fields}
    fields["true_hidden_size"] = fields["hidden_size"] if "use_bottleneck" in fields else 20
    expected = counted("mobilebert", fields, LENGTH)
    del fields["true_hidden_size"]
    assert flops_per_token(ours("mobilebert", fields), LENGTH) * LENGTH == expected


@pytest.mark.parametrize("length", [1, 2, 6, 7, 8, 40])
def test_a_window_counts_the_keys_inside_it(length: int) -> None:
    config = ours("modernbert", {"num_hidden_layers": 1, "layer_types": ["sliding_attention"], "local_attention": 12})
    places = np.arange(length)
    keys = (abs(places[:, None] - places[None]) <= config.sliding_window).sum()
    assert attention_flops(config, length) * length == pytest.approx(4 * config.hidden_size * keys)


def test_the_mean_is_over_tokens_not_texts() -> None:
    config = ours("bert", {})
    whole = 3 * 10 * flops_per_token(config, 10) + 500 * flops_per_token(config, 500)
    assert mean_flops(config, np.array([10, 500, 10, 10])) == pytest.approx(whole / 530)


@pytest.mark.parametrize(
    ("model_type", "length", "mflop"),
    [("bert", 128, 175), ("modernbert", 128, 228), ("megatron-bert", 128, 617), ("mt5", 512, 44.0), ("mt5", 128, 39.3)],
)
def test_published_shapes_cost_what_the_project_s_notes_say(model_type: str, length: int, mflop: float) -> None:
    assert flops_per_token(ours(model_type, {}), length) / 1e6 == pytest.approx(mflop, rel=0.005)


def test_products_of_a_layer_are_counted_as_often_as_it_is_there() -> None:
    shapes = {product.name: product for product in products(ours("mobilebert", {}))}
    assert (shapes["up"].inputs, shapes["up"].outputs, shapes["up"].count) == (128, 512, 24 * 4)
    assert (shapes["embeddings"].inputs, shapes["embeddings"].count) == (384, 1)
