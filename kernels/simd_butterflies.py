"""Butterflies on tiles for numba: sums and differences of lanes that lie a power of two apart.

What belongs here: the vector operations that a Walsh-Hadamard transform is made of, beside those of
`simd`. LLVM turns a butterfly of lanes in different registers into an addition and a subtraction,
and one within registers into a permutation and a fused multiply-add with signs.
"""

from typing import no_type_check

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .simd import Tile, _call, _pointer, _splat, _suffix

_I32 = ir.IntType(32)
_REGISTER = 16  # lanes; where registers are shorter, LLVM splits what is said here


def _lanes(numbers):
    numbers = list(numbers)
    return ir.Constant(ir.VectorType(_I32, len(numbers)), numbers)


@no_type_check
@intrinsic(prefer_literal=True)
def butterfly(typing, tile, apart):
    """Puts a + b and a - b in the places of each two lanes a, b that are `apart` (a constant).

    A tile that is not longer than that stays as it is.
    """
    h, n = apart.literal_value, tile.lanes

    def generate(context, builder, signature, args):
        x = args[0]
        if h >= n:
            return x
        if h < _REGISTER:
            swapped = builder.shuffle_vector(x, x, _lanes(i ^ h for i in range(n)))
            signs = ir.Constant(x.type, [-1.0 if i & h else 1.0 for i in range(n)])
            return _call(builder, f"llvm.fmuladd.{_suffix(tile)}", x.type, [x, signs, swapped])
        low = [i for i in range(n) if not i & h]
        a = builder.shuffle_vector(x, x, _lanes(low))
        b = builder.shuffle_vector(x, x, _lanes(i + h for i in low))
        both = builder.fadd(a, b), builder.fsub(a, b)
        place = {lane: k for k, lane in enumerate(low)}
        merged = (place[i & ~h] + (n // 2 if i & h else 0) for i in range(n))
        return builder.shuffle_vector(*both, _lanes(merged))

    return tile(tile, apart), generate


@no_type_check
@intrinsic
def scaled(typing, tile, factor):
    """Multiplies each lane by a number."""

    def generate(context, builder, signature, args):
        return builder.fmul(args[0], _splat(builder, args[0].type, args[1]))

    return tile(tile, tile.dtype), generate


def _row(tile, rows):
    return Tile(tile.dtype, tile.lanes // rows)


def _row_pointer(context, builder, tile, rows, array, values, i):
    data, offset, stride = values
    place = builder.add(offset, builder.mul(stride, ir.Constant(offset.type, i)))
    vector = context.get_value_type(_row(tile, rows))
    return _pointer(context, builder, array, data, place, vector), tile.dtype.bitwidth // 8


@no_type_check
@intrinsic(prefer_literal=True)
def load_rows_like(typing, tile, array, offset, stride, rows):
    """Loads a tile of `rows` (a constant) equal parts, whose beginnings lie `stride` apart."""
    number = rows.literal_value

    def generate(context, builder, signature, args):
        parts = []
        for i in range(number):
            pointer, align = _row_pointer(context, builder, tile, number, array, args[1:4], i)
            parts.append(builder.load(pointer, align=align))
        while len(parts) > 1:
            both = _lanes(range(2 * parts[0].type.count))
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [builder.shuffle_vector(a, b, both) for a, b in pairs]
        return parts[0]

    return tile(tile, array, types.int64, types.int64, rows), generate


@no_type_check
@intrinsic(prefer_literal=True)
def store_rows(typing, tile, array, offset, stride, rows):
    """Stores a tile as `load_rows_like` loads it."""
    number = rows.literal_value

    def generate(context, builder, signature, args):
        count = tile.lanes // number
        for i in range(number):
            part = builder.shuffle_vector(
                args[0], args[0], _lanes(range(i * count, (i + 1) * count))
            )
            pointer, align = _row_pointer(context, builder, tile, number, array, args[1:4], i)
            builder.store(part, pointer, align=align)
        return context.get_dummy_value()

    return types.void(tile, array, types.int64, types.int64, rows), generate
