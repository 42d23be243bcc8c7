"""Float inputs x low-bit weights on a CPU: numbers looked up in vector registers, or once a block.

Reference, gradient and batching stand in `low_bit`. A task takes some rows and 64 columns. A
single row is multiplied with numbers as they are looked up (`simd_tables`); for more rows they
are written out for a group at a time, where they stay in the first cache. Every element is one
sequence of operations that depends on shapes alone, so results do not depend on the number of
threads. Codes must be in the layout vnni.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import ffi, low_bit, simd_tables
from .layouts import PackedMatrix
from .layouts_cpu import COLUMNS, rows_of_line
from .matrix import zero_points

_BLOCKS, _FEW = simd_tables.BLOCKS, simd_tables.ROWS
_COLUMNS = _BLOCKS * COLUMNS  # of a task
_ROWS = 128  # of a task: what they have in common with a group stays in the second cache
_DEEP = 128  # rows of weights that are written out at a time: they stay in the first cache
_SERIAL = 1 << 20  # rows * k * n below which waking another thread costs more than it gains


def matmul(x: Float[Array, "rows k"], w: PackedMatrix) -> Float[Array, "rows n"]:
    """Computes x @ dequantize(w)."""
    (rows, k), n = x.shape, w.shape[1]
    if w.layout != "vnni" or 0 in (rows, k, n):
        return low_bit.matmul_reference(x, w)
    bits, groups, ragged = w.bits, w.scale.shape[0], ((0, 0), (0, -n % _COLUMNS))
    scale = jnp.pad(w.scale, ragged)
    if w.table is not None:
        table, zero = jnp.resize(w.table, (1, 16)), jnp.zeros((1, 1), jnp.float32)
    elif w.zero is None and bits < 8:
        numbers = np.arange(16) % (1 << bits) - (1 << bits - 1)
        table, zero = jnp.array(numbers[None], jnp.float32), jnp.zeros((1, 1), jnp.float32)
    else:
        table = jnp.array(np.arange(16)[None] % (1 << bits), jnp.float32)
        zero = jnp.pad(zero_points(w.scale, w.zero, bits), ragged)
    padded = x.astype(jnp.float32).reshape(rows, groups, w.group)
    padded = jnp.pad(padded, ((0, 0), (0, 0), (0, -w.group % rows_of_line(bits))))
    words = [a.reshape(a.shape[0], -1) for a in w.words]
    ffi.register("spikebit_low_bit_matmul", _handler, np.float32(0))
    call = jax.ffi.ffi_call(
        "spikebit_low_bit_matmul", jax.ShapeDtypeStruct((rows, scale.shape[1]), jnp.float32)
    )
    settings = jnp.array([[bits]], jnp.int32)
    y = call(settings, padded.reshape(rows, -1), scale, zero, table, words[0], words[-1])
    return y[:, :n].astype(x.dtype)


@no_type_check
@ffi.inlined
def _column_tasks(frame):
    return ffi.argument(frame, 2, np.float32(0)).shape[1] // _COLUMNS


@no_type_check
@ffi.compiled
def _row_dot(bits, x, w, w_stride, count, high, high_stride, table, zero, scale, k, y):
    """Adds the product of one row with a group of codes; zero 0: there is none."""
    if bits == 8:
        simd_tables.row_dot_8_zero(
            x, w, w_stride, count, high, high_stride, table, zero, scale, k // 4, y
        )
    elif bits == 4 and zero == 0:
        simd_tables.row_dot_4(
            x, w, w_stride, count, high, high_stride, table, zero, scale, k // 8, y
        )
    elif bits == 4:
        simd_tables.row_dot_4_zero(
            x, w, w_stride, count, high, high_stride, table, zero, scale, k // 8, y
        )
    elif bits == 3:
        simd_tables.row_dot_3_zero(
            x, w, w_stride, count, high, high_stride, table, zero, scale, k // 32, y
        )
    else:
        simd_tables.row_dot_2_zero(
            x, w, w_stride, count, high, high_stride, table, zero, scale, k // 16, y
        )


@no_type_check
@ffi.compiled
def _dequantize(bits, source, high, table, zero, scale, k, out):
    """The numbers of a group of a block of 16 columns."""
    if bits == 8:
        simd_tables.dequantize_8(source, high, table, zero, scale, k // 4, out)
    elif bits == 4:
        simd_tables.dequantize_4(source, high, table, zero, scale, k // 8, out)
    elif bits == 3:
        simd_tables.dequantize_3(source, high, table, zero, scale, k // 32, out)
    else:
        simd_tables.dequantize_2(source, high, table, zero, scale, k // 16, out)


@no_type_check
@ffi.compiled
def _block(frame, like, inputs, task):
    x, scale = ffi.argument(frame, 1, like), ffi.argument(frame, 2, like)
    zeros, table = ffi.argument(frame, 3, like), ffi.argument(frame, 4, like).ctypes.data
    words, highs = ffi.argument(frame, 5, np.uint8(0)), ffi.argument(frame, 6, np.uint8(0))
    bits, y = ffi.argument(frame, 0, np.int32(0))[0, 0], ffi.result(frame, 0, like)
    (rows, k), (groups, n) = x.shape, scale.shape
    group, field = k // groups, bits - bits % 2  # bits of a code in `words`
    row_task, column_task = task // _column_tasks(frame), task % _column_tasks(frame)
    start, end = row_task * _ROWS, min((row_task + 1) * _ROWS, rows)
    block = column_task * _BLOCKS
    count = min(_BLOCKS, words.shape[0] - block)
    no_zeros = np.zeros(_COLUMNS, np.float32)

    total = np.zeros((end - start + _FEW, _COLUMNS), np.float32)
    panel = np.zeros((_BLOCKS, _DEEP * 16 if rows > 1 else 0), np.float32)
    for g in range(groups):
        w = words.ctypes.data + block * words.shape[1] + g * group * 2 * field
        high = highs.ctypes.data + block * highs.shape[1] + g * group * 2
        numbers = 4 * (g * n + column_task * _COLUMNS)
        zero = zeros.ctypes.data + numbers if zeros.size > 1 else 0
        numbers += scale.ctypes.data
        x_here = inputs + 4 * (start * k + g * (end - start) * group)
        if rows == 1:
            if zero == 0 and bits < 4:
                zero = no_zeros.ctypes.data
            _row_dot(
                bits,
                x_here,
                w,
                words.shape[1],
                count,
                high,
                highs.shape[1],
                table,
                zero,
                numbers,
                group,
                total.ctypes.data,
            )
            continue
        for part in range(0, group, _DEEP):
            deep = min(_DEEP, group - part)
            for b in range(count):
                _dequantize(
                    bits,
                    w + b * words.shape[1] + part * 2 * field,
                    high + b * highs.shape[1] + part * 2,
                    table,
                    zero + 64 * b if zero != 0 else no_zeros.ctypes.data,
                    numbers + 64 * b,
                    deep,
                    panel[b].ctypes.data,
                )
            for row in range(0, end - start, _FEW):
                simd_tables.add_products(
                    x_here + 4 * (row * group + part),
                    4 * group,
                    end - start - row,
                    panel.ctypes.data,
                    _DEEP * 64,
                    deep,
                    total[row].ctypes.data,
                )
    for row in range(start, end):
        for j in range(_COLUMNS):
            y[row, column_task * _COLUMNS + j] = total[row - start, j]


_loop = ffi.shared_loop(_block)


@no_type_check
@ffi.compiled
def _by_groups(x, groups, out):
    """The rows of a task group by group: what is read together then lies together.

    Rows that are a power of two apart would share few places of the caches.
    """
    rows, k = x.shape
    group, flat = k // groups, out.reshape(-1)
    for start in range(0, rows, _ROWS):
        here = min(_ROWS, rows - start)
        for row in range(here):
            for g in range(groups):
                place = start * k + (g * here + row) * group
                flat[place : place + group] = x[start + row, g * group : (g + 1) * group]


def _handler(api, zero):
    @no_type_check
    def low_bit_matmul(frame):
        if ffi.not_a_call(frame, api):
            return 0
        x, scale = ffi.argument(frame, 1, zero), ffi.argument(frame, 2, zero)
        tasks = _column_tasks(frame) * ((x.shape[0] + _ROWS - 1) // _ROWS)
        inputs = x.ctypes.data
        if x.shape[0] > 1:
            inputs = ffi.malloc(4 * x.size)
            _by_groups(x, scale.shape[0], ffi.matrix_at(inputs, x.shape, zero))
        helpers = 0
        if x.size * scale.shape[1] >= _SERIAL:
            helpers = min(tasks - 1, ffi.other_threads(frame, api))
        _loop(frame, api, zero, inputs, tasks, helpers)
        if x.shape[0] > 1:
            ffi.free(inputs)
        return 0

    return low_bit_matmul
