"""What every measured system has in common: the job it is prepared for, and the names it is called by."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ...engine.config import model_type
from ..machine import versions

__all__ = ["Job", "MeanPooled", "System", "first_line", "max_length", "quieten_transformers"]


@dataclass(frozen=True)
class Job:
    """What systems are prepared for: the same for all of them.

    Attributes:
        model: folder of the weights; not written to.
        scratch: folder for what systems convert the weights to.
        threads: of each system.
        batch_size: texts in a sorted batch of a system that leaves it to its caller.
        probe: texts like those that will be timed, to choose settings with.
        one_by_one: each call will be one text.
    """

    model: Path
    scratch: Path
    threads: int
    batch_size: int
    probe: tuple[str, ...]
    one_by_one: bool = False

    @functools.cached_property
    def mean_pooled(self) -> MeanPooled:
        """transformers' model in float32: run by some systems, converted by others."""
        return MeanPooled(self.model, torch.float32).eval()


class System:
    """One way to turn texts into vectors.

    Attributes:
        name: of the software and how it is used.
        dtypes: what it can compute in.
        distributions: what does the work, for the report.
        modules: what must be importable.
        dtype: what this one computes in.
        settings: what it chose for itself, for the report.
        computed_tokens: tokens of the last `encode`, padding included.
    """

    name: ClassVar[str]
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "bfloat16")
    distributions: ClassVar[tuple[str, ...]] = ()
    modules: ClassVar[tuple[str, ...]] = ()

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.settings: dict[str, Any] = {}
        self.computed_tokens = 0

    @property
    def label(self) -> str:
        """As in tables and keys: name and dtype."""
        return f"{self.name} {self.dtype}"

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def versions(self) -> dict[str, str]:
        """Distribution and version of what does the work."""
        return versions(*self.distributions)

    def missing(self) -> str | None:
        """Why this system cannot run here, or None."""
        absent = [module for module in self.modules if importlib.util.find_spec(module) is None]
        return f"{', '.join(absent)} not installed" if absent else None

    def prepare(self, job: Job) -> None:
        """Load the weights; not timed.

        Raises:
            InputError: this model cannot be run so; says why.
        """
        raise NotImplementedError

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 `[texts, dim]`, of unit length, in the order of `texts`."""
        raise NotImplementedError


class MeanPooled(torch.nn.Module):
    """transformers' encoder, then the mean over a text's own tokens, of unit length."""

    def __init__(self, model: Path, dtype: torch.dtype) -> None:
        from transformers import AutoModel, MT5EncoderModel

        super().__init__()
        quieten_transformers()
        make = MT5EncoderModel if model_type(model) == "mt5" else AutoModel
        self.encoder = make.from_pretrained(str(model), dtype=dtype, local_files_only=True)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`ids` and `mask` int64 `[texts, longest]` to `[texts, dim]`."""
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        kept = mask.unsqueeze(-1).to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * kept).sum(1) / kept.sum(1), dim=1)


def max_length(model: Path) -> int:
    """Tokens a text is cut to, as the folder's `sentence_bert_config.json` says; 512 where it says nothing."""
    file = model / "sentence_bert_config.json"
    found = json.loads(file.read_text(encoding="utf-8")).get("max_seq_length") if file.is_file() else None
    return int(found or 512)


def first_line(error: BaseException) -> str:
    """What went wrong inside of somebody else's converter, for a table."""
    return (f"{type(error).__name__}: {error}".splitlines() or [""])[0]


def quieten_transformers() -> None:
    """No progress bars and warnings between the lines of a table."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
