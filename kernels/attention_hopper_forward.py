"""Varlen attention for Hopper, forward: one warp fetches, two warp groups multiply, their softmax beside the products.

In Gluon (`triton.experimental.gluon`), the language below Triton's: layouts, shared memory and barriers are written out
here. It does what `attention_forward.py` does, for full attention of a text to itself, at head sizes 64 and 128. Maths
and rounding of a tile are the plain kernel's. The tiles come in another order, the last keys first, so that only the
first of them, which may be ragged, needs a mask. No GPU has run it yet: see `attention_hopper.PROVEN`.

A program owns 128 queries of a head and has three partitions:

    producer, 1 warp          Q K0 V0 K1 V1 K2 V2 ...  by TMA, into a ring of STAGES tiles of K and one of V

    consumer, 4 warps         tensor cores   Q K0          | Q K1 | P0 V0     | Q K2 | P1 V1     | ...
    and another, 4 warps      other cores    .    softmax 0  .      softmax 1   .      softmax 2   ...

A consumer starts the product with the next keys, then the one with the values before; it waits for the first alone and
computes its softmax while the tensor cores are at the second. Before it waits for that one, it waits for the values to
come. They are there by then; but the question keeps ptxas from moving the softmax behind the wait, which it did before
(read in the machine code; tests/gate/test_hopper.py reads it again). The two consumers never wait for each other, so
that one's softmax also runs beside the other's products.

What waits on what. Step i takes keys from `_first_key(i)` on, in place `_slot(i)` of the rings, which it is the t-th to
use, t = i // STAGES, of parity `_turn(i)`. A barrier counts its phases. To wait for a parity is to wait until the phase
that ended last has that parity; a new barrier counts as if an odd phase, number -1, had ended.
- `ready` of a place ends phase t when its t-th tile is in memory: one arrival that names the bytes, and the bytes.
- `free` of a place ends phase t when both consumers have read that tile: two arrivals, each after the wait for the
  product that read it, passed by all four warps.
- The producer fills a place for the t-th time once phase t - 1 of `free` has ended, parity `turn ^ 1`: the first time
  at once. Consumers read it once phase t of `ready` has ended. Neither gets two phases ahead, where parities repeat:
  phase t + 1 of `ready` needs phase t of `free`, which needs both consumers past phase t of `ready`; phase t + 1 of
  `free` needs phase t + 1 of `ready`, which needs the producer past phase t of `free`.
- It always goes on. The producer's K of step i waits until K of step i - STAGES was read, which needs nothing later
  than V of the step before that. Its V of step i waits until V of step i - STAGES was read, and a consumer says so only
  when V of step i - STAGES + 1 has come: an earlier step than i where STAGES is at least 2, as the kernel demands. So
  every wait is for something earlier in the producer's order, and none is forever.
- All three count the same steps, from `length`, loaded once before they part. A program without queries returns before
  there is any barrier. So there is at least one step, and of a single one the loop is empty: Q, K0 and V0 are waited
  for outside of it. Whatever is fetched is waited for, so nothing is in flight when a program ends.
- TMA writes the tiles and tensor cores read them. Nothing else touches them, so that no fence has to order two ways of
  access.
tests/kernels/test_attention_hopper.py runs this source, its partitions in random order, and sees broken ones fail.

What a tile holds beyond its text is zeros, not another text's rows: the hardware ends at each text, see
`attention_hopper.ragged`. So 0 * inf never arises.

Bytes, FLOPs and bound are those of the plain kernel. What others measured for this way of doing it: docs/kernels.md.
"""

# What Gluon's decorators make of functions and methods is beyond a type checker.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import math

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

__all__ = ["MOST_ROWS", "ROWS", "attention_hopper_kernel"]

LN_2 = gl.constexpr(math.log(2.0))
ROWS = gl.constexpr(64)
"""Queries of a consumer: what a warp group multiplies at once."""

MOST_ROWS = gl.constexpr(1 << 30)
"""Where every text ends in the coordinates of a descriptor, see `attention_hopper.ragged`."""

