"""A mutant: one place of a kernel's source, changed so that the kernel computes something else."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FMA_ROUNDS_TWICE", "TOO_LARGE", "Kernel", "Mutant", "MutantError"]

# Why a mutant may survive: what this folder's tests cannot see.
FMA_ROUNDS_TWICE = "the interpreter rounds tl.fma twice, like a product and a sum"
TOO_LARGE = "matters from an output of 2^31 elements on, too large for a test; the compile gate finds 32-bit addresses"


class MutantError(ValueError):
    """A mutant does not fit the source it was written for."""


@dataclass(frozen=True)
class Mutant:
    """A change of one text.

    Attributes:
        old: text of the source.
        new: what stands in its place.
        why: what is wrong then.
        place: which of how many occurrences of `old` is changed, from 1 on; the number is checked.
        survives: why no test can tell the difference; empty where one must.
    """

    old: str
    new: str
    why: str
    place: tuple[int, int] = (1, 1)
    survives: str = ""

    def applied_to(self, source: str) -> str:
        """The mutated source.

        Raises:
            MutantError: `old` occurs more or less often than `place` says, nothing changes, or the result is no Python.
        """
        pieces = source.split(self.old)
        nth, of = self.place
        if len(pieces) - 1 != of:
            raise MutantError(f"{self.why}: expected {of} times {self.old!r}, found {len(pieces) - 1}")
        if self.old == self.new:
            raise MutantError(f"{self.why}: nothing changes")
        result = self.old.join(pieces[:nth]) + self.new + self.old.join(pieces[nth:])
        try:
            compile(result, "<mutant>", "exec")
        except SyntaxError as error:
            raise MutantError(f"{self.why}: {self.new!r} is no Python here: {error}") from None
        return result


@dataclass(frozen=True)
class Kernel:
    """A file of the package, the tests that watch over it, in the order they are run, and its mutants."""

    name: str
    tests: tuple[str, ...]
    mutants: tuple[Mutant, ...]

    @property
    def module(self) -> str:
        """Its full name."""
        return f"padless.kernels.{self.name}"
