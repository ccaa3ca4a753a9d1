"""`encode` never times a kernel: whoever runs a model does not wait for a search that nobody asked for."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertModel

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("watched_encode.py")
MEASURING = ("autotune.search", "bench")
"""What measures, of padless' own modules."""

IN_A_CALL = (
    "kernels/",
    "autotune/",
    "engine/ops/",
    "engine/models/",
    "engine/dispatch.py",
    "engine/embedding/pooling.py",
)
"""Files between a text's tokens and its vector; the encoder around them counts seconds for its own report."""

SEARCHES = ("autotune", "do_bench", "do_bench_cudagraph", "Autotuner", "elapsed_time")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "words", "a", "few", "more", "than", "before"]
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=1, intermediate_size=16
    )
    BertModel(config).save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(words) + "\n")
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "model_max_length": 64}')
    return path


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where each backend's process would keep what it found."""
    return {backend: tmp_path_factory.mktemp(backend) for backend in ("auto", "triton")}


@pytest.fixture(scope="module")
def watched(folder: Path, caches: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """What a process of each backend tells, both at the same time; that of triton goes on with a planted search."""
    running = {}
    for backend, cache in caches.items():
        more, interpreted = (["plant"], {"TRITON_INTERPRET": "1"}) if backend == "triton" else ([], {})
        environment = {**os.environ, **interpreted, "PADLESS_CACHE": str(cache / "cache")}
        command = [sys.executable, str(SCRIPT), str(folder), backend, *more]
        running[backend] = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
    found = {}
    try:
        for backend, process in running.items():
            shown, complaint = process.communicate(timeout=300)
            assert process.returncode == 0, complaint
            found[backend] = json.loads(shown.splitlines()[-1])
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return found


def in_a_call(files: list[str]) -> list[str]:
    return [file for file in files if file.startswith(IN_A_CALL) or ":" in file]


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_encode_measures_nothing(watched: dict[str, dict[str, Any]], caches: dict[str, Path], backend: str) -> None:
    found = watched[backend]
    assert in_a_call(found["clocks"]) == []
    imported = [name.removeprefix("padless.") for name in found["modules"]]
    assert [name for name in imported if name.startswith(MEASURING)] == []
    # The first call launches what the second does: nothing was tried out.
    first, second = found["launches"]
    assert first == second
    assert (first > 10) == (backend == "triton")
    assert found["same"]
    # What is searched for would be kept.
    assert list(caches[backend].rglob("*.json")) == []


def test_a_planted_search_is_seen(watched: dict[str, dict[str, Any]]) -> None:
    found = watched["triton"]["planted"]
    assert in_a_call(found["clocks"]) == ["kernels/tuned.py"]
    first, second = found["launches"]
    assert first > second


def test_no_file_that_serves_a_call_names_a_search() -> None:
    named = []
    for folder in ("kernels", "engine"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if "cli" in file.parts:
                continue
            text = file.read_text(encoding="utf-8")
            if not any(word in text for word in SEARCHES):
                continue
            for node in ast.walk(ast.parse(text)):
                word = getattr(node, "attr", getattr(node, "id", None))
                if word in SEARCHES:
                    named.append(f"{file.relative_to(ROOT)}: {word}")
    assert named == []
