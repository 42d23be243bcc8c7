"""Spikes x sparse weights on a CPU: numba kernels that go from event to connection.

References, gradient and batching stand in `spikes_sparse`. An active input is found by vectors,
its connections are visited one after the other. Every element of a result is one sequence of
additions that depends on shapes and values alone, so results do not depend on the number of
threads. Connections that lead out of the arrays, which only an unchecked pattern has, are skipped.
"""

import functools
from typing import no_type_check

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from . import ffi, simd
from .sparse import Pattern

UNITS = 64  # inputs whose connections stay in the second-level cache while samples go by
_SERIAL = 1 << 21  # rows * connections below which waking another thread costs more than it gains


def forward(
    x: Float[Array, "rows k"], data: Float[Array, " nnz"], pattern: Pattern
) -> Float[Array, "rows n"]:
    """Computes x @ W."""
    out = jax.ShapeDtypeStruct((x.shape[0], pattern.shape[1]), x.dtype)
    return _call("forward", out, x, as_row(data), *_places(pattern))


def weight_gradient(
    x: Float[Array, "rows k"], dy: Float[Array, "rows n"], pattern: Pattern
) -> Float[Array, " nnz"]:
    """Computes x.T @ dy at the connections."""
    out = jax.ShapeDtypeStruct((1, len(pattern.indices)), x.dtype)
    return _call("weight_gradient", out, x, dy, *_places(pattern))[0]


def input_gradient(
    dy: Float[Array, "rows n"],
    data: Float[Array, " nnz"],
    pattern: Pattern,
    needed: Bool[Array, "rows k"],
) -> Float[Array, "rows k"]:
    """Computes dy @ W.T where needed, 0 elsewhere."""
    out = jax.ShapeDtypeStruct(needed.shape, dy.dtype)
    return _call("input_gradient", out, dy, as_row(data), *_places(pattern), needed)


def as_row(a: Shaped[Array, " size"]) -> Shaped[Array, "1 size"]:
    """A list as the matrix that a handler takes; a new axis would be a copy to XLA."""
    return a.reshape(1, a.size)


def _places(pattern):
    return as_row(pattern.indptr), as_row(pattern.indices)


def _call(operation, out, *args):
    return jax.ffi.ffi_call(_registered(operation, out.dtype), out)(*args)


@functools.cache
def _registered(operation, dtype):
    handlers = {
        "forward": _forward_handler,
        "weight_gradient": _weight_gradient_handler,
        "input_gradient": _input_gradient_handler,
    }
    name = f"spikebit_sparse_{operation}_{dtype}"
    ffi.register(name, handlers[operation], np.dtype(dtype).type(0))
    return name


# What the handlers share, and those of delays and of plasticity.


@no_type_check
@ffi.inlined
def find_nonzeros(a, row, first, end, places):
    """Writes the columns of the non-zeros of a[row, first:end] to `places`; returns their number.

    `places` (int32) has room for as many columns, and for a group more.
    """
    count = np.int64(0)
    for j in range(first, end, simd.GROUP):
        width = min(end - j, simd.GROUP)
        count = simd.append_nonzeros(a, row * a.shape[1] + j, width, j, places, count)
    return count


@no_type_check
@ffi.inlined
def connections(indptr, i, size):
    """From which to which place the connections of unit i are, of `size`."""
    return max(np.int64(indptr[0, i]), 0), min(np.int64(indptr[0, i + 1]), size)


@no_type_check
@ffi.inlined
def helpers(frame, api, size, tasks):
    """How many more threads to wake for `tasks` that look at `size` connections."""
    return min(tasks - 1, ffi.other_threads(frame, api)) if size >= _SERIAL else 0


