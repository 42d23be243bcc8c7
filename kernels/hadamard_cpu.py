"""Walsh-Hadamard transforms on a CPU: numba kernels whose butterflies stay in vector registers.

The references stand in `hadamard`. A tile of neighbours takes as many stages as fit into it, then
tiles of rows that lie apart take four stages each; a row of 4096 float32 is read and written twice,
in the first-level cache. With quantization the transformed row does not leave that cache.
"""

import functools
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from . import ffi, simd, simd_butterflies
from .hadamard import Transform, factor
from .quantize_rows import Codes
from .quantize_rows_cpu import quantize_group, results

_WIDE, _MIDDLE, _NARROW = simd.WIDE, simd.MIDDLE, simd.NARROW  # numba needs them as globals
_TILE = _WIDE // 4  # numbers
_EIGHTH, _QUARTER, _HALF, _SIXTEENTH = _TILE // 8, _TILE // 4, _TILE // 2, _TILE // 16
_RADIX = 16 if _TILE >= 256 else 4  # rows of a tile, at least 16 numbers each
_TASK = 1 << 12  # numbers that a task transforms at a time: 16 KB
_SERIAL = 1 << 17  # numbers below which waking another thread costs more than it gains


def transform(settings: Transform, x: Float32[Array, "rows n"]) -> Float32[Array, "rows n"]:
    """As `hadamard.transform_reference`."""
    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    numbers = jnp.asarray(factor(x.shape[1], x.dtype)[None, None])
    call = jax.ffi.ffi_call(_registered("transform"), out)
    return call(x, jnp.asarray(settings.signs()), numbers)


def transform_quantize(
    settings: Transform, codes: Codes, x: Float32[Array, "rows n"]
) -> tuple[Array, Array, Array]:
    """As `hadamard.transform_quantize_reference`."""
    numbers = jnp.array([[factor(x.shape[1], x.dtype), codes.steps]], jnp.float32)
    call = jax.ffi.ffi_call(_registered("transform_quantize"), results(codes, x.shape))
    q, scale, sums = call(x, jnp.asarray(settings.signs()), numbers)
    return q, scale, sums


def rotate_quantize(
    codes: Codes, x: Float32[Array, "rows n"], matrix: Float32[Array, "g g"]
) -> tuple[Array, Array, Array]:
    """As `hadamard.rotate_quantize_reference`."""
    steps = jnp.full((1, 1), codes.steps, jnp.float32)
    call = jax.ffi.ffi_call(_registered("rotate_quantize"), results(codes, x.shape))
    q, scale, sums = call(x, matrix, steps)
    return q, scale, sums


@functools.cache
def _registered(operation):
    handlers = {
        "transform": _transform_handler,
        "transform_quantize": _transform_quantize_handler,
        "rotate_quantize": _rotate_quantize_handler,
    }
    name = f"spikebit_hadamard_{operation}"
    ffi.register(name, handlers[operation], np.float32(0))
    return name


# Butterflies. Arrays are flat.


@no_type_check
@ffi.inlined
def _within(tile, n):
    """The stages of a transform of n numbers that stay within a tile."""
    if n > 1:
        tile = simd_butterflies.butterfly(tile, 1)
    if n > 2:
        tile = simd_butterflies.butterfly(tile, 2)
    if n > 4:
        tile = simd_butterflies.butterfly(tile, 4)
    if n > 8:
        tile = simd_butterflies.butterfly(tile, 8)
    if n > 16:
        tile = simd_butterflies.butterfly(tile, 16)
    if n > 32:
        tile = simd_butterflies.butterfly(tile, 32)
    if n > 64:
        tile = simd_butterflies.butterfly(tile, 64)
    if n > 128:
        tile = simd_butterflies.butterfly(tile, 128)
    return tile


