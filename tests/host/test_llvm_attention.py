"""Attention compiled by LLVM: against eager in fp64 by the 2x rule, a text's bits, and what it reads and writes."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("llvmlite", reason="needs package llvmlite, not installed")

from padless.engine.contract import Call
from padless.engine.errors import InputError
from padless.engine.memo import Memo
from padless.engine.ops.attention import varlen_attention as eager
from padless.engine.ops.cpu import vector_attention as row
from padless.kernels.llvm import attention as kernel
from padless.kernels.llvm import host
from padless.kernels.llvm.host import missing_features

LENGTHS = (0, 1, 2, 5, 6, 7, 15, 16, 17, 31, 33, 63, 64, 65, 127, 130, 257)
NAN = math.nan


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    needs(request.param)
    return request.param


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def needs(dtype: torch.dtype) -> None:
    if missing := missing_features(dtype):
        pytest.skip("; ".join(missing))


def starts(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def random_qkv(
    lengths: Sequence[int], dtype: torch.dtype, heads: int = 2, head_dim: int = 32, *, heads_k: int = 0, seed: int = 0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    counts = (heads, heads_k or heads, heads_k or heads)
    return [torch.randn(sum(lengths), count, head_dim, generator=generator).to(dtype) for count in counts]


def served(qkv: Sequence[Tensor], lengths: Sequence[int], **options: Any) -> Tensor:
    return row.varlen_attention(*qkv, starts(lengths), max(lengths, default=0), **options)


def specified(qkv: Sequence[Tensor], lengths: Sequence[int], **options: Any) -> Tensor:
    out = eager(*qkv, starts(lengths), max(lengths, default=0), **options)
    assert isinstance(out, Tensor)
    return out


def assert_twice_eager(out: Tensor, qkv: Sequence[Tensor], lengths: Sequence[int], **options: Any) -> None:
    """The one bound that serves all kernels, see CONTRIBUTING.md."""
    dtype = qkv[0].dtype
    wide = dict(options)
    if (bias := options.get("position_bias")) is not None:
        wide["position_bias"] = bias.double()
    reference = specified([x.double() for x in qkv], lengths, **wide)
    assert out.dtype == dtype
    assert out.shape == qkv[0].shape
    if not out.numel():
        return
    errors = [(x.double() - reference).abs().max().item() for x in (out, specified(qkv, lengths, **options))]
    assert errors[0] <= 2 * errors[1] + torch.finfo(dtype).eps * reference.abs().max().item(), errors


def assert_served_right(qkv: Sequence[Tensor], lengths: Sequence[int], **options: Any) -> None:
    assert_twice_eager(served(qkv, lengths, **options), qkv, lengths, **options)


def same_bits(left: Tensor, right: Tensor) -> bool:
    integers = {2: torch.int16, 4: torch.int32}[left.element_size()]
    return torch.equal(left.contiguous().view(integers), right.contiguous().view(integers))


# Against the specification.


@pytest.mark.parametrize("length", LENGTHS)
def test_a_text_of_any_length(length: int, dtype: torch.dtype) -> None:
    assert_served_right(random_qkv([length], dtype, seed=length), [length])


@pytest.mark.parametrize(
    "lengths",
    [(), (0,), (0, 0, 0), (0, 3, 0, 0, 17, 1, 0), (1,) * 300, LENGTHS, LENGTHS[::-1]],
    ids=["none", "empty", "all empty", "empty between", "single tokens", "all", "all reversed"],
)
def test_texts_of_different_lengths(lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_served_right(random_qkv(lengths, dtype, seed=1), lengths)


@pytest.mark.parametrize("head_dim", [16, 32, 48, 64, 96, 128, 256])
def test_heads_of_any_width(head_dim: int, dtype: torch.dtype) -> None:
    call = Call("attention", "cpu", dtype, head_dim=head_dim, window="full", bias="none")
    if head_dim % (32 if dtype == torch.bfloat16 else 16):
        assert row.unsupported(call) == [f"needs head_dim a multiple of 32 and at most 256, got {head_dim}"]
        return
    assert row.unsupported(call) == []
    lengths = (19, 0, 1, 70)
    assert_served_right(random_qkv(lengths, dtype, 3, head_dim, seed=head_dim), lengths)


@pytest.mark.parametrize("head_dim", [8, 20, 272, 512])
def test_heads_that_are_no_whole_vectors_are_refused(head_dim: int, dtype: torch.dtype) -> None:
    (reason,) = row.unsupported(Call("attention", "cpu", dtype, head_dim=head_dim, window="full", bias="none"))
    assert reason.endswith(f"and at most 256, got {head_dim}")


@pytest.mark.parametrize("heads_k", [1, 2, 3])
def test_grouped_heads(heads_k: int, dtype: torch.dtype) -> None:
    lengths = (7, 1, 34)
    assert_served_right(random_qkv(lengths, dtype, 6, heads_k=heads_k, seed=2), lengths)


def test_strided_inputs_and_wide_bounds_change_no_bit(dtype: torch.dtype) -> None:
    lengths = (5, 0, 33, 1, 18)
    qkv = random_qkv(lengths, dtype, 3, seed=3)
    expected = served(qkv, lengths)
    fused = torch.full((sum(lengths), 3, 3 * 32 + 32), NAN, dtype=dtype)
    fused[:, :, :96] = torch.cat(qkv, dim=2)
    by_rows = torch.cat([x.flatten(1) for x in qkv], dim=1)
    by_heads = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in qkv]
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv]
    every_second = [torch.stack([x, torch.full_like(x, NAN)], dim=3)[..., 0] for x in qkv]
    layouts = [fused[:, :, :96].chunk(3, dim=2), [x.unflatten(1, (3, 32)) for x in by_rows.chunk(3, dim=1)]]
    for layout in (*layouts, by_heads, turned, every_second):
        assert not all(x.is_contiguous() for x in layout)
        out = served(layout, lengths)
        assert out.is_contiguous()
        assert same_bits(out, expected)
    for cu_seqlens in (starts(lengths).long(), starts(lengths).repeat_interleave(2)[::2]):
        assert same_bits(row.varlen_attention(*qkv, cu_seqlens, 33), expected)
    assert same_bits(row.varlen_attention(*qkv, starts(lengths), 500), expected)


WINDOWS = [(1, 1), (0, 0), (0, 3), (3, 0), (64, 64), (5, -1), (-1, 5), (15, 16), (1000, 1000), (2**40, 2)]


@pytest.mark.parametrize("window", WINDOWS)
def test_windows(window: tuple[int, int], dtype: torch.dtype) -> None:
    lengths = (3, 1, 0, 130, 17, 70)
    assert_served_right(random_qkv(lengths, dtype, seed=4), lengths, window=window)


@pytest.mark.parametrize("window", [(1, 1), (0, 3), (3, 0), (64, 64), (5, -1)])
def test_who_sees_a_key_is_who_the_window_says(window: tuple[int, int], dtype: torch.dtype) -> None:
    # All scores are 0 and all values but one: whoever sees that one, and only they, come out above it.
    length, outlier = 150, 70
    q, k, v = torch.zeros(3, length, 1, 32, dtype=dtype)
    v[outlier] = 1e6
    out = served((q, k, v), [length], window=window)[:, 0, 0]
    left, right = (length if side < 0 else side for side in window)
    rows = torch.arange(length)
    sees = (rows - left <= outlier) & (outlier <= rows + right)
    assert (out[sees] > 1000).all()
    assert (out[~sees].abs() < 1e-20).all()
    counts = (rows + right).clamp(max=length - 1) - (rows - left).clamp(min=0) + 1
    torch.testing.assert_close(out[sees].double(), (1e6 / counts[sees]).double(), rtol=0.005, atol=0)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("max_distance", [20, 128])
@pytest.mark.parametrize("window", [(-1, -1), (9, 40)])
def test_bias_by_distance(bidirectional: bool, max_distance: int, window: tuple[int, int], dtype: torch.dtype) -> None:
    lengths = (1, 40, 0, 150, 6, 17)
    qkv = random_qkv(lengths, dtype, 3, seed=5)
    bias = 3 * torch.randn(32, 3, generator=torch.Generator().manual_seed(6))
    options: dict[str, Any] = {"bias_max_distance": max_distance, "bias_bidirectional": bidirectional}
    options |= {"window": window, "position_bias": bias.to(dtype)}
    assert_served_right(qkv, lengths, **options)
    memo = Memo()
    twice = [served(qkv, lengths, **options, memo=memo) for _ in range(2)]
    assert same_bits(twice[0], served(qkv, lengths, **options))
    assert same_bits(*twice)


def test_a_bias_to_the_left_is_not_one_to_the_right(dtype: torch.dtype) -> None:
    # Only keys two to the right of a query are raised, so far that nothing else counts: the output is their value.
    length = 23
    q, k = torch.zeros(2, length, 1, 32, dtype=dtype)
    v = torch.randn(length, 1, 32, generator=torch.Generator().manual_seed(7)).to(dtype)
    bias = torch.zeros(32, 1)
    bias[16 + 2] = 200.0
    out = served((q, k, v), [length], position_bias=bias)
    torch.testing.assert_close(out[:-2], v[2:], rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 0.37, -0.9, 7.0])
def test_scales(scale: float, dtype: torch.dtype) -> None:
    lengths = (33, 2, 19)
    assert_served_right(random_qkv(lengths, dtype, seed=8), lengths, softmax_scale=scale)


@pytest.mark.parametrize("magnitude", [30.0, 300.0, 1e8])
def test_scores_whose_exponential_would_overflow(magnitude: float, dtype: torch.dtype) -> None:
    lengths = (65, 1, 18)
    q, k, v = random_qkv(lengths, dtype, seed=9)
    out = served((q * magnitude, k * magnitude, v), lengths)
    assert out.isfinite().all()
    assert_twice_eager(out, (q * magnitude, k * magnitude, v), lengths)


@pytest.mark.parametrize("score", [-1e30, -3e4, 3e4, 1e30])
def test_equal_scores_far_from_zero_average_the_values(score: float, dtype: torch.dtype) -> None:
    length = 37
    q, k, v = torch.zeros(3, length, 1, 32, dtype=dtype)
    q[..., 0], k[..., 0] = score, 1.0
    v[:] = torch.arange(length).view(-1, 1, 1)
    out = served((q, k, v), [length], softmax_scale=1.0)
    torch.testing.assert_close(out.double(), torch.full_like(out, 18.0).double(), rtol=torch.finfo(dtype).eps, atol=0)


# Values that are no numbers.


@pytest.mark.parametrize("poison", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["q", "k", "v"])
@pytest.mark.parametrize("windowed", [False, True])
def test_what_is_not_finite_stays_in_its_text(poison: float, place: str, windowed: bool, dtype: torch.dtype) -> None:
    lengths = (17, 6, 0, 9, 1)
    options: dict[str, Any] = {"window": (4, 2)} if windowed else {}
    qkv = random_qkv(lengths, dtype, seed=10)
    before = served(qkv, lengths, **options)
    at = "qkv".index(place)
    qkv[at][17 + 2, 1, 3] = poison  # the third token of the second text
    after = served(qkv, lengths, **options)
    own = slice(17, 17 + 6)
    assert same_bits(after[:17], before[:17])
    assert same_bits(after[23:], before[23:])
    assert same_bits(after[own, 0], before[own, 0])
    expected = specified([x.double() for x in qkv], lengths, **options)[own, 1]
    found = after[own, 1]
    if not windowed:
        # There eager multiplies hidden values by 0, which is NaN as well.
        assert torch.equal(found.isnan(), expected.isnan())
        torch.testing.assert_close(found.double(), expected, rtol=0.05, atol=0.05, equal_nan=True)
    if place == "q":
        assert torch.equal(found.isnan(), expected.isnan())
    assert not found[2].isfinite().all() or (place == "k" and poison != NAN)


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0x7FFFFFFF, -1, 0x7F800001])
@pytest.mark.parametrize("place", ["q", "k", "v"])
def test_any_bits_of_nan_are_nan_behind_it(bits: int, place: str) -> None:
    needs(torch.float32)
    qkv = random_qkv([13], torch.float32, seed=11)
    poisoned = qkv["qkv".index(place)]
    poisoned.view(torch.int32)[4, 1, 7] = bits
    assert poisoned.isnan().sum() == 1
    expected = specified(qkv, [13])
    assert torch.equal(served(qkv, [13]).isnan(), expected.isnan())


# A text's bits are its own.


@pytest.mark.parametrize("window", [(-1, -1), (6, 3)])
def test_a_texts_bits_do_not_depend_on_its_neighbours(window: tuple[int, int], dtype: torch.dtype) -> None:
    for length in (1, 6, 17, 65, 130):
        text = random_qkv([length], dtype, seed=length)
        alone = served(text, [length], window=window)
        for before, after in (((), (40, 1)), ((40, 1), ()), ((3, 0, 200), (7,)), ((1,) * 9, (0, 0, 1))):
            neighbours = [random_qkv(some, dtype, seed=77) for some in (before, after)]
            batch = [torch.cat(parts) for parts in zip(neighbours[0], text, neighbours[1], strict=True)]
            out = served(batch, (*before, length, *after), window=window)
            assert same_bits(out[sum(before) : sum(before) + length], alone)


@pytest.mark.usefixtures("threads")
def test_bits_do_not_depend_on_the_number_of_threads(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "WORTH_A_THREAD", 1)
    lengths = (33, 0, 1, 70, 18)
    qkv = random_qkv(lengths, dtype, 5, seed=12)
    bias = torch.randn(32, 5, generator=torch.Generator().manual_seed(13))
    found = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        found.append(served(qkv, lengths, position_bias=bias))
    assert all(same_bits(out, found[0]) for out in found[1:])
    assert_twice_eager(found[0], qkv, lengths, position_bias=bias)


# What is read and written.


@pytest.mark.parametrize("window", [(-1, -1), (6, 3)])
def test_only_the_rows_of_the_texts_are_read_and_only_the_output_is_written(
    window: tuple[int, int], dtype: torch.dtype
) -> None:
    lengths = (5, 1, 0, 34, 17)
    tokens = sum(lengths)
    qkv = random_qkv(lengths, dtype, seed=14)
    expected = served(qkv, lengths, window=window)
    # The same in the middle of rows of NaN, and of heads of NaN on either side.
    around = [torch.full((tokens + 40, 4, 32), NAN, dtype=dtype) for _ in qkv]
    for large, x in zip(around, qkv, strict=True):
        large[20:-20, 1:3] = x
    copies = [x.clone() for x in around]
    inner = [x[20:-20, 1:3] for x in around]
    assert same_bits(served(inner, lengths, window=window), expected)
    assert all(same_bits(x, copy) for x, copy in zip(around, copies, strict=True))


@pytest.mark.parametrize("filled", [0x00, 0xAB, 0xFF])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("windowed", [False, True])
def test_the_kernel_stays_inside_its_output_and_its_scratch_memory(
    filled: int, biased: bool, windowed: bool, dtype: torch.dtype
) -> None:
    lengths, heads, head_dim = (5, 0, 34, 17, 1), 3, 32
    longest, tokens = max(lengths), sum(lengths)
    window = (4, 9) if windowed else (-1, -1)
    qkv = random_qkv(lengths, dtype, heads, head_dim, seed=15)
    bounds, guard = starts(lengths), 256
    bias = None
    if biased:
        # The columns behind the last distance are read, but not used.
        bias = torch.full((heads, 2 * longest - 1 + kernel.PADDING), NAN)
        bias[:, : -kernel.PADDING] = torch.randn(heads, 2 * longest - 1, generator=torch.Generator().manual_seed(16))
    out = torch.full((tokens + 8, heads, head_dim), 7.0, dtype=dtype)
    size = out.element_size()
    scratch_bytes = kernel._scratch_bytes(longest, head_dim, size)
    scratch = torch.full((guard + scratch_bytes + guard,), filled, dtype=torch.uint8)
    run = kernel._kernel(head_dim, dtype == torch.bfloat16, windowed, biased)
    left, right = (kernel.UNBOUNDED if side < 0 else side for side in window)
    row_bytes = heads * head_dim * size
    scale = head_dim**-0.5
    table = torch.empty(0, 0) if bias is None else bias * math.log2(math.e)
    run(
        *(x.data_ptr() for x in qkv),
        out[4:].data_ptr(),
        bounds.data_ptr(),
        0 if bias is None else table.data_ptr(),
        scratch[guard:].data_ptr(),
        *([row_bytes] * 4),
        *([head_dim * size] * 4),
        *(len(lengths), 1, heads, longest, left, right),  # but the first head
        *(table.shape[1], longest - 1),
        scale * math.log2(math.e),
    )
    assert (out[:4] == 7.0).all()
    assert (out[-4:] == 7.0).all()
    assert (out[:, 0] == 7.0).all()
    assert (scratch[:guard] == filled).all()
    assert (scratch[-guard:] == filled).all()
    q, k, v = qkv
    expected = kernel.attend(q, k, v, bounds, longest, window=window, scale=scale, bias=bias)
    assert same_bits(out[4:-4, 1:], expected[:, 1:])
    assert out[4:-4].isfinite().all()


@pytest.mark.parametrize("biased", [False, True])
def test_a_caller_who_errs_about_the_longest_text_changes_nothing(biased: bool, dtype: torch.dtype) -> None:
    # The scratch memory and the bias are as long as the longest text, which no one has to be believed about.
    lengths = (300, 17)
    qkv, bounds = random_qkv(lengths, dtype, seed=20), starts(lengths)
    options = {"position_bias": torch.randn(32, 2, generator=torch.Generator().manual_seed(21))} if biased else {}
    expected = served(qkv, lengths, **options)
    for said in (0, 1, 299, -5, 10**9):
        assert same_bits(row.varlen_attention(*qkv, bounds, said, **options), expected)


@pytest.mark.parametrize(
    "bounds", [[], [0], [0, 8], [0, 5, 3, 9], [0, 12], [0, 9, 10], [-4, 9], [1, 9], [0, -1], [0, 2**31 - 1]]
)
def test_bounds_that_leave_the_tokens_are_refused(bounds: list[int], dtype: torch.dtype) -> None:
    q, k, v = random_qkv([9], dtype, seed=22)
    with pytest.raises(InputError, match="attention: cu_seqlens must rise from 0 to the number of tokens, 9, got "):
        row.varlen_attention(q, k, v, torch.tensor(bounds, dtype=torch.int32), 9)


def test_no_memory_beyond_the_last_row_is_touched() -> None:
    # The inputs end where a page ends that nobody may read: what goes beyond does not come back.
    needs(torch.float32)
    names = [name for name in ("float32", "bfloat16") if not missing_features(getattr(torch, name))]
    command = [sys.executable, "-c", AT_THE_END_OF_A_PAGE, *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    assert done.stdout.split() == names


AT_THE_END_OF_A_PAGE = """
import ctypes, mmap, os, sys
import torch
from padless.engine.ops.cpu.vector_attention import varlen_attention

