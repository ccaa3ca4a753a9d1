from __future__ import annotations

from pathlib import Path

import pytest

from padless.bench.kernel_hash import kernel_hashes, source_hash

KERNEL = '''
import triton
import triton.language as tl

from .helpers import widened

SCALE = tl.constexpr(2.0)
UNUSED = 7


@triton.jit
def doubled(x_ptr, BLOCK: tl.constexpr):
    """What it does."""
    x = tl.load(x_ptr + tl.arange(0, BLOCK))  # [BLOCK]
    if BLOCK > 1:
        x = widened(x)
    tl.store(x_ptr + tl.arange(0, BLOCK), x * SCALE)


def launcher(x):
    doubled[(1,)](x, BLOCK=128)
'''

HELPERS = """
@triton.jit
def widened(x):
    return x.to(tl.float32)


@triton.jit
def other(x):
    return x
"""


def hashed(folder: Path, kernel: str, helpers: str = HELPERS) -> str | None:
    (folder / "kernel.py").write_text(kernel)
    (folder / "helpers.py").write_text(helpers)
    return source_hash("kernel", folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # [BLOCK]", "  # one row"),
        ('    """What it does."""\n', '    """Something else."""\n'),
        ('    """What it does."""\n', ""),
        ("x * SCALE", "(x  *\n        SCALE)"),
        ("BLOCK=128", "BLOCK=256"),
        ("UNUSED = 7", "UNUSED = 8"),
        ("def launcher(x):", "def started(x, config=None):"),
    ],
)
def test_what_computes_nothing_changes_nothing(tmp_path: Path, old: str, new: str) -> None:
    assert old in KERNEL
    assert hashed(tmp_path, KERNEL.replace(old, new)) == hashed(tmp_path, KERNEL)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x * SCALE", "x + SCALE"),
        ("constexpr(2.0)", "constexpr(3.0)"),
        ("BLOCK > 1", "BLOCK > 2"),
        ("@triton.jit\ndef doubled", "@triton.jit(noinline=True)\ndef doubled"),
        ("BLOCK: tl.constexpr", "BLOCK"),
        ("constexpr(2.0)", "constexpr(2)"),
    ],
)
def test_what_computes_changes_the_hash(tmp_path: Path, old: str, new: str) -> None:
    assert old in KERNEL
    assert hashed(tmp_path, KERNEL.replace(old, new)) != hashed(tmp_path, KERNEL)


def test_a_helper_of_another_file_counts_where_it_is_used(tmp_path: Path) -> None:
    before = hashed(tmp_path, KERNEL)
    assert hashed(tmp_path, KERNEL, HELPERS.replace("tl.float32", "tl.float64")) != before
    assert hashed(tmp_path, KERNEL, HELPERS.replace("return x\n", "return -x\n")) == before


def test_a_file_without_kernels_has_no_hash(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("def launcher(x):\n    return x\n")
    assert source_hash("plain", tmp_path) is None
    hashed(tmp_path, KERNEL)
    assert set(kernel_hashes(tmp_path)) == {"kernel", "helpers"}


def test_every_kernel_of_ours_has_a_hash() -> None:
    hashes = kernel_hashes()
    assert {"attention_forward", "decode", "rope", "pool", "embed"} <= set(hashes)
    assert len(set(hashes.values())) == len(hashes)
