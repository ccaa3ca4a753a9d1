"""Mutants of attention while decoding."""

from __future__ import annotations

from mutant import Mutant

__all__ = ["DECODE"]

DECODE = (
    Mutant('tl.where(highest == float("-inf"), 0.0, highest)', "highest", "-inf - -inf where nothing was seen yet"),
    # Which keys, and where they lie.
    Mutant(
        "split = tl.program_id(1).to(tl.int64)",
        "split = tl.program_id(1)",
        "splits are addressed in 32 bits",
        survives="a sum with a sequence's start, in 64 bits, stands between a split and its address",
    ),
    Mutant("tile = (program % TILES)", "tile = (program * 0)", "heads beyond a dot's rows are nobody's"),
    Mutant(
        "head_k = (program // TILES % heads_k).to(tl.int64)",
        "head_k = (program // TILES % heads_k)",
        "heads of keys are addressed in 32 bits",
    ),
    Mutant(
        "sequence = (program // TILES // heads_k).to(tl.int64)",
        "sequence = (program // TILES // heads_k)",
        "sequences are addressed in 32 bits",
    ),
    Mutant(
        "start = tl.load(starts_ptr + sequence).to(tl.int64)",
        "start = tl.load(starts_ptr + sequence).to(tl.int32)",
        "a start is cut to 32 bits",
    ),
    Mutant("begin >= tl.maximum(length, 1)", "begin >= length", "nobody writes that there are no keys"),
    Mutant("begin >= tl.maximum(length, 1)", "begin > tl.maximum(length, 1)", "a split without a key is kept"),
    Mutant("mask_m = offs_m < GROUP", "mask_m = offs_m <= GROUP", "one head too many"),
    Mutant("mask_d = offs_d < HEAD_DIM", "mask_d = offs_d <= HEAD_DIM", "one channel too many", (1, 2)),
    Mutant("heads = head_k * GROUP + offs_m", "heads = head_k + offs_m * heads_k", "heads are grouped the other way"),
    Mutant(
        "mask_q = mask_m[:, None] & mask_d[None, :]",
        "mask_q = mask_d[None, :] & (offs_m >= 0)[:, None]",
        "the rows that fill a dot up are read and written",
    ),
    Mutant("sequence * stride_qs + heads", "sequence * stride_os + heads", "queries lie where outputs would"),
    Mutant("heads[:, None] * stride_qh", "heads[:, None] * stride_kh", "heads of queries lie where those of keys do"),
    Mutant("(start + begin) * stride_kt", "start * stride_kt", "every split takes the first keys"),
    Mutant("(start + begin) * stride_vt", "start * stride_vt", "every split takes the first values"),
    Mutant(
        "stride_kt + head_k * stride_kh", "stride_kt + head_k * stride_vh", "heads of keys lie where those of values do"
    ),
    Mutant(
        "stride_vt + head_k * stride_vh", "stride_vt + head_k * stride_kh", "heads of values lie where those of keys do"
    ),
    Mutant("stop = tl.minimum(length - begin, SPLIT)", "stop = (length - begin)", "a split goes on beyond its end"),
    Mutant(
        "stop = tl.minimum(length - begin, SPLIT)", "stop = tl.minimum(length, SPLIT)", "the last split is a full one"
    ),
    Mutant(
        "stop = tl.minimum(length - begin, SPLIT)",
        "stop = tl.minimum(length - begin, SPLIT - 1)",
        "a split's last key is forgotten",
    ),
    Mutant("mask_n = offs_n < stop", "mask_n = offs_n <= stop", "one key too many"),
    Mutant("mask = mask_n[:, None] & mask_d[None, :]", "mask = mask_n[:, None]", "channels beyond the head are read"),
    Mutant("rows = offs_n.to(tl.int64)[:, None]", "rows = offs_n[:, None]", "keys are addressed in 32 bits"),
    Mutant(
        "mask=mask, other=0.0)  # [BLOCK_N, BLOCK_D]",
        "mask=mask_d[None, :], other=0.0)  # [BLOCK_N, BLOCK_D]",
        "keys beyond the last are read",
        (1, 2),
    ),
    Mutant(
        "mask=mask, other=0.0)  # [BLOCK_N, BLOCK_D]",
        "mask=mask_d[None, :], other=0.0)  # [BLOCK_N, BLOCK_D]",
        "values beyond the last are read",
        (2, 2),
    ),
    # Scores, bias and softmax of a split.
    Mutant('input_precision="ieee") * scale', 'input_precision="ieee") / scale', "scores are divided by the scale"),
    Mutant(
        'scores = tl.where(mask_n[None, :], scores, float("-inf"))',
        "scores = tl.where(mask_n[None, :], scores, 0.0)",
        "what lies beyond the keys has a score of 0",
    ),
    Mutant(
        "bias_rows += heads[:, None] * stride_bh",
        "bias_rows += offs_m[:, None] * stride_bh",
        "all groups have the bias of the first",
    ),
    Mutant(
        "nearest = begin.to(tl.int32)", "nearest = begin.to(tl.int32) * 0", "every split has the distances of the first"
    ),
    Mutant("nearest -= length - 1", "nearest -= length", "distances are one too long"),
    Mutant(
        "nearest -= tl.load(positions_ptr + sequence)",
        "nearest -= tl.load(positions_ptr + 0 * sequence)",
        "all queries stand where the first does",
    ),
    Mutant(
        "tl.maximum(nearest + offs_n, -reach)",
        "tl.maximum(nearest + offs_n, 1 - reach)",
        "the bias reaches one less far",
    ),
    Mutant(
        "tl.maximum(nearest + offs_n, -reach), reach)",
        "tl.maximum(nearest + offs_n, -reach), 0)",
        "keys after the query have the bias of its own place",
    ),
    Mutant("-reach), reach) + reach", "-reach), reach) + reach - 1", "the bias of the place before"),
    Mutant(
        "highest_new = tl.maximum(highest, tl.max(scores, 1))",
        "highest_new = tl.max(scores, 1)",
        "the maximum of this block alone",
    ),
    Mutant(
        "p = tl.exp(scores - _finite(highest_new)[:, None])",
        "p = tl.exp2(scores - _finite(highest_new)[:, None])",
        "weights to the base 2",
    ),
    Mutant(
        "rescale = tl.exp(highest - _finite(highest_new))",
        "rescale = tl.exp2(highest - _finite(highest_new))",
        "blocks are rescaled to the base 2",
        (1, 2),
    ),
    Mutant("total = tl.fma(total, rescale, tl.sum(p, 1))", "total = total + tl.sum(p, 1)", "the sum is not rescaled"),
    Mutant("acc * rescale[:, None]", "acc", "the values are not rescaled"),
    Mutant(
        "        highest = highest_new\n\n    if length",
        "        highest = tl.maximum(highest, 0.0)\n\n    if length",
        "the maximum of all blocks is forgotten",
    ),
    # What a split leaves.
    Mutant("if length <= SPLIT:\n        out", "if length < SPLIT:\n        out", "a full split is kept for nobody"),
    Mutant(
        "out = acc / tl.where(total == 0.0, 1.0, total)[:, None]",
        "out = acc / total[:, None]",
        "0 / 0 where there are no keys",
    ),
    Mutant(
        "out_ptr + sequence * stride_os + heads[:, None] * HEAD_DIM",
        "out_ptr + sequence * stride_os + heads[:, None] * BLOCK_D",
        "outputs' heads are a power of two apart",
    ),
    Mutant("highest + tl.log(total)", "highest + tl.log2(total)", "log-sum-exp to two bases", (1, 2)),
    Mutant(
        "lse_ptr + heads * stride_lh + sequence",
        "lse_ptr + heads + sequence * num_heads",
        "log-sum-exp is written the other way round",
    ),
    Mutant(
        "(sequence * splits + split) * num_heads + heads",
        "(sequence + split) * num_heads + heads",
        "sequences share their splits",
    ),
    Mutant(
        "acc_ptr + places[:, None] * HEAD_DIM + offs_d[None, :], acc",
        "acc_ptr + places[:, None] * BLOCK_D + offs_d[None, :], acc",
        "splits are a power of two apart",
    ),
    Mutant(
        "tl.store(highest_ptr + places, highest, mask=mask_m)",
        "tl.store(highest_ptr + places, total, mask=mask_m)",
        "a split's maximum is its sum",
    ),
    # The sum over splits.
    Mutant(
        "if length <= SPLIT:\n        return",
        "if length < SPLIT:\n        return",
        "a sequence of one full split is summed up as well",
    ),
    Mutant("mask_d = offs_d < HEAD_DIM", "mask_d = offs_d <= HEAD_DIM", "one channel too many is summed up", (2, 2)),
    Mutant("filled = (length + SPLIT - 1) // SPLIT", "filled = length // SPLIT", "the last split is forgotten"),
    Mutant(
        "filled = (length + SPLIT - 1) // SPLIT", "filled = length // SPLIT + 1", "a split that nobody wrote is added"
    ),
    Mutant("mask_s = offs_s < filled", "mask_s = offs_s <= filled", "one split too many"),
    Mutant(
        "(sequence * splits + offs_s) * num_heads + head",
        "(sequence * splits + offs_s) * num_heads",
        "all heads are the first",
    ),
    Mutant('mask=mask_s, other=float("-inf"))', "mask=mask_s, other=0.0)", "missing splits have a maximum of 0"),
    Mutant(
        "highest_new = tl.maximum(highest, tl.max(highest_s, 0))",
        "highest_new = tl.max(highest_s, 0)",
        "the maximum of these splits alone",
    ),
    Mutant(
        "weight = tl.exp(highest_s - _finite(highest_new))",
        "weight = tl.exp2(highest_s - _finite(highest_new))",
        "splits are weighted to the base 2",
    ),
    Mutant(
        "rescale = tl.exp(highest - _finite(highest_new))",
        "rescale = tl.exp2(highest - _finite(highest_new))",
        "sums are rescaled to the base 2",
        (2, 2),
    ),
    Mutant("tl.sum(total_s * weight, 0)", "tl.sum(total_s, 0)", "sums of splits are not weighted"),
    Mutant("tl.sum(acc_s * weight[:, None], 0)", "tl.sum(acc_s, 0)", "values of splits are not weighted"),
    Mutant("acc = tl.fma(acc, rescale, tl.sum(acc_s", "acc = (acc + tl.sum(acc_s", "values so far are not rescaled"),
    Mutant("tl.fma(total, rescale, tl.sum(total_s", "(total + tl.sum(total_s", "sums so far are not rescaled"),
    Mutant("out = acc / tl.where(total == 0.0, 1.0, total)\n", "out = acc\n", "values are not divided"),
    Mutant(
        "out_ptr + sequence * stride_os + head * HEAD_DIM",
        "out_ptr + sequence * stride_os + head * BLOCK_D",
        "summed outputs are a power of two apart",
    ),
    Mutant("highest + tl.log(total)", "highest + tl.log2(total)", "summed log-sum-exp to two bases", (2, 2)),
    Mutant(
        "lse_ptr + head * stride_lh + sequence",
        "lse_ptr + head + sequence * num_heads",
        "summed log-sum-exp is written the other way round",
    ),
)
