"""The kernels as a public API: the signatures that docs/kernels_api.md promises, and the examples that use them."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "kernels_api.md").read_text(encoding="utf-8")
WRITTEN = {
    found["path"]: re.sub(r"\s+", " ", found["arguments"])
    for found in re.finditer(
        r"^    padless\.kernels\.(?P<path>\w+\.\w+)\((?P<arguments>.*?)\)\n(?=\n|\Z)", PAGE, re.M | re.S
    )
}
"""By module and name: the arguments as the page has them, on one line."""
ELSEWHERE = ("norm_linear.norm_linear",)
"""What takes prepared weights as arguments of their own."""


def function(package: str, path: str) -> Callable[..., Any]:
    module, name = path.split(".")
    return getattr(importlib.import_module(f"padless.{package}.{module}"), name)


def arguments(of: Callable[..., Any], without: str = "") -> str:
    signature = inspect.signature(of)
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values() if p.name != without]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))[1:-1]


def test_every_kernel_of_the_dispatch_table_is_on_the_page() -> None:
    from padless.engine.dispatch import TABLE

    targets = {row.target for rows in TABLE.values() for row in rows if row.name == "triton"}
    assert {f"padless.kernels.{path.replace('.', ':')}" for path in WRITTEN} == targets


@pytest.mark.parametrize("path", sorted(WRITTEN))
def test_signatures_are_those_of_the_page(path: str) -> None:
    assert arguments(function("kernels", path)) == WRITTEN[path]


@pytest.mark.parametrize("path", sorted({*WRITTEN} - {*ELSEWHERE}))
def test_eager_functions_take_the_same(path: str) -> None:
    assert arguments(function("engine.ops", path)) == arguments(function("kernels", path), without="config")


def run(example: str, *options: str) -> list[str]:
    """The lines that an example prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "examples" / example), *options],
        capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_attention_in_plain_pytorch() -> None:
    last = run("plain_pytorch.py")[-1]
    assert last.startswith("4 texts, 151 tokens, 0 of them padding")
    assert float(last.rpartition(" ")[2]) < 1e-5


def test_a_kernel_is_timed_beside_torch() -> None:
    lines = run("benchmark_kernels.py", "--texts", "3", "--longest", "20", "--rounds", "2")
    names = [line.rpartition(" ms ")[0].rsplit(None, 1)[0].strip() for line in lines if " ms " in line]
    assert names[-1] == "torch, padded"
    assert len(names) >= 2
