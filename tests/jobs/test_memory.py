"""Memory of a job is bounded by its window, not by its input: seen as the peaks of a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from padless.engine.jobs.manifest import read_shards

MEASURE = """
import sys
import torch

def kilobytes(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))

before = kilobytes("VmRSS")

from padless.engine.cli.app import run

model, rows_per_shard, *sources = sys.argv[1:]
options = ["--model", model, "--id-column", "id", "--rows-per-shard", rows_per_shard, "--dtype", "float32", "--quiet"]
for source in sources:
    with open("/proc/self/clear_refs", "w") as handle:
        handle.write("5")  # forget the peak of the imports, or of the job before
    assert run(["embed", source, source + "-out", *options]) == 0
    print(kilobytes("VmHWM") - before)
"""

WORDS = np.array(["sun", "moon", "river", "stone", "bread", "night", "still", "stood"])


def write_texts(path: Path, rows: int) -> None:
    """Texts of one to five words, about 16 characters, in row groups as large as Parquet writers make them."""
    random = np.random.default_rng(20250117)
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, rows, 500_000):
            count = min(500_000, rows - first)
            words = WORDS[random.integers(0, len(WORDS), (count, 5))]
            kept = random.integers(1, 6, count)
            texts = [" ".join(row[:number]) for row, number in zip(words, kept, strict=True)]
            writer.write_table(pa.table({"id": np.arange(first, first + count), "text": texts}, schema))


def peak_growths(model: Path, folder: Path, sizes: tuple[int, int], rows_per_shard: int) -> list[int]:
    """Kilobytes by which the resident memory of a process that embeds so many rows rises over that with torch alone.

    One process for both sizes, one after the other.
    """
    sources = [folder / f"{rows}.parquet" for rows in sizes]
    for source, rows in zip(sources, sizes, strict=True):
        write_texts(source, rows)
    arguments = map(str, [model, rows_per_shard, *sources])
    done = subprocess.run([sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for rows in sizes:
        assert sum(shard.rows for shard in read_shards(folder / f"{rows}.parquet-out")) == rows
    return [*map(int, done.stdout.split())]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("few", "many", "rows_per_shard"),
    [(20_000, 200_000, 10_000), pytest.param(100_000, 1_000_000, 50_000, marks=pytest.mark.soak)],
)
def test_ten_times_the_rows_need_no_more_memory(
    tiny_folder: Path, tmp_path: Path, few: int, many: int, rows_per_shard: int
) -> None:
    small, large = peak_growths(tiny_folder, tmp_path, (few, many), rows_per_shard)
    print(f"{few:,} rows: {small / 1024:.1f} MiB; {many:,} rows: {large / 1024:.1f} MiB; ratio {large / small:.3f}")
    assert large <= 1.3 * small
