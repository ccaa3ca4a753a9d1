"""The launchers as operators `padless::…`, so that torch.compile and torch.export see one node, not a Python function.

`@traceable("rope")` above a launcher is all it takes, and a line in `operators.py`. Run as usual the launcher is called
straight, at the price of one Python call; while something is traced its operator goes into the graph instead. The
operator calls the launcher itself, never the decorated name: a compiler may run operators (constants, tuning) while it
is still compiling.

Operators are defined with `torch.library.Library` rather than `custom_op`, which wraps every call in Python's autograd
and in a search for mutated inputs: 31 us a call where a plain `Library` takes 9 us and the bare function 3 us (one CPU
core, torch 2.13, two tensors in and out). They have no gradient, as the launchers have none, and refuse inputs that
require one; a BoundOp takes the eager function there.

Token and text counts are dynamic. As with any tensor of torch, a count of 0 or 1 is a graph of its own, and a program
exported from more texts takes no fewer than two.

Operators take no tuples and return one kind of thing, and remember nothing. A window is two integers, a rotation three
tensors, a configuration the names of its blocks and its numbers, a `Memo` is not handed over: `KINDS` says so for each
annotation that a launcher may have. The number of results is fixed; those that were not asked for have no elements.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from ..engine.memo import Memo
from .launch import Config
from .limits import require_no_gradient
from .operators import OPERATORS, Operator

__all__ = ["OPERATORS", "Operator", "traceable"]

P = ParamSpec("P")
R = TypeVar("R")


def traceable(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let torch.compile and torch.export see the launcher below as the operator `padless::name`.

    The operator is registered once in a process, also where this package is imported under two names.

    Args:
        name: a key of `OPERATORS`.

    Raises:
        TypeError: an argument of the launcher has an annotation that is none of `KINDS`.
    """

    def decorated(launcher: Callable[P, R]) -> Callable[P, R]:
        operator, parameters = OPERATORS[name], _parameters(launcher)
        _register(name, operator, parameters, launcher)
        overload = getattr(torch.ops.padless, name).default

        @functools.wraps(launcher)
        def either(*args: P.args, **options: P.kwargs) -> R:
            if torch.compiler.is_compiling():
                values = _bound(name, parameters, args, options)
                operands = _operands(parameters, values)
                # Here, not in the graph: what autograd makes of an operator without a gradient runs without a word.
                require_no_gradient(name, *(x for x in operands if isinstance(x, Tensor)))
                return _asked_for(operator, values, overload(*operands))
            return launcher(*args, **options)

        return either

    return decorated


@dataclass(frozen=True)
class Kind:
    """How an argument of one annotation is handed to an operator.

    Attributes:
        parts: type in torch's notation and name, in which `{}` is the argument's, for each of the operator's arguments
            that stand for it.
        write: the argument as those.
        read: the argument from those.
    """

    parts: tuple[tuple[str, str], ...]
    write: Callable[[Any], Sequence[Any]]
    read: Callable[..., Any]

    @classmethod
    def plain(cls, schema: str) -> Kind:
        """One that operators take as it is."""
        return cls(((schema, "{}"),), lambda value: (value,), lambda value: value)


def _write_config(config: Config | None) -> tuple[str, list[int]]:
    """`config` as operators take it: `"BLOCK_M BLOCK_N", [num_warps, num_stages, 0, 128, 64]`; empty for None.

    The third number is `max_registers`, 0 for None. Numbers stay numbers, as a tracer may hold symbols in their place.
    """
    if config is None:
        return "", []
    names, values = [name for name, _ in config.blocks], [value for _, value in config.blocks]
    return " ".join(names), [config.num_warps, config.num_stages, config.max_registers or 0, *values]


def _read_config(blocks: str, config: Sequence[int]) -> Config | None:
    """The configuration that `_write_config` wrote."""
    if not config:
        return None
    num_warps, num_stages, max_registers, *values = config
    return Config(tuple(zip(blocks.split(), values, strict=True)), num_warps, num_stages, max_registers or None)


def _write_three(value: tuple[Tensor, Tensor, Tensor] | None) -> Sequence[Tensor | None]:
    return (None, None, None) if value is None else value


def _read_three(*value: Tensor | None) -> tuple[Tensor | None, ...] | None:
    return None if value[0] is None else value


_THREE = Kind((("Tensor?", "{}_0"), ("Tensor?", "{}_1"), ("Tensor?", "{}_2")), _write_three, _read_three)

