"""What a conversion holds in memory: a piece of a tensor, however large the tensor and the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from megatron_checkpoints import saved_bytes

MEASURE = """
import sys
from pathlib import Path
import torch
from padless.engine.convert import convert

def kilobytes(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))

torch.set_num_threads(1)
for name in ("small", "large"):
    before = kilobytes("VmRSS")
    convert(Path(name), Path(name + "-out"), dtype="float16")
print(1024 * (kilobytes("VmHWM") - before))
"""
LARGE = 60_000_000
MOST_GROWTH_BYTES = 50 * 10**6


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_tensor_much_larger_than_what_memory_may_grow_by(tmp_path: Path) -> None:
    for name, values in (("small", 1_000), ("large", LARGE)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "bert"}))
        content = saved_bytes({"bert.embeddings.word_embeddings.weight": torch.zeros(values // 10, 10)})
        (tmp_path / name / "pytorch_model.bin").write_bytes(content)
    done = subprocess.run([sys.executable, "-c", MEASURE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "large-out" / "model.safetensors").stat().st_size > 2 * LARGE
    assert int(done.stdout) < MOST_GROWTH_BYTES
