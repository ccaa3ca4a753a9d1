"""Checking sentencepiece's map of characters before the library walks it.

The map is a double array, a trie whose units hold offsets to each other, followed by the replacements. The library
trusts the offsets and ends the thread where one leads out of the array.

    4 bytes: size of the array | the array: 32-bit units | the replacements, each ended by NUL

A unit has the label of the byte that leads to it in its low 8 bits, bit 8 where a key ends here, and an offset, of
which bit 9 says that it is to be shifted by 8. A unit with the high bit set is a value: the place of a replacement.
"""

from __future__ import annotations

import base64
import json

import numpy as np
from tokenizers import Tokenizer

__all__ = ["character_maps", "check_character_map"]

LARGEST_MAP = 8 * 2**20
LONGEST_KEY = 1024
VALUE = np.uint32(1 << 31)


def character_maps(rust: Tokenizer) -> list[bytes]:
    """The maps of characters that a tokenizer normalises with."""
    if rust.normalizer is None:
        return []
    steps = [json.loads(rust.normalizer.__getstate__())]
    maps = []
    while steps:
        step = steps.pop(0)
        steps = [*step.get("normalizers", []), *steps]
        if step["type"] == "Precompiled":
            maps.append(base64.b64decode(step["precompiled_charsmap"]))
    return maps


def check_character_map(data: bytes) -> None:
    """Check that no text can lead out of a map of characters.

    Raises:
        ValueError: saying what is wrong with it.
    """
    if len(data) > LARGEST_MAP:
        raise ValueError(f"map of characters: {len(data):,} bytes, expected at most {LARGEST_MAP:,}")
    size = int.from_bytes(data[:4], "little")
    if len(data) < 4 or size % 4 or not 4 <= size <= len(data) - 4:
        raise ValueError(f"map of characters: an array of {size:,} bytes in {len(data):,}")
    units = np.frombuffer(data, dtype="<u4", count=size // 4, offset=4)
    replacements = data[4 + size :]
    try:
        replacements.decode()
    except UnicodeDecodeError:
        raise ValueError("map of characters: replacements are not UTF-8") from None
    bases = _reachable_bases(units)
    values = units[bases[:, 1][bases[:, 2] == 1]] & ~VALUE
    starts = np.frombuffer(replacements, dtype=np.uint8)
    if np.any(values >= len(replacements)) or np.any((starts[values] & 0xC0) == 0x80):
        raise ValueError("map of characters: a value leads out of the replacements")


def _reachable_bases(units: np.ndarray) -> np.ndarray:
    """int64 `[units, 3]`: each unit that a text can reach, where its children begin, and whether a key ends there."""
    places = np.arange(len(units), dtype=np.int64)
    # A child of base b under byte c stands at b ^ c and is labelled c, so that its place and label give its parent.
    inner = (units & VALUE) == 0
    labels = (units & np.uint32(0xFF)).astype(np.int64)
    children = places[inner & (labels > 0)]
    parents = children ^ labels[children]
    order = np.argsort(parents, kind="stable")
    children, parents = children[order], parents[order]
    seen = np.zeros(len(units), dtype=bool)
    frontier = np.zeros(1, dtype=np.int64)
    found = []
    for _ in range(LONGEST_KEY):
        frontier = frontier[~seen[frontier]]
        if not len(frontier):
            return np.concatenate(found)
        seen[frontier] = True
        reached = units[frontier].astype(np.int64)
        bases = frontier ^ ((reached >> 10) << ((reached & (1 << 9)) >> 6))
        if np.any((bases | 0xFF) >= len(units)):
            raise ValueError("map of characters: an offset leads out of the array")
        # The root itself ends no key.
        ends = ((reached >> 8) & 1) * (frontier > 0)
        found.append(np.stack([frontier, bases, ends], axis=1))
        first = np.searchsorted(parents, bases, side="left")
        last = np.searchsorted(parents, bases, side="right")
        counts = last - first
        starts = np.repeat(first - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        frontier = np.unique(children[starts + np.arange(counts.sum())])
    raise ValueError(f"map of characters: keys of more than {LONGEST_KEY} bytes")
