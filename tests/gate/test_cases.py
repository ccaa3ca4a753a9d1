"""The covering set and its share cover what they say: kernels, pairs of values, configurations that are shipped."""

from __future__ import annotations

import importlib
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from gate_cases import SPACES, Case, complete, covering, launches, share
from gate_compile import TARGETS
from triton.runtime.jit import JITFunction

from padless.kernels import attention
from padless.kernels.tuned import Tuned

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", SPACES)
def test_each_pair_of_values_is_compiled(name: str) -> None:
    made = [
        {**dict(case.facts), "target": case.target, "aligned": case.aligned}
        for case in covering()
        if case.space == name and case.config is None
    ]
    for (a, of_a), (b, of_b) in itertools.combinations(SPACES[name].dimensions.items(), 2):
        assert {(row[a], row[b]) for row in made} == set(itertools.product(of_a, of_b)), (a, b)


@pytest.mark.parametrize("name", SPACES)
def test_the_share_has_each_value_and_each_gpu_with_the_usual_case(name: str) -> None:
    space, made = SPACES[name], [case for case in share() if case.space == name]
    assert set(made) <= set(covering())
    for fact, values in {**space.shapes, **space.variants}.items():
        assert {dict(case.facts)[fact] for case in made} == set(values), fact
    assert {case.aligned for case in made} == {True, False}
    assert {Case(name, tuple(space.usual.items()), target) for target in space.targets} <= set(made)
    assert {(case.config, case.target) for case in made if case.config} == {
        (config, target) for config, targets in space.extra for target in targets
    }


@pytest.mark.parametrize("name", SPACES)
def test_the_complete_set_has_every_shape_for_every_gpu_and_all_that_tuning_tries(name: str) -> None:
    space = SPACES[name]
    made = [case for case in complete() if case.space == name]
    shapes = {(*(dict(case.facts)[fact] for fact in space.shapes), case.target) for case in made}
    assert shapes == set(itertools.product(*space.all_shapes.values(), space.targets))
    assert {case.config for case in made} == {None, *space.candidates}
    assert len(made) == len(shapes) + len(space.candidates) * len(space.targets)


def test_each_kernel_of_the_folder_has_cases() -> None:
    """A kernel is a function under `@triton.jit` that no other one calls."""
    functions: dict[str, JITFunction[Any]] = {}
    for file in sorted((ROOT / "kernels").glob("*.py")):
        module = importlib.import_module(f"padless.kernels.{file.stem}")
        functions.update({n: f for n, f in vars(module).items() if isinstance(f, JITFunction)})
    called = {
        name
        for name in functions
        for other, function in functions.items()
        if other != name and re.search(rf"\b{name}\b", function.src)
    }
    assert len(functions.keys() - called) >= 8
    assert functions.keys() - called == {kernel for space in SPACES.values() for kernel in space.kernels}


def test_each_kernel_of_a_space_is_launched_by_one_of_its_cases() -> None:
    found = {launch.name for case in covering() if case.target == "sm_90" for launch in launches(case)}
    assert found == {kernel for space in SPACES.values() for kernel in space.kernels}


def test_no_two_cases_look_alike() -> None:
    for cases in (covering(), complete()):
        assert len({str(case) for case in cases}) == len(cases)


def test_the_same_cases_every_time() -> None:
    assert covering() == covering()


def test_launchers_choose_as_they_would_on_that_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []
    original = attention.default_config

    def keep(call: Any) -> Any:
        asked.append(call.sm)
        return original(call)

    monkeypatch.setattr(attention, "TUNED", Tuned(attention.__name__, keep, attention.CANDIDATES))
    for target in TARGETS:
        launches(Case("attention", tuple(SPACES["attention"].usual.items()), target))
    assert asked == [80, 86, 89, 90, 100, 120, None]


def test_a_case_with_tensor_descriptors_launches_them() -> None:
    case = next(case for case in covering() if case.config is not None and case.config["TMA"])
    (launch,) = launches(case)
    assert type(launch.keywords["k_rows"]).__name__ == "TensorDescriptor"


def test_configurations_shipped_as_files_are_compiled() -> None:
    """There are none yet; the first one belongs into `gate_cases.complete`."""
    assert sorted((ROOT / "autotune" / "configs").rglob("*.json")) == []
