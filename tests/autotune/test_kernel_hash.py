from __future__ import annotations

from pathlib import Path

import pytest

from padless.autotune.kernel_hash import KERNELS, _collect, _Sources, kernel_hashes, source_hash

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


LAUNCHER = """
from ..engine.buckets import bucket
from .kernel import doubled
from .limits import require
from .registration import traceable

CANDIDATES = (1, 2)


def default_config():
    return CANDIDATES[0]


def factor(x):
    return len(x) * 3


@traceable("op")
def launcher(x):
    'What it does.'
    require(x)
    doubled[(default_config(),)](x, factor(x), bucket(x))
"""


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("launcher", "* 3", "* 4", True),
        ("launcher", "factor(x), bucket", "-factor(x), bucket", True),
        ("launcher", "What it does.", "Something else.", False),
        ("launcher", "return CANDIDATES[0]", "return CANDIDATES[1]", False),
        ("launcher", "(1, 2)", "(1, 2, 4)", False),
        ("kernel", "x * SCALE", "x + SCALE", True),
        ("limits", "assert", "assert not", False),
        ("engine", "x + 1", "x + 2", True),
        ("logarithm", "x / 2", "x / 3", True),
    ],
)
def test_a_launcher_counts_with_all_it_computes(tmp_path: Path, file: str, old: str, new: str, changes: bool) -> None:
    files = {
        "launcher": (tmp_path / "kernels" / "launcher.py", LAUNCHER),
        "kernel": (tmp_path / "kernels" / "kernel.py", KERNEL),
        "limits": (tmp_path / "kernels" / "limits.py", "def require(x):\n    assert x\n"),
        "engine": (
            tmp_path / "engine" / "buckets.py",
            "from .maths import log\n\n\ndef bucket(x):\n    return log(x + 1)\n",
        ),
        "logarithm": (tmp_path / "engine" / "maths.py", "def log(x):\n    return x / 2\n"),
    }
    for path, text in files.values():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    before = source_hash("launcher", tmp_path / "kernels")
    path, text = files[file]
    assert old in text
    path.write_text(text.replace(old, new))
    assert (source_hash("launcher", tmp_path / "kernels") != before) == changes


def test_the_hash_of_attention_covers_its_launch_and_the_buckets_of_its_bias() -> None:
    parts: dict[str, str] = {}
    _collect(_Sources(KERNELS), "attention", "varlen_attention", parts)
    expected = {
        "attention.forward",
        "attention_forward.attention_kernel",
        "schedule.tile_list",
        "relative_bias.bias_by_distance",
        ".engine.relative_position._buckets",
    }
    assert expected <= set(parts)
    assert not {"attention.default_config", "attention.CANDIDATES", "attention.check_inputs"} & set(parts)


def test_a_file_without_kernels_has_no_hash(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("def launcher(x):\n    return x\n")
    assert source_hash("plain", tmp_path) is None
    hashed(tmp_path, KERNEL)
    assert set(kernel_hashes(tmp_path)) == {"kernel", "helpers"}


def test_every_kernel_of_ours_has_a_hash() -> None:
    hashes = kernel_hashes()
    assert {"attention_forward", "decode", "rope", "pool", "embed"} <= set(hashes)
    assert len(set(hashes.values())) == len(hashes)
