"""Machine code that an earlier process compiled, in the user's cache: `llvm/<what it depends on>/<kernel>.o`.

A kernel takes up to half a second to write and compile, and a hundredth of that to read. What stands in a file is taken
only if its sum is right and no other user could have put it there; whatever else is found, or cannot be read or
written, costs a compilation and nothing more.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ...autotune.user_cache import cache_folder, check_private, make_private, replace_file

__all__ = ["MachineCode", "keep", "kept"]

log = logging.getLogger("padless")

MOST_BYTES = 1 << 24
"""Kernels are some ten thousand; what is larger is none of ours."""


@dataclass(frozen=True)
class MachineCode:
    """An object file with one function.

    Attributes:
        function: its name.
        parameters: "pointer", "integer" or "number", in order.
        content: the file, in the system's format.
    """

    function: str
    parameters: tuple[str, ...]
    content: bytes


def kept(kernel: str, depends_on: str) -> MachineCode | None:
    """What was kept under this name; None where there is nothing to be trusted.

    Args:
        kernel: the function that wrote it, with its arguments.
        depends_on: the compiler and the CPU; the sources that write kernels are added here.
    """
    path = _path(kernel, depends_on)
    if path is None:
        return None
    root, path = path
    try:
        check_private(root, path.parent)
        if path.is_symlink() or path.stat().st_size > MOST_BYTES:
            return None
        digest, _, summed = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if digest != _digest(summed):
        return None
    head, _, content = summed.partition(b"\n")
    facts = json.loads(head)
    return MachineCode(facts["function"], tuple(facts["parameters"]), content) if facts["kernel"] == kernel else None


def keep(kernel: str, depends_on: str, code: MachineCode) -> None:
    """Leave it for processes to come, if the disk lets us; arguments as `kept`."""
    path = _path(kernel, depends_on)
    if path is None:
        return
    root, path = path
    facts = {"kernel": kernel, "function": code.function, "parameters": code.parameters}
    summed = json.dumps(facts).encode() + b"\n" + code.content
    try:
        make_private(root, path.parent)
        replace_file(path, _digest(summed) + b"\n" + summed)
    except OSError as error:
        log.debug("%s: cannot be kept: %s", path, error)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _path(kernel: str, depends_on: str) -> tuple[Path, Path] | None:
    """The cache and the kernel's file in it."""
    root, sources = cache_folder(), _sources()
    if root is None or sources is None:
        return None
    folder = hashlib.sha256(f"{sources} {depends_on}".encode()).hexdigest()[:16]
    return root, root / "llvm" / folder / f"{hashlib.sha256(kernel.encode()).hexdigest()[:16]}.o"


@cache
def _sources() -> str | None:
    """A hash of all that writes kernels; None where it cannot be read, as in an archive."""
    found = hashlib.sha256()
    for path in _files():
        try:
            found.update(path.read_bytes())
        except OSError:
            return None
    return found.hexdigest()


def _files() -> list[Path]:
    return sorted(Path(__file__).parent.glob("*.py"))
