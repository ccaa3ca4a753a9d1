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

# The layers, and the arrows between them: the same two tables stand in docs/architecture.md, which a test compares.
# `*` stands for one name, `**` for any number; of two patterns that match, the first counts. A new module that no layer
# holds fails the test: decide where it belongs, then say so here and there.
LAYERS: dict[str, tuple[str, ...]] = {
    "errors": ("engine.errors",),
    "contract": ("engine.contract", "engine.relative_position"),
    "failures": ("engine.failures",),
    "memo": ("engine.memo",),
    "hub": ("engine.hub",),
    "data": ("engine.batch", "engine.config", "engine.outputs"),
    "device": ("autotune.device",),
    "cache": ("autotune.user_cache",),
    "precision": ("engine.precision",),
    "configs": (
        "autotune.exchange",
        "autotune.inventory",
        "autotune.kernel_hash",
        "autotune.key",
        "autotune.lookup",
        "autotune.record",
        "autotune.store",
    ),
    "vectors": ("kernels.llvm", "kernels.llvm.*"),
    "kernels": ("kernels.*",),
    "dispatch": ("engine.dispatch",),
    "bind": ("engine.ops.bind",),
    "cpu": ("engine.ops.cpu", "engine.ops.cpu.*"),
    "rows": ("engine.ops.flash", "engine.ops.flash_limits", "engine.ops.torch_varlen"),
    "ops": ("engine.ops", "engine.ops.*"),
    "weights": ("engine.weights", "engine.weights.*"),
    "folder": (
        "engine.folders",
        "engine.folders.*",
        "engine.text_cut",
        "engine.tokenizer",
        "engine.tokenizer_files",
        "engine.tokenizer_template",
        "engine.tokenization",
        "engine.tokenization.*",
    ),
    "generate": ("engine.generate", "engine.generate.*"),
    "graphs": ("engine.cuda_graphs", "engine.cuda_graphs.*"),
    "models": ("engine.models", "engine.models.*", "engine.auto"),
    "encoder": ("engine.embedding", "engine.embedding.*", "engine.streaming", "engine.streaming.*"),
    "tasks": ("engine.tasks", "engine.tasks.*"),
    "loading": ("engine.loading", "engine.pipelines"),
    "warmup": ("engine.compilations", "engine.warmup"),
    "jobs": ("engine.jobs", "engine.jobs.**"),
    "integrations": ("engine.integrations", "engine.integrations.**"),
    "convert": ("engine.convert", "engine.convert.*"),
    "public": ("", "__main__", "engine"),
    "search": (
        "autotune.cost",
        "autotune.entries",
        "autotune.footprint",
        "autotune.machine",
        "autotune.search",
    ),
    "bench": ("bench.**",),
    "cli": ("engine.cli", "engine.cli.**"),
}

ARROWS: dict[str, tuple[str, ...]] = {
    "errors": (),
    "contract": (),
    "failures": (),
    "memo": (),
    "hub": (),
    "data": ("memo", "hub"),
    "device": (),
    "cache": (),
    "precision": ("device",),
    "configs": ("contract", "device", "cache"),
    "vectors": ("cache",),
    "kernels": ("contract", "memo", "device", "configs"),
    "dispatch": ("contract",),
    "bind": ("contract", "dispatch", "failures"),
    "cpu": ("contract", "memo", "ops", "vectors"),
    "rows": ("contract", "memo"),
    "ops": ("contract", "memo"),
    "weights": ("data",),
    "folder": ("data", "hub"),
    "generate": ("data",),
    "graphs": ("bind", "data"),
    "models": ("bind", "ops", "memo", "data", "weights", "hub", "precision", "generate", "graphs"),
    "encoder": (
        "models",
        "graphs",
        "bind",
        "ops",
        "dispatch",
        "failures",
        "data",
        "weights",
        "hub",
        "precision",
        "folder",
        "device",
    ),
    "tasks": ("encoder", "models", "generate", "bind", "data", "weights", "folder"),
    "loading": ("tasks", "encoder", "models", "graphs", "dispatch", "data", "weights", "hub", "precision", "folder"),
    "warmup": ("encoder", "graphs", "data"),
    "jobs": ("loading", "tasks", "encoder", "failures", "data", "public"),
    "integrations": (
        "jobs",
        "loading",
        "tasks",
        "encoder",
        "models",
        "graphs",
        "data",
        "bind",
        "memo",
        "precision",
        "folder",
    ),
    "convert": ("models", "weights", "folder", "data", "hub"),
    "public": ("models", "folder", "encoder", "loading", "integrations", "cli"),
    "search": ("kernels", "configs", "contract", "device", "bench"),
    "bench": tuple(LAYERS),
    "cli": tuple(LAYERS),
}

