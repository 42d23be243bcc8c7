"""Matrices of weights to codes on a CPU: a numba kernel for a group of rows and some columns.

Columns are the lanes of vectors. The reference and the equations stand in `quantize_pack`.
"""

import functools
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, UInt32

from . import ffi
from .noise_cpu import TOGETHER, fill
from .normals_cpu import _bits_of
from .quantize_pack import Method

_COLUMNS = 128  # of a task: 32 rows of them are 16 KB
assert _COLUMNS % TOGETHER == 0
_SERIAL = 1 << 16  # numbers below which waking another thread costs more than it gains
_TINY = np.finfo(np.float32).tiny
_INFINITY = np.int32(0x7F800000)
_ALL = np.float32(2.0**32)
_ZERO, _ONE = np.float32(0), np.float32(1)
_MOST = np.float32(1 << 17)
_SYMMETRIC, _ZEROS, _TABLE = range(3)


def matrix(
    method: Method,
    w: Float32[Array, "k n"],
    scale: Float32[Array, "groups n"],
    zero: Float32[Array, "groups n"],
    keys: UInt32[Array, "1 3"],
) -> tuple[Array, Array, Array]:
    """As `quantize_pack.matrix_reference`."""
    kind = _TABLE if method.table is not None else _ZEROS if method.zeros else _SYMMETRIC
    flags = [kind, method.given, method.stochastic, 1 << method.bits - 1, (1 << method.bits) - 1]
    values, codes, starts = method.nearest()
    ratios = np.append(np.float32(method.steps), method.ratios)[None]
    out = (
        jax.ShapeDtypeStruct(w.shape, jnp.uint8),
        jax.ShapeDtypeStruct(scale.shape, jnp.float32),
        jax.ShapeDtypeStruct(scale.shape, jnp.float32),
    )
    q, s, z = jax.ffi.ffi_call(_registered(), out)(
        w,
        scale,
        zero,
        keys,
        jnp.array([flags], jnp.int32),
        jnp.asarray(ratios),
        jnp.asarray(np.stack([values, starts])),
        jnp.asarray(codes[None]),
    )
    return q, s, z


@functools.cache
def _registered():
    ffi.register("spikebit_quantize_pack", _handler, np.float32(0))
    return "spikebit_quantize_pack"


@no_type_check
@ffi.inlined
def _cut(code, top):
    code = code if code > _ZERO else _ZERO
    return code if code < top else top


@no_type_check
@ffi.compiled
def _extremes(w, first, end, left, right, low, high, magnitude):
    """The smallest and the largest number with 0, and the bits of the largest magnitude."""
    low[:], high[:], magnitude[:] = _ZERO, _ZERO, np.int32(0)
    for i in range(first, end):
        row = w[i, left:right]
        for j in range(row.size):
            low[j] = row[j] if row[j] < low[j] else low[j]
            high[j] = row[j] if row[j] > high[j] else high[j]
            size = np.int32(_bits_of(row[j]) & np.int32(0x7FFFFFFF))
            magnitude[j] = size if size > magnitude[j] else magnitude[j]


@no_type_check
@ffi.compiled
def _clipped(low, high, magnitude, ratio, steps, kind, middle, top, scale, zero):
    """Scales and zero points of a clip."""
    for j in range(scale.size):
        larger = high[j] if high[j] > -low[j] else -low[j]
        s = (high[j] - low[j] if kind == _ZEROS else larger) * ratio / steps
        s = s if s >= _TINY else _ONE
        scale[j] = s if magnitude[j] < _INFINITY else np.float32(np.nan)
        zero[j] = _cut(np.rint(-(low[j] * ratio) / s), top) if kind == _ZEROS else middle


@no_type_check
@ffi.compiled
def _units(row, scale, units):
    for j in range(row.size):
        u = row[j] / scale[j]
        units[j] = u if u == u else _ZERO


@no_type_check
@ffi.compiled
def _places(units, starts, places):
    """The place of each number in the table: how many of its values begin at or before it."""
    places[:] = np.int32(0)
    for t in range(1, starts.size):
        for j in range(units.size):
            places[j] += np.int32(1) if units[j] >= starts[t] else np.int32(0)


@no_type_check
@ffi.compiled
def _whole(units, zero, top, codes):
    """The nearest codes, as floats."""
    for j in range(units.size):
        below = np.floor(zero[j])
        code = np.rint(units[j] + (zero[j] - below)) + below
        codes[j] = _cut(code, top)


