"""Cutting very long texts before they are tokenised, without changing one id.

The `tokenizers` library truncates after it has tokenised everything: 10 MB take ten seconds and a gigabyte. A beginning
of the text gives the same first ids if it ends where the tokenizer splits whatever follows; this module finds such
places.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordPiece

__all__ = ["TextCutter"]

# Pre-tokenizers that always split at a single space between two ASCII words, looking at nothing beyond it.
SPLIT_AT_SPACE = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit", "ByteLevel", "Metaspace"}
SPLIT_FURTHER = {"Punctuation", "Digits"}
# Normalizers in which text beyond such a space has no influence on text before it.
LOCAL_NORMALIZERS = {
    *("BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled"),
    *("Prepend", "Replace", "Strip", "StripAccents"),
}

# Insides of character classes; the Chinese block is the one that has no decompositions.
WHITE_SPACE = r" \t\n\r"
LETTERS = "A-Za-z0-9"
MARKS = "\u0300-\u036f"
CHINESE = "\u4e00-\u9fff"

# Letters that make a character of their own whatever stands before or after them: no combining marks, vowel signs or
# Hangul parts, and nothing that joins what follows. A normaliser that goes character by character, as sentencepiece's
# does, treats them alone; so a space between two of them is one too.
APART = (
    r"A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0391-\u03a1\u03b1-\u03c9\u0410-\u044f\u05d0-\u05ea\u0621-\u063a\u0641-\u064a"
    r"\u0905-\u0939\u0e01-\u0e2e\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3"
)
# What ends sentences in most scripts.
SENTENCE_ENDS = r".,!?;:)\u3001\u3002\u300d\uff01\uff0c\uff1f"
# Normalizers that treat the beginning of a text in a way of its own.
LOOK_AT_THE_START = {"Prepend", "Strip"}
# Regular expressions of Replace steps that only look at white space.
BLANKS_ONLY = {" {2,}", " +", r"\s+", r"\s{2,}", r"^\s+|\s+$", r"\n", r"[\n\r\t]"}

LONGEST_RUN_KEPT = 10_000

CHARACTERS_PER_TOKEN = 8
"""Length of the first beginning tried: most languages stay below it, so that one attempt nearly always suffices."""


@dataclass(frozen=True)
class TextCutter:
    """Where a tokenizer lets its texts be cut.

    Attributes:
        boundary: matches at a position where a beginning may end.
        run: matches an endless run, of which the first `run_kept` characters give the same ids; None where no run does.
        run_kept: characters.
        rest_alike: whether what follows a boundary gives the same ids by itself as after what is before it.
    """

    boundary: re.Pattern[str]
    run: re.Pattern[str] | None = None
    run_kept: int = 0
    rest_alike: bool = False

    @classmethod
    def for_tokenizer(cls, tokenizer: Tokenizer) -> TextCutter | None:
        """The rules for `tokenizer`, or None where no safe place to cut is known and texts must be tokenised whole."""
        added = list(tokenizer.get_added_tokens_decoder().values())
        normalizers, pre_tokenizers = _steps(tokenizer.normalizer), _steps(tokenizer.pre_tokenizer)
        spellings = [text for token in added for text in _spellings(token, tokenizer)]
        if not _is_local(normalizers, pre_tokenizers) or any(re.search(r"\s", text) for text in spellings):
            return None
        if not _splits(tokenizer, " "):
            return None
        model = tokenizer.model
        bert = _bert_settings(normalizers, pre_tokenizers)
        if bert is None or not isinstance(model, WordPiece):
            alike = not any(map(_looks_at_the_start, normalizers))
            return cls(_boundary(tokenizer, normalizers, pre_tokenizers), rest_alike=alike)
        # Longer than a word may be, and than an added token whose neighbours a shortened run must not change.
        kept = max(2 * model.max_input_chars_per_word, 200)
        shortens = kept <= LONGEST_RUN_KEPT and all(map(_stands_apart, spellings))
        return cls(_bert_boundary(bert, added, spellings), _bert_run(kept) if shortens else None, kept, True)

    @staticmethod
    def first_size(max_length: int) -> int:
        """Characters of the first beginning to try for `max_length` tokens; shorter texts are not worth cutting."""
        return CHARACTERS_PER_TOKEN * max_length + 64

    def beginning(self, text: str, size: int, *, shorten_runs: bool = False) -> str:
        """At most the first `size` characters of `text`, ending where the tokenizer splits; all of a text that short.

        Its ids, without trailing special tokens, are the first ids of the whole text. It is empty where no place to end
        was found.

        Args:
            text: any text.
            size: characters to take.
            shorten_runs: also shorten endless runs (of blanks, of letters, of combining marks).
        """
        whole = size >= len(text)
        begun = text if whole else text[:size]
        if shorten_runs and self.run is not None:
            begun = self.run.sub(lambda run: run.string[run.start() : run.start() + self.run_kept], begun)
        return begun if whole else begun[: self._last_boundary(begun)]

    def stretches(self, text: str, size: int) -> Iterator[str]:
        """The text in stretches of about `size` characters whose ids, end to end, are those of the whole text.

        A stretch is longer where no place to cut was found, and the whole text where there is no `rest_alike`. Endless
        runs are shortened.
        """
        start = 0
        while start < len(text):
            longest, stop = size if self.rest_alike else len(text), 0
            while start + longest < len(text) and not stop:
                stop = self._last_boundary(text[start : start + longest])
                longest *= 2
            end = start + stop if stop else len(text)
            stretch = text[start:end]
            yield self.beginning(stretch, len(stretch), shorten_runs=True)
            start = end

    def _last_boundary(self, text: str) -> int:
        # Backwards in doubling stretches: the last boundary is nearly always within a word of the end.
        stretch = 256
        while True:
            start = max(len(text) - stretch, 0)
            last = 0
            for match in self.boundary.finditer(text, start):
                last = match.start()
            if last or not start:
                return last
            stretch *= 8


def _steps(component: Any) -> list[dict[str, Any]]:
    """The plain steps of a normalizer or pre-tokenizer, sequences flattened."""
    if component is None:
        return []

    def flatten(state: dict[str, Any]) -> list[dict[str, Any]]:
        inner = state.get("normalizers", state.get("pretokenizers"))
        return [state] if inner is None else [step for item in inner for step in flatten(item)]

    return flatten(json.loads(component.__getstate__()))


def _spellings(token: AddedToken, tokenizer: Tokenizer) -> list[str]:
    """An added token as it is searched for in the text: as it stands, or in the normalised text."""
    content = token.content
    normalizer = tokenizer.normalizer
    return [content] if normalizer is None or not token.normalized else [content, normalizer.normalize_str(content)]


def _is_local(normalizers: list[dict[str, Any]], pre_tokenizers: list[dict[str, Any]]) -> bool:
    kinds = {step["type"] for step in pre_tokenizers}
    return (
        {step["type"] for step in normalizers} <= LOCAL_NORMALIZERS
        and all(_is_harmless(step) for step in normalizers if step["type"] == "Replace")
        and bool(kinds & SPLIT_AT_SPACE)
        and kinds <= SPLIT_AT_SPACE | SPLIT_FURTHER
        and all(step.get("split", True) and step.get("use_regex", True) for step in pre_tokenizers)
    )


def _is_harmless(step: dict[str, Any]) -> bool:
    """Whether a Replace step cannot reach across a space between two letters."""
    pattern = step["pattern"]
    literal = pattern.get("String")
    return pattern.get("Regex") in BLANKS_ONLY if literal is None else not re.search(r"[^\W_]", literal)


def _looks_at_the_start(step: dict[str, Any]) -> bool:
    return step["type"] in LOOK_AT_THE_START or "^" in step.get("pattern", {}).get("Regex", "")


def _splits(tokenizer: Tokenizer, blank: str) -> bool:
    """Whether the tokenizer splits at this white space between two words, whatever its normaliser makes of it.

    The normaliser treats the character alone between letters that stand apart, so one example shows it for all.
    """
    text = f"ab{blank}cd"
    try:
        normalised = text if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str(text)
        pieces = tokenizer.pre_tokenizer.pre_tokenize_str(normalised)
    except Exception:
        return False
    return len(pieces) > 1


def _boundary(
    tokenizer: Tokenizer, normalizers: list[dict[str, Any]], pre_tokenizers: list[dict[str, Any]]
) -> re.Pattern[str]:
    """A single space between two letters; for T5 any single white space after a letter, a digit or a sentence's end.

    T5 splits at white space before it does anything else, and its Unigram model sees one word at a time.
    """
    if pre_tokenizers[0]["type"] != "WhitespaceSplit":
        return re.compile(f"(?<=[{APART}0-9]) (?=[{APART}])")
    blanks = "".join(blank for blank in " \t\n" if _splits(tokenizer, blank))
    # A Replace step may look at a full stop together with the space after it.
    ends = "" if any(step["type"] == "Replace" for step in normalizers) else SENTENCE_ENDS
    return re.compile(f"(?<=[{APART}0-9{ends}])[{blanks}](?=[{APART}0-9])")


def _bert_settings(normalizers: list[dict[str, Any]], pre_tokenizers: list[dict[str, Any]]) -> dict[str, Any] | None:
    if [step["type"] for step in pre_tokenizers] != ["BertPreTokenizer"]:
        return None
    if [step["type"] for step in normalizers if step["type"] != "Lowercase"] != ["BertNormalizer"]:
        return None
    settings = next(step for step in normalizers if step["type"] == "BertNormalizer")
    return settings if settings["clean_text"] else None


def _bert_boundary(settings: dict[str, Any], added: list[AddedToken], spellings: list[str]) -> re.Pattern[str]:
    """Before white space, and before punctuation and Chinese characters, each a word by itself.

    Characters of added tokens are left out, since a cut within "[SEP]" would change it. Where an added token must stand
    alone as a word, whether it does depends on the next character; white space is the same as the end of the text.
    """
    if any(token.single_word for token in added):
        return re.compile(f"[{WHITE_SPACE}]")
    taken = "".join(spellings)
    punctuation = re.escape("".join(sorted(set(string.punctuation) - set(taken))))
    chinese = CHINESE if settings["handle_chinese_chars"] and not re.search(f"[{CHINESE}]", taken) else ""
    return re.compile(f"[{WHITE_SPACE}{punctuation}{chinese}]")


def _bert_run(kept: int) -> re.Pattern[str]:
    """A run of more than `kept` characters that needs no more of them.

    White space and NUL give no ids. A word longer than the model takes is `[UNK]`, however long; combining marks are
    stripped or make such a word.
    """
    kinds = (WHITE_SPACE, "\0", LETTERS, MARKS)
    return re.compile("|".join(f"[{kind}]{{{kept + 1},}}" for kind in kinds))


def _stands_apart(spelling: str) -> bool:
    """Whether shortening a run cannot make, break or move this added token."""
    edge = f"[^\0{LETTERS}{MARKS}]"
    return bool(re.fullmatch(f"{edge}(.{{0,60}}{edge})?", spelling))
