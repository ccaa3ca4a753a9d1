"""The mutants of all kernels, and which tests watch over which kernel."""

from __future__ import annotations

from mutant import Kernel
from mutants_of_attention import FORWARD, SCHEDULE
from mutants_of_decode import DECODE
from mutants_of_head import TOP_K
from mutants_of_linear import ACTIVATIONS, LINEAR
from mutants_of_mobilebert import MOBILEBERT_IN, MOBILEBERT_OUT
from mutants_of_norm import NORM
from mutants_of_norm_linear import NORMALISED, ROW_STATISTICS
from mutants_of_rows import EMBED, POOL, ROPE, TEXTS, TRIGRAM

__all__ = ["KERNELS"]

ATTENTION_TESTS = (
    "test_attention_mutants.py",
    "test_attention.py",
    "test_attention_exact.py",
    "test_attention_properties.py",
)
TRIGRAM_TESTS = ("test_trigram.py", "test_trigram_properties.py")
POOL_TESTS = ("test_pool.py", "test_pool_mutants.py", "test_pool_properties.py")
NORM_LINEAR_TESTS = (
    "test_norm_linear_mutants.py",
    "test_row_statistics.py",
    "test_norm_linear.py",
    "test_norm_linear_properties.py",
)
LINEAR_TESTS = (
    "test_linear_mutants.py",
    *NORM_LINEAR_TESTS[:2],
    "test_linear.py",
    "test_linear_precision.py",
    "test_linear_properties.py",
)
NORM_TESTS = ("test_norm_rounding.py", "test_norm_mutants.py", "test_norm.py", "test_norm_properties.py")
MOBILEBERT_TESTS = (
    "test_mobilebert_mutants.py",
    "test_mobilebert.py",
    "test_mobilebert_precision.py",
    "test_mobilebert_properties.py",
)
HEAD_TESTS = ("test_mlm_head_mutants.py", "test_mlm_head.py", "test_mlm_head_properties.py")

KERNELS = (
    Kernel("attention_forward", ATTENTION_TESTS, FORWARD),
    Kernel("schedule", ("test_schedule.py", "test_schedule_mutants.py", "test_attention.py"), SCHEDULE),
    Kernel("decode", ("test_decode.py", "test_decode_mutants.py", "test_decode_properties.py"), DECODE),
    Kernel("rope", ("test_rope.py", "test_rope_mutants.py", "test_rope_properties.py"), ROPE),
    Kernel("embed", ("test_embed.py", "test_embed_mutants.py", "test_embed_properties.py"), EMBED),
    Kernel("trigram", TRIGRAM_TESTS, TRIGRAM),
    Kernel("pool", POOL_TESTS, POOL),
    Kernel("linear_forward", LINEAR_TESTS, LINEAR + NORMALISED),
    Kernel("row_statistics", NORM_LINEAR_TESTS, ROW_STATISTICS),
    Kernel("activations", ("test_activations.py",), ACTIVATIONS),
    Kernel("norm", NORM_TESTS, NORM),
    Kernel("mobilebert_in", MOBILEBERT_TESTS, MOBILEBERT_IN),
    Kernel("mobilebert_out", MOBILEBERT_TESTS, MOBILEBERT_OUT),
    Kernel("top_k", HEAD_TESTS, TOP_K),
    Kernel("texts", (*TRIGRAM_TESTS, *POOL_TESTS), TEXTS),
)
