"""Loading holds one copy of the weights: a process's peak memory rises by little more than the checkpoint's size."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SHAPE = (1024, 4096)
TENSOR_BYTES = 4 * 1024 * 4096
MOST_OVERHEAD_BYTES = 60 * 10**6
"""Beside the weights: a piece (8 MiB) or a mapped pickle's window (32 MiB), and what torch sets up at a first copy."""

MEASURE = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from padless.engine.weights import NameRules, load_weights

def kilobytes(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))

class Layers(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.t = nn.ParameterList(nn.Parameter(torch.empty(1024, 4096)) for _ in range(count))

folder, count, dtype = sys.argv[1], int(sys.argv[2]), getattr(torch, sys.argv[3])
with open("/proc/self/clear_refs", "w") as handle:
    handle.write("5")  # forget the peak of the imports
before = kilobytes("VmRSS")
model = Layers(count)
load_weights(model, Path(folder), NameRules(), dtype=dtype, pickled=True, progress=True)
growth = 1024 * (kilobytes("VmHWM") - before)
ends = [[layer.amin().item(), layer.amax().item()] for layer in model.t]
print(json.dumps([growth, ends]))
"""


def write_file(path: Path, first: int, count: int) -> None:
    """A file with the tensors `t.<first>` and on, each of one value, its number plus one."""
    header = {
        f"t.{first + place}": {
            "dtype": "F32",
            "shape": SHAPE,
            "data_offsets": [place * TENSOR_BYTES, (place + 1) * TENSOR_BYTES],
        }
        for place in range(count)
    }
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for place in range(count):
            stream.write(struct.pack("<f", first + place + 1) * (TENSOR_BYTES // 4))


def write_checkpoint(folder: Path, kind: str, count: int) -> None:
    if kind == "single":
        write_file(folder / "model.safetensors", 0, count)
    elif kind == "pickled":
        tensors = {f"t.{place}": torch.full(SHAPE, place + 1.0) for place in range(count)}
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        half = count // 2
        write_file(folder / "model-00001-of-00002.safetensors", 0, half)
        write_file(folder / "model-00002-of-00002.safetensors", half, count - half)
        weight_map = {f"t.{place}": f"model-0000{1 + (place >= half)}-of-00002.safetensors" for place in range(count)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def load(folder: Path, count: int, dtype: str = "float32") -> tuple[int, list[list[float]], str]:
    """Bytes by which the peak rose, the extremes of each tensor, and what was written to stderr."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    command = [sys.executable, "-c", MEASURE, str(folder), str(count), dtype]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr
    growth, ends = json.loads(done.stdout)
    return growth, ends, done.stderr


@pytest.mark.parametrize("kind", ["single", "sharded", "pickled"])
def test_a_checkpoint_of_134_mb(kind: str, tmp_path: Path) -> None:
    """Small enough for every run, so what torch sets up once weighs more: the bound is bytes over the size."""
    write_checkpoint(tmp_path, kind, 8)
    growth, ends, stderr = load(tmp_path, 8)
    size = 8 * TENSOR_BYTES
    print(f"{kind}: {size / 1e6:.0f} MB, peak memory +{growth / 1e6:.0f} MB, {growth / size:.3f} times")
    assert ends == [[place + 1.0] * 2 for place in range(8)]
    assert stderr == ""
    assert size <= growth <= size + MOST_OVERHEAD_BYTES


def test_values_are_converted_a_piece_at_a_time(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "single", 8)
    growth, _, _ = load(tmp_path, 8, "bfloat16")
    size = 8 * TENSOR_BYTES // 2
    print(f"to bf16: {size / 1e6:.0f} MB, peak memory +{growth / 1e6:.0f} MB, {growth / size:.3f} times")
    assert growth <= size + MOST_OVERHEAD_BYTES


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["single", "sharded", "pickled"])
def test_a_checkpoint_of_1_2_gb(kind: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, kind, 72)
    growth, ends, stderr = load(tmp_path, 72)
    size = 72 * TENSOR_BYTES
    print(f"{kind}: {size / 1e6:.0f} MB, peak memory +{growth / 1e6:.0f} MB, {growth / size:.3f} times")
    assert ends == [[place + 1.0] * 2 for place in range(72)]
    assert growth <= 1.15 * size
    # stderr is a pipe here, and the bar is drawn all the same.
    assert "loading weights: 100%" in stderr
    assert "1.21G/1.21G" in stderr


BERT_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}

MEASURE_MODEL = """
import json, sys
from padless import BertConfig, BertForMaskedLM

def kilobytes(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))

folder, dtype, sizes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
if dtype == "save":
    BertForMaskedLM(BertConfig(**sizes)).save_pretrained(folder)
else:
    with open("/proc/self/clear_refs", "w") as handle:
        handle.write("5")
    before = kilobytes("VmRSS")
    model = BertForMaskedLM.from_pretrained(folder, dtype=dtype)
    growth = 1024 * (kilobytes("VmHWM") - before)
    print(json.dumps([growth, sum(p.numel() * p.element_size() for p in model.parameters())]))
"""


@pytest.mark.soak
def test_a_whole_model_of_1_3_gb_loads_into_the_memory_it_keeps(tmp_path: Path) -> None:
    """BERT-large through `from_pretrained`: building the model fills nothing that the checkpoint is to fill."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    for dtype in ("save", "float32", "bfloat16"):
        command = [sys.executable, "-c", MEASURE_MODEL, str(tmp_path), dtype, json.dumps(BERT_LARGE)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
        assert done.returncode == 0, done.stderr
        if dtype != "save":
            growth, size = json.loads(done.stdout)
            print(f"{dtype}: {size / 1e6:.0f} MB, peak memory +{growth / 1e6:.0f} MB, {growth / size:.3f} times")
            assert growth <= 1.15 * size
