from __future__ import annotations

import statistics

import pytest

from padless.bench.lengths import DISTRIBUTIONS, NEWS, draw_lengths
from padless.bench.workloads import default_model, news
from padless.engine.errors import OptionError

DRAWN = ("variable", "news", "squad")


@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.parametrize("tokens", [1, 7, 4096, 30_001])
def test_drawn_lengths_have_the_tokens_asked_for(kind: str, tokens: int) -> None:
    batch = draw_lengths(kind, tokens, 512)
    assert batch.tokens == sum(batch.lengths) == tokens
    assert min(batch.lengths) >= 1


@pytest.mark.parametrize(("kind", "longest"), [("variable", 512), ("squad", 384), ("news", max(NEWS))])
def test_no_text_is_longer_than_the_distribution_says(kind: str, longest: int) -> None:
    batch = draw_lengths(kind, 300_000, 512)
    assert batch.longest <= longest
    assert batch.longest > 0.9 * longest


def test_fixed_texts_are_all_there_is() -> None:
    assert draw_lengths("fixed", 1000, 128).lengths == (128,) * 7
    assert draw_lengths("fixed", 100, 128).lengths == (128,)
    assert draw_lengths("single", 1000, 128).lengths == (128,)


@pytest.mark.parametrize("tokens", [100, 4096])
def test_one_long_text_stands_among_short_ones(tokens: int) -> None:
    lengths = sorted(draw_lengths("long", tokens, 512).lengths)
    assert lengths[-1] == 512
    assert lengths[-2] <= 32
    assert sum(lengths) == max(tokens, 512 + 128)


def test_squad_has_as_much_padding_as_was_published() -> None:
    lengths = draw_lengths("squad", 1_000_000, 1).lengths
    assert statistics.mean(lengths) / 384 == pytest.approx(0.46, abs=0.01)


def test_variable_lengths_stand_around_half() -> None:
    lengths = draw_lengths("variable", 500_000, 512).lengths
    assert statistics.mean(lengths) == pytest.approx(256, rel=0.02)
    assert statistics.stdev(lengths) == pytest.approx(512 / 6, rel=0.05)


def test_the_news_are_counted_from_the_corpus() -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(default_model() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    assert [len(encoding.ids) for encoding in tokenizer.encode_batch(news())] == list(NEWS)


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_the_same_arguments_give_the_same_batch_and_others_another(kind: str) -> None:
    batch = draw_lengths(kind, 4096, 128)
    assert draw_lengths(kind, 4096, 128) == batch
    assert batch.name == (f"{kind} 128" if DISTRIBUTIONS[kind].by_seqlen else kind)
    by_seqlen = draw_lengths(kind, 4096, 256) != batch
    assert by_seqlen == DISTRIBUTIONS[kind].by_seqlen
    if kind in DRAWN:
        assert draw_lengths(kind, 4097, 128).lengths[:5] != batch.lengths[:5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("zipf", 10, 10), "^lengths 'zipf': unknown, expected one of fixed, variable, "),
        (("fixed", 0, 10), "^tokens: expected at least 1, got 0$"),
        (("fixed", 10, 0), "^seqlens: expected at least 1, got 0$"),
    ],
)
def test_what_is_out_of_range_is_named(arguments: tuple, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        draw_lengths(*arguments)
