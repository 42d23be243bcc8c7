"""Spikes that arrive later, on a CPU: numba kernels that visit the connections of active inputs.

References and gradient stand in `spikes_delayed`. As in `spikes_sparse_cpu` every element of a
result is one sequence of additions, whatever the number of threads, and what leads out of the
arrays is skipped. The ring is a matrix: row lag * rows + sample.
"""

import functools
from typing import no_type_check

import jax
import numpy as np
from jaxtyping import Array, Float, Int32

from . import ffi, simd
from .sparse import Pattern
from .spikes_sparse_cpu import UNITS, as_row, connections, find_nonzeros, helpers, rows_of_task


def deliver(
    buffer: Float[Array, "lags rows n"],
    x: Float[Array, "rows k"],
    data: Float[Array, " nnz"],
    delays: Int32[Array, " nnz"],
    pattern: Pattern,
    now: Int32[Array, ""],
) -> tuple[Float[Array, "lags rows n"], Float[Array, "rows n"]]:
    """As `spikes_delayed.deliver_reference`."""
    out = (
        jax.ShapeDtypeStruct(buffer.shape, buffer.dtype),
        jax.ShapeDtypeStruct(buffer.shape[1:], buffer.dtype),
    )
    args = buffer, x, as_row(data), *_lists(delays, pattern, now)
    return tuple(_call("deliver", out, *args, input_output_aliases={0: 0}))


def input_gradient(
    due: Float[Array, "lags rows n"],
    data: Float[Array, " nnz"],
    delays: Int32[Array, " nnz"],
    pattern: Pattern,
    now: Int32[Array, ""],
) -> Float[Array, "rows k"]:
    """As `spikes_delayed.input_gradient_reference`."""
    ring = _ring(due)
    out = jax.ShapeDtypeStruct((due.shape[1], pattern.shape[0]), due.dtype)
    return _call("input_gradient", out, ring, as_row(data), *_lists(delays, pattern, now))


def weight_gradient(
    due: Float[Array, "lags rows n"],
    x: Float[Array, "rows k"],
    delays: Int32[Array, " nnz"],
    pattern: Pattern,
    now: Int32[Array, ""],
) -> Float[Array, " nnz"]:
    """As `spikes_delayed.weight_gradient_reference`."""
    ring = _ring(due)
    out = jax.ShapeDtypeStruct((1, len(delays)), due.dtype)
    return _call("weight_gradient", out, ring, x, *_lists(delays, pattern, now))[0]


def _ring(buffer):
    lags, rows, n = buffer.shape
    return buffer.reshape(lags * rows, n)


def _lists(delays, pattern, now):
    return as_row(delays), as_row(pattern.indptr), as_row(pattern.indices), now.reshape(1, 1)


def _call(operation, out, *args, **aliases):
    name = _registered(operation, args[0].dtype)
    return jax.ffi.ffi_call(name, out, vmap_method="sequential", **aliases)(*args)


@functools.cache
def _registered(operation, dtype):
    handlers = {
        "deliver": _deliver_handler,
        "input_gradient": _input_gradient_handler,
        "weight_gradient": _weight_gradient_handler,
    }
    name = f"spikebit_delayed_{operation}_{dtype}"
    ffi.register(name, handlers[operation], np.dtype(dtype).type(0))
    return name


@no_type_check
@ffi.inlined
def _place(delays, indices, e, first, now, lags, rows, n):
    """Where connection e leads to, for the first of `rows` samples: a place in the ring, or -1.

    Without indices the connections from `first` on lead to all outputs in turn.
    """
    j = np.uint32(e - first) if indices.shape[1] == 0 else np.uint32(indices[0, e])
    delay = np.uint32(delays[0, e])
    lag = now + np.int64(delay)
    if lag >= lags:
        lag -= lags
    return lag * (rows * n) + j if j < n and delay < lags else np.int64(-1)


# Spikes into the ring: a task takes some samples, whose sums no other task has.


@no_type_check
@ffi.compiled
def _deliver_rows(frame, zero, extra, task):
    x, data = ffi.argument(frame, 1, zero), ffi.argument(frame, 2, zero)
    delays, indptr = ffi.argument(frame, 3, np.int32(0)), ffi.argument(frame, 4, np.int32(0))
    indices = ffi.argument(frame, 5, np.int32(0))
    now = np.int64(ffi.argument(frame, 6, np.int32(0))[0, 0])
    (rows, k), arriving = x.shape, ffi.result(frame, 1, zero)
    lags = ffi.result(frame, 0, zero).shape[0]
    n = arriving.shape[1]
    ring = ffi.result_as(frame, 0, (1, lags * rows * n), zero)
    places = np.empty(UNITS + simd.GROUP, np.int32)
    step = rows_of_task(rows)
    low, high = task * step, min((task + 1) * step, rows)
    for begin in range(0, k, UNITS):
        for row in range(low, high):
            for p in range(find_nonzeros(x, row, begin, min(begin + UNITS, k), places)):
                i = np.uint32(places[p])
                scale = x[row, i]
                first, end = connections(indptr, i, data.shape[1])
                for e in range(first, end):
                    at = _place(delays, indices, e, first, now, lags, rows, n)
                    if at >= 0:
                        ring[0, np.uint64(at + row * n)] += scale * data[0, e]
    for row in range(low, high):
        here = (now * rows + row) * n
        for j in range(n):
            arriving[row, j] = ring[0, here + j]
            ring[0, here + j] = 0


