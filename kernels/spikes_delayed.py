"""Spikes that arrive later: each connection has a weight and a delay of whole steps.

The idea that belongs here: a ring of the sums that are still on their way, to which the spikes of a
step are added at once, each at its time of arrival. This file has the reference, the public
function and its derivatives; `spikes_delayed_cpu` has the kernels. What is received without delay
stands in `spikes` and `spikes_sparse`; layers that keep past inputs instead, in `simulator.delays`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int, Int32

from . import dispatch
from .sparse import Csr, Pattern, checked_connections, inputs_of


def deliver(
    buffer: Float[Array, "lags *batch n"],
    spikes: Float[Array, "*batch k"],
    weights: Csr | Float[Array, "k n"],
    delays: Int[Array, "..."],
    step: int | Int[Array, ""],
) -> tuple[Float[Array, "lags *batch n"], Float[Array, "*batch n"]]:
    r"""Sends the spikes of a step, and gives what arrives in that step.

    Called with step t = 0, 1, ... and the buffer that it gave, beginning with zeros, it gives

    $$y_{j}(t) = \sum_i W_{ij}\, x_i(t - d_{ij}), \quad 0 \le d_{ij} < lags,$$

    so that a spike with delay 0 arrives at once. The sum due at step t is kept at t modulo lags.
    On CPUs only the connections of active inputs are visited, and the buffer is changed in place
    where XLA can, as in a `scan`, and results do not depend on the number of threads.

    Works under `jit`, `scan`, `grad` (of buffer, spikes and weights) and `vmap`, which goes one by
    one: give batches as axes. Forward-mode and second derivatives need SPIKEBIT_KERNELS=reference.

    Args:
        buffer: what is on its way; zeros before the first step. float32 and float64 are fast.
        spikes: x, of 0 and 1 or graded.
        weights: a sparse matrix (`sparse.csr`) or a dense one.
        delays: [steps] one of each connection, (nnz,) or (k, n), from 0 to lags - 1. Under `jit`,
            where they are not known, a connection with another delay sends nothing.
        step: t, any whole number.

    Raises:
        ValueError: shapes or dtypes that do not fit, or delays that the buffer is too short for.

    >>> w, d = jnp.array([[2.0, 3.0]]), jnp.array([[0, 1]])
    >>> buffer, now = deliver(jnp.zeros((2, 2)), jnp.array([1.0]), w, d, 0)
    >>> buffer, later = deliver(buffer, jnp.array([0.0]), w, d, 1)
    >>> now.tolist(), later.tolist()
    ([2.0, 0.0], [0.0, 3.0])
    """
    data, pattern = weights if isinstance(weights, Csr) else (weights, None)
    _check(buffer, spikes, data, pattern, delays)
    lags, n, k = buffer.shape[0], buffer.shape[-1], spikes.shape[-1]
    rows = math.prod(spikes.shape[:-1])
    if pattern is None:  # all to all, which needs no list of outputs
        starts = jnp.arange(k + 1, dtype=jnp.int32) * n
        pattern = Pattern(starts, jnp.zeros(0, jnp.int32), (k, n))
    now = jnp.mod(jnp.asarray(step, jnp.int32), lags)
    delays = delays.astype(jnp.int32).ravel()
    operands = buffer.reshape(lags, rows, n), spikes.reshape(rows, k), data.ravel(), delays
    if dispatch.forced() == "reference" or buffer.dtype not in (jnp.float32, jnp.float64):
        new, arriving = deliver_reference(*operands, pattern, now)
    else:
        new, arriving = _deliver(*operands, pattern, now)
    return new.reshape(buffer.shape), arriving.reshape(buffer.shape[1:])


# Derivatives. buffer: (lags, rows, n), x: (rows, k), data and delays: (nnz,), now: of the ring.


@jax.custom_vjp
def _deliver(buffer, x, data, delays, pattern, now):
    return dispatch.run(
        "spikes_delayed", "deliver", deliver_reference, buffer, x, data, delays, pattern, now
    )


def _deliver_forward(buffer, x, data, delays, pattern, now):
    values = jax.tree.map(lambda leaf: leaf.value, (buffer, x, data, delays, pattern, now))
    kept = (x.value if data.perturbed else None, data.value if x.perturbed else None)
    return _deliver(*values), (*kept, *values[3:])


def _deliver_backward(kept, gradients):
    x, data, *connections = kept  # x (data) is None where that of data (x) is not asked for
    new, arriving = gradients
    if isinstance(new, SymbolicZero) and isinstance(arriving, SymbolicZero):
        return (None,) * 6
    new, arriving = (_instantiated(g) for g in gradients)
    now = connections[-1]
    due = new.at[now].set(arriving)  # the place of this step was emptied
    dx = ddata = None
    if data is not None:
        name, reference = "input_gradient", input_gradient_reference
        dx = dispatch.run("spikes_delayed", name, reference, due, data, *connections)
    if x is not None:
        name, reference = "weight_gradient", weight_gradient_reference
        ddata = dispatch.run("spikes_delayed", name, reference, due, x, *connections)
    return due, dx, ddata, None, None, None


def _instantiated(g):
    if isinstance(g, SymbolicZero):
        return jnp.zeros(g.shape, g.dtype)  # pyright: ignore[reportArgumentType]
    return g


_deliver.defvjp(_deliver_forward, _deliver_backward, symbolic_zeros=True)


def _ends(pattern, count):
    """Input and output of each of `count` connections."""
    if len(pattern.indices) == count:
        return inputs_of(pattern), pattern.indices
    place = jnp.arange(count, dtype=jnp.int32)
    return place // pattern.shape[1], place % pattern.shape[1]


def _arrival(delays, now, lags):
    """Where in the ring each connection leads to, and 1 where there is such a place, or 0."""
    return (now + delays) % lags, (delays >= 0) & (delays < lags)


def deliver_reference(
    buffer: Float[Array, "lags rows n"],
    x: Float[Array, "rows k"],
    data: Float[Array, " nnz"],
    delays: Int32[Array, " nnz"],
    pattern: Pattern,
    now: Int32[Array, ""],
) -> tuple[Float[Array, "lags rows n"], Float[Array, "rows n"]]:
    """The same in jax.numpy, on flat arrays; a pattern without indices is dense."""
    inputs, outputs = _ends(pattern, len(data))
    place, exists = _arrival(delays, now, buffer.shape[0])
    sent = jnp.where(exists, x[:, inputs] * data, 0)
    full = buffer.at[place, :, outputs].add(sent.T)
    return full.at[now].set(0), full[now]


def input_gradient_reference(
    due: Float[Array, "lags rows n"],
    data: Float[Array, " nnz"],
    delays: Int32[Array, " nnz"],
    pattern: Pattern,
    now: Int32[Array, ""],
) -> Float[Array, "rows k"]:
    """The gradient of x from that of the sums, each at its place in the ring."""
    inputs, outputs = _ends(pattern, len(data))
    place, exists = _arrival(delays, now, due.shape[0])
    back = jnp.where(exists, data, 0)[:, None] * due[place, :, outputs]
    return jax.ops.segment_sum(back, inputs, pattern.shape[0]).T


def weight_gradient_reference(
    due: Float[Array, "lags rows n"],
    x: Float[Array, "rows k"],
    delays: Int32[Array, " nnz"],
    pattern: Pattern,
    now: Int32[Array, ""],
) -> Float[Array, " nnz"]:
    """The gradient of the weights likewise."""
    inputs, outputs = _ends(pattern, len(delays))
    place, exists = _arrival(delays, now, due.shape[0])
    return jnp.where(exists, (x[:, inputs].T * due[place, :, outputs]).sum(1), 0)


def _check(buffer, spikes, data, pattern, delays):
    shape = data.shape if pattern is None else pattern.shape
    fits = len(shape) == 2 and spikes.ndim >= 1 and buffer.ndim >= 2 and buffer.shape[0] >= 1
    fits = fits and (spikes.shape[-1], buffer.shape[-1]) == shape
    if pattern is not None:
        checked_connections("deliver", Csr(data, pattern))
    if not fits or buffer.shape[1:-1] != spikes.shape[:-1]:
        raise ValueError(
            f"deliver got a buffer of shape {buffer.shape} and spikes of shape {spikes.shape} for "
            f"weights of shape {shape}; give (lags, *batch, n), (*batch, k) and (k, n), lags >= 1."
        )
    if not buffer.dtype == spikes.dtype == data.dtype:
        raise ValueError(
            f"deliver got a buffer of {buffer.dtype}, spikes of {spikes.dtype} and weights of "
            f"{data.dtype}; make them one dtype."
        )
    if delays.shape != data.shape or not jnp.issubdtype(delays.dtype, jnp.integer):
        raise ValueError(
            f"deliver got delays of {delays.dtype}{list(delays.shape)} for weights "
            f"{list(data.shape)}; give a whole number of steps for each weight."
        )
    if not isinstance(delays, Tracer) and delays.size:
        known = np.asarray(delays)
        if not 0 <= known.min() <= known.max() < buffer.shape[0]:
            raise ValueError(
                f"deliver got delays from {known.min()} to {known.max()} for a buffer of "
                f"{buffer.shape[0]} lags; delays are from 0 to lags - 1."
            )
