"""The model's share of a job: the same texts, already in memory and tokenised, through the same batches to vectors.

    python -m padless.bench.jobs.model_only IN.parquet OUT.npy MODEL DTYPE FACTS.json

What `padless embed` takes beyond these seconds is its overhead: reading, tokenising, writing, and what of them the
model waits for. FACTS.json gets {"seconds", "tokens"}: packing, the model, the vectors in the rows' order.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from ...engine.batch import TokenizedTexts, pack, plan_batches
from ...engine.jobs.windows import WINDOW_ROWS
from ...engine.loading import load
from ...engine.streaming.prefetch import Workers


def main(source: str, target: str, model: str, dtype: str, facts: str) -> None:
    """Run and write the vectors, float32 `[rows, dimension]`, and the facts."""
    encoder = load(model, device="cpu", dtype=dtype)
    texts = pq.read_table(source)["text"].to_pylist()
    # As the job has it: rows are sorted and cut into batches within a window.
    starts = range(0, len(texts), WINDOW_ROWS)
    windows = [encoder.tokenizer.encode(texts[start : start + WINDOW_ROWS]) for start in starts]
    tokens = sum(len(window.input_ids) for window in windows)
    workers = Workers()
    at_once = workers.at_once(tokens // encoder.token_budget)
    vectors = np.empty((len(texts), encoder.dimension), dtype=np.float32)

    def planned() -> Iterator[tuple[TokenizedTexts, np.ndarray, int]]:
        for window, start in zip(windows, starts, strict=True):
            for rows in plan_batches(window.lengths, encoder.token_budget, at_once=at_once):
                yield window, rows, start

    def run(window: TokenizedTexts, rows: np.ndarray, start: int) -> None:
        with torch.no_grad():
            vectors[start + rows] = encoder.compute(pack(window, rows)).float().numpy()

    begin = time.perf_counter()
    for _ in workers.run(run, planned(), at_once):
        pass
    seconds = time.perf_counter() - begin
    np.save(target, vectors)
    Path(facts).write_text(json.dumps({"seconds": seconds, "tokens": tokens}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
