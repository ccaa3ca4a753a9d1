"""What both sides are given, and what they return, text by text.

The reference is transformers on each text alone. Ours are asked for the same texts in four forms: each alone, padded on
the right, padded on the left, and packed; whatever the form, outputs are put in one order, all tokens end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
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
OF_TOKENS = {
    "last_hidden_state", "prediction_logits", "start_logits", "end_logits", "hidden_states", "decoder_hidden_states",
    "encoder_last_hidden_state", "encoder_hidden_states",
}  # fmt: skip
FIRST_ID = 5
"""Ids below are special tokens: [PAD] has no gradient in transformers, and none of them is needed here."""

END = 1
"""The end token, which mT5's classifier of texts looks for."""


@dataclass(frozen=True)
class Texts:
    """Random texts and what is right about them.

    Attributes:
        ids: int64 `[length]` each; of multiple choice, the choices of a question follow each other.
        types: likewise, or None for a family without token types.
        written: what stands on a decoder's side, for classes that are given it.
        targets: name -> one tensor for all texts: `[tokens]` for a label a token, else `[texts]` or `[questions]`;
            positions count from the text's own start.
    """

    ids: list[Tensor]
    types: list[Tensor] | None
    targets: dict[str, Tensor] = field(default_factory=dict)
    written: list[Tensor] | None = None

    @property
    def lengths(self) -> list[int]:
        return [len(text) for text in self.ids]

    @property
    def written_lengths(self) -> list[int]:
        """Of what stands on the decoder's side; of the texts where there is nothing else."""
        return self.lengths if self.written is None else [len(text) for text in self.written]

    def __len__(self) -> int:
        return len(self.ids)


