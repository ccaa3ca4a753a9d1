"""`generate` of the classes that write: their prompts, packed, and what is written about them."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from ..batch import PackedBatch
from ..cuda_graphs import wanted
from ..errors import InputError, OptionError
from ..generate.generate import Generated, decoder_prompts, generate
from ..generate.options import GenerationOptions
from ..generate.sources import read_generation_config, write_generation_config
from .causal import CausalModel
from .pretrained import PreTrainedModel
from .seq2seq import EncoderDecoder
from .step_graphs import StepGraphs
from .steps import Steps

__all__ = ["GeneratesFromPrompts", "GeneratesFromTexts"]

Model = TypeVar("Model", bound=PreTrainedModel)
Given = ParamSpec("Given")
Result = TypeVar("Result")


def _as_stored(method: Callable[Concatenate[Model, Given], Result]) -> Callable[Concatenate[Model, Given], Result]:
    """Without gradients, and in the precision of the weights: a cache of autocast's would change its dtype midway."""

    @wraps(method)
    def called(self: Model, /, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return called


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

    def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> None:
        """As `PreTrainedModel.save_pretrained`, with the generation configuration beside, where there is one."""
        super().save_pretrained(folder, **options)
        if self.generation_config is not None and options.get("is_main_process", True):
            write_generation_config(Path(folder), self.generation_config)

    def can_generate(self) -> bool:
        """True; as transformers asks."""
        return True

    @abstractmethod
    def language_model_head(self, hidden: Tensor) -> Tensor:
        """`[rows, hidden]` to `[rows, vocab]`."""

    def _write(
        self, steps: Steps, options: GenerationOptions, prompts: list[Tensor], given: Tensor | None = None
    ) -> Generated:
        if not wanted(self.cuda_graphs, self.device):
            return generate(steps, options, prompts, given)
        if self._step_graphs is None:
            self._step_graphs = StepGraphs()
        with self._step_graphs.lent(self, steps) as decoder:
            return generate(decoder, options, prompts, given)

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

    @_as_stored
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
        given = _one_of(inputs, input_ids, attention_mask)
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

    @_as_stored
    def generate(
        self,
        inputs: Tensor | PackedBatch | None = None,
        *,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **options: Any,
    ) -> Generated | Tensor:
        """Continue each prompt.

        Args:
            inputs: int64 `[batch, sequence]` or a PackedBatch; `input_ids` is the same under its other name.
            attention_mask: `[batch, sequence]`, zero where there is no token, on whichever side; None is zero at
                `pad_token_id`, unless that ends a sequence too.
            token_type_ids: zeros, as a tokenizer gives them for prompts of one part.
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
        given = _one_of(inputs, input_ids, attention_mask)
        if given is None:
            raise InputError("generate: input_ids: expected prompts to continue, got none")
        _check_types(token_type_ids, given)
        found = self._options(options)
        if isinstance(given, Tensor) and attention_mask is None:
            attention_mask = _without_padding(given, found)
        packed = base.pack_prompts(given, attention_mask)
        prompts = list(packed.batch.input_ids.to(self.device).split(packed.batch.lengths.tolist()))
        for row, prompt in enumerate(prompts):
            if not len(prompt):
                raise InputError(f"generate: prompt {row}: expected at least one token, got none")
        rows = given.to(self.device).long() if isinstance(given, Tensor) else None
        written = self._write(Steps(base, self.language_model_head), found, prompts, rows)
        return written if found.return_dict_in_generate else written.sequences


def _one_of(inputs: Any, input_ids: Any, attention_mask: Any) -> Tensor | PackedBatch | None:
    """The ids, under whichever name they came."""
    if inputs is not None and input_ids is not None:
        raise OptionError("generate: inputs: given beside input_ids, expected one or the other")
    given = inputs if input_ids is None else input_ids
    if given is not None and not isinstance(given, Tensor | PackedBatch):
        raise InputError(f"input_ids: expected a tensor [batch, sequence], got a {type(given).__name__}")
    if attention_mask is not None and not isinstance(attention_mask, Tensor):
        raise InputError(f"attention_mask: expected a tensor [batch, sequence], got a {type(attention_mask).__name__}")
    return given


def _check_types(types: Any, ids: Tensor | PackedBatch) -> None:
    if isinstance(ids, PackedBatch):
        if types is not None:
            raise InputError("a PackedBatch holds all inputs, expected no other beside it")
        types = ids.token_type_ids
    elif types is not None and (not isinstance(types, Tensor) or types.shape != ids.shape):
        raise InputError("token_type_ids: expected a tensor of the shape of input_ids")
    if types is None:
        return
    if types.any():
        raise OptionError("token_type_ids: expected zeros, prompts of several types are not supported")


def _without_padding(ids: Tensor, options: GenerationOptions) -> Tensor | None:
    """The mask that transformers reads off padded prompts that come without one; None where it sees no padding."""
    padding = options.pad_token_id
    return None if padding is None or padding in options.eos_token_id else ids != padding
