"""A process that has torch and a model loaded and runs every job in a fork of itself: a start takes milliseconds.

    python job_host.py MODEL

Reads a request a line on stdin, JSON: `inputs`, `output`, `complaint` (a file for the error's line), and, if wanted,
`rows_per_shard`, `threads`, `file_limit` (RLIMIT_FSIZE, bytes), `disk` (bytes of a file system of its own under
`output`), `rescue` (where to copy that to before it vanishes), `kill_at` (end by SIGKILL before the so-manieth time a
name in `output` is touched), `kill_after` (seconds) and `signal`, `no_privileges` (give up those of root). Answers
with the fork's exit status, negative for a signal.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

import padless
import padless.engine.jobs.shard_run
from padless.engine.jobs.embedding import EmbeddingTask
from padless.engine.jobs.run import run_job
from padless.engine.jobs.stop import Terminated, clean_stop

TOUCHING = {"open", "os.rename", "os.remove", "os.mkdir", "os.truncate", "os.listdir", "os.scandir"}
NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000
NO_NAMESPACES = 77


def main(model: str) -> None:
    """Serve until stdin ends."""
    torch.set_num_threads(1)  # threads would not live on in a fork
    task = EmbeddingTask(padless.load(model, device="cpu", dtype="float32"))
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _fork(task, request)
        if "kill_after" in request:
            time.sleep(request["kill_after"])
            os.kill(pid, request["signal"])  # a zombie at the least: nobody has waited for it yet
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _fork(task: EmbeddingTask, request: dict[str, Any]) -> None:
    code = 1
    try:
        code = _run(task, request)
    except Exception:
        traceback.print_exc()
    except KeyboardInterrupt as error:
        code = 143 if isinstance(error, Terminated) else 130
    finally:
        os._exit(code)


def _run(task: EmbeddingTask, request: dict[str, Any]) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    output = Path(request["output"])
    # Opened before any of the limits below.
    complaint = os.open(request["complaint"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    if request.get("no_privileges"):
        _drop_privileges()
    if size := request.get("disk"):
        _mount(output, size)
    if limit := request.get("file_limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    torch.set_num_threads(request.get("threads", 1))
    if kill_at := request.get("kill_at"):
        _kill_at(kill_at, str(output))
    try:
        with clean_stop():
            run_job(task, request["inputs"], output, rows_per_shard=request.get("rows_per_shard", 1000))
    except padless.PadlessError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        os.write(complaint, f"{error}\n".encode())
        return 2
    finally:
        if size:
            shutil.copytree(output, request["rescue"])
    return 0


def _mount(folder: Path, size: int) -> None:
    """Put a file system of `size` bytes at `folder`, seen by this process only."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(NEW_USER | NEW_MOUNTS) != 0:
        os._exit(NO_NAMESPACES)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, f"size={size}".encode()) != 0:
        os._exit(NO_NAMESPACES)


def _drop_privileges() -> None:
    """Root without its capabilities: the permissions of files count for it."""
    libc = ctypes.CDLL(None, use_errno=True)
    version_3, header, nothing = 0x20080522, ctypes.c_uint32 * 2, (ctypes.c_uint32 * 6)()
    assert libc.capset(header(version_3, 0), nothing) == 0


def _kill_at(count: int, folder: str) -> None:
    left = count

    def count_down(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in TOUCHING and arguments and str(arguments[0]).startswith(folder):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count_down)


if __name__ == "__main__":
    main(sys.argv[1])
