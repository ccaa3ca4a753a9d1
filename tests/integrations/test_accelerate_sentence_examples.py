"""The library's own examples with the one line added, read from the installed package when the test runs; the example
of docs/examples; and every family behind a SentenceTransformer.

The models that the examples name are on the hub, which is not reached: embedding models are the MiniLM that installs
from a package index, CrossEncoders a small seeded folder.
"""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
from sentence_models import TEXTS, assert_packed, assert_same, cross_encoder, loop
from sentence_transformers import CrossEncoder, SentenceTransformer

import padless
from padless.bench.models.seeded import write_seeded
from padless.bench.workloads import default_model

DOCUMENTED: dict[str, Any] = {
    "SentenceTransformer": SentenceTransformer,
    "SentenceTransformer.truncate_embeddings": SentenceTransformer.truncate_embeddings,
    "SentenceTransformer.supports": SentenceTransformer.supports,
    "CrossEncoder": CrossEncoder,
    "CrossEncoder.predict": CrossEncoder.predict,
    "CrossEncoder.rank": CrossEncoder.rank,
}
NO_TEXTS = ("SentenceTransformer.supports",)
SEVERAL_PROCESSES = ("device=[", "pool")
"""Of an example whose rest needs CUDA devices or processes; the tests of pools start those."""


def example(documented: Any) -> str:
    """The code in a docstring that makes a model and uses it, up to where it starts processes."""
    text = inspect.cleandoc(documented.__doc__)
    parts = text.split("::\n")
    for part in parts[1:]:
        indented = [line for line in part.split("\n") if line.strip()]
        block = textwrap.dedent("\n".join(_block(indented)))
        if ">>>" in block:
            block = "\n".join(line[4:] for line in block.split("\n") if line.startswith((">>>", "...")))
        if "import" in block:
            lines = block.split("\n")
            stop = next((n for n, line in enumerate(lines) if any(word in line for word in SEVERAL_PROCESSES)), None)
            return "\n".join(lines[:stop])
    raise AssertionError("the docstring has no example any more")


def _block(lines: list[str]) -> list[str]:
    """The lines that are indented as the first one is, or more."""
    depth = len(lines[0]) - len(lines[0].lstrip())
    found = []
    for line in lines:
        if len(line) - len(line.lstrip()) < depth:
            break
        found.append(line)
    return found


class _Adds(ast.NodeTransformer):
    """Puts `padless.accelerate(model)` behind the line that makes the model, and keeps what calls of it return."""

    def __init__(self, accelerates: bool) -> None:
        self.accelerates = accelerates
        self.added = 0

    def visit_Assign(self, node: ast.Assign) -> Any:
        made = isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") in (
            "SentenceTransformer",
            "CrossEncoder",
        )
        if not made:
            return node
        self.added += 1
        target = ast.unparse(node.targets[0])
        line = ast.parse(f"padless.accelerate({target})" if self.accelerates else "pass").body
        return [node, *line]

    def visit_Expr(self, node: ast.Expr) -> Any:
        """A result that the example only shows."""
        return ast.parse(f"shown.append({ast.unparse(node.value)})").body


def run(code: str, accelerates: bool) -> dict[str, Any]:
    """The variables that an example leaves."""
    adds = _Adds(accelerates)
    tree = ast.fix_missing_locations(adds.visit(ast.parse(code)))
    assert adds.added == 1
    names: dict[str, Any] = {"padless": padless, "shown": []}
    exec(compile(tree, "<example>", "exec"), names)
    return names


@pytest.fixture
def local_models(embedding_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of the hub lead to models on this machine."""
    scorer = tmp_path / "scorer"
    cross_encoder(embedding_folder).save_pretrained(str(scorer), create_model_card=False)
    folders = {"SentenceTransformer": default_model(), "CrossEncoder": scorer}
    for name, folder in folders.items():
        library_class = getattr(sentence_transformers, name)
        monkeypatch.setattr(library_class, "__init__", _local(library_class.__init__, folder))


def _local(init: Callable[..., None], folder: Path) -> Callable[..., None]:
    def local(self: Any, path: str, *args: Any, **options: Any) -> None:
        assert not Path(path).exists()
        init(self, str(folder), *args, **{**options, "device": "cpu"})

    return local


@pytest.mark.usefixtures("local_models")
@pytest.mark.parametrize("name", DOCUMENTED)
def test_examples_of_the_library_give_the_same_with_one_line_more(name: str) -> None:
    code = example(DOCUMENTED[name])
    fast, plain = (run(code, accelerates) for accelerates in (True, False))
    model = fast["model"]
    kept = [
        key for key in plain if not key.startswith("__") and isinstance(plain[key], np.ndarray | list | tuple | float)
    ]
    assert kept
    for key in kept:
        assert_same(fast[key], plain[key])
    assert not loop(model).fallbacks
    assert (loop(model).stats.tokens > 0) == (name not in NO_TEXTS)


def test_example_of_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "docs" / "examples" / "accelerate_sentence_transformers.py"
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
    names["main"]([str(default_model())])
    assert "of 384 numbers" in capsys.readouterr().out


FAMILIES: dict[str, dict[str, Any]] = {
    "modernbert": {"num_hidden_layers": 4, "local_attention": 8, "intermediate_size": 36, "vocab_size": 50368},
    "megatron-bert": {"num_hidden_layers": 2, "intermediate_size": 36},
    "mobilebert": {"num_hidden_layers": 2, "embedding_size": 12, "intra_bottleneck_size": 20, "intermediate_size": 28},
    "mt5": {"d_model": 24, "d_kv": 5, "d_ff": 28, "num_layers": 3, "num_heads": 3, "vocab_size": 2000},
}
SIZES = {"hidden_size": 24, "num_attention_heads": 3, "vocab_size": 2000, "initializer_range": 0.2}
SMALL_MOBILEBERT = {"hidden_size": 32, "num_attention_heads": 4, "initializer_range": 0.02}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, tmp_path: Path) -> None:
    fields = FAMILIES[family]
    if family != "mt5":
        fields = {**SIZES, **fields, **(SMALL_MOBILEBERT if family == "mobilebert" else {})}
    write_seeded(family, tmp_path / family, fields)
    plain: Any = SentenceTransformer(str(tmp_path / family), device="cpu")
    fast = padless.accelerate(copy.deepcopy(plain))
    # The trigrams of MobileBERT see the padding of their batch; a text by itself has none, and is what we compute.
    alone: dict[str, Any] = {"batch_size": 1} if family == "mobilebert" else {}
    assert_same(fast.encode(TEXTS), plain.encode(TEXTS, **alone))
    assert_packed(fast, TEXTS)
    assert_same(
        fast.encode(TEXTS, output_value="token_embeddings"),
        plain.encode(TEXTS, output_value="token_embeddings", **alone),
    )
    assert not loop(fast).fallbacks
    # The library encodes in inference mode; what that leaves behind must not be in a gradient's way.
    gradients = []
    for model in (fast, plain):
        model(model.preprocess(TEXTS[:1]))["sentence_embedding"].sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    scale = max(float(gradient.abs().max()) for gradient in gradients[1])
    for found, expected in zip(*gradients, strict=True):
        assert (found - expected).abs().max() <= 1e-4 * scale
