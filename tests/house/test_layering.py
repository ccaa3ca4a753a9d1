"""Who may import whom: docs/architecture.md, checked by walking the syntax tree of every source file."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("engine", "kernels", "autotune", "bench")

ANYTHING = ("padless", "padless.**")
ERRORS = "padless.engine.errors"
CONTRACT = "padless.engine.contract"
DEVICE = "padless.autotune.device"

# `*` stands for one name, `**` for any number of them. A module may import the errors, what its row lists and, where
# the row is a pattern, its own neighbours; of two rows the first counts. A new module that no row matches fails the
# test: decide where it belongs, then say so here and in docs/architecture.md.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "padless": ("padless.engine.encoder", "padless.engine.loading"),
    "padless.__main__": ("padless.engine.cli", "padless.engine.cli.*"),
    "padless.engine": (),
    # Leaves: the standard library, torch and numpy.
    "padless.engine.errors": (),
    "padless.engine.contract": (),
    "padless.engine.batch": (),
    "padless.engine.config": (),
    "padless.engine.outputs": (),
    "padless.autotune.device": (),
    "padless.autotune.record": (),
    "padless.autotune.store": ("padless.autotune.record",),
    "padless.autotune.lookup": (CONTRACT, DEVICE, "padless.autotune.record", "padless.autotune.store"),
    # The implementations, and the table that knows them only as dotted strings.
    "padless.kernels.*": (CONTRACT, "padless.autotune.lookup"),
    "padless.engine.dispatch": (CONTRACT,),
    "padless.engine.ops.bind": (CONTRACT, "padless.engine.dispatch", DEVICE),
    "padless.engine.ops.cpu": (),
    "padless.engine.ops.cpu.*": (CONTRACT, "padless.engine.ops.*"),
    "padless.engine.ops": (),
    "padless.engine.ops.*": (CONTRACT,),
    # What reads a model folder.
    "padless.engine.weights": ("padless.engine.config",),
    "padless.engine.tokenizer": ("padless.engine.config", "padless.engine.batch"),
    "padless.engine.sentence_folder": ("padless.engine.config",),
    "padless.engine.hub": (),
    # Models stand on the ops; the encoder, the tasks and the jobs stand on the models.
    "padless.engine.models": (),
    "padless.engine.models.*": (
        "padless.engine.batch",
        "padless.engine.config",
        "padless.engine.ops",
        "padless.engine.ops.*",
        "padless.engine.outputs",
        "padless.engine.weights",
    ),
    "padless.engine.pooling": (
        "padless.engine.batch",
        "padless.engine.ops.bind",
        "padless.engine.sentence_folder",
    ),
    "padless.engine.encoder": (
        "padless.engine.batch",
        "padless.engine.models.*",
        "padless.engine.ops.bind",
        "padless.engine.pooling",
        "padless.engine.tokenizer",
    ),
    "padless.engine.loading": (
        DEVICE,
        "padless.engine.config",
        "padless.engine.encoder",
        "padless.engine.hub",
        "padless.engine.models",
        "padless.engine.models.*",
        "padless.engine.ops.bind",
        "padless.engine.pooling",
        "padless.engine.sentence_folder",
        "padless.engine.tokenizer",
        "padless.engine.weights",
    ),
    "padless.engine.jobs": (),
    "padless.engine.jobs.*": ("padless.engine.batch", "padless.engine.encoder", "padless.engine.loading"),
    "padless.engine.cli": ANYTHING,
    "padless.engine.cli.*": ANYTHING,
    "padless.bench.*": ANYTHING,
}

# Packages of others that only some of our modules may touch.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "triton": ("padless.kernels.*", "padless.autotune.search", "padless.bench.*"),
    "transformers": ("padless.engine.integrations.*", "padless.bench.*"),
    "sentence_transformers": ("padless.engine.integrations.*", "padless.bench.*"),
    "openvino": ("padless.bench.*",),
}

LEAVES = (
    "padless.engine.errors",
    "padless.engine.contract",
    "padless.engine.batch",
    "padless.engine.config",
    "padless.engine.outputs",
    "padless.autotune.device",
    "padless.autotune.record",
    "padless.autotune.store",
    "padless.autotune.lookup",
)


def module_name(path: Path) -> str:
    parts = ("padless", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): path
    for path in (*ROOT.glob("*.py"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")))
}


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    regexes = (re.escape(pattern).replace(r"\*\*", ".+").replace(r"\*", "[^.]+") for pattern in patterns)
    return any(re.fullmatch(regex, name) for regex in regexes)


def imports(name: str, tree: ast.AST, is_package: bool) -> Iterator[tuple[str, bool]]:
    """Yield (module, relative) for every import anywhere in `tree`, those inside functions included."""
    package = name.split(".") if is_package else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            target = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                submodule = f"{target}.{alias.name}"
                yield (submodule if submodule in SOURCES else target), node.level > 0


def violations(name: str, source: str, *, is_package: bool = False) -> list[str]:
    """Each import of the module `name` that the tables above do not allow."""
    row = next((pattern for pattern in MAY_IMPORT if matches(name, (pattern,))), None)
    if row is None:
        return [f"{name} has no row in MAY_IMPORT"]
    neighbours = (row,) if row.endswith(".*") else ()
    found = []
    for target, relative in imports(name, ast.parse(source), is_package):
        top = target.split(".")[0]
        if top == "padless":
            if not relative and not name.startswith("padless.bench.test_"):
                found.append(f"{name} imports {target} absolutely; imports between our own modules are relative")
            if not matches(target, (ERRORS, *MAY_IMPORT[row], *neighbours)):
                found.append(f"{name} imports {target}, allowed are {', '.join(MAY_IMPORT[row]) or 'the errors'}")
        elif top in ONLY_IN and not matches(name, ONLY_IN[top]):
            found.append(f"{name} imports {target}, which is for {', '.join(ONLY_IN[top])}")
        elif name in LEAVES and top not in {*sys.stdlib_module_names, "torch", "numpy"}:
            found.append(f"{name} imports {target}; a leaf takes the standard library, torch and numpy")
    return found


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_imports_follow_the_arrows(name: str) -> None:
    path = SOURCES[name]
    assert violations(name, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize("name", sorted(name for name in SOURCES if name.startswith("padless.engine.cli")))
def test_commands_import_inside_their_functions(name: str) -> None:
    """`padless --help` must not wait for torch: at the top of a command's file stand only light imports."""
    path = SOURCES[name]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top_level = ast.Module(
        body=[node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], type_ignores=[]
    )
    light = {*sys.stdlib_module_names, "typer", "click"}
    for target, _ in imports(name, top_level, path.name == "__init__.py"):
        ours = target == ERRORS or target == "padless" or target.startswith("padless.engine.cli")
        assert ours or target.split(".")[0] in light, f"{name} imports {target} at its top"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("padless.engine.models.bert", "from ...kernels import attention"),
        ("padless.engine.models.bert", "from ..dispatch import resolve"),
        ("padless.engine.models.bert", "def f():\n    import triton.language as tl"),
        ("padless.engine.models.bert", "from ..ops.cpu.attention import varlen_attention"),
        ("padless.engine.dispatch", "from ..kernels.attention import varlen_attention"),
        ("padless.kernels.attention", "from ..engine.ops.attention import varlen_attention"),
        ("padless.engine.jobs.embed", "from ...bench.timing import interleaved"),
        ("padless.engine.encoder", "from padless.engine.batch import pack"),
        ("padless.engine.batch", "import pyarrow"),
        ("padless.engine.tokenizer", "from transformers import AutoTokenizer"),
        ("padless.engine.newcomer", ""),
    ],
)
def test_a_wrong_import_is_found(name: str, source: str) -> None:
    assert len(violations(name, source)) == 1


def test_allowed_imports_pass() -> None:
    assert violations("padless.engine.models.bert", "from ..ops.bind import bind\nfrom .blocks import Layer") == []
    assert violations("padless.kernels.attention", "import triton\nfrom ..engine.contract import Call") == []
    assert violations("padless.bench.test_speed", "import padless.engine.batch") == []