@no_type_check
@ffi.compiled
def _first_stages(x, x_at, size, n, scale, y):
    """Writes `size` numbers, through the stages within tiles and scaled, to the front of y."""
    whole = size - size % _TILE
    for at in range(0, whole, _TILE):
        tile = simd.load_like(simd.zeros(x, _WIDE), x, x_at + at)
        simd.store(simd_butterflies.scaled(_within(tile, n), scale), y, at)
    if whole < size:
        tile = simd.load_first_like(simd.zeros(x, _WIDE), x, x_at + whole, size - whole)
        tile = simd_butterflies.scaled(_within(tile, n), scale)
        simd.store_first(tile, y, whole, size - whole)


@no_type_check
@ffi.compiled
def _two_rows(y, at, stride, scale):
    for j in range(at, at + stride, _HALF):
        tile = simd_butterflies.load_rows_like(simd.zeros(y, _WIDE), y, j, stride, 2)
        tile = simd_butterflies.butterfly(tile, _HALF)
        tile = simd_butterflies.scaled(tile, scale)
        simd_butterflies.store_rows(tile, y, j, stride, 2)


@no_type_check
@ffi.compiled
def _four_rows(y, at, stride, scale):
    for j in range(at, at + stride, _QUARTER):
        tile = simd_butterflies.load_rows_like(simd.zeros(y, _WIDE), y, j, stride, 4)
        tile = simd_butterflies.butterfly(tile, _QUARTER)
        tile = simd_butterflies.butterfly(tile, _HALF)
        tile = simd_butterflies.scaled(tile, scale)
        simd_butterflies.store_rows(tile, y, j, stride, 4)


@no_type_check
@ffi.compiled
def _eight_rows(y, at, stride, scale):
    for j in range(at, at + stride, _EIGHTH):
        tile = simd_butterflies.load_rows_like(simd.zeros(y, _WIDE), y, j, stride, 8)
        tile = simd_butterflies.butterfly(tile, _EIGHTH)
        tile = simd_butterflies.butterfly(tile, _QUARTER)
        tile = simd_butterflies.butterfly(tile, _HALF)
        tile = simd_butterflies.scaled(tile, scale)
        simd_butterflies.store_rows(tile, y, j, stride, 8)


@no_type_check
@ffi.compiled
def _sixteen_rows(y, at, stride, scale):
    for j in range(at, at + stride, _SIXTEENTH):
        tile = simd_butterflies.load_rows_like(simd.zeros(y, _WIDE), y, j, stride, 16)
        tile = simd_butterflies.butterfly(tile, _SIXTEENTH)
        tile = simd_butterflies.butterfly(tile, _EIGHTH)
        tile = simd_butterflies.butterfly(tile, _QUARTER)
        tile = simd_butterflies.butterfly(tile, _HALF)
        tile = simd_butterflies.scaled(tile, scale)
        simd_butterflies.store_rows(tile, y, j, stride, 16)


