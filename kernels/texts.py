"""Where in a packed batch something stands: found on the GPU, from `cu_seqlens` alone, without asking the host."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["text_at"]


@triton.jit
def text_at(place, cu_seqlens_ptr, texts, SPLIT: tl.constexpr):
    """The text that `place` belongs to: the last whose first place is not beyond it, and so never an empty one.

    With SPLIT 0 places are tokens and a text's first place is `cu_seqlens[text]`. Otherwise places are slots: each
    text has one for every SPLIT of its tokens, from slot `cu_seqlens[text] // SPLIT + text` on. With a floor on either
    side of a text, `tokens // SPLIT + texts` slots are enough for all texts, whatever their lengths, and none is
    shared: `floor(b / S) + 1 - floor(a / S) >= ceil((b - a) / S)`.

    Args:
        place: int64, a number or a tensor of any shape, from 0 on.
        cu_seqlens_ptr: int32 `[texts + 1]`.
        texts: their number, at least 1.
        SPLIT: see above.

    Returns:
        int64 in the shape of `place`, below `texts`.
    """
    text = place * 0
    # All lanes halve the same span, so that its end never leaves the array: no mask is needed.
    span = texts
    while span > 1:
        half = span // 2
        first = tl.load(cu_seqlens_ptr + text + half).to(tl.int64)
        if SPLIT:
            first = first // SPLIT + text + half
        text = tl.where(first <= place, text + half, text)
        span -= half
    return text
