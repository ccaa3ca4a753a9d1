"""What both sides are given, and what they return, text by text.

The reference is transformers on each text alone. Ours are asked for the same texts in four forms: each alone, padded on
the right, padded on the left, and packed; whatever the form, outputs are put in one order, all tokens end to end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from parity_models import LABELS, ModelClass
from torch import Tensor
from torch.nn import functional as F

from padless.engine.batch import PackedBatch, TokenizedTexts, pack

FORMS = ("alone", "right", "left", "packed")
CHOICES = 2
IGNORED = -100
OF_TOKENS = {"last_hidden_state", "prediction_logits", "start_logits", "end_logits", "hidden_states"}
FIRST_ID = 5
"""Ids below are special tokens: [PAD] has no gradient in transformers, and none of them is needed here."""


@dataclass(frozen=True)
class Texts:
    """Random texts and what is right about them.

    Attributes:
        ids: int64 `[length]` each; of multiple choice, the choices of a question follow each other.
        types: likewise, or None for a family without token types.
        targets: name -> one tensor for all texts: `[tokens]` for a label a token, else `[texts]` or `[questions]`;
            positions count from the text's own start.
    """

    ids: list[Tensor]
    types: list[Tensor] | None
    targets: dict[str, Tensor] = field(default_factory=dict)

    @property
    def lengths(self) -> list[int]:
        return [len(text) for text in self.ids]

    def __len__(self) -> int:
        return len(self.ids)


def draw_texts(item: ModelClass, lengths: Sequence[int], vocabulary: int, *, labels: int = LABELS) -> Texts:
    """Texts of these lengths, drawn from a seed, with every target that the class takes."""
    draw = np.random.default_rng([len(lengths), sum(lengths)])
    tokens = sum(lengths)

    def whole(high: int, count: int, low: int = 0) -> Tensor:
        return torch.from_numpy(draw.integers(low, high, count))

    ids = list(whole(vocabulary, tokens, FIRST_ID).split(list(lengths)))
    types = None if item.family in ("modernbert", "mt5") else list(whole(2, tokens).split(list(lengths)))
    targets: dict[str, Tensor] = {}
    if item.kind in ("ForMaskedLM", "ForPreTraining", "ForTokenClassification"):
        classes = labels if item.kind == "ForTokenClassification" else vocabulary
        targets["labels"] = whole(classes, tokens).where(torch.from_numpy(draw.random(tokens) < 0.6), IGNORED)
    if item.kind == "ForPreTraining":
        targets["next_sentence_label"] = whole(2, len(lengths))
    if item.kind in ("ForNextSentencePrediction", "ForSequenceClassification"):
        targets["labels"] = whole(2 if item.kind == "ForNextSentencePrediction" else labels, len(lengths))
    if item.kind == "ForMultipleChoice":
        targets["labels"] = whole(CHOICES, len(lengths) // CHOICES)
    if item.kind == "ForQuestionAnswering":
        for name in ("start_positions", "end_positions"):
            targets[name] = torch.tensor([int(draw.integers(0, length)) for length in lengths])
    return Texts(ids, types, targets)


def packed(texts: Texts) -> PackedBatch:
    """The texts end to end, as padless' own paths hand them to a model."""
    types = None if texts.types is None else torch.cat(texts.types).numpy().astype(np.int32)
    lengths = np.array(texts.lengths, dtype=np.int32)
    flags = np.zeros(len(texts), dtype=bool)
    ids = torch.cat(texts.ids).numpy().astype(np.int32)
    return pack(TokenizedTexts(ids, lengths, types, flags, flags), np.arange(len(texts)))


def padded(parts: Sequence[Tensor], side: str, fill: int = 0, extra: int = 2) -> Tensor:
    """`[texts, longest + extra]`, text on one side of each row and `fill` on the other."""
    width = max(len(part) for part in parts) + extra
    ends = [(width - len(part), 0) if side == "left" else (0, width - len(part)) for part in parts]
    return torch.stack([F.pad(part, end, value=fill) for part, end in zip(parts, ends, strict=True)])


def padded_call(item: ModelClass, texts: Texts, side: str, *, with_targets: bool = False) -> dict[str, Tensor]:
    """Arguments of `forward` for all texts in one padded batch; padding holds nonsense that must not count."""
    call = {
        "input_ids": padded(texts.ids, side, fill=FIRST_ID),
        "attention_mask": padded([torch.ones_like(part) for part in texts.ids], side),
    }
    if texts.types is not None:
        call["token_type_ids"] = padded(texts.types, side, fill=1)
    if item.kind == "ForMultipleChoice":
        call = {name: value.unflatten(0, (-1, CHOICES)) for name, value in call.items()}
    if with_targets:
        width = call["attention_mask"].shape[-1]
        for name, target in texts.targets.items():
            if _one_a_token(name, item):
                target = padded(target.split(texts.lengths), side, fill=IGNORED)
            elif name.endswith("_positions") and side == "left":
                target = target + width - torch.tensor(texts.lengths)
            call[name] = target
    return call


