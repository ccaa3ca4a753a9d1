"""Mutants of the kernels that move and pool rows: rope, embed, trigram, pool, and the search for a row's text."""

from __future__ import annotations

from mutant import FMA_ROUNDS_TWICE, TOO_LARGE, Mutant

__all__ = ["EMBED", "POOL", "ROPE", "TEXTS", "TRIGRAM"]

ROPE = (
    Mutant(
        "offs_h = (head + tl.arange(0, BLOCK_H)).to(tl.int64)",
        "offs_h = (head + tl.arange(0, BLOCK_H))",
        "heads are addressed in 32 bits",
    ),
    Mutant(
        "offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M",
        "offs_m = tl.program_id(0) * BLOCK_M",
        "tokens are addressed in 32 bits",
    ),
    Mutant(
        "mask=mask_m, other=0).to(tl.int64)[:, None, None]",
        "mask=mask_m, other=0).to(tl.int32)[:, None, None]",
        "rows of the tables are addressed in 32 bits",
    ),
    Mutant("(offs_h < heads)", "(offs_h <= heads)", "one head too many"),
    Mutant("mask = mask_m & (offs_h < heads) &", "mask = mask_m &", "heads beyond the last"),
    Mutant(
        "mask = mask_m & (offs_h < heads) & (offs_d < HALF)",
        "mask = mask_m & (offs_h < heads)",
        "channels beyond the half",
    ),
    Mutant("mask = mask_m & (offs_d < HALF)", "mask = mask_m & (offs_d <= HALF)", "one channel of the tables too many"),
    Mutant("offs_m * stride_xt + offs_h * stride_xh", "offs_m * stride_xh + offs_h * stride_xt", "strides are swapped"),
    Mutant("second = tl.load(x + HALF,", "second = tl.load(x + BLOCK_D,", "the second half begins at a power of two"),
    Mutant(
        "(offs_m * heads + offs_h) * (2 * HALF)",
        "(offs_m * heads + offs_h) * (2 * BLOCK_D)",
        "outputs are a power of two apart",
    ),
    Mutant("first * cosine - second * sine", "first * cosine + second * sine", "the first half turns the other way"),
    Mutant("second * cosine + first * sine", "second * cosine - first * sine", "the second half turns the other way"),
    Mutant(
        "first * cosine - second * sine",
        "tl.fma(first, cosine, -(second * sine))",
        "one rounding less than eager",
        survives=FMA_ROUNDS_TWICE,
    ),
    Mutant("tl.store(out + HALF,", "tl.store(out + BLOCK_D,", "the second half is written at a power of two"),
    Mutant("mask_m = offs_m < tokens", "mask_m = offs_m <= tokens", "one token too many"),
    Mutant("cos_ptr + rows * stride_cos", "cos_ptr + rows * stride_sin", "cosines lie where sines do"),
    Mutant("sin_ptr + rows * stride_sin", "sin_ptr + rows * stride_cos", "sines lie where cosines do"),
    Mutant("tl.load(sin_ptr + rows", "tl.load(cos_ptr + rows", "sines are cosines"),
    Mutant("cosine, sine, heads_k, stride_kt", "cosine, sine, heads, stride_kt", "as many heads of keys as of queries"),
    Mutant("k_ptr, out_k_ptr, offs_m, mask_m", "q_ptr, out_k_ptr, offs_m, mask_m", "keys are queries"),
    Mutant("heads_k, stride_kt, stride_kh,", "heads_k, stride_qt, stride_qh,", "keys lie where queries do"),
    Mutant("cos_ptr + rows * stride_cos", "cos_ptr + offs_m * stride_cos", "cosines of the token's place in the batch"),
    Mutant("range(0, heads, BLOCK_H)", "range(0, BLOCK_H, BLOCK_H)", "only the first heads are turned"),
)

