"""transformers' own usage examples, read from the docstrings of the installed package, with one line added."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerated import BOUND
from docstring_examples import ADDED, Example, examples, furnish, run
from torch import Tensor, nn

from padless.engine.models.pretrained import PreTrainedModel

EXAMPLES = examples()


def assert_like(found: Any, expected: Any, where: str) -> None:
    """The same kind and value; floats that were rounded to two digits may differ in the last."""
    if isinstance(expected, Tensor):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype), where
        if expected.is_floating_point():
            assert torch.equal(found.isnan(), expected.isnan()), where
            gap = (found - expected).nan_to_num().abs().max() if found.numel() else 0
            assert gap <= BOUND * max(1.0, expected.detach().nan_to_num().abs().max().item()), where
        else:
            assert torch.equal(found, expected), where
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=0.0101, nan_ok=True), where
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for index, pair in enumerate(zip(found, expected, strict=True)):
            assert_like(*pair, f"{where}[{index}]")
    elif hasattr(expected, "to_tuple"):
        assert type(found) is type(expected), where
        assert list(found) == list(expected), where
        for name in expected:
            assert_like(found[name], expected[name], f"{where}.{name}")
    elif isinstance(expected, (str, int)):
        assert found == expected, where
    else:
        assert type(found) is type(expected), where


def test_nearly_every_class_with_a_head_has_an_example() -> None:
    assert len(EXAMPLES) >= 36
    assert all(example.hub_names for example in EXAMPLES)
    for example in EXAMPLES:
        added = [line for line in example.with_the_line() if line not in example.statements]
        assert set(added) == {ADDED}
        assert len(added) == "".join(example.statements).count("model = ")


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_an_example_leaves_behind_what_it_does_without_the_line(
    example: Example, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    furnish(example, tmp_path)
    expected = run(example.statements, tmp_path)
    served: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, *_: served.append(type(module).__name__) if isinstance(module, PreTrainedModel) else None
    )
    try:
        with caplog.at_level(logging.WARNING, logger="padless"):
            found = run(example.with_the_line(), tmp_path)
    finally:
        handle.remove()
    assert served
    assert [record.getMessage() for record in caplog.records if "transformers computes" in record.getMessage()] == []
    assert found.printed == expected.printed
    assert_like(found.values, expected.values, "expressions")
    assert list(found.variables) == list(expected.variables)
    for name, value in expected.variables.items():
        if not isinstance(value, type) and name != "tokenizer":
            assert_like(found.variables[name], value, name)
