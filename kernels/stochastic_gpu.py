"""Stochastic rounding on a GPU: Triton kernels with the bits of the references in `stochastic`.

Imported only where Triton is.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Array, Float32, Int8, UInt, UInt32

from . import noise_gpu, triton_bridge
from .stochastic import SmallFloat, Steps

_block = noise_gpu.block
SIZE = 1024  # numbers of a program


def codes(
    steps: Steps,
    x: Float32[Array, "rows size"],
    scale: Float32[Array, "rows groups"],
    keys: UInt32[Array, "rows 3"],
) -> Int8[Array, "rows size"]:
    """As `stochastic.codes_reference`."""
    return triton_bridge.call(
        codes_kernel,
        x,
        scale,
        keys,
        out=jax.ShapeDtypeStruct(x.shape, jnp.int8),
        grid=grid(x.shape),
        warps=4,
        stages=1,
        **codes_constants(steps, x.shape[1], scale.shape[1]),
    )


def floats(
    kind: SmallFloat, x: Float32[Array, "rows size"], keys: UInt32[Array, "rows 3"]
) -> UInt[Array, "rows size"]:
    """As `stochastic.floats_reference`."""
    return triton_bridge.call(
        floats_kernel,
        x,
        keys,
        out=jax.ShapeDtypeStruct(x.shape, kind.code),
        grid=grid(x.shape),
        warps=4,
        stages=1,
        **floats_constants(kind, x.shape[1]),
    )


def grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """The number of programs along and across."""
    return triton.cdiv(shape[1], SIZE), shape[0]


def codes_constants(steps: Steps, length: int, groups: int) -> dict[str, int]:
    """What the kernel of codes is compiled for."""
    return dict(LENGTH=length, GROUP=length // groups, TOP=steps.top, SIZE=SIZE)


def floats_constants(kind: SmallFloat, length: int) -> dict[str, int]:
    """What the kernel of floats is compiled for."""
    return dict(
        LENGTH=length,
        MANTISSA=kind.mantissa,
        LOWEST=kind.lowest,
        LARGEST=kind.largest,
        NAN=kind.nan,
        SIGN=kind.sign,
        SIZE=SIZE,
    )


@no_type_check
@triton.jit
def _words(keys, LENGTH: tl.constexpr, SIZE: tl.constexpr):
    """The words of a program's numbers, their places in all of x, and which of them there are."""
    row = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    k0, k1, stream = (
        tl.load(keys + 3 * row),
        tl.load(keys + 3 * row + 1),
        tl.load(keys + 3 * row + 2),
    )
    words, _ = _block(k0, k1, place.to(tl.uint32), stream)
    return words, place, row * LENGTH + place, place < LENGTH


@no_type_check
@triton.jit
def rounded(r, words):
    """The integer below r >= 0, or that above where the word says so, as a float."""
    low = tl.floor(r)
    remainder = ((r - low) * 4294967296.0).to(tl.uint32)
    return low + (words > ~remainder).to(tl.float32)


@no_type_check
@triton.jit
def codes_kernel(
    x,
    scale,
    keys,
    out,
    LENGTH: tl.constexpr,
    GROUP: tl.constexpr,
    TOP: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Whole numbers of a scale."""
    words, place, at, inside = _words(keys, LENGTH, SIZE)
    group = tl.program_id(1).to(tl.int64) * (LENGTH // GROUP) + place // GROUP
    number = tl.load(x + at, inside, 0.0)
    r = tl.abs(tl.div_rn(number, tl.load(scale + group, inside, 1.0)))
    r = tl.where(r == r, tl.where(r < TOP, r, TOP * 1.0), 0.0)
    near = rounded(r, words)
    code = tl.where(number < 0, -near, near).to(tl.int32)
    tl.store(out + at, code.to(tl.int8), inside)


@no_type_check
@triton.jit
def floats_kernel(
    x,
    keys,
    out,
    LENGTH: tl.constexpr,
    MANTISSA: tl.constexpr,
    LOWEST: tl.constexpr,
    LARGEST: tl.constexpr,
    NAN: tl.constexpr,
    SIGN: tl.constexpr,
    SIZE: tl.constexpr,
):
    """The bits of smaller floats."""
    words, _, at, inside = _words(keys, LENGTH, SIZE)
    number = tl.load(x + at, inside, 0.0)
    pattern = number.to(tl.uint32, bitcast=True)
    size = pattern & 0x7FFFFFFF
    SHIFT: tl.constexpr = 23 - MANTISSA
    OFFSET: tl.constexpr = (LOWEST + 126) << MANTISSA
    code = ((size + (words >> (32 - SHIFT))) >> SHIFT) - OFFSET
    if LOWEST > -126:
        SMALLEST: tl.constexpr = 2.0**LOWEST
        FINEST: tl.constexpr = 2.0 ** (MANTISSA - LOWEST)
        small = tl.abs(number) < SMALLEST
        near = rounded(tl.where(small, tl.abs(number), 0.0) * FINEST, words)
        code = tl.where(small, near.to(tl.uint32), code)
    code = tl.where(code < LARGEST, code, LARGEST)
    code = tl.where(size > 0x7F800000, NAN, code)
    code = code | tl.where(pattern > 0x7FFFFFFF, SIGN, 0)
    tl.store(out + at, code.to(out.dtype.element_ty), inside)
