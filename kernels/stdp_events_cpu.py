"""Plastic synapses on a CPU: a numba kernel that goes from spike to spike.

The reference and the equations stand in `stdp_events`. Fatigue and trace of an input are brought up
to date when they are read, by a table of powers of the decay; membranes decay in every step, since
there are few.
"""

import functools
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from . import ffi

_NEGLIGIBLE = 1e-40  # a trace that decayed to this share of itself is 0


def run(*arrays: Array) -> tuple[Array, ...]:
    """As `stdp_events.run_reference`."""
    weights, fatigue, pre, membrane, post, inputs, first = arrays[:7]
    (nin, n), dtype = weights.shape, weights.dtype
    out = (
        jax.ShapeDtypeStruct((nin, n), dtype),
        jax.ShapeDtypeStruct((2, nin), dtype),
        jax.ShapeDtypeStruct((2, n), dtype),
        jax.ShapeDtypeStruct((len(first) - 1, n), jnp.bool_),
    )
    call = jax.ffi.ffi_call(_registered(dtype), out, vmap_method="sequential")
    pairs = jnp.stack([fatigue, pre]), jnp.stack([membrane, post])
    w, ins, outs, posts = call(
        weights, *pairs, inputs[None], first[None], jnp.stack(arrays[7:])[None]
    )
    return w, ins[0], ins[1], outs[0], outs[1], posts


@functools.cache
def _registered(dtype):
    name = f"spikebit_stdp_events_{dtype}"
    ffi.register(name, _handler, np.dtype(dtype).type(0))
    return name


@no_type_check
@ffi.compiled
def _powers(decay, steps, like):
    """decay^k for k = 0, 1, ..., as far as it matters; the last entry is 0 or that of all steps."""
    count = steps + 1
    if decay <= 0:
        count = 1
    elif decay < 1:
        count = min(count, np.int64(np.log(_NEGLIGIBLE) / np.log(np.float64(decay))) + 1)
    table = np.zeros(count + 1, like.dtype)
    for k in range(count):
        table[k] = np.float64(decay) ** k if k else 1.0
    return table


@no_type_check
@ffi.inlined
def _after(table, steps):
    return table[min(steps, len(table) - 1)]


def _handler(api, zero):
    @no_type_check
    def stdp_events(frame):
        if ffi.not_a_call(frame, api):
            return 0
        w0, ins0, outs0 = (
            ffi.argument(frame, 0, zero),
            ffi.argument(frame, 1, zero),
            ffi.argument(frame, 2, zero),
        )
        inputs, first = ffi.argument(frame, 3, np.int32(0)), ffi.argument(frame, 4, np.int32(0))
        s = ffi.argument(frame, 5, zero)
        w, ins, outs = (
            ffi.result(frame, 0, zero),
            ffi.result(frame, 1, zero),
            ffi.result(frame, 2, zero),
        )
        posts = ffi.result(frame, 3, np.uint8(0))
        w[:, :], ins[:, :], outs[:, :] = w0, ins0, outs0
        (nin, n), steps = w.shape, posts.shape[0]
        threshold, decay_v, decay_y = s[0, 0], s[0, 1], s[0, 3]
        use, a_plus, a_minus, w_max = s[0, 5], s[0, 6], s[0, 7], s[0, 8]
        coincident = s[0, 9]
        x_after, f_after = _powers(s[0, 2], steps, s), _powers(s[0, 4], steps, s)
        last = np.full(nin, -1, np.int64)  # step of the last spike: ins is as it was then
        active = np.empty(nin, np.int64)  # inputs that fire in this step
        for t in range(steps):
            for j in range(n):
                outs[0, j] *= decay_v
                outs[1, j] *= decay_y
            count = 0
            for e in range(max(first[0, t], 0), min(first[0, t + 1], inputs.shape[1])):
                i = inputs[0, e]
                if 0 <= i < nin and last[i] < t:
                    ins[0, i] *= _after(f_after, t - last[i])
                    ins[1, i] *= _after(x_after, t - last[i])
                    last[i], active[count] = t, i
                    count += 1
                    factor = 1 - ins[0, i]
                    for j in range(n):
                        outs[0, j] += factor * w[i, j]
                    ins[0, i] += use * factor
            for j in range(n):
                posts[t, j] = outs[0, j] > threshold
                if posts[t, j]:
                    for i in range(nin):
                        x = ins[1, i] * _after(x_after, t - last[i])
                        if last[i] == t:
                            change = a_plus * (x + coincident) - a_minus * outs[1, j]
                        else:
                            change = a_plus * x
                        w[i, j] = min(max(w[i, j] + change, zero), w_max)
            for e in range(count):
                i = active[e]
                ins[1, i] += 1
                for j in range(n):
                    if not posts[t, j]:
                        w[i, j] = min(max(w[i, j] - a_minus * outs[1, j], zero), w_max)
            for j in range(n):
                if posts[t, j]:
                    outs[0, j] = 0
                    outs[1, j] += 1
        for i in range(nin):
            ins[0, i] *= _after(f_after, steps - 1 - last[i])
            ins[1, i] *= _after(x_after, steps - 1 - last[i])
        return 0

    return stdp_events