_deliver_loop = ffi.shared_loop(_deliver_rows)


def _deliver_handler(api, zero):
    @no_type_check
    def delayed_deliver(frame):
        if ffi.not_a_call(frame, api):
            return 0
        rows, nnz = ffi.argument(frame, 1, zero).shape[0], ffi.argument(frame, 2, zero).shape[1]
        tasks = -(-rows // rows_of_task(rows))
        _deliver_loop(frame, api, zero, 0, tasks, helpers(frame, api, rows * nnz, tasks))
        return 0

    return delayed_deliver


# dx: the gradients of the sums that an input's connections led to.


@no_type_check
@ffi.compiled
def _input_gradient_rows(frame, zero, extra, task):
    due, data = ffi.argument(frame, 0, zero), ffi.argument(frame, 1, zero)
    delays, indptr = ffi.argument(frame, 2, np.int32(0)), ffi.argument(frame, 3, np.int32(0))
    indices = ffi.argument(frame, 4, np.int32(0))
    now, dx = np.int64(ffi.argument(frame, 5, np.int32(0))[0, 0]), ffi.result(frame, 0, zero)
    (rows, k), n, step = dx.shape, due.shape[1], rows_of_task(dx.shape[0])
    lags, flat = due.shape[0] // max(rows, 1), due.reshape(-1)
    for i in range(k):
        first, end = connections(indptr, i, data.shape[1])
        for row in range(task * step, min((task + 1) * step, rows)):
            total = zero
            for e in range(first, end):
                at = _place(delays, indices, e, first, now, lags, rows, n)
                if at >= 0:
                    total += data[0, e] * flat[np.uint64(at + row * n)]
            dx[row, i] = total


_input_gradient_loop = ffi.shared_loop(_input_gradient_rows)


def _input_gradient_handler(api, zero):
    @no_type_check
    def delayed_input_gradient(frame):
        if ffi.not_a_call(frame, api):
            return 0
        rows, nnz = ffi.result(frame, 0, zero).shape[0], ffi.argument(frame, 1, zero).shape[1]
        tasks = -(-rows // rows_of_task(rows))
        _input_gradient_loop(frame, api, zero, 0, tasks, helpers(frame, api, rows * nnz, tasks))
        return 0

    return delayed_input_gradient


# dW: the same gradients, times the spikes, for a few inputs at a time.


@no_type_check
@ffi.compiled
def _weight_gradient_units(frame, zero, extra, task):
    due, x = ffi.argument(frame, 0, zero), ffi.argument(frame, 1, zero)
    delays, indptr = ffi.argument(frame, 2, np.int32(0)), ffi.argument(frame, 3, np.int32(0))
    indices = ffi.argument(frame, 4, np.int32(0))
    now, dw = np.int64(ffi.argument(frame, 5, np.int32(0))[0, 0]), ffi.result(frame, 0, zero)
    (rows, k), n = x.shape, due.shape[1]
    lags, flat = due.shape[0] // max(rows, 1), due.reshape(-1)
    begin, stop = task * UNITS, min((task + 1) * UNITS, k)
    for i in range(begin, stop):
        first, end = connections(indptr, i, dw.shape[1])
        for e in range(first, end):
            dw[0, e] = 0
    places = np.empty(UNITS + simd.GROUP, np.int32)
    for row in range(rows):
        for p in range(find_nonzeros(x, row, begin, stop, places)):
            i = np.uint32(places[p])
            scale = x[row, i]
            first, end = connections(indptr, i, dw.shape[1])
            for e in range(first, end):
                at = _place(delays, indices, e, first, now, lags, rows, n)
                if at >= 0:
                    dw[0, e] += scale * flat[np.uint64(at + row * n)]


_weight_gradient_loop = ffi.shared_loop(_weight_gradient_units)


def _weight_gradient_handler(api, zero):
    @no_type_check
    def delayed_weight_gradient(frame):
        if ffi.not_a_call(frame, api):
            return 0
        (rows, k), nnz = ffi.argument(frame, 1, zero).shape, ffi.result(frame, 0, zero).shape[1]
        tasks = -(-k // UNITS)
        _weight_gradient_loop(frame, api, zero, 0, tasks, helpers(frame, api, rows * nnz, tasks))
        return 0

    return delayed_weight_gradient
