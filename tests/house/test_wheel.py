"""What is shipped: the wheel holds the sources of the four folders, the shipped configurations, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("engine", "kernels", "autotune", "bench")


def build(kind: str, folder: Path, target: Path) -> Path:
    """Build an sdist or a wheel of `folder` with the build backend itself; no network, no isolated environment."""
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    target.mkdir()
    done = subprocess.run([sys.executable, "-c", code, str(target)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of the checkout, without what git ignores: a leftover build/ would ship deleted modules."""
    folder = tmp_path_factory.mktemp("export") / "padless"
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line]
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", *ignored))
    configuration = folder / "autotune" / "configs" / "a-gpu" / "an-op.json"
    configuration.parent.mkdir(parents=True)
    configuration.write_text("{}")
    return folder


@pytest.fixture(scope="module")
def sdist(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", export, tmp_path_factory.mktemp("sdist") / "out")


def shipped_sources(export: Path) -> set[str]:
    files = [export / name for name in ("__init__.py", "__main__.py", "py.typed")]
    files += [file for folder in FOLDERS for file in (export / folder).rglob("*.py")]
    files += (export / "autotune" / "configs").rglob("*.json")
    return {file.relative_to(export).as_posix() for file in files}


def test_sdist_holds_the_sources_and_what_builds_them(export: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {member.name.partition("/")[2] for member in archive if member.isfile()}
    packaging = {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    assert {name for name in held if not name.startswith("padless.egg-info/")} == shipped_sources(export) | packaging


def test_wheel_holds_the_sources(export: Path, sdist: Path, tmp_path: Path) -> None:
    """Built from the unpacked sdist, as an index or a distribution would."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    wheel = build("wheel", unpacked, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = next(name for name in archive.namelist() if name.endswith("/METADATA"))
        described = archive.read(metadata).decode()
    assert held == {f"padless/{name}" for name in shipped_sources(export)}
    assert "\nName: padless\n" in described
    assert "\nLicense-File: LICENSE\n" in described


def test_every_source_folder_is_a_declared_package(export: Path) -> None:
    """Without this a new folder would be missing from an editable install's view as well as from the wheel."""
    folders = {file.parent.relative_to(export) for folder in FOLDERS for file in (export / folder).rglob("*.py")}
    declared = (export / "pyproject.toml").read_text()
    assert [f for f in sorted(folders) if f'"padless.{".".join(f.parts)}"' not in declared] == []
