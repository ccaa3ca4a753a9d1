"""Processes that write to a store at once, are killed at it, or find no place to write: `processes.py ROLE ARGUMENTS`.

Each prints one line of JSON about what it found; its log goes to the standard error. All but a few are forked from one
process that has imported everything (`serve`), so that many of them cost little; each opens its files by itself.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import logging
import os
import random
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from tuned import H200, KERNEL_HASH, TRITON, attention_call, entry

from padless.autotune.lookup import Lookup
from padless.autotune.record import read_record
from padless.autotune.store import Store
from padless.autotune.user_cache import cache_folder
from padless.kernels.attention import CANDIDATES, default_config

SLUG = H200.slug


def writers(cache: str, processes: str, writes: str, files: str, locks: str) -> dict[str, Any]:
    """Each of the processes writes entries of its own, in turn to each of the files; nobody waits for the others."""
    if locks == "without":
        _take_away_locks()
    children = []
    for process in range(int(processes)):
        if (child := os.fork()) == 0:
            _in_child(lambda process=process: _write(Path(cache), process, int(writes), int(files)))
        children.append(child)
    return {"statuses": [os.waitpid(child, 0)[1] for child in children]}


def _write(cache: Path, process: int, writes: int, files: int) -> None:
    store = Store(cache, patience=60)
    for number in range(writes):
        found = entry(attention_call(process * writes + number + 1))
        assert store.keep(SLUG, f"op{number % files}", [found]), "not on disk"


def killed(cache: str, wanted: str) -> dict[str, Any]:
    """A process that writes version after version of a file is killed, until `wanted` of them were in the middle of it.

    A version is 60 entries of the same time, all handed over at once: a file with two times is torn.
    """
    folder = Store(Path(cache)).folder
    assert folder is not None
    path = folder / SLUG / "attention.json"
    kills = left_behind = versions = 0
    chance = random.Random(20250117)
    while left_behind < int(wanted) and kills < 400:
        told, tell = os.pipe()
        if (child := os.fork()) == 0:
            _in_child(lambda tell=tell, first=versions + 1: _write_versions(Path(cache), tell, first))
        os.close(tell)
        seen = b""
        while seen.count(b"\n") < 2:
            seen += os.read(told, 4096)
        time.sleep(chance.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while piece := os.read(told, 65536):
            seen += piece
        os.close(told)
        kills += 1
        promised = int(seen.split(b"\n")[-2])
        record = read_record(path, SLUG, "attention")
        assert record is not None
        assert len(record.entries) == 60
        (version,) = {found.provenance.us for found in record.entries}
        assert version is not None
        assert promised <= version <= promised + 1, f"{promised} was on disk, found {version}"
        versions = int(version)
        left_behind += len(list(path.parent.glob("*.tmp"))) > 0
    assert Store(Path(cache)).keep(SLUG, "attention", [entry()])
    return {"kills": kills, "in the middle": left_behind, "files": sorted(file.name for file in path.parent.iterdir())}


def _write_versions(cache: Path, tell: int, first: int) -> None:
    store = Store(cache)
    for version in range(first, first + 100_000):
        entries = [entry(attention_call(number + 1), us=float(version)) for number in range(60)]
        assert store.keep(SLUG, "attention", entries)
        os.write(tell, b"%d\n" % version)


def tuning(*options: str) -> dict[str, Any]:
    """What a run of `padless tune` will do, with the cache of the environment: three times a write, then a lookup.

    Options: `bytes=n`, the largest file that may be written; `user=n`, who runs it; `without-locks`.
    """
    for option in options:
        name, _, value = option.partition("=")
        if name == "bytes":
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(value), int(value)))
        elif name == "user":
            os.setgroups([])
            os.setuid(int(value))
        else:
            _take_away_locks()
    store = Store(cache_folder(), patience=0.3)
    started = time.monotonic()
    kept = [store.keep(SLUG, "attention", [entry(attention_call(size))]) for size in (32, 64, 96)]
    seconds = time.monotonic() - started
    lookup = Lookup(store)
    call = attention_call()
    answer = lookup.find(
        call, H200, CANDIDATES, default_config(call), triton=TRITON, kernel_hash=lambda: KERNEL_HASH
    )  # fmt: skip
    return {"kept": kept, "source": answer.source, "seconds": seconds}


def hold(lock: str) -> dict[str, Any]:
    """Hold a lock until the input ends."""
    with open(lock, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        print("held", flush=True)
        sys.stdin.read()
    return {}


def _take_away_locks() -> None:
    """From now on the kernel answers flock as a file system without locks does (ENOLCK)."""
    load, jump, give = 0x20, 0x15, 0x06  # instructions of a seccomp filter: load a word, compare, return
    flock_of = {"x86_64": 73, "aarch64": 32}[os.uname().machine]
    steps = [(load, 0, 0, 0), (jump, 0, 1, flock_of), (give, 0, 0, 0x00050000 | 37), (give, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((38, 1, 0, 0, 0), (22, 2, ctypes.addressof(program), 0, 0)):  # no new privileges; the filter
        if libc.prctl(*map(ctypes.c_ulong, arguments)):
            raise OSError(ctypes.get_errno(), "prctl")


def _in_child(work: Callable[[], None]) -> None:
    status = 1
    try:
        work()
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def serve() -> None:
    """Fork a process for each line of input, which names its role and more, and tell its status once it has ended."""
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            _in_child(lambda line=line: _play(**json.loads(line)))
        print(os.waitpid(child, 0)[1], flush=True)


def _play(arguments: list[str], environment: dict[str, str], output: str, log: str) -> None:
    for descriptor, path in ((1, output), (2, log)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.environ.update(environment)
    print(json.dumps(ROLES[arguments[0]](*arguments[1:])), flush=True)


ROLES: dict[str, Callable[..., dict[str, Any]]] = {
    "writers": writers, "killed": killed, "tuning": tuning, "hold": hold,
}  # fmt: skip

if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    if sys.argv[1] == "serve":
        serve()
    else:
        print(json.dumps(ROLES[sys.argv[1]](*sys.argv[2:])))