copy_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
"""One name in triton 3.9, the other in 3.7.1 and before."""


@gluon.jit
def _slot(step, STAGES: gl.constexpr):
    """Place of `step` in the rings."""
    return step % STAGES


@gluon.jit
def _turn(step, STAGES: gl.constexpr):
    """Parity of the number of times that the place of `step` was used before."""
    return (step // STAGES) & 1


@gluon.jit
def _first_key(step, blocks, BLOCK_N: gl.constexpr):
    """First key of `step`: the last block comes first."""
    return (blocks - 1 - step) * BLOCK_N


@gluon.jit
def _fetch(rows, begin, length, row, channel, ready, tile):
    """Start to copy rows from `row` on of the text at `begin` into `tile`, zeros beyond its `length`."""
    coordinates = [MOST_ROWS, begin + length, MOST_ROWS - length + row, channel]
    copy_tile(rows, coordinates, ready, tile)


@gluon.jit
def _produce(
    q_rows, k_rows, v_rows, q_tiles, k_tiles, v_tiles, q_ready, k_ready, k_free, v_ready, v_free,
    begin, length, start_m, head, head_k, HEAD_DIM: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The warp that fetches: the queries once, then keys and values of every step as places in the rings get free."""
    mbarrier.expect(q_ready, 2 * q_rows.block_type.nbytes)
    _fetch(q_rows, begin, length, start_m, head * HEAD_DIM, q_ready, q_tiles.index(0))
    _fetch(q_rows, begin, length, start_m + ROWS, head * HEAD_DIM, q_ready, q_tiles.index(1))
    blocks = (length + BLOCK_N - 1) // BLOCK_N
    for step in range(blocks):
        slot = _slot(step, STAGES)
        turn = _turn(step, STAGES)
        row = _first_key(step, blocks, BLOCK_N)
        mbarrier.wait(k_free.index(slot), turn ^ 1)
        mbarrier.expect(k_ready.index(slot), k_rows.block_type.nbytes)
        _fetch(k_rows, begin, length, row, head_k * HEAD_DIM, k_ready.index(slot), k_tiles.index(slot))
        mbarrier.wait(v_free.index(slot), turn ^ 1)
        mbarrier.expect(v_ready.index(slot), v_rows.block_type.nbytes)
        _fetch(v_rows, begin, length, row, head_k * HEAD_DIM, v_ready.index(slot), v_tiles.index(slot))


@gluon.jit
def _softmax(scores, offs_n, length, peak, total, scale, EDGE: gl.constexpr, SCALE_FIRST: gl.constexpr):
    """Weights of one more tile, the new maximum and sum, and the factor on what was added up before.

    EDGE: some of the keys `offs_n` may lie beyond the text.
    """
    if SCALE_FIRST:
        scores = scores * scale
    if EDGE:
        scores = gl.where((offs_n < length)[None, :], scores, float("-inf"))
    highest = gl.max(scores, 1)
    if not SCALE_FIRST:
        highest = highest * scale
    new_peak = gl.maximum(peak, highest)
    # Scores may all be -inf where they overflow, and -inf - -inf is NaN.
    safe = gl.where(new_peak == float("-inf"), 0.0, new_peak)
    # One rounding where the scale is still to be applied.
    exponents = scores - safe[:, None] if SCALE_FIRST else gl.fma(scores, scale, -safe[:, None])
    weights = gl.exp2(exponents)
    rescale = gl.exp2(peak - safe)
    total = gl.fma(total, rescale, gl.sum(weights, 1))
    return weights, new_peak, total, rescale


@gluon.jit
def _consume(
    q_tile, k_tiles, v_tiles, q_ready, k_ready, k_free, v_ready, v_free, out_ptr, lse_ptr, begin, length, start_m, head,
    stride_ot, stride_oh, stride_lh, scale, HEAD_DIM: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
    HAS_LSE: gl.constexpr, SCALE_FIRST: gl.constexpr,
):  # fmt: skip
    """A warp group with 64 queries from `start_m` on: their whole attention, and the output."""
    dtype: gl.constexpr = q_tile.dtype
    BY_KEY: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    BY_CHANNEL: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    # The same registers in another role: weights become the left side of the next product where they are.
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, BY_CHANNEL, 2)
    PER_QUERY: gl.constexpr = gl.SliceLayout(1, BY_CHANNEL)

    blocks = (length + BLOCK_N - 1) // BLOCK_N
    offs_n = _first_key(0, blocks, BLOCK_N) + gl.arange(0, BLOCK_N, gl.SliceLayout(0, BY_KEY))
    nothing = gl.zeros((ROWS, BLOCK_N), gl.float32, BY_KEY)
    peak = gl.full((ROWS,), float("-inf"), gl.float32, gl.SliceLayout(1, BY_KEY))
    total = gl.zeros((ROWS,), gl.float32, gl.SliceLayout(1, BY_KEY))
    acc = gl.zeros((ROWS, HEAD_DIM), gl.float32, BY_CHANNEL)

    mbarrier.wait(q_ready, 0)
    q = q_tile.reshape((ROWS, HEAD_DIM))  # [ROWS, HEAD_DIM]
    mbarrier.wait(k_ready.index(0), 0)
    k = k_tiles.index(0).reshape((BLOCK_N, HEAD_DIM))  # [BLOCK_N, HEAD_DIM]
    scores = warpgroup_mma(q, k.permute((1, 0)), nothing, use_acc=False, is_async=True)  # [ROWS, BLOCK_N]
    scores = warpgroup_mma_wait(0, deps=(scores,))
    mbarrier.arrive(k_free.index(0))
    weights, peak, total, rescale = _softmax(scores, offs_n, length, peak, total, scale, True, SCALE_FIRST)
    p = gl.convert_layout(weights.to(dtype), WEIGHTS)
    mbarrier.wait(v_ready.index(0), 0)

    for step in range(1, blocks):
        slot = _slot(step, STAGES)
        turn = _turn(step, STAGES)
        mbarrier.wait(k_ready.index(slot), turn)
        k = k_tiles.index(slot).reshape((BLOCK_N, HEAD_DIM))  # [BLOCK_N, HEAD_DIM]
        scores = warpgroup_mma(q, k.permute((1, 0)), nothing, use_acc=False, is_async=True)  # [ROWS, BLOCK_N]
        before = _slot(step - 1, STAGES)
        v = v_tiles.index(before).reshape((BLOCK_N, HEAD_DIM))  # [BLOCK_N, HEAD_DIM]
        acc = warpgroup_mma(p, v, acc, is_async=True)
        scores = warpgroup_mma_wait(1, deps=(scores,))
        mbarrier.arrive(k_free.index(slot))
        weights, peak, total, rescale = _softmax(scores, offs_n, length, peak, total, scale, False, SCALE_FIRST)
        # Here rather than where it is used: it keeps the softmax above the next line.
        mbarrier.wait(v_ready.index(slot), turn)
        acc, p = warpgroup_mma_wait(0, deps=(acc, p))
        mbarrier.arrive(v_free.index(before))
        acc = acc * gl.convert_layout(rescale, PER_QUERY)[:, None]
        p = gl.convert_layout(weights.to(dtype), WEIGHTS)

    v = v_tiles.index(_slot(blocks - 1, STAGES)).reshape((BLOCK_N, HEAD_DIM))  # [BLOCK_N, HEAD_DIM]
    acc = warpgroup_mma(p, v, acc, is_async=True)
    acc, p = warpgroup_mma_wait(0, deps=(acc, p))

    # A query none of whose scores is above -inf has a sum of 0 and gives zeros.
    divisor = gl.convert_layout(gl.where(total == 0.0, 1.0, total), PER_QUERY)
    out = acc / divisor[:, None]
    offs_m = start_m + gl.arange(0, ROWS, PER_QUERY)
    offs_d = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, BY_CHANNEL))
    rows_m = begin.to(gl.int64) + offs_m
    gl.store(
        out_ptr + (rows_m[:, None] * stride_ot + head.to(gl.int64) * stride_oh) + offs_d[None, :],
        out.to(dtype),
        mask=(offs_m < length)[:, None],
    )
    if HAS_LSE:
        lse = gl.where(total == 0.0, float("-inf"), (peak + gl.log2(total)) * LN_2)
        lse = gl.convert_layout(lse, PER_QUERY)
        gl.store(lse_ptr + head.to(gl.int64) * stride_lh + rows_m, lse, mask=offs_m < length)


@gluon.jit
def attention_hopper_kernel(
    q_rows, k_rows, v_rows, out_ptr, lse_ptr, cu_seqlens_ptr, tiles_ptr, stride_ot, stride_oh, stride_lh,
    num_heads, group, blocks_per_text, scale,
    HEAD_DIM: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
    HAS_TILES: gl.constexpr, HAS_LSE: gl.constexpr, SCALE_FIRST: gl.constexpr,
):  # fmt: skip
    """A tile of a head, chosen as by the plain kernel. `q_rows`, `k_rows`, `v_rows`: `attention_hopper.ragged`."""
    gl.static_assert(BLOCK_M == 2 * ROWS)
    gl.static_assert(STAGES >= 2)
    program = gl.program_id(0)
    head = program % num_heads
    tile = program // num_heads
    if HAS_TILES:
        entry = tiles_ptr + 2 * tile.to(gl.int64)
        text = gl.load(entry)
        block = gl.load(entry + 1)
        if text < 0:
            return
    else:
        text = tile // blocks_per_text
        block = tile % blocks_per_text
    begin = gl.load(cu_seqlens_ptr + text)
    length = gl.load(cu_seqlens_ptr + text + 1) - begin
    if block < 0 or block * BLOCK_M >= length:
        return
    # No more than was just seen; the gate takes it as proof that 32 bits hold the product.
    gl.assume((block >= 0) & (block < (1 << 31) // BLOCK_M))

    dtype: gl.constexpr = q_rows.dtype
    # Gluon knows no `[2, *shape]`.
    q_tiles = gl.allocate_shared_memory(dtype, [2] + q_rows.block_type.shape, q_rows.layout)  # noqa: RUF005
    k_tiles = gl.allocate_shared_memory(dtype, [STAGES] + k_rows.block_type.shape, k_rows.layout)  # noqa: RUF005
    v_tiles = gl.allocate_shared_memory(dtype, [STAGES] + v_rows.block_type.shape, v_rows.layout)  # noqa: RUF005
    q_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_ready, count=1)
    for slot in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(slot), count=1)
        mbarrier.init(k_free.index(slot), count=2)
        mbarrier.init(v_ready.index(slot), count=1)
        mbarrier.init(v_free.index(slot), count=2)

    start_m = block * BLOCK_M
    head_k = head // group
    # Registers a thread, of 504 that three warp groups have: the producer gives up what the consumers take.
    gl.warp_specialize(
        [
            (_consume, (
                q_tiles.index(0), k_tiles, v_tiles, q_ready, k_ready, k_free, v_ready, v_free, out_ptr, lse_ptr, begin,
                length, start_m, head, stride_ot, stride_oh, stride_lh, scale, HEAD_DIM, BLOCK_N, STAGES, HAS_LSE,
                SCALE_FIRST,
            )),
            (_consume, (
                q_tiles.index(1), k_tiles, v_tiles, q_ready, k_ready, k_free, v_ready, v_free, out_ptr, lse_ptr, begin,
                length, start_m + ROWS, head, stride_ot, stride_oh, stride_lh, scale, HEAD_DIM, BLOCK_N, STAGES,
                HAS_LSE, SCALE_FIRST,
            )),
            (_produce, (
                q_rows, k_rows, v_rows, q_tiles, k_tiles, v_tiles, q_ready, k_ready, k_free, v_ready, v_free, begin,
                length, start_m, head, head_k, HEAD_DIM, BLOCK_N, STAGES,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
