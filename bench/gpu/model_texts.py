"""Part `models` of the GPU report, from texts: `padless.load` beside sentence-transformers, tokenising included.

The model is MiniLM-L6: its real weights where the package that has them is installed, else its shape with seeded
weights and a vocabulary of made-up words. Texts are words of that vocabulary, in the lengths of news articles.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...engine.errors import InputError
from ..timing import ratio, spread
from ..workloads import default_model
from .bits import some
from .case import Case, Context, Figures, first_line
from .model_check import compare, tells_apart
from .model_shapes import SHAPES, build, fill
from .model_work import WORKLOADS
from .rounds import time_rounds

__all__ = ["cases", "made_folder", "made_texts"]

OURS = "padless"
THEIRS = "sentence-transformers, batches of {}"
BATCHES = (32, 256)
SECONDS = 4.0
MAX_LENGTH = 256
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SYLLABLES = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]

Encode = Callable[[Sequence[str]], Tensor]


def cases(context: Context) -> list[Case]:
    """One case."""
    return [Case("MiniLM-L6/texts", _run)]


def made_folder(folder: Path, context: Context) -> Path:
    """A folder as sentence-transformers and `padless.load` read them, of MiniLM's shape, with seeded weights."""
    with torch.inference_mode(False), torch.no_grad():
        model = build(SHAPES["MiniLM-L6"], torch.device("cpu"), torch.float32, dry=context.dry)
        fill(model)
        model.save_pretrained(folder)
    size = model.config.vocab_size
    made = ("".join(word) for length in (2, 3) for word in itertools.product(_SYLLABLES, repeat=length))
    vocabulary = [*_SPECIAL, *itertools.islice(made, size - len(_SPECIAL))]
    longest = model.config.max_position_embeddings if context.dry else MAX_LENGTH
    files: dict[str, Any] = {
        "tokenizer.json": _tokenizer(vocabulary),
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "do_lower_case": True,
                                  "model_max_length": longest,
                                  **{f"{token[1:-1].lower()}_token": token for token in _SPECIAL}},
        "sentence_bert_config.json": {"max_seq_length": longest, "do_lower_case": False},
        "modules.json": [
            {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for place, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling"),
                                                  ("2_Normalize", "Normalize")])
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": model.config.hidden_size,
                                  "pooling_mode_mean_tokens": True},
    }  # fmt: skip
    (folder / "1_Pooling").mkdir()
    (folder / "2_Normalize").mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def made_texts(folder: Path, context: Context) -> list[str]:
    """Texts of whole words of the folder's vocabulary, in the lengths of the workload `news`."""
    from tokenizers import Tokenizer

    known = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    words = sorted(word for word in known if word.isalpha() and word.isascii() and word.islower() and len(word) > 3)
    workload = WORKLOADS["news"]
    lengths = workload.make(SHAPES["MiniLM-L6"].tokens, len(words), 1, dry=context.dry).lengths
    generator = np.random.default_rng(7)
    return [" ".join(generator.choice(words, size=max(int(length) - 2, 1))) for length in lengths]


def _run(context: Context) -> Figures:
    with contextlib.ExitStack() as stack:
        weights, folder = _folder(stack, context)
        texts = made_texts(folder, context)
        with torch.inference_mode(False):
            return _compared(folder, texts, weights, context)


def _folder(stack: contextlib.ExitStack, context: Context) -> tuple[str, Path]:
    if not context.dry:
        with contextlib.suppress(InputError):
            return "real", default_model()
    made = stack.enter_context(tempfile.TemporaryDirectory())
    return "seeded", made_folder(Path(made), context)


