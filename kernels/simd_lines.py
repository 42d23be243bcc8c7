"""Lines of 64 bytes for numba: unpacking codes to bytes, and products of bytes summed in int32.

The idea that belongs here: one instruction multiplies 4 bytes of 16 columns with 4 bytes of a row
and adds them up; what a machine has of it (VNNI, 16-bit products, nothing) is chosen here, AMX in
`amx`. Everything is given as addresses in 64-bit integers, and nothing is bounds-checked. The
order of the bytes is that of the layout `vnni` (`layouts_cpu`).
"""

from typing import no_type_check

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

FEATURES = llvm.get_host_cpu_features()
_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_BYTES, _WORDS = ir.VectorType(_I8, 64), ir.VectorType(_I32, 16)
_FLOATS = ir.VectorType(ir.FloatType(), 16)
ROWS, BLOCKS = 4, 4  # of the result of a product: rows, and blocks of 16 columns
_AHEAD = 1024  # bytes that a product of one row asks for before it needs them


def call(builder, name, result, *arguments):
    """Calls an LLVM intrinsic."""
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def splat(builder, vector, scalar):
    """A vector of equal numbers; a Python number gives a constant."""
    if not isinstance(scalar, ir.Value):
        return ir.Constant(vector, [scalar] * vector.count)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, _I32(0))
    return builder.shuffle_vector(
        first, first, ir.Constant(ir.VectorType(_I32, vector.count), None)
    )


def load(builder, kind, address, offset=0):
    """Loads from an address plus an offset in bytes (a Python number or a value)."""
    return builder.load(_pointer(builder, kind, address, offset), align=1)


def store(builder, value, address, offset=0):
    """Stores to an address plus an offset in bytes."""
    builder.store(value, _pointer(builder, value.type, address, offset), align=1)


def _pointer(builder, kind, address, offset):
    offset = offset if isinstance(offset, ir.Value) else _I64(offset)
    return builder.inttoptr(builder.add(address, offset), kind.as_pointer())


def places(builder, start, stride, count, number):
    """Addresses start, start + stride, ...: `number` of them, past the `count`-th the last one."""
    last = builder.sub(count, _I64(1))
    places = [start]
    for i in range(1, number):
        inside = builder.icmp_signed("<", _I64(i), last)
        places.append(
            builder.add(start, builder.mul(stride, builder.select(inside, _I64(i), last)))
        )
    return places


def prefetch(builder, address):
    """Asks for the 64 bytes at an address; any will do."""
    pointer = builder.inttoptr(address, _I8.as_pointer())
    call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, _I32(0), _I32(3), _I32(1))


# Codes to bytes.


def _lines_of(bits):
    """How many lines the array of the lowest bits has for a line of that of the highest."""
    return 2 if bits == 3 else 1


def _bytes_of(builder, bits, lines, high, entries):
    """Lines of bytes, from the `lines` that belong to one line `high` of the highest bits."""

    def field(vector, width, shift):
        vector = builder.lshr(vector, splat(builder, _BYTES, shift)) if shift else vector
        return builder.and_(vector, splat(builder, _BYTES, (1 << width) - 1))

    step = 4 if bits == 4 else 2
    made = [field(line, step, shift) for line in lines for shift in range(0, 8, step)]
    if bits == 3:
        tops = [field(high, 1, bit) for bit in range(8)]
        made = [
            builder.or_(low, builder.shl(top, splat(builder, _BYTES, 2)))
            for low, top in zip(made, tops, strict=True)
        ]
    return [_look_up(builder, entries, line) for line in made]


def _load_bytes(builder, bits, source, high, entries, i):
    """The lines of bytes of the i-th line of the highest bits; of 8 bits as they are."""
    place = builder.mul(i, _I64(64 * _lines_of(bits)))
    lines = [
        load(builder, _BYTES, source, builder.add(place, _I64(64 * j)))
        for j in range(_lines_of(bits))
    ]
    if bits == 8:
        return lines
    top = load(builder, _BYTES, high, builder.mul(i, _I64(64))) if bits == 3 else None
    return _bytes_of(builder, bits, lines, top, entries)