def alone_call(item: ModelClass, texts: Texts, row: int, *, with_targets: bool = False) -> dict[str, Tensor]:
    """Arguments of `forward` for one text, without padding."""
    ids = texts.ids[row][None]
    call = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if texts.types is not None:
        call["token_type_ids"] = texts.types[row][None]
    if item.kind == "ForMultipleChoice":
        call = {name: value[None] for name, value in call.items()}
    if with_targets:
        for name, target in texts.targets.items():
            if _one_a_token(name, item):
                call[name] = target.split(texts.lengths)[row][None]
            elif len(target) == len(texts):
                call[name] = target[row : row + 1]
    return call


def run_alone(model: Any, item: ModelClass, texts: Texts, **options: Any) -> dict[str, Tensor]:
    """Every output of a model, ours or theirs, called with one text after the other."""
    found: list[dict[str, Tensor]] = []
    for row, length in enumerate(texts.lengths):
        outputs = model(**alone_call(item, texts, row), **options)
        found.append(_in_order(outputs, item, [(0, slice(0, length))]))
    return {name: torch.cat([outputs[name] for outputs in found]) for name in found[0]}


def run_form(
    model: Any, item: ModelClass, texts: Texts, form: str, *, with_targets: bool = False, **options: Any
) -> dict[str, Tensor]:
    """Every output of our model for the texts in one of `FORMS`; with targets also "loss", except of "alone"."""
    if form == "alone":
        return run_alone(model, item, texts, **options)
    if form == "packed":
        outputs = model(packed(texts), **(texts.targets if with_targets else {}), **options)
        return _in_order(outputs, item, None, lengths=texts.lengths)
    call = padded_call(item, texts, form, with_targets=with_targets)
    return _in_order(model(**call, **options), item, places(texts, form, call["attention_mask"].shape[-1]))


def places(texts: Texts, side: str, width: int) -> list[tuple[int, slice]]:
    """Row and columns of every text in a padded batch."""
    return [
        (row, slice(width - length, width) if side == "left" else slice(0, length))
        for row, length in enumerate(texts.lengths)
    ]


def loss_by_definition(item: ModelClass, reference: dict[str, Tensor], texts: Texts) -> Tensor:
    """The mean cross-entropy of reference logits, in fp64."""
    wide = {name: value.double() for name, value in reference.items()}
    targets = texts.targets
    if item.kind == "ForPreTraining":
        words = F.cross_entropy(wide["prediction_logits"], targets["labels"])
        return words + F.cross_entropy(wide["seq_relationship_logits"], targets["next_sentence_label"])
    if item.kind == "ForQuestionAnswering":
        ends = ("start", "end")
        rows = [
            F.cross_entropy(text[None], targets[f"{end}_positions"][row : row + 1])
            for end in ends
            for row, text in enumerate(wide[f"{end}_logits"].split(texts.lengths))
        ]
        return torch.stack(rows).mean()
    logits = wide["logits"]
    return F.cross_entropy(logits.view(-1, CHOICES) if item.kind == "ForMultipleChoice" else logits, targets["labels"])


def values_at_padding(outputs: Any, item: ModelClass, texts: Texts, side: str) -> dict[str, Tensor]:
    """What a padded batch returned where there is no token, by output."""
    mask = padded([torch.ones_like(part) for part in texts.ids], side) == 0
    return {
        name: torch.cat([one[mask].flatten() for one in _tensors(value)])
        for name, value in outputs.items()
        if _of_tokens(name, item)
    }


def _in_order(
    outputs: Any, item: ModelClass, where: list[tuple[int, slice]] | None, lengths: Iterable[int] = ()
) -> dict[str, Tensor]:
    """Outputs by name, tokens end to end, layers of one field side by side; `where` is None for packed outputs."""
    found: dict[str, Tensor] = {}
    for name, value in outputs.items():
        if isinstance(value, tuple) and not value:
            continue  # the cross-attentions that transformers' encoders do not have
        if name == "attentions":
            found[name] = _text_attentions(value, where, lengths)
        elif _of_tokens(name, item) and where is not None:
            layers = [torch.cat([one[row, columns] for row, columns in where]) for one in _tensors(value)]
            found[name] = torch.stack(layers, 1) if isinstance(value, tuple) else layers[0]
        elif isinstance(value, tuple):
            found[name] = torch.stack(value, 1)
        else:
            found[name] = value.reshape(-1, 1) if item.kind == "ForMultipleChoice" and name != "loss" else value
    return found


def _text_attentions(
    layers: tuple[Tensor, ...], where: list[tuple[int, slice]] | None, lengths: Iterable[int]
) -> Tensor:
    """Attention weights of all texts and layers, flat, text by text."""
    spots = where or [(row, slice(0, length)) for row, length in enumerate(lengths)]
    return torch.cat([layer[row][:, columns, columns].flatten() for row, columns in spots for layer in layers])


def _of_tokens(name: str, item: ModelClass) -> bool:
    return name in OF_TOKENS or (name == "logits" and item.kind in ("ForMaskedLM", "ForTokenClassification"))


def _one_a_token(name: str, item: ModelClass) -> bool:
    return name == "labels" and item.kind in ("ForMaskedLM", "ForPreTraining", "ForTokenClassification")


def _tensors(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
