"""Pulse trains on a CPU: a numba kernel that goes from coincidence to coincidence.

The reference and the equations stand in `pulse_trains`. Rows of the matrix know nothing of each
other, so a row takes all samples at once, while it lies in the cache, and rows share the threads.
"""

import functools
from typing import no_type_check

import jax
import numpy as np
from jaxtyping import Array

from . import ffi
from .noise_cpu import block
from .normals_cpu import normal_of_word, population_count

ROWS = 16  # of a task
SERIAL = 1 << 18  # with fewer places where pulses may meet, other threads are not worth waking


def run(*arrays: Array) -> tuple[Array, Array, Array]:
    """As `pulse_trains.run_reference`."""
    w = arrays[0]
    bits_x, signs_x, bits_d, signs_d, key, noise = arrays[8:]
    out = (
        jax.ShapeDtypeStruct(w.shape, w.dtype),
        jax.ShapeDtypeStruct(w.shape, w.dtype),
        jax.ShapeDtypeStruct(w.shape, np.bool_),
    )
    call = jax.ffi.ffi_call(_registered(), out, vmap_method="sequential")
    w, shown, touched = call(
        *arrays[:8],
        bits_x.reshape(-1, bits_x.shape[-1]),
        signs_x,
        bits_d.reshape(-1, bits_d.shape[-1]),
        signs_d,
        key[None],
        noise[None],
    )
    return w, shown, touched


@functools.cache
def _registered():
    name = "spikebit_pulse_trains"
    ffi.register(name, _handler, np.float32(0))
    return name


@no_type_check
@ffi.compiled
def _meetings(bits_x, bits_d, signs_d, places, number):
    """The columns whose trains meet that of a row, and how often; returns how many they are."""
    m = signs_d.shape[0]
    for j in range(m):
        number[j] = 0
    for q in range(bits_x.shape[0]):
        for j in range(m):
            number[j] += np.int32(population_count(bits_x[q] & bits_d[q, j]))
    count = 0
    for j in range(m):  # without a branch; reads stay ahead of what is written
        n = number[j] if signs_d[j] != 0 else np.int32(0)
        places[count], number[count] = j, n
        count += n > 0
    return count


@no_type_check
@ffi.compiled
def _draw(key, first_place, sample, places, words):
    """The two random words of each place, in two rows."""
    for c in range(places.shape[0]):
        words[0, c], words[1, c] = block(key[0], key[1], first_place + places[c], sample)


@no_type_check
@ffi.compiled
def _to_normals(words, normals):
    for c in range(normals.shape[0]):
        normals[c] = normal_of_word(words[c])


@no_type_check
@ffi.compiled
def _more_pulses(number, mean, variance, move, keep, shrink, fixed, relative):
    """The law after all pulses but the first of each."""
    most = np.int32(0)
    for c in range(number.shape[0]):
        most = max(most, number[c])
    for k in range(1, most):
        for c in range(number.shape[0]):
            after = shrink[c] * variance[c] + fixed[c] + relative * move[c] * move[c]
            on = k < number[c]
            variance[c] = after if on else variance[c]
            mean[c] = mean[c] + move[c] if on else mean[c]
            move[c] *= keep[c]


@no_type_check
@ffi.compiled
def _rows(frame, zero, extra, task):
    """All samples of the rows of a task."""
    w0, shown0 = ffi.argument(frame, 0, zero), ffi.argument(frame, 1, zero)
    low, high = ffi.argument(frame, 2, zero), ffi.argument(frame, 3, zero)
    up, down = ffi.argument(frame, 4, zero), ffi.argument(frame, 5, zero)
    slope_up, slope_down = ffi.argument(frame, 6, zero), ffi.argument(frame, 7, zero)
    bits_x = ffi.argument(frame, 8, np.uint32(0))
    signs_x = ffi.argument(frame, 9, zero)
    bits_d = ffi.argument(frame, 10, np.uint32(0))
    signs_d = ffi.argument(frame, 11, zero)
    key = ffi.argument(frame, 12, np.uint32(0))[0]
    noise = ffi.argument(frame, 13, zero)
    w, shown = ffi.result(frame, 0, zero), ffi.result(frame, 1, zero)
    touched = ffi.result(frame, 2, np.uint8(0))

    (n, m), batch, one = w.shape, signs_x.shape[0], np.float32(1)
    words = bits_x.shape[0] // max(batch, 1)
    sigma, write, additive = noise[0, 0], noise[0, 1], noise[0, 2] > zero
    relative = zero if additive else sigma * sigma
    integers, drawn = np.empty((2, m), np.int32), np.empty((2, m), np.uint32)
    reals, train = np.empty((7, m), np.float32), np.empty(words, np.uint32)
    for i in range(task * ROWS, min(n, (task + 1) * ROWS)):
        w_i, shown_i, touched_i = w[i], shown[i], touched[i]
        w_i[:], shown_i[:], touched_i[:] = w0[i], shown0[i], np.uint8(0)
        low_i, high_i, up_i, down_i = low[i], high[i], up[i], down[i]
        c_up, c_down = slope_up[i], slope_down[i]
        for b in range(batch):
            any_ = np.uint32(0)
            for q in range(words):
                train[q] = bits_x[b * words + q, i]
                any_ |= train[q]
            if any_ == 0 or signs_x[b, i] == zero:
                continue
            columns = bits_d[b * words : (b + 1) * words]
            count = _meetings(train, columns, signs_d[b], integers[0], integers[1])
            if count == 0:
                continue
            places, number = integers[0, :count], integers[1, :count]
            xi, mean, variance = reals[0, :count], reals[1, :count], reals[2, :count]
            move, keep, shrink = reals[3, :count], reals[4, :count], reals[5, :count]
            fixed = reals[6, :count]
            _draw(key, np.uint32(i * m), np.uint32(b), places, drawn)
            _to_normals(drawn[0], xi)
            for c in range(count):  # the first pulse, which all of them get
                j = places[c]
                before, rises = w_i[j], signs_x[b, i] * signs_d[b, j] > zero
                rise, fall, c_rise, c_fall = up_i[j], -down_i[j], c_up[j], c_down[j]
                step, slope = rise if rises else fall, c_rise if rises else c_fall
                share = min(step * slope, one)
                jump = step * (one - slope * before)
                size = sigma * (step if additive else jump)
                keep[c] = one - share
                shrink[c] = keep[c] * keep[c] + relative * share * share
                fixed[c] = size * size if additive else zero
                mean[c], variance[c], move[c] = before + jump, size * size, jump * keep[c]
            _more_pulses(number, mean, variance, move, keep, shrink, fixed, relative)
            for c in range(count):
                j = places[c]
                new = mean[c] + np.sqrt(variance[c]) * xi[c]
                xi[c] = min(max(new, low_i[j]), high_i[j])
            for c in range(count):
                j = places[c]
                w_i[j], shown_i[j], touched_i[j] = xi[c], xi[c], np.uint8(1)
            if write != zero:
                _to_normals(drawn[1], xi)
                for c in range(count):
                    shown_i[places[c]] += write * xi[c]


_tasks = ffi.shared_loop(_rows)


def _handler(api, zero):
    @no_type_check
    def pulse_trains(frame):
        if ffi.not_a_call(frame, api):
            return 0
        rows, columns = ffi.result(frame, 0, zero).shape
        products = ffi.argument(frame, 9, zero).shape[0] * rows * columns
        tasks = (rows + ROWS - 1) // ROWS
        helpers = min(ffi.other_threads(frame, api), tasks - 1) if products >= SERIAL else 0
        _tasks(frame, api, zero, 0, tasks, helpers)
        return 0

    return pulse_trains