@no_type_check
@ffi.compiled
def _drawn(units, zero, top, words, codes):
    """The codes that words decide for, as floats."""
    for j in range(units.size):
        below = np.floor(zero[j])
        unit = units[j] + (zero[j] - below)
        size = abs(unit) if abs(unit) < _MOST else _MOST
        under = np.floor(size)
        up = words[j] > ~np.uint32((size - under) * _ALL)
        near = under + (_ONE if up else _ZERO)
        code = (-near if unit < _ZERO else near) + below
        codes[j] = _cut(code, top)


@no_type_check
@ffi.compiled
def _add_errors(row, units, scale, zero, top, table, values, starts, places, codes, errors):
    """Adds the squared errors of a row of weights."""
    _units(row, scale, units)
    if table:
        _places(units, starts, places)
        for j in range(row.size):
            e = row[j] - values[places[j]] * scale[j]
            errors[j] += e * e
    else:
        _whole(units, zero, top, codes)
        for j in range(row.size):
            e = row[j] - (codes[j] - zero[j]) * scale[j]
            errors[j] += e * e


@no_type_check
@ffi.compiled
def _task(frame, zero, extra, task):
    w = ffi.argument(frame, 0, zero)
    keys = ffi.argument(frame, 3, np.uint32(0))[0]
    flags, ratios = ffi.argument(frame, 4, np.int32(0))[0], ffi.argument(frame, 5, zero)[0]
    tables, order = ffi.argument(frame, 6, zero), ffi.argument(frame, 7, np.int32(0))[0]
    codes = ffi.result(frame, 0, np.uint8(0))
    scales, zeros = ffi.result(frame, 1, zero), ffi.result(frame, 2, zero)
    kind, middle, top = flags[0], np.float32(flags[3]), np.float32(flags[4])
    values, starts, steps = tables[0], tables[1], ratios[0]
    across = (w.shape[1] + _COLUMNS - 1) // _COLUMNS
    g, left = task // across, task % across * _COLUMNS
    right = min(left + _COLUMNS, w.shape[1])
    size = w.shape[0] // scales.shape[0]
    first, end, n = g * size, (g + 1) * size, right - left
    s, z = scales[g, left:right], zeros[g, left:right]
    work = np.empty((7, _COLUMNS), np.float32)
    low, high, units, near = work[0, :n], work[1, :n], work[2, :n], work[3, :n]
    places, magnitude = np.empty(n, np.int32), np.empty(n, np.int32)
    if flags[1] != 0:
        s[:] = ffi.argument(frame, 1, zero)[g, left:right]
        z[:] = ffi.argument(frame, 2, zero)[g, left:right]
    else:
        _extremes(w, first, end, left, right, low, high, magnitude)
        _clipped(low, high, magnitude, _ONE, steps, kind, middle, top, s, z)
        if ratios.size > 2:
            best, errors, s_, z_ = work[4, :n], np.empty(n, np.float32), work[5, :n], work[6, :n]
            best[:] = np.float32(np.inf)
            for r in range(1, ratios.size):
                _clipped(low, high, magnitude, ratios[r], steps, kind, middle, top, s_, z_)
                errors[:] = _ZERO
                for i in range(first, end):
                    row = w[i, left:right]
                    table = kind == _TABLE
                    _add_errors(
                        row, units, s_, z_, top, table, values, starts, places, near, errors
                    )
                for j in range(n):
                    better = errors[j] < best[j]
                    s[j], z[j] = s_[j] if better else s[j], z_[j] if better else z[j]
                    best[j] = errors[j] if better else best[j]
    words = np.empty(_COLUMNS, np.uint32)
    for i in range(first, end):
        _units(w[i, left:right], s, units)
        out = codes[i, left:right]
        if kind == _TABLE:
            _places(units, starts, places)
            for j in range(n):
                out[j] = np.uint8(order[places[j]])
            continue
        if flags[2] != 0:
            fill(keys[0], keys[1], np.uint64(i * w.shape[1] + left), keys[2], n, words)
            _drawn(units, z, top, words, near)
        else:
            _whole(units, z, top, near)
        for j in range(n):
            out[j] = np.uint8(np.int32(near[j]))


_tasks = ffi.shared_loop(_task)


def _handler(api, zero):
    @no_type_check
    def quantize_pack(frame):
        if ffi.not_a_call(frame, api):
            return 0
        w, scales = ffi.argument(frame, 0, zero), ffi.result(frame, 1, zero)
        tasks = scales.shape[0] * ((w.shape[1] + _COLUMNS - 1) // _COLUMNS)
        helpers = min(tasks - 1, ffi.other_threads(frame, api)) if w.size >= _SERIAL else 0
        _tasks(frame, api, zero, 0, tasks, helpers)
        return 0

    return quantize_pack
