"""The seed pages, read: documentation of transformers in Markdown, from which text in brackets was partly lost.

The pages are the users' specification. They are read where they lie and never copied into the repository.
"""

from __future__ import annotations

import ast
import json
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON_FENCES = ("```python", "```py")

# What the pages lost, put back: (pattern, replacement, page: how often). MASK and the sentinels stood in brackets; the
# rest of the assertion began with an angle bracket, and so did the closing fence behind it.
LOST = (
    (r"The capital of France is \.", "The capital of France is [MASK].", {"000": 1, "002": 1, "003": 1}),
    (r'"The  walks in  park"', '"The <extra_id_0> walks in <extra_id_1> park"', {"004": 1}),
    (r'" cute dog  the "', '"<extra_id_0> cute dog <extra_id_1> the <extra_id_2>"', {"004": 1}),
    (r"assert logits\[0, 0\] *$", "assert logits[0, 0] < logits[0, 1]", {"003": 1}),
)


def seeds_folder() -> Path:
    """Where the pages lie: `$PADLESS_SEEDS`, else `shared/seeds` beside the repository."""
    return Path(os.environ.get("PADLESS_SEEDS") or ROOT.parent / "shared" / "seeds")


def require_seeds() -> None:
    """Skip the module that calls this where there are no pages."""
    if not any(seeds_folder().glob("*.txt")):
        reason = f"no seed pages in {seeds_folder()} (PADLESS_SEEDS names another folder)"
        pytest.skip(reason, allow_module_level=True)


@dataclass(frozen=True)
class Block:
    """One Python example: the page it is from, its number there counted from 0, and its source without prompts."""

    page: str
    index: int
    source: str

    @property
    def imported(self) -> tuple[str, ...]:
        """What it imports from transformers, in order."""
        nodes = [n for n in ast.walk(ast.parse(self.source)) if isinstance(n, ast.ImportFrom)]
        return tuple(a.name for n in nodes if n.module == "transformers" for a in n.names)

    @property
    def subject(self) -> str:
        """What it is about: the first import that is neither a tokenizer nor a configuration."""
        return next(name for name in self.imported if not name.endswith(("Tokenizer", "Config")))

    @property
    def strings(self) -> tuple[str, ...]:
        """All its string literals."""
        return tuple(
            node.value
            for node in ast.walk(ast.parse(self.source))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )

    def __str__(self) -> str:
        return f"{self.page}-{self.index}-{self.subject}"


@cache
def pages() -> dict[str, str]:
    """{the number a page's file name begins with: its text}, as it lies there."""
    return {file.name[:3]: file.read_text(encoding="utf-8") for file in sorted(seeds_folder().glob("*.txt"))}


def restored(text: str) -> tuple[str, dict[str, int]]:
    """The text with what it lost, and {pattern: how often it was put back}."""
    counts = {}
    for pattern, replacement, _ in LOST:
        text, counts[pattern] = re.subn(pattern, replacement, text, flags=re.MULTILINE)
    return text, counts


@cache
def blocks() -> tuple[Block, ...]:
    """All Python examples of all pages, in order."""
    return tuple(
        Block(page, index, source)
        for page, text in pages().items()
        for index, source in enumerate(python_sources(restored(text)[0]))
    )


def python_sources(text: str) -> list[str]:
    """Python examples of a Markdown text, without prompts and expected output.

    An example is fenced as Python or begins with a `>>>` prompt outside of any fence. One with prompts ends at its
    fence, or before the first line that is neither prompt, continuation nor expected output: a page lost its fence.
    """
    lines = text.split("\n")
    sources: list[str] = []
    at = 0
    while at < len(lines):
        if lines[at].startswith(">>>"):
            source, at = _prompted(lines, at)
            sources.append(source)
        elif lines[at].strip() in PYTHON_FENCES and lines[at + 1].startswith(">>>"):
            source, at = _prompted(lines, at + 1)
            sources.append(source)
            at += at < len(lines) and lines[at].startswith("```")
        elif lines[at].startswith("```"):
            end = next(i for i in range(at + 1, len(lines)) if lines[i].startswith("```"))
            if lines[at].strip() in PYTHON_FENCES:
                sources.append("\n".join(lines[at + 1 : end]) + "\n")
            at = end + 1
        else:
            at += 1
    return sources


def _prompted(lines: list[str], start: int) -> tuple[str, int]:
    """The example whose first prompt is line `start`, and the line after it."""
    source: list[str] = []
    after_blank = True
    at = start
    while at < len(lines) and not lines[at].startswith("```"):
        line = lines[at]
        if line.startswith((">>>", "...")):
            source.append(line[4:])
        elif line.strip() and after_blank:
            break  # no output of the line before: prose
        after_blank = not line.strip()
        at += 1
    return "\n".join(source) + "\n", at


@dataclass(frozen=True)
class Parameter:
    """A documented parameter: its type as written, its default as written (None where the page names none)."""

    name: str
    type: str
    default: str | None


@dataclass(frozen=True)
class Section:
    """What a page says of one class; empty where it only names it."""

    page: str
    name: str
    text: str

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Parameters of the constructor, as the page lists them."""
        listed = self.text.partition("\n**Parameters:**\n")[2].partition("\n**Returns:**\n")[0]
        found = re.findall(r"^(\w+) \((.*?)(?:, \*optional\*)?(?:, defaults to `?(.+?)`?)?\) : ", listed, re.M)
        return tuple(Parameter(name, type_, default or None) for name, type_, default in found)

    @property
    def forward_arguments(self) -> tuple[str, ...]:
        """Names that `forward` takes, without `**kwargs`; empty for a class that has none."""
        line = re.search(rf"^forwardtransformers\.{self.name}\.forward[^\[]*(\[.*)$", self.text, re.M)
        if line is None:
            return ()
        arguments, _ = json.JSONDecoder().raw_decode(line[1])
        return tuple(argument["name"] for argument in arguments if not argument["name"].startswith("*"))

    @property
    def output_fields(self) -> dict[str, str]:
        """{field that `forward` returns: its documented shape, "" where there is none}."""
        returned = self.text.partition("or `tuple(torch.FloatTensor)`")[2]
        found = re.findall(r"^- \*\*(\w+)\*\* \((?:`[^`]*` of shape `\(([^`]*)\)`)?", returned, re.M)
        return dict(found)


@cache
def sections() -> tuple[Section, ...]:
    """One for each class that a page has a heading for; classes of outputs have none of their own name."""
    found = []
    for page, text in pages().items():
        for part in re.split(r"^## ", text, flags=re.M)[1:]:
            name = part.split("\n")[0].partition("[[")[0]
            documented = "[[transformers." in part.split("\n")[0] or "[[autodoc]]" in part
            if documented and re.fullmatch(r"\w+", name):
                found.append(Section(page, name, part))
    return tuple(found)
