"""The user's cache: nothing is lost or torn, whoever writes or dies; where nothing can be written, life goes on."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tuned import H100, H200, attention_call, entry, several

from padless.autotune.record import MOST_ENTRIES, RecordError, read_record
from padless.autotune.store import Store
from padless.autotune.user_cache import cache_folder

PROCESSES = Path(__file__).with_name("processes.py")
SLUG = H200.slug

# Inside a mount namespace of its own, which needs root or a system that lets users have one.
NAMESPACE = ("unshare", "--map-root-user", "--mount", "sh", "-ec")
HAS_NAMESPACES = (
    shutil.which("unshare") is not None
    and subprocess.run([*NAMESPACE, "mount -t tmpfs none /tmp"], capture_output=True).returncode == 0
)
needs_namespace = pytest.mark.skipif(not HAS_NAMESPACES, reason="this system gives no mount namespace")


class Stage:
    """Where the parts of processes.py are played: each in a process of its own, forked from one that is ready."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = subprocess.Popen(
            [sys.executable, str(PROCESSES), "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, *arguments: object, **environment: str) -> tuple[Any, list[str]]:
        """What a part found, and its log."""
        output, log = self._folder / "output", self._folder / "log"
        self.begin(*arguments, output=output, log=log, **environment)
        assert self.ended() == 0, log.read_text()
        return json.loads(output.read_text()), log.read_text().splitlines()

    def begin(self, *arguments: object, output: Path, log: Path, **environment: str) -> None:
        part = {"arguments": list(map(str, arguments)), "environment": environment}
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps({**part, "output": str(output), "log": str(log)}) + "\n")
        self._server.stdin.flush()

    def ended(self) -> int:
        """Wait for the part that was begun; its status."""
        assert self._server.stdout is not None
        return int(self._server.stdout.readline())

    def close(self) -> None:
        self._server.communicate()


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("stage"))
    yield stage
    stage.close()


