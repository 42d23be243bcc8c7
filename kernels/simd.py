"""SIMD values for numba: a tile of numbers that stays in vector registers across a loop.

LLVM keeps a wide vector (256 floats are sixteen 512-bit registers) in registers where it would
spill an array, so each function here emits one vector operation on a whole tile. Arrays are
C-contiguous and addressed by their flat offset; nothing is bounds-checked. What is computed with
tiles stands beside its reference, not here.
"""

from typing import no_type_check

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

_I32 = ir.IntType(32)
GROUP = 16  # elements that the functions for non-zeros look at together
# Sizes of tiles in bytes: as many registers as leave some free, a few, and one of 512 bits.
WIDE = 1024 if llvm.get_host_cpu_features().get("avx512f") else 256
MIDDLE, NARROW = 256, 64


class Tile(types.Type):
    """The numba type of `lanes` numbers held in vector registers."""

    def __init__(self, dtype: types.Type, lanes: int):
        self.dtype = dtype
        self.lanes = lanes
        super().__init__(name=f"Tile({dtype}, {lanes})")


@register_model(Tile)
class _TileModel(models.PrimitiveModel):
    """A tile is one LLVM vector."""

    def __init__(self, dmm, fe_type):
        element = dmm.lookup(fe_type.dtype).get_value_type()
        super().__init__(dmm, fe_type, ir.VectorType(element, fe_type.lanes))


def _pointer(context, builder, array_type, array, offset, to):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), to.as_pointer())


def _splat(builder, vector, scalar):
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
    lanes = ir.Constant(ir.VectorType(_I32, vector.count), None)
    return builder.shuffle_vector(first, undefined, lanes)


def _call(builder, name, result, arguments):
    signature = ir.FunctionType(result, [a.type for a in arguments])
    function = cgutils.get_or_insert_function(builder.module, signature, name)
    return builder.call(function, arguments)


def _suffix(tile):
    return f"v{tile.lanes}f{tile.dtype.bitwidth}"


def _first_lanes(builder, lanes, count):
    vector = ir.VectorType(_I32, lanes)
    limit = _splat(builder, vector, builder.trunc(count, _I32))
    return builder.icmp_signed("<", ir.Constant(vector, list(range(lanes))), limit)


