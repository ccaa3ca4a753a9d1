"""Functions of 16 fp32 numbers as polynomials, each fitted by Remez' exchange to the least relative error.

`exact` polynomials are good to the last bits of fp32, the others to a small part of a bf16 rounding, which is 2^-9. Of
an exact GELU the far negative tail keeps five digits, as its exponent is rounded; torch's has lost them all by then.
"""

from __future__ import annotations

from collections.abc import Sequence

from .code import Code, Value

__all__ = ["gelu", "gelu_tanh", "power_of_two"]

LOWEST_EXPONENT = -125.0
"""What is lower counts as this: its power is a normal number in fp32, whatever the fraction."""

ROUNDER = 1.5 * 2**23
"""Added to a small number it leaves no room for a fraction: the sum's last bits are the nearest integer."""

# Of 2^f for f in -1/2..1/2: within 7.5e-8, and within 2.6e-6; the lowest power first.
POWER_EXACT = (1.0000000716546416, 0.6931469670652649, 0.2402211972396918,
               0.05550713272875391, 0.009675541331021392, 0.0013276472167819944)  # fmt: skip
POWER = (0.9999992614469312, 0.6931218147429867, 0.24024744824991692, 0.05591786030632565, 0.009570102014629326)

# Of Phi(-a) * exp(a^2 / 2), Mills' ratio up to a factor, for a in 0..13.5, in t = 1 / (1 + c a): within 5.8e-8, 1.2e-5.
TAIL_EXACT_C = 0.3
TAIL_EXACT = (6.852828714103203e-06, 0.11949306538070245, 0.1218820412370648, 0.09483303393025981, 0.1421849198050475,
              -0.07599938669919275, 0.22821712018113816, -0.1689518653621683, 0.0383342473719072)  # fmt: skip
TAIL_C = 0.36
TAIL = (0.00020097113807520593, 0.14000095439658283, 0.16927348948988594, 0.03386283803935271, 0.2556528405004656,
        -0.09899464912443065)  # fmt: skip

HIGHEST_EXPONENT = 126.0

HALF_LOG2_E = 0.7213475204444817

# Twice sqrt(2 / pi), in units of log 2; the cubic term has 0.044715 of it.
TANH_LINEAR = 2.302208198144325
TANH_CUBIC = 0.1029432395800235


def power_of_two(code: Code, exponent: Value, *, exact: bool) -> Value:
    """`2**exponent` of exponents up to 127; that of -125 below it, NaN of any NaN."""
    exponent = code.most(exponent, LOWEST_EXPONENT)
    shifted = exponent + ROUNDER
    power = _polynomial(code, exponent - (shifted - ROUNDER), POWER_EXACT if exact else POWER)
    return power * code.power_of_integer(shifted)


def gelu(code: Code, x: Value, *, exact: bool) -> Value:
    """`x * Phi(x)` with the exact distribution function (Hendrycks & Gimpel 2016, section 2).

    As `max(x, 0) - |x| * Phi(-|x|)`, where nothing cancels: the far tail keeps its digits.
    """
    size = code.absolute(x)
    divisor = code.fma(size, code.floats(TAIL_EXACT_C if exact else TAIL_C), code.floats(1.0))
    t = code.reciprocal(divisor)
    if exact:  # Newton's step: twice the digits
        t = code.fma(t, code.fma(t * -1.0, divisor, code.floats(1.0)), t)
    tail = _polynomial(code, t, TAIL_EXACT if exact else TAIL)
    tail = tail * power_of_two(code, size * size * -HALF_LOG2_E, exact=exact)
    return code.fma(size * -1.0, tail, code.most(x, 0.0))


def gelu_tanh(code: Code, x: Value, *, exact: bool) -> Value:
    """`x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`, GELU's approximation (the same, appendix).

    As `x / (1 + 2^-y)` with y twice the argument of tanh in units of log 2.
    """
    cubic = code.fma(x * x, code.floats(TANH_CUBIC), code.floats(TANH_LINEAR))
    divisor = power_of_two(code, code.least(x * cubic * -1.0, HIGHEST_EXPONENT), exact=exact) + 1.0
    return code.quotient(x, divisor) if exact else x * code.reciprocal(divisor)


def _polynomial(code: Code, x: Value, coefficients: Sequence[float]) -> Value:
    value = code.floats(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = code.fma(value, x, code.floats(coefficient))
    return value
