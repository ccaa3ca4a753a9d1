"""Running an example of the seed pages, under padless or under transformers, and comparing what it left behind."""

from __future__ import annotations

import ast
import contextlib
import io
import math
import os
import tempfile
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from seed_folders import HUB_MODELS, SEED
from seed_pages import Block

# `round(loss.item(), 2)` of two losses that agree to seven digits may differ by one in the last digit that is left.
ROUNDED = 0.01 + 1e-9


@dataclass(frozen=True)
class Run:
    """What an example left behind: its variables, the values of its expressions in order, and what it printed."""

    variables: dict[str, Any]
    values: list[Any]
    printed: str


class _Port(ast.NodeTransformer):
    """Import from another package, and keep the values of expressions, which a prompt would show."""

    def __init__(self, package: str) -> None:
        self.package = package

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        if node.module == "transformers":
            node.module = self.package
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        self.generic_visit(node)
        kept = ast.Name("__values__", ast.Load())
        return ast.Expr(ast.Call(ast.Attribute(kept, "append", ast.Load()), [node.value], []))


class _Localise(ast.NodeTransformer):
    """Write folders in place of hub names, and leave out `device_map`, for which transformers wants accelerate."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant(str(self.root / node.value)) if node.value in HUB_MODELS else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        node.keywords = [keyword for keyword in node.keywords if keyword.arg != "device_map"]
        return node


def run_with_padless(block: Block, root: Path) -> Run:
    """Execute the example with its imports from padless, which finds hub names under $PADLESS_MODELS = `root`."""
    return _run(block, _Port("padless").visit(ast.parse(block.source)), root)


def run_with_transformers(block: Block, root: Path) -> Run:
    """Execute the example as it is, but with the folders under `root` in place of hub names."""
    return _run(block, _Localise(root).visit(_Port("transformers").visit(ast.parse(block.source))), root)


def _run(block: Block, tree: ast.AST, root: Path) -> Run:
    variables: dict[str, Any] = {"__name__": "__main__", "__values__": []}
    printed = io.StringIO()
    before = os.environ.get("PADLESS_MODELS")
    assert isinstance(tree, ast.Module)
    code = compile(ast.fix_missing_locations(tree), f"<seed {block}>", "exec")
    with (
        tempfile.TemporaryDirectory() as elsewhere,  # a hub name is no path from here
        torch.random.fork_rng(),
        contextlib.chdir(elsewhere),
        contextlib.redirect_stdout(printed),
    ):
        torch.manual_seed(SEED)
        os.environ["PADLESS_MODELS"] = str(root)
        try:
            exec(code, variables)
        finally:
            if before is None:
                del os.environ["PADLESS_MODELS"]
            else:
                os.environ["PADLESS_MODELS"] = before
    values = variables.pop("__values__")
    return Run({k: v for k, v in variables.items() if not k.startswith("__")}, values, printed.getvalue())


def differences(ours: Any, theirs: Any, where: str, *, tolerance: float, numbers: bool = True) -> list[str]:
    """What differs, one line each. Tensors agree to `tolerance` times the largest magnitude, at least `tolerance`.

    `numbers=False` compares only what does not follow from weights: kinds, dtypes, names, shapes of what is computed,
    and of integers the number of axes: the answers and labels that an example picks may be any number.
    Tokenizers and classes are not compared; of a model its parameters' names, shapes and dtypes are.
    """

    def again(one: Any, other: Any, inside: str) -> list[str]:
        return differences(one, other, inside, tolerance=tolerance, numbers=numbers)

    if isinstance(theirs, torch.nn.Module):
        shapes = [{n: (list(p.shape), p.dtype) for n, p in m.named_parameters()} for m in (ours, theirs)]
        wrong = [n for n in sorted(shapes[0].keys() | shapes[1].keys()) if shapes[0].get(n) != shapes[1].get(n)]
        return [f"{where}: parameter {n}: {shapes[0].get(n)}, expected {shapes[1].get(n)}" for n in wrong]
    if isinstance(theirs, torch.Tensor):
        return _tensor_differences(ours, theirs, where, tolerance, numbers)
    if hasattr(theirs, "keys") and hasattr(theirs, "__getitem__"):
        if list(ours.keys()) != list(theirs.keys()):
            return [f"{where}: keys {list(ours.keys())}, expected {list(theirs.keys())}"]
        return [line for key in theirs.keys() for line in again(ours[key], theirs[key], f"{where}[{key!r}]")]  # noqa: SIM118
    if isinstance(theirs, (list, tuple)):
        if not isinstance(ours, (list, tuple)) or len(ours) != len(theirs):
            return [f"{where}: {ours!r}, expected {theirs!r}"]
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [line for i, (one, other) in pairs for line in again(one, other, f"{where}[{i}]")]
    if isinstance(theirs, (str, int, float, type(None))):
        same_kind = isinstance(ours, type(theirs))
        if isinstance(theirs, float) and isinstance(ours, float):
            same = not numbers or math.isclose(ours, theirs, rel_tol=1e-6, abs_tol=ROUNDED)
        else:
            same = not numbers or ours == theirs
        return [] if same_kind and same else [f"{where}: {ours!r}, expected {theirs!r}"]
    return []


def _tensor_differences(ours: Any, theirs: torch.Tensor, where: str, tolerance: float, numbers: bool) -> list[str]:
    if not numbers and isinstance(ours, torch.Tensor) and not theirs.is_floating_point():
        return [] if (ours.ndim, ours.dtype) == (theirs.ndim, theirs.dtype) else [f"{where}: {ours.ndim}, {ours.dtype}"]
    if not isinstance(ours, torch.Tensor) or (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
        found = (list(ours.shape), ours.dtype) if isinstance(ours, torch.Tensor) else repr(ours)
        return [f"{where}: {found}, expected {(list(theirs.shape), theirs.dtype)}"]
    if not torch.isfinite(theirs).all() or not torch.isfinite(ours).all():
        return [f"{where}: values that are not finite"]
    if not numbers or not theirs.numel():
        return []
    if not theirs.is_floating_point():
        return [] if torch.equal(ours, theirs) else [f"{where}: {ours.tolist()}, expected {theirs.tolist()}"]
    difference = (ours.double() - theirs.double()).abs().max().item()
    allowed = tolerance * max(1.0, theirs.double().abs().max().item())
    return [] if difference <= allowed else [f"{where}: differs by {difference:.3g}, at most {allowed:.3g} expected"]


def run_differences(ours: Run, theirs: Run, *, tolerance: float, numbers: bool = True) -> list[str]:
    """What differs between two runs of one example, one line each."""
    found = differences(ours.values, theirs.values, "expression", tolerance=tolerance, numbers=numbers)
    if numbers and ours.printed != theirs.printed:
        found.append(f"printed {ours.printed!r}, expected {theirs.printed!r}")
    names = [name for name, value in theirs.variables.items() if not _is_import(value)]
    for name in names:
        if name not in ours.variables:
            found.append(f"{name}: missing")
        else:
            one, other = ours.variables[name], theirs.variables[name]
            found += differences(one, other, name, tolerance=tolerance, numbers=numbers)
    return found


def tensors(run: Run) -> int:
    """How many tensors an example left behind in its variables, those inside outputs and encodings included."""
    return sum(_count(value) for value in run.variables.values())


def _count(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return 1
    if isinstance(value, Mapping) or (hasattr(value, "keys") and hasattr(value, "__getitem__")):
        return sum(_count(value[key]) for key in value.keys())  # noqa: SIM118
    if isinstance(value, Sequence) and not isinstance(value, str):
        return sum(map(_count, value))
    return 0


def _is_import(value: Any) -> bool:
    return isinstance(value, (type, types.ModuleType, types.FunctionType))
