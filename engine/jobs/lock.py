"""One job at a time in an output folder: a lock that ends with the process that holds it, however it ends."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from ..errors import JobError
from .durable import writing
from .layout import LOCK

try:
    import fcntl
except ImportError:  # Windows: two jobs on one folder are then the user's to avoid
    fcntl = None

__all__ = ["FolderLock"]

# A network file system may have no locks; a job must still run there.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FolderLock:
    """Holds the lock of an output folder while used as a context manager.

    The kernel drops the lock when the process ends, so a lock file that a killed job has left locks nobody out.

    Args:
        folder: the output folder, which must exist.

    Raises:
        JobError: another process holds it, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._descriptor: int | None = None

    def __enter__(self) -> FolderLock:
        while self._descriptor is None:
            with writing(self._path):
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                self._lock(descriptor)
                # The former holder removes the file at its end; a lock on a removed file locks nobody out.
                if self._is_still_there(descriptor):
                    self._descriptor = descriptor
            finally:
                if self._descriptor is None:
                    os.close(descriptor)
        with suppress(OSError):  # for people only
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        return self

    @property
    def descriptor(self) -> int | None:
        """To be handed to the processes that write for this one: the lock is held until the last of them has ended."""
        return self._descriptor if fcntl is not None else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._descriptor is not None
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None

    def _lock(self, descriptor: int) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
            who = f"process {holder}" if holder else "another process"
            raise JobError(f"{self._path.parent}: {who} is writing there, expected one job at a time") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise JobError(f"{self._path}: cannot be locked ({error.strerror})") from error

    def _is_still_there(self, descriptor: int) -> bool:
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(descriptor))
