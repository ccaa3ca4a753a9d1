"""A GEMM with what follows it, in Triton: `engine/ops/linear.py` in one launch. The kernel is in `linear_forward.py`.

Maths, a tile of `x @ weight^T` in fp32, each sum from the first input feature to the last, rounded once at the end:
    residual + activation(product + bias)                                         [tokens, out_features]
    residual + activation(even columns) * odd columns                             gated: [tokens, out_features / 2]
    pairs (2 j, 2 j + 1) of a head's columns, turned by the token's angle j       rope, the first `turned` columns
`prepare` puts rows of the weight beside each other whose outputs meet: row `i` of both halves of a gate, channel `j` of
both halves of a head. Both then lie in the registers of one thread. A turned channel is stored where eager has it.

Tiling: the grid is as many programs as the GPU runs at once. Program p takes tiles p, p + programs, … in this order:

                      out_features
            |  0  g ... |        each number a tile of BLOCK_M x BLOCK_N, GROUP_M (g) bands of rows taken together:
    tokens  |  1  ..... |        what is in flight shares g bands of x and a few of the weight, which L2 keeps
            |  ...      |        and a tile leaves in PARTS, one after the other, so that few numbers
            | g-1 2g-1  |        are held beside the sums: 256 columns in registers have no room for an erf of all
Rows never meet, no sum is split, and no tiling depends on how many rows there are: the bits of a row are its own.

What is fused: bias, activation, gate, residual of any dtype (the result is in the wider one), rotation, the cast, and
the statistics of the results, for the norm in front of the next product (`norm_linear.py`): mean and M2 of each part of
a tile. The product is never written. In half precision of `e` bytes that saves, a token, against an op of its own for
each: 4 e I for a gate of I outputs (9.2 kB at I = 1,152), 2 e N for an activation or a residual of N (3.1 kB at
N = 768), 2 e `turned` for the rotation (6.1 kB at 1,536).

Bytes and FLOPs a token: `e (K + outputs)`, `e outputs` more with a residual; `2 N K`. The weight, `e N K`, is read once
a batch. In bf16 920 FLOPs a byte for ModernBERT's gate (768 to 2 x 1,152), 256 for 768 to 768 with a residual, 100 for
MobileBERT's 128 to 512: above some 300 tensor cores are the bound (Hopper), below it memory. Out of L2 a tile of 128 by
256 reads 85 FLOPs a byte. Times on a GPU: not measured.

Tried by compiling alone: without PARTS 128 x 256 columns spill up to 1.4 kB a thread beside erf, rotation or an fp32
residual on sm_80, 90 and 100, with four parts none. `flatten` keeps the epilogue's memory apart, so a stage less fits.
`warp_specialize` does nothing on sm_90, and takes all 255 registers on sm_100, where it fits in four parts. Where rows
begin anywhere, K or N odd, each number has its own address: wide tiles spill kilobytes, those of 64 by 64 nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..engine.contract import Call
from ..engine.errors import InputError
from .launch import Config
from .limits import (
    dtype_reasons,
    require_dtype,
    require_indices,
    require_no_gradient,
    require_same_device,
    require_shape,
)
from .linear_launch import launch_linear, shipped_config
from .registration import traceable
from .tuned import Tuned

__all__ = [
    "CANDIDATES",
    "EPILOGUES",
    "TUNED",
    "check_inputs",
    "default_config",
    "defers",
    "dense",
    "linear",
    "prepare",
    "reasons_of_product",
    "unsupported",
]

# fmt: off
EPILOGUES = (
    "none", "gelu", "gelu_tanh", "relu", "tanh", "silu", "mish", "relu6", "relu2", "sigmoid", "quick_gelu",
)
# fmt: on
"""The keys of `ACTIVATIONS` in `engine/ops/linear.py`, which kernels do not import."""


def default_config(call: Call, *, aligned: bool = True) -> Config:
    """Tiling where nothing was measured: the widest whose sums and epilogue stay in registers.

    The gate holds what it takes on each architecture (tests/gate/resources.json). Never by the number of tokens: a row
    is to have the same bits in any company.

    Args:
        call: the facts.
        aligned: rows of all operands begin at multiples of 16 bytes. Otherwise they are read number by number, with an
            address in registers for each, as they are where a width is no multiple of 16 bytes.
    """
    narrow = not aligned or any(width % (16 // call.dtype.itemsize) for width in _widths(call))
    if call.dtype == torch.float32:
        # Products in full fp32 run on the ordinary cores, with both operands in registers.
        return _tiles(64 if narrow else 128, 64, 16, num_warps=8, num_stages=2 if narrow else 3)
    if call.sm is None:
        return _tiles(128, 128, 32, num_warps=8, num_stages=2, parts=2)
    since_hopper = 90 <= call.sm < 120
    # The tensor cores of the others read both operands from registers, and sm_86, 89 and 120 have 99 KiB shared.
    features = 64 if since_hopper else 32
    if narrow:
        return _tiles(64, 64, features, num_warps=8, num_stages=3)
    columns = 256 if -(call.hidden or 0) % 256 < 128 else 128  # of the last tile more than half is used
    parts = columns // 64
    if since_hopper and call.gated:
        parts //= 2  # as many numbers leave at once
    return _tiles(128, columns, features, num_warps=8, num_stages=4, parts=parts, tma=int(since_hopper))


def _widths(call: Call) -> tuple[int, ...]:
    """What must be a multiple of 16 bytes for rows and heads to begin there; what is not known is taken to be."""
    outputs = (call.hidden or 0) // (2 if call.gated else 1)
    return call.inner or 0, outputs, (call.head_dim or 0) // 2 if call.rope else 0


def _tiles(
    rows: int, columns: int, features: int, *, num_warps: int, num_stages: int, parts: int = 1, tma: int = 0,
    flatten: int = 0, warp_specialize: int = 0,
) -> Config:  # fmt: skip
    return Config.of(
        num_warps, num_stages, 255, BLOCK_M=rows, BLOCK_N=columns, BLOCK_K=features, GROUP_M=8, PARTS=parts,
        TMA=tma, FLATTEN=flatten, WARP_SPECIALIZE=warp_specialize,
    )  # fmt: skip


CANDIDATES = (
    *(
        _tiles(rows, columns, 64, num_warps=warps, num_stages=stages, parts=parts, tma=tma)
        for rows, columns, warps, parts in ((128, 256, 8, 2), (128, 256, 8, 4), (128, 128, 8, 2), (64, 128, 4, 2))
        for stages in (3, 4)
        for tma in (0, 1)
    ),
    _tiles(128, 256, 64, num_warps=8, num_stages=3, parts=4, tma=1, flatten=1),
    _tiles(128, 128, 64, num_warps=8, num_stages=4, parts=2, tma=1, flatten=1),
    _tiles(128, 256, 64, num_warps=8, num_stages=3, parts=4, tma=1, warp_specialize=1),
    _tiles(128, 128, 64, num_warps=8, num_stages=4, parts=2, tma=1, warp_specialize=1),
    *(
        _tiles(128, columns, 32, num_warps=8, num_stages=stages, parts=columns // 64)
        for columns in (256, 128)
        for stages in (2, 3, 4)
    ),
    _tiles(64, 64, 64, num_warps=4, num_stages=4),
    *(_tiles(rows, 64, 16, num_warps=8, num_stages=stages) for rows in (64, 128) for stages in (2, 3)),
)
"""What tuning tries; the last four are for fp32. TMA: tensor descriptors, from sm_90 on. Warps part work on sm_100."""

TUNED = Tuned(__name__, default_config, CANDIDATES)
"""Which of them serves a call."""


def unsupported(call: Call) -> list[str]:
    """Why this row cannot serve `call`."""
    return dtype_reasons(call) + reasons_of_product(call)


def reasons_of_product(call: Call) -> list[str]:
    """Why the kernel cannot compute the product of `call` with what follows it, whatever its dtype."""
    reasons = []
    if call.epilogue is not None and call.epilogue not in EPILOGUES:
        reasons.append(f"needs epilogue {', '.join(EPILOGUES)}, got {call.epilogue}")
    if call.gated and call.hidden is not None and call.hidden % 2:
        reasons.append(f"needs an even hidden to halve, got {call.hidden}")
    if call.rope:
        if call.gated or call.residual or call.epilogue not in (None, "none"):
            reasons.append("needs rope without epilogue, gate and residual, got both")
        if not call.head_dim or call.head_dim % 2:
            reasons.append(f"needs an even head_dim with rope, got {call.head_dim}")
        elif call.hidden is not None and call.hidden % call.head_dim:
            reasons.append(f"needs a hidden of whole heads with rope, got {call.hidden} of {call.head_dim}")
    if call.statistics and (call.gated or call.rope):
        reasons.append("needs statistics without gate and rope, got both")
    return reasons


def defers(call: Call) -> list[str]:
    """Why `call` is left to the rows below under "auto", though this one could serve it."""
    if call.dtype == torch.float32:
        return ["leaves fp32 to cuBLAS: was not measured faster"]
    if call.epilogue in (None, "none") and not (call.gated or call.residual or call.rope):
        return ["leaves plain products to cuBLAS: was not measured faster"]
    return []


def prepare(weight: Tensor, bias: Tensor | None, *, call: Call) -> tuple[Tensor, Tensor | None]:
    """Weights as `linear` takes them: what meets in one output, or turns together, in rows beside each other.

    Args:
        weight: `[out_features, in_features]`, in the order of `engine/ops/linear.py`.
        bias: `[out_features]` or None.
        call: gated: row `i` of the first half is followed by row `i` of the second. With `rope`, within each head of
            `head_dim` rows alike, also behind those that turn. Neither: the weights are taken as they are.

    Raises:
        InputError: there are not as many rows as that needs.
    """
    if call.gated:
        group, kind = weight.shape[0], "an even number of rows, for a gate,"
    elif call.rope:
        group, kind = call.head_dim or 0, f"whole heads of an even number of rows, {call.head_dim}, for rope,"
    else:
        return weight, bias
    if group % 2 or (weight.shape[0] and (not group or weight.shape[0] % group)):
        raise InputError(f"linear: weight: expected {kind} got {weight.shape[0]}")
    return _interleaved(weight, group), None if bias is None else _interleaved(bias, group)


def _interleaved(x: Tensor, group: int) -> Tensor:
    """Of each `group` of rows the halves row by row in turn."""
    if x.shape[0] == 0:
        return x
    return x.reshape(len(x) // group, 2, group // 2, *x.shape[1:]).transpose(1, 2).reshape(x.shape)


@traceable("linear")
def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    epilogue: str = "none",
    gated: bool = False,
    residual: Tensor | None = None,
    rope: tuple[Tensor, Tensor, Tensor] | None = None,
    turned: int = 0,
    wide: bool = False,
    statistics: bool = False,
    config: Config | None = None,
) -> Any:
    """As `engine/ops/linear.py`, in fp32, fp16 or bf16, with the weights that `prepare` gave; the result is contiguous.

    Where `gated` or `rope` is set, weight and bias are those of `prepare(weight, bias, call=...)`, not the module's
    own: nothing here can tell the two apart. Without them they are the module's.

    The product is rounded once, at the end; eager rounds it before the activation, the gate, the turn and the sum.
    A row has the same bits whatever the other rows are, and however many.

    Args:
        statistics: also of the results, as they were rounded, what `norm_linear` of `norm_linear.py` takes: fp32
            `[tokens, runs, 2]`, mean and M2 of each run of 64 columns, or of a part of a tile of `config`; see
            `row_statistics.py`. Neither with a gate nor with rope.
        config: tiling to use instead of the shipped one, for benchmarks and tuning.

    Raises:
        InputError: shapes, dtypes or devices do not fit together, or a gradient is asked for.
    """
    rope = check_inputs(
        "linear", x, weight, bias, epilogue=epilogue, gated=gated, residual=residual, rope=rope, turned=turned,
        wide=wide, statistics=statistics,
    )  # fmt: skip
    x, weight = dense(x), dense(weight)
    bias, residual = (None if tensor is None else dense(tensor) for tensor in (bias, residual))
    tokens, out_features = x.shape[0], weight.shape[0]
    dtype = torch.promote_types(x.dtype, torch.float32) if wide else x.dtype
    dtype = dtype if residual is None else torch.promote_types(dtype, residual.dtype)
    out = torch.empty((tokens, out_features // 2 if gated else out_features), dtype=dtype, device=x.device)
    config = config or shipped_config(
        TUNED, "linear", x, weight, bias, residual, epilogue=epilogue, gated=gated,
        residual=residual is not None, rope=rope, statistics=statistics,
    )  # fmt: skip
    found = None
    if statistics:
        runs = -(-out_features // (config["BLOCK_N"] // config["PARTS"]))
        found = torch.empty((tokens, runs, 2), dtype=torch.float32, device=x.device)
    if out.numel() != 0:
        launch_linear(
            x, weight, bias, out, config, epilogue=epilogue, gated=gated, residual=residual, rope=rope, turned=turned,
            found=found,
        )  # fmt: skip
    return out if found is None else (out, found)


def dense(x: Tensor) -> Tensor:
    """`x` with the numbers of a row beside each other."""
    return x if x.stride(-1) == 1 else x.contiguous()


def check_inputs(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    epilogue: str,
    gated: bool,
    rope: tuple[Tensor, Tensor, Tensor] | None,
    turned: int,
    residual: Tensor | None = None,
    wide: bool = False,
    statistics: bool = False,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The rotation, contiguous where it has to be, where all fits together; the values of its rows are trusted.

    Args:
        op: name for the message; the others are the launcher's arguments.

    Raises:
        InputError: naming the first that does not fit.
    """
    require_no_gradient(op, x, weight, bias, residual)
    named = {"x": x, "weight": weight} if bias is None else {"x": x, "weight": weight, "bias": bias}
    require_dtype(op, **named)
    require_shape(op, "weight", weight, None, None)
    out_features, in_features = weight.shape
    require_shape(op, "x", x, None, in_features)
    require_same_device(op, **named, residual=residual)
    if bias is not None:
        require_shape(op, "bias", bias, out_features)
    if epilogue not in EPILOGUES:
        raise InputError(f"{op}: epilogue: expected one of {', '.join(EPILOGUES)}, got {epilogue!r}")
    if gated and out_features % 2:
        raise InputError(f"{op}: weight: expected an even number of rows, for a gate, got {out_features}")
    if statistics and (gated or rope is not None):
        raise InputError(f"{op}: statistics: expected no gate and no rope beside them, got one")
    if residual is not None:
        require_dtype(op, residual=residual)
        require_shape(op, "residual", residual, x.shape[0], out_features // 2 if gated else out_features)
    if rope is None:
        if turned:
            raise InputError(f"{op}: turned: expected 0 without rope, got {turned}")
        return None
    if gated or residual is not None or epilogue != "none" or wide:
        raise InputError(f"{op}: rope: expected no epilogue, gate, residual or wide beside it, got one")
    rows, cos, sin = rope
    require_same_device(op, x=x, cos=cos, sin=sin)
    require_shape(op, "cos", cos, None, None)
    require_shape(op, "sin", sin, *cos.shape)
    if not cos.dtype == sin.dtype == torch.float32:
        raise InputError(f"{op}: rope: expected cos and sin in float32, got {cos.dtype} and {sin.dtype}")
    head_dim = 2 * cos.shape[1]
    if not head_dim or turned % head_dim or not 0 <= turned <= out_features or out_features % head_dim:
        raise InputError(
            f"{op}: turned: expected whole heads of {head_dim} channels, up to {out_features} of them, got {turned}"
        )
    rows = require_indices(op, "rows", rows, x.device, x.shape[0])
    return rows, dense(cos), dense(sin)
