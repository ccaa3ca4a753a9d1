"""A file of tuned configurations is what was written, or one typed error, whatever its bytes."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mutations import mutated, with_checksum
from tuned import H100, H200, attention_call, entry, linear_call, provenance, several, tiling

from padless.autotune.key import key_of
from padless.autotune.record import (
    LARGEST_FILE,
    MOST_ENTRIES,
    Entry,
    Record,
    RecordError,
    Tiling,
    decode,
    encode,
    read_record,
)
from padless.engine.errors import PadlessError

RECORD = Record("nvidia-h200", "attention", several())
CONTENT = encode(RECORD)


def test_what_is_written_is_read() -> None:
    assert decode(CONTENT) == RECORD
    assert decode(encode(Record("sm_90", "linear", ()))) == Record("sm_90", "linear", ())


def test_the_file_is_for_people_too() -> None:
    """One line an entry, and the names that a person looks for."""
    lines = CONTENT.decode().splitlines()
    assert lines[1] == '"schema": 1,'
    assert len([line for line in lines if line.startswith('{"key": {"bias": "none", "dtype": "bfloat16"')]) == 6
    assert json.loads(CONTENT)["entries"][0]["provenance"]["us"] == 38.25


def test_the_checksum_is_blake2b_of_canonical_json() -> None:
    """Computed a second time by other code: whatever writes a shipped file must be able to."""
    assert json.loads(with_checksum(json.loads(CONTENT))) == json.loads(CONTENT)
    assert decode(with_checksum(json.loads(CONTENT))) == RECORD


def test_an_entry_of_a_rule_was_measured_nowhere() -> None:
    unmeasured = provenance(gpu=None, multiprocessors=None, us=None, default_us=None, driver=None)
    by_rule = Entry(key_of(attention_call()), tiling(), unmeasured)
    assert decode(encode(Record("sm_90", "attention", (by_rule,)))).entries == (by_rule,)
    with pytest.raises(RecordError, match="nothing measured"):
        Record("nvidia-h200", "attention", (by_rule,))


def test_a_key_has_the_facts_that_matter_and_no_other() -> None:
    call = attention_call(lse=True, cross=True, deterministic=True)
    expected = (("bias", "none"), ("dtype", "bfloat16"), ("head_dim", 64), ("window", "full"))
    assert key_of(call) == expected
    product = linear_call(gated=True, residual=True, norm="rms_norm", dtype=torch.float16, statistics=True)
    shared = {"dtype": "float16", "hidden": 1536, "inner": 384, "epilogue": "gelu", "gated": True}
    assert dict(key_of(product)) == {**shared, "residual": True}
    # The product behind a norm has no residual, and another kernel.
    assert dict(key_of(replace(product, op="norm_linear"))) == {**shared, "norm": "rms_norm"}
    # Of an op that is not known every fact may matter.
    assert dict(key_of(replace(product, op="another"))) == {**shared, "residual": True, "norm": "rms_norm"}


def changed(*place: str | int, value: Any) -> bytes:
    """The file with another value at a place of the tree, and the checksum that belongs to it."""
    tree = json.loads(CONTENT)
    node = tree
    for name in place[:-1]:
        node = node[name]
    node[place[-1]] = value
    return with_checksum(tree)


def without(*place: str | int) -> bytes:
    tree = json.loads(CONTENT)
    node = tree
    for name in place[:-1]:
        node = node[name]
    del node[place[-1]]
    return with_checksum(tree)


FIRST = ("entries", 0)
KEY, CONFIG, FROM = (*FIRST, "key"), (*FIRST, "config"), (*FIRST, "provenance")

# fmt: off
REFUSED: dict[str, tuple[bytes, str]] = {
    "no byte": (b"", "not JSON"),
    "zeros": (bytes(5000), "not JSON"),
    "a byte order mark": (b"\xef\xbb\xbf" + CONTENT, "not JSON"),
    "UTF-16": (CONTENT.decode().encode("utf-16"), "not UTF-8"),
    "no UTF-8": (CONTENT.replace(b"H200", b"H2\xff0", 1), "not UTF-8"),
    "cut off": (CONTENT[:-4], "not JSON"),
    "more behind": (CONTENT + b"{}", "not JSON"),
    "deep lists": (b"[" * 200_000, "cannot be read|can be read"),
    "deep and whole": (b"[" * 100_000 + b"]" * 100_000, "can be read"),
    "deep in the tree": (CONTENT.replace(b'"schema": 1', b'"schema": 1, "more": ' + b"[" * 900 + b"]" * 900), "more"),
    "a huge integer": (CONTENT.replace(b"132", b"1" * 5000, 1), "can be read"),
    "NaN": (CONTENT.replace(b"38.25", b"NaN", 1), "finite"),
    "infinity": (CONTENT.replace(b"38.25", b"-Infinity", 1), "finite"),
    "a float beyond range": (changed(*FROM, "us", value=0).replace(b'"us": 0,', b'"us": 1e999,'), "can be read"),
    "a name twice": (CONTENT.replace(b'"op":', b'"op": "attention", "op":', 1), "twice"),
    "a fact twice": (CONTENT.replace(b'"head_dim": 64', b'"head_dim": 64, "head_dim": 64', 1), "twice"),
    "a list": (b"[]", "JSON object"),
    "a number": (b"1", "JSON object"),
    "schema 2": (changed("schema", value=2), "schema: expected 1, found 2"),
    "schema true": (changed("schema", value=True), "schema: expected 1, found True"),
    "schema 1.0": (changed("schema", value=1.0), "schema: expected 1, found 1.0"),
    "no schema": (without("schema"), "schema"),
    "no checksum": (without("checksum"), "checksum.*missing"),
    "a wrong checksum": (CONTENT.replace(b"38.25", b"38.26", 1), "checksum"),
    "a checksum that is a number": (json.dumps({**json.loads(CONTENT), "checksum": 12}).encode(), "checksum"),
    "a field more": (changed("more", value=1), "'more': unknown"),
    "entries as an object": (changed("entries", value={}), "entries: expected a list"),
    "an entry that is a list": (changed(*FIRST, value=[]), "entry: expected a JSON object"),
    "an entry twice": (changed("entries", 1, value=json.loads(CONTENT)["entries"][0]), "two of the same"),
    "too many entries": (changed("entries", value=json.loads(CONTENT)["entries"] * (MOST_ENTRIES // 6 + 1)), "at most"),
    "a target with a path": (changed("target", value="../x"), "target"),
    "an op with a path": (changed("op", value="a/b"), "op"),
    "an op that is null": (changed("op", value=None), "op"),
    "entries of another GPU": (changed(*FROM, "gpu", value="NVIDIA H100"), "expected those of nvidia-h200"),
    "a key with the batch": (changed(*KEY, "batch", value=8), "'batch'"),
    "a key without dtype": (without(*KEY, "dtype"), "dtype"),
    "a key that is a list": (changed(*KEY, value=[]), "key: expected a JSON object"),
    "a size that is a bool": (changed(*KEY, "head_dim", value=True), "head_dim: .* found True"),
    "a size that is a text": (changed(*KEY, "head_dim", value="64"), "head_dim: .* found '64'"),
    "a size of 0": (changed(*KEY, "head_dim", value=0), "head_dim"),
    "a size beyond int32": (changed(*KEY, "head_dim", value=2**31), "head_dim"),
    "a flag that is 1": (changed(*KEY, "gated", value=1), "'gated'"),
    "a flag that is false": (changed(*KEY, "gated", value=False), "'gated'"),
    "a lone surrogate": (changed(*KEY, "window", value="\ud800"), "window"),
    "config without warps": (without(*CONFIG, "num_warps"), "'num_warps': missing"),
    "config with code": (changed(*CONFIG, "target", value="os:system"), "'target': unknown"),
    "3 warps": (changed(*CONFIG, "num_warps", value=3), "power of two"),
    "128 warps": (changed(*CONFIG, "num_warps", value=128), "num_warps"),
    "warps as true": (changed(*CONFIG, "num_warps", value=True), "num_warps: .* found True"),
    "warps as 4.0": (changed(*CONFIG, "num_warps", value=4.0), "num_warps: .* found 4.0"),
    "no stages": (changed(*CONFIG, "num_stages", value=0), "num_stages"),
    "registers as a text": (changed(*CONFIG, "max_registers", value="255"), "max_registers"),
    "blocks as a list": (changed(*CONFIG, "blocks", value=[["BLOCK_M", 64]]), "blocks: expected a JSON object"),
    "a huge block": (changed(*CONFIG, "blocks", "BLOCK_M", value=2**21), "BLOCK_M"),
    "a negative block": (changed(*CONFIG, "blocks", "BLOCK_M", value=-1), "BLOCK_M"),
    "a block as a bool": (changed(*CONFIG, "blocks", "TMA", value=True), "TMA"),
    "a block with a strange name": (changed(*CONFIG, "blocks", "block_m\n", value=1), "block"),
    "17 blocks": (changed(*CONFIG, "blocks", value={f"B{number}": 1 for number in range(17)}), "at most 16"),
    "time 0": (changed(*FROM, "us", value=0), "us"),
    "a negative time": (changed(*FROM, "us", value=-1.0), "us"),
    "an infinite time": (changed(*FROM, "us", value=10**400), "us"),
    "a time as true": (changed(*FROM, "us", value=True), "us"),
    "half a measurement": (changed(*FROM, "default_us", value=None), "or none of them"),
    "no multiprocessors": (changed(*FROM, "multiprocessors", value=0), "multiprocessors"),
    "sm as a text": (changed(*FROM, "sm", value="90"), "sm"),
    "no version of triton": (changed(*FROM, "triton", value=""), "triton"),
    "a version of two lines": (changed(*FROM, "torch", value="2.11\n2.12"), "torch"),
    "a hash of other length": (changed(*FROM, "kernel_hash", value="abc"), "kernel_hash"),
    "a name without end": (changed(*FROM, "gpu", value="H" * 10_000), "gpu"),
}
# fmt: on


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_one_line_that_says_why(name: str) -> None:
    content, reason = REFUSED[name]
    with pytest.raises(RecordError, match=reason) as caught:
        decode(content)
    message = str(caught.value)
    assert len(message) < 400
    assert message.isprintable()
    assert isinstance(caught.value, PadlessError)


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.soak)])
def test_mutated_bytes_are_a_record_or_the_one_error(count: int) -> None:
    reasons = set()
    read = 0
    for number in range(count):
        content = mutated(CONTENT, number)
        try:
            record = decode(content)
        except RecordError as error:
            reasons.add(str(error).split(":")[0])
        else:
            assert decode(encode(record)) == record
            read += 1
    # The checks behind the checksum were reached, and files that are merely different are none to be refused.
    assert {"checksum", "schema", "key", "provenance", "entries", "num_warps", "us", "gpu"} <= reasons
    assert read > count // 100


def test_every_value_is_checked_where_it_is_made() -> None:
    """What cannot be read cannot be written either."""
    with pytest.raises(RecordError, match="num_stages"):
        Tiling((), 4, True)
    with pytest.raises(RecordError, match="order"):
        Tiling((("B", 1), ("A", 1)), 4, 2)
    with pytest.raises(RecordError, match="once"):
        Tiling((("A", 1), ("A", 1)), 4, 2)
    with pytest.raises(RecordError, match="us"):
        entry(us=float("nan"))
    with pytest.raises(RecordError, match="order"):
        replace(entry(), key=(("window", "full"), ("dtype", "float16")))
    with pytest.raises(RecordError, match="once"):
        replace(entry(), key=(("dtype", "float16"), ("dtype", "float16")))
    with pytest.raises(RecordError, match="expected those of nvidia-h200"):
        Record("nvidia-h200", "attention", (entry(device=H100),))
    with pytest.raises(RecordError, match="expected those of sm_90, found one of sm_80"):
        Record("sm_90", "attention", (entry(sm=80),))


def test_two_gpus_of_one_sm_are_two_targets() -> None:
    assert H100.sm == H200.sm
    assert H100.slug != H200.slug


def make_large(path: Path) -> None:
    with path.open("wb") as handle:
        handle.write(CONTENT)
        handle.truncate(100_000_000)


def make_loop(path: Path) -> None:
    path.symlink_to(path)


THINGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a folder": (Path.mkdir, "Is a directory"),
    "a loop of links": (make_loop, "symbolic links"),
    "100 MB": (make_large, f"at most {LARGEST_FILE:,} bytes"),
    "a pipe": (os.mkfifo, "not a regular file"),
    "nothing in it": (Path.touch, "not JSON"),
    "another op": (lambda path: path.write_bytes(encode(replace(RECORD, op="rope"))), "found rope"),
}


@pytest.mark.parametrize("name", THINGS)
def test_what_is_no_file_of_ours_is_refused(name: str, tmp_path: Path) -> None:
    make, reason = THINGS[name]
    path = tmp_path / "attention.json"
    make(path)
    with pytest.raises(RecordError, match=reason) as caught:
        read_record(path, "nvidia-h200", "attention")
    assert str(caught.value).startswith(f"{path}: ")


def test_of_a_large_file_no_more_is_read_than_a_record_has(tmp_path: Path) -> None:
    make_large(tmp_path / "attention.json")
    tracemalloc.start()
    try:
        with pytest.raises(RecordError, match="at most"):
            read_record(tmp_path / "attention.json", "nvidia-h200", "attention")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * LARGEST_FILE


def test_a_missing_file_is_no_error(tmp_path: Path) -> None:
    assert read_record(tmp_path / "no" / "attention.json", "nvidia-h200", "attention") is None
    (tmp_path / "file").touch()
    assert read_record(tmp_path / "file" / "attention.json", "nvidia-h200", "attention") is None


def test_a_link_is_followed_where_an_installer_may_have_made_it(tmp_path: Path) -> None:
    (tmp_path / "there.json").write_bytes(CONTENT)
    link = tmp_path / "attention.json"
    link.symlink_to(tmp_path / "there.json")
    assert read_record(link, "nvidia-h200", "attention") == RECORD
    with pytest.raises(RecordError, match="symbolic links"):
        read_record(link, "nvidia-h200", "attention", follow_symlinks=False)
