"""Codes as floats for numba: 16 numbers looked up at once, and their products with float inputs.

The idea that belongs here: the codes of 16 columns lie in the 16 lanes of a vector, and a shift
brings the next row into place. Everything is given as addresses in 64-bit integers, and nothing
is bounds-checked. Codes are in the layout `vnni` (`layouts_cpu`); products of bytes stand in
`simd_lines`.
"""

from typing import no_type_check

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .simd_lines import BLOCKS, FEATURES, call, load, places, prefetch, splat, store

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_WORDS, _FLOATS = ir.VectorType(_I32, 16), ir.VectorType(ir.FloatType(), 16)
ROWS = 4  # of the result of a product
_AHEAD = 1024  # bytes that a product of one row asks for before it needs them


def _look_up(builder, table, words):
    """table[lowest 4 bits of words]."""
    if FEATURES.get("avx512f"):
        return call(builder, "llvm.x86.avx512.permvar.sf.512", _FLOATS, table, words)

    def part(vector, start, size):
        lanes = ir.Constant(ir.VectorType(_I32, size), list(range(start, start + size)))
        return builder.shuffle_vector(vector, vector, lanes)

    if not FEATURES.get("avx2"):
        found = ir.Constant(_FLOATS, ir.Undefined)
        for i in range(16):
            place = builder.and_(builder.extract_element(words, _I32(i)), _I32(15))
            found = builder.insert_element(found, builder.extract_element(table, place), _I32(i))
        return found
    halves, eight = [], ir.VectorType(ir.FloatType(), 8)
    for start in (0, 8):
        index = part(words, start, 8)
        low, high = (
            call(builder, "llvm.x86.avx2.permps", eight, part(table, half, 8), index)
            for half in (0, 8)
        )
        upper = builder.and_(index, splat(builder, index.type, 8))
        upper = builder.icmp_unsigned("!=", upper, splat(builder, index.type, 0))
        halves.append(builder.select(upper, high, low))
    return builder.shuffle_vector(*halves, ir.Constant(_WORDS, list(range(16))))


def _codes_of(builder, bits, source, high, i):
    """(row, codes) of the i-th line of the highest bits; only the lowest bits are codes."""
    width = 2 if bits == 3 else bits
    count, fields = 2 if bits == 3 else 1, 8 // width
    top = load(builder, _WORDS, high, builder.mul(i, _I64(64))) if bits == 3 else None
    for j in range(count):
        place = builder.add(builder.mul(i, _I64(64 * count)), _I64(64 * j))
        word = load(builder, _WORDS, source, place)
        for byte in range(4):
            for field in range(fields):
                shift = 8 * byte + width * field
                codes = builder.lshr(word, splat(builder, _WORDS, shift)) if shift else word
                if bits == 3:
                    codes = builder.and_(codes, splat(builder, _WORDS, 3))
                    bit = 8 * byte + 4 * j + field  # comes to be the third
                    third = (
                        builder.lshr(top, splat(builder, _WORDS, bit - 2))
                        if bit > 2
                        else builder.shl(top, splat(builder, _WORDS, 2 - bit))
                    )
                    third = builder.and_(third, splat(builder, _WORDS, 4))
                    codes = builder.or_(codes, third)
                yield 4 * (fields * j + field) + byte, codes


def _numbers_of(builder, bits, table, zero, codes):
    """The numbers that codes stand for, less the zero point, if there is one."""
    if bits == 8:
        codes = builder.and_(codes, splat(builder, _WORDS, 255))
        numbers = builder.sitofp(codes, _FLOATS)
    else:
        numbers = _look_up(builder, table, codes)
    return numbers if zero is None else builder.fsub(numbers, zero)


def rows_of(bits: int) -> int:
    """The number of rows of a line of the highest bits."""
    return 32 // (1 if bits == 3 else bits)


