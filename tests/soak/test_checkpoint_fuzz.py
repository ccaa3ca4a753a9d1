"""Thousands of spoilt headers, indexes and archives: each is refused with one typed line, or loads what is in it.

What a spoilt safetensors file holds is what the safetensors library reads from it: where padless loads a file, the
library must too, with the same values.
"""

from __future__ import annotations

import json
import random
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from padless.engine.errors import WeightsError
from padless.engine.weights import NameRules, load_weights

SHORT_AND_LONG = [500, pytest.param(10_000, marks=pytest.mark.soak)]

NUMBERS = (0, 1, -1, 3, 4, 5, 12, 15, 60, 61, 72, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 0.5, 1e308)
WORDS = ("", "F32", "F16", "BF16", "I64", "F8_E4M3", "F4", "weight", "bias", "dtype", "__metadata__", "\0", "é", "../x")
NAMES = (
    "a.safetensors",
    "b.safetensors",
    "../a.safetensors",
    "/a.safetensors",
    "model.safetensors.index.json",
    "c",
    "",
)
RAW = (b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\xff", b"\0", b" ", b"NaN", b"1e999", b"\\ud800", b"null")


def tensors() -> dict[str, torch.Tensor]:
    return {"weight": torch.arange(15.0).view(3, 5), "bias": torch.arange(3.0)}


def value(chance: random.Random, depth: int = 0) -> Any:
    """Any JSON value, preferably one that means something here."""
    kind = chance.randrange(8 if depth < 2 else 5)
    if kind < 2:
        return chance.choice(NUMBERS)
    if kind < 4:
        return chance.choice(WORDS + NAMES)
    if kind == 4:
        return chance.choice([None, True, False, {}, []])
    if kind < 7:
        return [value(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {chance.choice(WORDS + NAMES): value(chance, depth + 1) for _ in range(chance.randrange(4))}


def places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value of a JSON document."""
    found = []
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        found.append((tree, key))
        found.extend(places(tree[key]))
    return found


def change_values(document: Any, chance: random.Random) -> bytes:
    """Replace, remove, add or swap values of a JSON document."""
    for _ in range(chance.randrange(1, 4)):
        held = places(document)
        if not held:
            break
        (container, key), (other, other_key) = chance.choice(held), chance.choice(held)
        match chance.randrange(5):
            case 0:
                del container[key]
            case 1 if isinstance(container, dict):
                container[chance.choice(WORDS + NAMES)] = value(chance)
            case 2:
                container[key], other[other_key] = json.loads(json.dumps([other[other_key], container[key]]))
            case _:
                container[key] = value(chance)
    return json.dumps(document).encode()


def change_bytes(content: bytes, chance: random.Random) -> bytes:
    """Cut, insert, repeat, remove or flip bytes."""
    spoilt = bytearray(content)
    for _ in range(chance.randrange(1, 4)):
        begin = chance.randrange(len(spoilt) + 1)
        end = min(len(spoilt), begin + chance.randrange(1, 20))
        match chance.randrange(5):
            case 0:
                del spoilt[begin:]
            case 1:
                spoilt[begin:begin] = chance.choice(RAW) * chance.choice([1, 1, 1, 3_000])
            case 2:
                spoilt[begin:begin] = spoilt[begin:end]
            case 3:
                del spoilt[begin:end]
            case _:
                if begin < len(spoilt):
                    spoilt[begin] ^= 1 << chance.randrange(8)
    return bytes(spoilt)


def with_header(header: bytes, data: bytes, chance: random.Random) -> bytes:
    length = len(header)
    if chance.random() < 0.1:
        length = chance.choice([0, 1, length - 1, length + 1, length + len(data), 2**31, 2**63, 2**64 - 1])
    return struct.pack("<Q", length) + header + data


def spoilt_file(folder: Path, chance: random.Random) -> None:
    path = folder / "model.safetensors"
    save_file(tensors(), path, metadata={"format": "pt"})
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + length], content[8 + length :]
    match chance.randrange(3):
        case 0:
            content = with_header(change_values(json.loads(header), chance), data, chance)
        case 1:
            content = with_header(change_bytes(header, chance), data, chance)
        case _:
            content = change_bytes(content, chance)
    path.write_bytes(content)


def spoilt_index(folder: Path, chance: random.Random) -> None:
    save_file({"weight": tensors()["weight"]}, folder / "a.safetensors")
    save_file({"bias": tensors()["bias"]}, folder / "b.safetensors")
    document = {"metadata": {"total_size": 72}, "weight_map": {"weight": "a.safetensors", "bias": "b.safetensors"}}
    spoil = change_values if chance.random() < 0.5 else lambda found, c: change_bytes(json.dumps(found).encode(), c)
    (folder / "model.safetensors.index.json").write_bytes(spoil(document, chance))


def spoilt_archive(folder: Path, chance: random.Random) -> None:
    path = folder / "pytorch_model.bin"
    torch.save(tensors(), path)
    path.write_bytes(change_bytes(path.read_bytes(), chance))


def load(folder: Path) -> tuple[str, nn.Module]:
    """The line of the refusal, or nothing, and the model."""
    model, refusal = nn.Linear(5, 3), ""
    try:
        load_weights(model, folder, NameRules(ignored=("",)), pickled=True)
    except WeightsError as error:
        refusal = str(error)
    assert not refusal or (str(folder) in refusal and len(refusal.splitlines()) == 1)
    return refusal, model


@pytest.mark.parametrize("number", SHORT_AND_LONG)
@pytest.mark.parametrize("spoil", [spoilt_file, spoilt_index, spoilt_archive])
def test_spoilt_checkpoints(spoil: Callable[[Path, random.Random], None], number: int, tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    for seed in range(number):
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        spoil(folder, random.Random(seed))
        refusal, model = load(folder)
        seen["refused" if refusal else "loaded"] += 1
        if not refusal and spoil is spoilt_file:
            expected = load_file(folder / "model.safetensors")
            for name, values in model.state_dict().items():
                assert torch.equal(values, expected[name].float()), f"seed {seed}: {name}"
    print(f"{spoil.__name__}: {dict(seen)}")
    # The fuzzer must neither leave everything whole nor spoil everything at the first look.
    assert seen["refused"] > number // 10
    assert seen["loaded"] > number // 100


OUR_RULES = ("expected dtype, shape and data_offsets", "__metadata__: expected", "a name of more than 1,000 characters")
"""The library skips fields that the format does not define, takes null for the metadata, and has no longest name."""


def test_the_safetensors_library_refuses_what_we_refuse(tmp_path: Path) -> None:
    """The other way round: what only we refuse breaks a rule that no ordinary file breaks."""
    folder = tmp_path / "model"
    folder.mkdir()
    ours: Counter[str] = Counter()
    for seed in range(500):
        spoilt_file(folder, random.Random(seed))
        _, found, reason = load(folder)[0].partition("not a readable safetensors file (")
        if found and readable_by_the_library(folder / "model.safetensors"):
            ours[reason] += 1
    assert [reason for reason in ours if not any(rule in reason for rule in OUR_RULES)] == []


def readable_by_the_library(path: Path) -> bool:
    try:
        load_file(path)
    except (SafetensorError, ValueError, KeyError, OSError):
        return False
    return True
