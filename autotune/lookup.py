"""Which configuration a kernel runs with: the user's measurement, a shipped one, or the kernel's own default.

In this order, the first that fits serves:

1. "user cache": measured on this machine by `padless tune`, on a GPU of this name, compute capability and number of
   multiprocessors, with this version of Triton and this source of the kernel.
2. "shipped nvidia-h200": `configs/<gpu slug>/<op>.json`, measured on such a GPU; versions are no reason to miss.
3. "shipped sm_90": `configs/sm_90/<op>.json`, for GPUs of this compute capability that nobody has measured.
4. "default": what the kernel says where nothing was measured.

A file only ever points at one of the kernel's own candidates, and it is that candidate which is handed out: nothing
else can be compiled, whatever stands in a file. Any doubt about a file is a miss and one line in the log.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from ..engine.contract import Call
from .device import Device
from .key import Key, key_of
from .record import Entry, RecordError, read_record
from .store import Store
from .user_cache import cache_folder

__all__ = ["DEFAULT", "USER_CACHE", "Answer", "Configuration", "Lookup", "process_lookup"]

USER_CACHE = "user cache"
DEFAULT = "default"

SHIPPED = Path(__file__).resolve().parent / "configs"

log = logging.getLogger("padless")


class Configuration(Protocol):
    """What a kernel is compiled with, as `Config` of the kernels has it; see `Tiling` of `record.py` for the words."""

    @property
    def blocks(self) -> tuple[tuple[str, int], ...]: ...
    @property
    def num_warps(self) -> int: ...
    @property
    def num_stages(self) -> int: ...
    @property
    def max_registers(self) -> int | None: ...


C = TypeVar("C", bound=Configuration)


@dataclass(frozen=True)
class Answer(Generic[C]):
    """A configuration and where it comes from.

    Attributes:
        config: one of the candidates, or the default that was handed in.
        source: "user cache", "shipped nvidia-h200", "shipped sm_90" or "default".
        entry: what the source says of it, with times and versions; None of a default.
    """

    config: C
    source: str
    entry: Entry | None = None


class Lookup:
    """Answers, each found once: a file is read at most once, and not at all for calls that were asked before.

    May be used by several threads.

    Attributes:
        generation: raised by `forget` and `distrust`: what was answered before is not to be kept.
    """

    def __init__(self, store: Store | None = None, shipped: Path = SHIPPED) -> None:
        """Nothing is read before it is asked for.

        Args:
            store: the user's; None takes that of the environment, at the first call.
            shipped: the folder with a folder for each GPU and compute capability.
        """
        self.generation = 0
        self._store = store
        self._shipped = shipped
        self._lock = threading.RLock()
        self._found: dict[tuple[Any, ...], tuple[Any, Answer[Any] | None]] = {}
        self._files: dict[tuple[str, str, str], tuple[Entry, ...]] = {}
        self._counts: Counter[str] = Counter()
        self._distrusted: set[tuple[str, Key, Device]] = set()

    def find(
        self,
        call: Call,
        device: Device,
        candidates: Sequence[C],
        default: C,
        *,
        triton: str,
        kernel_hash: Callable[[], str | None],
    ) -> Answer[C]:
        """The configuration for this call.

        Args:
            call: the facts; those that a configuration may depend on are its key (`key_of`).
            device: the GPU it will run on. Of anything but a GPU nothing is known.
            candidates: all that may be handed out; the same object at every call, such as a module's `CANDIDATES`.
            default: the answer where nothing fits, which need not be a candidate.
            triton: version.
            kernel_hash: the hash of the kernel's source, asked only where the user's cache has an entry that fits
                otherwise; None where there is no source to be found.

        Returns:
            The answer. No error is raised for anything that stands in a file, or for want of one.
        """
        if device.type != "cuda":
            return Answer(default, DEFAULT)
        place = (call, device, id(candidates), triton)
        known = self._found.get(place)
        if known is None:
            with self._lock:
                known = self._found.get(place)
                if known is None:
                    found = self._search(key_of(call), call.op, device, candidates, triton, kernel_hash)
                    self._counts[DEFAULT if found is None else found.source] += 1
                    # With the candidates themselves: while they live, no others have their number.
                    known = self._found[place] = candidates, found
        return known[1] or Answer(default, DEFAULT)

    def entries(self, op: str, device: Device) -> list[tuple[str, Entry]]:
        """All that files hold for an op on a GPU, each with its source, in the order in which sources are asked."""
        targets = [(USER_CACHE, USER_CACHE, device.slug), (f"shipped {device.slug}", "shipped", device.slug)]
        if device.sm is not None:
            targets.append((f"shipped sm_{device.sm}", "shipped", f"sm_{device.sm}"))
        with self._lock:
            return [(name, entry) for name, source, target in targets for entry in self._entries(source, target, op)]

    def counts(self) -> dict[str, int]:
        """How many different calls each source has answered: "default" counts the misses, the other names hits."""
        return dict(self._counts)

    def distrust(self, call: Call, device: Device, reason: str) -> None:
        """Answer calls of this key with the default from now on: what a file says of them does not work here."""
        with self._lock:
            self._distrusted.add((call.op, key_of(call), device))
            self._found.clear()
            self.generation += 1
        self._doubt(f"{call.op}: {reason}")

    def forget(self) -> None:
        """Look at the disk again, as after writing to the store; the counts begin anew."""
        with self._lock:
            self._found.clear()
            self._files.clear()
            self._counts.clear()
            self._distrusted.clear()
            self.generation += 1

    def _search(
        self,
        key: Key,
        op: str,
        device: Device,
        candidates: Sequence[C],
        triton: str,
        kernel_hash: Callable[[], str | None],
    ) -> Answer[C] | None:
        if (op, key, device) in self._distrusted:
            return None
        for source, entries in self._sources(key, op, device, triton, kernel_hash):
            tilings = {entry.tiling for entry in entries}
            if len(tilings) > 1:
                self._doubt(f"{source}, {op}: {len(tilings)} configurations for one call, expected one")
                continue
            for entry in entries[-1:]:
                wanted = _plain(entry.tiling)
                fitting = next((candidate for candidate in candidates if _plain(candidate) == wanted), None)
                if fitting is not None:
                    return Answer(fitting, source, entry)
                self._doubt(f"{source}, {op}: {entry.tiling} is none of the kernel's candidates")
        return None

    def _sources(
        self, key: Key, op: str, device: Device, triton: str, kernel_hash: Callable[[], str | None]
    ) -> Iterator[tuple[str, list[Entry]]]:
        """Each source in its turn, with its entries for this key and GPU."""
        users = [entry for entry in self._entries(USER_CACHE, device.slug, op) if entry.key == key]
        users = [entry for entry in users if _same_gpu(entry, device) and entry.provenance.triton == triton]
        if users:
            current = self._hash(kernel_hash, op)
            yield USER_CACHE, [entry for entry in users if entry.provenance.kernel_hash == current]
        shipped = [entry for entry in self._entries("shipped", device.slug, op) if entry.key == key]
        yield f"shipped {device.slug}", [entry for entry in shipped if _same_gpu(entry, device)]
        if device.sm is not None:
            target = f"sm_{device.sm}"
            yield f"shipped {target}", [entry for entry in self._entries("shipped", target, op) if entry.key == key]

    def _entries(self, source: str, target: str, op: str) -> tuple[Entry, ...]:
        """All entries of one file, which is read once."""
        place = (source, target, op)
        if place not in self._files:
            try:
                self._files[place] = self._read(source, target, op)
            except RecordError as error:
                self._files[place] = ()
                self._doubt(f"{source}: {error}")
        return self._files[place]

    def _read(self, source: str, target: str, op: str) -> tuple[Entry, ...]:
        if source == USER_CACHE:
            if self._store is None:
                self._store = Store(cache_folder())
            return self._store.entries(target, op)
        record = read_record(self._shipped / target / f"{op}.json", target, op)
        return () if record is None else record.entries

    def _hash(self, kernel_hash: Callable[[], str | None], op: str) -> str | None:
        try:
            return kernel_hash()
        except Exception as error:  # whatever stands in the way of reading a kernel's source
            self._doubt(f"{USER_CACHE}, {op}: the kernel's source has no hash ({type(error).__name__})")
            return None

    def _doubt(self, reason: str) -> None:
        log.warning("tuned configurations: %s; not used", reason)


@functools.cache
def process_lookup() -> Lookup:
    """The one lookup of this process, which kernels ask and `padless info` and `padless tune` look at."""
    return Lookup()


def _same_gpu(entry: Entry, device: Device) -> bool:
    found = entry.provenance
    return (found.gpu, found.sm, found.multiprocessors) == (device.name, device.sm, device.multiprocessors)


def _plain(config: Configuration) -> tuple[object, ...]:
    return dict(config.blocks), config.num_warps, config.num_stages, config.max_registers
