"""Files that were whole once: some bytes changed, cut off, or put elsewhere, or a value of another type in the tree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 64, 0.5, 1e308, -0.0, 10**30, -(10**4000), float("nan"), float("inf"), "", "x", "1",
    "sm_90", "nvidia-h200", "../../etc", "\ud800", "\0", "line\nbreak", "a" * 10_000, [], [[]], {}, {"": None},
)  # fmt: skip


def mutated(content: bytes, number: int) -> bytes:
    """A variant of a file; the same for the same number. Half of them keep the checksum right."""
    random = Random(number)
    if random.random() < 0.5:
        return random.choice(_OF_BYTES)(content, random)
    tree = json.loads(content)
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        _change_a_node(tree, random)
    return with_checksum(tree)


def with_checksum(tree: Any) -> bytes:
    """A tree as JSON, with the checksum that belongs to it where it has one; not by the code that is tested."""
    if isinstance(tree, dict) and "checksum" in tree:
        body = {name: value for name, value in tree.items() if name != "checksum"}
        canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
        tree = {**tree, "checksum": hashlib.blake2b(canonical.encode(), digest_size=32).hexdigest()}
    return json.dumps(tree).encode()


def _change_a_node(tree: dict[str, Any], random: Random) -> None:
    """Replace, remove, double or add one value anywhere in the tree."""
    nodes = list(_nodes(tree))
    if not nodes:
        return
    parent, name = random.choice(nodes)
    what = random.random()
    if what < 0.6:
        parent[name] = deepcopy(random.choice(STRANGE))
    elif what < 0.7:
        parent[name] = deepcopy(_value(random.choice(nodes)))
    elif what < 0.8:
        del parent[name]
    elif what < 0.9 and type(parent[name]) in (int, float):
        parent[name] += random.choice((-1, 1, 0.5))
    elif isinstance(parent, list):
        parent.append(deepcopy(parent[name]))
    else:
        parent[random.choice(("more", "batch", "BLOCK_K", name.upper()))] = deepcopy(parent[name])


def _nodes(tree: Any) -> Any:
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, child in children:
        yield tree, name
        yield from _nodes(child)


def _value(node: tuple[Any, Any]) -> Any:
    return node[0][node[1]]


def _flip(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8))):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _cut(content: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content) - 1)]


def _splice(content: bytes, random: Random) -> bytes:
    """A piece of the file once more, in another place or over what stands there; zeros, as of a page never written."""
    begin, place = random.randrange(len(content)), random.randrange(len(content))
    piece = content[begin : begin + random.randrange(1, 2000)]
    if random.random() < 0.3:
        piece = bytes(len(piece))
    return content[:place] + piece + content[place + random.choice((0, len(piece))) :]


_OF_BYTES: tuple[Callable[[bytes, Random], bytes], ...] = (_flip, _cut, _splice)
