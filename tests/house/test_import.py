"""What `import padless` costs and gives, each seen in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import padless

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, *, cwd: Path, search_path: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    inherited = os.environ.get("PYTHONPATH", "")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(search_path or ""), inherited]))
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_cold(tmp_path: Path) -> None:
    code = "import padless, sys; print(*({'torch', 'triton', 'numpy', 'tokenizers', 'pyarrow'} & set(sys.modules)))"
    assert python(code, cwd=tmp_path) == ""


def test_errors_are_cold(tmp_path: Path) -> None:
    assert python("import padless, sys; padless.WeightsError; print('torch' in sys.modules)", cwd=tmp_path) == "False"


@pytest.mark.parametrize("name", padless.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(padless, name) is not None
    assert name in dir(padless)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        _ = padless.lod


@pytest.mark.parametrize("name", ["kernels", "autotune", "bench"])
def test_checkout_shadows_no_other_package(name: str, tmp_path: Path) -> None:
    """Hugging Face publishes a `kernels` that transformers imports: ours must lose to it, in the checkout too."""
    spec = f"import importlib.util; spec = importlib.util.find_spec({name!r}); print(spec and spec.origin)"
    origin = python(spec, cwd=ROOT)
    assert origin == "None" or not Path(origin).is_relative_to(ROOT)

    other = tmp_path / name / "__init__.py"
    other.parent.mkdir()
    other.touch()
    assert python(spec, cwd=ROOT, search_path=tmp_path) == str(other)
