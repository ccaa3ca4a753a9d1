"""A machine without llvmlite, or with one that does not load: its rows are passed over, and vectors stay."""

from __future__ import annotations

import json
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
import json
import sys
import numpy as np
if sys.argv[3] == "missing":
    sys.modules["llvmlite"] = None
import padless
told = {}
for dtype in sys.argv[4].split():
    encoder = padless.load(sys.argv[1], device="cpu", dtype=dtype)
    np.save(f"{sys.argv[2]}/{dtype}.npy", encoder.encode(eval(sys.argv[5])))
    told[dtype] = str(encoder.explain())
print(json.dumps(told))
"""

OPS = ("attention", "linear + gelu", "norm")
ERRORS = ("OSError('Could not find/load shared object file')", "ImportError('no symbol')")
DTYPES = {"missing": "float32 bfloat16", **dict.fromkeys(ERRORS, "float32")}

Outcome = tuple[np.ndarray, dict[str, list[str]]]


@pytest.fixture(scope="module")
def outcomes(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Outcome]:
    """Of each way to be without llvmlite and each dtype: vectors of `TEXTS`, and the lines of the explanation by op.

    Each way has a process of its own, all at the same time.
    """
    running = {}
    for how, dtypes in DTYPES.items():
        if no_bf16_products():
            dtypes = "float32"
        out = tmp_path_factory.mktemp("out")
        if how != "missing":
            (out / "llvmlite").mkdir()
            (out / "llvmlite" / "__init__.py").write_text(f"raise {how}\n")
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(out), os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, "-c", ENCODE, str(minilm_folder), str(out), how, dtypes, repr(TEXTS)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)
        running[how] = out, process
    found = {}
    try:
        for how, (out, process) in running.items():
            shown, complaint = process.communicate(timeout=200)
            assert process.returncode == 0, complaint[-3000:]
            for dtype, explanation in json.loads(shown.splitlines()[-1]).items():
                lines = [line.split("  ") for line in explanation.splitlines()[1:]]
                cells = {line[0]: [cell.strip() for cell in line[1:] if cell.strip()] for line in lines if line}
                found[how, dtype] = np.load(out / f"{dtype}.npy"), cells
    finally:
        for _, process in running.values():
            process.kill()
            process.wait()
    return found


def no_bf16_products() -> bool:
    return resolve(Call("linear", "cpu", torch.bfloat16, epilogue="relu")).impl.name == "eager"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_llvmlite_the_rows_below_serve(
    minilm_folder: Path, outcomes: dict[tuple[str, str], Outcome], dtype: str
) -> None:
    if dtype == "bfloat16" and no_bf16_products():
        pytest.skip("needs a CPU with bfloat16 products, this one has none")
    found, lines = outcomes["missing", dtype]
    for op, row in zip(OPS, ("cpu", "cpu", "eager"), strict=True):
        assert lines[op][0] == row
        assert "cpu_llvm: needs package llvmlite, not installed" in lines[op][-1]
    with_it = padless.load(minilm_folder, device="cpu", dtype=dtype).encode(TEXTS)
    np.testing.assert_allclose(found, with_it, rtol=0, atol=2e-6 if dtype == "float32" else 2e-2)


@pytest.mark.parametrize("error", ERRORS)
def test_an_llvmlite_that_does_not_load_is_passed_over_as_well(
    outcomes: dict[tuple[str, str], Outcome], error: str
) -> None:
    found, lines = outcomes[error, "float32"]
    for op, row in zip(OPS, ("cpu", "cpu", "eager"), strict=True):
        assert lines[op][0] == row
        assert "cpu_llvm: cannot be imported: " in lines[op][-1]
    assert np.isfinite(found).all()
