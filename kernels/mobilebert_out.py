"""From MobileBERT's attention to the end of its layer in one kernel: `engine/ops/mobilebert.py`, `mobilebert_out`.

Maths, a row of `width` channels a token, in fp32 registers from the first line to the last but one:
    narrow = norm(narrow + context A^T + a)
    narrow = norm(narrow + activation(narrow U_i^T + u_i) D_i^T + d_i)      for each network i
    out    = norm(x + narrow O^T + o)                                       of `hidden` channels
where norm is `x * scale + shift` (no_norm) or layer_norm. What enters a product is rounded to the weights' dtype; sums,
biases, activation, residual and norm are fp32, and the residual is added to a finished sum: added one by one to a
channel of 1e7, products would each be rounded to a whole number.

Tiling: a program owns BLOCK_M tokens, and the weights pass by, BLOCK_K columns of a network at a time.

    context [BLOCK_M, width] --A--> narrow [BLOCK_M, BLOCK_W] fp32, in registers
                                      |  ^
           U_i [BLOCK_K, width] ----> h  |   h [BLOCK_M, BLOCK_K]: activated, rounded, gone
           D_i [width, BLOCK_K] ----> acc|   acc [BLOCK_M, BLOCK_W] fp32; behind the last block, bias, residual, norm
                                      v
           O [BLOCK_N, width] ------> out [BLOCK_M, BLOCK_N], with x, stored; the next BLOCK_N columns

Both loops over networks and over blocks are loops of the compiled code: unrolled networks are four times the code for
nothing. BLOCK_W is `width` up to the next power of two, and its last channels are kept at 0. `inner` and `hidden` may
be anything.

The last row, of `hidden` channels, does not fit into registers. no_norm does not mind. layer_norm is made of two
passes over the product: the first keeps mean and summed squares of each block of columns and merges them by Chan,
Golub & LeVeque (1979, equation 2.1), the second computes the same columns once more and normalises them; that costs
`2 * width * hidden` FLOPs a token more, 11 % at the published sizes, and x is read twice. Storing what is not yet
normalised would cost as many bytes, and a program would have to read what it has written.

What is fused: five products (four networks: ten), their biases, activations, residuals and norms; nothing in between
is written. Bytes a token at the published sizes (width 128, hidden and inner 512, 4 networks) in bf16 with an fp32
stream: 256 + 512 + 2,048 read, 2,048 written. FLOPs a token: 1.21 million, 249 a byte. Each program reads all weights,
1.21 MB, which L2 holds: 9.5 kB a token and 128 FLOPs a byte of L2 at 128 rows, half that at 64. The bounds are L2 and
the tensor cores, and BLOCK_M is as high as registers allow.

Tried by compiling alone: 128 rows of eight warps take 245 registers on sm_90 (wgmma) and spill nothing, and spill on
sm_80 and its kin, whose tensor cores read both operands from registers; 64 rows there. One loop over all blocks of all
networks would keep weights in flight over the border between two, but `narrow` would enter the products from another
place in each round; not tried.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activations import activate
from .mobilebert_in import normalised, per_column, tile

__all__ = ["mobilebert_out_kernel"]


@triton.jit
def _widened(
    narrow, out_weight_ptr, out_bias_ptr, x_ptr, offs_m, mask_m, offs_n, offs_w,
    STRIDE: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Columns of `x + narrow @ out^T + bias`, `[BLOCK_M, BLOCK_N]` in fp32, before their norm."""
    weight = tile(out_weight_ptr, offs_n, offs_w, HIDDEN, WIDTH, BLOCK_N, BLOCK_W)  # [BLOCK_N, BLOCK_W]
    mask = mask_m[:, None] & (offs_n < HIDDEN)[None, :]
    x = tl.load(x_ptr + offs_m[:, None] * STRIDE + offs_n[None, :], mask=mask, other=0.0)  # [BLOCK_M, BLOCK_N]
    out = tl.dot(narrow, tl.trans(weight), input_precision="ieee") + per_column(out_bias_ptr, offs_n, HIDDEN)
    return out + x.to(tl.float32)