EMBED = (
    Mutant(
        "other=0).to(tl.int64)  # [BLOCK_M]",
        "other=0)  # [BLOCK_M]",
        "rows are addressed in what ids are",
        survives="ids come as int64; the gate finds 32-bit addresses where they do not",
    ),
    Mutant(
        "ids = tl.load(ids_ptr + offs_m, mask=mask_m, other=0).to(tl.int64)",
        "ids = tl.load(ids_ptr + offs_m, mask=mask_m, other=0).to(tl.int32)",
        "rows are addressed in 32 bits",
    ),
    Mutant(
        "tl.load(ids_ptr + offs_m, mask=mask_m, other=0)", "tl.load(ids_ptr + offs_m)", "ids beyond the last are read"
    ),
    Mutant(
        "offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M",
        "offs_m = tl.program_id(0) * BLOCK_M",
        "tokens are addressed in 32 bits",
        survives=TOO_LARGE,
    ),
    Mutant("mask_m = offs_m < tokens", "mask_m = offs_m <= tokens", "one token too many"),
    Mutant("mask_d = offs_d < HIDDEN", "mask_d = offs_d <= HIDDEN", "one channel too many"),
    Mutant("mask = mask_m[:, None] & mask_d", "mask = mask_m[:, None]", "channels beyond the row"),
    Mutant(
        "_rows(token_type_ptr, types_ptr, stride_type,",
        "_rows(token_type_ptr, types_ptr, stride_word,",
        "token types lie where words do",
    ),
    Mutant(
        "_rows(position_ptr, places_ptr, stride_position,",
        "_rows(position_ptr, places_ptr, stride_word,",
        "positions lie where words do",
    ),
    Mutant("_rows(position_ptr, places_ptr,", "_rows(position_ptr, ids_ptr,", "positions are those of the ids"),
    Mutant(
        "x += tl.load(token_type_ptr + offs_d, mask=mask_d, other=0.0).to(tl.float32)",
        "x += tl.load(token_type_ptr + stride_type + offs_d, mask=mask_d, other=0.0).to(tl.float32)",
        "without types all tokens are of type 1",
    ),
    Mutant(
        "tl.sum(tl.where(mask_d, x, 0.0), 1)",
        "tl.sum(x, 1)",
        "the mean takes in channels beyond the row",
        survives="they are loaded as 0, and stay so up to here",
    ),
    Mutant("tl.where(mask_d, x * x, 0.0)", "x * x", "the variance takes in channels beyond the row"),
    Mutant("x * x, 0.0), 1), HIDDEN * 1.0)", "x * x, 0.0), 1), HIDDEN - 1.0)", "the variance is of a sample"),
    Mutant(
        "tl.where(mask_d, x, 0.0), 1), HIDDEN * 1.0)",
        "tl.where(mask_d, x, 0.0), 1), BLOCK_D * 1.0)",
        "the mean divides by a power of two",
    ),
    Mutant("x -= mean[:, None]", "x -= 0.0", "the mean is not subtracted"),
    Mutant("tl.sqrt_rn(variance + eps)", "tl.sqrt_rn(variance) + eps", "eps is added to the root"),
    Mutant("tl.sqrt_rn(variance + eps)", "tl.sqrt_rn(variance)", "no eps"),
    Mutant("x *= tl.load(weight_ptr", "x += tl.load(weight_ptr", "the weight is added"),
    Mutant("x += tl.load(bias_ptr", "x -= tl.load(bias_ptr", "the bias is subtracted"),
    Mutant(
        "if bias_ptr is not None:",
        "if weight_ptr is not None and bias_ptr is not None:",
        "a bias without a weight is forgotten",
    ),
    Mutant(
        "out_ptr + offs_m[:, None] * HIDDEN", "out_ptr + offs_m[:, None] * BLOCK_D", "outputs are a power of two apart"
    ),
)

