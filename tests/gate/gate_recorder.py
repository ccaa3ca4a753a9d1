"""What a launcher would launch, recorded at the last step before Triton, and specialised for a target by Triton itself.

Nothing runs and nothing is copied from Triton: `JITFunction.run`, which every `kernel[grid](...)` ends in, is replaced
while a launcher is called with tensors on the CPU. Types, constants and divisibility of what it was given are then
found by the functions that a real launch uses, for a GPU that need not be there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.experimental.gluon._runtime import GluonASTSource
from triton.runtime.jit import JITFunction, create_function_from_signature

__all__ = ["Launch", "Specialisation", "recorded", "specialise"]


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Attributes:
        kernel: the function under `@triton.jit` or `@gluon.jit`.
        grid: programs along each axis.
        keywords: arguments, constants and options by name, as the launcher gave them to Triton.
    """

    kernel: Any
    grid: tuple[int, ...]
    keywords: dict[str, Any]

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.__name__


@dataclass(frozen=True)
class Specialisation:
    """What Triton compiles a launch to.

    Attributes:
        signature: type by parameter name: `*bf16`, `i32`, `constexpr`, `tensordesc<bf16[128, 64]>`.
        constants: value by place of the parameter: of those declared so, of None, of integers that are 1.
        attributes: what is known about the other parameters, by place: divisibility by 16.
        options: warps, stages and the rest.
        source: all of it, as `triton.compile` takes it.
        given: the options that the launcher gave itself.
    """

    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: Any
    source: ASTSource
    given: tuple[tuple[str, Any], ...]


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Collect every launch within the context in place of making it."""
    launches: list[Launch] = []

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        keywords = dict(zip(kernel.arg_names, args, strict=False)) | keywords
        launches.append(Launch(kernel, tuple(grid), keywords))

    with patch.object(JITFunction, "run", record):
        yield launches


def specialise(launch: Launch, target: GPUTarget, *, aligned: bool = True) -> Specialisation:
    """What a GPU of this kind would compile for `launch`.

    Args:
        launch: as recorded.
        target: the GPU.
        aligned: False forgets all that is known about the values (that a pointer or a number is divisible by 16, that
            a tensor is small enough for 32-bit offsets), as if no tensor and no stride were so kind.
    """
    kernel, backend = launch.kernel, make_backend(target)
    # What `JITFunction.run` adds before it looks at anything.
    keywords = {"debug": False, "instrumentation_mode": ""} | launch.keywords
    binder: Callable[..., Any] = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialisation, options = binder(**keywords)
    if not aligned:
        specialisation = [_forgotten(*entry) for entry in specialisation]
    options, signature, constants, attributes = kernel._pack_args(backend, keywords, bound, specialisation, options)
    written_in = GluonASTSource if kernel.is_gluon() else ASTSource
    source = written_in(kernel, signature, constants, attributes)
    given = tuple(item for item in launch.keywords.items() if item[0] not in kernel.arg_names)
    return Specialisation(signature, constants, attributes, options, source, given)


def _forgotten(kind: Any, known: Any) -> tuple[Any, Any]:
    return kind, "" if kind != "constexpr" and isinstance(known, str) else known