@triton.jit(do_not_specialize=["tokens"])
def mobilebert_out_kernel(
    context_ptr, narrow_ptr, x_ptr, out_ptr,
    attended_weight_ptr, attended_bias_ptr, attended_scale_ptr, attended_shift_ptr,
    up_weight_ptr, up_bias_ptr, down_weight_ptr, down_bias_ptr, down_scale_ptr, down_shift_ptr,
    out_weight_ptr, out_bias_ptr, out_scale_ptr, out_shift_ptr,
    tokens, eps, last_eps,
    STRIDE_C: tl.constexpr, STRIDE_N: tl.constexpr, STRIDE_X: tl.constexpr,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, INNER: tl.constexpr, NETWORKS: tl.constexpr, ACTIVATION: tl.constexpr,
    LAYER_NORM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """BLOCK_M tokens from the attention's output to the layer's; `out` is contiguous."""
    dtype = attended_weight_ptr.dtype.element_ty
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < tokens
    offs_w = tl.arange(0, BLOCK_W)
    acc = tl.zeros([BLOCK_M, BLOCK_W], tl.float32)
    for k in tl.range(0, WIDTH, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        context = tl.load(
            context_ptr + offs_m[:, None] * STRIDE_C + offs_k[None, :],
            mask=mask_m[:, None] & (offs_k < WIDTH)[None, :],
            other=0.0,
        )  # [BLOCK_M, BLOCK_K]
        weight = tile(attended_weight_ptr, offs_w, offs_k, WIDTH, WIDTH, BLOCK_W, BLOCK_K)  # [BLOCK_W, BLOCK_K]
        acc = tl.dot(context.to(dtype), tl.trans(weight), acc, input_precision="ieee")
    narrow = tl.load(
        narrow_ptr + offs_m[:, None] * STRIDE_N + offs_w[None, :],
        mask=mask_m[:, None] & (offs_w < WIDTH)[None, :],
        other=0.0,
    )  # [BLOCK_M, BLOCK_W]
    narrow = (acc + per_column(attended_bias_ptr, offs_w, WIDTH)) + narrow.to(tl.float32)
    narrow = normalised(narrow, attended_scale_ptr, attended_shift_ptr, offs_w, eps, LAYER_NORM, WIDTH, BLOCK_W)

    for network in tl.range(0, NETWORKS):
        entered = narrow.to(dtype)
        # Apart from the residual: products that are added one by one to 1e7 are rounded to whole numbers, each.
        acc = tl.zeros([BLOCK_M, BLOCK_W], tl.float32)
        for f in tl.range(0, INNER, BLOCK_K):
            offs_f = f + tl.arange(0, BLOCK_K)
            up = tile(up_weight_ptr, offs_f, offs_w, INNER, WIDTH, BLOCK_K, BLOCK_W)  # [BLOCK_K, BLOCK_W]
            inner = tl.dot(entered, tl.trans(up), input_precision="ieee") + per_column(up_bias_ptr, offs_f, INNER)
            inner = activate(inner, ACTIVATION)
            if INNER % BLOCK_K:
                inner = tl.where((offs_f < INNER)[None, :], inner, 0.0)
            down = tile(down_weight_ptr, offs_w, offs_f, WIDTH, INNER, BLOCK_W, BLOCK_K)  # [BLOCK_W, BLOCK_K]
            acc = tl.dot(inner.to(dtype), tl.trans(down), acc, input_precision="ieee")
        narrow = (acc + per_column(down_bias_ptr, offs_w, WIDTH)) + narrow
        epsilon = tl.where(network == NETWORKS - 1, last_eps, eps)
        narrow = normalised(narrow, down_scale_ptr, down_shift_ptr, offs_w, epsilon, LAYER_NORM, WIDTH, BLOCK_W)
        up_weight_ptr += INNER * WIDTH
        up_bias_ptr += INNER
        down_weight_ptr += WIDTH * INNER
        down_bias_ptr += WIDTH
        down_scale_ptr += WIDTH
        down_shift_ptr += WIDTH

    narrow = narrow.to(dtype)
    mean = tl.zeros([BLOCK_M], tl.float32)
    square = tl.zeros([BLOCK_M], tl.float32)
    if LAYER_NORM:
        for n in tl.range(0, HIDDEN, BLOCK_N):
            offs_n = n + tl.arange(0, BLOCK_N)
            out = _widened(
                narrow, out_weight_ptr, out_bias_ptr, x_ptr, offs_m, mask_m, offs_n, offs_w, STRIDE_X, WIDTH, HIDDEN,
                BLOCK_W, BLOCK_N,
            )  # fmt: skip
            inside = (offs_n < HIDDEN)[None, :]
            count = tl.minimum(HIDDEN - n, BLOCK_N).to(tl.float32)
            total = (n + tl.minimum(HIDDEN - n, BLOCK_N)).to(tl.float32)
            own = tl.sum(tl.where(inside, out, 0.0), 1) / count
            apart = tl.where(inside, out - own[:, None], 0.0)
            distance = own - mean
            mean += distance * (count / total)
            square += tl.sum(apart * apart, 1) + distance * distance * (count * (n / total))
        square = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(square, HIDDEN * 1.0) + eps))
    for n in tl.range(0, HIDDEN, BLOCK_N):
        offs_n = n + tl.arange(0, BLOCK_N)
        out = _widened(
            narrow, out_weight_ptr, out_bias_ptr, x_ptr, offs_m, mask_m, offs_n, offs_w, STRIDE_X, WIDTH, HIDDEN,
                BLOCK_W, BLOCK_N,
        )  # fmt: skip
        if LAYER_NORM:
            out = (out - mean[:, None]) * square[:, None]
        out = out * per_column(out_scale_ptr, offs_n, HIDDEN) + per_column(out_shift_ptr, offs_n, HIDDEN)
        mask = mask_m[:, None] & (offs_n < HIDDEN)[None, :]
        tl.store(out_ptr + offs_m[:, None] * HIDDEN + offs_n[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)
