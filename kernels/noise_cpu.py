"""The counter-based generator of `noise` for numba: words drawn inside a CPU kernel."""

from typing import no_type_check

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from . import noise

_I32 = ir.IntType(32)


@no_type_check
@intrinsic
def block(typing, k0, k1, index, stream):
    """The two random words, uint32, of the counter (index, stream) under the key (k0, k1).

    Integers of any width are taken modulo 2^32. Straight 32-bit arithmetic, which numba itself
    would widen: LLVM puts a loop of calls into vectors, and leaves out the word that is not used.
    """
    words = types.UniTuple(types.uint32, 2)

    def generate(context, builder, signature, args):
        k0, k1, x0, x1 = (builder.trunc(a, _I32) for a in args)

        def constant(value):
            return ir.Constant(_I32, value)

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
        return context.make_tuple(builder, words, (x0, x1))

    return words(types.uint64, types.uint64, types.uint64, types.uint64), generate
