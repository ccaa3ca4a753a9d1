"""The activations of `engine/ops/linear.py` in Triton, in fp32, for kernels that have the numbers in registers.

Each is written so that no step of it overflows, cancels, or makes a number of NaN:

    sigmoid      1 / (1 + exp(-x))                          exp gives 0 or inf at the ends, and those the right result
    tanh         x + x^3 P(x^2)            below 0.625      (P of Cephes, tanhf.c: 2 units in the last place)
                 1 - 2 / (exp(2 |x|) + 1)  from there on, with the sign of x
    gelu         x / 2 * (1 + erf(x / sqrt(2)))
    gelu_tanh    x * sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3), since (1 + tanh(u)) / 2 = sigmoid(2 u)
    silu         x * sigmoid(x)                             quick_gelu: x * sigmoid(1.702 x)
    mish         x * n / (n + 2), n = e (e + 2), e = exp(x), since tanh(log(1 + e)) = ((1 + e)^2 - 1) / ((1 + e)^2 + 1);
                 from 20 on the fraction is 1 in fp32, and e goes no further
    relu, relu6, relu2    by comparison, which is false for NaN, and so chooses x itself

A fraction is `/`, which GPUs compute to 2 units in the last place, as they do `exp`.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

__all__ = ["activate"]

SQRT_HALF = tl.constexpr(math.sqrt(0.5))
TWICE_SQRT_2_OVER_PI = tl.constexpr(2.0 * math.sqrt(2.0 / math.pi))


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _tanh(x):
    square = x * x
    series = tl.fma(square, -5.70498872745e-3, 2.06390887954e-2)
    series = tl.fma(square, series, -5.37397155531e-2)
    series = tl.fma(square, series, 1.33314422036e-1)
    series = tl.fma(square, series, -3.33332819422e-1)
    size = tl.abs(x)
    far = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    return tl.where(size < 0.625, tl.fma(square * series, x, x), tl.where(x < 0.0, -far, far))


@triton.jit
def _mish(x):
    e = tl.exp(tl.minimum(x, 20.0))
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


@triton.jit
def activate(x, EPILOGUE: tl.constexpr):
    """The activation named EPILOGUE, a key of `engine.ops.linear.ACTIVATIONS`, of fp32 of any shape."""
    if EPILOGUE == "gelu":
        out = 0.5 * x * (1.0 + tl.erf(x * SQRT_HALF))
    elif EPILOGUE == "gelu_tanh":
        out = x * _sigmoid(tl.fma(0.044715 * x * x, x, x) * TWICE_SQRT_2_OVER_PI)
    elif EPILOGUE == "relu":
        out = tl.where(x < 0.0, 0.0, x)
    elif EPILOGUE == "tanh":
        out = _tanh(x)
    elif EPILOGUE == "silu":
        out = x * _sigmoid(x)
    elif EPILOGUE == "mish":
        out = _mish(x)
    elif EPILOGUE == "relu6":
        out = tl.where(x < 0.0, 0.0, tl.where(x > 6.0, 6.0, x))
    elif EPILOGUE == "relu2":
        positive = tl.where(x < 0.0, 0.0, x)
        out = positive * positive
    elif EPILOGUE == "sigmoid":
        out = _sigmoid(x)
    elif EPILOGUE == "quick_gelu":
        out = x * _sigmoid(1.702 * x)
    else:
        tl.static_assert(EPILOGUE == "none", "EPILOGUE: expected a key of ACTIVATIONS")
        out = x
    return out
