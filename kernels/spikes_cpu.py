"""Spikes x weights on a CPU: numba kernels that touch only what a non-zero meets.

References, gradient and batching stand in `spikes`; here is the event-driven arithmetic and the
choice, made while it runs, between it and XLA's dense product. Matrices are C-contiguous. Every
element of a result is one sequence of additions that depends on shapes and values alone, so
results do not depend on the number of threads.
"""

import functools
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from . import ffi, simd, spikes

_ROWS = 64  # rows that a task takes
_BLOCK = 512  # rows whose part of dy, 1 KB each at a time, stays in the second-level cache
_SERIAL = 1 << 25  # rows * k * n below which waking another thread costs more than it gains
_WIDE, _MIDDLE, _NARROW = simd.WIDE, simd.MIDDLE, simd.NARROW  # numba needs them as globals

# Share of non-zeros at which event-driven and dense product are equally fast, fitted to the table
# of benchmarks/spikes.py: limit * n / (n + half) * (1 + extra / rows). An event costs as much as
# `half` columns more; the dense product is slow for a single row, but not its outer product.
_CROSSOVER = {  # limit, half, extra
    "forward": (0.37, 64.0, 2.0),
    "weight_gradient": (0.34, 24.0, -4.0),
    "input_gradient": (0.40, 42.0, 2.0),
}


def forward(x: Float[Array, "rows k"], w: Float[Array, "k n"]) -> Float[Array, "rows n"]:
    """Computes x @ w."""
    return _choose("forward", x, w.shape[1], x, w)


def weight_gradient(x: Float[Array, "rows k"], dy: Float[Array, "rows n"]) -> Float[Array, "k n"]:
    """Computes x.T @ dy."""
    return _choose("weight_gradient", x, dy.shape[1], x, dy)


def input_gradient(
    dy: Float[Array, "rows n"], w: Float[Array, "k n"], needed: Bool[Array, "rows k"]
) -> Float[Array, "rows k"]:
    """Computes dy @ w.T where needed, 0 elsewhere."""
    return _choose("input_gradient", needed, w.shape[1], dy, w, needed)


def crossover(operation: str, rows: int, n: int) -> float:
    """The share of non-zeros from which on the dense product is taken; at most 0: always."""
    limit, half, extra = _CROSSOVER[operation]
    return limit * n / (n + half) * (1 + extra / rows)


def event_driven(operation: str, *args: Array) -> Array:
    """Computes one of the three operations at the non-zeros, however many there are."""
    out = jax.eval_shape(getattr(spikes, f"{operation}_reference"), *args)
    return jax.ffi.ffi_call(_registered(operation, args[0].dtype), out)(*args)


def _choose(operation, sparse, n, *args):
    dense = getattr(spikes, f"{operation}_reference")
    limit = crossover(operation, sparse.shape[0], n)
    if limit <= 0:
        return dense(*args)
    share = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    share = jax.ffi.ffi_call(_registered("share", sparse.dtype), share)(sparse)[0, 0]
    event = functools.partial(event_driven, operation)
    return jax.lax.cond(share < limit, event, dense, *args)


@functools.cache
def _registered(operation, dtype):
    handlers = {
        "share": _share_handler,
        "forward": _forward_handler,
        "weight_gradient": _weight_gradient_handler,
        "input_gradient": _input_gradient_handler,
    }
    name = f"spikebit_{operation}_{dtype}"
    number = np.dtype(np.uint8 if dtype == np.bool_ else dtype).type  # XLA's booleans are bytes
    ffi.register(name, handlers[operation], number(0))
    return name


# What the handlers share.


@no_type_check
@ffi.inlined
def _tasks(rows):
    return (rows + _ROWS - 1) // _ROWS


@no_type_check
@ffi.inlined
def _helpers(frame, api, size, tasks):
    return min(tasks - 1, ffi.other_threads(frame, api)) if size >= _SERIAL else 0


