"""Rows as small integers on a CPU: a numba kernel with the bits of `quantize_rows.rows_reference`.

Quotients are products with the reciprocal of the scale, except near a tie, where these could round
to another integer: such a stretch of numbers is divided.
"""

import functools
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from . import ffi
from .normals_cpu import _bits_of, _of_bits
from .quantize_rows import Codes

_STRETCH = 256
_TASK = 1 << 15  # numbers of a task
_SERIAL = 1 << 17  # numbers below which waking another thread costs more than it gains
_MAGIC = np.float32(1.5 * 2**23)  # added, it leaves the nearest integer in the low bits
_NEAR_A_TIE = np.float32(0.4999)  # a product differs from the quotient by less than 128 * 2^-22
_TINY = np.finfo(np.float32).tiny
_INFINITY = np.int32(0x7F800000)


def rows(settings: Codes, x: Float32[Array, "rows k"]) -> tuple[Array, Array, Array]:
    """As `quantize_rows.rows_reference`."""
    call = jax.ffi.ffi_call(_registered(), results(settings, x.shape))
    codes, scale, sums = call(x, jnp.full((1, 1), settings.steps, jnp.float32))
    return codes, scale, sums


def results(settings: Codes, shape: tuple[int, ...]) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The shapes of codes, scale and sums."""
    groups = shape[0], settings.groups
    return (
        jax.ShapeDtypeStruct(shape, jnp.int8),
        jax.ShapeDtypeStruct(groups, jnp.float32),
        jax.ShapeDtypeStruct(groups, jnp.int32),
    )


@functools.cache
def _registered():
    ffi.register("spikebit_quantize_rows", _handler, np.float32(0))
    return "spikebit_quantize_rows"


@no_type_check
@ffi.compiled
def _largest(x):
    """The bits of the largest magnitude; NaN is larger than all numbers."""
    most = np.int32(0)
    for j in range(x.size):
        most = max(most, np.int32(_bits_of(x[j]) & np.int32(0x7FFFFFFF)))
    return most


@no_type_check
@ffi.compiled
def _multiply(x, inverse, codes):
    """Codes of a stretch by the reciprocal; how near a tie one of them comes (the bits of it)."""
    near = np.int32(0)
    for j in range(x.size):
        r = x[j] * inverse
        shifted = r + _MAGIC
        codes[j] = np.int8(_bits_of(shifted))
        near = max(near, np.int32(_bits_of(r - (shifted - _MAGIC)) & np.int32(0x7FFFFFFF)))
    return near


@no_type_check
@ffi.compiled
def _divide(x, scale, codes):
    for j in range(x.size):
        codes[j] = np.int8(_bits_of(x[j] / scale + _MAGIC))


@no_type_check
@ffi.compiled
def _sum(codes):
    total = np.int32(0)
    for j in range(codes.size):
        total = np.int32(total + np.int32(codes[j]))
    return total


@no_type_check
@ffi.compiled
def quantize_group(x, steps, codes):
    """Codes of the numbers of one scale; returns the scale and the sum of the codes."""
    most = np.int32(0)
    for at in range(0, x.size, _STRETCH):
        most = max(most, _largest(x[at : at + _STRETCH]))
    if most >= _INFINITY:
        codes[:] = np.int8(0)
        return np.float32(np.nan), np.int32(0)
    amax = _of_bits(most)
    scale = amax / steps
    if not scale >= _TINY:
        scale = np.float32(1)
    inverse = np.float32(1) / scale
    total = np.int32(0)
    for at in range(0, x.size, _STRETCH):
        part, out = x[at : at + _STRETCH], codes[at : at + _STRETCH]
        # a subnormal reciprocal counts as 0
        if inverse < _TINY or not _of_bits(_multiply(part, inverse, out)) < _NEAR_A_TIE:
            _divide(part, scale, out)
        total = np.int32(total + _sum(out))
    return scale, total


@no_type_check
@ffi.inlined
def rows_of_task(k):
    """How many rows of k numbers a task takes."""
    return max(1, _TASK // k)


@no_type_check
@ffi.compiled
def _task(frame, zero, extra, task):
    x, steps = ffi.argument(frame, 0, zero), ffi.argument(frame, 1, zero)[0, 0]
    codes, scale = ffi.result(frame, 0, np.int8(0)), ffi.result(frame, 1, zero)
    sums = ffi.result(frame, 2, np.int32(0))
    group, rows = x.shape[1] // scale.shape[1], rows_of_task(x.shape[1])
    for i in range(task * rows, min(x.shape[0], (task + 1) * rows)):
        for g in range(scale.shape[1]):
            at = g * group
            scale[i, g], sums[i, g] = quantize_group(
                x[i, at : at + group], steps, codes[i, at : at + group]
            )


_tasks = ffi.shared_loop(_task)


def _handler(api, zero):
    @no_type_check
    def quantize_rows(frame):
        if ffi.not_a_call(frame, api):
            return 0
        x = ffi.argument(frame, 0, zero)
        rows = rows_of_task(x.shape[1])
        tasks = (x.shape[0] + rows - 1) // rows
        helpers = min(tasks - 1, ffi.other_threads(frame, api)) if x.size >= _SERIAL else 0
        _tasks(frame, api, zero, 0, tasks, helpers)
        return 0

    return quantize_rows