def tune_inside(mount: str, cache: Path) -> tuple[Any, list[str]]:
    """The part `tuning` where these disks are mounted, for nobody else to see."""
    command = [*NAMESPACE, mount + '; exec "$@"', "sh", sys.executable, str(PROCESSES), "tuning"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PADLESS_CACHE": str(cache)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr.splitlines()


def numbers(cache: Path, op: str) -> set[int]:
    return {int(dict(found.key)["head_dim"]) for found in Store(cache).entries(SLUG, op)}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_what_is_kept_is_there_for_the_next_process(cache: Path) -> None:
    assert Store(cache).keep(SLUG, "attention", several())
    assert Store(cache).entries(SLUG, "attention") == several()
    assert Store(cache).entries(SLUG, "linear") == ()
    assert Store(cache).entries(H100.slug, "attention") == ()
    path = cache / "autotune" / "v1" / SLUG / "attention.json"
    assert Store(cache).path(SLUG, "attention") == path
    assert path.is_file()


def test_a_later_entry_replaces_that_of_its_key_gpu_and_versions(cache: Path) -> None:
    store = Store(cache)
    store.keep(SLUG, "attention", several())
    newer = replace(several()[0], provenance=replace(several()[0].provenance, us=20.0, driver="590.1"))
    store.keep(SLUG, "attention", [newer])
    assert store.entries(SLUG, "attention") == (*several()[1:], newer)


def test_the_oldest_give_way_to_too_many(cache: Path) -> None:
    store = Store(cache)
    many = [entry(attention_call(number + 1000)) for number in range(MOST_ENTRIES)]
    store.keep(SLUG, "attention", many)
    store.keep(SLUG, "attention", several())
    assert store.entries(SLUG, "attention") == (*many[6:], *several())


def test_entries_of_another_gpu_are_the_callers_mistake(cache: Path) -> None:
    with pytest.raises(RecordError, match="expected those of nvidia-h200"):
        Store(cache).keep(SLUG, "attention", [entry(device=H100)])
    with pytest.raises(RecordError, match="op"):
        Store(cache).keep(SLUG, "../attention", [])
    assert not cache.exists()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PADLESS_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"PADLESS_CACHE": "", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/padless"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/c"}, "/c/.cache/padless"),
        ({"PADLESS_CACHE": "~/own", "HOME": "/c"}, "/c/own"),
        ({"HOME": "/c"}, "/c/.cache/padless"),
    ],
)
def test_where_the_cache_is(environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PADLESS_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def test_files_are_for_this_user_only(cache: Path) -> None:
    """Whoever may write there could otherwise choose how this user's kernels are compiled."""
    store = Store(cache)
    store.keep(SLUG, "attention", several())
    path = cache / "autotune" / "v1" / SLUG / "attention.json"
    for made in (path.parent, *path.parent.parents[:3]):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (cache / "autotune").chmod(0o777)
    with pytest.raises(RecordError, match=r"others may write to .*autotune"):
        store.entries(SLUG, "attention")


def test_a_folder_everybody_may_write_to_is_not_written_to(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    assert not Store(cache).keep(SLUG, "attention", several())
    assert len(caplog.records) == 1
    assert "others may write to" in caplog.text


@pytest.mark.parametrize("writes", [48, pytest.param(200, marks=pytest.mark.soak)])
def test_eight_processes_lose_nothing_and_tear_nothing(cache: Path, tmp_path: Path, play: Stage, writes: int) -> None:
    """Each writes so often, an entry of its own each time, over eight files; meanwhile this process reads one."""
    output, log = tmp_path / "output", tmp_path / "log"
    play.begin("writers", cache, 8, writes, 8, "with", output=output, log=log)
    reads = set()
    path = cache / "autotune" / "v1" / SLUG / "op3.json"
    while not (output.exists() and output.read_text()) and not (log.exists() and log.read_text()):
        record = read_record(path, SLUG, "op3")  # a torn file raises
        reads.add(0 if record is None else len(record.entries))
        time.sleep(0.005)
    assert play.ended() == 0
    assert (json.loads(output.read_text()), log.read_text()) == ({"statuses": [0] * 8}, "")
    found = [numbers(cache, f"op{file}") for file in range(8)]
    assert [len(part) for part in found] == [writes] * 8
    assert set().union(*found) == set(range(1, 8 * writes + 1))
    assert len(reads) > 10  # what was read was in the making
    assert not list(cache.rglob("*.tmp"))


@pytest.mark.soak
def test_eight_processes_and_one_file(cache: Path, play: Stage) -> None:
    found, complaints = play("writers", cache, 8, 200, 1, "with")
    assert (found["statuses"], complaints) == ([0] * 8, [])
    assert numbers(cache, "op0") == set(range(1, 1601))


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="the number of flock is not known")
def test_processes_lose_nothing_where_the_file_system_has_no_locks(cache: Path, play: Stage) -> None:
    """The kernel itself answers every flock with ENOLCK."""
    found, complaints = play("writers", cache, 4, 25, 1, "without")
    assert (found["statuses"], complaints) == ([0] * 4, [])
    assert numbers(cache, "op0") == set(range(1, 101))
    assert not list(cache.rglob("*.held"))


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="the number of flock is not known")
def test_a_lock_file_left_by_a_process_that_died_does_not_last(cache: Path, play: Stage) -> None:
    folder = cache / "autotune" / "v1" / SLUG
    folder.mkdir(parents=True)
    (folder / "op0.held").touch()
    started = time.monotonic()
    found, _ = play("writers", cache, 1, 1, 1, "without")
    assert found["statuses"] == [0]
    assert time.monotonic() - started > 3
    assert not list(cache.rglob("*.held"))


def test_a_process_killed_while_it_writes_leaves_the_old_file_or_the_new(cache: Path, play: Stage) -> None:
    """SIGKILL until ten times a half-written temporary file was left; the next write then clears it away."""
    found, _ = play("killed", cache, 10)
    assert found["in the middle"] == 10, found
    assert found["files"] == ["attention.json", "attention.lock"]


