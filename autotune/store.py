"""The user's own tuned configurations: one file a GPU and op, in a folder that several processes may write to at once.

`autotune/v1/<gpu slug>/<op>.json` in the user's cache. A write holds a lock from reading the old file to renaming the
new one, so that nothing that another process found is lost; a reader needs none, for the name always stands for a whole
file. Where nothing can be written, what was found lasts as long as the process, which goes on: a configuration is a
matter of speed.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from .record import MOST_ENTRIES, SCHEMA, Entry, Record, RecordError, check_names, encode, read_record
from .user_cache import check_private, make_private, replace_file

__all__ = ["Store"]

PATIENCE = 10.0
"""Seconds a write waits for those of other processes, each of which takes some milliseconds."""

ABANDONED = 3.0
"""Seconds after which a lock file that its maker should have removed is taken to be that of a process that died."""

_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

log = logging.getLogger("padless")


class Store:
    """Entries by GPU and op, kept on disk where possible; may be used by several threads."""

    def __init__(self, cache: Path | None, *, patience: float = PATIENCE) -> None:
        """Nothing is read or created before it is asked for.

        Args:
            cache: what `cache_folder` returns; None keeps everything in memory.
            patience: seconds to wait for another process' write.
        """
        self._cache = cache
        self.folder = None if cache is None else cache / "autotune" / f"v{SCHEMA}"
        self._patience = patience
        self._memory: dict[tuple[str, str], tuple[Entry, ...]] = {}
        self._lock = threading.Lock()
        self._refused = False

    def path(self, target: str, op: str) -> Path | None:
        """The file of an op on a GPU, whether or not there is one.

        Raises:
            RecordError: one of the names cannot be part of a path.
        """
        check_names(target, op)
        return None if self.folder is None else self.folder / target / f"{op}.json"

    def entries(self, target: str, op: str) -> tuple[Entry, ...]:
        """What is known, the oldest first: of the file, then what could not be written to it.

        Args:
            target: slug of the GPU's name.
            op: name of the op.

        Raises:
            RecordError: there is a file, but it is none of ours, or in a folder that others can write to. Not once
                a write was refused, which was logged.
        """
        known = self._memory.get((target, op), ())
        path = self.path(target, op)
        if path is None or self._cache is None:
            return known
        try:
            return _merged(_read(self._cache, path, target, op), known)
        except RecordError:
            if self._refused:  # which was logged; what is in memory was found by this very process
                return known
            raise

    def keep(self, target: str, op: str, entries: Sequence[Entry]) -> bool:
        """Add entries, each in place of an older one of its identity.

        Args:
            target: slug of the name of the GPU that all were measured on.
            op: name of the op.
            entries: what was found.

        Returns:
            Whether they are on disk. Otherwise they are kept in memory, which the first such call logs, and no later
            call tries the disk again.

        Raises:
            RecordError: the names cannot be part of a path, or the entries are not of this GPU: the caller's mistake.
        """
        path = self.path(target, op)
        new = Record(target, op, _merged((), entries))
        with self._lock:
            if not self._refused:
                try:
                    if path is None or self._cache is None:
                        raise OSError("there is no home folder")
                    _write(self._cache, path, new, self._patience)
                    return True
                except OSError as error:
                    self._refused = True
                    reason = f"{error.strerror}: {error.filename}" if error.filename else error.strerror or error
                    log.warning(
                        "%s: cannot be written (%s): tuned configurations last as long as this process",
                        path or "user cache", reason,
                    )  # fmt: skip
            self._memory[target, op] = _merged(self._memory.get((target, op), ()), entries)
            return False


def _write(cache: Path, path: Path, new: Record, patience: float) -> None:
    make_private(cache, path.parent)
    with _locked(path.with_suffix(".lock"), patience):
        old, doubt = (), None
        try:
            old = _read(cache, path, new.target, new.op)
        except RecordError as error:
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from None  # what cannot be read now may hold what others found
            doubt = error
        for left_behind in path.parent.glob(f"{path.name}.*.tmp"):  # by who was killed: whoever writes has the lock
            left_behind.unlink(missing_ok=True)
        replace_file(path, encode(Record(new.target, new.op, _merged(old, new.entries))))
    if doubt is not None:
        log.warning("%s; written anew", doubt)


def _merged(old: Sequence[Entry], new: Sequence[Entry]) -> tuple[Entry, ...]:
    """Both, the newer ones last and in place of the older ones of their identity; the oldest give way to too many."""
    found = {entry.identity: entry for entry in old}
    for entry in new:
        found.pop(entry.identity, None)
        found[entry.identity] = entry
    return tuple(found.values())[-MOST_ENTRIES:]


def _read(cache: Path, path: Path, target: str, op: str) -> tuple[Entry, ...]:
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            check_private(cache, path.parent)
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror or error})") from error
    record = read_record(path, target, op, follow_symlinks=False)
    return () if record is None else record.entries


@contextmanager
def _locked(path: Path, patience: float) -> Iterator[None]:
    """Hold the lock of this name; no other process on this machine does, nor another thread.

    The file stays: a process that waits has it open, and would hold the lock of a file that nobody else finds.

    Raises:
        TimeoutError: others held it all the time.
        OSError: the file cannot be made.
    """
    waits = _waits(path, patience)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        held = _flock(descriptor, waits)
        with nullcontext() if held else _made_alone(path.with_suffix(".held"), waits):
            yield
    finally:
        os.close(descriptor)


def _flock(descriptor: int, waits: Iterator[None]) -> bool:
    """Lock an open file, for as long as it is open; False where its file system has no locks."""
    for _ in waits:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            continue
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            return False
    return False


@contextmanager
def _made_alone(path: Path, waits: Iterator[None]) -> Iterator[None]:
    """The lock where there are none: a file that only one process can make, and removes.

    A process that dies leaves it, so one that does not change for `ABANDONED` seconds is removed. Should two come to
    that in the same moment, an entry may be lost; torn is none, for every write has a temporary file of its own.
    """
    seen, since = None, time.monotonic()
    descriptor = None
    for _ in waits:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            break
        except FileExistsError:
            found = _mark(path)
            if found != seen:
                seen, since = found, time.monotonic()
            elif found is not None and time.monotonic() - since > ABANDONED:
                path.unlink(missing_ok=True)
    assert descriptor is not None, "the waits end with an error"
    try:
        yield
    finally:
        if _mark(path) == _mark(descriptor):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _mark(file: Path | int) -> tuple[int, int] | None:
    """What tells a file from a later one of its name; None where there is none. Numbers alone are given out again."""
    try:
        found = os.stat(file)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _waits(path: Path, patience: float) -> Iterator[None]:
    """Nothing, again and again, some milliseconds apart.

    Raises:
        TimeoutError: `patience` seconds have passed.
    """
    end = time.monotonic() + patience
    while True:
        yield
        if time.monotonic() > end:
            raise TimeoutError(f"others held {path.name} for {patience:g} seconds")
        time.sleep(random.uniform(0.001, 0.01))