def _prefetch_lines(builder, bits, source, i):
    ahead = builder.mul(i, _I64(64 * _lines_of(bits)))
    for j in range(_lines_of(bits)):
        place = builder.add(ahead, _I64(_AHEAD + 64 * j))
        prefetch(builder, builder.add(source, place))


def _unpacking(bits):
    """Makes `unpack(source, high, table, lines, out)`: what 16 bytes at `table` say of codes.

    `lines` counts those of the array of the highest bits, for 3 bits at `high`.
    """

    def generate(context, builder, signature, args):
        source, high, table, lines, out = args
        entries = load(builder, ir.VectorType(_I8, 16), table)
        with cgutils.for_range(builder, lines) as loop:
            _prefetch_lines(builder, bits, source, loop.index)
            made = _load_bytes(builder, bits, source, high, entries, loop.index)
            place = builder.mul(loop.index, _I64(64 * len(made)))
            for i, line in enumerate(made):
                store(builder, line, out, builder.add(place, _I64(64 * i)))
        return context.get_dummy_value()

    @no_type_check
    @intrinsic
    def unpack(typing, source, high, table, lines, out):
        return types.void(*[types.int64] * 5), generate

    return unpack


def _look_up(builder, entries, line):
    """entries[line]: 16 bytes, and 64 places among them."""
    if not FEATURES.get("avx2"):
        for i in range(64):
            entry = builder.extract_element(entries, builder.extract_element(line, _I32(i)))
            line = builder.insert_element(line, entry, _I32(i))
        return line
    wide = FEATURES.get("avx512bw")
    name, size = ("avx512.pshuf.b.512", 64) if wide else ("avx2.pshuf.b", 32)
    repeated = ir.Constant(ir.VectorType(_I32, size), [i % 16 for i in range(size)])
    entries = builder.shuffle_vector(entries, entries, repeated)
    parts = []
    for start in range(0, 64, size):
        places = ir.Constant(ir.VectorType(_I32, size), list(range(start, start + size)))
        part = builder.shuffle_vector(line, line, places)
        parts.append(call(builder, f"llvm.x86.{name}", entries.type, entries, part))
    if len(parts) == 1:
        return parts[0]
    return builder.shuffle_vector(*parts, ir.Constant(ir.VectorType(_I32, 64), list(range(64))))


unpack_2, unpack_3, unpack_4 = (_unpacking(bits) for bits in (2, 3, 4))


# Products.


def _vnni(builder, total, weights, x):
    x = builder.bitcast(splat(builder, _WORDS, x), _BYTES)
    name = "llvm.x86.avx512.vpdpbusd.512"
    if llvm.llvm_version_info < (21,):  # the operands were vectors of int32
        weights, x = builder.bitcast(weights, _WORDS), builder.bitcast(x, _WORDS)
    return call(builder, name, _WORDS, total, weights, x)


def _madd(builder, total, weights, x):
    """Even and odd bytes as 16-bit numbers: products and sums of pairs are exact."""
    kind = ir.VectorType(_I16, 32)
    weights, x = builder.bitcast(weights, kind), builder.bitcast(splat(builder, _WORDS, x), kind)
    eight = splat(builder, kind, 8)
    for w, v in (
        (builder.and_(weights, splat(builder, kind, 255)), builder.shl(x, eight)),
        (builder.lshr(weights, eight), x),
    ):
        v, sums = builder.ashr(v, eight), []
        for half in range(2):
            places = ir.Constant(ir.VectorType(_I32, 16), list(range(16 * half, 16 * half + 16)))
            pair = [builder.shuffle_vector(a, a, places) for a in (w, v)]
            result = ir.VectorType(_I32, 8)
            sums.append(call(builder, "llvm.x86.avx2.pmadd.wd", result, *pair))
        both = ir.Constant(ir.VectorType(_I32, 16), list(range(16)))
        total = builder.add(total, builder.shuffle_vector(*sums, both))
    return total


def _portable(builder, total, weights, x):
    weights = builder.bitcast(weights, _WORDS)
    for byte in range(4):
        w = builder.lshr(weights, splat(builder, _WORDS, 8 * byte))
        w = builder.and_(w, splat(builder, _WORDS, 255))
        v = builder.ashr(builder.shl(x, _I32(24 - 8 * byte)), _I32(24))
        total = builder.add(total, builder.mul(w, splat(builder, _WORDS, v)))
    return total


