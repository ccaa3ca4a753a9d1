"""The user's cache: where padless keeps what it found out or compiled on this machine, in folders of nobody else.

$PADLESS_CACHE, else $XDG_CACHE_HOME/padless, else ~/.cache/padless.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

__all__ = ["cache_folder", "check_private", "make_private", "replace_file"]


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where the cache is; None where there is no home. Nothing is created."""
    try:
        if named := environment.get("PADLESS_CACHE"):
            return Path(named).expanduser().absolute()
        base = Path(environment.get("XDG_CACHE_HOME", ""))
        # A relative one is to be ignored, says the specification that the variable is from.
        return (base if base.is_absolute() else Path("~/.cache").expanduser()) / "padless"
    except (RuntimeError, OSError):  # a user without a home, a working folder that was removed
        return None


def make_private(cache: Path, folder: Path) -> None:
    """Make a folder below the cache and what is missing above it; from the cache on for nobody but this user.

    Raises:
        PermissionError: as `check_private`.
        OSError: it cannot be made.
    """
    cache.parent.mkdir(parents=True, exist_ok=True)
    for part in _from_cache(cache, folder):
        part.mkdir(mode=0o700, exist_ok=True)
    check_private(cache, folder)


def check_private(cache: Path, folder: Path) -> None:
    """Refuse folders in which others could put files in place of ours.

    Raises:
        PermissionError: another user owns one of those from the cache on, or everybody may replace files there.
        FileNotFoundError: there is none.
    """
    for part in _from_cache(cache, folder):
        found = part.stat()
        everybody = found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX
        if everybody or found.st_uid not in (os.geteuid(), 0):
            raise PermissionError(f"others may write to {part}")


def replace_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file so that its name stands for the old content or the new one, also after a loss of power.

    A process that is killed meanwhile leaves `<name>.*.tmp` beside it.

    Args:
        path: in a folder that is there.
        content: all of it.
        mode: who may read and write it; this user if nothing is said.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".tmp")
    try:
        with open(descriptor, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
            os.fchmod(handle.fileno(), mode)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _from_cache(cache: Path, folder: Path) -> list[Path]:
    """The cache, the folders between, and `folder`."""
    between = folder.relative_to(cache).parts
    return [cache.joinpath(*between[:depth]) for depth in range(len(between) + 1)]
