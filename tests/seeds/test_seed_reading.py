"""The parts that the tests of the seed pages share: they read damaged pages, and see every difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from seed_pages import Block, python_sources
from seed_runs import Run, differences, run_differences, run_with_transformers, tensors
from torch import nn

PAGE = """\
# Title

```python
first = 1
```
prose

```bash
python -c "not = python"
```

```py
>>> second = [
...     2,
... ]
>>> second
[2]

>>> third = 3

**Parameters:** the fence is lost

>>> fourth = (4,
...           4)
output
of two lines

prose
```python
>>> for x in y:
...     fifth = 5
```
```python
sixth = 6
```
"""


def test_examples_are_found_with_and_without_fences_and_prompts() -> None:
    assert python_sources(PAGE) == [
        "first = 1\n",
        "second = [\n    2,\n]\nsecond\nthird = 3\n",
        "fourth = (4,\n          4)\n",
        "for x in y:\n    fifth = 5\n",
        "sixth = 6\n",
    ]


def linear(width: int) -> nn.Module:
    return nn.Linear(width, 2)


SAME: list[Any] = [
    torch.arange(6.0).reshape(2, 3),
    torch.zeros(0),
    {"logits": torch.ones(2), "loss": None},
    ["LABEL_1", 3, True, (1.25,)],
    linear(3),
]
DIFFERENT: list[tuple[Any, Any]] = [
    (torch.ones(3), torch.ones(3) + 2e-4),
    (torch.ones(3), torch.ones(3, 1)),
    (torch.ones(3), torch.ones(3, dtype=torch.float64)),
    (torch.ones(3), [1.0, 1.0, 1.0]),
    (torch.tensor([1, 2]), torch.tensor([1, 3])),
    (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan])),
    ({"logits": torch.ones(2)}, {"loss": None, "logits": torch.ones(2)}),
    ({"logits": torch.ones(2)}, {"logits": torch.zeros(2)}),
    (["LABEL_1"], ["LABEL_0"]),
    ([1], [1, 1]),
    (1.0, 1.02),
    (None, 1.0),
    ("1", 1),
    (linear(3), linear(4)),
]


@pytest.mark.parametrize("value", SAME, ids=lambda value: type(value).__name__)
def test_no_difference_is_seen_where_there_is_none(value: Any) -> None:
    assert differences(value, value, "x", tolerance=0.0) == []


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
@pytest.mark.parametrize("swapped", [False, True])
def test_a_difference_is_seen(one: Any, other: Any, swapped: bool) -> None:
    assert differences(*((other, one) if swapped else (one, other)), "x", tolerance=1e-4) != []


def test_the_tolerance_is_of_the_largest_magnitude() -> None:
    theirs = torch.tensor([1000.0, 1.0])
    assert differences(theirs + 0.05, theirs, "x", tolerance=1e-4) == []
    assert differences(theirs + 0.2, theirs, "x", tolerance=1e-4) == ["x: differs by 0.2, at most 0.1 expected"]


def test_without_numbers_only_kinds_and_shapes_count() -> None:
    assert differences(torch.ones(3), torch.zeros(3), "x", tolerance=0.0, numbers=False) == []
    assert differences(torch.ones(3), torch.ones(4), "x", tolerance=0.0, numbers=False) != []
    assert differences(torch.tensor([1]), torch.tensor([2, 3]), "x", tolerance=0.0, numbers=False) == []
    assert differences(torch.tensor([1]), torch.tensor([[2]]), "x", tolerance=0.0, numbers=False) != []


def test_runs_differ_in_variables_expressions_and_what_is_printed() -> None:
    theirs = Run({"loss": torch.ones(()), "torch": torch}, [0.5], "text\n")
    assert run_differences(theirs, theirs, tolerance=0.0) == []
    assert run_differences(Run({}, [0.5], "text\n"), theirs, tolerance=0.0) == ["loss: missing"]
    assert run_differences(Run(theirs.variables, [], "text\n"), theirs, tolerance=0.0) != []
    assert run_differences(Run(theirs.variables, [0.5], ""), theirs, tolerance=0.0) != []


def test_a_run_keeps_variables_expressions_and_output(tmp_path: Path) -> None:
    source = "from transformers import BertModel\nimport torch\nx = torch.ones(2)\nx.sum().item()\nprint('done', x)\n"
    run = run_with_transformers(Block("page", 0, source), tmp_path)
    assert run.values == [2.0, None]
    assert run.printed == "done tensor([1., 1.])\n"
    assert run.variables.keys() == {"BertModel", "torch", "x"}
    assert tensors(run) == 1
