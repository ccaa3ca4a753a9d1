"""Mutants of the predicting head: its logits, the highest of them, and the log-sum-exp."""

from __future__ import annotations

from mutant import TOO_LARGE, Mutant

__all__ = ["TOP_K"]

TOP_K = (
    # Products.
    Mutant("rows_ptr += offs_m[:, None] * HIDDEN", "rows_ptr += offs_m[:, None] * WIDTH", "rows are as wide as W's"),
    Mutant("for k in range(0, WIDTH, BLOCK_K):", "for k in range(0, BLOCK_K, BLOCK_K):", "the first step alone"),
    Mutant("mask_k = offs_k < WIDTH", "mask_k = offs_k < HIDDEN", "W's product takes in channels beyond its own"),
    Mutant("mask_k = offs_k < WIDTH", "mask_k = offs_k < WIDTH - 1", "W's last channel is forgotten"),
    Mutant("mask_k = offs_k < HIDDEN", "mask_k = offs_k <= HIDDEN", "V's product takes in one channel too many"),
    Mutant("mask_k = offs_k < HIDDEN", "mask_k = offs_k < HIDDEN - 1", "V's last channel is forgotten"),
    Mutant("weight_ptr + offs_n[None, :] * stride_wn", "weight_ptr + offs_n[None, :] * WIDTH", "W is contiguous"),
    Mutant(
        "weight_ptr + offs_n[None, :] * stride_wn",
        "weight_ptr + offs_n.to(tl.int32)[None, :] * stride_wn",
        "W is addressed in 32 bits",
    ),
    Mutant(
        "mask=mask_k[:, None] & mask_n[None, :]",
        "mask=mask_k[:, None] & (offs_n >= 0)[None, :]",
        "W beyond the vocabulary is read",
        (1, 2),
    ),
    Mutant(
        "mask=mask_k[:, None] & mask_n[None, :]",
        "mask=mask_k[:, None] & (offs_n >= 0)[None, :]",
        "V beyond the vocabulary is read",
        (2, 2),
    ),
    Mutant(
        "mask=mask_m[:, None] & mask_k[None, :]",
        "mask=mask_k[None, :] & (offs_m >= 0)[:, None]",
        "rows beyond the last are read",
        (1, 2),
    ),
    Mutant("range(WIDTH, HIDDEN, BLOCK_K)", "range(0, HIDDEN - WIDTH, BLOCK_K)", "V takes W's channels"),
    Mutant("(offs_k - WIDTH).to(tl.int64)", "offs_k.to(tl.int64)", "V's channels are counted from 0"),
    Mutant(
        "(offs_k - WIDTH).to(tl.int64)",
        "(offs_k - WIDTH)",
        "V is addressed in 32 bits",
        survives=TOO_LARGE,
    ),
    Mutant("[:, None] * stride_ok + offs_n[None, :]", "[:, None] * VOCAB + offs_n[None, :]", "V is contiguous"),
    Mutant("if own_ptr is not None:", "if False:", "V is forgotten"),
    Mutant("acc += tl.load(bias_ptr", "acc -= tl.load(bias_ptr", "the bias is subtracted"),
    Mutant("tl.load(bias_ptr + offs_n,", "tl.load(bias_ptr + offs_n % BLOCK_N,", "every tile has the first one's bias"),
    Mutant(
        'acc = tl.dot(x, w, acc, input_precision="ieee")\n    if bias',
        'acc = tl.dot(x, w, input_precision="ieee")\n    if bias',
        "the own weights alone",
    ),
    Mutant("tl.maximum(highest, tl.max(logit, 1))", "tl.max(logit, 1)", "the highest is the last tile's"),
    Mutant("lse_ptr + row, base", "lse_ptr, base", "all rows write one sum"),
    # How a pair orders.
    Mutant("bits ^ ((bits >> 31) & 0x7FFFFFFF)", "bits", "negative logits order the other way"),
    Mutant(
        "tl.where(logit == 0.0, 0.0, logit)",
        "logit",
        "-0.0 is below 0.0",
        survives="sums that begin at 0.0 never come to -0.0 in the interpreter; of tensor cores nobody promises that",
    ),
    Mutant("((first + place) ^ LAST_TOKEN)", "(first + place)", "of equal logits the higher id comes first"),
    Mutant("((first + place) ^ LAST_TOKEN)", "(place.to(tl.int64) ^ LAST_TOKEN)", "ids are counted from the tile"),
    Mutant("(kept & LAST_TOKEN) ^ LAST_TOKEN", "kept & LAST_TOKEN", "ids are not turned back"),
    Mutant("_flipped((kept >> 32).to(tl.int32))", "(kept >> 32).to(tl.int32)", "values are not turned back"),
    # What is kept.
    Mutant("(best.to(tl.int64) << 32)", "(best << 32)", "logits are shifted out of 32 bits"),
    Mutant(
        "-lanes + BELOW_PAIRS, ABOVE_PAIRS", "0 * lanes + BELOW_PAIRS, ABOVE_PAIRS", "what is not yet kept is equal"
    ),
    Mutant("-lanes + BELOW_PAIRS, ABOVE_PAIRS", "-lanes + BELOW_PAIRS, NO_PAIR", "pairs are kept in lanes beyond"),
    Mutant(
        "tl.where(lanes < count, -lanes + BELOW_PAIRS",
        "tl.where(lanes < count - 1, -lanes + BELOW_PAIRS",
        "one too few",
    ),
    Mutant("> 0:\n            # A row", "> 1:\n            # A row", "nothing is kept"),
    Mutant(
        "while tl.max((pair > lowest).to(tl.int32), 0) > 0:",
        "while tl.min((pair > lowest).to(tl.int32), 0) > 0:",
        "all rows end with the first",
    ),
    Mutant(
        "(kept == lowest[:, None]) & (pair > lowest)[:, None]",
        "kept == lowest[:, None]",
        "a row that gains nothing takes what it has found",
    ),
    Mutant(
        "order = tl.where(columns[None, :] == place[:, None], NO_LOGIT, order)",
        "order = tl.where(columns[None, :] >= place[:, None], NO_LOGIT, order)",
        "what comes after the highest is lost",
    ),
    Mutant(
        "tl.where(mask_m[:, None] & mask_n[None, :], order, NO_LOGIT)",
        "tl.where(mask_m[:, None], order, NO_LOGIT)",
        "tokens beyond the vocabulary have the logit -inf",
        survives="of equal logits the lower token comes first, and the vocabulary has as many as are asked for",
    ),
    Mutant(
        "tl.where(mask_m[:, None] & mask_n[None, :], order, NO_LOGIT)",
        "tl.where(mask_n[None, :], order, NO_LOGIT)",
        "rows beyond the last are searched",
        survives="they are written nowhere, and cost rounds alone",
    ),
    # Parts of the vocabulary.
    Mutant(
        "(tl.program_id(0) % row_blocks).to(tl.int64) * BLOCK_M",
        "(tl.program_id(0) % row_blocks) * BLOCK_M",
        "rows are addressed in 32 bits",
        (1, 2),
        survives="the rows of the transform are contiguous: " + TOO_LARGE,
    ),
    Mutant("tl.program_id(0) // row_blocks).to(tl.int64)\n", "tl.program_id(0) * 0).to(tl.int64)\n", "one part"),
    Mutant("tl.minimum(VOCAB - part * SPLIT, SPLIT)", "tl.minimum(VOCAB - part * SPLIT, BLOCK_N)", "one tile a part"),
    Mutant(
        "tl.minimum(VOCAB - part * SPLIT, SPLIT)",
        "(VOCAB - part * SPLIT)",
        "a part goes on to the end of the vocabulary",
    ),
    Mutant("first = part * SPLIT + start", "first = part * BLOCK_N + start", "parts overlap"),
    Mutant("mask_n = offs_n < VOCAB\n", "mask_n = offs_n < VOCAB - 1\n", "the last token is forgotten"),
    Mutant(
        "(offs_m * PARTS + part)[:, None] * count + offs_c",
        "(offs_m * PARTS)[:, None] * count + offs_c",
        "parts write over each other",
    ),
    Mutant("mask=mask_m[:, None] & (offs_c < count)", "mask=mask_m[:, None]", "more than asked for is written"),
    Mutant(
        "tl.where(kept < FIRST_PAIR, NO_PAIR, kept)",
        "kept",
        "what was not kept is taken for a pair",
        survives="below every pair, and the first step of the join has more of those than are asked for: 1,024 / count "
        "parts of 16 tokens and more, or all of the vocabulary",
    ),
    Mutant("mask=offs < PARTS * count, other=NO_PAIR", "mask=offs < PARTS * count, other=2**62", "lanes are pairs"),
    Mutant("ids_ptr + row * count + place", "ids_ptr + row * BLOCK_C + place", "ids lie a power of two apart"),
    Mutant(
        "tl.store(ids_ptr + row * count + place, (kept & LAST_TOKEN) ^ LAST_TOKEN, mask=lanes < count)",
        "tl.store(ids_ptr + row * count + place, (kept & LAST_TOKEN) ^ LAST_TOKEN)",
        "more ids than asked for are written",
    ),
    Mutant("highest_ptr + offs_m * PARTS + part, highest", "highest_ptr + offs_m * PARTS, highest", "one part's"),
    Mutant("sums_ptr + row * PARTS + offs_p", "sums_ptr + row + offs_p", "the sums of other rows"),
    # The log-sum-exp.
    Mutant("tl.abs(highest) == INFINITY", "highest == INFINITY", "-inf - -inf where there is no logit"),
    Mutant("tl.abs(highest) == INFINITY", "highest == -INFINITY", "inf - inf"),
    Mutant("logit = tl.where(mask_n[None, :], logit, -INFINITY)", "logit = logit", "masked columns are in the sum"),
    Mutant("total * tl.exp(highest - base)", "total", "the sum is not rescaled"),
    Mutant("total * tl.exp(highest - base) + tl.sum", "tl.sum", "the sum is the last tile's"),
    Mutant("        highest = higher\n", "", "the sum is rescaled from -inf"),
    Mutant("tl.sum(sums * tl.exp(highest - base), 0)", "tl.sum(sums, 0)", "parts are not rescaled"),
    Mutant("base + tl.log(", "tl.log(", "the highest logit is not added back"),
    Mutant("mask=mask_p, other=-INFINITY", "mask=mask_p, other=0.0", "parts that are none have a logit of 0"),
    # Joining.
    Mutant("range(0, PARTS * count, STEP)", "range(0, STEP, STEP)", "the first step alone"),
    Mutant("offs = start + tl.arange", "offs = 0 * start + tl.arange", "the first step again"),
    Mutant("mask=offs < PARTS * count", "mask=offs < (PARTS - 1) * count", "the last part is forgotten"),
    Mutant("kept = tl.where(kept == lowest, pair, kept)", "kept = tl.where(kept <= pair, pair, kept)", "one pair"),
    Mutant("kept = tl.where(lanes < count, kept, NO_PAIR)", "kept = kept", "lanes beyond come first"),
    Mutant("(kept[None, :] > kept[:, None])", "(kept[None, :] < kept[:, None])", "the lowest comes first"),
    Mutant("values_ptr + row * count + place", "values_ptr + row * BLOCK_C + place", "rows are a power of two apart"),
    # All logits.
    Mutant(
        "(tl.program_id(0) // row_blocks).to(tl.int64) * BLOCK_N",
        "(tl.program_id(0) * 0).to(tl.int64) * BLOCK_N",
        "one tile",
    ),
    Mutant(
        "out_ptr + offs_m[:, None] * VOCAB",
        "out_ptr + offs_m.to(tl.int32)[:, None] * VOCAB",
        "32 bits",
        survives=TOO_LARGE,
    ),
    Mutant(
        "mask_m, mask_n = offs_m < rows, offs_n < VOCAB",
        "mask_m, mask_n = offs_m <= rows, offs_n < VOCAB",
        "a row too many",
    ),
    Mutant(
        "mask_m, mask_n = offs_m < rows, offs_n < VOCAB",
        "mask_m, mask_n = offs_m < rows, offs_n <= VOCAB",
        "a token too many",
    ),
)
