"""Spikes x low-bit weights on a CPU: numba kernels that read the rows of events only.

References and gradients stand in `spikes_low_bit`. A tile of the sums stays in vector registers
over all events of a group: 16-bit whole numbers for binary inputs, which 256 codes cannot
overflow, floats for graded ones. Results do not depend on the number of threads.
"""

import functools
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32
from llvmlite import ir
from numba.core import types
from numba.cpython.unsafe.numbers import trailing_zeros
from numba.extending import intrinsic

from . import ffi, simd
from .layouts import PackedMatrix
from .layouts_rows import COLUMNS
from .matrix import zero_points
from .spike_bits import SpikeBits

_WIDE, _NARROW = 256, COLUMNS  # columns of a tile; rows are padded to the narrow one
_TOGETHER = 256  # codes of 8 bits whose sum 16 bits hold
_COLUMNS = 1024  # that a task takes
_SERIAL = 1 << 22  # rows * k * n below which waking another thread costs more than it gains


def forward(x: Array | SpikeBits, w: PackedMatrix) -> Float32[Array, "rows n"]:
    """Computes x @ w for rows of bool, of packed bits or of float32."""
    packed = isinstance(x, SpikeBits)
    inputs = x.words if packed else x
    kind = "bits" if packed else "graded" if inputs.dtype == jnp.float32 else "spikes"
    size = jnp.full((1, 1), w.bits, jnp.uint8)
    out = jax.ShapeDtypeStruct((inputs.shape[0], w.shape[1]), jnp.float32)
    zero = zero_points(w.scale, w.zero, w.bits)
    return jax.ffi.ffi_call(_registered(kind), out)(inputs, w.words[0], w.scale, zero, size)


@functools.cache
def _registered(kind):
    name = f"spikebit_low_bit_{kind}"
    dtype = {"bits": np.uint32, "graded": np.float32, "spikes": np.uint8}[kind]
    ffi.register(name, _graded_handler if kind == "graded" else _binary_handler, dtype(0))
    return name


# Tiles: `bits` and sizes are constants of the code that is compiled.


@no_type_check
@intrinsic(prefer_literal=True)
def _codes_like(typing, total, words, offset, bits):
    """The codes that begin at byte `offset`, as many as `total` has lanes and of its dtype."""

    def generate(context, builder, signature, args):
        each = bits.literal_value
        vector = ir.VectorType(ir.IntType(8), total.lanes * each // 8)
        data = context.make_array(words)(context, builder, args[1]).data
        pointer = builder.bitcast(builder.gep(data, [args[2]]), vector.as_pointer())
        codes = builder.load(pointer, align=1)
        if each == 4:
            low = builder.and_(codes, ir.Constant(vector, [15] * vector.count))
            high = builder.lshr(codes, ir.Constant(vector, [4] * vector.count))
            half, order = COLUMNS // 2, []
            for block in range(0, vector.count, half):
                order += range(block, block + half)
                order += range(vector.count + block, vector.count + block + half)
            lanes = ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order)
            codes = builder.shuffle_vector(low, high, lanes)
        wanted = context.get_value_type(total)
        whole = isinstance(total.dtype, types.Integer)
        return builder.zext(codes, wanted) if whole else builder.uitofp(codes, wanted)

    return total(total, words, offset, bits), generate


@no_type_check
@intrinsic
def _add(typing, total, tile):
    """Computes total + tile of whole numbers."""

    def generate(context, builder, signature, args):
        return builder.add(*args)

    return total(total, tile), generate


