"""Mutants still fit the kernels they were written for, and the tool that runs them can be believed."""

from __future__ import annotations

import pytest
from mutant import Kernel, Mutant, MutantError
from mutant_list import KERNELS
from mutants import RunError, run_tests, source_of

FORWARD = KERNELS[0]
QUICK = ["test_attention_mutants.py"]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_every_mutant_fits_its_kernel(kernel: Kernel) -> None:
    source = source_of(kernel)
    mutated = [mutant.applied_to(source) for mutant in kernel.mutants]
    assert source not in mutated
    assert len(set(mutated)) == len(mutated), "two mutants are the same"
    assert len(mutated) >= 15


def test_a_mutant_is_killed_and_the_kernel_as_it_is_is_not() -> None:
    """Both run in a process of their own, by the same way."""
    source = source_of(FORWARD)
    by_other_strides = next(mutant for mutant in FORWARD.mutants if "stride_kh" in mutant.new and "vt" in mutant.old)
    assert not run_tests(FORWARD.module, source, QUICK).failed
    outcome = run_tests(FORWARD.module, by_other_strides.applied_to(source), QUICK)
    assert outcome.failed
    assert outcome.how.startswith("test_queries_keys_and_values_may_lie_differently")


def test_tests_that_never_import_the_mutated_source_are_no_evidence() -> None:
    with pytest.raises(RunError, match="imported: False"):
        run_tests(
            "padless.kernels.attention_forward",
            "",
            ["test_interpreter.py::test_every_way_to_ask_for_memory_is_poisoned"],
        )


@pytest.mark.parametrize(
    ("mutant", "message"),
    [
        (Mutant("a - b", "a", "gone"), "expected 1 times 'a - b', found 0"),
        (Mutant("a", "b", "several"), "expected 1 times 'a', found 2"),
        (Mutant("a", "b", "several", (1, 3)), "expected 3 times 'a', found 2"),
        (Mutant("a + a", "a + a", "idle"), "nothing changes"),
        (Mutant("a + a", "a + ", "broken"), "is no Python"),
    ],
)
def test_a_mutant_that_does_not_fit_is_an_error(mutant: Mutant, message: str) -> None:
    with pytest.raises(MutantError, match=message.replace("+", r"\+")):
        mutant.applied_to("x = a + a\n")


def test_a_mutant_changes_the_place_it_names() -> None:
    assert Mutant("a", "b", "second", (2, 2)).applied_to("x = a + a\n") == "x = a + b\n"