TRIGRAM = (
    Mutant(
        "tl.load(ids_ptr + neighbour, mask=there, other=0).to(tl.int64)",
        "tl.load(ids_ptr + neighbour, mask=there, other=0).to(tl.int32)",
        "rows are addressed in 32 bits",
    ),
    Mutant(
        "tl.load(ids_ptr + neighbour, mask=there, other=0)",
        "tl.load(ids_ptr + neighbour)",
        "ids beyond the batch are read",
    ),
    Mutant("mask=there[:, None] & mask_d, other", "mask=mask_d, other", "a missing neighbour is token 0"),
    Mutant("mask=there[:, None] & mask_d, other", "mask=there[:, None], other", "channels beyond the row are read"),
    Mutant(
        "tl.store(out, rows, mask=mask)",
        "tl.store(out, rows, mask=there[:, None] & mask_d)",
        "zeros of missing neighbours are not written",
    ),
    Mutant("tl.store(out, rows, mask=mask)", "tl.store(out, rows, mask=mask_d)", "tokens beyond the last are written"),
    Mutant(
        "offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M",
        "offs_m = tl.program_id(0) * BLOCK_M",
        "tokens are addressed in 32 bits",
        survives=TOO_LARGE,
    ),
    Mutant("mask_m = offs_m < tokens", "mask_m = offs_m <= tokens", "one token too many"),
    Mutant("mask_d = offs_d < WIDTH", "mask_d = offs_d <= WIDTH", "one channel too many"),
    Mutant("stop = tl.load(cu_seqlens_ptr + text + 1)", "stop = tl.load(cu_seqlens_ptr + text)", "no token has a next"),
    Mutant("offs_m + 1 < stop", "offs_m < stop", "the next text's first token is a neighbour"),
    Mutant("offs_m + 1 < stop", "offs_m + 2 < stop", "the last token is no neighbour"),
    Mutant("offs_m > start", "offs_m >= start", "the previous text's last token is a neighbour"),
    Mutant("offs_m > start", "offs_m > start + 1", "the first token is no neighbour"),
    Mutant(
        "has_next = mask_m & (offs_m + 1 < stop)",
        "has_next = mask_m & (offs_m + 1 < tokens)",
        "texts run together to the right",
    ),
    Mutant(
        "has_previous = mask_m & (offs_m > start)",
        "has_previous = mask_m & (offs_m > 0)",
        "texts run together to the left",
    ),
    Mutant(
        "has_next = mask_m & (offs_m + 1 < stop)",
        "has_next = offs_m + 1 < stop",
        "tokens beyond the last may have a next",
        survives="the text found for a token beyond the last is the last text, which ends before it",
    ),
    Mutant(
        "has_previous = mask_m & (offs_m > start)",
        "has_previous = offs_m > start",
        "tokens beyond the last have a previous",
    ),
    Mutant(
        "offs_m + 1, has_next, out, offs_d",
        "offs_m + 1, has_next, out + 2 * WIDTH, offs_d",
        "next and previous share a place",
    ),
    Mutant("offs_m - 1, has_previous, out", "offs_m + 1, has_previous, out", "the previous token is the next"),
    Mutant("offs_m[:, None] * (3 * WIDTH)", "offs_m[:, None] * (3 * BLOCK_D)", "outputs are a power of two apart"),
    Mutant("ids * stride_word + offs_d", "ids * 16 + offs_d", "rows of the table are 16 apart"),
    Mutant("out + WIDTH, offs_d", "out + BLOCK_D, offs_d", "the token itself is written at a power of two"),
)

