"""Softmax with inputs of few bits on a CPU: a numba kernel with one exponential a code and row.

A row becomes codes of a byte, these are counted, and each is replaced by its share. The reference
and the equations stand in `softmax`.
"""

import functools
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32

from . import ffi
from .normals_cpu import _bits_of, _of_bits
from .simd_counts import BYTES, NUMBERS, count_equal, look_up
from .softmax import NO_RANGE as _NO_RANGE
from .softmax import Levels

_TASK = 1 << 14  # numbers of a task
_SERIAL = 1 << 17  # numbers below which waking another thread costs more than it gains
_MASKED = np.uint8(255)  # a code; looked up it is code 15, which stands for something with 4 bits
_LOG2E = np.float32(np.log2(np.e))
_LN2_HIGH = np.float32(0.693359375)  # 9 bits
_LN2_LOW = np.float32(np.log(2) - 0.693359375)
_LOWEST, _HIGHEST = np.int32(-(2**31)), np.int32(2**31 - 1)
_INFINITY = np.int32(0x7F800000)  # its place among integers that are ordered as the floats are
_MINUS_INFINITY = np.int32(-0x7F800001)


def softmax(
    levels: Levels,
    x: Float32[Array, "rows k"],
    clip: Float32[Array, "rows 1"],
    where: Bool[Array, "rows k"] | None = None,
) -> Float32[Array, "rows k"]:
    """As `softmax.softmax_reference`."""
    last = jnp.full((1, 1), levels.last, jnp.int32)
    mask = jnp.zeros((0, 0), bool) if where is None else where
    return jax.ffi.ffi_call(_registered(), jax.ShapeDtypeStruct(x.shape, x.dtype))(
        x, clip, mask, last
    )


@functools.cache
def _registered():
    ffi.register("spikebit_low_bit_softmax", _handler, np.float32(0))
    return "spikebit_low_bit_softmax"


@no_type_check
@ffi.inlined
def _ordered(x):
    """An integer for each float, in the same order; NaN lies beyond the infinities."""
    bits = np.int32(_bits_of(x))
    return np.int32(bits ^ np.int32((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@no_type_check
@ffi.compiled
def _extremes(x, mask, masks):
    """The smallest and the largest input that is not masked, as ordered integers."""
    least, most = _HIGHEST, _LOWEST
    if masks:
        for j in range(x.size):
            number = _ordered(x[j])
            on = (mask[j] != 0) & (number != _MINUS_INFINITY)
            least = min(least, np.int32(number if on else _HIGHEST))
            most = max(most, np.int32(number if on else _LOWEST))
        return least, most
    for j in range(x.size):
        number = _ordered(x[j])
        least = min(least, np.int32(number if number != _MINUS_INFINITY else _HIGHEST))
        most = max(most, np.int32(number if number != _MINUS_INFINITY else _LOWEST))
    return least, most


@no_type_check
@ffi.compiled
def _codes(x, mask, masks, most, per_step, last, codes):
    """The code of each input; `_MASKED` where it is masked."""
    if masks:
        for j in range(x.size):
            code = np.rint((most - x[j]) * per_step)
            code = code if code < last else last
            on = (mask[j] != 0) & (_ordered(x[j]) != _MINUS_INFINITY)
            codes[j] = np.uint8(np.int32(code)) if on else _MASKED
        return
    for j in range(x.size):
        code = np.rint((most - x[j]) * per_step)
        code = code if code < last else last
        on = _ordered(x[j]) != _MINUS_INFINITY
        codes[j] = np.uint8(np.int32(code)) if on else _MASKED


@no_type_check
@ffi.inlined
def _exp(x):
    """The exponential of a float32 from -80 to 0, to 2 units in the last place."""
    n = np.rint(x * _LOG2E)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW  # the first product is exact
    p = np.float32(1 / 5040) * r + np.float32(1 / 720)
    p = (p * r + np.float32(1 / 120)) * r + np.float32(1 / 24)
    p = ((p * r + np.float32(1 / 6)) * r + np.float32(1 / 2)) * r + np.float32(1)
    p = p * r + np.float32(1)
    return p * _of_bits(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))


@no_type_check
@ffi.compiled
def _powers(step, table):
    """The exponentials of 0, step, 2 step, ...; 0 where they are below 1e-34."""
    for c in range(table.size):
        x = np.float32(c) * step
        table[c] = _exp(x) if x > np.float32(-80) else np.float32(0)


@no_type_check
@ffi.compiled
def _row(x, mask, masks, clip, last, codes, table, work, y):
    least, most = _extremes(x, mask, masks)
    if most == _LOWEST:
        y[:] = np.float32(0)
        return
    if most >= _INFINITY or least < _MINUS_INFINITY or not clip < np.float32(0):
        y[:] = np.float32(np.nan)
        return
    top = _of_bits(np.int32(most ^ np.int32((most >> np.int32(31)) & np.int32(0x7FFFFFFF))))
    bottom = _of_bits(np.int32(least ^ np.int32((least >> np.int32(31)) & np.int32(0x7FFFFFFF))))
    low, steps = max(clip, bottom - top), np.float32(last)
    per_step = steps / -low if low < _NO_RANGE else np.float32(0)
    _codes(x, mask, masks, top, per_step, steps, codes)
    _powers(low / steps, table)
    total, masked = np.float32(0), x.size
    for c in range(last, -1, -1):  # the smallest first
        count = np.int64(0)
        for at in range(0, codes.size, BYTES):
            count += count_equal(codes, at, np.uint8(c))
        masked -= count
        total += np.float32(count) * table[c]
    for c in range(NUMBERS):
        table[c] = table[c] / total if c <= last else np.float32(0)
    whole = x.size - x.size % NUMBERS
    for at in range(0, whole, NUMBERS):
        look_up(codes, at, table, y, at)
    look_up(codes, whole, table, work, 0)
    for j in range(whole, x.size):
        y[j] = work[j - whole]
    if masked > 0 and last == NUMBERS - 1:
        for j in range(x.size):
            y[j] = np.float32(0) if codes[j] == _MASKED else y[j]


@no_type_check
@ffi.compiled
def _task(frame, zero, extra, task):
    x, clip = ffi.argument(frame, 0, zero), ffi.argument(frame, 1, zero)
    mask, last = ffi.argument(frame, 2, np.uint8(0)), ffi.argument(frame, 3, np.int32(0))[0, 0]
    y, k = ffi.result(frame, 0, zero), x.shape[1]
    codes = np.full((k + BYTES) // BYTES * BYTES, _MASKED, np.uint8)
    table, work = np.zeros(NUMBERS, np.float32), np.empty(NUMBERS, np.float32)
    rows, masks = max(1, _TASK // k), mask.size > 0
    for i in range(task * rows, min(x.shape[0], (task + 1) * rows)):
        _row(
            x[i], mask[i if masks else 0], masks, clip[i, 0], last, codes, table, work, y[i]
        )  # fmt: skip


_tasks = ffi.shared_loop(_task)


def _handler(api, zero):
    @no_type_check
    def low_bit_softmax(frame):
        if ffi.not_a_call(frame, api):
            return 0
        x = ffi.argument(frame, 0, zero)
        rows = max(1, _TASK // x.shape[1])
        tasks = (x.shape[0] + rows - 1) // rows
        helpers = min(tasks - 1, ffi.other_threads(frame, api)) if x.size >= _SERIAL else 0
        _tasks(frame, api, zero, 0, tasks, helpers)
        return 0

    return low_bit_softmax