@no_type_check
@ffi.inlined
def rows_of_task(rows):
    """How many samples a task takes."""
    return max(1, min(64, rows // 4))


# y = x @ W: for a few inputs at a time, a sample after the other, the connections of those active.


@no_type_check
@ffi.compiled
def _forward_rows(frame, zero, extra, task):
    x, data = ffi.argument(frame, 0, zero), ffi.argument(frame, 1, zero)
    indptr, indices = ffi.argument(frame, 2, np.int32(0)), ffi.argument(frame, 3, np.int32(0))
    y = ffi.result(frame, 0, zero)
    (rows, k), n, nnz = x.shape, y.shape[1], data.shape[1]
    places = np.empty(UNITS + simd.GROUP, np.int32)
    step = rows_of_task(rows)
    low, high = task * step, min((task + 1) * step, rows)
    y[low:high] = 0
    for begin in range(0, k, UNITS):
        for row in range(low, high):
            for p in range(find_nonzeros(x, row, begin, min(begin + UNITS, k), places)):
                i = np.uint32(places[p])
                scale = x[row, i]
                first, end = connections(indptr, i, nnz)
                for e in range(first, end):
                    j = np.uint32(indices[0, e])
                    if j < n:
                        y[row, j] += scale * data[0, e]


_forward_loop = ffi.shared_loop(_forward_rows)


def _forward_handler(api, zero):
    @no_type_check
    def sparse_forward(frame):
        if ffi.not_a_call(frame, api):
            return 0
        rows, nnz = ffi.argument(frame, 0, zero).shape[0], ffi.argument(frame, 1, zero).shape[1]
        tasks = -(-rows // rows_of_task(rows))
        _forward_loop(frame, api, zero, 0, tasks, helpers(frame, api, rows * nnz, tasks))
        return 0

    return sparse_forward


# dW = x.T @ dy at the connections: for a few inputs at a time, whose sums stay in the cache.


@no_type_check
@ffi.compiled
def _weight_gradient_units(frame, zero, extra, task):
    x, dy = ffi.argument(frame, 0, zero), ffi.argument(frame, 1, zero)
    indptr, indices = ffi.argument(frame, 2, np.int32(0)), ffi.argument(frame, 3, np.int32(0))
    dw = ffi.result(frame, 0, zero)
    n, nnz = dy.shape[1], dw.shape[1]
    begin, stop = task * UNITS, min((task + 1) * UNITS, x.shape[1])
    for i in range(begin, stop):
        first, end = connections(indptr, i, nnz)
        for e in range(first, end):
            dw[0, e] = 0
    places = np.empty(UNITS + simd.GROUP, np.int32)
    for row in range(x.shape[0]):
        for p in range(find_nonzeros(x, row, begin, stop, places)):
            i = np.uint32(places[p])
            scale = x[row, i]
            first, end = connections(indptr, i, nnz)
            for e in range(first, end):
                j = np.uint32(indices[0, e])
                if j < n:
                    dw[0, e] += scale * dy[row, j]


_weight_gradient_loop = ffi.shared_loop(_weight_gradient_units)


def _weight_gradient_handler(api, zero):
    @no_type_check
    def sparse_weight_gradient(frame):
        if ffi.not_a_call(frame, api):
            return 0
        (rows, k), nnz = ffi.argument(frame, 0, zero).shape, ffi.result(frame, 0, zero).shape[1]
        tasks = -(-k // UNITS)
        _weight_gradient_loop(frame, api, zero, 0, tasks, helpers(frame, api, rows * nnz, tasks))
        return 0

    return sparse_weight_gradient


# dx = needed * (dy @ W.T): products of a row of W with what its connections lead to.


@no_type_check
@ffi.inlined
def _term(dy, row, data, indices, e, zero):
    j = np.uint32(indices[0, e])
    return data[0, e] * dy[row, j] if j < dy.shape[1] else zero


@no_type_check
@ffi.compiled
def _input_gradient_rows(frame, zero, extra, task):
    dy, data = ffi.argument(frame, 0, zero), ffi.argument(frame, 1, zero)
    indptr, indices = ffi.argument(frame, 2, np.int32(0)), ffi.argument(frame, 3, np.int32(0))
    needed, dx = ffi.argument(frame, 4, np.uint8(0)), ffi.result(frame, 0, zero)
    (rows, k), nnz = dx.shape, data.shape[1]
    places = np.empty(UNITS + simd.GROUP, np.int32)
    step = rows_of_task(rows)
    low, high = task * step, min((task + 1) * step, rows)
    dx[low:high] = 0
    for begin in range(0, k, UNITS):
        for row in range(low, high):
            for p in range(find_nonzeros(needed, row, begin, min(begin + UNITS, k), places)):
                i = np.uint32(places[p])
                first, end = connections(indptr, i, nnz)
                a, b, c, d = zero, zero, zero, zero  # an addition waits for the one before
                whole = end - (end - first) % 4
                for e in range(first, whole, 4):
                    a += _term(dy, row, data, indices, e, zero)
                    b += _term(dy, row, data, indices, e + 1, zero)
                    c += _term(dy, row, data, indices, e + 2, zero)
                    d += _term(dy, row, data, indices, e + 3, zero)
                for e in range(max(whole, first), end):
                    a += _term(dy, row, data, indices, e, zero)
                dx[row, i] = (a + b) + (c + d)


_input_gradient_loop = ffi.shared_loop(_input_gradient_rows)


def _input_gradient_handler(api, zero):
    @no_type_check
    def sparse_input_gradient(frame):
        if ffi.not_a_call(frame, api):
            return 0
        rows, nnz = ffi.argument(frame, 0, zero).shape[0], ffi.argument(frame, 1, zero).shape[1]
        tasks = -(-rows // rows_of_task(rows))
        _input_gradient_loop(frame, api, zero, 0, tasks, helpers(frame, api, rows * nnz, tasks))
        return 0

    return sparse_input_gradient