def _product(step, rows, blocks):
    """Makes `dot(x, x_stride, x_count, w, w_stride, w_count, lines, out)`.

    out[r, b, :] (int32) = the products of `lines` lines at w + b * w_stride with the bytes at
    x + r * x_stride, for `rows` rows r and `blocks` blocks b. Beyond x_count rows and w_count
    blocks the last one is taken again. The bytes of w are unsigned, those of x signed.
    """

    def generate(context, builder, signature, args):
        x, x_stride, x_count, w, w_stride, w_count, lines, out = args
        xs = places(builder, x, x_stride, x_count, rows)
        ws = places(builder, w, w_stride, w_count, blocks)
        totals = [cgutils.alloca_once(builder, _WORDS) for _ in range(rows * blocks)]
        for total in totals:
            builder.store(ir.Constant(_WORDS, None), total)
        with cgutils.for_range(builder, lines) as loop:
            line, four = builder.mul(loop.index, _I64(64)), builder.mul(loop.index, _I64(4))
            weights = [load(builder, _BYTES, place, line) for place in ws]
            for r in range(rows):
                number = load(builder, _I32, xs[r], four)
                for b in range(blocks):
                    total = totals[r * blocks + b]
                    builder.store(step(builder, builder.load(total), weights[b], number), total)
        for i, total in enumerate(totals):
            store(builder, builder.load(total), out, 64 * i)
        return context.get_dummy_value()

    @no_type_check
    @intrinsic
    def dot(typing, x, x_stride, x_count, w, w_stride, w_count, lines, out):
        return types.void(*[types.int64] * 8), generate

    return dot


def _row_product(step, bits):
    """Makes `dot(x, w, w_stride, w_count, high, high_stride, table, lines, out)` for one row.

    As `_product`, from codes: what `unpack` would make of them is not stored anywhere.
    """

    def generate(context, builder, signature, args):
        x, w, w_stride, w_count, high, high_stride, table, lines, out = args
        ws = places(builder, w, w_stride, w_count, BLOCKS)
        highs = places(builder, high, high_stride, w_count, BLOCKS)
        entries = load(builder, ir.VectorType(_I8, 16), table)
        totals = [cgutils.alloca_once(builder, _WORDS) for _ in range(2 * BLOCKS)]
        for total in totals:
            builder.store(ir.Constant(_WORDS, None), total)
        with cgutils.for_range(builder, lines) as loop:
            for b in range(BLOCKS):
                _prefetch_lines(builder, bits, ws[b], loop.index)
                made = _load_bytes(builder, bits, ws[b], highs[b], entries, loop.index)
                for i, line in enumerate(made):
                    four = builder.mul(loop.index, _I64(4 * len(made)))
                    number = load(builder, _I32, x, builder.add(four, _I64(4 * i)))
                    total = totals[2 * b + i % 2]
                    builder.store(step(builder, builder.load(total), line, number), total)
        for b in range(BLOCKS):
            pair = builder.load(totals[2 * b]), builder.load(totals[2 * b + 1])
            store(builder, builder.add(*pair), out, 64 * b)
        return context.get_dummy_value()

    @no_type_check
    @intrinsic
    def dot(typing, x, w, w_stride, w_count, high, high_stride, table, lines, out):
        return types.void(*[types.int64] * 9), generate

    return dot


HAS_VNNI = bool(FEATURES.get("avx512vnni") and FEATURES.get("avx512bw"))
HAS_MADD = bool(FEATURES.get("avx2"))
portable_dot = _product(_portable, 1, BLOCKS)
madd_dot = _product(_madd, 1, BLOCKS) if HAS_MADD else portable_dot
vnni_dot = _product(_vnni, ROWS, BLOCKS) if HAS_VNNI else portable_dot
row_dot_2, row_dot_3, row_dot_4, row_dot_8 = (
    _row_product(_vnni if HAS_VNNI else _portable, bits) for bits in (2, 3, 4, 8)
)