def _row_product(bits, with_zero):
    """Makes `dot(x, w, w_stride, w_count, high, high_stride, table, zero, scale, lines, y)`.

    y[b, :] += scale[b, :] * sum of x[k] (v[k, b, :] - zero[b, :]), for BLOCKS blocks b of 16
    columns, with v the numbers at `table` that the codes at w + b * w_stride (for 3 bits also
    high + b * high_stride) stand for, or the codes themselves where they have 8 bits. There are
    `lines` lines of the highest bits; beyond w_count blocks the last one is taken again.
    """

    def generate(context, builder, signature, args):
        x, w, w_stride, w_count, high, high_stride, table, zero, scale, lines, y = args
        ws = places(builder, w, w_stride, w_count, BLOCKS)
        highs = places(builder, high, high_stride, w_count, BLOCKS)
        entries = load(builder, _FLOATS, table)
        zeros = [load(builder, _FLOATS, zero, 64 * b) if with_zero else None for b in range(BLOCKS)]
        totals = [cgutils.alloca_once(builder, _FLOATS) for _ in range(2 * BLOCKS)]
        for total in totals:
            builder.store(ir.Constant(_FLOATS, None), total)
        with cgutils.for_range(builder, lines) as loop:
            for b in range(BLOCKS):
                ahead = builder.mul(loop.index, _I64(128 if bits == 3 else 64))
                prefetch(builder, builder.add(builder.add(ws[b], ahead), _I64(_AHEAD)))
            codes = [_codes_of(builder, bits, ws[b], highs[b], loop.index) for b in range(BLOCKS)]
            start = builder.mul(loop.index, _I64(4 * rows_of(bits)))
            for i, rows in enumerate(zip(*codes, strict=True)):
                number = load(builder, ir.FloatType(), x, builder.add(start, _I64(4 * rows[0][0])))
                number = splat(builder, _FLOATS, number)
                for b, (_, code) in enumerate(rows):
                    v = _numbers_of(builder, bits, entries, zeros[b], code)
                    total = totals[2 * b + i % 2]
                    more = call(
                        builder, "llvm.fmuladd.v16f32", _FLOATS, v, number, builder.load(total)
                    )
                    builder.store(more, total)
        for b in range(BLOCKS):
            part = builder.fadd(builder.load(totals[2 * b]), builder.load(totals[2 * b + 1]))
            s, before = load(builder, _FLOATS, scale, 64 * b), load(builder, _FLOATS, y, 64 * b)
            store(
                builder, call(builder, "llvm.fmuladd.v16f32", _FLOATS, part, s, before), y, 64 * b
            )
        return context.get_dummy_value()

    @no_type_check
    @intrinsic
    def dot(typing, x, w, w_stride, w_count, high, high_stride, table, zero, scale, lines, y):
        return types.void(*[types.int64] * 11), generate

    return dot


row_dot_4 = _row_product(4, False)
row_dot_2_zero, row_dot_3_zero, row_dot_4_zero, row_dot_8_zero = (
    _row_product(bits, True) for bits in (2, 3, 4, 8)
)


def _dequantizing(bits):
    """Makes `dequantize(source, high, table, zero, scale, lines, out)` for a block of 16 columns.

    out[k, :] (float32) = (v[k, :] - zero) * scale, with v as in `_row_product`.
    """

    def generate(context, builder, signature, args):
        source, high, table, zero, scale, lines, out = args
        entries, z, s = (load(builder, _FLOATS, place) for place in (table, zero, scale))
        with cgutils.for_range(builder, lines) as loop:
            start = builder.mul(loop.index, _I64(64 * rows_of(bits)))
            for row, codes in _codes_of(builder, bits, source, high, loop.index):
                number = builder.fmul(_numbers_of(builder, bits, entries, z, codes), s)
                store(builder, number, out, builder.add(start, _I64(64 * row)))
        return context.get_dummy_value()

    @no_type_check
    @intrinsic
    def dequantize(typing, source, high, table, zero, scale, lines, out):
        return types.void(*[types.int64] * 7), generate

    return dequantize


dequantize_2, dequantize_3, dequantize_4, dequantize_8 = map(_dequantizing, (2, 3, 4, 8))


@no_type_check
@intrinsic
def add_products(typing, x, x_stride, x_count, w, w_stride, k, y):
    """y[r, b, :] += sum over k of x[r, k] w[b, k, :], for ROWS rows and BLOCKS blocks.

    Rows of x (float32) are x_stride bytes apart, blocks of w w_stride bytes; beyond x_count rows
    the last one is taken again.
    """

    def generate(context, builder, signature, args):
        x, x_stride, x_count, w, w_stride, k, y = args
        xs = places(builder, x, x_stride, x_count, ROWS)
        ws = places(builder, w, w_stride, _I64(BLOCKS), BLOCKS)
        totals = [cgutils.alloca_once(builder, _FLOATS) for _ in range(ROWS * BLOCKS)]
        for i, total in enumerate(totals):
            builder.store(load(builder, _FLOATS, y, 64 * i), total)
        with cgutils.for_range(builder, k) as loop:
            line, four = builder.mul(loop.index, _I64(64)), builder.mul(loop.index, _I64(4))
            weights = [load(builder, _FLOATS, place, line) for place in ws]
            for r in range(ROWS):
                number = splat(builder, _FLOATS, load(builder, ir.FloatType(), xs[r], four))
                for b in range(BLOCKS):
                    total = totals[r * BLOCKS + b]
                    more = call(
                        builder,
                        "llvm.fmuladd.v16f32",
                        _FLOATS,
                        weights[b],
                        number,
                        builder.load(total),
                    )
                    builder.store(more, total)
        for i, total in enumerate(totals):
            store(builder, builder.load(total), y, 64 * i)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), generate
