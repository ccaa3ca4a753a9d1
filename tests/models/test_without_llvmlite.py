"""A machine without llvmlite, or with one that does not load: its rows are passed over, and vectors stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import padless
from padless.engine.contract import Call
from padless.engine.dispatch import resolve

TEXTS = ["the sun stood still", "", "a river of bread " * 30, "query: moon"]

ENCODE = """
import sys
import numpy as np
if sys.argv[3] == "missing":
    sys.modules["llvmlite"] = None
import padless
encoder = padless.load(sys.argv[1], device="cpu", dtype=sys.argv[4])
np.save(sys.argv[2], encoder.encode(eval(sys.argv[5])))
print(encoder.explain())
"""

OPS = ("attention", "linear + gelu", "norm")


def encoded(folder: Path, out: Path, how: str, dtype: str, path: Path) -> tuple[np.ndarray, dict[str, list[str]]]:
    """Vectors of `TEXTS` made in a process of its own, and the lines of its explanation by their op."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", ENCODE, str(folder), str(out), how, dtype, repr(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split("  ") for line in done.stdout.splitlines()[1:]]
    return np.load(out), {cells[0]: [cell.strip() for cell in cells[1:] if cell.strip()] for cells in lines if cells}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_llvmlite_the_rows_below_serve(minilm_folder: Path, tmp_path: Path, dtype: str) -> None:
    if dtype == "bfloat16" and resolve(Call("linear", "cpu", torch.bfloat16, epilogue="relu")).impl.name == "eager":
        pytest.skip("needs a CPU with bfloat16 products, this one has none")
    found, lines = encoded(minilm_folder, tmp_path / "vectors.npy", "missing", dtype, tmp_path)
    for op, row in zip(OPS, ("cpu", "cpu", "eager"), strict=True):
        assert lines[op][0] == row
        assert "cpu_llvm: needs package llvmlite, not installed" in lines[op][-1]
    with_it = padless.load(minilm_folder, device="cpu", dtype=dtype).encode(TEXTS)
    np.testing.assert_allclose(found, with_it, rtol=0, atol=2e-6 if dtype == "float32" else 2e-2)


@pytest.mark.parametrize("error", ["OSError('Could not find/load shared object file')", "ImportError('no symbol')"])
def test_an_llvmlite_that_does_not_load_is_passed_over_as_well(minilm_folder: Path, tmp_path: Path, error: str) -> None:
    (tmp_path / "llvmlite").mkdir()
    (tmp_path / "llvmlite" / "__init__.py").write_text(f"raise {error}\n")
    found, lines = encoded(minilm_folder, tmp_path / "vectors.npy", "broken", "float32", tmp_path)
    for op, row in zip(OPS, ("cpu", "cpu", "eager"), strict=True):
        assert lines[op][0] == row
        assert "cpu_llvm: cannot be imported: " in lines[op][-1]
    assert np.isfinite(found).all()
