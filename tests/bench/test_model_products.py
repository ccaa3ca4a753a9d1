"""The products that the GEMM ceiling times are those of the model; what they cost is held in `test_cost.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from padless.bench.cost import flops_per_token, product_flops_per_token
from padless.bench.models.products import mean_flops, products
from padless.bench.models.seeded import SEEDED
from padless.engine.models import family_class


def ours(model_type: str) -> Any:
    return family_class(model_type, "Config", source="a test")()


@pytest.mark.parametrize("model_type", [model_type for model_type, _ in SEEDED.values()])
def test_the_products_are_all_of_a_model_s(model_type: str) -> None:
    config = ours(model_type)
    assert sum(product.flops for product in products(config)) == product_flops_per_token(config)


def test_products_of_a_layer_are_counted_as_often_as_it_is_there() -> None:
    shapes = {(product.inputs, product.outputs): product.count for product in products(ours("mobilebert"))}
    assert shapes[128, 512] >= 24 * 4
    assert shapes[384, 512] == 1


def test_the_mean_is_over_tokens_not_texts() -> None:
    config = ours("bert")
    whole = 3 * 10 * flops_per_token(config, 10) + 500 * flops_per_token(config, 500)
    assert mean_flops(config, np.array([10, 500, 10, 10])) == pytest.approx(whole / 530)
