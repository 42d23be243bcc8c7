"""Counts of equal bytes and look-ups in a table of sixteen numbers, for numba.

What belongs here: the two vector operations of `softmax_cpu` that LLVM does not find by itself.
"""

from typing import no_type_check

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .simd import _call, _pointer, _splat

BYTES = 64  # that are counted at a time
NUMBERS = 16  # that are looked up at a time, and in a table
_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_PERMUTES = bool(llvm.get_host_cpu_features().get("avx512f"))


@no_type_check
@intrinsic
def count_equal(typing, array, offset, value):
    """How many of `BYTES` bytes (uint8) from the flat offset on are equal to a value."""

    def generate(context, builder, signature, args):
        vector = ir.VectorType(_I8, BYTES)
        pointer = _pointer(context, builder, array, args[0], args[1], vector)
        same = builder.icmp_unsigned(
            "==", builder.load(pointer, align=1), _splat(builder, vector, args[2])
        )
        return builder.ctpop(builder.bitcast(same, _I64))

    return types.int64(array, types.int64, types.uint8), generate


@no_type_check
@intrinsic
def look_up(typing, codes, code_offset, table, out, out_offset):
    """Writes table[code % 16] for `NUMBERS` codes (uint8) to `out` (float32)."""

    def generate(context, builder, signature, args):
        numbers = ir.VectorType(ir.FloatType(), NUMBERS)
        pointer = _pointer(context, builder, codes, args[0], args[1], ir.VectorType(_I8, NUMBERS))
        wide = ir.VectorType(_I32, NUMBERS)
        places = builder.zext(builder.load(pointer, align=1), wide)
        places = builder.and_(places, ir.Constant(wide, [NUMBERS - 1] * NUMBERS))
        zero = ir.Constant(_I64, 0)
        entries = builder.load(_pointer(context, builder, table, args[2], zero, numbers), align=4)
        if _PERMUTES:
            values = _call(builder, "llvm.x86.avx512.permvar.sf.512", numbers, [entries, places])
        else:
            values = ir.Constant(numbers, ir.Undefined)
            for i in range(NUMBERS):
                lane = ir.Constant(_I32, i)
                value = builder.extract_element(entries, builder.extract_element(places, lane))
                values = builder.insert_element(values, value, lane)
        at = _pointer(context, builder, out, args[3], args[4], numbers)
        builder.store(values, at, align=4)
        return context.get_dummy_value()

    return types.void(codes, types.int64, table, out, types.int64), generate
