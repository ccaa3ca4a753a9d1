"""What `encode` can return beside float32 vectors, beside sentence-transformers; long documents seen whole."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from sentence_transformers.util.quantization import quantize_embeddings as their_quantize

import padless
from padless import quantize_embeddings
from padless.bench.workloads import verses
from padless.engine.embedding import encoder as encoder_module
from padless.engine.embedding.encoder import Encoder, EncodeStats
from padless.engine.embedding.quantisation import PRECISIONS

WIDTH = 24
TEXTS = [f"the {word} and the moon {'stone ' * (row % 9)}" for row, word in enumerate("abcdefghij" * 12)]
LONG = "the sun stood still and the moon river stone bread night " * 20


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Encoder:
    return padless.load(tiny_folder, device="cpu", dtype="float32")


def saved(tiny_folder: Path, target: Path, *modules: torch.nn.Module, **options: Any) -> Path:
    transformer = Transformer(str(tiny_folder), max_seq_length=32)
    SentenceTransformer(modules=[transformer, *modules], device="cpu", **options).save(str(target))
    return target


def theirs(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


# Precisions.


@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name != "float16"])
@pytest.mark.parametrize("width", [24, 1, 13])
@pytest.mark.parametrize("given", ["nothing", "ranges", "calibration", "both"])
def test_quantising_is_that_of_sentence_transformers(precision: Any, width: int, given: str) -> None:
    draw = np.random.default_rng(width)
    vectors, others = (draw.standard_normal((150, width)).astype(np.float32) for _ in range(2))
    # Zeros of both signs, a channel that is always the same, and values beyond the ranges that are given.
    vectors[3], vectors[4] = 0.0, -0.0
    vectors[:, 0] = 0.25
    options: dict[str, Any] = {}
    if given in ("ranges", "both"):
        options["ranges"] = np.stack([others.min(axis=0) / 2, others.max(axis=0) / 2])
    if given in ("calibration", "both"):
        options["calibration_embeddings"] = others
    found = quantize_embeddings(vectors, precision, **options)
    expected: Any = their_quantize(vectors, precision, **options)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
    empty = quantize_embeddings(vectors[:0], precision, **options)
    assert (empty.dtype, empty.shape) == (expected.dtype, (0, expected.shape[1]))


def forms_of(vectors: np.ndarray) -> dict[str, Any]:
    """Everything that sentence-transformers' function takes, of the same numbers or some of them."""
    cuts = (0, 1, 1, 60, len(vectors))
    matrices = [vectors[begin:end] for begin, end in itertools.pairwise(cuts)]
    tensor = torch.from_numpy(vectors)
    return {
        "tensor": tensor,
        "bf16 tensor": tensor.bfloat16(),
        "float64": vectors.astype(np.float64),
        "half": vectors.astype(np.float16),
        "list of arrays": [*vectors],
        "list of tensors": [*tensor],
        "list of bf16 tensors": [*tensor.bfloat16()],
        "list of matrices": matrices,
        "list of tensor matrices": [torch.from_numpy(matrix) for matrix in matrices],
        "list of empty matrices": [vectors[:0], vectors[:0]],
        "one vector": vectors[7],
        "nothing": [],
    }


