"""The counter-based generator of `noise` for numba: words drawn inside a CPU kernel."""

from typing import no_type_check

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from . import ffi, noise
from .simd import _pointer, _splat

_I32 = ir.IntType(32)
TOGETHER = 64  # words that `fill` draws at a time: four registers of 512 bits hide the delays


def _first_and_second(builder, k0, k1, x0, x1):
    """Threefry on 32-bit numbers or vectors of them."""

    def constant(value):
        vector = isinstance(x0.type, ir.VectorType)
        return ir.Constant(x0.type, [value] * x0.type.count if vector else value)

    key = k0, k1, builder.xor(builder.xor(k0, k1), constant(noise.PARITY))
    x0, x1 = builder.add(x0, k0), builder.add(x1, k1)
    for i in range(noise.ROUNDS):
        x0 = builder.add(x0, x1)
        left = noise.ROTATIONS[i // 4 % 2][i % 4]
        high, low = builder.shl(x1, constant(left)), builder.lshr(x1, constant(32 - left))
        x1 = builder.xor(builder.or_(high, low), x0)
        if i % 4 == 3:
            n = i // 4 + 1
            x0 = builder.add(x0, key[n % 3])
            x1 = builder.add(x1, builder.add(key[(n + 1) % 3], constant(n)))
    return x0, x1


@no_type_check
@intrinsic
def block(typing, k0, k1, index, stream):
    """The two random words, uint32, of the counter (index, stream) under the key (k0, k1).

    Integers of any width are taken modulo 2^32. Straight 32-bit arithmetic, which numba itself
    would widen: LLVM puts a loop of calls into vectors, and leaves out the word that is not used.
    """
    words = types.UniTuple(types.uint32, 2)

    def generate(context, builder, signature, args):
        both = _first_and_second(builder, *(builder.trunc(a, _I32) for a in args))
        return context.make_tuple(builder, words, both)

    return words(types.uint64, types.uint64, types.uint64, types.uint64), generate


@no_type_check
@intrinsic
def _draw_together(typing, k0, k1, index, stream, out, place):
    def generate(context, builder, signature, args):
        vector = ir.VectorType(_I32, TOGETHER)
        k0, k1, x0, x1 = (_splat(builder, vector, builder.trunc(a, _I32)) for a in args[:4])
        x0 = builder.add(x0, ir.Constant(vector, list(range(TOGETHER))))
        first, _ = _first_and_second(builder, k0, k1, x0, x1)
        builder.store(first, _pointer(context, builder, out, args[4], args[5], vector), align=4)
        return context.get_dummy_value()

    word = types.uint64
    return types.void(word, word, word, word, out, types.int64), generate


@no_type_check
@ffi.compiled
def fill(k0, k1, index, stream, count, out):
    """Writes the first words of `count` counters from `index` on to the front of `out` (uint32).

    `out` has room for a multiple of `TOGETHER` words, all of which may be written.
    """
    for i in range(0, count, TOGETHER):
        _draw_together(k0, k1, index + np.uint64(i), stream, out, i)
