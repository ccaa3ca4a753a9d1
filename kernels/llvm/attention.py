"""Fused attention inside texts, for CPUs with AVX-512: `engine/ops/attention.py` in bf16 and fp32, packed as it lies.

For each text and head the keys are transposed once, sixteen side by side, so that a vector holds one channel (in bf16 a
pair of channels) of sixteen keys. Then six queries at a time go through three steps, whose numbers stay in the core's
first cache:

    scores      6 x 64 sums in 24 registers; each step is 4 loads, 6 broadcasts and 24 products
    numerators  2^(score - largest of the row), rounded to bf16 where the values are; their fp32 sums beside them
    context     6 x head_dim sums; numerators are broadcast, values lie as they came (in bf16 two rows interleaved)

Nothing but q, k, v and the output passes the caches, no score is rounded before the exponential, and the largest score
is subtracted, so that no input overflows. A window costs only the blocks of keys that one of six queries sees; a
relative bias is one unaligned load of its row by distance. A text's bits depend on itself alone.

FLOPs: `4 * head_dim` a score; about 14 instructions for 16 exponentials. On one Zen 4 core at 12 heads of 32, 256
tokens: bf16 0.97 ns a score, 132 GFLOP/s where GEMMs reached 177; fp32 1.68.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .code import LANES, Code, Value, Variable
from .compiled import compiled_once
from .functions import power_of_two
from .host import in_parts

__all__ = ["PADDING", "attend", "attention_code", "supports_head_dim"]

ROWS = 6
"""Queries that go together."""

BLOCKS = 4
"""Vectors of keys that go together with them: 24 of 32 registers hold sums."""

PARTS = 4
"""Vectors of channels whose sums are taken together: 24 registers again; of wider heads several times."""

WORDS = 4
"""Channels, or pairs of them, that a loop over them takes at a time; of 8 LLVM loads so many ahead that sums spill."""

HIDDEN = -3.0e38
"""The score of a key that is not seen, small enough beside any other."""

UNBOUNDED = 1 << 30
"""Keys on a side where no window ends."""

PADDING = LANES
"""Columns behind the last one of a bias by distance that are read and not used."""

_POINTERS = ("q", "k", "v", "out", "bounds", "bias", "scratch")
_INTEGERS = ("q_row", "k_row", "v_row", "out_row", "q_head", "k_head", "v_head", "out_head", "texts", "first_head",
             "heads", "longest", "left", "right", "bias_head", "bias_middle")  # fmt: skip


def supports_head_dim(head_dim: int, dtype: torch.dtype) -> bool:
    """Whether heads of so many channels are whole vectors."""
    return 0 < head_dim <= 256 and head_dim % (2 * LANES if dtype == torch.bfloat16 else LANES) == 0


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    window: tuple[int, int],
    scale: float,
    bias: Tensor | None,
) -> Tensor:
    """Attention inside each text.

    Args:
        q: `[tokens, heads, head_dim]` in bf16 or fp32, as are k and v; rows and heads may be strided.
        cu_seqlens: int32 `[texts + 1]`, contiguous.
        max_seqlen: tokens of the longest text at least.
        window: keys seen to the left and to the right, inclusive; -1 is unbounded.
        scale: factor on the products.
        bias: fp32 `[heads, 2 * longest - 1 + PADDING]`, of a longest text of at least `max_seqlen`: what is added to
            the score of a key so far from its query, far left first.

    Returns:
        `[tokens, heads, head_dim]`, contiguous.
    """
    tokens, heads, head_dim = q.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    if not tokens:
        return out
    q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
    size = q.element_size()
    run = _kernel(head_dim, q.dtype == torch.bfloat16, window != (-1, -1), bias is not None)
    left, right = (UNBOUNDED if side < 0 else min(side, UNBOUNDED) for side in window)
    log2_e = math.log2(math.e)
    table = None if bias is None else bias * log2_e
    bias_row = 0 if table is None else table.shape[1]
    scratch_bytes = _scratch_bytes(max_seqlen, head_dim, size)

    def of_heads(first: int, end: int) -> None:
        scratch = torch.empty(scratch_bytes, dtype=torch.uint8)
        run(
            *(x.data_ptr() for x in (q, k, v, out, cu_seqlens)),
            0 if table is None else table.data_ptr(),
            scratch.data_ptr(),
            *(x.stride(0) * size for x in (q, k, v, out)),
            *(x.stride(1) * size for x in (q, k, v, out)),
            *(len(cu_seqlens) - 1, first, end, max_seqlen, left, right),
            *(bias_row, (bias_row - PADDING + 1) // 2 - 1),
            scale * log2_e,
        )

    in_parts(heads, 3 * q.numel(), of_heads)
    return out


def attention_code(head_dim: int, *, bf16: bool, windowed: bool, biased: bool) -> Code:
    """The kernel: all texts, some of the heads. Strides are in bytes, but those of the bias in numbers.

    Args:
        head_dim: channels of a head, whole vectors.
        bf16: q, k, v and the output are bf16, otherwise fp32.
        windowed: a query sees `left` and `right` keys beside its own, otherwise all.
        biased: a bias by distance is added to the scores.
    """
    kinds = dict.fromkeys(_POINTERS, "pointer") | dict.fromkeys(_INTEGERS, "integer") | {"scale": "number"}
    code = Code("attention", kinds)
    kernel = _Attention(code, head_dim, bf16, windowed, biased)
    with code.range(0, code.texts) as text:
        start = code.load_integer(code.bounds + text * 4)
        length = code.load_integer(code.bounds + text * 4 + 4) - start
        with code.range(code.first_head, code.heads) as head:
            kernel.emit(start, length, head)
    return code


@compiled_once
def _kernel(head_dim: int, bf16: bool, windowed: bool, biased: bool) -> Code:
    return attention_code(head_dim, bf16=bf16, windowed=windowed, biased=biased)


def _scratch_bytes(longest: int, head_dim: int, size: int) -> int:
    """Transposed keys, interleaved values, and scores and numerators of the queries that go together."""
    return -(-longest // LANES) * LANES * (2 * head_dim * size + ROWS * (4 + size))


class _Attention:
    """Emits what is done for one text and head."""

    def __init__(self, code: Code, head_dim: int, bf16: bool, windowed: bool, biased: bool) -> None:
        self.code = code
        self.head_dim = head_dim
        self.bf16 = bf16
        self.windowed = windowed
        self.biased = biased
        self.size = 2 if bf16 else 4
        self.words = head_dim * self.size // 4
        # The places in the scratch memory; 16 keys, transposed, are a block.
        blocks = _blocks(code.longest)
        self.block_bytes = 4 * self.words * LANES
        self.keys = code.scratch
        self.values = self.keys + blocks * self.block_bytes
        self.scores = self.values + blocks * (LANES * head_dim * self.size)
        self.score_row = blocks * (4 * LANES)
        self.numerators = self.scores + self.score_row * ROWS
        self.numerator_row = blocks * (self.size * LANES)

    def emit(self, start: Value, length: Value, head: Value) -> None:
        code = self.code
        q, k, v, out = (
            getattr(code, name) + (start * getattr(code, f"{name}_row") + head * getattr(code, f"{name}_head"))
            for name in ("q", "k", "v", "out")
        )
        self._transpose_keys(k, length)
        if self.bf16:
            self._interleave_values(v, length)
        with code.range(0, length, ROWS) as first:
            # Behind the last query it is computed again: the same bits go to the same place.
            rows = [code.least(first + row, length - 1) for row in range(ROWS)]
            begin, end = self._seen_blocks(first, length)
            largest = self._score(q, rows, begin, end, length, head)
            totals = self._exponentiate(begin, end, largest)
            self._sum_values(v, out, rows, begin * LANES, code.least(end * LANES, length), totals)

    def _seen_blocks(self, first: Value, length: Value) -> tuple[Value, Value]:
        """The blocks of keys that one of the queries sees: the first one, and the one behind the last."""
        code = self.code
        if not self.windowed:
            return code.integer(0), _blocks(length)
        begin = code.most(first - code.left, 0) // LANES
        return begin, _blocks(code.least(first + code.right + ROWS, length))

    def _score(
        self, q: Value, rows: list[Value], begin: Value, end: Value, length: Value, head: Value
    ) -> list[Variable]:
        """Write the scores, in units of log 2; returns the largest of each query, lane by lane."""
        code = self.code
        queries = [q + row * code.q_row for row in rows]
        biases = []
        if self.biased:
            table = code.bias + (head * code.bias_head + code.bias_middle) * 4
            biases = [table - row * 4 for row in rows]
        largest = [Variable(code, code.floats(HIDDEN)) for _ in rows]

        def some(block: Value, count: int, masked: bool) -> None:
            sums = self._products(queries, self.keys + block * self.block_bytes, count)
            scale = code.splat(code.scale)
            for column in range(count):
                key = (block + column) * LANES
                lanes = code.lanes(key)
                for row in range(ROWS):
                    score = sums[row][column].get()
                    score = code.fma(score, scale, code.load(biases[row] + key * 4)) if biases else score * scale
                    if masked:
                        score = self._seen(score, lanes, rows[row], length)
                    code.store(score, self.scores + self.score_row * row + key * 4)
                    largest[row].set(code.most(largest[row].get(), score))

        # Only behind the text's last whole block a key may be missing; inside a window any may be.
        last = end if self.windowed else length // LANES
        many = begin + (last - begin) // BLOCKS * BLOCKS
        with code.range(begin, many, BLOCKS) as block:
            some(block, BLOCKS, masked=self.windowed)
        with code.range(many, end) as block:
            some(block, 1, masked=True)
        return largest

    def _products(self, queries: list[Value], place: Value, count: int) -> list[list[Variable]]:
        """Sums over channels, of each query with each of `count` blocks of keys."""
        code = self.code
        sums = [[Variable(code, code.floats(0.0)) for _ in range(count)] for _ in queries]
        load, broadcast = (code.load_pairs, code.load_pair) if self.bf16 else (code.load, code.load_number)
        with code.range(0, self.words, WORDS) as first:
            for word in range(WORDS):
                offset = (first + word) * (4 * LANES)
                columns = [load(place + column * self.block_bytes + offset) for column in range(count)]
                for query, row in zip(queries, sums, strict=True):
                    number = broadcast(query + (first + word) * 4)
                    for total, column in zip(row, columns, strict=True):
                        total.set(self._multiplied(total.get(), number, column))
        return sums

    def _multiplied(self, total: Value, left: Value, right: Value) -> Value:
        return self.code.dot(total, left, right) if self.bf16 else self.code.fma(left, right, total)

    def _seen(self, score: Value, lanes: Value, row: Value, length: Value) -> Value:
        code, hidden = self.code, self.code.floats(HIDDEN)
        score = code.where(lanes < code.narrow(length), score, hidden)
        if not self.windowed:
            return score
        distance = lanes - code.narrow(row)
        score = code.where(distance < code.narrow(code.right + 1), score, hidden)
        return code.where(distance > code.narrow(code.integer(-1) - code.left), score, hidden)

    def _exponentiate(self, begin: Value, end: Value, largest: list[Variable]) -> list[Value]:
        """Write the numerators; returns their sums, the same in each lane."""
        code = self.code
        store = code.store_bf16 if self.bf16 else code.store
        tops = [code.most_of_lanes(one.get()) for one in largest]
        totals = [Variable(code, code.floats(0.0)) for _ in tops]
        with code.range(begin, end) as block:
            for row, (top, total) in enumerate(zip(tops, totals, strict=True)):
                score = code.load(self.scores + self.score_row * row + block * (4 * LANES))
                numerator = power_of_two(code, score - top, exact=not self.bf16)
                total.set(total.get() + numerator)
                store(numerator, self.numerators + self.numerator_row * row + block * (self.size * LANES))
        return [code.sum_of_lanes(total.get()) for total in totals]

    def _sum_values(
        self, v: Value, out: Value, rows: list[Value], first: Value, end: Value, totals: list[Value]
    ) -> None:
        """Values weighted with the numerators, divided by their sums, to the output."""
        code = self.code
        all_parts = range(self.head_dim // LANES)
        store = code.store_bf16 if self.bf16 else code.store
        inverses = [Variable(code, code.quotient(code.floats(1.0), total)) for total in totals]
        for parts in (all_parts[at : at + PARTS] for at in range(0, len(all_parts), PARTS)):
            sums = [[Variable(code, code.floats(0.0)) for _ in parts] for _ in rows]
            with code.range(first, end, 2 if self.bf16 else 1) as key:
                for row, column_sums in enumerate(sums):
                    place = self.numerators + self.numerator_row * row + key * self.size
                    weight = code.load_pair(place) if self.bf16 else code.load_number(place)
                    for total, column in zip(column_sums, self._values_of(v, key, parts), strict=True):
                        total.set(self._multiplied(total.get(), weight, column))
            for row, column_sums in enumerate(sums):
                for part, total in zip(parts, column_sums, strict=True):
                    place = out + rows[row] * code.out_row + part * (self.size * LANES)
                    store(total.get() * inverses[row].get(), place)

    def _values_of(self, v: Value, key: Value, parts: Sequence[int]) -> list[Value]:
        """16 channels a part of the values of a key, in bf16 of two keys."""
        code = self.code
        if self.bf16:
            return [code.load_pairs(self.values + key * (2 * self.head_dim) + part * 4 * LANES) for part in parts]
        return [code.load(v + key * code.v_row + part * 4 * LANES) for part in parts]

    def _transpose_keys(self, k: Value, length: Value) -> None:
        code = self.code
        with code.range(0, _blocks(length)) as block:
            for part in range(self.words // LANES):
                keys = [code.least(block * LANES + lane, length - 1) for lane in range(LANES)]
                rows = [code.load_words(k + key * code.k_row + part * 4 * LANES) for key in keys]
                for word, column in enumerate(code.transposed(rows)):
                    place = self.keys + block * self.block_bytes + (part * LANES + word) * (4 * LANES)
                    code.store_words(column, place)

    def _interleave_values(self, v: Value, length: Value) -> None:
        """Behind the last key of an odd number it stands again, for a numerator of 0 or next to it."""
        code = self.code
        alternating = [lane // 2 + LANES * (lane % 2) for lane in range(2 * LANES)]
        with code.range(0, length, 2) as key:
            following = code.least(key + 1, length - 1)
            for part in range(self.head_dim // LANES):
                pair = [code.load_halves(v + row * code.v_row + part * 2 * LANES) for row in (key, following)]
                place = self.values + key * (2 * self.head_dim) + part * 4 * LANES
                code.store_words(code.shuffled(pair[0], pair[1], alternating), place)


def _blocks(keys: Value) -> Value:
    return (keys + (LANES - 1)) // LANES