# Sums to numbers.


@no_type_check
@intrinsic
def sum_bytes(typing, address, count):
    """The sum of `count` signed bytes, a multiple of 4."""

    def generate(context, builder, signature, args):
        address, count = args
        sums = []
        done = _I64(0)
        for size in (64, 4):
            bytes_, numbers = ir.VectorType(_I8, size), ir.VectorType(_I32, size)
            total = cgutils.alloca_once_value(builder, ir.Constant(numbers, None))
            steps = builder.udiv(builder.sub(count, done), _I64(size))
            with cgutils.for_range(builder, steps) as loop:
                place = builder.add(done, builder.mul(loop.index, _I64(size)))
                more = builder.sext(load(builder, bytes_, address, place), numbers)
                builder.store(builder.add(builder.load(total), more), total)
            name = f"llvm.vector.reduce.add.v{size}i32"
            sums.append(call(builder, name, _I32, builder.load(total)))
            done = builder.mul(steps, _I64(size))
        return builder.sext(builder.add(*sums), _I64)

    return types.int64(types.int64, types.int64), generate


@no_type_check
@intrinsic
def copy_line(typing, source, out):
    """Copies 64 bytes."""

    def generate(context, builder, signature, args):
        store(builder, load(builder, _BYTES, args[0]), args[1])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def _finishing(blocks, with_zero):
    """Makes `finish(sums, rows, x_sums, zero, top, scale, y)`.

    y[r, b, :] += (sums[r, b, :] - z x_sums[r]) scale[b, :] for `blocks` blocks of 16 columns, with
    BLOCKS of them in a row of y. With a zero, z are the numbers at the address `zero`, of
    which the whole numbers from 0 to `top` are multiplied exactly; without, z is `top`.
    """

    def generate(context, builder, signature, args):
        sums, rows, x_sums, zero, top, scale, y = args
        top = builder.trunc(top, _I32)
        scales = [load(builder, _FLOATS, scale, 64 * b) for b in range(blocks)]
        wholes, rests = [], []
        for b in range(blocks if with_zero else 0):
            z = load(builder, _FLOATS, zero, 64 * b)
            end = splat(builder, _FLOATS, builder.sitofp(top, ir.FloatType()))
            whole = call(builder, "llvm.rint.v16f32", _FLOATS, z)
            whole = call(builder, "llvm.maxnum.v16f32", _FLOATS, whole, splat(builder, _FLOATS, 0))
            whole = call(builder, "llvm.minnum.v16f32", _FLOATS, whole, end)
            wholes.append(builder.fptosi(whole, _WORDS))
            rests.append(builder.fsub(whole, z))
        with cgutils.for_range(builder, rows) as loop:
            x_sum = load(builder, _I32, x_sums, builder.mul(loop.index, _I64(4)))
            exact = splat(builder, _WORDS, builder.mul(top, x_sum))
            for b in range(blocks):
                place = builder.mul(loop.index, _I64(64 * blocks))
                part = load(builder, _WORDS, sums, builder.add(place, _I64(64 * b)))
                if with_zero:
                    exact = builder.mul(wholes[b], splat(builder, _WORDS, x_sum))
                part = builder.sitofp(builder.sub(part, exact), _FLOATS)
                if with_zero:
                    floats = builder.sitofp(splat(builder, _WORDS, x_sum), _FLOATS)
                    part = call(builder, "llvm.fmuladd.v16f32", _FLOATS, rests[b], floats, part)
                place = builder.add(builder.mul(loop.index, _I64(64 * BLOCKS)), _I64(64 * b))
                total = load(builder, _FLOATS, y, place)
                total = call(builder, "llvm.fmuladd.v16f32", _FLOATS, part, scales[b], total)
                store(builder, total, y, place)
        return context.get_dummy_value()

    @no_type_check
    @intrinsic
    def finish(typing, sums, rows, x_sums, zero, top, scale, y):
        return types.void(*[types.int64] * 7), generate

    return finish


finish_4, finish_4_zero = _finishing(4, False), _finishing(4, True)
finish_2, finish_2_zero = _finishing(2, False), _finishing(2, True)
