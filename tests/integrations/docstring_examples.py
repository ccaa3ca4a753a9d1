"""The examples in transformers' docstrings of the classes that padless accelerates, and a place where they run.

The examples load models of the hub by name. They run in a folder that holds, under each of those names, a small model
of the class with seeded weights and a tokenizer of letters: transformers looks for a folder of that name first, so the
examples are run as they are written.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import string
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerated import CLASSES, T5Class, untouched
from parity_models import ModelClass
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import padless

ADDED = "model = padless.accelerate(model)\n"
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "<mask>",
}
SENTINELS = ["</s>", "<extra_id_0>", "<extra_id_1>", "<extra_id_2>"]
LETTERS = [*string.ascii_letters, *string.digits, *string.punctuation]
MASKED_WORD = "Paris"
"""One token, as it is in the real vocabularies: it stands where another example text has the mask."""

VOCABULARY = [*SPECIAL.values(), *SENTINELS, *LETTERS, *(f"##{letter}" for letter in LETTERS), MASKED_WORD]
END = VOCABULARY.index("</s>")


@dataclass(frozen=True)
class Example:
    """One docstring's lines of code; several loads of a model may be among them."""

    item: ModelClass
    statements: tuple[str, ...]

    def __str__(self) -> str:
        return self.item.name

    @property
    def hub_names(self) -> set[str]:
        """The models it loads."""
        return set(re.findall(r"from_pretrained\(\s*\"([^\"]+)\"", "".join(self.statements)))

    def with_the_line(self) -> tuple[str, ...]:
        """The same, with one line behind each load of a model."""
        found: list[str] = []
        for statement in self.statements:
            found.append(statement)
            if re.match(r"model = \w+\.from_pretrained\(", statement):
                found.append(ADDED)
        return tuple(found)


@dataclass(frozen=True)
class Left:
    """What an example left behind: variables, values of expressions, and what it printed."""

    variables: dict[str, Any]
    values: list[Any]
    printed: str


def examples() -> list[Example]:
    """Those of the installed transformers, in the order of the classes; not all have one."""
    parser, found = doctest.DocTestParser(), []
    for item in CLASSES:
        if not (isinstance(item, T5Class) and not item.scaled):
            statements = tuple(one.source for one in parser.get_examples(item.theirs.forward.__doc__ or ""))
            found += [Example(item, statements)] if statements else []
    return found


def furnish(example: Example, root: Path) -> None:
    """Put a small model and a tokenizer under every name that the example loads."""
    item = example.item
    sizes: dict[str, Any] = {"vocab_size": len(VOCABULARY), "eos_token_id": END, "pad_token_id": 0}
    if item.family == "mt5":
        sizes |= {"decoder_start_token_id": 0}
    else:
        sizes |= {"max_position_embeddings": 256}
    if item.family == "modernbert":
        sizes |= {"bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 3}
    fields = {name: value for name, value in sizes.items() if not (name in T5_OWN and isinstance(item, T5Class))}
    model = untouched(item, attention=None, **fields)
    if item.kind == "ForNextSentencePrediction":
        with torch.no_grad():  # the example asserts what a trained model would answer
            model.cls.seq_relationship.bias += torch.tensor([-9.0, 9.0])
    for name in example.hub_names:
        model.save_pretrained(root / name)
        _tokenizer(item).save_pretrained(root / name)


T5_OWN = ("decoder_start_token_id",)
"""What `untouched` says of T5 itself."""


def run(statements: tuple[str, ...], folder: Path) -> Left:
    """Execute the statements one after the other in a folder, and keep what their expressions are."""
    variables: dict[str, Any] = {"padless": padless}
    values: list[Any] = []
    printed = io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(printed),
        torch.random.fork_rng(),
        warnings.catch_warnings(action="ignore"),  # transformers' advice on lengths
    ):
        torch.manual_seed(1)
        for statement in statements:
            try:
                code = compile(statement, "<example>", "eval")
            except SyntaxError:
                exec(compile(statement, "<example>", "exec"), variables)
            else:
                values.append(eval(code, variables))
    return Left(
        {name: value for name, value in variables.items() if name != "__builtins__"}, values, printed.getvalue()
    )


def _tokenizer(item: ModelClass) -> Any:
    tokens = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(tokens, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {**SPECIAL, "additional_special_tokens": SENTINELS[1:]}
    if item.family == "mt5":
        template = processors.TemplateProcessing(
            single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", tokens["</s>"])]
        )
        names |= {"eos_token": "</s>", "model_input_names": ["input_ids", "attention_mask"]}
    else:
        ends = [(token, tokens[token]) for token in ("[CLS]", "[SEP]")]
        template = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
        )
        inputs = ["input_ids", "attention_mask"]
        names |= {"model_input_names": inputs if item.family == "modernbert" else [*inputs, "token_type_ids"]}
    tokenizer.post_processor = template
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
