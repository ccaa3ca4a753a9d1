"""Each launcher runs with what was measured for its call, and with its default where a file is not to be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from gate_cases import SPACES, Case, launches

from padless.autotune.device import Device, slugify
from padless.autotune.key import key_of
from padless.autotune.lookup import DEFAULT, USER_CACHE, Lookup
from padless.autotune.record import Entry, Provenance, Tiling
from padless.autotune.store import Store
from padless.engine.contract import Call
from padless.kernels import tuned
from padless.kernels.launch import Config
from padless.kernels.operators import RUN
from padless.kernels.tuned import Tuned

H200 = Device("cuda", "NVIDIA H200", slugify("NVIDIA H200"), 90, 132, frozenset())
TUNABLE = [name for name, space in SPACES.items() if space.candidates and name != "attention on Hopper"]
FOREIGN = Config.of(num_warps=2, num_stages=7, max_registers=99, BLOCK_M=96)

Asked = list[tuple[Tuned, Call]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Asked:
    """An H200 with an empty cache; what kernels ask of it from now on."""
    found: Asked = []
    lookup = Lookup(Store(tmp_path / "autotune"), tmp_path / "shipped")
    monkeypatch.setattr(tuned, "process_lookup", lambda: lookup)
    monkeypatch.setattr(tuned, "identify", lambda device: H200)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    find = Tuned._find

    def noting(self: Tuned, call: Call, device: torch.device) -> Any:
        found.append((self, call))
        return find(self, call, device)

    monkeypatch.setattr(Tuned, "_find", noting)
    return found


def written(tuner: Tuned, call: Call, config: Config, **changes: Any) -> Entry:
    tiling = Tiling(tuple(sorted(config.blocks)), config.num_warps, config.num_stages, config.max_registers)
    facts: dict[str, Any] = {
        "gpu": H200.name, "multiprocessors": 132, "sm": 90, "torch": "2.11.0", "triton": triton.__version__,
        "driver": None, "kernel_hash": tuner.kernel_hash(), "us": 10.0, "default_us": 12.0,
    }  # fmt: skip
    return Entry(key_of(call), tiling, Provenance(**facts | changes))


def configurations(name: str) -> list[tuple[Any, ...]]:
    """What the launcher of a space compiles on an H200 of the fixture."""
    for tuner in {id(t): t for t in _tuners()}.values():
        tuner._known.clear()
    made = launches(Case(name, tuple(SPACES[name].usual.items()), "sm_90"))
    wanted = ("num_warps", "num_stages", "maxnreg", "BLOCK_M", "BLOCK_N", "BLOCK_K", "SPLIT", "PARTS", "TMA")
    return [tuple(launch.keywords.get(word) for word in wanted) for launch in made]


def _tuners() -> list[Tuned]:
    from padless.kernels import (
        attention,
        decode,
        embed,
        linear,
        mlm_head,
        mobilebert,
        norm,
        norm_linear,
        pool,
        rope,
        trigram,
    )

    modules = (attention, decode, embed, linear, mlm_head, mobilebert, norm, norm_linear, pool, rope, trigram)
    return [module.TUNED for module in modules]


def store_of() -> Store:
    store = tuned.process_lookup()._store
    assert store is not None
    return store


@pytest.mark.parametrize("name", TUNABLE)
def test_a_launcher_runs_with_the_measured_configuration(asked: Asked, name: str) -> None:
    by_default = configurations(name)
    tuner, call = asked[-1]
    assert tuner.source(call) == DEFAULT
    default = tuner.default(call)
    # Another number of warps is seen whatever else a launcher makes of a candidate.
    other = next(config for config in SPACES[name].candidates if config.num_warps != default.num_warps)
    store_of().keep(H200.slug, call.op, [written(tuner, call, other)])
    tuned.process_lookup().forget()
    by_file = configurations(name)
    assert by_file != by_default
    assert other.num_warps in {warps for warps, *_ in by_file}
    assert tuner.source(call) == USER_CACHE


def test_statistics_keep_their_runs_whatever_was_measured(asked: Asked) -> None:
    """A tracer knows the shape of the statistics before it knows the tiling."""
    by_default = configurations("statistics")
    tuner, call = asked[-1]
    other = next(config for config in SPACES["statistics"].candidates if config["BLOCK_N"] != RUN * config["PARTS"])
    store_of().keep(H200.slug, call.op, [written(tuner, call, other)])
    tuned.process_lookup().forget()
    assert tuner.source(call) == USER_CACHE
    assert configurations("statistics") == by_default


@pytest.mark.parametrize("name", TUNABLE)
@pytest.mark.parametrize("fault", ["no candidate", "another kernel", "another triton", "another GPU"])
def test_a_launcher_runs_with_its_default_where_the_entry_does_not_fit(asked: Asked, name: str, fault: str) -> None:
    by_default = configurations(name)
    tuner, call = asked[-1]
    default = tuner.default(call)
    other = next(config for config in SPACES[name].candidates if config.num_warps != default.num_warps)
    changes: dict[str, dict[str, Any]] = {
        "no candidate": {}, "another kernel": {"kernel_hash": "0" * 16}, "another triton": {"triton": "3.0.0"},
        "another GPU": {"gpu": "NVIDIA H200 NVL"},
    }  # fmt: skip
    config = FOREIGN if fault == "no candidate" else other
    slug = slugify(changes[fault].get("gpu", H200.name))
    store_of().keep(slug, call.op, [written(tuner, call, config, **changes[fault])])
    tuned.process_lookup().forget()
    assert configurations(name) == by_default
    assert tuner.source(call) == DEFAULT