def _counted(size, bits):
    @no_type_check
    @ffi.inlined
    def add_codes(places, first, end, words, offset, sums):
        """Adds the codes of rows places[first:end] to sums, in parts that 16 bits hold."""
        row_bytes = words.shape[1]
        part = np.empty(size // 2, np.uint16)
        while first < end:
            total = simd.zeros(part, size)
            for e in range(first, min(first + _TOGETHER, end)):
                at = np.int64(places[e]) * row_bytes + offset
                total = _add(total, _codes_like(total, words, at, bits))
            simd.store(total, part, 0)
            for j in range(size // 2):
                sums[j] += part[j]
            first += _TOGETHER

    return add_codes


def _weighted(size, bits):
    @no_type_check
    @ffi.inlined
    def add_codes(places, values, first, end, words, offset, sums):
        """Writes the codes of rows places[first:end], each times its value, to sums."""
        row_bytes = words.shape[1]
        total = simd.zeros(sums, size)
        for e in range(first, end):
            at = np.int64(places[e]) * row_bytes + offset
            total = simd.add_scaled(total, values[e], _codes_like(total, words, at, bits))
        simd.store(total, sums, 0)

    return add_codes


_count_wide_8, _count_narrow_8 = _counted(2 * _WIDE, 8), _counted(2 * _NARROW, 8)
_count_wide_4, _count_narrow_4 = _counted(2 * _WIDE, 4), _counted(2 * _NARROW, 4)
_weigh_wide_8, _weigh_narrow_8 = _weighted(4 * _WIDE, 8), _weighted(4 * _NARROW, 8)
_weigh_wide_4, _weigh_narrow_4 = _weighted(4 * _WIDE, 4), _weighted(4 * _NARROW, 4)


@no_type_check
@ffi.compiled
def _counted_sums(places, first, end, words, column, width, bits, sums):
    for j in range(width):
        sums[j] = 0
    if bits == 8 and width == _WIDE:
        _count_wide_8(places, first, end, words, column, sums)
    elif bits == 8:
        _count_narrow_8(places, first, end, words, column, sums)
    elif width == _WIDE:
        _count_wide_4(places, first, end, words, column // 2, sums)
    else:
        _count_narrow_4(places, first, end, words, column // 2, sums)


@no_type_check
@ffi.compiled
def _weighted_sums(places, values, first, end, words, column, width, bits, sums):
    if bits == 8 and width == _WIDE:
        _weigh_wide_8(places, values, first, end, words, column, sums)
    elif bits == 8:
        _weigh_narrow_8(places, values, first, end, words, column, sums)
    elif width == _WIDE:
        _weigh_wide_4(places, values, first, end, words, column // 2, sums)
    else:
        _weigh_narrow_4(places, values, first, end, words, column // 2, sums)


# A task: some columns of one row of y.


@no_type_check
@ffi.inlined
def _set_bits(x, row, places):
    """Writes the numbers of the bits that are set in a row of words; how many there are."""
    count = 0
    for word in range(x.shape[1]):
        left = np.uint32(x[row, word])
        while left != 0:
            places[count] = 32 * word + trailing_zeros(left)
            count += 1
            left &= left - np.uint32(1)
    return count


@no_type_check
@ffi.inlined
def _nonzeros(x, row, places):
    count = np.int64(0)
    for j in range(0, x.shape[1], simd.GROUP):
        width = min(x.shape[1] - j, simd.GROUP)
        count = simd.append_nonzeros(x, row * x.shape[1] + j, width, j, places, count)
    return count


@no_type_check
@ffi.inlined
def _end_of_group(places, first, count, stop):
    while first < count and places[first] < stop:
        first += 1
    return first


@no_type_check
@ffi.inlined
def _weights(frame):
    like = np.float32(0)
    bits = ffi.argument(frame, 4, np.uint8(0))[0, 0]
    return (
        ffi.argument(frame, 1, np.uint8(0)),
        ffi.argument(frame, 2, like),
        ffi.argument(frame, 3, like),
        bits,
    )


@no_type_check
@ffi.inlined
def _begin(task, y):
    """The row of a task, its first column and the one after its last, in blocks of columns."""
    blocks = (y.shape[1] + _COLUMNS - 1) // _COLUMNS
    begin = task % blocks * _COLUMNS
    for_row = task // blocks
    stop = min(begin + _COLUMNS, y.shape[1])
    for j in range(begin, stop):
        y[for_row, j] = 0
    return for_row, begin, stop


@no_type_check
@ffi.compiled
def _binary_columns(frame, zero, extra, task):
    x, y = ffi.argument(frame, 0, zero), ffi.result(frame, 0, np.float32(0))
    words, scale, middle, bits = _weights(frame)
    row, column, stop = _begin(task, y)
    places = np.empty(words.shape[0] + simd.GROUP, np.int32)
    count = _set_bits(x, row, places) if x.itemsize == 4 else _nonzeros(x, row, places)
    group, sums = words.shape[0] // scale.shape[0], np.empty(_WIDE, np.int32)
    while column < stop:
        width = _WIDE if stop - column > _WIDE - _NARROW else _NARROW
        width = width if column + width <= words.shape[1] * 8 // bits else _NARROW
        first, inside = 0, min(width, stop - column)
        for g in range(scale.shape[0]):
            end = _end_of_group(places, first, count, (g + 1) * group)
            if end > first:
                _counted_sums(places, first, end, words, column, width, bits, sums)
                events = np.float32(end - first)
                for j in range(inside):
                    part = np.float32(sums[j]) - middle[g, column + j] * events
                    y[row, column + j] += scale[g, column + j] * part
            first = end
        column += width


@no_type_check
@ffi.compiled
def _graded_columns(frame, zero, extra, task):
    x, y = ffi.argument(frame, 0, zero), ffi.result(frame, 0, zero)
    words, scale, middle, bits = _weights(frame)
    row, column, stop = _begin(task, y)
    places = np.empty(words.shape[0] + simd.GROUP, np.int32)
    count = _nonzeros(x, row, places)
    values = np.empty(count, np.float32)
    for e in range(count):
        values[e] = x[row, places[e]]
    group, sums = words.shape[0] // scale.shape[0], np.empty(_WIDE, np.float32)
    while column < stop:
        width = _WIDE if stop - column > _WIDE - _NARROW else _NARROW
        width = width if column + width <= words.shape[1] * 8 // bits else _NARROW
        first, inside = 0, min(width, stop - column)
        for g in range(scale.shape[0]):
            end = _end_of_group(places, first, count, (g + 1) * group)
            if end > first:
                _weighted_sums(places, values, first, end, words, column, width, bits, sums)
                total = np.float32(0)
                for e in range(first, end):
                    total += values[e]
                for j in range(inside):
                    part = sums[j] - middle[g, column + j] * total
                    y[row, column + j] += scale[g, column + j] * part
            first = end
        column += width


_binary_loop = ffi.shared_loop(_binary_columns)
_graded_loop = ffi.shared_loop(_graded_columns)


@no_type_check
@ffi.inlined
def _tasks(frame):
    y = ffi.result(frame, 0, np.float32(0))
    return y.shape[0] * ((y.shape[1] + _COLUMNS - 1) // _COLUMNS)


@no_type_check
@ffi.inlined
def _helpers(frame, api, tasks):
    size = _COLUMNS * tasks * ffi.argument(frame, 1, np.uint8(0)).shape[0]
    return min(tasks - 1, ffi.other_threads(frame, api)) if size >= _SERIAL else 0


def _binary_handler(api, zero):
    @no_type_check
    def low_bit_spikes(frame):
        if ffi.not_a_call(frame, api):
            return 0
        tasks = _tasks(frame)
        _binary_loop(frame, api, zero, 0, tasks, _helpers(frame, api, tasks))
        return 0

    return low_bit_spikes


def _graded_handler(api, zero):
    @no_type_check
    def low_bit_graded(frame):
        if ffi.not_a_call(frame, api):
            return 0
        tasks = _tasks(frame)
        _graded_loop(frame, api, zero, 0, tasks, _helpers(frame, api, tasks))
        return 0

    return low_bit_graded