def _compared(folder: Path, texts: list[str], weights: str, context: Context) -> Figures:
    from ...engine.embedding.encoder import EncodeStats
    from ...engine.loading import load

    dtype = torch.float32 if context.dry else torch.bfloat16
    device = str(context.device)
    encoder = load(str(folder), device=device, dtype=dtype)
    stats = EncodeStats()
    encoder.encode(texts, stats=stats)
    if context.warm:
        return {"status": "ok"}
    rows = some([len(text) for text in texts], 12)
    oracle = load(str(folder), device=device, dtype="float32", backend="eager", cuda_graphs=False)
    reference = torch.from_numpy(oracle.encode([texts[row] for row in rows], normalize_embeddings=True))
    if (blind := tells_apart(reference)) is not None:
        return {"status": "failed", "reason": blind}
    encodes: dict[str, Encode] = {
        OURS: lambda given: torch.from_numpy(encoder.encode(given, normalize_embeddings=True))
    }
    absent: dict[str, str] = {}
    for name, encode in _theirs(folder, device, dtype):
        if isinstance(encode, str):
            absent[name] = encode
        else:
            encodes[name] = encode
    calls: dict[str, Callable[[], object]] = {}
    checked: dict[str, Figures] = {}
    for name, encode in encodes.items():
        try:
            like = compare(encode(texts)[rows], reference)
        except Exception as error:
            absent[name] = f"{type(error).__name__}: {first_line(error)}"
            if context.device.type == "cuda":
                torch.cuda.synchronize()
            continue
        checked[name] = {"cosine": round(like.cosine, 6), "apart": round(like.apart, 5)}
        wrong = like.wrong(SHAPES["MiniLM-L6"].cosine)
        if wrong is None:
            calls[name] = functools.partial(encode, texts)
        else:
            absent[name] = wrong
    figures: Figures = {
        "status": "ok", "weights": weights, "tokens": stats.tokens, "texts": len(texts), "latency": False,
        "absent": absent, "least_cosine": SHAPES["MiniLM-L6"].cosine,
    }  # fmt: skip
    if OURS in absent:
        return figures | {"status": "failed", "reason": f"{OURS}: {absent[OURS]}"}
    seconds = time_rounds(calls, context, seconds=SECONDS, least=3, most=9)
    if seconds is None:
        return figures | {"timed": dict.fromkeys(calls), "checked": checked}
    return figures | _timed(seconds, stats.tokens, checked)


def _timed(seconds: dict[str, list[float]], tokens: int, checked: dict[str, Figures]) -> Figures:
    timed: dict[str, Figures] = {}
    for name, found in seconds.items():
        times = spread([1e3 * value for value in found])
        timed[name] = {
            "ms": {"median": round(times.median, 3), "p20": round(times.p20, 3), "p80": round(times.p80, 3)},
            "tokens_per_second": round(tokens / times.median * 1e3),
            "ratio": round(ratio(seconds, OURS, name).median, 3),
            **checked[name],
        }
    figures: Figures = {"rounds": len(seconds[OURS]), "timed": timed}
    peers = [name for name in timed if name != OURS]
    if peers:
        best = min(peers, key=lambda name: timed[name]["ms"]["median"])
        figures |= {"best_peer": best, "ratio": timed[best]["ratio"]}
    return figures


def _theirs(folder: Path, device: str, dtype: torch.dtype) -> Iterator[tuple[str, Encode | str]]:
    """sentence-transformers with its own size of batches, and with a larger one; or why it is not there."""
    if importlib.util.find_spec("sentence_transformers") is None:
        yield THEIRS.format(BATCHES[0]), "not installed"
        return
    try:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(
            str(folder), device=device, model_kwargs={"dtype": dtype}, local_files_only=True
        )  # fmt: skip
    except Exception as error:  # another one's code, of any version
        yield THEIRS.format(BATCHES[0]), f"{type(error).__name__}: {first_line(error)}"
        return
    for size in BATCHES:

        def encode(given: Sequence[str], size: int = size) -> Tensor:
            vectors = model.encode(
                list(given), batch_size=size, show_progress_bar=False, normalize_embeddings=True,
                convert_to_tensor=True,
            )  # fmt: skip
            return vectors.to("cpu", torch.float32)

        yield THEIRS.format(size), encode


def _tokenizer(vocabulary: Sequence[str]) -> dict[str, Any]:
    special = {token: place for place, token in enumerate(_SPECIAL)}
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    cls, sep = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ("[CLS]", "[SEP]"))
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": place, "content": token, **flags} for token, place in special.items()],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [cls, sequence, sep],
            "pair": [cls, sequence, sep, {"Sequence": {"id": "B", "type_id": 1}}, sep],
            "special_tokens": {token: {"id": token, "ids": [special[token]], "tokens": [token]}
                               for token in ("[CLS]", "[SEP]")},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": {word: place for place, word in enumerate(vocabulary)}},
    }  # fmt: skip
