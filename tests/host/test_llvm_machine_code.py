"""Machine code kept on the disk: found by later processes, and never trusted when anything about it is wrong."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("llvmlite", reason="needs package llvmlite, not installed")

from padless.kernels.llvm import compiled, machine_code
from padless.kernels.llvm.code import Code
from padless.kernels.llvm.compiled import compiled_once
from padless.kernels.llvm.host import missing_features

if MISSING := missing_features(torch.float32):
    pytest.skip("; ".join(MISSING), allow_module_level=True)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PADLESS_CACHE", str(folder))
    return folder


written: list[int] = []


def times(factor: int) -> Code:
    """16 numbers, each as many times as `factor` says."""
    written.append(factor)
    code = Code("times", {"x": "pointer", "out": "pointer", "step": "integer", "more": "number"})
    code.store(code.load(code.x + code.step * 64) * float(factor) + code.splat(code.more), code.out)
    return code


# Only functions of the modules there are kept: their text is part of what a file is named by.
times.__module__ = f"{machine_code.__package__}.times"


def computed(kernel: Callable[..., Callable[..., None]], factor: int) -> list[float]:
    x, out = torch.arange(32.0), torch.empty(16)
    kernel(factor)(x.data_ptr(), out.data_ptr(), 1, 0.5)
    assert out.tolist() == [number * factor + 0.5 for number in range(16, 32)]
    return out.tolist()


def as_in_a_new_process() -> Callable[..., Callable[..., None]]:
    written.clear()
    return compiled_once(times)


def files(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def test_a_later_process_finds_it_and_writes_nothing(cache: Path) -> None:
    computed(as_in_a_new_process(), 3)
    assert written == [3]
    (path,) = files(cache)
    assert path.stat().st_mode & 0o077 == 0
    before = path.stat().st_mtime_ns
    later = as_in_a_new_process()
    computed(later, 3)
    computed(later, 3)
    assert written == []
    computed(later, 4)
    computed(later, 4)
    assert written == [4]
    assert len(files(cache)) == 2
    assert path.stat().st_mtime_ns == before


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda content: content[:-1],
    "cut in half": lambda content: content[: len(content) // 2],
    "only the head": lambda content: content.partition(b"\n")[0],
    "a bit": lambda content: content[:-40] + bytes([content[-40] ^ 1]) + content[-39:],
    "another sum": lambda content: b"0" * 64 + content[64:],
    "no sum": lambda content: content.partition(b"\n")[2],
    "another name in the head": lambda content: content.replace(b"(3,)", b"(5,)", 1),
    "another kind of parameter": lambda content: content.replace(b"pointer", b"numbers", 1),
    "no text": lambda content: b"\xff\xfe" + content,
    "longer": lambda content: content + b"\0",
    "far too long": lambda content: content + bytes(machine_code.MOST_BYTES),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_anew(damage: str, cache: Path) -> None:
    computed(as_in_a_new_process(), 3)
    (path,) = files(cache)
    good = path.read_bytes()
    damaged = DAMAGES[damage](good)
    assert damaged != good
    path.write_bytes(damaged)
    computed(as_in_a_new_process(), 3)
    assert written == [3]
    assert path.read_bytes() == good
    computed(as_in_a_new_process(), 3)
    assert written == []


def test_a_file_of_another_kernel_under_its_name_is_not_taken(cache: Path) -> None:
    computed(as_in_a_new_process(), 3)
    (path,) = files(cache)
    computed(as_in_a_new_process(), 5)
    (other,) = set(files(cache)) - {path}
    other.replace(path)
    computed(as_in_a_new_process(), 3)
    assert written == [3]


def test_a_link_is_not_followed(cache: Path, tmp_path: Path) -> None:
    computed(as_in_a_new_process(), 3)
    (path,) = files(cache)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    computed(as_in_a_new_process(), 3)
    assert written == [3]
    assert not path.is_symlink()


def test_where_others_may_write_nothing_is_read_or_left(cache: Path) -> None:
    computed(as_in_a_new_process(), 3)
    (path,) = files(cache)
    for folder in (path.parent, path.parent.parent, cache):
        folder.chmod(0o777)
        computed(as_in_a_new_process(), 3)
        assert written == [3]
        computed(as_in_a_new_process(), 4)
        assert files(cache) == [path]
        folder.chmod(0o700)
    computed(as_in_a_new_process(), 3)
    assert written == []


def test_a_folder_of_another_user_is_not_trusted(cache: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs to be root, to give a folder away")
    computed(as_in_a_new_process(), 3)
    (path,) = files(cache)
    os.chown(path.parent, 12345, 12345)
    computed(as_in_a_new_process(), 3)
    assert written == [3]


def test_a_disk_that_takes_nothing_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "cache", Path("/proc/none"), Path("/dev/null")):
        monkeypatch.setenv("PADLESS_CACHE", str(place))
        computed(as_in_a_new_process(), 3)
        assert written == [3]


def test_without_a_home_it_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_code, "cache_folder", lambda: None)
    for _ in range(2):
        computed(as_in_a_new_process(), 3)
        assert written == [3]


def test_other_sources_and_another_cpu_have_files_of_their_own(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "code.py"
    source.write_text("one")
    monkeypatch.setattr(machine_code, "_files", lambda: [source])
    machine_code._sources.cache_clear()
    try:
        computed(as_in_a_new_process(), 3)
        source.write_text("other")
        machine_code._sources.cache_clear()
        computed(as_in_a_new_process(), 3)
        assert written == [3]
        before = compiled._compiler()
        monkeypatch.setattr(compiled, "_compiler", lambda: before + ",+more")
        computed(as_in_a_new_process(), 3)
        assert written == [3]
        assert len({path.parent for path in files(cache)}) == 3
        monkeypatch.setattr(machine_code, "_files", lambda: [tmp_path / "none"])
        machine_code._sources.cache_clear()
        computed(as_in_a_new_process(), 3)
        assert written == [3]
        assert len(files(cache)) == 3
    finally:
        machine_code._sources.cache_clear()


def test_what_the_sources_do_not_say_is_never_kept(cache: Path) -> None:
    def writes(factor: int, addend: int) -> Callable[[int], Code]:
        def closure(_: int) -> Code:
            code = Code("closure", {"x": "pointer", "out": "pointer", "step": "integer", "more": "number"})
            code.store(code.load(code.x + code.step * 64) * float(factor) + float(addend), code.out)
            return code

        closure.__module__ = times.__module__
        return closure

    def elsewhere(factor: int) -> Code:
        return times(factor)

    x, out = torch.arange(32.0), torch.empty(16)
    for factor, addend in ((2, 1), (3, 7)):
        compiled_once(writes(factor, addend))(1)(x.data_ptr(), out.data_ptr(), 1, 0.0)
        assert out.tolist() == [number * factor + addend for number in range(16, 32)]
    elsewhere.__qualname__ = "elsewhere"
    computed(compiled_once(elsewhere), 3)
    assert not cache.exists()


def test_the_kept_file_is_what_the_compiler_made(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed(as_in_a_new_process(), 3)
    name = f"{times.__module__}.times(3,)"
    found = machine_code.kept(name, compiled._compiler())
    assert found is not None
    assert (found.function, found.parameters) == ("times", ("pointer", "pointer", "integer", "number"))
    code = times(3)
    assert found.content == compiled._machine(None).emit_object(compiled._optimised(code, compiled._machine(None)))
    assert machine_code.kept(name, "another") is None
    assert machine_code.kept("another", compiled._compiler()) is None
    assert ctypes.sizeof(ctypes.c_void_p) == 8  # what the parameters take for granted


def test_processes_that_start_at_once_do_not_disturb_each_other(cache: Path) -> None:
    program = (
        "import torch\n"
        "from padless.engine.ops.norm import layer_norm as expected\n"
        "from padless.kernels.llvm.norm import normalise\n"
        "x, weight = torch.randn(9, 64), torch.randn(64)\n"
        "for dtype in (torch.float32, torch.bfloat16):\n"
        "    out = normalise(x.to(dtype), weight, None, eps=1e-5, centred=True, dtype=dtype)\n"
        "    wanted = expected(x.to(dtype), weight.to(dtype), None, eps=1e-5)\n"
        "    assert torch.allclose(out.float(), wanted.float(), rtol=0.02, atol=0.02)\n"
    )
    if missing_features(torch.bfloat16):
        program = program.replace(", torch.bfloat16)", ",)")
    starts = [
        subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, env=dict(os.environ))
        for _ in range(4)
    ]
    complaints = [process.communicate(timeout=300)[1] for process in starts]
    assert complaints == [""] * 4
    assert {path.suffix for path in files(cache)} == {".o"}
