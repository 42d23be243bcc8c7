"""The normal numbers of `normals` for numba: a normal quantile from a word, inside a CPU kernel.

Plain arithmetic on single precision and no call of a C function, so that LLVM puts a loop of them
into vectors.
"""

from typing import no_type_check

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from . import ffi

_LN2 = np.float32(np.log(2.0))
_ROOT2 = np.float32(np.sqrt(2.0))
# erfinv(u) / u as polynomials, highest power first, in w - 2.5 for w = -ln(1 - u^2) < 5 and in
# sqrt(w) - 3 from there on: Giles, Approximating the erfinv function, GPU Computing Gems 2 (2011)
_MIDDLE = tuple(
    np.float32(c)
    for c in (
        2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087,
        -0.00125372503, -0.00417768164, 0.246640727, 1.50140941,
    )
)  # fmt: skip
_TAILS = tuple(
    np.float32(c)
    for c in (
        -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773,
        -0.0076224613, 0.00943887047, 1.00167406, 2.83297682,
    )
)  # fmt: skip


@no_type_check
@intrinsic
def _bits_of(typing, x):
    """The bits of a float32 as an int32."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), generate


@no_type_check
@intrinsic
def _of_bits(typing, bits):
    """The float32 with the bits of an int32."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


@no_type_check
@intrinsic
def population_count(typing, word):
    """The number of ones of a uint32."""

    def generate(context, builder, signature, args):
        return builder.ctpop(args[0])

    return types.uint32(types.uint32), generate


@no_type_check
@ffi.inlined
def _log(x):
    """The logarithm of a positive normal float32, to 2 units in the last place of 1 or more."""
    bits = _bits_of(x)
    exponent = (bits - np.int32(0x3F3504F3)) >> np.int32(23)  # so that m is around 1, by sqrt(2)
    m = _of_bits(np.int32(bits - (exponent << np.int32(23))))
    s = (m - np.float32(1)) / (m + np.float32(1))
    q = s * s  # of the series of artanh: at most 0.0295
    series = np.float32(2 / 9) * q + np.float32(2 / 7)
    series = (series * q + np.float32(2 / 5)) * q + np.float32(2 / 3)
    return np.float32(exponent) * _LN2 + (series * q + np.float32(2)) * s


@no_type_check
@ffi.inlined
def _polynomial(c, x):
    y = c[0] * x + c[1]
    y = y * x + c[2]
    y = y * x + c[3]
    y = y * x + c[4]
    y = y * x + c[5]
    y = y * x + c[6]
    y = y * x + c[7]
    return y * x + c[8]


@no_type_check
@ffi.inlined
def normal_of_word(word):
    """As `normals.normal_of_word`, up to rounding."""
    odd = np.int32(np.uint32(word) >> np.uint32(9)) * np.int32(2) - np.int32((1 << 23) - 1)
    u = np.float32(np.int32(odd)) * np.float32(2.0**-23)
    w = -_log((np.float32(1) - u) * (np.float32(1) + u))
    middle = _polynomial(_MIDDLE, w - np.float32(2.5))
    tail = _polynomial(_TAILS, np.sqrt(w) - np.float32(3))
    return _ROOT2 * u * (middle if w < np.float32(5) else tail)
