"""Integer inputs x low-bit weights on a CPU: codes become bytes, bytes are multiplied and added up.

Reference, gradient and batching stand in `integer`. A task takes some rows and 64 columns: group by
group it unpacks codes into bytes that stay in the first cache, multiplies them with all its rows
(`simd_lines`, for more than a few rows `amx`), and adds the sums, scaled, to the result. Every
element is one sequence of operations that depends on shapes alone, so results do not depend on
the number of threads. Codes must be in the layout vnni.
"""

import functools
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int8

from . import amx, ffi, integer, layouts_cpu, simd_lines
from .layouts import PackedMatrix

_PORTABLE, _MADD, _VNNI, _AMX = range(4)
_BLOCKS, _FEW = simd_lines.BLOCKS, simd_lines.ROWS  # of a task, 16 columns each; rows of a product
_COLUMNS = _BLOCKS * layouts_cpu.COLUMNS
_TILE, _PAIR = 16, amx.BLOCKS  # rows and blocks of columns of tiles
_ROWS = 256  # of a task: their codes stay in the second cache over all tasks
_SERIAL = 1 << 20  # rows * k * n below which waking another thread costs more than it gains
_BITS, _KIND, _ZERO, _TOP = range(4)  # settings


@functools.cache
def kinds() -> tuple[int, ...]:
    """The kinds of instructions that this machine has, the best last."""
    found = (_PORTABLE,)
    found += (_MADD,) if simd_lines.HAS_MADD else ()
    found += (_VNNI,) if simd_lines.HAS_VNNI else ()
    return found + ((_AMX,) if amx.permitted() else ())


def matmul(
    x_codes: Int8[Array, "rows k"], x_scale: Float32[Array, "rows 1"], w: PackedMatrix
) -> Float32[Array, "rows n"]:
    """Computes the integer product with the best instructions of this machine."""
    if w.layout != "vnni" or 0 in (*x_codes.shape, w.shape[1]):
        return integer.matmul_reference(x_codes, x_scale, w)
    return with_kind(kinds()[-1], x_codes, x_scale, w)


def with_kind(
    kind: int, x_codes: Int8[Array, "rows k"], x_scale: Float32[Array, "rows 1"], w: PackedMatrix
) -> Float32[Array, "rows n"]:
    """The same with instructions of one of the `kinds`; nothing is empty."""
    if kind not in kinds():
        raise ValueError(f"integer_cpu: this machine has instructions {kinds()}, not {kind}.")
    rows, n = x_codes.shape[0], w.shape[1]
    top = 128 if w.table is not None else 1 << w.bits - 1 if w.zero is None else (1 << w.bits) - 1
    settings = jnp.array([[w.bits, kind, w.zero is not None, top]], jnp.int32)
    scale, table = w.scale, jnp.arange(16, dtype=jnp.uint8)[None]
    if w.table is not None:
        values, _, _, scale = integer.parts(w)
        table = jnp.resize(values.astype(jnp.uint8), (1, 16))
    ragged = ((0, 0), (0, -n % _COLUMNS))
    scale = jnp.pad(scale, ragged)
    zero = jnp.zeros((1, 1), jnp.float32) if w.zero is None else jnp.pad(w.zero, ragged)
    x = x_codes.reshape(rows, scale.shape[0], w.group)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, -w.group % layouts_cpu.rows_of_line(w.bits))))
    words = [a.reshape(a.shape[0], -1) for a in w.words]
    ffi.register("spikebit_integer_matmul", _handler, np.int32(0))
    call = jax.ffi.ffi_call(
        "spikebit_integer_matmul", jax.ShapeDtypeStruct((rows, scale.shape[1]), jnp.float32)
    )
    y = call(settings, x.reshape(rows, -1), x_scale, scale, zero, table, words[0], words[-1])
    return y[:, :n]


# What the task and its caller read of the call frame.


@no_type_check
@ffi.inlined
def _x(frame):
    return ffi.argument(frame, 1, np.int8(0))


@no_type_check
@ffi.inlined
def _scale(frame):
    return ffi.argument(frame, 3, np.float32(0))


@no_type_check
@ffi.inlined
def _column_tasks(frame):
    return _scale(frame).shape[1] // _COLUMNS


@no_type_check
@ffi.inlined
def _aligned(address):
    return (address + 63) // 64 * 64


@no_type_check
@ffi.inlined
def _tiles_place(rows, groups):
    return _aligned(rows * groups * 4)


@no_type_check
@ffi.inlined
def _tile_rows(rows):
    return (rows + _TILE - 1) // _TILE * _TILE


@no_type_check
@ffi.inlined
def _tile_width(group):
    width = 64
    while group % width:
        width //= 2
    return width


