"""What is written about: models of published shapes with random weights, and real texts for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...engine.config import ModelConfig
from ...engine.errors import InputError, OptionError
from ...engine.models import family_class
from ...engine.tokenizer import Tokenizer
from ..workloads import Workload, default_model, load_workload

__all__ = ["SUBJECTS", "Subject", "make_subject"]

_SEED = 20261121
_MAX_LENGTH = 256

SUBJECTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mt5-small": ("mt5", "ForConditionalGeneration", {"decoder_start_token_id": 0, "tie_word_embeddings": False}),
    "megatron-bert-345m": (
        "megatron-bert",
        "ForCausalLM",
        {"is_decoder": True, "bos_token_id": 101, "eos_token_id": 102, "pad_token_id": 0},
    ),
}
"""Name -> `model_type`, class, and what differs from the defaults of transformers' configuration, which have the
checkpoint's shape."""


@dataclass(frozen=True)
class Subject:
    """A model twice, with the same weights, and what it is given.

    Attributes:
        name: of `SUBJECTS`.
        theirs: of transformers, fp32.
        ours: of padless, fp32.
        input_ids: int64 `[texts, longest]`, padded: on the right for an encoder, on the left where texts are continued.
        attention_mask: of the same shape.
        workload: what the texts are of.
    """

    name: str
    theirs: Any
    ours: Any
    input_ids: Tensor
    attention_mask: Tensor
    workload: Workload

    @property
    def tokens(self) -> int:
        """Of the texts, padding not counted."""
        return int(self.attention_mask.sum())


def make_subject(name: str, workload: str, texts: int, fields: Mapping[str, Any] | None = None) -> Subject:
    """Both models, and texts of a workload, from the shortest to the longest.

    Args:
        name: of `SUBJECTS`.
        workload: of `workloads.WORKLOADS`. Ids are those of MiniLM's tokenizer: what a word is costs nothing.
        texts: how many of them.
        fields: of the configuration, where they are not the checkpoint's.

    Raises:
        OptionError: an unknown name.
        InputError: transformers, the corpus or the tokenizer is not installed.
    """
    if name not in SUBJECTS:
        raise OptionError(f"model {name!r}: unknown, expected some of {', '.join(SUBJECTS)}")
    try:
        import transformers
    except ImportError as error:
        raise InputError(f"transformers: not installed; it is the reference: {error}") from error
    model_type, kind, own = SUBJECTS[name]
    ours_of: Any = family_class(model_type, kind, source=name)
    given = {**own, **(fields or {})}
    theirs_of = getattr(transformers, ours_of.__name__)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(_SEED)
        theirs = theirs_of(theirs_of.config_class(**given)).eval()
    config: ModelConfig = ours_of.config_class(**given)
    ours = ours_of(config).eval().requires_grad_(False)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    chosen = load_workload(workload, default_model()).fewer(texts)
    ids, mask = _inputs(chosen, left=kind == "ForCausalLM", rows=theirs.config.vocab_size)
    return Subject(name, theirs, ours, ids, mask, chosen)


def _inputs(workload: Workload, *, left: bool, rows: int) -> tuple[Tensor, Tensor]:
    tokenised = Tokenizer.from_folder(default_model(), max_length=_MAX_LENGTH).encode(workload.texts)
    lengths = tokenised.lengths.tolist()
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, own in enumerate(torch.from_numpy(tokenised.input_ids).long().split(lengths)):
        part = slice(len(ids[row]) - len(own), None) if left else slice(len(own))
        ids[row, part], mask[row, part] = own.clamp(max=rows - 1), 1
    return ids, mask