def test_a_lock_that_others_do_not_give_back(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    Store(cache).keep(SLUG, "attention", several())
    lock = cache / "autotune" / "v1" / SLUG / "attention.lock"
    holder = subprocess.Popen(
        [sys.executable, str(PROCESSES), "hold", str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        store = Store(cache, patience=0.3)
        started = time.monotonic()
        added = entry(attention_call(head_dim=256))
        assert not store.keep(SLUG, "attention", [added])
        assert not store.keep(SLUG, "attention", [entry(us=1.0)])
        assert 0.3 < time.monotonic() - started < 2  # waited for once
        assert store.entries(SLUG, "attention") == (*several()[1:], added, entry(us=1.0))  # readers do not wait
        holder.communicate()
    (line,) = caplog.records
    assert "attention.json: cannot be written (others held attention.lock for 0.3 seconds)" in line.getMessage()
    assert line.name == "padless"
    assert Store(cache).keep(SLUG, "attention", [added])


def blocked_by_a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("in the way")
    return tmp_path / "file" / "cache"


def assert_only_memory(found: Any, complaints: list[str], reason: str) -> None:
    """The run went through, used what it had found, and said once why that will not last."""
    assert (found["kept"], found["source"]) == ([False] * 3, "user cache")
    (line,) = complaints
    assert line.endswith("tuned configurations last as long as this process")
    assert reason in line


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("a file in the way", "/file"),
        ("/proc/padless", "No such file or directory: /proc/padless"),  # no user at all can make a folder there
        ("/dev/null", "File exists: /dev/null"),
    ],
)
def test_nowhere_to_write(place: str, reason: str, tmp_path: Path, play: Stage) -> None:
    cache = blocked_by_a_file(tmp_path) if place == "a file in the way" else Path(place)
    found, complaints = play("tuning", PADLESS_CACHE=str(cache))
    assert_only_memory(found, complaints, reason)


def test_a_file_where_the_folder_of_a_gpu_should_be(cache: Path, play: Stage) -> None:
    (cache / "autotune" / "v1").mkdir(parents=True)
    (cache / "autotune" / "v1" / SLUG).touch()
    found, complaints = play("tuning", PADLESS_CACHE=str(cache))
    assert_only_memory(found, complaints, "File exists")


def test_a_folder_where_the_file_should_be(cache: Path, play: Stage) -> None:
    (cache / "autotune" / "v1" / SLUG / "attention.json" / "in the way").mkdir(parents=True)
    (cache / "autotune" / "v1" / SLUG).chmod(0o700)
    found, complaints = play("tuning", PADLESS_CACHE=str(cache))
    assert_only_memory(found, complaints, "Is a directory")


def test_a_home_that_cannot_be_written_to(tmp_path: Path, play: Stage) -> None:
    """As a user to whom permissions apply: root gives up its rights first."""
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o500)
    options = ["user=65534"] if os.geteuid() == 0 else []
    found, complaints = play("tuning", *options, HOME=str(home), PADLESS_CACHE="", XDG_CACHE_HOME="")
    assert_only_memory(found, complaints, "Permission denied")
    assert not any(home.iterdir())


@needs_namespace
def test_a_home_on_a_disk_mounted_read_only(tmp_path: Path) -> None:
    """Which stops root as well."""
    mount = f"mount --bind {tmp_path} {tmp_path}; mount -o remount,ro,bind {tmp_path}"
    found, complaints = tune_inside(mount, tmp_path / "cache")
    assert_only_memory(found, complaints, "Read-only file system")


@needs_namespace
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """A disk in memory with room for folders, and for no content."""
    mount = f"mount -t tmpfs -o size=8k none {tmp_path}; head -c 8192 /dev/zero > {tmp_path}/all"
    found, complaints = tune_inside(mount, tmp_path / "cache")
    assert_only_memory(found, complaints, "No space left on device")


def test_a_file_that_may_not_grow(cache: Path, play: Stage) -> None:
    """A limit on the size of a file stands for the full disk: the write fails in the middle; what was there stays."""
    Store(cache).keep(SLUG, "attention", several())
    path = cache / "autotune" / "v1" / SLUG / "attention.json"
    before = path.read_bytes()
    found, complaints = play("tuning", f"bytes={len(before) - 100}", PADLESS_CACHE=str(cache))
    assert_only_memory(found, complaints, "File too large")
    assert path.read_bytes() == before
    assert not list(cache.rglob("*.tmp"))


def test_no_home_at_all(caplog: pytest.LogCaptureFixture) -> None:
    store = Store(None)
    assert store.path(SLUG, "attention") is None
    assert not store.keep(SLUG, "attention", several())
    assert not store.keep(SLUG, "linear", several())
    assert store.entries(SLUG, "attention") == several()
    assert [line.getMessage() for line in caplog.records] == [
        "user cache: cannot be written (there is no home folder): tuned configurations last as long as this process"
    ]


def test_a_file_in_doubt_is_written_anew(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(cache)
    store.keep(SLUG, "attention", several())
    path = cache / "autotune" / "v1" / SLUG / "attention.json"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(RecordError, match="not JSON"):
        store.entries(SLUG, "attention")
    assert store.keep(SLUG, "attention", [entry()])
    assert store.entries(SLUG, "attention") == (entry(),)
    (line,) = caplog.records
    assert line.getMessage().startswith(f"{path}: not JSON")


def test_a_file_that_cannot_be_read_is_not_written_over(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It may be whole: here, behind a link, which a cache's file must not be."""
    store = Store(cache)
    store.keep(SLUG, "attention", several())
    path = cache / "autotune" / "v1" / SLUG / "attention.json"
    elsewhere = path.rename(cache / "elsewhere.json")
    path.symlink_to(elsewhere)
    assert not store.keep(SLUG, "attention", [entry()])
    assert "symbolic links" in caplog.records[0].getMessage()
    assert len(caplog.records) == 1
    assert path.is_symlink()
    path.unlink()
    elsewhere.rename(path)
    assert Store(cache).entries(SLUG, "attention") == several()


@pytest.fixture(autouse=True)
def hear_everything(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.DEBUG, logger="padless"):
        yield