@no_type_check
@ffi.compiled
def _further_stages(y, size, n, scale):
    """The stages of transforms of n numbers from `_TILE` on, in place; the last one scales."""
    stride, one = _TILE, np.float32(1)
    while stride < n:
        rows = min(n // stride, _RADIX)
        last = stride * rows >= n
        for at in range(0, size, rows * stride):
            if rows == 16:
                _sixteen_rows(y, at, stride, scale if last else one)
            elif rows == 8:
                _eight_rows(y, at, stride, scale if last else one)
            elif rows == 4:
                _four_rows(y, at, stride, scale if last else one)
            else:
                _two_rows(y, at, stride, scale if last else one)
        stride *= rows


# Products with a small matrix: the other factor, and rotations.


@no_type_check
@ffi.inlined
def _four_sums(a, a0, a1, a2, a3, b, b_at, columns, inner, y, y0, y1, y2, y3, size):
    """Writes a tile of four rows of the product; `size` in bytes is that of the tile."""
    sum_0 = simd.zeros(y, size)
    sum_1, sum_2, sum_3 = sum_0, sum_0, sum_0
    for i in range(inner):
        tile = simd.load_like(sum_0, b, b_at + i * columns)
        sum_0 = simd.add_scaled(sum_0, a[a0 + i], tile)
        sum_1 = simd.add_scaled(sum_1, a[a1 + i], tile)
        sum_2 = simd.add_scaled(sum_2, a[a2 + i], tile)
        sum_3 = simd.add_scaled(sum_3, a[a3 + i], tile)
    simd.store(sum_0, y, y0)
    simd.store(sum_1, y, y1)
    simd.store(sum_2, y, y2)
    simd.store(sum_3, y, y3)


@no_type_check
@ffi.compiled
def _four_middle_sums(a, a0, a1, a2, a3, b, b_at, columns, inner, y, y0, y1, y2, y3):
    _four_sums(a, a0, a1, a2, a3, b, b_at, columns, inner, y, y0, y1, y2, y3, _MIDDLE)


@no_type_check
@ffi.compiled
def _four_narrow_sums(a, a0, a1, a2, a3, b, b_at, columns, inner, y, y0, y1, y2, y3):
    _four_sums(a, a0, a1, a2, a3, b, b_at, columns, inner, y, y0, y1, y2, y3, _NARROW)


@no_type_check
@ffi.compiled
def _small_product(a, a_at, b, b_at, rows, inner, columns, y, y_at):
    """Writes a (rows, inner) times b (inner, columns), each from its place in a flat array."""
    middle, narrow = _MIDDLE // 4, _NARROW // 4
    for i in range(0, rows, 4):
        i1, i2, i3 = min(i + 1, rows - 1), min(i + 2, rows - 1), min(i + 3, rows - 1)
        a0, a1 = a_at + i * inner, a_at + i1 * inner
        a2, a3 = a_at + i2 * inner, a_at + i3 * inner
        y0, y1 = y_at + i * columns, y_at + i1 * columns
        y2, y3 = y_at + i2 * columns, y_at + i3 * columns
        j = 0
        while columns - j >= middle:
            _four_middle_sums(
                a, a0, a1, a2, a3, b, b_at + j, columns, inner, y, y0 + j, y1 + j, y2 + j, y3 + j
            )
            j += middle
        while columns - j >= narrow:
            _four_narrow_sums(
                a, a0, a1, a2, a3, b, b_at + j, columns, inner, y, y0 + j, y1 + j, y2 + j, y3 + j
            )
            j += narrow
        while j < columns:  # fewer columns than a register has lanes
            for row in (i, i1, i2, i3):
                total = np.float32(0)
                for k in range(inner):
                    total += a[a_at + row * inner + k] * b[b_at + k * columns + j]
                y[y_at + row * columns + j] = total
            j += 1


# What handlers do with the rows of a task.


@no_type_check
@ffi.compiled
def _transform_rows(x, x_at, rows, n, signs, scale, work, y):
    """Transforms rows into the front of y; `work` is as long, and used where the order asks."""
    b = signs.shape[0]
    power = n // b
    first = y if b == 1 else work
    one = np.float32(1)
    once = b == 1 and power <= _TILE
    _first_stages(x, x_at, rows * n, power, scale if once else one, first)
    _further_stages(first, rows * n, power, scale if b == 1 else one)
    if b > 1:
        flat = signs.reshape(signs.size)
        for at in range(0, rows * n, n):
            _small_product(flat, 0, work, at, b, b, power, y, at)
        for j in range(rows * n):
            y[j] *= scale


@no_type_check
@ffi.compiled
def _quantize_rows(frame, zero, first, rows, y, steps):
    """Writes the codes, scales and sums of the rows of y from the row `first` on."""
    codes, scale = ffi.result(frame, 0, np.int8(0)), ffi.result(frame, 1, zero)
    sums = ffi.result(frame, 2, np.int32(0))
    n = codes.shape[1]
    group = n // scale.shape[1]
    for i in range(rows):
        for g in range(scale.shape[1]):
            at = g * group
            scale[first + i, g], sums[first + i, g] = quantize_group(
                y[i * n + at : i * n + at + group], steps, codes[first + i, at : at + group]
            )


@no_type_check
@ffi.inlined
def _rows_of_task(n):
    return max(1, _TASK // n)


@no_type_check
@ffi.compiled
def _transform_task(frame, zero, extra, task):
    x, signs = ffi.argument(frame, 0, zero), ffi.argument(frame, 1, zero)
    scale, y = ffi.argument(frame, 2, zero)[0, 0], ffi.result(frame, 0, zero)
    n, step = x.shape[1], _rows_of_task(x.shape[1])
    first = task * step
    rows = min(step, x.shape[0] - first)
    work = np.empty(rows * n if signs.shape[0] > 1 else 1, np.float32)
    _transform_rows(
        x.reshape(x.size), first * n, rows, n, signs, scale, work, y.reshape(y.size)[first * n :]
    )


@no_type_check
@ffi.compiled
def _transform_quantize_task(frame, zero, extra, task):
    x, signs = ffi.argument(frame, 0, zero), ffi.argument(frame, 1, zero)
    numbers = ffi.argument(frame, 2, zero)
    n, step = x.shape[1], _rows_of_task(x.shape[1])
    first = task * step
    rows = min(step, x.shape[0] - first)
    work = np.empty(rows * n if signs.shape[0] > 1 else 1, np.float32)
    y = np.empty(rows * n, np.float32)
    _transform_rows(x.reshape(x.size), first * n, rows, n, signs, numbers[0, 0], work, y)
    _quantize_rows(frame, zero, first, rows, y, numbers[0, 1])


@no_type_check
@ffi.compiled
def _rotate_quantize_task(frame, zero, extra, task):
    x, matrix = ffi.argument(frame, 0, zero), ffi.argument(frame, 1, zero)
    steps = ffi.argument(frame, 2, zero)[0, 0]
    n, g, step = x.shape[1], matrix.shape[0], _rows_of_task(x.shape[1])
    first = task * step
    rows = min(step, x.shape[0] - first)
    y = np.empty(rows * n, np.float32)
    flat = matrix.reshape(matrix.size)
    _small_product(x.reshape(x.size), first * n, flat, 0, rows * (n // g), g, g, y, 0)
    _quantize_rows(frame, zero, first, rows, y, steps)


_transform_tasks = ffi.shared_loop(_transform_task)
_transform_quantize_tasks = ffi.shared_loop(_transform_quantize_task)
_rotate_quantize_tasks = ffi.shared_loop(_rotate_quantize_task)


@no_type_check
@ffi.inlined
def _share(frame, api, zero, loop):
    x = ffi.argument(frame, 0, zero)
    step = _rows_of_task(x.shape[1])
    tasks = (x.shape[0] + step - 1) // step
    helpers = min(tasks - 1, ffi.other_threads(frame, api)) if x.size >= _SERIAL else 0
    loop(frame, api, zero, 0, tasks, helpers)


def _transform_handler(api, zero):
    @no_type_check
    def hadamard_transform(frame):
        if ffi.not_a_call(frame, api):
            return 0
        _share(frame, api, zero, _transform_tasks)
        return 0

    return hadamard_transform


def _transform_quantize_handler(api, zero):
    @no_type_check
    def hadamard_transform_quantize(frame):
        if ffi.not_a_call(frame, api):
            return 0
        _share(frame, api, zero, _transform_quantize_tasks)
        return 0

    return hadamard_transform_quantize


def _rotate_quantize_handler(api, zero):
    @no_type_check
    def rotate_quantize(frame):
        if ffi.not_a_call(frame, api):
            return 0
        _share(frame, api, zero, _rotate_quantize_tasks)
        return 0

    return rotate_quantize
