"""LLVM's compiler for the CPU at hand: text in LLVM's language to a function that ctypes can call."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding as llvm

from .code import Code

__all__ = ["assembly", "compiled"]

_CTYPES = {"pointer": ctypes.c_void_p, "integer": ctypes.c_int64, "number": ctypes.c_float}

_compiling = threading.Lock()
_engines: list[Any] = []
"""What owns the machine code; as long as the process lives."""


def compiled(code: Code) -> Callable[..., None]:
    """The function, callable with integers, floats and addresses; while it runs other Python threads do too.

    Raises:
        RuntimeError: LLVM refuses the code, or the system has no memory that code may run in.
    """
    with _compiling:
        module = _optimised(code)
        engine = llvm.create_mcjit_compiler(module, _machine())
        engine.finalize_object()
        _engines.append(engine)
        address = engine.get_function_address(code.function.name)
    kinds = [_CTYPES[kind] for kind in code.parameters.values()]
    return ctypes.CFUNCTYPE(None, *kinds)(address)


def assembly(code: Code) -> str:
    """The instructions that the function is made of, to read."""
    with _compiling:
        return _machine().emit_assembly(_optimised(code))


def _optimised(code: Code) -> Any:
    module = llvm.parse_assembly(code.finished())
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    # What is to be unrolled or made vectors is written that way.
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    builder = llvm.create_pass_builder(_machine(), options)
    builder.getModulePassManager().run(module, builder)
    return module


@cache
def _machine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    features = llvm.get_host_cpu_features().flatten()
    return target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=3, jit=True)