@no_type_check
@ffi.inlined
def _with_tiles(kind, rows):
    return kind == _AMX and rows > _FEW


# One task.


@no_type_check
@ffi.compiled
def _unpack(bits, table, source, high, group, out):
    """Codes of a group of a block of 16 columns to bytes."""
    if bits == 4:
        simd_lines.unpack_4(source, high, table, group // 8, out)
    elif bits == 3:
        simd_lines.unpack_3(source, high, table, group // 32, out)
    else:
        simd_lines.unpack_2(source, high, table, group // 16, out)


@no_type_check
@ffi.compiled
def _row_dot(bits, table, x, w, w_stride, high, high_stride, count, group, out):
    """The products of one row with codes."""
    if bits == 8:
        simd_lines.row_dot_8(x, w, w_stride, count, high, high_stride, table, group // 4, out)
    elif bits == 4:
        simd_lines.row_dot_4(x, w, w_stride, count, high, high_stride, table, group // 8, out)
    elif bits == 3:
        simd_lines.row_dot_3(x, w, w_stride, count, high, high_stride, table, group // 32, out)
    else:
        simd_lines.row_dot_2(x, w, w_stride, count, high, high_stride, table, group // 16, out)


@no_type_check
@ffi.compiled
def _dot(kind, x, stride, count, w, w_stride, w_count, lines, out):
    """Products of few rows; returns how many were done."""
    if kind >= _VNNI:
        simd_lines.vnni_dot(x, stride, count, w, w_stride, w_count, lines, out)
        return min(_FEW, count)
    if kind == _MADD:
        simd_lines.madd_dot(x, stride, 1, w, w_stride, w_count, lines, out)
    else:
        simd_lines.portable_dot(x, stride, 1, w, w_stride, w_count, lines, out)
    return 1


@no_type_check
@ffi.compiled
def _tile_dot(rows, x, x_stride, w, w_stride, w_count, steps, width, out):
    if rows > _TILE:
        amx.dot_32(x, x_stride, w, w_stride, w_count, steps, width, out)
    else:
        amx.dot_16(x, x_stride, w, w_stride, w_count, steps, width, out)


@no_type_check
@ffi.compiled
def _finish(blocks, with_zero, sums, rows, x_sums, zero, top, scale, y):
    if blocks == _PAIR:
        if with_zero:
            simd_lines.finish_2_zero(sums, rows, x_sums, zero, top, scale, y)
        else:
            simd_lines.finish_2(sums, rows, x_sums, zero, top, scale, y)
    elif with_zero:
        simd_lines.finish_4_zero(sums, rows, x_sums, zero, top, scale, y)
    else:
        simd_lines.finish_4(sums, rows, x_sums, zero, top, scale, y)


@no_type_check
@ffi.compiled
def _block(frame, like, scratch, task):
    settings, x, scale = ffi.argument(frame, 0, np.int32(0)), _x(frame), _scale(frame)
    x_scale, zeros = ffi.argument(frame, 2, np.float32(0)), ffi.argument(frame, 4, np.float32(0))
    table = ffi.argument(frame, 5, np.uint8(0)).ctypes.data
    words, highs = ffi.argument(frame, 6, np.uint8(0)), ffi.argument(frame, 7, np.uint8(0))
    y = ffi.result(frame, 0, np.float32(0))
    bits, kind, with_zero = settings[0, _BITS], settings[0, _KIND], settings[0, _ZERO] != 0
    top, field = np.int64(settings[0, _TOP]), bits - bits % 2  # bits of a code in `words`
    (rows, k), (groups, n) = x.shape, scale.shape
    group = k // groups
    row_task, column_task = task // _column_tasks(frame), task % _column_tasks(frame)
    start, end = row_task * _ROWS, min((row_task + 1) * _ROWS, rows)
    block = column_task * _BLOCKS
    count = min(_BLOCKS, words.shape[0] - block)

    x_sums = ffi.matrix_at(scratch, (groups, rows), np.int32(0))
    tiles, width = scratch + _tiles_place(rows, groups), _tile_width(group)
    with_tiles = _with_tiles(kind, rows)
    panel_size, sums_size = _BLOCKS * group * 16, 2 * _TILE * _BLOCKS * 64
    memory = ffi.malloc(panel_size + sums_size + (end - start) * _COLUMNS * 4 + 64)
    panel = _aligned(memory)
    sums = panel + panel_size
    total = ffi.matrix_at(sums + sums_size, (end - start, _COLUMNS), np.float32(0))
    total[:] = 0
    if with_tiles:
        shapes = ffi.matrix_at(panel, (1, 64), np.uint8(0))  # before there are other bytes
        _tile_shapes(shapes[0], width)
        amx.configure(panel)

    for g in range(groups):
        w = words.ctypes.data + block * words.shape[1] + g * group * 2 * field
        high = highs.ctypes.data + block * highs.shape[1] + g * group * 2
        w_stride, numbers = words.shape[1], 4 * (g * n + column_task * _COLUMNS)
        zero = zeros.ctypes.data + numbers if with_zero else 0
        numbers += scale.ctypes.data
        x_here = x.ctypes.data + start * k + g * group
        if kind >= _VNNI and rows == 1:
            _row_dot(bits, table, x_here, w, w_stride, high, highs.shape[1], count, group, sums)
            here = x_sums[g].ctypes.data
            _finish(_BLOCKS, with_zero, sums, 1, here, zero, top, numbers, total.ctypes.data)
            continue
        if bits != 8:
            for b in range(count):
                place, high_place = w + b * w_stride, high + b * highs.shape[1]
                _unpack(bits, table, place, high_place, group, panel + b * group * 16)
            w, w_stride = panel, group * 16
        row = start
        while row < end:
            here, out = x_sums[g, row:].ctypes.data, total[row - start :].ctypes.data
            if with_tiles:
                done = min(2 * _TILE, end - row)
                tile = tiles + (g * _tile_rows(rows) + row) * group
                for b in range(0, count, _PAIR):
                    _tile_dot(
                        done,
                        tile,
                        _TILE * group,
                        w + b * w_stride,
                        w_stride,
                        count - b,
                        group // width,
                        width,
                        sums,
                    )
                    _finish(
                        _PAIR,
                        with_zero,
                        sums,
                        done,
                        here,
                        zero + 64 * b,
                        top,
                        numbers + 64 * b,
                        out + 64 * b,
                    )
            else:
                done = _dot(
                    kind,
                    x.ctypes.data + row * k + g * group,
                    k,
                    end - row,
                    w,
                    w_stride,
                    count,
                    group // 4,
                    sums,
                )
                _finish(_BLOCKS, with_zero, sums, done, here, zero, top, numbers, out)
            row += done
    if with_tiles:
        amx.release()
    for row in range(start, end):
        for j in range(_COLUMNS):
            y[row, column_task * _COLUMNS + j] = total[row - start, j] * x_scale[row, 0]
    ffi.free(memory)


@no_type_check
@ffi.inlined
def _tile_shapes(shapes, width):
    """The 64 bytes that give tiles their shapes: sums, then w, then x."""
    shapes[:] = 0
    shapes[0] = 1
    for t in range(8):
        shapes[16 + 2 * t] = width if t >= 6 else 64
        shapes[48 + t] = width // 4 if t in (4, 5) else 16


_loop = ffi.shared_loop(_block)


@no_type_check
@ffi.compiled
def _into_tiles(x, group, width, out):
    """Copies rows into tiles, 16 rows of `width` bytes: those of 16 rows of a group in turn."""
    rows, k = x.shape
    for row in range(0, rows, _TILE):
        for column in range(0, k, width):
            start = column // group * group
            tile = out + (start * _tile_rows(rows)) + row * group + (column - start) * _TILE
            for r in range(min(_TILE, rows - row)):
                place = x.ctypes.data + (row + r) * k + column
                if width == 64:
                    simd_lines.copy_line(place, tile + r * 64)
                else:
                    to = ffi.matrix_at(tile + r * width, (1, width), np.int8(0))
                    for i in range(width):
                        to[0, i] = x[row + r, column + i]


def _handler(api, zero):
    @no_type_check
    def integer_matmul(frame):
        if ffi.not_a_call(frame, api):
            return 0
        settings, x, scale = ffi.argument(frame, 0, np.int32(0)), _x(frame), _scale(frame)
        (rows, k), groups = x.shape, scale.shape[0]
        group = k // groups
        tiles = _with_tiles(settings[0, _KIND], rows)
        size = _tiles_place(rows, groups) + (_tile_rows(rows) * k if tiles else 0)
        memory = ffi.malloc(size + 64)
        scratch = _aligned(memory)
        x_sums = ffi.matrix_at(scratch, (groups, rows), np.int32(0))
        for row in range(rows):
            for g in range(groups):
                place = x.ctypes.data + row * k + g * group
                x_sums[g, row] = simd_lines.sum_bytes(place, group)
        if tiles:
            _into_tiles(x, group, _tile_width(group), scratch + _tiles_place(rows, groups))
        tasks = _column_tasks(frame) * ((rows + _ROWS - 1) // _ROWS)
        helpers = 0
        if rows * k * scale.shape[1] >= _SERIAL:
            helpers = min(tasks - 1, ffi.other_threads(frame, api))
        _loop(frame, api, zero, scratch, tasks, helpers)
        ffi.free(memory)
        return 0

    return integer_matmul
