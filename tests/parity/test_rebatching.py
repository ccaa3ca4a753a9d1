"""deterministic=True: a text has the same bits alone and in every batch, wherever it stands, however it is padded.

The reference is the same model on each text alone; what is compared are bits, so there is no tolerance.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from parity_inputs import CHOICES, FORMS, Texts, draw_texts, run_alone, run_form
from parity_models import REAL, TINY, ModelClass, model_classes, our_model, their_config, their_model

LENGTHS = [1, 2, 3, 3, 5, 7, 8, 13, 16, 17, 23, 31, 2, 3, 11, 40]
"""An even number of texts, for the choices of questions; most of them as odd as a GEMM's tile allows."""


def chosen(texts: Texts, rows: list[int]) -> Texts:
    parts = (None if part is None else [part[row] for row in rows] for part in (texts.types, texts.written))
    types, written = parts
    return Texts([texts.ids[row] for row in rows], types, written=written)


def draw_rows(draw: random.Random, item: ModelClass, count: int) -> list[int]:
    """Some of the texts in some order; the choices of a question stay together."""
    group = CHOICES if item.kind == "ForMultipleChoice" else 1
    groups = draw.sample(range(count // group), draw.randint(1, count // group))
    return [group * first + place for first in groups for place in range(group)]


def differing(model: Any, item: ModelClass, times: int, seed: int) -> int:
    """In how many of so many batches some text has other bits than alone."""
    texts = draw_texts(item, LENGTHS, model.config.vocab_size)
    draw = random.Random(seed)
    with torch.no_grad():
        alone = [run_alone(model, item, chosen(texts, [row])) for row in range(len(texts))]
        batches = 0
        for _ in range(times):
            rows = draw_rows(draw, item, len(texts))
            found = run_form(model, item, chosen(texts, rows), draw.choice(FORMS[1:]))
            expected = {name: torch.cat([alone[row][name] for row in rows]) for name in found}
            batches += not all(torch.equal(found[name], expected[name]) for name in found)
    return batches


@pytest.mark.parametrize("item", model_classes(), ids=str)
def test_every_class_gives_a_text_its_own_bits(item: ModelClass) -> None:
    model = our_model(their_model(item, TINY[item.family]), item, deterministic=True)
    assert differing(model, item, 6, seed=1) == 0


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("family", TINY)
def test_every_family_does_so_in_every_dtype_on_several_threads(family: str, dtype: str, threads: int) -> None:
    item = next(item for item in model_classes() if item.family == family and item.kind == "ForTokenClassification")
    model = our_model(their_model(item, TINY[family]), item, dtype=dtype, deterministic=True)
    torch.set_num_threads(threads)
    assert differing(model, item, 4, seed=2) == 0


@pytest.mark.parametrize("activation", ["silu", "sigmoid", "gelu_new", "quick_gelu", "mish"])
def test_an_activation_does_not_tell_the_end_of_a_vector(activation: str) -> None:
    """torch computes what is left behind the last whole vector of an elementwise operator by other code."""
    item = next(item for item in model_classes() if item.name == "BertForMaskedLM")
    fields = {**TINY["bert"], "hidden_act": activation, "intermediate_size": 37}
    model = our_model(their_model(item, fields), item, deterministic=True)
    assert differing(model, item, 6, seed=3) == 0


def test_it_has_to_be_asked_for() -> None:
    """The same check sees the difference where nothing is promised."""
    item = next(item for item in model_classes() if item.name == "BertModel")
    fields = {**TINY["bert"], "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
    theirs = their_model(item, fields)
    assert differing(our_model(theirs, item, deterministic=True), item, 12, seed=4) == 0
    assert differing(our_model(theirs, item, backend="eager"), item, 12, seed=4) > 0


@pytest.mark.soak
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", REAL)
def test_a_thousand_batches_at_real_shapes(family: str, dtype: str) -> None:
    item = next(item for item in model_classes() if item.family == family and item.kind == "ForTokenClassification")
    fields = {**REAL[family][1], "num_hidden_layers": 2, "num_layers": 2}
    known = {name: value for name, value in fields.items() if hasattr(their_config(item, {}), name)}
    model = our_model(their_model(item, known), item, dtype=dtype, deterministic=True)
    torch.set_num_threads(2)
    assert differing(model, item, 1_000, seed=5) == 0
