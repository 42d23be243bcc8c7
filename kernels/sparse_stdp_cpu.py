"""Plasticity of sparse connections on a CPU: a numba kernel that goes from spike to connection.

The reference and the equation stand in `sparse_stdp`. Outputs that fired come first, with all that
happens to their connections; then inputs that fired, with their other connections. So each weight
is written once, by one task, and what leads out of the arrays is skipped.
"""

import functools
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from . import ffi
from .sparse import Csr, Transposed
from .spikes_sparse_cpu import UNITS, as_row, connections, helpers


def update(
    weights: Csr,
    index: Transposed,
    pre: Float[Array, "rows k"],
    post: Float[Array, "rows n"],
    pre_trace: Float[Array, "rows k"],
    post_trace: Float[Array, "rows n"],
    numbers: Float[Array, "5"],
) -> tuple[Float[Array, " nnz"], Int32[Array, ""]]:
    """As `sparse_stdp.update_reference`."""
    w, dtype = weights.data, weights.data.dtype
    numbers = jnp.append(numbers, jnp.asarray(1 / pre.shape[0], dtype))  # of sums to means
    lists = (as_row(a) for a in (weights.pattern.indptr, weights.pattern.indices, *index))
    out = jax.ShapeDtypeStruct(w.shape, dtype), jax.ShapeDtypeStruct((1, 1), jnp.int32)
    call = jax.ffi.ffi_call(
        _registered(dtype), out, vmap_method="sequential", input_output_aliases={0: 0}
    )
    new, stopped = call(w, pre, post, pre_trace, post_trace, as_row(numbers), *lists)
    return new, stopped.reshape(())


@functools.cache
def _registered(dtype):
    name = f"spikebit_sparse_stdp_{dtype}"
    ffi.register(name, _handler, np.dtype(dtype).type(0))
    return name


@no_type_check
@ffi.inlined
def _fires(spikes, unit):
    """Whether there is a spike of the unit in any sample."""
    for row in range(spikes.shape[0]):
        if spikes[row, unit] != 0:
            return True
    return False


@no_type_check
@ffi.inlined
def _product(a, i, b, j, zero):
    """The sum over samples of a[:, i] * b[:, j]."""
    total = zero
    for row in range(a.shape[0]):
        total += a[row, i] * b[row, j]
    return total


@no_type_check
@ffi.inlined
def _power(distance, mu, zero):
    """A distance to a bound to the power of mu > 0."""
    distance = max(distance, zero)
    return distance if mu == 1 else distance**mu


@no_type_check
@ffi.inlined
def _changed(old, up, down, s, zero):
    """A weight after what the sums over samples ask for, bounds aside."""
    w_min, w_max, mu = s[0, 2], s[0, 3], s[0, 4]
    up, down = s[0, 0] * (up * s[0, 5]), s[0, 1] * (down * s[0, 5])
    if mu != 0 and up != 0:  # a power takes long
        up *= _power(w_max - old, mu, zero)
    if mu != 0 and down != 0:
        down *= _power(old - w_min, mu, zero)
    return old + (up - down)


@no_type_check
@ffi.inlined
def _keep(w, e, new, s):
    """Writes a weight within its bounds; 1 if one of them stops it, or 0."""
    below, above = new < s[0, 2], new > s[0, 3]
    w[0, e] = s[0, 2] if below else s[0, 3] if above else new
    return np.int64(below) + np.int64(above)


@no_type_check
@ffi.inlined
def _spikes(frame, zero):
    """The arguments pre, post, pre_trace, post_trace and the numbers."""
    return (
        ffi.argument(frame, 1, zero),
        ffi.argument(frame, 2, zero),
        ffi.argument(frame, 3, zero),
        ffi.argument(frame, 4, zero),
        ffi.argument(frame, 5, zero),
    )


@no_type_check
@ffi.compiled
def _after_outputs(frame, zero, counts, task):
    pre, post, pre_trace, post_trace, s = _spikes(frame, zero)
    indptr, inputs = ffi.argument(frame, 8, np.int32(0)), ffi.argument(frame, 9, np.int32(0))
    places = ffi.argument(frame, 10, np.int32(0))
    k, n, nnz = pre.shape[1], post.shape[1], places.shape[1]
    w = ffi.result_as(frame, 0, (1, nnz), zero)
    stopped = np.int64(0)
    for j in range(task * UNITS, min((task + 1) * UNITS, n)):
        if not _fires(post, j):
            continue
        first, end = connections(indptr, j, nnz)
        for q in range(first, end):
            i, e = np.uint32(inputs[0, q]), np.uint32(places[0, q])
            if i < k and e < nnz:
                up = _product(pre_trace, i, post, j, zero)
                down = _product(pre, i, post_trace, j, zero)
                stopped += _keep(w, e, _changed(w[0, e], up, down, s, zero), s)
    ffi.matrix_at(counts, (1, task + 1), np.int64(0))[0, task] = stopped


@no_type_check
@ffi.compiled
def _after_inputs(frame, zero, counts, task):
    pre, post, _, post_trace, s = _spikes(frame, zero)
    indptr, indices = ffi.argument(frame, 6, np.int32(0)), ffi.argument(frame, 7, np.int32(0))
    k, n, nnz = pre.shape[1], post.shape[1], indices.shape[1]
    w = ffi.result_as(frame, 0, (1, nnz), zero)
    stopped = np.int64(0)
    for i in range(task * UNITS, min((task + 1) * UNITS, k)):
        if not _fires(pre, i):
            continue
        first, end = connections(indptr, i, nnz)
        for e in range(first, end):
            j = np.uint32(indices[0, e])
            if j < n and not _fires(post, j):
                down = _product(pre, i, post_trace, j, zero)
                stopped += _keep(w, e, _changed(w[0, e], zero, down, s, zero), s)
    ffi.matrix_at(counts, (1, task + 1), np.int64(0))[0, task] = stopped


_outputs_loop = ffi.shared_loop(_after_outputs)
_inputs_loop = ffi.shared_loop(_after_inputs)


def _handler(api, zero):
    @no_type_check
    def sparse_stdp(frame):
        if ffi.not_a_call(frame, api):
            return 0
        k, n = ffi.argument(frame, 1, zero).shape[1], ffi.argument(frame, 2, zero).shape[1]
        nnz = ffi.argument(frame, 7, np.int32(0)).shape[1]
        ahead, behind = -(-n // UNITS), -(-k // UNITS)
        counts = ffi.malloc(8 * (ahead + behind + 1))
        work = helpers(frame, api, nnz, max(ahead, behind))
        _outputs_loop(frame, api, zero, counts, ahead, max(min(work, ahead - 1), 0))
        _inputs_loop(frame, api, zero, counts + 8 * ahead, behind, max(min(work, behind - 1), 0))
        stopped = np.int64(0)
        for task in range(ahead + behind):
            stopped += ffi.matrix_at(counts, (1, ahead + behind), np.int64(0))[0, task]
        ffi.free(counts)
        ffi.result(frame, 1, np.int32(0))[0, 0] = stopped
        return 0

    return sparse_stdp
