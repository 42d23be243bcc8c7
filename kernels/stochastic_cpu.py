"""Stochastic rounding on a CPU: numba kernels with the bits of the references in `stochastic`.

Words are drawn for a stretch of numbers into the first-level cache, then used up.
"""

import functools
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int8, UInt, UInt32

from . import ffi
from .noise_cpu import fill
from .normals_cpu import _bits_of
from .stochastic import SmallFloat, Steps

_STRETCH = 256
_TASK = 1 << 14  # numbers of a task
_SERIAL = 1 << 16  # numbers below which waking another thread costs more than it gains
_ALL = np.float32(2.0**32)
_ONE, _NONE = np.float32(1), np.float32(0)


def codes(
    steps: Steps,
    x: Float32[Array, "rows size"],
    scale: Float32[Array, "rows groups"],
    keys: UInt32[Array, "rows 3"],
) -> Int8[Array, "rows size"]:
    """As `stochastic.codes_reference`."""
    out = jax.ShapeDtypeStruct(x.shape, jnp.int8)
    call = jax.ffi.ffi_call(_registered("codes", "int8"), out)
    return call(x, keys, scale, jnp.full((1, 1), steps.top, jnp.float32))


def floats(
    kind: SmallFloat, x: Float32[Array, "rows size"], keys: UInt32[Array, "rows 3"]
) -> UInt[Array, "rows size"]:
    """As `stochastic.floats_reference`."""
    out = jax.ShapeDtypeStruct(x.shape, kind.code)
    call = jax.ffi.ffi_call(_registered("floats", out.dtype.name), out)
    numbers = [kind.mantissa, kind.lowest, kind.largest, kind.nan, kind.sign]
    return call(x, keys, jnp.array([numbers], jnp.int32))


@functools.cache
def _registered(operation, dtype):
    name = f"spikebit_stochastic_{operation}_{dtype}"
    handler = _codes_handler if operation == "codes" else _floats_handler
    ffi.register(name, handler, np.dtype(dtype).type(0))
    return name


@no_type_check
@ffi.inlined
def _goes_up(r, low, word):
    return word > ~np.uint32((r - low) * _ALL)


@no_type_check
@ffi.compiled
def _codes(x, words, scale, top, out):
    for j in range(x.size):
        r = abs(x[j] / scale)
        r = r if r < top else top
        r = r if x[j] == x[j] else _NONE
        low = np.floor(r)
        near = low + (_ONE if _goes_up(r, low, words[j]) else _NONE)
        out[j] = np.int8(np.int32(-near if x[j] < _NONE else near))


@no_type_check
@ffi.compiled
def _floats(x, words, mantissa, lowest, largest, nan, sign, out):
    shift = np.uint32(23 - mantissa)
    rest = np.uint32(32) - shift
    offset = np.uint32((lowest + 126) << mantissa)
    smallest = np.float32(2.0) ** np.float32(lowest)
    finest = np.float32(2.0) ** np.float32(mantissa - lowest)
    for j in range(x.size):
        pattern = np.uint32(_bits_of(x[j]))
        size = np.uint32(pattern & np.uint32(0x7FFFFFFF))
        code = np.uint32(np.uint32(np.uint32(size + np.uint32(words[j] >> rest)) >> shift) - offset)
        magnitude = abs(x[j])
        r = magnitude * finest if magnitude < smallest else _NONE
        low = np.floor(r)
        near = np.uint32(low + (_ONE if _goes_up(r, low, words[j]) else _NONE))
        code = near if magnitude < smallest and lowest > -126 else code
        code = min(code, largest)
        code = nan if size > np.uint32(0x7F800000) else code
        out[j] = out.dtype.type(code | (sign if pattern > np.uint32(0x7FFFFFFF) else np.uint32(0)))


@no_type_check
@ffi.inlined
def _part(x, task):
    """The row of a task, and the places of it that are the task's."""
    each = (x.shape[1] + _TASK - 1) // _TASK
    first = task % each * _TASK
    return task // each, first, min(first + _TASK, x.shape[1])


@no_type_check
@ffi.compiled
def _codes_task(frame, zero, extra, task):
    x, keys = ffi.argument(frame, 0, np.float32(0)), ffi.argument(frame, 1, np.uint32(0))
    scale, top = ffi.argument(frame, 2, np.float32(0)), ffi.argument(frame, 3, np.float32(0))[0, 0]
    out = ffi.result(frame, 0, zero)
    row, at, end = _part(x, task)
    k0, k1, stream = keys[row, 0], keys[row, 1], keys[row, 2]
    group = x.shape[1] // scale.shape[1]
    words = np.empty(_STRETCH, np.uint32)
    while at < end:
        g = at // group
        stop = min(at + _STRETCH, end, (g + 1) * group)
        fill(k0, k1, np.uint64(at), stream, stop - at, words)
        _codes(x[row, at:stop], words, scale[row, g], top, out[row, at:stop])
        at = stop


@no_type_check
@ffi.compiled
def _floats_task(frame, zero, extra, task):
    x, keys = ffi.argument(frame, 0, np.float32(0)), ffi.argument(frame, 1, np.uint32(0))
    numbers, out = ffi.argument(frame, 2, np.int32(0))[0], ffi.result(frame, 0, zero)
    row, at, end = _part(x, task)
    k0, k1, stream = keys[row, 0], keys[row, 1], keys[row, 2]
    largest, nan, sign = np.uint32(numbers[2]), np.uint32(numbers[3]), np.uint32(numbers[4])
    words = np.empty(_STRETCH, np.uint32)
    while at < end:
        stop = min(at + _STRETCH, end)
        fill(k0, k1, np.uint64(at), stream, stop - at, words)
        _floats(
            x[row, at:stop], words, numbers[0], numbers[1], largest, nan, sign, out[row, at:stop]
        )
        at = stop


_codes_tasks, _floats_tasks = ffi.shared_loop(_codes_task), ffi.shared_loop(_floats_task)


@no_type_check
@ffi.inlined
def _share(frame, api, zero, loop):
    x = ffi.argument(frame, 0, np.float32(0))
    tasks = x.shape[0] * ((x.shape[1] + _TASK - 1) // _TASK)
    helpers = min(tasks - 1, ffi.other_threads(frame, api)) if x.size >= _SERIAL else 0
    loop(frame, api, zero, 0, tasks, helpers)


def _codes_handler(api, zero):
    @no_type_check
    def stochastic_codes(frame):
        if ffi.not_a_call(frame, api):
            return 0
        _share(frame, api, zero, _codes_tasks)
        return 0

    return stochastic_codes


def _floats_handler(api, zero):
    @no_type_check
    def stochastic_floats(frame):
        if ffi.not_a_call(frame, api):
            return 0
        _share(frame, api, zero, _floats_tasks)
        return 0

    return stochastic_floats
