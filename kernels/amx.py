"""Matrix tiles of Intel processors (AMX) for numba: may they be used, and products of bytes.

The idea that belongs here: 16 rows of up to 64 bytes are a register, and one instruction
multiplies two of them. Linux gives a process these registers when it asks. Everything is given
as addresses in 64-bit integers, and nothing is bounds-checked.
"""

import ctypes
import functools
import platform
import sys
from typing import no_type_check

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from . import simd_lines

_ARCH_PRCTL, _REQUEST, _TILES = 158, 0x1023, 18  # numbers of Linux on x86-64
BLOCKS = 2  # of 16 columns, which a product has
_W, _X = 4, 6  # the first tiles of either operand; sums are tiles 0 to 3
_AHEAD = 2048  # bytes of weights that a product of 16 rows asks for before it needs them
_I8, _I64, _VOID = ir.IntType(8), ir.IntType(64), ir.VoidType()
HAS_AMX = bool(
    simd_lines.FEATURES.get("amx-int8")
    and simd_lines.HAS_VNNI
    and sys.platform == "linux"
    and platform.machine() == "x86_64"
)


@functools.cache
def permitted() -> bool:
    """Whether this process may use tiles; it asks the system once."""
    if not HAS_AMX:
        return False
    system = ctypes.CDLL(None).syscall
    return system(_ARCH_PRCTL, _REQUEST, _TILES) == 0


def _tile(builder, name, *arguments):
    simd_lines.call(builder, f"llvm.x86.{name}", _VOID, *arguments)


def _pointer(builder, address):
    return builder.inttoptr(address, _I8.as_pointer())


@no_type_check
@intrinsic
def configure(typing, settings):
    """Takes the 64 bytes at an address as the shapes of tiles; `release` gives tiles back."""

    def generate(context, builder, signature, args):
        if HAS_AMX:
            _tile(builder, "ldtilecfg", _pointer(builder, args[0]))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@no_type_check
@intrinsic
def release(typing):
    """Gives the tiles of this thread back."""

    def generate(context, builder, signature, args):
        if HAS_AMX:
            _tile(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


def _product(row_tiles, blocks):
    """Makes `dot(x, x_stride, w, w_stride, w_count, steps, bytes, out)`.

    out[16 i + r, b, :] (int32), for `row_tiles` numbers i and `blocks` blocks b of 16 columns: the
    sum of `steps` products of tiles, of 16 `bytes` each in x and w, that follow each other at
    x + i * x_stride and at w + b * w_stride. The tiles of x have rows of `bytes` signed bytes,
    those of w lines of unsigned ones.
    """

    def generate(context, builder, signature, args):
        x, x_stride, w, w_stride, w_count, steps, width, out = args
        totals = [(i, b, _I8(2 * i + b)) for i in range(row_tiles) for b in range(blocks)]
        for _, _, total in totals:
            _tile(builder, "tilezero", total)
        ws = simd_lines.places(builder, w, w_stride, w_count, blocks)
        with cgutils.for_range(builder, steps) as loop:
            offset = builder.mul(builder.mul(loop.index, width), _I64(16))
            for b in range(blocks):
                place = _pointer(builder, builder.add(ws[b], offset))
                _tile(builder, "tileloadd64", _I8(_W + b), place, _I64(64))
            for line in range(16 if row_tiles == 1 else 0):  # a few rows wait for weights
                for b in range(blocks):
                    ahead = builder.add(offset, _I64(_AHEAD + 64 * line))
                    simd_lines.prefetch(builder, builder.add(ws[b], ahead))
            for i in range(row_tiles):
                place = builder.add(builder.add(x, builder.mul(x_stride, _I64(i))), offset)
                _tile(builder, "tileloadd64", _I8(_X + i), _pointer(builder, place), width)
            for i, b, total in totals:
                _tile(builder, "tdpbsud", total, _I8(_X + i), _I8(_W + b))
        for i, b, total in totals:
            place = _pointer(builder, builder.add(out, _I64(64 * (16 * i * blocks + b))))
            _tile(builder, "tilestored64", total, place, _I64(64 * blocks))
        return context.get_dummy_value()

    @no_type_check
    @intrinsic
    def dot(typing, x, x_stride, w, w_stride, w_count, steps, width, out):
        return types.void(*[types.int64] * 8), generate

    return dot


dot_16 = _product(1, BLOCKS) if HAS_AMX else simd_lines.portable_dot
dot_32 = _product(2, BLOCKS) if HAS_AMX else simd_lines.portable_dot
