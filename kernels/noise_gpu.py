"""The counter-based generator of `noise` for Triton: words drawn inside a GPU kernel.

Imported only where Triton is.
"""

from typing import no_type_check

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from . import noise

_PARITY = tl.constexpr(noise.PARITY)
_A0, _A1, _A2, _A3 = (tl.constexpr(left) for left in noise.ROTATIONS[0])
_B0, _B1, _B2, _B3 = (tl.constexpr(left) for left in noise.ROTATIONS[1])
assert noise.ROUNDS == 13  # what `block` has written out


@no_type_check
@triton.jit
def _round(x0, x1, LEFT: tl.constexpr):
    x0 = x0 + x1
    return x0, ((x1 << LEFT) | (x1 >> (32 - LEFT))) ^ x0


@no_type_check
@triton.jit
def _four_rounds(
    x0, x1, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, D: tl.constexpr, add0, add1
):
    x0, x1 = _round(x0, x1, A)
    x0, x1 = _round(x0, x1, B)
    x0, x1 = _round(x0, x1, C)
    x0, x1 = _round(x0, x1, D)
    return x0 + add0, x1 + add1


@no_type_check
@triton.jit
def block(k0, k1, index, stream):
    """The two random words of the counter (index, stream) under the key (k0, k1), all uint32."""
    k2 = k0 ^ k1 ^ _PARITY
    x0, x1 = index + k0, stream + k1
    x0, x1 = _four_rounds(x0, x1, _A0, _A1, _A2, _A3, k1, k2 + 1)
    x0, x1 = _four_rounds(x0, x1, _B0, _B1, _B2, _B3, k2, k0 + 2)
    x0, x1 = _four_rounds(x0, x1, _A0, _A1, _A2, _A3, k0, k1 + 3)
    return _round(x0, x1, _B0)
