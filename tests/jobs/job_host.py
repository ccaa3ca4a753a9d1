"""A process that has torch and a model loaded and runs every job in a fork of itself: a start takes milliseconds.

    python job_host.py MODEL

Reads a request a line on stdin, JSON: `inputs`, `output`, `complaint` (a file for the error's line), and, if wanted,
`rows_per_shard`, `threads`, `file_limit` (RLIMIT_FSIZE, bytes), `disk` (bytes of a file system of its own under
`output`), `rescue` (where to copy that to before it vanishes), `kill_at` (end by SIGKILL before the so-manieth time a
name in `output` is touched), `kill_after` (seconds) and `signal`, `no_privileges` (give up those of root), `devices`
(so many CPU workers, the job in a session of its own, the class of an error before its line), `kill_worker_at` (end one
of them by SIGKILL once so many shards are committed). Answers with the fork's process id, and at its end with its exit
status, negative for a signal.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import multiprocessing.util
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from tqdm import tqdm

import padless
import padless.engine.jobs.shard_run
from padless.engine.jobs.devices import find_devices
from padless.engine.jobs.embedding import EmbeddingTask
from padless.engine.jobs.factories import EmbeddingJob
from padless.engine.jobs.manifest import ShardRecord
from padless.engine.jobs.report import Report
from padless.engine.jobs.run import run_job, run_job_on
from padless.engine.jobs.stop import Terminated, clean_stop

TOUCHING = {"open", "os.rename", "os.remove", "os.mkdir", "os.truncate", "os.listdir", "os.scandir"}
NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000
NO_NAMESPACES = 77


def main(model: str) -> None:
    """Serve until stdin ends."""
    torch.set_num_threads(1)  # threads would not live on in a fork
    # Bars have a lock that forks share: one that is killed while it holds it would stop all others for good.
    tqdm.monitor_interval = 0
    tqdm.set_lock(threading.RLock())
    # Imports pandas, where there is one, which each fork would otherwise do: most of what a small job costs.
    pa.array([0])
    task = EmbeddingTask(padless.load(model, device="cpu", dtype="float32"))
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _fork(task, model, request)
        print(pid, flush=True)
        if "kill_after" in request:
            time.sleep(request["kill_after"])
            os.kill(pid, request["signal"])  # a zombie at the least: nobody has waited for it yet
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _fork(task: EmbeddingTask, model: str, request: dict[str, Any]) -> None:
    code = 1
    try:
        code = _run(task, model, request)
    except Exception:
        traceback.print_exc()
    except KeyboardInterrupt as error:
        code = 143 if isinstance(error, Terminated) else 130
    finally:
        os._exit(code)


def _run(task: EmbeddingTask, model: str, request: dict[str, Any]) -> int:
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
            _job(task, model, request)
    except padless.PadlessError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        name = f"{type(error).__name__}: " if "devices" in request else ""
        os.write(complaint, f"{name}{error}\n".encode())
        return 2
    finally:
        if size:
            shutil.copytree(output, request["rescue"])
    return 0


def _job(task: EmbeddingTask, model: str, request: dict[str, Any]) -> None:
    inputs, output, rows = request["inputs"], request["output"], request.get("rows_per_shard", 1000)
    if "devices" not in request:
        run_job(task, inputs, output, rows_per_shard=rows)
        return
    os.setsid()
    multiprocessing.util.spawnv_passfds = _fork_instead
    devices, report = find_devices(f"cpu:{request['devices']}"), _KillsWorker(request.get("kill_worker_at"))
    try:
        run_job_on(EmbeddingJob(model), devices, "float32", inputs, output, rows_per_shard=rows, report=report)
    finally:
        assert not multiprocessing.active_children()


class _KillsWorker(Report):
    def __init__(self, at_shard: int | None) -> None:
        self._at_shard, self._shards = at_shard, 0

    def shard_done_on(self, shard: ShardRecord, device: str | None) -> None:
        self._shards += 1
        if self._shards == self._at_shard:
            victim = random.Random(1).choice(multiprocessing.active_children())
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGKILL)


def _fork_instead(_: bytes, arguments: Sequence[str], descriptors: Sequence[int]) -> int:
    """Start what multiprocessing has a new interpreter do, `-c` and a line, in a fork: torch is there already.

    All else is as in a new interpreter: it is told by its pipe only, and holds no other file of its parent.
    """
    pid = os.fork()
    if pid:
        return pid
    code: Any = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) not in descriptors:
                with suppress(OSError):  # that of the listing
                    os.close(int(name))
        place = list(arguments).index("-c")
        sys.argv = ["-c", *arguments[place + 2 :]]
        exec(arguments[place + 1], {})
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code or 0)


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
