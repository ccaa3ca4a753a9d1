"""LLVM's compiler for the CPU at hand: text in LLVM's language to a function that ctypes can call.

What was compiled is kept for other processes (`machine_code.py`), and those that find it write no text at all.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from .code import Code
from .machine_code import MachineCode, keep, kept

__all__ = ["assembly", "compiled_once"]

_CTYPES = {"pointer": ctypes.c_void_p, "integer": ctypes.c_int64, "number": ctypes.c_float}

_compiling = threading.Lock()
_engines: list[Any] = []
"""What owns the machine code; as long as the process lives."""


def compiled_once(make: Callable[..., Code]) -> Callable[..., Callable[..., None]]:
    """Of a function that writes a kernel, one that gives it compiled, from memory where its arguments were the same.

    The arguments are numbers, booleans, strings or None. What comes out is called with integers, floats and addresses;
    while it runs other Python threads do too.

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
                    found = made[arguments] = _compiled(make, arguments)
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


def _compiled(make: Callable[..., Code], arguments: tuple[Any, ...]) -> Callable[..., None]:
    name = f"{make.__module__}.{make.__qualname__}{arguments!r}"
    can_be_kept = _depends_on_sources_alone(make)
    code = kept(name, _compiler()) if can_be_kept else None
    if code is None:
        written = make(*arguments)
        machine = _machine(None)
        content = machine.emit_object(_optimised(written, machine))
        code = MachineCode(written.function.name, tuple(written.parameters.values()), content)
        if can_be_kept:
            keep(name, _compiler(), code)
    return _loaded(code)


def _depends_on_sources_alone(make: Callable[..., Code]) -> bool:
    """Whether it is a function of a module here, whose text is part of a file's name; a closure knows more."""
    return make.__module__.startswith(f"{__package__}.") and "<" not in make.__qualname__


def _loaded(code: MachineCode) -> Callable[..., None]:
    """The function, in memory that code may run in."""
    machine, nothing = _machine(None), llvm.parse_assembly("")
    engine = llvm.create_mcjit_compiler(nothing, machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code.content))
    engine.finalize_object()
    address = engine.get_function_address(code.function)
    _engines.append(engine)
    return ctypes.CFUNCTYPE(None, *(_CTYPES[kind] for kind in code.parameters))(address)


@functools.cache
def _compiler() -> str:
    """What an object depends on beside the text: LLVM, and the CPU it was made for."""
    versions = llvmlite.__version__, llvm.llvm_version_info
    return f"{versions} {_machine(None).triple} {llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"


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
