"""The model of a GPU: against the project's notes, against masks and tiles counted one by one, and at its limits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from padless.bench.cost import bytes_per_token, launches, product_flops_per_token, weight_bytes
from padless.bench.scaling.job_cost import MODELS
from padless.bench.scaling.roofline import (
    H200,
    Device,
    Figure,
    attention_crossover,
    batch_seconds,
    ideal_seconds,
    practical_seconds,
    tokens_per_second,
)
from padless.engine.errors import OptionError
from padless.engine.models.bert import BertConfig
from padless.engine.models.modernbert_config import FULL, SLIDING, ModernBertConfig

# M tokens/s at 128, 512 and 8,192 tokens: the project's notes, derived apart from this code.
NOTES = {
    "ModernBERT-base": ((3.47, 3.31, 1.85), (2.81, 2.64, 1.25)),
    "ModernBERT-large": ((1.13, 1.10, 0.77), (0.92, 0.89, 0.55)),
    "BERT-base": ((4.52, 4.19, 1.67), (3.68, 3.30, 1.07)),
    "MegatronBERT-345m": ((1.28, 1.21, 0.56), (1.04, 0.96, 0.37)),
    "mT5-small, encoder": ((20.1, 17.9, 5.7), (16.2, 13.9, 3.6)),
    "mT5-base, encoder": ((4.52, 4.19, 1.67), (3.68, 3.30, 1.07)),
    "MobileBERT": ((18.8, 16.9), (15.2, 13.1)),
}
CONFIGS = {model.name: model.config for model in MODELS}

FREE = Figure(math.inf, "assumed", "a limit of the model")
NOTHING = Figure(0.0, "assumed", "a limit of the model")
UNIT = Figure(1.0, "assumed", "one a second")
ENDLESS = Device("no bounds", FREE, FREE, FREE, FREE, NOTHING, NOTHING, FREE, 132)


@pytest.mark.parametrize("name", NOTES)
def test_ideal_and_practical_rates_are_those_of_the_notes(name: str) -> None:
    ideal, practical = NOTES[name]
    for length, fast, slow in zip((128, 512, 8192), ideal, practical, strict=False):
        # MobileBERT: the notes count 98 kB a token, and the kernels, with a residual stream in fp32, move 235.
        tolerance = 0.03 if name == "MobileBERT" else 0.015
        assert 1e-6 / ideal_seconds(CONFIGS[name], length, H200) == pytest.approx(fast, rel=tolerance)
        assert 1e-6 / practical_seconds(CONFIGS[name], length, H200) == pytest.approx(slow, rel=0.015)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("length", [1, 30, 129, 512, 8192])
def test_no_kernel_beats_published_rates_and_nothing_beats_the_roofline(name: str, length: int) -> None:
    config = CONFIGS[name]
    by_kernel = tokens_per_second(config, length, H200)
    assert by_kernel <= 1 / practical_seconds(config, length, H200) <= 1 / ideal_seconds(config, length, H200)


def test_a_small_batch_waits_for_launches_unless_they_are_recorded() -> None:
    slow_host = replace(H200, launch=Figure(1e-3, "assumed", "a slow host"))
    seconds = batch_seconds(BertConfig(), 1, 16, slow_host)
    assert seconds == pytest.approx(1e-3 * launches(BertConfig()))
    assert batch_seconds(BertConfig(), 1, 16, slow_host, recorded=True) < seconds / 10
    slow_kernels = replace(ENDLESS, kernel=UNIT)
    assert batch_seconds(BertConfig(), 1, 16, slow_kernels) == launches(BertConfig())


def test_without_any_bound_but_memory_bytes_decide_and_weights_are_read_once_a_batch() -> None:
    memory = replace(ENDLESS, bandwidth=UNIT)
    for texts in (1, 40):
        expected = 100 * texts * bytes_per_token(BertConfig()) + weight_bytes(BertConfig())
        assert batch_seconds(BertConfig(), texts, 100, memory) == pytest.approx(expected)


def test_products_take_whole_tiles_in_whole_waves() -> None:
    config = BertConfig(hidden_size=256, intermediate_size=1024, num_attention_heads=4, num_hidden_layers=1)
    products = replace(ENDLESS, gemm=UNIT)
    wave = 128 * 132
    whole = batch_seconds(config, wave, 1, products)
    assert whole == pytest.approx(wave * product_flops_per_token(config))
    # One more band of 128 rows: qkv, out, up and down have 3, 1, 4 and 1 columns of tiles and each starts a wave more.
    one_more = sum(132 * 128 * 256 * 2 * inputs for inputs in (256, 256, 256, 1024))
    assert batch_seconds(config, wave + 1, 1, products) == pytest.approx(whole + one_more)
    assert batch_seconds(config, 1, 1, products) == batch_seconds(config, 128, 1, products) < whole


@pytest.mark.parametrize("length", [1, 64, 100, 128, 129, 300, 517])
@pytest.mark.parametrize("kind", [FULL, SLIDING])
def test_attention_takes_whole_tiles_of_keys_that_are_seen(kind: Any, length: int) -> None:
    config = ModernBertConfig(num_hidden_layers=1, layer_types=[kind], local_attention=96)
    places = torch.arange(length)
    near = (places[:, None] - places[None, :]).abs() <= (48 if kind == SLIDING else length)
    blocks = [near[row : row + 128, key : key + 64] for row in range(0, length, 128) for key in range(0, length, 64)]
    tiles = sum(bool(block.any()) for block in blocks)
    expected = 3 * tiles * 128 * 64 * 4 * config.hidden_size
    assert batch_seconds(config, 3, length, replace(ENDLESS, attention=UNIT)) == pytest.approx(expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_attention_passes_the_products_at_the_crossover(name: str) -> None:
    tokens = attention_crossover(CONFIGS[name], H200)
    assert tokens is not None

    def attention_seconds(length: int) -> float:
        return practical_seconds(CONFIGS[name], length, H200) - products

    products = product_flops_per_token(CONFIGS[name]) / 650e12
    assert attention_seconds(tokens - 1) <= products < attention_seconds(tokens)


def test_windows_alone_never_pass_the_products() -> None:
    sliding: Any = [SLIDING, SLIDING]
    windows = ModernBertConfig(num_hidden_layers=2, layer_types=sliding)
    assert attention_crossover(windows, H200) is None


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(OptionError, match="texts: expected at least 1, got 0"):
        batch_seconds(BertConfig(), 0, 16, H200)