TEXTS = (
    Mutant("text = place * 0", "text = place * 0 + 1", "the first text is never found"),
    Mutant("span = texts", "span = texts - 1", "the last text is never found"),
    Mutant("span = texts", "span = texts + 1", "the search goes beyond the last text"),
    Mutant("while span > 1:", "while span > 2:", "the search ends one step early"),
    Mutant("half = span // 2", "half = span // 2 + 1", "the search jumps too far"),
    Mutant("half = span // 2", "half = (span + 1) // 2", "the larger half comes first"),
    Mutant(
        "cu_seqlens_ptr + text + half).to", "cu_seqlens_ptr + text + half - 1).to", "first places of the text before"
    ),
    Mutant("first = first // SPLIT + text + half", "first = first // SPLIT + text + half + 1", "slots begin one late"),
    Mutant(
        "first = first // SPLIT + text + half",
        "first = (first + SPLIT - 1) // SPLIT + text + half",
        "slots are rounded up",
    ),
    Mutant("first = first // SPLIT + text + half", "first = first // SPLIT + text", "slots overlap"),
    Mutant("first = first // SPLIT + text + half", "first = first // SPLIT", "a slot for every SPLIT tokens, no more"),
    Mutant("if SPLIT:", "if SPLIT == 0:", "tokens are slots, and slots tokens"),
    Mutant("first <= place", "first < place", "a text's first place is another's"),
    Mutant("first <= place", "first > place", "the wrong half"),
    Mutant(
        "tl.where(first <= place, text + half, text)", "tl.where(first <= place, half, text)", "steps are not added up"
    ),
    Mutant(
        "tl.where(first <= place, text + half, text)",
        "tl.where(first <= place, text + half - 1, text)",
        "steps are one short",
    ),
    Mutant("span -= half", "span = half", "the smaller half is left"),
    Mutant("span -= half", "span -= half + 1", "the search ends early"),
)