@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name != "float16"])
@pytest.mark.parametrize("form", forms_of(np.zeros((70, 2), dtype=np.float32)))
@pytest.mark.parametrize("given", ["nothing", "ranges", "calibration"])
def test_quantising_takes_what_sentence_transformers_takes(precision: Any, form: str, given: str) -> None:
    draw = np.random.default_rng(7)
    vectors, others = (draw.standard_normal((130, 13)).astype(np.float32) for _ in range(2))
    options: dict[str, Any] = {
        "nothing": {},
        "ranges": {"ranges": np.stack([others.min(axis=0) / 2, others.max(axis=0) / 2])},
        "calibration": {"calibration_embeddings": others},
    }[given]
    asked = forms_of(vectors)[form]
    if form == "one vector" and precision.endswith("int8") and not options:
        with pytest.raises(ValueError, match="from a single embedding"):
            their_quantize(asked, precision)
        with pytest.raises(padless.OptionError, match="single vector needs ranges or calibration_embeddings"):
            quantize_embeddings(asked, precision)
        return
    found = quantize_embeddings(asked, precision, **options)
    expected: Any = their_quantize(asked, precision, **options)
    assert type(found) is type(expected)
    alone = isinstance(expected, np.ndarray)
    for one, other in zip([found] if alone else found, [expected] if alone else expected, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("embeddings", "precision", "message"),
    [
        (np.zeros((3, 4), dtype=np.int8), "int8", r"expected floats of shape \[vectors, width\], got int8 \[3, 4\]"),
        (np.zeros((3, 4, 5), dtype=np.float32), "binary", "expected floats"),
        ([np.zeros((3, 4)), np.zeros((3, 5))], "float32", "expected matrices of one width, got 4, 5"),
        ([np.zeros(4), np.zeros(5)], "float32", "expected vectors of one width"),
        ("text", "float32", "expected floats"),
        (np.zeros((3, 4)), "int4", "precision: expected one of"),
        ([], "int4", "precision: expected one of"),
    ],
)
def test_what_cannot_be_quantised_is_refused(embeddings: Any, precision: str, message: str) -> None:
    with pytest.raises(padless.OptionError, match=message):
        quantize_embeddings(embeddings, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "options", [{}, {"truncate_dim": 13}, {"normalize_embeddings": True, "truncate_dim": 16}], ids=str
)
def test_encode_quantises_its_own_vectors(precision: Any, options: dict[str, Any], tiny: Encoder) -> None:
    plain = tiny.encode(TEXTS, **options)
    found = tiny.encode(TEXTS, precision=precision, **options)
    expected: Any = plain.astype(np.float16) if precision == "float16" else their_quantize(plain, precision)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
    tensor = tiny.encode(TEXTS, precision=precision, convert_to_tensor=True, **options)
    assert isinstance(tensor, torch.Tensor)
    assert np.array_equal(tensor.numpy(), expected)
    shape = tiny.encode([], precision=precision, **options).shape
    assert shape == (0, expected.shape[1])


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_encode_quantises_as_sentence_transformers_does(precision: Any, tiny: Encoder, tiny_folder: Path) -> None:
    found = tiny.encode(TEXTS, precision=precision)
    expected: Any = theirs(tiny_folder).encode(TEXTS, precision=precision)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    # A value at the edge of two buckets, or at zero, may fall to either side.
    assert np.mean(found != expected) < 0.002


def test_ranges_make_a_text_independent_of_its_neighbours(tiny: Encoder) -> None:
    calibration = tiny.encode(TEXTS)
    ranges = np.stack([calibration.min(axis=0), calibration.max(axis=0)])
    calls: list[dict[str, Any]] = [{"ranges": ranges}, {"calibration_embeddings": calibration}]
    for options in calls:
        together = tiny.encode(TEXTS, precision="int8", **options)
        assert np.array_equal(together, tiny.encode(TEXTS, precision="int8"))
        assert np.array_equal(np.stack([*tiny.encode_iter(TEXTS, precision="int8", **options)]), together)
        alone = tiny.encode(TEXTS[5], precision="int8", **options)
        assert np.abs(alone.astype(int) - together[5]).max() <= 1


def test_few_vectors_make_poor_ranges(tiny: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="padless"):
        tiny.encode(TEXTS[:5], precision="int8")
    assert "only 5 vectors" in caplog.text
    with pytest.raises(padless.OptionError, match="single vector needs ranges"):
        tiny.encode("the moon", precision="uint8")
    with pytest.raises(padless.OptionError, match="of a stream needs ranges"):
        list(tiny.encode_iter(TEXTS, precision="int8"))


# What else sentence-transformers takes.


