"""No batch asks for a kernel that the warm-up has not asked for: what Triton would compile for each launch, as its own
specialisation finds it, for models of all five families as on GPUs that need not be there.

Nothing is computed by Triton, so that batches are as large as on a GPU, with the limits that models and GPUs have.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import triton
from gate_recorder import Launch, Specialisation, recorded, specialise
from tokenizers import Tokenizer, models, pre_tokenizers
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

import padless
from padless import kernels
from padless.engine import warmup
from padless.engine.compilations import cache_folder, compilations
from padless.engine.contract import Call
from padless.engine.cuda_graphs.buckets import Bucket, StaticBatch
from padless.engine.embedding.encoder import Encoder
from padless.engine.embedding.pooling import SentenceHead
from padless.engine.folders.sentence_transformer import NormalizeSpec, PoolingSpec
from padless.engine.loading import TOKEN_BUDGET
from padless.engine.warmup import warm_up
from padless.kernels import mobilebert
from padless.kernels.pool import pool

SEED = 20261121
BATCHES = 60
VOCABULARY = 61

BERT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 36,
    "max_position_embeddings": 512,
}
NARROW = {"embedding_size": 12, "intra_bottleneck_size": 20, "num_feedforward_networks": 3}
WINDOWS = {"num_hidden_layers": 4, "max_position_embeddings": 2048, "pad_token_id": 0}
T5 = {"vocab_size": VOCABULARY, "d_model": 24, "d_kv": 5, "d_ff": 28, "num_layers": 3, "num_heads": 3}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "BERT": ("Bert", BERT),
    "MegatronBERT": ("MegatronBert", {**BERT, "hidden_size": 128, "num_attention_heads": 2}),
    "MobileBERT": ("MobileBert", {**BERT, **NARROW, "hidden_size": 32, "num_attention_heads": 4}),
    "ModernBERT": ("ModernBert", {**BERT, **WINDOWS}),
    "mT5": ("MT5Encoder", T5),
}
"""Name -> what the name of its model class begins with, and a configuration of small widths and real limits."""

CASES = [
    (family, dtype, backend, sm)
    for dtype, backend, sm in (("bfloat16", "triton", 90), ("bfloat16", "auto", 90), ("float32", "triton", 80))
    for family in FAMILIES
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with a random model of each family; each word is a token, and there are no special ones."""
    root = tmp_path_factory.mktemp("models")
    words = {"[UNK]": 0, **{f"word{number}": number for number in range(1, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    for family, (prefix, fields) in FAMILIES.items():
        config = getattr(padless, prefix.removesuffix("Encoder") + "Config")(**fields)
        getattr(padless, prefix + "Model")(config).save_pretrained(root / family)
        tokenizer.save(str(root / family / "tokenizer.json"))
        (root / family / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return {family: root / family for family in FAMILIES}


@contextmanager
def as_on(sm: int) -> Iterator[None]:
    """Launchers choose for a GPU of this compute capability, though their tensors lie in this machine's memory."""
    files = [
        importlib.import_module(f"{kernels.__name__}.{found.name}") for found in pkgutil.iter_modules(kernels.__path__)
    ]
    asked = [(file, name) for file in files for name in ("_capability", "_compute_capability") if hasattr(file, name)]
    assert asked
    with pytest.MonkeyPatch.context() as changed:
        for file, name in asked:
            changed.setattr(file, name, lambda device: sm)
        changed.setattr(mobilebert, "FEW_INTERPRETED_PROGRAMS", mobilebert.FEW_PROGRAMS)
        changed.setattr(warmup, "wanted", lambda option, device: bool(option))
        yield


def loaded(
    folder: Path, dtype: str, backend: str, sm: int, graphs: bool, token_budget: int = TOKEN_BUDGET["cuda"]
) -> Encoder:
    """The encoder, with the ops that would serve it on such a GPU, and with CUDA graphs or without."""
    encoder = padless.load(folder, device="cpu", dtype=dtype)
    encoder.cuda_graphs = graphs
    for op in encoder.bound_ops():
        assert op.resolution is not None
        op.bind_as(replace(op.resolution.call, device="cuda", sm=sm), backend=backend)
    encoder.token_budget = token_budget
    return encoder


class Kernels:
    """What Triton would compile on a GPU: kernel, type and specialisation of each argument, constants, options."""

    def __init__(self, sm: int) -> None:
        self._backend = make_backend(GPUTarget("cuda", sm, 32))
        self._binders: dict[Any, Callable[..., Any]] = {}

    def of(self, launches: Sequence[Launch]) -> set[tuple[str, str, str]]:
        return {self._of(launch) for launch in launches}

    def _of(self, launch: Launch) -> tuple[str, str, str]:
        kernel = launch.kernel
        if kernel not in self._binders:
            self._binders[kernel] = create_function_from_signature(kernel.signature, kernel.params, self._backend)
        _, specialisation, options = self._binders[kernel](debug=False, instrumentation_mode="", **launch.keywords)
        return launch.name, str(specialisation), str(options)


def asked_for(encoder: Encoder, lengths: Sequence[int], found: Kernels) -> set[tuple[str, str, str]]:
    """The kernels of a batch, and where CUDA graphs would bring it to a bucket, those of the bucket."""
    batch = warmup._batch(tuple(lengths), typed=False)
    with recorded() as launches:
        encoder.compute(batch, prompt_tokens=len(lengths) % 17)
        bucket = Bucket.of(batch, encoder.max_seq_length)
        if bucket is not None and encoder.cuda_graphs:
            static = StaticBatch(bucket, torch.device("cpu"))
            static.fill(batch)
            encoder.compute(static.batch)
    return found.of(launches)


def hostile(longest: int, budget: int, batches: int) -> Iterator[list[int]]:
    """Lengths of texts, batch by batch: the corners first, then whatever chance gives."""
    corners = [
        [1],
        [1] * 10_000,
        [0],
        [0, 5, 0, 0, 17, 0],
        [longest],
        [longest] * (budget // longest),
        [longest, *[1] * 1000],
        *([edge + step, *[1] * ones] for edge in (64, 128, 256) for step in (-1, 0, 1) for ones in (0, 1, 2, 15)),
    ]
    draw = random.Random(SEED)

    def up_to(limit: int) -> int:
        """As often small as large."""
        return min(int(2 ** draw.uniform(0, limit.bit_length())), limit)

    def drawn() -> list[int]:
        texts, most = range(up_to(budget)), up_to(longest)
        return draw.choice(
            (
                lambda: [most],
                lambda: [most for _ in texts],
                lambda: [draw.randint(1, most) for _ in texts],
                lambda: [up_to(most) for _ in texts],
                lambda: [16 * draw.randint(1, most // 16 + 1) for _ in texts],
                lambda: [17 * draw.randint(1, most // 17 + 1) for _ in texts],
                lambda: [draw.choice((0, 1, most)) for _ in texts],
            )
        )()

    for lengths in (*corners, *(drawn() for _ in range(batches))):
        lengths = [min(length, longest) for length in lengths]
        ends = sum(end <= budget for end in itertools.accumulate(lengths))
        yield lengths[: max(ends, 1)]


def kernels_of_the_warm_up(encoder: Encoder, found: Kernels) -> set[tuple[str, str, str]]:
    with recorded() as launches:
        done = warm_up(encoder)
    assert done.kernels == 0, "nothing was compiled, for nothing was launched"
    return found.of(launches)


def check(encoder: Encoder, sm: int, batches: int) -> None:
    """Warm up, then compute hostile batches: none of them may ask for anything new."""
    found = Kernels(sm)
    with as_on(sm), torch.no_grad():
        known = kernels_of_the_warm_up(encoder, found)
        assert {name for name, *_ in known} >= {"embed_kernel", "attention_kernel"}
        longest = encoder.max_seq_length or encoder.token_budget
        for lengths in hostile(longest, encoder.token_budget, batches):
            new = asked_for(encoder, lengths, found) - known
            assert not new, f"{len(lengths)} texts, {sum(lengths)} tokens, longest {max(lengths)}: {new}"


@pytest.mark.parametrize(("family", "dtype", "backend", "sm"), CASES)
def test_no_batch_asks_for_a_kernel_that_the_warm_up_has_not(
    family: str, dtype: str, backend: str, sm: int, folders: dict[str, Path]
) -> None:
    check(loaded(folders[family], dtype, backend, sm, graphs=backend == "auto"), sm, BATCHES)


@pytest.mark.parametrize("modes", [("cls",), ("lasttoken",), ("max", "mean_sqrt_len_tokens", "weightedmean")])
@pytest.mark.parametrize("after", [[], [NormalizeSpec()]])
def test_however_texts_are_pooled(modes: tuple[str, ...], after: list[NormalizeSpec], folders: dict[str, Path]) -> None:
    encoder = loaded(folders["BERT"], "bfloat16", "auto", 90, graphs=False)
    encoder.head = SentenceHead.from_specs([PoolingSpec(modes, include_prompt=False), *after], 24, "")
    for pooled in encoder.head.pooling.pools:
        pooled.bind_as(Call("pool", "cuda", torch.bfloat16, sm=90, hidden=24), backend="triton")
    check(encoder, 90, BATCHES // 2)


@pytest.mark.grid
@pytest.mark.parametrize(
    ("family", "dtype"),
    # MobileBERT is refused in fp16, for its activations do not fit.
    [
        (family, dtype)
        for dtype in ("bfloat16", "float16", "float32")
        for family in FAMILIES
        if (family, dtype) != ("MobileBERT", "float16")
    ],
)
@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("sm", [80, 90, 120])
def test_nor_does_any_of_many_batches(family: str, dtype: str, backend: str, sm: int, folders: dict[str, Path]) -> None:
    for graphs in (False, True):
        check(loaded(folders[family], dtype, backend, sm, graphs), sm, 3 * BATCHES)


@pytest.mark.parametrize(
    ("family", "sm", "graphs", "token_budget", "longest"),
    [
        *(("BERT", 90, graphs, budget, 512) for graphs in (False, True) for budget in (1, 129, 130, 257)),
        *(("BERT", 90, True, 100, longest) for longest in (1, 129, 200, 256)),
        *(("MobileBERT", 80, False, budget, 512) for budget in (513, 2048, 2049)),
    ],
)
def test_whatever_the_limits(
    family: str, sm: int, graphs: bool, token_budget: int, longest: int, folders: dict[str, Path]
) -> None:
    encoder = loaded(folders[family], "bfloat16", "auto", sm, graphs, token_budget)
    encoder.tokenizer.max_length = longest
    check(encoder, sm, BATCHES // 4)


@pytest.mark.parametrize(
    ("family", "left_out", "missed"),
    [
        ("BERT", lambda lengths: len(set(lengths)) > 1, {"attention_kernel", "_tile_list_kernel"}),
        ("BERT", lambda lengths: sum(lengths) > 128, {"attention_kernel", "_tile_list_kernel", "pool_join_kernel"}),
        ("MobileBERT", lambda lengths: sum(lengths) > 8192, {"mobilebert_in_kernel", "mobilebert_out_kernel"}),
        ("MobileBERT", lambda lengths: 2048 < sum(lengths) <= 8192, {"mobilebert_in_kernel"}),
    ],
)
def test_a_warm_up_without_some_batches_misses_their_kernels(
    family: str, left_out: Callable[[tuple[int, ...]], bool], missed: set[str], folders: dict[str, Path]
) -> None:
    encoder, found = loaded(folders[family], "bfloat16", "triton", 90, graphs=False), Kernels(90)
    batches = [lengths for lengths in warmup.plan(512, encoder.token_budget) if not left_out(lengths)]
    with as_on(90), torch.no_grad(), patch.object(warmup, "plan", lambda *_: batches):
        known = kernels_of_the_warm_up(encoder, found)
        asked = (asked_for(encoder, lengths, found) for lengths in hostile(512, encoder.token_budget, BATCHES))
        assert {name for name, *_ in set().union(*asked) - known} == missed


def test_what_triton_compiles_is_counted_apart_from_what_its_cache_has(tmp_path: Path) -> None:
    target = GPUTarget("cuda", 90, 32)
    cu_seqlens = torch.tensor([0, 200], dtype=torch.int32)
    with recorded() as launches:
        pool(torch.zeros(200, 16), cu_seqlens, mode="max", skip=3)
    first, second = (specialise(launch, target) for launch in launches)
    told: list[bool] = []

    def compiled(one: Specialisation) -> None:
        triton.compile(one.source, target=target, options=one.options.__dict__)

    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("TRITON_CACHE_DIR", str(tmp_path))
        changed.setattr(knobs.compilation, "listener", lambda **facts: told.append(facts["cache_hit"]))
        before = knobs.compilation.listener
        with compilations() as found:
            compiled(first)
            assert (found.compiled, found.cached) == (1, 0)
            compiled(first)
            compiled(second)
            compiled(first)
        compiled(second)
        assert knobs.compilation.listener is before
        assert cache_folder() == tmp_path
    assert (found.compiled, found.cached) == (2, 2)
    assert told == [False, True, False, True, True], "who listened before goes on to be told"
    assert list(tmp_path.glob("*/*.cubin"))
