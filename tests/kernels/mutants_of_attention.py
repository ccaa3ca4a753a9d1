"""Mutants of the attention kernel and of the list of its tiles."""

from __future__ import annotations

from mutant import FMA_ROUNDS_TWICE, Mutant

__all__ = ["FORWARD", "SCHEDULE"]

FORWARD = (
    # What is loaded.
    Mutant("(offs_n < length)[:, None]", "(offs_n <= length)[:, None]", "one key beyond the text is loaded"),
    Mutant(
        "mask = (offs_n < length)[:, None] & (offs_d < HEAD_DIM)[None, :]",
        "mask = (offs_n < length)[:, None]",
        "channels beyond the head are loaded at the edge of a text",
    ),
    Mutant(
        "tile = tl.load(pointers, mask=(offs_d < HEAD_DIM)[None, :], other=0.0)",
        "tile = tl.load(pointers)",
        "channels beyond the head are loaded inside a text",
    ),
    Mutant("offs_n.to(tl.int64)[:, None] * stride_t", "offs_n[:, None] * stride_t", "keys are addressed in 32 bits"),
    Mutant("row += begin_k", "row += 0", "descriptors read from the start of the batch"),
    Mutant("head_k = head // group", "head_k = head % group", "grouped heads read another head's keys"),
    Mutant("(begin_k.to(tl.int64) * stride_kt", "(begin_k * stride_kt", "a text's keys are found in 32 bits"),
    Mutant("(begin_k.to(tl.int64) * stride_vt", "(begin_k * stride_vt", "a text's values are found in 32 bits"),
    Mutant(
        "stride_vt + head_k.to(tl.int64) * stride_vh",
        "stride_vt + head_k.to(tl.int64) * stride_kh",
        "values are found by the strides of keys",
    ),
    Mutant(
        "rows_m = begin_q.to(tl.int64) + block.to(tl.int64) * BLOCK_M",
        "rows_m = begin_q + block * BLOCK_M",
        "queries are addressed in 32 bits",
    ),
    Mutant("head.to(tl.int64) * stride_qh", "head * stride_qh", "heads are addressed in 32 bits"),
    Mutant("head_k.to(tl.int64) * stride_kh", "head_k * stride_kh", "heads of keys are addressed in 32 bits"),
    Mutant("rows_m[:, None] * stride_qt", "rows_m[:, None] * stride_ot", "queries lie where outputs would"),
    Mutant(
        "head.to(tl.int64) * stride_oh) * UNIT",
        "head.to(tl.int64) * stride_oh)",
        "outputs' heads are not counted in units",
    ),
    Mutant("mask_m = offs_m < length_q", "mask_m = offs_m <= length_q", "one query beyond the text is written"),
    Mutant(
        "mask = mask_m[:, None] & (offs_d < HEAD_DIM)[None, :]",
        "mask = mask_m[:, None]",
        "channels beyond the head are read and written",
    ),
    Mutant("cu_seqlens_k_ptr + text)", "cu_seqlens_q_ptr + text)", "keys begin where the queries do"),
    Mutant("v = tl.where((offs_n < length_k)[:, None], v, 0.0)", "v = v", "a neighbour's infinity comes in as 0 * inf"),
    # Scores and softmax.
    Mutant("scores = scores * scale\n", "scores = scores\n", "no scale where there is a bias"),
    Mutant("highest = highest * scale", "highest = highest", "the maximum is not scaled"),
    Mutant("new_peak = tl.maximum(peak, highest)", "new_peak = highest", "the maximum of this block alone"),
    Mutant(
        'safe = tl.where(new_peak == float("-inf"), 0.0, new_peak)',
        "safe = new_peak",
        "-inf - -inf where nothing was seen yet",
    ),
    Mutant("p = tl.exp2(exponents)", "p = tl.exp(exponents)", "weights to the base e"),
    Mutant("rescale = tl.exp2(peak - safe)", "rescale = tl.exp(peak - safe)", "rescaled to the base e"),
    Mutant("total = tl.fma(total, rescale, tl.sum(p, 1))", "total = total + tl.sum(p, 1)", "the sum is not rescaled"),
    Mutant("acc = acc * rescale[:, None]", "acc = acc", "the values are not rescaled"),
    Mutant(
        "acc = tl.dot(p.to(v.dtype), v, acc, input",
        "acc = tl.dot(p.to(v.dtype), v, input",
        "only the last block's values count",
    ),
    Mutant("peak = new_peak", "peak = safe", "a query that has seen nothing has a maximum of 0"),
    Mutant(
        "tl.fma(scores, scale, -safe[:, None])",
        "scores * scale - safe[:, None]",
        "two roundings instead of one",
        survives=FMA_ROUNDS_TWICE,
    ),
    Mutant(
        "out = acc / tl.where(total == 0.0, 1.0, total)[:, None]",
        "out = acc / total[:, None]",
        "0 / 0 where nothing was seen",
    ),
    Mutant("(peak + tl.log2(total)) * LN_2", "peak + tl.log2(total)", "log-sum-exp to the base 2"),
    Mutant("(peak + tl.log2(total)) * LN_2", "peak * LN_2 + tl.log2(total)", "log-sum-exp to two bases"),
    Mutant("(peak + tl.log2(total)) * LN_2", "peak * LN_2", "log-sum-exp is the maximum"),
    Mutant("+ rows_m, lse, mask=mask_m)", "+ rows_m, lse)", "log-sum-exp of rows beyond the text is written"),
    # Which keys are seen.
    Mutant(
        "seen = (offs_n < length_k)[None, :]", "seen = (offs_n <= length_k)[None, :]", "one key beyond the text is seen"
    ),
    Mutant(
        "offs_n[None, :] >= earliest[:, None]",
        "offs_n[None, :] > earliest[:, None]",
        "the window is one short on the left",
    ),
    Mutant(
        "offs_n[None, :] <= latest[:, None]",
        "offs_n[None, :] < latest[:, None]",
        "the window is one short on the right",
    ),
    Mutant("earliest = places - left", "earliest = places - left - 1", "the window is one long on the left"),
    Mutant("latest = places + right", "latest = places + right + 1", "the window is one long on the right"),
    Mutant("places = offs_m + (length_k - length_q)", "places = offs_m", "the first query beside the first key"),
    Mutant("first = start_m + (length_k - length_q)", "first = start_m", "blocks as if there were as many keys"),
    Mutant("last = first + BLOCK_M - 1", "last = first + BLOCK_M - 2", "blocks of the last query but one"),
    Mutant(
        "lo = tl.maximum(first - left, 0) // BLOCK_N * BLOCK_N",
        "lo = tl.maximum(first - left, 0)",
        "blocks begin at the window, not at a multiple",
    ),
    Mutant(
        "lo = tl.maximum(first - left, 0)", "lo = tl.maximum(first - left + 1, 0)", "the first block begins one late"
    ),
    Mutant("length_k - 1) + right + 1)", "length_k - 1) + right)", "the last block ends one early"),
    Mutant(
        "inside = (tl.maximum(last - left, 0) + BLOCK_N - 1)",
        "inside = tl.maximum(last - left, 0)",
        "whole blocks begin one block early",
    ),
    Mutant(
        "inside = (tl.maximum(last - left, 0) + BLOCK_N - 1)",
        "inside = (tl.maximum(last - left - 1, 0) + BLOCK_N - 1)",
        "whole blocks begin one key early",
    ),
    Mutant(
        "outside = tl.minimum(outside, first + right + 1)",
        "outside = tl.minimum(outside, first + right + 2)",
        "whole blocks end one key late",
    ),
    Mutant(
        "outside = tl.minimum(outside, first + right + 1)",
        "outside = tl.minimum(outside, last + right + 1)",
        "whole blocks end where the last query's window does",
    ),
    Mutant(
        "tl.maximum(outside, 0) // BLOCK_N * BLOCK_N, inside)",
        "(tl.maximum(outside, 0) + BLOCK_N - 1) // BLOCK_N * BLOCK_N, inside)",
        "the block at the edge counts as whole",
    ),
    Mutant(
        "outside = tl.maximum(tl.maximum(outside, 0) // BLOCK_N * BLOCK_N, inside)",
        "outside = tl.maximum(outside, 0) // BLOCK_N * BLOCK_N",
        "where no block is whole, blocks are taken twice",
    ),
    Mutant(
        "        outside = lo\n", "        outside = inside + BLOCK_N\n", "without whole blocks, the first is skipped"
    ),
    Mutant(
        "if HAS_LEFT and HAS_INSIDE:",
        "if HAS_LEFT and HAS_RIGHT and HAS_INSIDE:",
        "a window open to the right loses its edge",
    ),
    # Tiles.
    Mutant("if text < 0:", "if text < -1:", "programs without a tile take one of text -1"),
    Mutant("block = tile % blocks_per_text", "block = tile // blocks_per_text", "texts' blocks are mixed up"),
    Mutant("// BLOCK_M - 1 - block", "// BLOCK_M - block", "causal tiles, counted from the end, are one off"),
    Mutant(
        "block = (length_q + BLOCK_M - 1) // BLOCK_M - 1 - block",
        "block = block",
        "early causal queries come first",
        survives="when a tile is computed changes nothing of it; only a GPU's clock could tell",
    ),
    Mutant(
        "if block < 0 or block * BLOCK_M >= length_q:",
        "if block * BLOCK_M >= length_q:",
        "a tile before the text is computed",
    ),
    Mutant(
        "if block < 0 or block * BLOCK_M >= length_q:",
        "if block < 0:",
        "a tile beyond the text is computed",
        survives="all of its loads of queries and its stores are masked: time is lost, nothing else",
    ),
    # T5's bias.
    Mutant(
        "distance = offs_n[None, :] - places[:, None]",
        "distance = places[:, None] - offs_n[None, :]",
        "distances have the other sign",
    ),
    Mutant("tl.maximum(distance, -reach)", "tl.maximum(distance, 1 - reach)", "the bias reaches one less far left"),
    Mutant(
        "tl.maximum(distance, -reach), reach)",
        "tl.maximum(distance, -reach), reach - 1)",
        "the bias reaches one less far right",
    ),
    Mutant("scores = tl.fma(near, LOG2_E, scores)", "scores = near + scores", "the gathered bias is to the base e"),
    Mutant("scores = scores + far_bias", "scores = scores", "far blocks have no bias"),
    Mutant("bias_ptr += head.to(tl.int64)", "bias_ptr += head_k.to(tl.int64)", "grouped heads share a bias"),
    Mutant(
        "far_left = tl.load(bias_ptr).to",
        "far_left = tl.load(bias_ptr + 1).to",
        "far to the left has the bias of one less far",
    ),
    Mutant(
        "tl.load(bias_ptr + reach + reach)",
        "tl.load(bias_ptr + reach + reach - 1)",
        "far to the right has the bias of one less far",
    ),
    Mutant(
        "far_left = tl.load(bias_ptr).to(tl.float32) * LOG2_E",
        "far_left = tl.load(bias_ptr).to(tl.float32)",
        "the far bias on the left is to the base e",
    ),
    Mutant("v_rows, bias_ptr, far_left, stride_kt", "v_rows, bias_ptr, far_right, stride_kt", "left is right"),
    Mutant("v_rows, bias_ptr, far_right, stride_kt", "v_rows, bias_ptr, far_left, stride_kt", "right is left"),
    Mutant(
        "near = tl.maximum(first - reach + 1, 0)",
        "near = tl.maximum(first - reach + 1 + BLOCK_N, 0)",
        "one block more counts as far to the left",
    ),
    Mutant(
        "(tl.maximum(last + reach, 0) + BLOCK_N - 1)",
        "tl.maximum(last + reach, 0)",
        "one block more counts as far to the right",
    ),
    Mutant(
        "near = tl.minimum(tl.maximum(near, inside), outside)",
        "near = tl.maximum(near, inside)",
        "far blocks go on beyond the whole ones",
        survives="the first query of a tile stands beside a key, and whole blocks reach at least as far as its block",
    ),
    Mutant(
        "beyond = tl.minimum(tl.maximum(beyond, near), outside)",
        "beyond = tl.maximum(beyond, near)",
        "near blocks go on beyond the whole ones",
    ),
)

