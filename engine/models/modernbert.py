"""ModernBERT (Warner et al. 2024): rotary positions, GeGLU, pre-norm, and most layers looking at a window only.

Layers are of two kinds, `full_attention` and `sliding_attention`, each with its own rotation. A window of
`local_attention` tokens is half of them to either side and the token itself: 64 + 1 + 64 of 128, both ends included.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..batch import PackedBatch
from ..errors import InputError, OptionError
from ..ops.bind import BoundOp
from ..weights import NameRules
from .activations import ACTIVATIONS
from .bare import BareModel, Encoded
from .blocks import Dense, norm_op
from .checkpointing import LayerStack
from .heads import TopPredictions, top_op
from .intact import TakingOver
from .modernbert_blocks import ModernBertEmbeddings, ModernBertHead, ModernBertLayer
from .modernbert_config import ModernBertConfig
from .parameters import LayerNorm
from .pretrained import PreTrainedModel
from .record import Record
from .resizing import Vocabulary
from .rope import RotaryTables
from .tasks import (
    ForMaskedLM,
    ForMultipleChoice,
    ForQuestionAnswering,
    ForSequenceClassification,
    ForTokenClassification,
    TaskModel,
)

__all__ = [
    "ModernBertConfig",
    "ModernBertForMaskedLM",
    "ModernBertForMultipleChoice",
    "ModernBertForQuestionAnswering",
    "ModernBertForSequenceClassification",
    "ModernBertForTokenClassification",
    "ModernBertModel",
]


class ModernBertPreTrainedModel(PreTrainedModel):
    """What all classes of the family share."""

    config_class = ModernBertConfig
    base_model_prefix = "model"
    vocabulary = Vocabulary(tables=("embeddings.tok_embeddings",), decoder="decoder")
    name_rules = NameRules(prefixes=("model.",), ignored=(r"rotary_emb\.", r"^head\.", r"^decoder\.", r"^classifier\."))

    def initialise(self, part: nn.Module | None = None) -> None:
        """Normal weights cut off at a few standard deviations; what writes to the residual stream starts smaller."""
        config = self.config
        cutoff = 3.0 if config.initializer_cutoff_factor is None else config.initializer_cutoff_factor
        wide, final = config.initializer_range, config.hidden_size**-0.5
        narrow = wide / math.sqrt(2.0 * max(config.num_hidden_layers, 1))
        deviations = {"Wo": narrow, "dense": narrow, "decoder": narrow, "classifier": final}
        chosen = set((self if part is None else part).modules())
        tied = {name.rpartition(".")[0] for name in self.tie_table()}
        for name, module in self.named_modules():
            if module not in chosen:
                continue
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
            if isinstance(module, (nn.Linear, nn.Embedding)) and name not in tied:
                deviation = deviations.get(name.rpartition(".")[2], wide)
                nn.init.trunc_normal_(module.weight, std=deviation, a=-cutoff * deviation, b=cutoff * deviation)
            bias = getattr(module, "bias", None)
            if isinstance(bias, nn.Parameter):
                nn.init.zeros_(bias)


class ModernBertModel(ModernBertPreTrainedModel, BareModel, LayerStack):
    """The encoder without head."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__(config)
        # Fields may have been assigned since the configuration was made.
        config.check(type(config).__name__)
        kinds: list[str] = [*(config.layer_types or [])]
        self.embeddings = ModernBertEmbeddings(config)
        self.layers = nn.ModuleList(ModernBertLayer(config, kind, index == 0) for index, kind in enumerate(kinds))
        self.final_norm = LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
        self.normalise = norm_op(self.final_norm)
        self.tables = {kind: RotaryTables(config.rope(kind)) for kind in dict.fromkeys(kinds)}

    def forward(
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        sliding_window_mask: Tensor | None = None,
        indices: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        batch_size: int | None = None,
        seq_len: int | None = None,
        **others: Any,
    ) -> Any:
        """As every bare model; token types mean nothing here.

        Args:
            sliding_window_mask: None; windows come from the configuration.
            cu_seqlens: int32 `[texts + 1]`: `input_ids` are `[tokens]` without padding, and so are the outputs, as for
                a PackedBatch. `indices`, `max_seqlen`, `batch_size` and `seq_len` add nothing to it.

        Raises:
            InputError: also where `cu_seqlens` does not fit `input_ids`.
            OptionError: a `sliding_window_mask`.
        """
        input_ids, position_ids = _unpadded(input_ids, position_ids, cu_seqlens, sliding_window_mask)
        return super().forward(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states, return_dict=return_dict,
            **others,
        )  # fmt: skip

    @property
    def word_embeddings(self) -> nn.Embedding:
        """`[vocab, hidden]`."""
        return self.embeddings.tok_embeddings

    @property
    def longest(self) -> None:
        """Rotations reach as far as the text does."""
        return None

    def _run(self, batch: PackedBatch, inputs_embeds: Tensor | None = None, record: Record | None = None) -> Tensor:
        """The last hidden state, `[tokens, hidden_size]`; recorded last, it is the normalised one."""
        turns = {kind: tables.lookup(batch) for kind, tables in self.tables.items()}
        x = self.embeddings(batch, inputs_embeds)
        for layer in self.each(self.layers):
            if record is not None:
                record.hidden_state(x)
            x = layer(x, batch, turns, record)
        x = self.normalise(x)
        if record is not None:
            record.hidden_state(x)
        return x


