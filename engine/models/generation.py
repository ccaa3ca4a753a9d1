"""`generate` of the classes that write: their prompts, packed, and what is written about them."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..batch import PackedBatch
from ..cuda_graphs import wanted
from ..errors import InputError, OptionError
from ..generate.generate import Generated, decoder_prompts, generate
from ..generate.options import GenerationOptions
from ..generate.sources import read_generation_config
from .causal import CausalModel
from .padding import Layout
from .pretrained import PreTrainedModel
from .seq2seq import EncoderDecoder
from .step_graphs import StepGraphs
from .steps import Steps

__all__ = ["GeneratesFromPrompts", "GeneratesFromTexts"]


class _Generates(PreTrainedModel):
    """What both kinds share: the options, and the file they come from."""

    generation_config: dict[str, Any] | None = None
    """What `generation_config.json` of the folder holds; None where there is none."""
    main_input_name: ClassVar[str] = "input_ids"
    cuda_graphs: bool | str = "auto"
    """Whether the steps of `generate` are recorded and replayed, see `step_graphs.py`; "auto" does on every GPU."""
    _step_graphs: StepGraphs | None = None

    def read_beside(self, folder: Path) -> None:
        """Keep the folder's generation configuration."""
        self.generation_config = read_generation_config(folder)

    def can_generate(self) -> bool:
        """True; as transformers asks."""
        return True

    @abstractmethod
    def language_model_head(self, hidden: Tensor) -> Tensor:
        """`[rows, hidden]` to `[rows, vocab]`."""

    def _write(self, steps: Steps, options: GenerationOptions, prompts: list[Tensor]) -> Generated:
        if not wanted(self.cuda_graphs, self.device):
            return generate(steps, options, prompts)
        if self._step_graphs is None:
            self._step_graphs = StepGraphs()
        with self._step_graphs.lent(self, steps) as decoder:
            return generate(decoder, options, prompts)

    def _options(self, arguments: dict[str, Any]) -> GenerationOptions:
        return GenerationOptions.resolve(
            arguments, config=self.config.to_dict(), generation_config=self.generation_config
        )

    def _ids(self, given: Any, name: str) -> tuple[Tensor, Tensor] | None:
        """Ids `[batch, sequence]` on the model's device, from what the caller has; None for None."""
        if given is None:
            return None
        if not isinstance(given, Tensor) or given.dim() != 2 or given.is_floating_point():
            found = f"shape {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
            raise InputError(f"{name}: expected token ids [batch, sequence], got {found}")
        return given.to(self.device), given


class GeneratesFromTexts(_Generates):
    """A class with an encoder: each text is read, then written about."""

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | PackedBatch | None = None,
        *,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_outputs: Any = None,
        decoder_input_ids: Tensor | None = None,
        **options: Any,
    ) -> Generated | Tensor:
        """Read each text and write what follows the start token.

        Args:
            inputs: int64 `[batch, sequence]` or a PackedBatch; `input_ids` is the same under its other name.
            attention_mask: `[batch, sequence]`, zero where there is no token, on whichever side.
            inputs_embeds: in place of ids.
            encoder_outputs: in place of both, what the encoder returned.
            decoder_input_ids: int64 `[batch, tokens]` that the answer begins with, behind the start token.
            options: as `engine/generate/options.py` lists them, in transformers' names, such as `max_new_tokens`,
                `num_beams`, `do_sample`; those not named here are those of the folder's `generation_config.json`.

        Returns:
            int64 `[batch * num_return_sequences, longest]`, the start token, what was written, then padding; with
            `return_dict_in_generate` all of `Generated`.

        Raises:
            InputError: a text without a token, ids outside the vocabulary, or shapes that do not fit.
            OptionError: an option that is unknown, out of range, or contradicts another.
        """
        base = self.base_model
        assert isinstance(base, EncoderDecoder)
        found = self._options(options)
        given = inputs if input_ids is None else input_ids
        if inputs is not None and input_ids is not None:
            raise OptionError("generate: inputs: given beside input_ids, expected one or the other")
        texts = base.read_texts(given, attention_mask, inputs_embeds, encoder_outputs)
        for row, length in enumerate(texts.batch.lengths.tolist()):
            if not length:
                raise InputError(f"generate: text {row}: expected at least one token, got none")
        begun = self._ids(decoder_input_ids, "decoder_input_ids")
        prompts = decoder_prompts(found, len(texts.batch), self.device, None if begun is None else [*begun[0]])
        written = self._write(Steps(base, self.language_model_head, texts), found, prompts)
        return written if found.return_dict_in_generate else written.sequences


class GeneratesFromPrompts(_Generates):
    """A decoder by itself: each prompt is continued."""

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | PackedBatch | None = None,
        *,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Generated | Tensor:
        """Continue each prompt.

        Args:
            inputs: int64 `[batch, sequence]` or a PackedBatch; `input_ids` is the same under its other name.
            attention_mask: `[batch, sequence]`, zero where there is no token, on whichever side.
            options: as of `GeneratesFromTexts.generate`.

        Returns:
            int64 `[batch * num_return_sequences, longest]`: the inputs as they were given, what was written, then
            padding; of a PackedBatch the prompts without padding. With `return_dict_in_generate` all of `Generated`.

        Raises:
            InputError: a prompt without a token, ids outside the vocabulary, or shapes that do not fit.
            OptionError: an option that is unknown, out of range, or contradicts another; no decoder.
        """
        base = self.base_model
        assert isinstance(base, CausalModel)
        if not base.is_decoder:
            raise OptionError("generate: expected is_decoder in the configuration, got an encoder")
        if inputs is not None and input_ids is not None:
            raise OptionError("generate: inputs: given beside input_ids, expected one or the other")
        found = self._options(options)
        packed = base.pack_prompts(inputs if input_ids is None else input_ids, attention_mask)
        prompts = list(packed.batch.input_ids.to(self.device).split(packed.batch.lengths.tolist()))
        for row, prompt in enumerate(prompts):
            if not len(prompt):
                raise InputError(f"generate: prompt {row}: expected at least one token, got none")
        written = self._write(Steps(base, self.language_model_head), found, prompts)
        if packed.layout.shape is not None and written.new_tokens is not None:
            written.sequences = _behind(packed.layout, packed.batch.input_ids, written, found)
        return written if found.return_dict_in_generate else written.sequences


def _behind(layout: Layout, ids: Tensor, written: Generated, options: GenerationOptions) -> Tensor:
    """What was written, behind the inputs in the caller's own layout."""
    filler = options.filler
    given = layout.unpack(ids, 0 if filler is None else filler)
    assert written.new_tokens is not None
    copies = options.num_return_sequences
    return torch.cat([given.repeat_interleave(copies, dim=0).to(written.new_tokens.device), written.new_tokens], dim=1)