SCHEDULE = (
    Mutant("cu_seqlens_ptr + text + 1) - begin", "cu_seqlens_ptr + text + 1)", "a text is as long as all before it"),
    Mutant("mask = others < num_texts", "mask = others <= num_texts", "one text too many"),
    Mutant(
        "right = tl.load(cu_seqlens_ptr + others + 1, mask=mask, other=0)",
        "right = tl.load(cu_seqlens_ptr + others + 1, mask=mask, other=1)",
        "there are texts of one token beyond the last",
    ),
    Mutant("tiles = (lengths + ROWS - 1) // ROWS", "tiles = lengths // ROWS", "short tiles do not count"),
    Mutant("tiles = (lengths + ROWS - 1) // ROWS", "tiles = lengths // ROWS + 1", "full texts count one tile too many"),
    Mutant("(lengths > length)", "(lengths >= length)", "equal texts share their places"),
    Mutant("(lengths > length)", "(lengths < length)", "short texts come first"),
    Mutant("& (others < text)", "& (others <= text)", "a text comes behind itself"),
    Mutant("& (others < text)", "& (others > text)", "equal texts come in the reverse order"),
    Mutant(
        "((lengths == length) & (others < text))",
        "((lengths == length) & (others < 0))",
        "equal texts share their places",
    ),
    Mutant("first += tl.sum", "first = tl.sum", "only the last texts compared count"),
    Mutant("total += tl.sum", "total = tl.sum", "only the last texts compared count in the total"),
    Mutant("blocks = (length + ROWS - 1) // ROWS", "blocks = length // ROWS", "short tiles are not listed"),
    Mutant("blocks = (length + ROWS - 1) // ROWS", "blocks = length // ROWS + 1", "full texts list one tile too many"),
    Mutant("2 * (first + block).to(tl.int64)", "(first + block).to(tl.int64)", "entries overlap"),
    Mutant("tl.zeros_like(block) + text", "tl.zeros_like(block) + first", "a tile's text is its place"),
    Mutant("(block < blocks) & (first", "(block <= blocks) & (first", "one tile too many is listed"),
    Mutant(
        "mask = (block < blocks) & (first + block < num_tiles)",
        "mask = block < blocks",
        "tiles that the list has no room for are written",
    ),
    Mutant(
        "tl.store(entries + 1, block, mask=mask)",
        "tl.store(entries + 1, block + 1, mask=mask)",
        "blocks are counted from 1",
    ),
    Mutant("if text == num_texts - 1:", "if text == num_texts:", "nobody marks what is left"),
    Mutant(
        "range(total, num_tiles, BLOCK)", "range(total + 1, num_tiles, BLOCK)", "the first entry left is not marked"
    ),
    Mutant(
        "range(total, num_tiles, BLOCK)", "range(total - 1, num_tiles, BLOCK)", "the last tile is marked as nobody's"
    ),
    Mutant("tl.full([BLOCK], -1, tl.int32)", "tl.full([BLOCK], 0, tl.int32)", "what is left is text 0's"),
    Mutant("mask=unused < num_tiles)", "mask=unused <= num_tiles)", "one entry too many is marked", (1, 2)),
)
