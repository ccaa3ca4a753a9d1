"""Lone surrogates: the one thing in a str that the `tokenizers` library refuses, and with it the whole batch."""

from __future__ import annotations

import re

__all__ = ["has_surrogate", "without_surrogates"]

SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
SURROGATE = re.compile("[\ud800-\udfff]")

# Characters looked at in one go: bounds the memory, not the result.
STRETCH = 2**20


def has_surrogate(text: str) -> bool:
    """Whether `text` holds a surrogate, which no UTF-8 text can."""
    if text.isascii():
        return False
    for start in range(0, len(text), STRETCH):
        # Encoding is many times faster than a search.
        try:
            text[start : start + STRETCH].encode()
        except UnicodeEncodeError:
            return True
    return False


def without_surrogates(text: str) -> str:
    """Pairs become the character they stand for, lone ones U+FFFD."""
    if not has_surrogate(text):
        return text
    joined = SURROGATE_PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
    return SURROGATE.sub("\ufffd", joined)
