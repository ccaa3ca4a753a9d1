"""The first source that fits answers, says which it is, and nothing in a file is worth an error."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mutations import mutated, with_checksum
from tuned import H100, H200, KERNEL_HASH, TRITON, attention_call, entry, gpu, linear_call, several, tiling

from padless.autotune.device import Device, identify
from padless.autotune.key import key_of
from padless.autotune.lookup import DEFAULT, USER_CACHE, Answer, Lookup, process_lookup
from padless.autotune.record import Entry, Record, RecordError, Tiling, decode, encode
from padless.autotune.store import Store
from padless.engine.contract import Call
from padless.kernels import attention, linear
from padless.kernels.launch import Config

CALL = attention_call()
DEFAULT_CONFIG = attention.default_config(CALL)


class Home:
    """A user's cache and what is shipped, in folders of a test's own."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "cache")
        self.shipped = folder / "configs"
        self.lookup = Lookup(self.store, self.shipped)

    def ship(self, target: str, *entries: Entry, op: str = "attention") -> Path:
        path = self.shipped / target / f"{op}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(Record(target, op, entries)))
        return path

    def keep(self, *entries: Entry, device: Device = H200) -> Path:
        assert self.store.keep(device.slug, "attention", entries)
        path = self.store.path(device.slug, "attention")
        assert path is not None
        return path

    def find(self, call: Call = CALL, device: Device = H200, **changes: Any) -> Answer[Config]:
        facts = {"triton": TRITON, "kernel_hash": lambda: KERNEL_HASH} | changes
        return self.lookup.find(call, device, attention.CANDIDATES, DEFAULT_CONFIG, **facts)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture(autouse=True)
def hear_everything(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.DEBUG, logger="padless"):
        yield


