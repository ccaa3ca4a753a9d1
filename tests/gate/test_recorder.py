"""What is compiled here is what a GPU's launch would compile: same types, constants, divisibility and options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gate_planted
import pytest
import torch
from gate_cases import SPACES, Case, launches
from gate_compile import TARGETS
from gate_recorder import Launch, recorded, specialise
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

OPTIONS = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": False}
USUAL = [
    Case(name, tuple(space.usual.items()), target)
    for name, space in SPACES.items()
    for target in ("sm_80", "sm_90", "gfx942")
    if target in space.targets
]


class AbsentGpu:
    """The active driver of a machine with a GPU, as far as a launch asks it before it compiles."""

    def __init__(self, target: str) -> None:
        self.target = target

    def get_current_device(self) -> str:
        """Any name: Triton keeps what it compiled by it."""
        return self.target

    def get_current_stream(self, device: str) -> int:
        """The default stream."""
        return 0

    def get_current_target(self) -> Any:
        """What to compile for."""
        return TARGETS[self.target].gpu


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What Triton would compile from here on, in place of compiling it."""
    asked: list[dict[str, Any]] = []

    def keep(
        kernel: Any, key: Any, signature: Any, device: Any, constants: Any, options: Any, attributes: Any, *_: Any
    ):
        asked.append({"signature": signature, "constants": constants, "options": options, "attributes": attributes})

    monkeypatch.setattr(JITFunction, "_do_compile", keep)
    yield asked
    monkeypatch.setattr(driver, "_active", None)


@pytest.mark.parametrize("case", USUAL, ids=str)
def test_a_launch_is_specialised_as_triton_itself_does(
    case: Case, compilations: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real `JITFunction.run`, up to the point where it calls the compiler."""
    made = launches(case)
    assert {launch.name for launch in made} >= set(SPACES[case.space].kernels) - {"pool_row_kernel"}
    monkeypatch.setattr(driver, "_active", AbsentGpu(case.target))
    for launch in made:
        launch.kernel.device_caches.pop(case.target, None)
        launch.kernel.run(grid=launch.grid, warmup=True, **launch.keywords)
        launch.kernel.device_caches.pop(case.target, None)
    assert len(compilations) == len(made)
    for launch, asked in zip(made, compilations, strict=True):
        ours = specialise(launch, TARGETS[case.target].gpu)
        found = {name: getattr(ours, name) for name in asked}
        assert found == asked


def record(**arguments: Any) -> Launch:
    with recorded() as made:
        gate_planted.types_kernel[(7, 2)](**arguments, **OPTIONS)
    return made[0]


def arguments(**changes: Any) -> dict[str, Any]:
    base = torch.zeros(64, dtype=torch.bfloat16)
    usual = {"a_ptr": base, "b_ptr": base[1:], "nothing": None, "one": 1, "many": 4096, "odd": 17, "wide": 1 << 31}
    return usual | {"flag": True, "scale": 0.5, "out_ptr": torch.zeros(16), "BLOCK": 16} | changes


def test_each_kind_of_argument_is_specialised_as_documented() -> None:
    """A pointer or number divisible by 16 is known to be; 1 and None are constants; 2^31 needs 64 bits."""
    launch = record(**arguments())
    assert (launch.name, launch.grid) == ("types_kernel", (7, 2))
    found = specialise(launch, TARGETS["sm_90"].gpu)
    assert found.signature == {
        "a_ptr": "*bf16",
        "b_ptr": "*bf16",
        "nothing": "constexpr",
        "one": "constexpr",
        "many": "i32",
        "odd": "i32",
        "wide": "i64",
        "flag": "u1",
        "scale": "fp32",
        "out_ptr": "*fp32",
        "BLOCK": "constexpr",
    }
    assert found.constants == {(2,): None, (3,): 1, (10,): 16}
    divisible = {place for place, known in found.attributes.items() if known}
    assert divisible == {(0,), (4,), (6,), (9,)}
    assert all(known in ([], [["tt.divisibility", 16]]) for known in found.attributes.values())
    assert dict(found.given) == OPTIONS
    assert (found.options.num_warps, found.options.num_stages, found.options.enable_fp_fusion) == (4, 2, False)


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_unaligned_knows_types_and_constants_and_nothing_else(target: str) -> None:
    launch = record(**arguments())
    known, unknown = (specialise(launch, TARGETS[target].gpu, aligned=aligned) for aligned in (True, False))
    assert any(known.attributes.values())
    assert not any(unknown.attributes.values())
    assert unknown.signature == known.signature
    assert unknown.constants == known.constants


def test_a_tensor_descriptor_is_known_by_dtype_and_tile() -> None:
    base = torch.zeros(128, 64, dtype=torch.bfloat16)
    tile = TensorDescriptor(base, [128, 64], [64, 1], [32, 16])
    signature = specialise(record(**arguments(a_ptr=tile)), TARGETS["sm_90"].gpu).signature
    assert signature["a_ptr"].replace(" ", "") == "tensordesc<bf16[32,16]>"


def test_a_tensor_descriptor_that_no_gpu_would_take_is_refused() -> None:
    """Rows must begin at multiples of 16 bytes: 10 elements of bf16 are 20."""
    with pytest.raises(AssertionError, match="16-byte"):
        TensorDescriptor(torch.zeros(128, 10, dtype=torch.bfloat16), [128, 10], [10, 1], [32, 16])


def test_recording_ends_with_its_context() -> None:
    original = JITFunction.run
    with recorded() as made:
        assert JITFunction.run is not original
    assert JITFunction.run is original
    assert made == []