# Packages of others that only some layers may touch.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "triton": ("kernels", "warmup", "search", "bench"),
    "flash_attn": ("rows", "bench"),
    "flash_attn_interface": ("rows", "bench"),
    "transformers": ("integrations", "bench"),
    "sentence_transformers": ("integrations", "bench"),
    "openvino": ("bench",),
    "onnxruntime": ("bench",),
}

LEAVES = ("errors", "contract", "failures", "memo", "data", "device", "cache", "configs")


def module_name(path: Path) -> str:
    parts = ("padless", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): path
    for path in (*ROOT.glob("*.py"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")))
}


def layer_of(name: str) -> str | None:
    for layer, patterns in LAYERS.items():
        for pattern in patterns:
            regex = re.escape(f"padless.{pattern}".rstrip(".")).replace(r"\*\*", ".+").replace(r"\*", "[^.]+")
            if re.fullmatch(regex, name):
                return layer
    return None


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
    layer = layer_of(name)
    if layer is None:
        return [f"{name} is in no layer"]
    found = []
    for target, relative in imports(name, ast.parse(source), is_package):
        top = target.split(".")[0]
        if top == "padless":
            if not relative and not name.startswith("padless.bench.test_"):
                found.append(f"{name} imports {target} absolutely; imports between our own modules are relative")
            if layer_of(target) not in ("errors", layer, *ARROWS[layer]):
                found.append(f"{name} ({layer}) imports {target} ({layer_of(target)})")
        elif top in ONLY_IN and layer not in ONLY_IN[top]:
            found.append(f"{name} imports {target}, which is for {', '.join(ONLY_IN[top])}")
        elif layer in LEAVES and top not in {*sys.stdlib_module_names, "torch", "numpy"}:
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
        ours = layer_of(target) in ("errors", "cli")
        assert ours or target.split(".")[0] in light, f"{name} imports {target} at its top"


def test_only_bind_resolves() -> None:
    """`resolve` has one caller, so that nothing is looked up while tokens flow; others may explain what it chose."""
    callers = {
        name
        for name, path in SOURCES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("dispatch")
        if any(alias.name in ("resolve", "*") for alias in node.names)
    }
    assert callers == {"padless.engine.ops.bind"}


def test_the_document_shows_these_tables() -> None:
    written = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for layer, patterns in LAYERS.items():
        arrows = "anything" if ARROWS[layer] == tuple(LAYERS) else ", ".join(ARROWS[layer]) or "nothing"
        assert f"| {layer} | `{', '.join(pattern or 'padless' for pattern in patterns)}` | {arrows} |" in written


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("padless.engine.models.bert", "from ...kernels import attention"),
        ("padless.engine.models.bert", "from ..dispatch import resolve"),
        ("padless.engine.models.bert", "def f():\n    import triton.language as tl"),
        ("padless.engine.models.bert", "from ..ops.cpu.attention import varlen_attention"),
        ("padless.engine.dispatch", "from ..kernels.attention import varlen_attention"),
        ("padless.kernels.attention", "from ..engine.ops.attention import varlen_attention"),
        ("padless.engine.jobs.run", "from ...bench.timing import interleaved"),
        ("padless.engine.embedding.encoder", "from padless.engine.batch import pack"),
        ("padless.engine.batch", "import pyarrow"),
        ("padless.engine.tokenizer", "from transformers import AutoTokenizer"),
        ("padless.engine.ops.norm", "from .bind import BoundOp"),
        ("padless.engine.ops.linear", "import flash_attn"),
        ("padless.engine.tokenizer", "from .models.bert import BertModel"),
        ("padless.engine.newcomer", ""),
    ],
)
def test_a_wrong_import_is_found(name: str, source: str) -> None:
    assert len(violations(name, source)) == 1


def test_allowed_imports_pass() -> None:
    assert violations("padless.engine.models.bert", "from ..ops.bind import bind\nfrom .blocks import Layer") == []
    assert violations("padless.kernels.attention", "import triton\nfrom ..engine.contract import Call") == []
    assert violations("padless.bench.test_speed", "import padless.engine.batch") == []
