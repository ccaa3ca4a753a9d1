"""A model's kernels ask for what its bound ops say: else `padless tune MODEL` would tune what nobody asks for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from padless.autotune.key import KEYED_BY, Key, key_of
from padless.bench.launches import FAMILIES, LENGTHS, _batch, _bind_as_on_a_gpu, counted
from padless.engine.contract import Call
from padless.engine.dispatch import TABLE
from padless.kernels.tuned import Tuned

Asked = set[tuple[str, Key]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_kernels_ask_for_the_keys_that_the_bound_ops_have(
    monkeypatch: pytest.MonkeyPatch, family: str, backend: str
) -> None:
    asked: Asked = set()
    find = Tuned._find

    def noting(self: Tuned, call: Call, device: torch.device) -> Any:
        asked.add((call.op, key_of(call)))
        return find(self, call, device)

    layer = FAMILIES[family]
    fields: dict[str, Any] = {layer.field: layer.layers + 1, "vocab_size": 128}
    config = layer.model_class.config_class(**fields)
    with torch.no_grad():
        model = layer.model_class.without_pooler(config).to(torch.bfloat16).eval().requires_grad_(False)
        _bind_as_on_a_gpu(model, fused=True)
        if backend == "triton":
            for op in model.bound_ops():
                assert op.resolution is not None
                op.bind_as(op.resolution.call, backend="triton")
        bound: Asked = set()
        for op in model.bound_ops():
            if op.resolution is not None and op.resolution.impl.name == "triton":
                bound.add((op.op, key_of(op.resolution.call)))
        for tuned in _all_tuned():
            monkeypatch.setattr(tuned, "_known", {})
        monkeypatch.setattr(Tuned, "_find", noting)
        with counted(model):
            model.run(_batch(LENGTHS))
    assert len(asked) >= 4
    assert asked <= bound


def test_every_op_with_candidates_is_keyed_by_facts_of_its_own() -> None:
    tunable = {op for op, rows in TABLE.items() for row in rows if row.name == "triton"}
    assert set(KEYED_BY) == tunable


def _all_tuned() -> list[Tuned]:
    from importlib import import_module

    modules = (row.target.partition(":")[0] for rows in TABLE.values() for row in rows if row.name == "triton")
    return [import_module(name).TUNED for name in dict.fromkeys(modules)]