def test_vectors_of_every_token(tiny: Encoder, tiny_folder: Path) -> None:
    texts = ["the moon", "", *TEXTS[:40], LONG, "x"]
    stats = EncodeStats()
    found = tiny.encode(texts, output_value="token_embeddings", stats=stats, batch_size=7)
    expected: Any = theirs(tiny_folder).encode(texts, output_value="token_embeddings")
    assert [one.shape for one in found] == [one.shape for one in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert (stats.texts, stats.tokens, stats.truncated) == (len(texts), sum(map(len, found)), 1)
    assert tiny.encode("the moon", output_value="token_embeddings", prompt="stone ").shape == (5, WIDTH)
    assert tiny.encode([], output_value="token_embeddings") == []


@pytest.mark.parametrize(
    "prompts",
    [{}, {"query": "q : "}, {"passage": "passage : ", "corpus": "stone "}, {"document": "d : ", "query": "x "}],
    ids=str,
)
def test_queries_and_documents_have_prompts_of_their_own(
    prompts: dict[str, str], tiny_folder: Path, tmp_path: Path
) -> None:
    default = next(iter(prompts), None)
    folder = saved(tiny_folder, tmp_path / "m", Pooling(WIDTH), prompts=prompts, default_prompt_name=default)
    encoder, reference = padless.load(folder, device="cpu", dtype="float32"), theirs(folder)
    for name in ("encode_query", "encode_document", "encode"):
        calls: list[dict[str, Any]] = [{}, {"prompt": "bread "}, *({"prompt_name": key} for key in prompts)]
        for options in calls:
            found = getattr(encoder, name)(TEXTS[:9], **options)
            np.testing.assert_allclose(found, getattr(reference, name)(TEXTS[:9], **options), rtol=0, atol=1e-5)


def test_other_names_and_arguments_of_sentence_transformers(tiny: Encoder) -> None:
    expected = tiny.encode(TEXTS[:3])
    calls: list[dict[str, Any]] = [{"sentences": TEXTS[:3]}, {"inputs": TEXTS[:3]}]
    calls += [{"texts": TEXTS[:3], "device": None, "pool": None, "chunk_size": 5, "task": "query"}]
    calls += [{"texts": TEXTS[:3], "device": "cpu"}]
    for options in calls:
        assert np.array_equal(tiny.encode(**options), expected)
    assert np.array_equal(tiny.encode(sentences="the moon"), tiny.encode("the moon"))


@pytest.mark.parametrize(
    "options",
    [
        *({"device": "cuda:0"}, {"device": ["cpu", "cpu"]}, {"pool": {}}, {"processing_kwargs": {}}, {"nosuch": 1}),
        *({"output_value": None}, {"output_value": "token_embeddings", "precision": "int8"}, {"long_texts": "drop"}),
        *({"aggregate": "sum"}, {"overlap": -1}, {"overlap": True}, {"overlap": 38, "long_texts": "chunk"}),
        *({"ranges": np.zeros((2, 3))}, {"calibration_embeddings": np.zeros((0, WIDTH))}),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], tiny: Encoder) -> None:
    with pytest.raises(padless.OptionError) as error:
        tiny.encode(TEXTS, **options)
    assert [*options][-1] in str(error.value) or "long_texts" in options
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(padless.InputError, match="once"):
        tiny.encode(TEXTS, sentences=TEXTS)


# Long documents.


def test_long_documents_can_be_refused(tiny: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*TEXTS[:7], LONG, "moon", LONG]
    with pytest.raises(padless.InputError, match=r"^row 7: .*40 tokens"):
        tiny.encode(texts, long_texts="error")
    assert np.array_equal(tiny.encode(TEXTS[:7], long_texts="error"), tiny.encode(TEXTS[:7]))
    monkeypatch.setattr(encoder_module, "ITER_WINDOW", 5)
    with pytest.raises(padless.InputError, match=r"^row 7: "):
        list(tiny.encode_iter(texts, long_texts="error"))


def pieces_by_hand(encoder: Encoder, text: str, prompt: str, overlap: int) -> tuple[list[str], np.ndarray]:
    """Pieces of a text of whole words, without the prompt, and the tokens of each, without special tokens."""
    words, before = text.split(), len(prompt.split())
    room = (encoder.max_seq_length or 0) - 2 - before
    starts = range(0, max(len(words) - overlap, 1), room - overlap)
    pieces = [words[start : start + room] for start in starts]
    return [" ".join(piece) for piece in pieces], np.array([max(before + len(piece), 1) for piece in pieces])


@pytest.mark.parametrize("prompt", ["", "query : "])
@pytest.mark.parametrize("overlap", [0, 9])
@pytest.mark.parametrize("unit", [False, True])
def test_chunks_see_all_of_a_document(unit: bool, overlap: int, prompt: str, tiny_folder: Path, tmp_path: Path) -> None:
    modules = [Pooling(WIDTH, include_prompt=False), *([Normalize()] if unit else [])]
    encoder = padless.load(saved(tiny_folder, tmp_path / "m", *modules), device="cpu", dtype="float32")
    texts = ["moon", LONG, "", LONG[: len(LONG) // 2], "stone " * 30, "stone " * 28, "the river and the sun"]
    options: dict[str, Any] = {"long_texts": "chunk", "overlap": overlap, "prompt": prompt}
    stats = EncodeStats()
    each = encoder.encode(texts, aggregate="each", stats=stats, **options)
    means, highest = (encoder.encode(texts, aggregate=name, **options) for name in ("mean", "max"))
    assert (stats.texts, stats.truncated) == (len(texts), 0)
    assert len(each[1]) > 5
    for row, text in enumerate(texts):
        pieces, tokens = pieces_by_hand(encoder, text, prompt, overlap)
        expected = encoder.encode(pieces, prompt=prompt, long_texts="error")
        np.testing.assert_allclose(each[row], expected, rtol=0, atol=1e-5)
        mean, top = (expected * tokens[:, None]).sum(axis=0) / tokens.sum(), expected.max(axis=0)
        if unit:
            mean, top = mean / np.linalg.norm(mean), top / np.linalg.norm(top)
        np.testing.assert_allclose(means[row], mean, rtol=0, atol=1e-5)
        np.testing.assert_allclose(highest[row], top, rtol=0, atol=1e-5)


def test_a_document_may_be_cut_everywhere(minilm: Encoder) -> None:
    # Every token of a real text is in exactly one piece.
    text = " ".join(verses()[:40])
    ids, _ = minilm.tokenizer.contents([text])
    limit = minilm.max_seq_length or 0
    each = minilm.encode([text], long_texts="chunk", aggregate="each")[0]
    assert len(each) == -(-len(ids[0]) // (limit - 2))
    np.testing.assert_allclose(np.linalg.norm(each, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(each[0], minilm.encode(text), rtol=0, atol=1e-5)
    assert minilm.encode(text, long_texts="chunk", aggregate="each", precision="ubinary").shape == (len(each), 48)
    assert minilm.encode([], long_texts="chunk").shape == (0, 384)
    assert minilm.encode([], long_texts="chunk", aggregate="each") == []


@pytest.mark.parametrize("options", [{}, {"long_texts": "chunk"}, {"precision": "float16"}, {"precision": "binary"}])
def test_what_is_not_finite_is_refused_whatever_is_asked_for(options: dict[str, Any], tiny_folder: Path) -> None:
    encoder = padless.load(tiny_folder, device="cpu", dtype="float32")
    with torch.no_grad():
        row = int(encoder.tokenizer.encode(["bread"]).input_ids[1])
        encoder.model.embeddings.word_embeddings.weight[row] = torch.nan
    with pytest.raises(padless.InputError, match=r"^row 1: "):
        encoder.encode(["moon", "moon " * 90 + "bread" if options.get("long_texts") else "bread", "sun"], **options)