POOL = (
    Mutant("mask_d = offs_d < HIDDEN", "mask_d = offs_d <= HIDDEN", "one channel too many is written"),
    Mutant(
        "(tl.abs(vector) < INFINITY) | (offs_d >= HIDDEN)",
        "(tl.abs(vector) <= INFINITY) | (offs_d >= HIDDEN)",
        "infinity counts as finite",
    ),
    Mutant("tl.abs(vector) < INFINITY", "vector < INFINITY", "-inf counts as finite"),
    Mutant("tl.abs(vector) < INFINITY", "tl.abs(vector) != INFINITY", "NaN counts as finite"),
    Mutant(
        "(tl.abs(vector) < INFINITY) | (offs_d >= HIDDEN)",
        "tl.abs(vector) < INFINITY",
        "channels beyond the row have a say in what is finite",
    ),
    Mutant("tl.min(usable.to(tl.int32), 0)", "tl.max(usable.to(tl.int32), 0)", "one finite channel is enough"),
    Mutant("tl.where(mask_d, vector * vector, 0.0)", "vector * vector", "the norm takes in channels beyond the row"),
    Mutant("tl.sqrt_rn(tl.sum(", "(tl.sum(", "the norm is a square"),
    Mutant("tl.where(norm < 1e-12, 1e-12, norm)", "norm", "0 / 0 for a row of zeros"),
    Mutant("tl.where(norm < 1e-12, 1e-12, norm)", "tl.where(norm < 1e-6, 1e-6, norm)", "small rows are not normalised"),
    Mutant("tl.where(norm < 1e-12, 1e-12, norm)", "tl.maximum(norm, 1e-12)", "a norm that is NaN is dropped"),
    Mutant("tl.where(norm < 1e-12, 1e-12, norm)", "(norm + 1e-12)", "the smallest norm is added"),
    Mutant('-INFINITY if MODE == "max" else 0.0, tl.float32', "0.0, tl.float32", "a maximum is at least 0"),
    Mutant(", propagate_nan=tl.PropagateNan.ALL", "", "a maximum of two drops NaN"),
    Mutant("return tl.where(spoilt > 0, NAN, highest)", "return highest", "a maximum of many drops NaN"),
    Mutant("counted = tl.maximum(length - skip, 0)", "counted = tl.maximum(length, 0)", "skipped tokens are counted"),
    Mutant(
        "length * (length + 1) - skip * (skip + 1)", "length * (length + 1)", "weights of skipped tokens are counted"
    ),
    Mutant(
        "length * (length + 1) - skip * (skip + 1)",
        "length * (length - 1) - skip * (skip - 1)",
        "weights are counted from 0",
    ),
    Mutant("weights = tl.where(counted > 0, ", "weights = tl.where(counted > -1, ", "0 / 0 where all is skipped"),
    Mutant("count = tl.maximum(counted, 1)", "count = counted", "0 / 0 where all is skipped"),
    Mutant("tl.sqrt_rn(count) if MODE", "count if MODE", "the mean is not by the root"),
    Mutant(
        "tl.where(start + skip < stop, start + skip, start) if MODE",
        "(start + skip) if MODE",
        "cls of a text that is skipped is its neighbour's",
    ),
    Mutant("tl.where(start + skip < stop, start + skip, start) if MODE", "start if MODE", "cls is never skipped"),
    Mutant("start + skip < stop, start", "start + skip <= stop, start", "cls may be the next text's"),
    Mutant('if MODE == "cls" else stop - 1', 'if MODE == "cls" else stop - 2', "the last token but one"),
    Mutant("(offs_d < HIDDEN) & (start < stop)", "offs_d < HIDDEN", "a text without tokens reads a neighbour's"),
    Mutant("row * stride_ht + offs_d", "row.to(tl.int32) * stride_ht + offs_d", "single rows are addressed in 32 bits"),
    Mutant("offs_n * stride_ht + offs_d", "offs_n.to(tl.int32) * stride_ht + offs_d", "rows are addressed in 32 bits"),
    Mutant(
        "slot = tl.program_id(0).to(tl.int64)",
        "slot = tl.program_id(0)",
        "slots are addressed in 32 bits",
        survives=TOO_LARGE,
    ),
    Mutant(
        "part = slot - (start // SPLIT + text)", "part = slot - start // SPLIT", "parts are counted from another text"
    ),
    Mutant("low = start + skip + part * SPLIT", "low = start + part * SPLIT", "parts begin with what is skipped"),
    Mutant("if (part == 0) | (low < stop):", "if low < stop:", "nobody writes a text that is skipped"),
    Mutant("if (part == 0) | (low < stop):", "if (part == 0) | (low <= stop):", "a part too many"),
    Mutant(
        "tl.minimum(stop - low, SPLIT).to(tl.int32)",
        "SPLIT",
        "a part reads on beyond its text",
        survives="what lies beyond the text is masked: time is lost, nothing else",
    ),
    Mutant("(offs_n < stop) & (within < SPLIT)", "(within < SPLIT)", "rows of the next text are pooled"),
    Mutant("(offs_n < stop) & (within < SPLIT)", "(offs_n <= stop) & (within < SPLIT)", "one row too many is pooled"),
    Mutant("(offs_n < stop) & (within < SPLIT)", "(offs_n < stop)", "rows of the next part are pooled"),
    Mutant("(within < SPLIT) & (offs_d < HIDDEN)", "(within < SPLIT)", "channels beyond the row are read"),
    Mutant("x *= (offs_n - start + 1)", "x *= (offs_n - start)", "weights begin with 0"),
    Mutant("x *= (offs_n - start + 1)", "x *= (within + 1)", "weights begin anew in each part"),
    Mutant("if stop - start - skip <= SPLIT:", "if stop - start - skip < SPLIT:", "a text of SPLIT tokens is nobody's"),
    Mutant(
        "if stop - start - skip <= SPLIT:", "if stop - start <= SPLIT:", "whole texts are counted with what is skipped"
    ),
    Mutant("parts_ptr + slot * HIDDEN + channels", "parts_ptr + part * HIDDEN + channels", "texts share their parts"),
    Mutant("if length - skip > SPLIT:", "if length > SPLIT:", "a text of one part is joined as well"),
    Mutant("if length - skip > SPLIT:", "if length - skip > SPLIT + 1:", "a text of SPLIT + 1 tokens is not joined"),
    Mutant("first = start // SPLIT + text", "first = start // SPLIT", "another text's parts are joined"),
    Mutant("(length - skip + SPLIT - 1) // SPLIT", "(length - skip) // SPLIT", "the last part is forgotten"),
    Mutant("(length - skip + SPLIT - 1) // SPLIT", "(length + SPLIT - 1) // SPLIT", "a part too many is joined"),
    Mutant("(within < parts) & (offs_d < HIDDEN)", "(offs_d < HIDDEN)", "parts beyond the last are joined"),
)