def the_line(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("padless", "WARNING")
    assert "\n" not in record.getMessage()
    return record.getMessage()


def test_the_order_of_the_sources(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    assert home.find() == Answer(DEFAULT_CONFIG, DEFAULT)
    shipped = home.ship("sm_90", entry(config=tiling(keys=16))), home.ship("nvidia-h200", entry(config=tiling(keys=32)))
    users = home.keep(entry(config=tiling(keys=128)))
    for source, keys, path in (
        (USER_CACHE, 128, users), ("shipped nvidia-h200", 32, shipped[1]), ("shipped sm_90", 16, shipped[0]),
    ):  # fmt: skip
        home.lookup.forget()
        answer = home.find()
        assert (answer.source, answer.config["BLOCK_N"]) == (source, keys)
        assert answer.entry is not None
        assert answer.entry.tiling == tiling(keys=keys)
        path.unlink()
    home.lookup.forget()
    assert home.find().source == DEFAULT
    assert not caplog.records


def test_the_candidate_itself_is_handed_out(home: Home) -> None:
    home.keep(entry())
    assert any(home.find().config is candidate for candidate in attention.CANDIDATES)


def test_products_are_told_apart_by_their_facts(tmp_path: Path) -> None:
    """The order of a configuration's blocks means nothing; the candidates are those of the op."""
    home = Home(tmp_path)
    wanted = linear.CANDIDATES[5]
    plain = Tiling(tuple(sorted(wanted.blocks)), wanted.num_warps, wanted.num_stages, wanted.max_registers)
    home.ship("nvidia-h200", entry(linear_call(gated=True), plain), op="linear")
    for facts, source in (
        ({"gated": True}, "shipped nvidia-h200"), ({}, DEFAULT), ({"gated": True, "residual": True}, DEFAULT),
        ({"gated": True, "inner": 768}, DEFAULT), ({"gated": True, "epilogue": "silu"}, DEFAULT),
        ({"gated": True, "statistics": True}, "shipped nvidia-h200"),
    ):  # fmt: skip
        call = linear_call(**facts)
        default = linear.default_config(call)
        answer = home.lookup.find(
            call, H200, linear.CANDIDATES, default, triton=TRITON, kernel_hash=lambda: KERNEL_HASH
        )  # fmt: skip
        assert (answer.source, answer.config) == (source, default if source == DEFAULT else wanted)
    assert home.lookup.counts() == {"shipped nvidia-h200": 2, DEFAULT: 4}


@pytest.mark.parametrize(
    "other",
    [
        {"device": H100},
        {"device": replace(H200, multiprocessors=114)},
        {"device": replace(H200, sm=100)},
        {"device": gpu("NVIDIA-H200")},  # another name in the same folder
        {"triton": "3.7.0"},
        {"kernel_hash": lambda: "f" * 16},
        {"kernel_hash": lambda: None},
    ],
)
def test_the_users_entries_are_of_one_gpu_one_triton_and_one_source(
    other: dict[str, Any], home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    home.keep(entry())
    assert home.find().source == USER_CACHE
    assert home.find(**other).source == DEFAULT or "kernel_hash" in other
    home.lookup.forget()
    assert home.find(**other).source == DEFAULT
    assert not caplog.records


def test_two_gpus_of_one_sm_do_not_share(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    """Neither what the user measured nor what was shipped; nor does a file that was copied to the other's folder."""
    home.keep(entry(config=tiling(keys=128)))
    shipped = home.ship("nvidia-h200", entry(config=tiling(keys=32)))
    assert home.find().source == USER_CACHE
    assert home.find(device=H100).source == DEFAULT
    home.keep(entry(config=tiling(keys=16), device=H100), device=H100)
    home.lookup.forget()
    assert [home.find(device=device).config["BLOCK_N"] for device in (H100, H200)] == [16, 128]
    assert home.find(device=replace(H200, multiprocessors=66)).source == DEFAULT
    assert not caplog.records

    users = home.store.path(H200.slug, "attention")
    assert users is not None
    shutil.copy(users, users.parent.parent / H100.slug)
    (shipped.parent.parent / H100.slug).mkdir()
    shutil.copy(shipped, shipped.parent.parent / H100.slug)
    home.lookup.forget()
    assert home.find(device=H100).source == DEFAULT
    assert ["expected attention for nvidia-h100" in line.getMessage() for line in caplog.records] == [True, True]


def test_a_shipped_entry_outlives_versions(home: Home) -> None:
    home.ship("nvidia-h200", entry(triton="3.5.0", kernel_hash="f" * 16, torch="2.9.0", driver=None))
    assert home.find().source == "shipped nvidia-h200"


def test_the_hash_of_a_source_is_asked_only_where_it_decides(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    asked = []
    home.keep(entry())
    home.find(attention_call(head_dim=96), kernel_hash=lambda: asked.append(1))
    assert not asked
    assert home.find(kernel_hash=lambda: asked.append(1) or KERNEL_HASH).source == USER_CACHE
    assert asked == [1]
    home.lookup.forget()
    assert home.find(kernel_hash=lambda: str(1 // 0)).source == DEFAULT
    assert "the kernel's source has no hash (ZeroDivisionError)" in the_line(caplog)


@pytest.mark.parametrize("place", [USER_CACHE, "shipped nvidia-h200", "shipped sm_90"])
@pytest.mark.parametrize(
    "poison",
    [tiling(rows=4096), tiling(keys=8), tiling(warps=64), tiling(stages=32), Tiling((), 8, 2),
     replace(tiling(), max_registers=None), Tiling((*tiling().blocks, ("ZZ", 1)), 8, 2, 255)],
)  # fmt: skip
def test_a_configuration_that_is_no_candidate_is_refused(
    place: str, poison: Tiling, home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    poisoned = entry(config=poison)
    home.keep(poisoned) if place == USER_CACHE else home.ship(place.removeprefix("shipped "), poisoned)
    assert home.find() == Answer(DEFAULT_CONFIG, DEFAULT)
    assert f"{place}, attention: Tiling(" in the_line(caplog)
    assert "is none of the kernel's candidates" in the_line(caplog)
    home.find()
    assert len(caplog.records) == 1


def test_what_is_refused_leaves_its_place_to_the_next_source(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    home.keep(entry(config=tiling(rows=4096)))
    home.ship("nvidia-h200", entry())
    assert home.find().source == "shipped nvidia-h200"
    assert the_line(caplog)


def changed(path: Path, **changes: Any) -> bytes:
    return with_checksum({**json.loads(path.read_bytes()), **changes})


def test_shipped_files_that_do_not_fit(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong checksum, schema or key, another target, two answers to one question: each a miss and one line."""
    path = home.ship("nvidia-h200", entry())
    whole = path.read_bytes()
    two = Record("nvidia-h200", "attention", (entry(), entry(config=tiling(keys=32), triton="3.7.0")))
    wrong_key = json.loads(whole)["entries"]
    wrong_key[0]["key"]["tokens"] = 4096
    for content, reason in (
        (whole.replace(b"38.25", b"18.25"), "checksum: is not that of the content"),
        (changed(path, schema=2), "schema: expected 1, found 2"),
        (changed(path, entries=wrong_key), "found 'tokens'"),
        (changed(path, op="rope"), "expected attention for nvidia-h200, found rope"),
        (encode(Record("sm_90", "attention", (entry(),))), "found attention for sm_90"),
        (encode(two), "2 configurations for one call"),
        (b"", "not JSON"),
    ):
        path.write_bytes(content)
        home.lookup.forget()
        caplog.clear()
        assert home.find() == Answer(DEFAULT_CONFIG, DEFAULT)
        assert reason in the_line(caplog)
        assert "nvidia-h200" in the_line(caplog)
    # Not a doubt, but an entry for another call.
    path.write_bytes(encode(Record("nvidia-h200", "attention", (entry(attention_call(head_dim=96)),))))
    home.lookup.forget()
    caplog.clear()
    assert home.find().source == DEFAULT
    assert not caplog.records


@pytest.mark.parametrize("place", ["user", "shipped"])
@pytest.mark.parametrize("count", [250, pytest.param(5_000, marks=pytest.mark.soak)])
def test_mutated_files(place: str, count: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No error; each doubt a miss with exactly one line; and what answers without a line is a whole file's own word."""
    home = Home(tmp_path)
    entries = several() if place == "user" else several()[:4]
    path = home.keep(*entries) if place == "user" else home.ship("nvidia-h200", *entries)
    whole = path.read_bytes()
    outcomes = {"doubt": 0, "hit": 0, "miss": 0}
    for number in range(count):
        content = mutated(whole, number if place == "user" else 1_000_000 + number)
        path.write_bytes(content)
        home.lookup.forget()
        caplog.clear()
        answer = home.find()
        if answer.source != DEFAULT:
            outcome = "hit"
            assert not caplog.records
            assert answer.entry in decode(content).entries
            assert answer.entry is not None
            assert answer.entry.key == key_of(CALL)
            assert any(answer.config is candidate for candidate in attention.CANDIDATES)
        elif caplog.records:
            outcome = "doubt"
            assert the_line(caplog).startswith("tuned configurations: ")
        else:
            outcome = "miss"
            assert not [found for found in decode(content).entries if fits(found, place)]
        outcomes[outcome] += 1
        assert answer.config is DEFAULT_CONFIG or outcome == "hit"
    assert outcomes["doubt"] > count * 0.8, outcomes
    assert min(outcomes.values()) > 0, outcomes


def fits(found: Entry, place: str) -> bool:
    """By the words of the contract, once more."""
    origin = found.provenance
    same_gpu = (origin.gpu, origin.sm, origin.multiprocessors) == ("NVIDIA H200", 90, 132)
    same_code = (origin.triton, origin.kernel_hash) == (TRITON, KERNEL_HASH)
    return found.key == key_of(CALL) and same_gpu and (same_code or place == "shipped")


def test_a_mutated_file_is_no_error_even_where_its_checksum_is_right(home: Home) -> None:
    """The mutations reach behind the checksum: among those refused are many whose checksum is that of the content."""
    reasons = []
    for number in range(200):
        try:
            decode(mutated(encode(Record("nvidia-h200", "attention", several())), number))
        except RecordError as error:
            reasons.append(str(error))
    assert len([reason for reason in reasons if "checksum" not in reason and "JSON" not in reason]) > 40


def test_nothing_is_read_twice(home: Home) -> None:
    """One look at each file of an op, however many calls; none for a call that was answered; all again when told so."""
    home.keep(*several())
    home.ship("sm_90", entry(attention_call(head_dim=256)))
    opened = []
    listening = threading.Event()

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        if listening.is_set() and (event.startswith("os.") or event == "open"):
            opened.append(os.path.basename(str(arguments[0])))

    sys.addaudithook(listen)  # for the rest of the process: there is no way to take it back
    listening.set()
    try:
        assert home.find().source == USER_CACHE
        # Python's `open` and the opener inside it are two events.
        assert opened == ["attention.json"] * 2
        assert home.find(attention_call(head_dim=512)).source == DEFAULT
        assert home.find(attention_call(head_dim=256)).source == "shipped sm_90"
        asked = len(opened)
        assert asked == 6  # the user's, the GPU's (there is none) and the compute capability's
        for _ in range(1000):
            for head_dim in (64, 96, 128, 256, 512, 80):
                home.find(attention_call(head_dim=head_dim))
        assert len(opened) == asked
        shutil.rmtree(home.shipped)
        shutil.rmtree(home.store.folder or "")
        opened.clear()
        assert home.find().source == USER_CACHE
        assert not opened
        home.lookup.forget()
        assert home.find().source == DEFAULT
        assert opened == ["attention.json"] * 6
    finally:
        listening.clear()


def test_a_default_is_the_callers_of_this_very_call(home: Home) -> None:
    """It may depend on more than the key, such as whether operands are aligned."""
    for default in (DEFAULT_CONFIG, attention.CANDIDATES[0]):
        answer = home.lookup.find(
            CALL, H200, attention.CANDIDATES, default, triton=TRITON, kernel_hash=lambda: KERNEL_HASH
        )  # fmt: skip
        assert answer.config is default


def test_candidates_of_two_kernels_of_one_op_are_not_mixed_up(home: Home) -> None:
    home.keep(entry())
    assert home.find().source == USER_CACHE
    few = (attention.CANDIDATES[0],)
    answer = home.lookup.find(
        CALL, H200, few, few[0], triton=TRITON, kernel_hash=lambda: KERNEL_HASH
    )  # fmt: skip
    assert answer.source == DEFAULT


def test_counts_are_of_different_calls(home: Home) -> None:
    home.keep(*several())
    for _ in range(3):
        for head_dim in (64, 96, 512):
            home.find(attention_call(head_dim=head_dim))
    assert home.lookup.counts() == {USER_CACHE: 2, DEFAULT: 1}
    home.lookup.forget()
    assert home.lookup.counts() == {}


def test_of_a_cpu_nothing_is_known_and_nothing_read(home: Home) -> None:
    home.keep(entry())
    assert home.find(device=identify("cpu")).source == DEFAULT
    assert home.lookup.counts() == {}


def test_a_gpu_without_compute_capability(home: Home) -> None:
    """Of another maker: its own folder, and no other."""
    device = gpu("AMD Instinct MI300X", None, 304)
    home.keep(entry(device=device), device=device)
    assert home.find(device=device).source == USER_CACHE
    assert home.find(device=replace(device, multiprocessors=80)).source == DEFAULT


def test_threads_ask_at_once(home: Home) -> None:
    home.keep(*several())
    start = threading.Barrier(8)
    answers: list[Answer[Config]] = []

    def ask() -> None:
        start.wait()
        answers.append(home.find())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.source for answer in answers} == {USER_CACHE}
    assert home.lookup.counts() == {USER_CACHE: 1}


def test_an_op_that_is_no_name_is_a_miss(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    assert home.find(replace(CALL, op="../attention")).source == DEFAULT
    assert "op: expected" in the_line(caplog)


def test_a_folder_others_may_write_to_is_not_read(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    path = home.keep(entry())
    path.parent.chmod(0o777)
    assert home.find().source == DEFAULT
    assert "others may write to" in the_line(caplog)


def test_what_could_not_be_written_is_found_all_the_same(home: Home, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file")
    lookup = Lookup(store, home.shipped)
    assert not store.keep(H200.slug, "attention", [entry()])
    answer = lookup.find(
        CALL, H200, attention.CANDIDATES, DEFAULT_CONFIG, triton=TRITON, kernel_hash=lambda: KERNEL_HASH
    )  # fmt: skip
    assert answer.source == USER_CACHE


def test_the_process_has_one_lookup_with_the_environments_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PADLESS_CACHE", str(tmp_path))
    process_lookup.cache_clear()
    try:
        assert process_lookup() is process_lookup()
        Store(tmp_path).keep(H200.slug, "attention", [entry()])
        answer = process_lookup().find(
            CALL, H200, attention.CANDIDATES, DEFAULT_CONFIG, triton=TRITON, kernel_hash=lambda: KERNEL_HASH
        )  # fmt: skip
        assert answer.source == USER_CACHE
    finally:
        process_lookup.cache_clear()


def test_every_shipped_file_is_whole_and_of_its_place() -> None:
    """Those of the repository, where there are any."""
    folder = Path(linear.__file__).parents[1] / "autotune" / "configs"
    for path in folder.rglob("*.json"):
        record = decode(path.read_bytes())
        assert (record.target, record.op) == (path.parent.name, path.stem)
