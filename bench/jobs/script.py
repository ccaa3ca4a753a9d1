"""The script most people write: read Parquet, encode with sentence-transformers, write Parquet. `bench jobs` runs it.

    python -m padless.bench.jobs.script IN.parquet OUT.parquet MODEL DTYPE FACTS.json

FACTS.json gets {"seconds"}: from before the file is read until the vectors are written; imports and loading are not in.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sentence_transformers import SentenceTransformer


def main(source: str, target: str, model: str, dtype: str, facts: str) -> None:
    encoder = SentenceTransformer(
        model, device="cpu", model_kwargs={"dtype": getattr(torch, dtype), "local_files_only": True}
    )
    start = time.perf_counter()
    table = pq.read_table(source)
    vectors = encoder.encode(table["text"].to_pylist(), show_progress_bar=False)
    column = pa.array(list(vectors), type=pa.list_(pa.float32()))
    pq.write_table(table.select(["id"]).append_column("embedding", column), target)
    seconds = time.perf_counter() - start
    Path(facts).write_text(json.dumps({"seconds": seconds}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
