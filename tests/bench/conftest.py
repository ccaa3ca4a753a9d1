"""Small models with random weights, in folders that everybody loads; processes that have to be gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from padless.bench.models.seeded import write_seeded
from padless.bench.timing import only_new_garbage

_BERT: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 36,
    "initializer_range": 0.2,
}

SMALL: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "megatron-bert": _BERT,
    "modernbert": {**_BERT, "num_hidden_layers": 4, "local_attention": 128},
    "mobilebert": {
        **_BERT,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 28,
        "embedding_size": 12,
        "intra_bottleneck_size": 20,
        "num_feedforward_networks": 3,
        "initializer_range": 0.02,
    },
    "mt5": {"d_model": 24, "d_kv": 5, "d_ff": 28, "num_layers": 3, "num_heads": 3},
}
"""`model_type` -> fields with no two sizes equal by accident; the vocabularies are those of the published models."""


@pytest.fixture(autouse=True, scope="package")
def few_objects_to_look_at() -> Iterator[None]:
    """Whoever measures collects garbage first: what imports and other tests have left is not looked at.

    Once for all tests here: to freeze and to thaw what is there takes half a second.
    """
    with only_new_garbage():
        yield


@pytest.fixture(scope="session")
def small_fields() -> dict[str, dict[str, Any]]:
    return SMALL


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small model by `model_type`, written once; leave it as it is."""
    parent = tmp_path_factory.mktemp("small")

    def folder(model_type: str) -> Path:
        if not (parent / model_type).exists():
            write_seeded(model_type, parent / model_type, SMALL[model_type])
        return parent / model_type

    return folder


@pytest.fixture(scope="session")
def ends() -> Callable[[Path], bool]:
    """Asked of the /proc/PID/stat of a process that was killed."""
    return _ends


def _ends(process: Path) -> bool:
    """Whether a process that was killed is gone soon, or waits to be collected; a busy machine takes its time."""
    for _ in range(100):
        try:
            if process.read_text().split()[2] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False
