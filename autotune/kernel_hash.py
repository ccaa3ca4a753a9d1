"""A hash of what the kernels compute: it changes with their code, not with its comments, docstrings or line breaks.

A committed measurement carries the hash of the kernels it was made with, so that a test can tell when it has gone
stale. Hashed are the functions under a `jit` decorator and the launchers of ops, for what they hand a kernel is half of
what it computes; with every name of ours they use: module constants, functions, and helpers from other files. Tilings
are left out, as they stand beside each figure; so are the checks, which compute nothing.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["kernel_hashes", "source_hash"]

KERNELS = Path(__file__).resolve().parent.parent / "kernels"
_JIT = ("jit", "constexpr_function")
_LAUNCHER = "traceable"
_TILINGS = ("default_config", "few_tokens_config", "_tiles", "CANDIDATES", "TUNED")
_CHECKS = ("check_inputs", "_check", "_checked", "_checked_rows", "_checked_count", "_check_lengths")
_NOT_FOLLOWED = ("limits", "registration", "interpreter", "tuned")
"""Modules of checks, of what a compiler is told, of what stands in for a GPU, and of tilings."""


def kernel_hashes(folder: Path = KERNELS) -> dict[str, str]:
    """Module name ("attention_forward") to hash, for every file of `folder` that holds a kernel or launches one."""
    found = {file.stem: source_hash(file.stem, folder) for file in sorted(folder.glob("*.py"))}
    return {name: value for name, value in found.items() if value is not None}


def source_hash(module: str, folder: Path = KERNELS) -> str | None:
    """16 hexadecimal digits for the kernels and launchers of `folder`/`module`.py; None where it holds none."""
    sources = _Sources(folder)
    kernels = [
        node.name
        for node in sources[module].body
        if isinstance(node, ast.FunctionDef) and (_is_jit(node) or _LAUNCHER in _decorators(node))
    ]
    if not kernels:
        return None
    parts: dict[str, str] = {}
    for name in kernels:
        _collect(sources, module, name, parts)
    text = "\n".join(f"{key} {parts[key]}" for key in sorted(parts))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Sources(dict[str, ast.Module]):
    """The parsed files of a folder by module name, each read once; a module that is not there is empty.

    Beside the folder's own ("schedule") those of its parent are known by a dot before them (".engine.errors").
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, module: str) -> ast.Module:
        inside = self._folder.parent if module.startswith(".") else self._folder
        file = inside.joinpath(*module.strip(".").split(".")).with_suffix(".py")
        self[module] = ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else ast.Module([], [])
        return self[module]


def _collect(sources: _Sources, module: str, name: str, parts: dict[str, str]) -> None:
    """Add the definition of `name` in `module` to `parts`, and of every name of ours that it uses."""
    key = f"{module}.{name}"
    if key in parts:
        return
    if name in (*_TILINGS, *_CHECKS):
        return
    for node in sources[module].body:
        if isinstance(node, ast.ImportFrom) and node.level and node.module and node.module not in _NOT_FOLLOWED:
            for alias in node.names:
                if (alias.asname or alias.name) == name and not (module.startswith(".") and node.level > 1):
                    _collect(sources, _absolute(module, node), alias.name, parts)
        elif (isinstance(node, ast.FunctionDef) and node.name == name) or name in _assigned(node):
            parts[key] = "".join(_spelled(node))
            for used in sorted({part.id for part in ast.walk(node) if isinstance(part, ast.Name)} - {name}):
                _collect(sources, module, used, parts)


def _absolute(module: str, node: ast.ImportFrom) -> str:
    """What `from .x import` or `from ..x.y import` in `module` means by x, as `_Sources` names it."""
    package = module.rpartition(".")[0]
    return f".{node.module}" if node.level == 2 else f"{package}.{node.module}" if package else str(node.module)


def _is_jit(node: ast.stmt) -> bool:
    return any(name in _JIT for name in _decorators(node))


def _decorators(node: ast.stmt) -> list[str]:
    """The last part of each decorator's name."""
    targets = (part.func if isinstance(part, ast.Call) else part for part in getattr(node, "decorator_list", ()))
    return [ast.unparse(target).split(".")[-1] for target in targets]


def _assigned(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    return set()


def _spelled(node: object) -> Iterator[str]:
    """The tree as text. Empty fields are left out: a newer Python has more of them, and the hash must be the same."""
    if isinstance(node, ast.AST):
        yield type(node).__name__
        for field, value in ast.iter_fields(node):
            if field == "body" and isinstance(value, list):
                value = [part for part in value if not _is_docstring(part)]
            if value is not None and value != []:
                yield f"({field}="
                yield from _spelled(value)
                yield ")"
    elif isinstance(node, list):
        for part in node:
            yield "["
            yield from _spelled(part)
            yield "]"
    else:
        yield repr(node)


def _is_docstring(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