libc = ctypes.CDLL(None, use_errno=True)
kept = []

def at_the_end(x):
    pages = -(-x.nbytes // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 2) * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages + 1):
        assert libc.mprotect(ctypes.c_void_p(start + page * mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
    kept.append(memory)
    offset = (pages + 1) * mmap.PAGESIZE - x.nbytes
    whole = torch.frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=offset)
    return whole.view(x.shape).copy_(x)

for name in sys.argv[1:]:
    dtype = getattr(torch, name)
    for window in ((-1, -1), (3, 2)):
        for lengths in ((1,), (17, 5), (64,), (3, 0, 33, 0)):
            qkv = torch.randn(3, sum(lengths), 2, 32).to(dtype)
            bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
            expected = varlen_attention(*qkv, bounds, max(lengths), window=window)
            found = varlen_attention(*map(at_the_end, qkv), at_the_end(bounds), max(lengths), window=window)
            assert torch.equal(found, expected)
    print(name, flush=True)
os._exit(0)  # the pages stay as they are until then
"""


# Beside the call as usual.


def test_the_operator_that_a_tracer_sees_computes_the_same(dtype: torch.dtype) -> None:
    lengths = (9, 0, 34)
    qkv = random_qkv(lengths, dtype, seed=17)
    bias = torch.randn(32, 2, generator=torch.Generator().manual_seed(18))
    operator = torch.ops.padless.cpu_llvm_attention
    out, _ = operator(*qkv, bias, starts(lengths), None, 8, 3, False, 0.4, 128, False, False)
    options: dict[str, Any] = {"window": (8, 3), "softmax_scale": 0.4, "bias_bidirectional": False}
    assert same_bits(out, served(qkv, lengths, position_bias=bias, **options))


def test_a_compiled_function_serves_batches_of_other_lengths() -> None:
    needs(torch.float32)

    def attend(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
        return row.varlen_attention(q, k, v, cu_seqlens, 0, window=(8, 3)) + 1

    compiled = torch.compile(attend, backend="eager", fullgraph=True, dynamic=True)
    for lengths in ((9, 34), (2, 5, 40), (7, 1)):
        qkv = random_qkv(lengths, torch.float32, seed=19)
        expected = served(qkv, lengths, window=(8, 3)) + 1
        q, k, v = qkv
        assert same_bits(compiled(q, k, v, starts(lengths)), expected)


def test_several_threads_may_call_at_once(dtype: torch.dtype) -> None:
    lengths = (9, 0, 34, 1)
    batches = [random_qkv(lengths, dtype, 2, 160, seed=seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda qkv: served(qkv, lengths), batches))
    assert all(same_bits(out, served(qkv, lengths)) for out, qkv in zip(found, batches, strict=True))
