"""`padless info` says of each entry on this machine whether it serves, and if not, what is in its way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tuned import H200, KERNEL_HASH, TRITON, attention_call, entry, gpu, tiling

from padless.autotune.inventory import Subject, call_of, inventory
from padless.autotune.key import key_of
from padless.autotune.lookup import Lookup
from padless.autotune.record import Entry, Record, encode
from padless.autotune.store import Store
from padless.kernels import attention

SUBJECT = Subject("attention", attention.CANDIDATES, attention.default_config, lambda: KERNEL_HASH)
OTHER = attention_call(128)


def verdicts(tmp_path: Path, users: list[Entry], shipped: dict[str, list[Entry]]) -> list[tuple[str, str]]:
    store = Store(tmp_path / "cache")
    if users:
        assert store.keep(H200.slug, "attention", users)
    for target, entries in shipped.items():
        file = tmp_path / "shipped" / target / "attention.json"
        file.parent.mkdir(parents=True)
        file.write_bytes(encode(Record(target, "attention", tuple(entries))))
    lookup = Lookup(store, tmp_path / "shipped")
    return [(item.source, item.verdict) for item in inventory(lookup, H200, [SUBJECT], TRITON)]


def test_the_first_source_serves_and_the_others_say_who_does(tmp_path: Path) -> None:
    by_rule = replace(entry().provenance, gpu=None, multiprocessors=None, us=None, default_us=None)
    found = verdicts(
        tmp_path,
        [entry()],
        {
            H200.slug: [entry(config=tiling(keys=32)), entry(OTHER)],
            "sm_90": [replace(entry(OTHER), provenance=by_rule)],
        },
    )
    assert found == [
        ("user cache", "serves"),
        ("shipped nvidia-h200", "user cache comes first"),
        ("shipped nvidia-h200", "serves"),
        ("shipped sm_90", "shipped nvidia-h200 comes first"),
    ]


@pytest.mark.parametrize(
    ("stale", "verdict"),
    [
        (entry(triton="3.5.1"), "of another triton: 3.5.1, this is 3.6.0"),
        (entry(kernel_hash="f" * 16), "of another source of the kernel"),
        (entry(device=gpu(multiprocessors=66)), "of another GPU: NVIDIA H200, 66 multiprocessors"),
        (entry(config=tiling(rows=96)), "none of the kernel's candidates"),
    ],
)
def test_what_does_not_serve_says_why(tmp_path: Path, stale: Entry, verdict: str) -> None:
    assert verdicts(tmp_path, [stale], {}) == [("user cache", verdict)]


def test_nothing_is_known_where_there_is_no_file(tmp_path: Path) -> None:
    assert verdicts(tmp_path, [], {}) == []


def test_a_key_makes_a_call_that_has_it() -> None:
    for call in (attention_call(), attention_call(96, window="sliding", bias="t5")):
        assert call_of("attention", key_of(call), H200) == call
