"""LLVM's compiler for the CPU at hand: text in LLVM's language to a function that ctypes can call."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm

from .code import Code

__all__ = ["assembly", "compiled_once"]

_CTYPES = {"pointer": ctypes.c_void_p, "integer": ctypes.c_int64, "number": ctypes.c_float}

_compiling = threading.Lock()
_engines: list[Any] = []
"""What owns the machine code; as long as the process lives."""


def compiled_once(make: Callable[..., Code]) -> Callable[..., Callable[..., None]]:
    """Of a function that writes a kernel, one that gives it compiled, from memory where its arguments were the same.

    What comes out is called with integers, floats and addresses; while it runs other Python threads do too.

    Raises:
        RuntimeError: LLVM refuses the code, or the system has no memory that code may run in.
    """
    made: dict[tuple[Any, ...], Callable[..., None]] = {}

    @functools.wraps(make)
    def kernel(*arguments: Any) -> Callable[..., None]:
        found = made.get(arguments)
        if found is None:
            # Several threads that ask at once wait for one of them.
            with _compiling:
                found = made.get(arguments)
                if found is None:
                    found = made[arguments] = _compiled(make(*arguments))
        return found

    return kernel


def assembly(code: Code, cpu: str | None = None) -> str:
    """The instructions that the function is made of, to read.

    Args:
        cpu: LLVM's name of another CPU, such as "sapphirerapids", to see what it would run; the one at hand if None.
    """
    with _compiling:
        machine = _machine(cpu)
        return machine.emit_assembly(_optimised(code, machine))


def _compiled(code: Code) -> Callable[..., None]:
    machine = _machine(None)
    engine = llvm.create_mcjit_compiler(_optimised(code, machine), machine)
    engine.finalize_object()
    _engines.append(engine)
    kinds = [_CTYPES[kind] for kind in code.parameters.values()]
    return ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address(code.function.name))


def _optimised(code: Code, machine: Any) -> Any:
    module = llvm.parse_assembly(code.finished())
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    # What is to be unrolled or made vectors is written that way.
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return module


@functools.cache
def _machine(cpu: str | None) -> Any:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    if cpu is not None:
        target = llvm.Target.from_triple("x86_64-unknown-linux-gnu")
        return target.create_target_machine(cpu=cpu, features="", opt=3)
    target, features = llvm.Target.from_default_triple(), llvm.get_host_cpu_features().flatten()
    return target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=3, jit=True)