@no_type_check
@ffi.inlined
def _find_nonzeros(a, row, places, count):
    """Appends the columns of the non-zeros of a row of `a` to the `count` entries of `places`."""
    columns = a.shape[1]
    for j in range(0, columns, simd.GROUP):
        width = min(columns - j, simd.GROUP)
        count = simd.append_nonzeros(a, row * columns + j, width, j, places, count)
    return count


def _sum_over_tile(size: int):
    @no_type_check
    @ffi.inlined
    def tile_sum(scale, rows, first, end, m, out, out_row, column, fresh):
        n = m.shape[1]
        total = simd.zeros(m, size)
        if not fresh:
            total = simd.load_like(total, out, out_row * n + column)
        for e in range(first, end):
            tile = simd.load_like(total, m, np.int64(rows[e]) * n + column)
            total = simd.add_scaled(total, scale[e], tile)
        simd.store(total, out, out_row * n + column)

    return tile_sum


_wide_sum, _middle_sum = _sum_over_tile(_WIDE), _sum_over_tile(_MIDDLE)


@no_type_check
@ffi.inlined
def _ragged_sum(scale, rows, first, end, m, out, out_row, column, fresh):
    n = m.shape[1]
    width = min(n - column, _NARROW // m.itemsize)
    total = simd.zeros(m, _NARROW)
    if not fresh:
        total = simd.load_first_like(total, out, out_row * n + column, width)
    for e in range(first, end):
        tile = simd.load_first_like(total, m, np.int64(rows[e]) * n + column, width)
        total = simd.add_scaled(total, scale[e], tile)
    simd.store_first(total, out, out_row * n + column, width)


@no_type_check
@ffi.inlined
def _row_sum(scale, rows, first, end, m, out, out_row, column, stop, fresh):
    """Writes (fresh) or adds the sum of scale[e] * m[rows[e]], first <= e < end, to a row of out.

    Only columns from `column` to `stop`: a tile of them stays in registers over all e.
    """
    while stop - column >= _WIDE // m.itemsize:
        _wide_sum(scale, rows, first, end, m, out, out_row, column, fresh)
        column += _WIDE // m.itemsize
    while stop - column >= _MIDDLE // m.itemsize:
        _middle_sum(scale, rows, first, end, m, out, out_row, column, fresh)
        column += _MIDDLE // m.itemsize
    while column < stop:
        _ragged_sum(scale, rows, first, end, m, out, out_row, column, fresh)
        column += _NARROW // m.itemsize


# The share of non-zeros, from a sample of rows.


def _share_handler(api, zero):
    @no_type_check
    def spike_share(frame):
        if ffi.not_a_call(frame, api):
            return 0
        x = ffi.argument(frame, 0, zero)
        step = x.shape[0] // 32 | 1  # odd: not in step with batches of even size
        places = np.empty(x.shape[1] + simd.GROUP, np.int32)
        count, rows = 0, 0
        for row in range(0, x.shape[0], step):
            count += _find_nonzeros(x, row, places, np.int64(0))
            rows += 1
        ffi.result(frame, 0, np.float32(0))[0, 0] = count / (rows * x.shape[1])
        return 0

    return spike_share


# y = x @ w: rows of w, added where x is non-zero.


@no_type_check
@ffi.compiled
def _forward_rows(frame, zero, extra, task):
    x, w, y = ffi.argument(frame, 0, zero), ffi.argument(frame, 1, zero), ffi.result(frame, 0, zero)
    k, n = w.shape
    places, scale = np.empty(k + simd.GROUP, np.int32), np.empty(k, w.dtype)
    for row in range(task * _ROWS, min((task + 1) * _ROWS, x.shape[0])):
        count = _find_nonzeros(x, row, places, np.int64(0))
        for e in range(count):
            scale[e] = x[row, places[e]]
        _row_sum(scale, places, 0, count, w, y, row, 0, n, True)


_forward_loop = ffi.shared_loop(_forward_rows)


def _forward_handler(api, zero):
    @no_type_check
    def spike_forward(frame):
        if ffi.not_a_call(frame, api):
            return 0
        x, w = ffi.argument(frame, 0, zero), ffi.argument(frame, 1, zero)
        tasks = _tasks(x.shape[0])
        helpers = _helpers(frame, api, x.size * w.shape[1], tasks)
        _forward_loop(frame, api, zero, 0, tasks, helpers)
        return 0

    return spike_forward


# dw = x.T @ dy: rows of dy, added where a column of x is non-zero.


@no_type_check
@ffi.inlined
def _add_outer_products(x, dy, dw, first, end, fresh):
    """Writes (fresh) or adds x[first:end].T @ dy[first:end] to dw."""
    k, n = dw.shape
    # The non-zeros row by row, then sorted by column: each row of dw is then one sum.
    places = np.empty((end - first) * k + simd.GROUP, np.int32)
    values = np.empty((end - first) * k, dw.dtype)
    row_ends = np.empty(end - first, np.int64)
    count = np.int64(0)
    for row in range(first, end):
        start = count
        count = _find_nonzeros(x, row, places, count)
        for e in range(start, count):
            values[e] = x[row, places[e]]
        row_ends[row - first] = count
    ends = np.zeros(k + 1, np.int64)  # of the columns before; while filling, of this column
    for e in range(count):
        ends[places[e] + 1] += 1
    for i in range(k):
        ends[i + 1] += ends[i]
    rows, scale = np.empty(count, np.int32), np.empty(count, dw.dtype)
    e = 0
    for row in range(first, end):
        while e < row_ends[row - first]:
            i = places[e]
            rows[ends[i]], scale[ends[i]] = row, values[e]
            ends[i] += 1
            e += 1
    wide = _WIDE // dw.itemsize
    for start in range(0, n, wide):
        begin = 0
        for i in range(k):
            if fresh or ends[i] > begin:
                stop = min(start + wide, n)
                _row_sum(scale, rows, begin, ends[i], dy, dw, i, start, stop, fresh)
            begin = ends[i]


@no_type_check
@ffi.inlined
def _parts(x, dw):
    """Into how many sums over rows of x the gradient is split: by shape, so always the same."""
    rows, memory = x.shape[0], (1 << 25) // (dw.size * dw.itemsize)
    if rows < 1 << 11 or x.size * dw.shape[1] < _SERIAL:
        return 1
    return max(1, min(2 if rows < 1 << 13 else 4 if rows < 1 << 15 else 8, memory))


@no_type_check
@ffi.compiled
def _weight_gradient_part(frame, zero, partial_sums, part):
    x, dy = ffi.argument(frame, 0, zero), ffi.argument(frame, 1, zero)
    dw = ffi.result(frame, 0, zero)
    parts, rows = _parts(x, dw), x.shape[0]
    if part > 0:
        dw = ffi.matrix_at(partial_sums + (part - 1) * dw.size * dw.itemsize, dw.shape, zero)
    start, end = rows * part // parts, rows * (part + 1) // parts
    for first in range(start, end, _BLOCK):
        _add_outer_products(x, dy, dw, first, min(first + _BLOCK, end), first == start)


@no_type_check
@ffi.compiled
def _add_parts(frame, zero, partial_sums, task):
    x, dw = ffi.argument(frame, 0, zero), ffi.result(frame, 0, zero)
    for part in range(_parts(x, dw) - 1):
        more = ffi.matrix_at(partial_sums + part * dw.size * dw.itemsize, dw.shape, zero)
        for i in range(task * _ROWS, min((task + 1) * _ROWS, dw.shape[0])):
            for j in range(dw.shape[1]):
                dw[i, j] += more[i, j]


_weight_gradient_loop = ffi.shared_loop(_weight_gradient_part)
_add_parts_loop = ffi.shared_loop(_add_parts)


def _weight_gradient_handler(api, zero):
    @no_type_check
    def spike_weight_gradient(frame):
        if ffi.not_a_call(frame, api):
            return 0
        x, dw = ffi.argument(frame, 0, zero), ffi.result(frame, 0, zero)
        parts, tasks = _parts(x, dw), _tasks(dw.shape[0])
        helpers = _helpers(frame, api, x.size * dw.shape[1], parts)
        partial_sums = ffi.malloc((parts - 1) * dw.size * dw.itemsize)
        _weight_gradient_loop(frame, api, zero, partial_sums, parts, helpers)
        if parts > 1:
            _add_parts_loop(frame, api, zero, partial_sums, tasks, min(helpers, tasks - 1))
        ffi.free(partial_sums)
        return 0

    return spike_weight_gradient


# dx = needed * (dy @ w.T): products of a row of dy with the rows of w that are needed.


@no_type_check
@ffi.inlined
def _four_dots(w, a, b, c, d, dy, row, out):
    """Writes the products of four rows of w with a row of dy to out[:4]."""
    n = w.shape[1]
    step = _NARROW // w.itemsize
    sum_a = simd.zeros(w, _NARROW)
    sum_b, sum_c, sum_d = sum_a, sum_a, sum_a
    whole = n - n % step
    for j in range(0, whole, step):
        tile = simd.load_like(sum_a, dy, row * n + j)
        sum_a = simd.add_product(sum_a, tile, simd.load_like(sum_a, w, a * n + j))
        sum_b = simd.add_product(sum_b, tile, simd.load_like(sum_b, w, b * n + j))
        sum_c = simd.add_product(sum_c, tile, simd.load_like(sum_c, w, c * n + j))
        sum_d = simd.add_product(sum_d, tile, simd.load_like(sum_d, w, d * n + j))
    if whole < n:
        left = n - whole
        tile = simd.load_first_like(sum_a, dy, row * n + whole, left)
        sum_a = simd.add_product(sum_a, tile, simd.load_first_like(sum_a, w, a * n + whole, left))
        sum_b = simd.add_product(sum_b, tile, simd.load_first_like(sum_b, w, b * n + whole, left))
        sum_c = simd.add_product(sum_c, tile, simd.load_first_like(sum_c, w, c * n + whole, left))
        sum_d = simd.add_product(sum_d, tile, simd.load_first_like(sum_d, w, d * n + whole, left))
    out[0], out[1] = simd.lane_sum(sum_a), simd.lane_sum(sum_b)
    out[2], out[3] = simd.lane_sum(sum_c), simd.lane_sum(sum_d)


@no_type_check
@ffi.compiled
def _input_gradient_rows(frame, zero, extra, task):
    dy, w = ffi.argument(frame, 0, zero), ffi.argument(frame, 1, zero)
    needed, dx = ffi.argument(frame, 2, np.uint8(0)), ffi.result(frame, 0, zero)
    places = np.empty(w.shape[0] + simd.GROUP, np.int32)
    four = np.empty(4, w.dtype)
    for row in range(task * _ROWS, min((task + 1) * _ROWS, dy.shape[0])):
        dx[row, :] = 0
        count = _find_nonzeros(needed, row, places, np.int64(0))
        for e in range(0, count, 4):
            a, last = np.int64(places[e]), count - 1
            b = np.int64(places[min(e + 1, last)])  # past the end: the last one again
            c = np.int64(places[min(e + 2, last)])
            d = np.int64(places[min(e + 3, last)])
            _four_dots(w, a, b, c, d, dy, row, four)
            dx[row, a], dx[row, b], dx[row, c], dx[row, d] = four[0], four[1], four[2], four[3]


_input_gradient_loop = ffi.shared_loop(_input_gradient_rows)


def _input_gradient_handler(api, zero):
    @no_type_check
    def spike_input_gradient(frame):
        if ffi.not_a_call(frame, api):
            return 0
        dy, w = ffi.argument(frame, 0, zero), ffi.argument(frame, 1, zero)
        tasks = _tasks(dy.shape[0])
        helpers = _helpers(frame, api, dy.size * w.shape[0], tasks)
        _input_gradient_loop(frame, api, zero, 0, tasks, helpers)
        return 0

    return spike_input_gradient