def draw_texts(item: ModelClass, lengths: Sequence[int], vocabulary: int, *, labels: int = LABELS) -> Texts:
    """Texts of these lengths, drawn from a seed, with every target that the class takes."""
    draw = np.random.default_rng([len(lengths), sum(lengths)])
    tokens = sum(lengths)

    def whole(high: int, count: int, low: int = 0) -> Tensor:
        return torch.from_numpy(draw.integers(low, high, count))

    ids = list(whole(vocabulary, tokens, FIRST_ID).split(list(lengths)))
    if item.has_decoder and item.kind == "ForSequenceClassification":
        for text in ids:
            text[-1] = END
    written = None
    if item.takes_decoder_ids:
        sizes = [1 + int(draw.integers(0, 2 * length)) for length in lengths]
        written = list(whole(vocabulary, sum(sizes), FIRST_ID).split(sizes))
    types = None if item.family in ("modernbert", "mt5") else list(whole(2, tokens).split(list(lengths)))
    targets: dict[str, Tensor] = {}
    if item.kind in ("ForMaskedLM", "ForPreTraining", "ForTokenClassification", "ForCausalLM"):
        classes = labels if item.kind == "ForTokenClassification" else vocabulary
        targets["labels"] = whole(classes, tokens).where(torch.from_numpy(draw.random(tokens) < 0.6), IGNORED)
    if item.kind == "ForConditionalGeneration":
        assert written is not None
        count = sum(map(len, written))
        targets["labels"] = whole(vocabulary, count).where(torch.from_numpy(draw.random(count) < 0.6), IGNORED)
    if item.kind == "ForPreTraining":
        targets["next_sentence_label"] = whole(2, len(lengths))
    if item.kind in ("ForNextSentencePrediction", "ForSequenceClassification"):
        targets["labels"] = whole(2 if item.kind == "ForNextSentencePrediction" else labels, len(lengths))
    if item.kind == "ForMultipleChoice":
        targets["labels"] = whole(CHOICES, len(lengths) // CHOICES)
    if item.kind == "ForQuestionAnswering":
        for name in ("start_positions", "end_positions"):
            targets[name] = torch.tensor([int(draw.integers(0, length)) for length in lengths])
    return Texts(ids, types, targets, written)


def packed(texts: Texts) -> PackedBatch:
    """The texts end to end, as padless' own paths hand them to a model."""
    return _packed(texts)


def packed_call(texts: Texts) -> dict[str, PackedBatch]:
    """What a decoder is given beside the texts, packed."""
    return {} if texts.written is None else {"decoder_input_ids": _packed(Texts(texts.written, None))}


def _packed(texts: Texts) -> PackedBatch:
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
    if texts.written is not None:
        call["decoder_input_ids"] = padded(texts.written, side, fill=FIRST_ID)
        call["decoder_attention_mask"] = padded([torch.ones_like(part) for part in texts.written], side)
    if item.kind == "ForMultipleChoice":
        call = {name: value.unflatten(0, (-1, CHOICES)) for name, value in call.items()}
    if with_targets:
        width = call["attention_mask"].shape[-1]
        for name, target in texts.targets.items():
            if _one_a_token(name, item):
                target = padded(target.split(texts.written_lengths), side, fill=IGNORED)
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
    if texts.written is not None:
        call["decoder_input_ids"] = texts.written[row][None]
    if item.kind == "ForMultipleChoice":
        call = {name: value[None] for name, value in call.items()}
    if with_targets:
        for name, target in texts.targets.items():
            if _one_a_token(name, item):
                call[name] = target.split(texts.written_lengths)[row][None]
            elif len(target) == len(texts):
                call[name] = target[row : row + 1]
    return call


def run_alone(model: Any, item: ModelClass, texts: Texts, **options: Any) -> dict[str, Tensor]:
    """Every output of a model, ours or theirs, called with one text after the other."""
    found: list[dict[str, Tensor]] = []
    for row, lengths in enumerate(zip(texts.lengths, texts.written_lengths, strict=True)):
        outputs = model(**alone_call(item, texts, row), **options)
        first, second = ([(0, slice(0, length))] for length in lengths)
        found.append(_in_order(outputs, item, first, second))
    return {name: torch.cat([outputs[name] for outputs in found]) for name in found[0]}


def run_form(
    model: Any, item: ModelClass, texts: Texts, form: str, *, with_targets: bool = False, **options: Any
) -> dict[str, Tensor]:
    """Every output of our model for the texts in one of `FORMS`; with targets also "loss", except of "alone"."""
    if form == "alone":
        return run_alone(model, item, texts, **options)
    if form == "packed":
        outputs = model(packed(texts), **packed_call(texts), **(texts.targets if with_targets else {}), **options)
        return _in_order(outputs, item, None, None, texts.lengths, texts.written_lengths)
    call = padded_call(item, texts, form, with_targets=with_targets)
    mask = call["attention_mask"]
    widths = mask.shape[-1], call.get("decoder_attention_mask", mask).shape[-1]
    first, second = (_places(*side, form) for side in zip((texts.lengths, texts.written_lengths), widths, strict=True))
    return _in_order(model(**call, **options), item, first, second)


def _places(lengths: Sequence[int], width: int, side: str) -> list[tuple[int, slice]]:
    """Row and columns of every text in a padded batch."""
    return [
        (row, slice(width - length, width) if side == "left" else slice(0, length))
        for row, length in enumerate(lengths)
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
    if item.kind == "ForCausalLM":
        labels = [F.pad(label[1:], (0, 1), value=IGNORED) for label in targets["labels"].split(texts.lengths)]
        return F.cross_entropy(logits, torch.cat(labels))
    return F.cross_entropy(logits.view(-1, CHOICES) if item.kind == "ForMultipleChoice" else logits, targets["labels"])


def values_at_padding(outputs: Any, item: ModelClass, texts: Texts, side: str) -> dict[str, Tensor]:
    """What a padded batch returned where there is no token, by output."""
    sides = (texts.ids, texts.written or texts.ids)
    masks = [padded([torch.ones_like(part) for part in parts], side) == 0 for parts in sides]
    return {
        name: torch.cat([one[masks[not name.startswith("encoder_")]].flatten() for one in _tensors(value)])
        for name, value in outputs.items()
        if _of_tokens(name, item)
    }


Where = list[tuple[int, slice]] | None
"""Row and columns of every text; None for packed outputs."""


def _in_order(
    outputs: Any,
    item: ModelClass,
    texts: Where,
    written: Where,
    lengths: Sequence[int] = (),
    written_lengths: Sequence[int] = (),
) -> dict[str, Tensor]:
    """Outputs by name, tokens end to end, layers of one field side by side; those of a decoder stand in `written`."""
    found: dict[str, Tensor] = {}
    of_texts = texts or [(row, slice(0, length)) for row, length in enumerate(lengths)]
    of_written = written or [(row, slice(0, length)) for row, length in enumerate(written_lengths)]
    for name, value in outputs.items():
        if name == "past_key_values" or (isinstance(value, tuple) and not value):
            continue  # of a make of its own; the cross-attentions that transformers' encoders do not have
        where = texts if name.startswith("encoder_") else written
        if name.endswith("attentions"):
            queries = of_texts if name.startswith("encoder_") else of_written
            keys = of_texts if name == "cross_attentions" else queries
            found[name] = _text_attentions(value, queries, keys)
        elif _of_tokens(name, item) and where is not None:
            layers = [torch.cat([one[row, columns] for row, columns in where]) for one in _tensors(value)]
            found[name] = torch.stack(layers, 1) if isinstance(value, tuple) else layers[0]
        elif isinstance(value, tuple):
            found[name] = torch.stack(value, 1)
        else:
            found[name] = value.reshape(-1, 1) if item.kind == "ForMultipleChoice" and name != "loss" else value
    return found


def _text_attentions(
    layers: tuple[Tensor, ...], queries: list[tuple[int, slice]], keys: list[tuple[int, slice]]
) -> Tensor:
    """Attention weights of all texts and layers, flat, text by text."""
    spots = [(row, columns, seen) for (row, columns), (_, seen) in zip(queries, keys, strict=True)]
    return torch.cat([layer[row][:, own, seen].flatten() for row, own, seen in spots for layer in layers])


OF_TOKEN_LOGITS = ("ForMaskedLM", "ForTokenClassification", "ForCausalLM", "ForConditionalGeneration")


def _of_tokens(name: str, item: ModelClass) -> bool:
    return name in OF_TOKENS or (name == "logits" and item.kind in OF_TOKEN_LOGITS)


def _one_a_token(name: str, item: ModelClass) -> bool:
    return name == "labels" and item.kind in (*OF_TOKEN_LOGITS, "ForPreTraining")


def _tensors(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