@no_type_check
@intrinsic(prefer_literal=True)
def zeros(typing, array, size):
    """Makes a tile of zeros of the element type of `array`; its `size` in bytes is a constant."""
    tile = Tile(array.dtype, 8 * size.literal_value // array.dtype.bitwidth)

    def generate(context, builder, signature, args):
        return ir.Constant(context.get_value_type(tile), None)

    return tile(array, size), generate


@no_type_check
@intrinsic
def load_like(typing, tile, array, offset):
    """Loads a tile as long as `tile` from `array` at the flat `offset`."""

    def generate(context, builder, signature, args):
        vector = context.get_value_type(tile)
        pointer = _pointer(context, builder, array, args[1], args[2], vector)
        return builder.load(pointer, align=tile.dtype.bitwidth // 8)

    return tile(tile, array, offset), generate


@no_type_check
@intrinsic
def load_first_like(typing, tile, array, offset, count):
    """Loads the first `count` lanes of a tile; the others are 0 and their memory is not touched."""

    def generate(context, builder, signature, args):
        vector = context.get_value_type(tile)
        pointer = _pointer(context, builder, array, args[1], args[2], vector)
        mask = _first_lanes(builder, tile.lanes, args[3])
        align = ir.Constant(_I32, tile.dtype.bitwidth // 8)
        arguments = [pointer, align, mask, ir.Constant(vector, None)]
        return _call(builder, f"llvm.masked.load.{_suffix(tile)}.p0", vector, arguments)

    return tile(tile, array, offset, count), generate


@no_type_check
@intrinsic
def store(typing, tile, array, offset):
    """Stores a tile into `array` at the flat `offset`."""

    def generate(context, builder, signature, args):
        vector = context.get_value_type(tile)
        pointer = _pointer(context, builder, array, args[1], args[2], vector)
        builder.store(args[0], pointer, align=tile.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(tile, array, offset), generate


@no_type_check
@intrinsic
def store_first(typing, tile, array, offset, count):
    """Stores the first `count` lanes of a tile into `array` at the flat `offset`."""

    def generate(context, builder, signature, args):
        vector = context.get_value_type(tile)
        pointer = _pointer(context, builder, array, args[1], args[2], vector)
        mask = _first_lanes(builder, tile.lanes, args[3])
        align = ir.Constant(_I32, tile.dtype.bitwidth // 8)
        arguments = [args[0], pointer, align, mask]
        _call(builder, f"llvm.masked.store.{_suffix(tile)}.p0", ir.VoidType(), arguments)
        return context.get_dummy_value()

    return types.void(tile, array, offset, count), generate


@no_type_check
@intrinsic
def add_scaled(typing, total, scale, tile):
    """Computes total + scale * tile, fused where the machine can."""

    def generate(context, builder, signature, args):
        factor = _splat(builder, args[0].type, args[1])
        arguments = [args[2], factor, args[0]]
        return _call(builder, f"llvm.fmuladd.{_suffix(total)}", args[0].type, arguments)

    return total(total, scale, tile), generate


@no_type_check
@intrinsic
def add_product(typing, total, a, b):
    """Computes total + a * b, lane by lane, fused where the machine can."""

    def generate(context, builder, signature, args):
        arguments = [args[1], args[2], args[0]]
        return _call(builder, f"llvm.fmuladd.{_suffix(total)}", args[0].type, arguments)

    return total(total, a, b), generate


@no_type_check
@intrinsic
def lane_sum(typing, tile):
    """Adds the lanes of a tile, pairwise."""

    def generate(context, builder, signature, args):
        vector, lanes = args[0], tile.lanes
        while lanes > 1:
            lanes //= 2
            halves = ir.VectorType(_I32, lanes)
            low = ir.Constant(halves, list(range(lanes)))
            high = ir.Constant(halves, list(range(lanes, 2 * lanes)))
            vector = builder.fadd(
                builder.shuffle_vector(vector, vector, low),
                builder.shuffle_vector(vector, vector, high),
            )
        return builder.extract_element(vector, ir.Constant(_I32, 0))

    return tile.dtype(tile), generate


@no_type_check
@intrinsic
def append_nonzeros(typing, array, offset, width, base, places, count):
    """Appends base + i for each i < width <= GROUP with array[offset + i] != 0 to `places`.

    `places` (int32) holds `count` entries and has room; returns the new count.
    """

    def generate(context, builder, signature, args):
        array_, offset_, width_, base_, places_, count_ = args
        is_float = isinstance(array.dtype, types.Float)
        values = ir.VectorType(context.get_value_type(array.dtype), GROUP)
        zero = ir.Constant(values, None)
        pointer = _pointer(context, builder, array, array_, offset_, values)
        bits = array.dtype.bitwidth
        name = f"llvm.masked.load.v{GROUP}{'f' if is_float else 'i'}{bits}.p0"
        inside = _first_lanes(builder, GROUP, width_)
        align = ir.Constant(_I32, bits // 8)
        values = _call(builder, name, values, [pointer, align, inside, zero])
        if is_float:
            mask = builder.fcmp_unordered("!=", values, zero)  # unordered: NaN is an event
        else:
            mask = builder.icmp_unsigned("!=", values, zero)
        vector = ir.VectorType(_I32, GROUP)
        indices = builder.add(
            _splat(builder, vector, builder.trunc(base_, _I32)),
            ir.Constant(vector, list(range(GROUP))),
        )
        out = _pointer(context, builder, places, places_, count_, _I32)
        name = f"llvm.masked.compressstore.v{GROUP}i32"
        _call(builder, name, ir.VoidType(), [indices, out, mask])
        found = builder.ctpop(builder.bitcast(mask, ir.IntType(GROUP)))
        return builder.add(count_, builder.zext(found, count_.type))

    return types.int64(array, offset, width, base, places, count), generate