KINDS: tuple[tuple[Any, Kind], ...] = (
    (Tensor, Kind.plain("Tensor")),
    (Tensor | None, Kind.plain("Tensor?")),
    (int, Kind.plain("SymInt")),
    (int | None, Kind.plain("SymInt?")),
    (float, Kind.plain("float")),
    (float | None, Kind.plain("float?")),
    (bool, Kind.plain("bool")),
    (str, Kind.plain("str")),
    (tuple[int, int], Kind((("SymInt", "{}_left"), ("SymInt", "{}_right")), lambda value: value, lambda *value: value)),
    (tuple[Tensor, Tensor, Tensor] | None, _THREE),
    (Memo | None, Kind((), lambda value: (), lambda: None)),
    (Config | None, Kind((("str", "blocks"), ("SymInt[]", "{}")), _write_config, _read_config)),
)
"""Annotations, and how arguments that have them are handed over."""


@dataclass(frozen=True)
class Parameter:
    """One argument of a launcher."""

    name: str
    default: Any
    positional: bool
    kind: Kind


def _parameters(launcher: Callable[..., Any]) -> tuple[Parameter, ...]:
    hints = typing.get_type_hints(launcher)
    return tuple(
        Parameter(p.name, p.default, p.kind is p.POSITIONAL_OR_KEYWORD, _kind(launcher, p.name, hints[p.name]))
        for p in inspect.signature(launcher).parameters.values()
    )


def _kind(launcher: Callable[..., Any], name: str, annotation: Any) -> Kind:
    for known, kind in KINDS:
        if annotation == known:
            return kind
    expected = ", ".join(getattr(known, "__name__", str(known)) for known, _ in KINDS)
    raise TypeError(f"{launcher.__name__}: {name}: expected an annotation of {expected}, got {annotation}")


def _schema(operator: Operator, parameters: Sequence[Parameter]) -> str:
    """Arguments and results in torch's notation, without the name."""
    arguments = ", ".join(f"{schema} {part.format(p.name)}" for p in parameters for schema, part in p.kind.parts)
    results = ", ".join(["Tensor"] * operator.results)
    return f"({arguments}) -> {results if operator.results == 1 else f'({results})'}"


def _bound(
    name: str, parameters: Sequence[Parameter], args: Sequence[Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """The launcher's arguments by name. Not by `inspect`: a tracer reads these lines."""
    positional = [p.name for p in parameters if p.positional]
    names = [p.name for p in parameters]
    if len(args) > len(positional):
        raise TypeError(f"{name}: expected at most {len(positional)} arguments by position, got {len(args)}")
    values = dict(zip(positional, args, strict=False))
    for option in options:
        if option not in names or option in values:
            raise TypeError(f"{name}: argument {option!r} is unknown, or given twice")
        values[option] = options[option]
    for parameter in parameters:
        if parameter.name not in values:
            if parameter.default is inspect.Parameter.empty:
                raise TypeError(f"{name}: argument {parameter.name!r} is missing")
            values[parameter.name] = parameter.default
    return values


def _operands(parameters: Sequence[Parameter], values: Mapping[str, Any]) -> list[Any]:
    """What the operator takes, of the launcher's arguments."""
    return [part for p in parameters for part in p.kind.write(values[p.name])]


def _arguments(parameters: Sequence[Parameter], operands: Sequence[Any]) -> dict[str, Any]:
    """The launcher's arguments by name, of what the operator was given."""
    values, first = {}, 0
    for parameter in parameters:
        last = first + len(parameter.kind.parts)
        values[parameter.name] = parameter.kind.read(*operands[first:last])
        first = last
    return values


def _asked_for(operator: Operator, values: Mapping[str, Any], results: Any) -> Any:
    """What the launcher returns, of what the operator does."""
    if operator.asked_by is None:
        return results
    asked = values[operator.asked_by]
    return results[0] if asked is None or asked is False else results


def _all(operator: Operator, results: Any) -> Any:
    """What the operator returns, of what the launcher does."""
    if operator.results == 1 or isinstance(results, tuple):
        return results
    missing = (results.new_empty(0, dtype=torch.float32) for _ in range(operator.results - 1))
    return (results, *missing)


LIBRARY = torch.library.Library("padless", "FRAGMENT")


def _register(name: str, operator: Operator, parameters: Sequence[Parameter], launcher: Callable[..., Any]) -> None:
    if hasattr(torch.ops.padless, name):
        return

    def run(*operands: Any) -> Any:
        return _all(operator, launcher(**_arguments(parameters, operands)))

    def fake(*operands: Any) -> Any:
        return _all(operator, operator.fake(**_arguments(parameters, operands)))

    LIBRARY.define(name + _schema(operator, parameters), tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, run, "CUDA")
    LIBRARY.impl(name, run, "CPU")  # Triton's interpreter
    torch.library.register_fake(f"padless::{name}", fake, lib=LIBRARY)
