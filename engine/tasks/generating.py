"""What both tasks that write share: their options, and sequences of a batch as rows of its texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from ..batch import PackedBatch, TokenizedTexts, pack
from ..errors import InputError, NotFiniteError, OptionError
from ..generate.greedy import NoTokenLeftError
from ..generate.options import GenerationOptions
from ..generate.rules import FOR_SAMPLING
from .options import one_of
from .tokenizer_arguments import TokenizerArguments

__all__ = ["WritingOptions", "generation_options", "writing_options", "written_rows"]


@dataclass(frozen=True)
class WritingOptions:
    """Of a call; others are those of `generate`.

    Attributes:
        return_text: give texts; the default.
        return_tensors: give `generated_token_ids`, int64 without padding, in their place.
        return_full_text: of text-generation, give the prompt too; the default.
        clean_up_tokenization_spaces: as of the tokenizer's `decode`.
        prefix: put before each input.
        truncation: cut a text or a prompt to what the tokenizer's settings say; False, "do_not_truncate" and None are
            to what the model takes. Of text-generation also to the call's `max_length`, as in transformers, which
            bounds the written sequence too.
        padding: of text-generation, without effect.
        add_special_tokens: of text-generation, whether the tokenizer's own are put around a prompt; None is True.
        tokenizer_encode_kwargs: of text-generation, a dict of `truncation`, `max_length`, `padding` and
            `add_special_tokens` that are for the prompt only, and win over those of the call.
        handle_long_generation: of text-generation, "hole" leaves out the beginning of a prompt that leaves too little
            room behind it.
        generate: the options of `generate`.
    """

    return_text: bool | None = None
    return_tensors: bool | None = None
    return_full_text: bool | None = None
    clean_up_tokenization_spaces: bool | None = None
    prefix: str = ""
    truncation: bool | str | None = None
    padding: bool | str | None = None
    add_special_tokens: bool | None = None
    tokenizer_encode_kwargs: Mapping[str, Any] | None = None
    handle_long_generation: str | None = None
    generate: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.prefix, str):
            raise OptionError(f"prefix: expected a string, got {self.prefix!r}")
        if not isinstance(self.tokenizer_encode_kwargs, Mapping | None):
            raise OptionError(f"tokenizer_encode_kwargs: expected a dict, got {self.tokenizer_encode_kwargs!r:.60}")
        one_of("add_special_tokens", self.special_tokens, (None, True, False))
        _ = self.tokenizer_arguments
        if self.handle_long_generation not in (None, "hole"):
            raise OptionError(f"handle_long_generation: expected None or 'hole', got {self.handle_long_generation!r}")
        asked = [
            name for name in ("return_text", "return_tensors", "return_full_text") if getattr(self, name) is not None
        ]
        if len(asked) > 1:
            raise OptionError(f"{asked[0]}: given beside {asked[1]}, expected one or the other")

    @property
    def special_tokens(self) -> bool | None:
        """Whether special tokens are put around a prompt."""
        return (self.tokenizer_encode_kwargs or {}).get("add_special_tokens", self.add_special_tokens)

    @property
    def tokenizer_arguments(self) -> TokenizerArguments:
        """What is done with long prompts.

        Raises:
            OptionError: `tokenizer_encode_kwargs` has another entry, or a value is out of range.
        """
        called = {"truncation": self.truncation, "max_length": self.generate.get("max_length"), "padding": self.padding}
        own = dict(self.tokenizer_encode_kwargs or {})
        own.pop("add_special_tokens", None)
        return TokenizerArguments.read({**called, **own}, "tokenizer_encode_kwargs")


def writing_options(model: Any, task: str, defaults: Mapping[str, Any], *given: Mapping[str, Any]) -> WritingOptions:
    """The options of a call: its own, then the model's, then the task's defaults, as in transformers' pipelines.

    Raises:
        OptionError: an option is unknown or out of range.
    """
    merged = {name: value for options in given for name, value in options.items()}
    names = {item.name for item in fields(WritingOptions)} - {"generate"}
    own = {name: merged.pop(name) for name in [*merged] if name in names}
    for name in ("return_dict_in_generate", "output_scores"):
        if merged.pop(name, None):
            raise OptionError(f"{task}: {name}: a task gives texts; call generate of the model")
    config = model.config.to_dict()
    said = config if model.generation_config is None else model.generation_config
    present = {name for name, value in said.items() if value is not None} | set(merged)
    added = {name: value for name, value in defaults.items() if name not in present}
    if "max_length" in present:
        added.pop("max_new_tokens", None)
    if not {**said, **added, **merged}.get("do_sample"):
        added = {name: value for name, value in added.items() if name not in FOR_SAMPLING}
    options = WritingOptions(**own, generate={**added, **merged})
    generation_options(model, options)
    return options


def generation_options(model: Any, options: WritingOptions) -> GenerationOptions:
    """What `generate` goes by: the options of a call, then those in the model's own files."""
    return GenerationOptions.resolve(
        options.generate, config=model.config.to_dict(), generation_config=model.generation_config
    )


def written_rows(
    model: Any, batch: PackedBatch, options: WritingOptions, *, starts: bool
) -> list[list[list[int]] | InputError]:
    """The ids of each text's sequences, without padding; a NotFiniteError for a text that nothing can be written about.

    Args:
        model: that generates.
        batch: texts or prompts.
        options: of the call.
        starts: whether the start token of a decoder stands in front of the ids.
    """
    places = list(range(len(batch)))
    found: list[list[list[int]] | InputError] = [[] for _ in places]
    while places:
        part = batch if len(places) == len(batch) else _only(batch, places)
        try:
            written = model.generate(part, **options.generate, return_dict_in_generate=True)
        except NoTokenLeftError as error:
            # The others are begun anew without it: none of them is to bear its neighbour's fault.
            found[places.pop(error.prompt)] = NotFiniteError(str(error))
            continue
        rows, before = (written.sequences, 1) if starts else (written.new_tokens, 0)
        lengths = written.lengths.tolist()
        ids = [row[: length + before] for row, length in zip(rows.tolist(), lengths, strict=True)]
        copies = len(ids) // len(places)
        for number, place in enumerate(places):
            found[place] = ids[number * copies : (number + 1) * copies]
        break
    return found


def _only(batch: PackedBatch, places: list[int]) -> PackedBatch:
    """Some of the texts."""
    lengths = batch.lengths.tolist()
    edges = np.concatenate([[0], np.cumsum(lengths)])
    tokens = TokenizedTexts(
        batch.input_ids.cpu().numpy(), np.asarray(lengths, dtype=np.int32), None, edges[1:] < 0, edges[1:] < 0
    )
    return pack(tokens, np.asarray(places), batch.input_ids.device)
