"""What both tasks that write share: their options, and sequences of a batch as rows of its texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from ..errors import OptionError
from ..generate.generate import Generated
from ..generate.options import GenerationOptions
from ..generate.rules import FOR_SAMPLING

__all__ = ["WritingOptions", "rows_of_texts", "writing_options"]


@dataclass(frozen=True)
class WritingOptions:
    """Of a call; others are those of `generate`.

    Attributes:
        return_text: give texts; the default.
        return_tensors: give `generated_token_ids`, int64 without padding, in their place.
        return_full_text: of text-generation, give the prompt too; the default.
        clean_up_tokenization_spaces: as of the tokenizer's `decode`.
        prefix: put before each input.
        truncation: of text2text-generation, cut a text to what the tokenizer's settings say; False is to what the
            model takes, if anything limits it.
        handle_long_generation: of text-generation, "hole" leaves out the beginning of a prompt that leaves too little
            room behind it.
        generate: the options of `generate`.
    """

    return_text: bool | None = None
    return_tensors: bool | None = None
    return_full_text: bool | None = None
    clean_up_tokenization_spaces: bool | None = None
    prefix: str = ""
    truncation: bool = False
    handle_long_generation: str | None = None
    generate: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.prefix, str):
            raise OptionError(f"prefix: expected a string, got {self.prefix!r}")
        if self.handle_long_generation not in (None, "hole"):
            raise OptionError(f"handle_long_generation: expected None or 'hole', got {self.handle_long_generation!r}")
        asked = [
            name for name in ("return_text", "return_tensors", "return_full_text") if getattr(self, name) is not None
        ]
        if len(asked) > 1:
            raise OptionError(f"{asked[0]}: given beside {asked[1]}, expected one or the other")


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
    generate = {**added, **merged}
    GenerationOptions.resolve(generate, config=config, generation_config=model.generation_config)
    return WritingOptions(**own, generate=generate)


def rows_of_texts(written: Generated, texts: int, rows: torch.Tensor, before: int = 0) -> Sequence[list[list[int]]]:
    """The ids of each text's sequences, without padding.

    Args:
        written: of a batch.
        texts: in the batch.
        rows: int64 `[sequences, longest]`, those of `written` that are wanted.
        before: tokens that stand in front of the new ones.
    """
    if not texts:
        return []
    assert written.lengths is not None
    ids = [row[: length + before] for row, length in zip(rows.tolist(), written.lengths.tolist(), strict=True)]
    copies = len(ids) // texts
    return [ids[start : start + copies] for start in range(0, len(ids), copies)]