class ModernBertTask(ModernBertPreTrainedModel, TaskModel):
    """A bare model and the family's head."""

    base_class = ModernBertModel

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__(config)
        self.head = ModernBertHead(config)

    def forward(
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        positions: Tensor | None = None,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        sliding_window_mask: Tensor | None = None,
        indices: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        batch_size: int | None = None,
        seq_len: int | None = None,
        **others: Any,
    ) -> Any:
        """As every model of the task, with the further arguments of the bare model."""
        input_ids, position_ids = _unpadded(input_ids, position_ids, cu_seqlens, sliding_window_mask)
        return super().forward(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds,
            labels, next_sentence_label, start_positions, end_positions, positions,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states, return_dict=return_dict,
            **others,
        )  # fmt: skip

    def token_features(self, hidden: Tensor) -> Tensor:
        """The head on every token."""
        return self.head(hidden)

    def text_features(self, encoded: Encoded) -> Tensor:
        """The head on the first token or the mean of every text."""
        pooled = encoded.first_tokens() if self.config.classifier_pooling == "cls" else encoded.mean_tokens()
        return self.head(pooled)


class ModernBertForMaskedLM(ModernBertTask, ForMaskedLM, TakingOver):
    """Which token belongs where one is masked; under `sparse_prediction`, logits of labelled tokens only."""

    tied = {"decoder.weight": "model.embeddings.tok_embeddings.weight"}  # noqa: RUF012
    taken_over = ("head", "decoder")
    may_resize = True
    top: BoundOp | None = None

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__(config)
        self.decoder = Dense(config.hidden_size, config.vocab_size, config.decoder_bias)
        self._take_over()

    def masked_lm_logits(self, hidden: Tensor) -> Tensor:
        """`[asked, hidden]` to `[asked, vocab]`."""
        return self.decoder(self.head(hidden))

    def predict_top(self, hidden: Tensor, k: int) -> TopPredictions:
        """`[asked, hidden]` to the `k` most likely tokens of each row."""
        if self.top is not None and self.intact:
            return TopPredictions(*self.top(hidden, top_k=k))
        return super().predict_top(hidden, k)

    def _stand_in(self) -> dict[str, BoundOp]:
        activation = ACTIVATIONS[self.config.classifier_activation]
        return {"top": top_op(self.head.dense, self.head.norm, self.decoder, activation)}


class ModernBertForSequenceClassification(ModernBertTask, ForSequenceClassification):
    """One class, several, or a number for every text."""


class ModernBertForTokenClassification(ModernBertTask, ForTokenClassification):
    """A class for every token."""


class ModernBertForMultipleChoice(ModernBertTask, ForMultipleChoice):
    """Which of several texts."""


class ModernBertForQuestionAnswering(ModernBertTask, ForQuestionAnswering):
    """Where the answer begins and where it ends."""

    span_layer = "classifier"

    def span_features(self, hidden: Tensor) -> Tensor:
        """The head on every token; unlike other families, with dropout in training."""
        return self._dropped(self.head(hidden))


def _unpadded(
    input_ids: Tensor | PackedBatch | None,
    position_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    sliding_window_mask: Tensor | None,
) -> tuple[Tensor | PackedBatch | None, Tensor | None]:
    """The inputs as they are, or packed where they say that they have no padding."""
    if sliding_window_mask is not None:
        raise OptionError("sliding_window_mask: expected None, windows come from local_attention of the configuration")
    if cu_seqlens is None:
        return input_ids, position_ids
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 1:
        raise InputError("cu_seqlens: expected with input_ids of one axis, [tokens]")
    tokens, starts = len(input_ids), cu_seqlens.to(input_ids.device, torch.int32)
    lengths = starts.diff().cpu()
    if not len(starts) or int(starts[0]) != 0 or int(starts[-1]) != tokens or bool((lengths < 0).any()):
        raise InputError(f"cu_seqlens: expected to rise from 0 to {tokens}, the number of tokens")
    positions, spans = position_ids, None
    if positions is None:
        positions = torch.arange(tokens, device=starts.device) - starts[:-1].repeat_interleave(starts.diff())
    else:
        positions = positions.reshape(-1)
        if len(positions) != tokens:
            raise InputError(f"position_ids: expected {tokens} of them, got {len(positions)}")
        parts = positions.cpu().split(lengths.tolist())
        spans = torch.tensor([int(part.max()) + 1 if len(part) else 0 for part in parts])
    longest = int(lengths.max()) if len(lengths) else 0
    return PackedBatch(input_ids.long(), positions.long(), None, starts, lengths, longest, spans), None
