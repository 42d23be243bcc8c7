"""Spikes x sparse weights: the product of a mostly-zero array with a matrix of few connections.

The idea that belongs here: visit only the connections of inputs that are active. This file has the
reference, the public function and its derivatives; `spikes_sparse_cpu` and `spikes_sparse_gpu`
have the kernels. How connections are written down belongs to `sparse`, delays to `spikes_delayed`.
"""

import math

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap, sequential_vmap
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float

from . import dispatch
from .sparse import Csr, Pattern, checked_connections, inputs_of


def spike_matmul_sparse(
    x: Float[Array, "*batch k"],
    weights: Csr,
    *,
    needed: Bool[Array, "*batch k"] | None = None,
) -> Float[Array, "*batch n"]:
    r"""Computes $y_j = \sum_i x_i W_{ij}$ over the connections of the inputs that are not 0.

    The values of x are free: spikes (0 and 1) and graded inputs are both exact. The gradient of
    the weights, $\partial W_{ij} = x_i\, \partial y_j$, is formed at the connections only, and
    likewise visits only those of active inputs; the gradient of x visits all connections, or those
    of the inputs where it is `needed`. Sums are in the order of inputs (of samples, of
    connections), so that results do not depend on the number of threads.

    Works under `jit`, `scan`, `grad` and `vmap`. Give batches as leading axes where you can; a
    `vmap` over weights goes one by one. Forward-mode and second derivatives need
    SPIKEBIT_KERNELS=reference. To differentiate by the weights, differentiate by their data:
    `jax.grad(lambda data: loss(weights._replace(data=data)))`.

    Args:
        x: inputs or spikes; float32 and float64 are fast, other floats take the reference.
        weights: (k, n), of the dtype of x; see `sparse.csr`.
        needed: where the gradient of x is wanted; elsewhere it is exactly 0. None: everywhere.

    Raises:
        ValueError: if shapes or dtypes do not fit, or SPIKEBIT_KERNELS asks for what there is not.

    >>> from spikebit.kernels.sparse import csr
    >>> w = csr([0, 2, 3], [0, 2, 1], [1.0, 2.0, 3.0], (2, 3))
    >>> spike_matmul_sparse(jnp.array([[1.0, 0.0], [1.0, 2.0]]), w).tolist()
    [[1.0, 0.0, 2.0], [1.0, 6.0, 2.0]]
    """
    checked_connections("spike_matmul_sparse", weights)
    k, n = weights.shape
    if x.ndim < 1 or x.shape[-1] != k or x.dtype != weights.data.dtype:
        raise ValueError(
            f"spike_matmul_sparse got x of shape {x.shape} and {x.dtype} for weights of shape "
            f"{weights.shape} and {weights.data.dtype}: the last axis of x must be as long as the "
            "first of the weights, and both of one dtype."
        )
    if needed is not None and needed.shape != x.shape:
        raise ValueError(
            f"spike_matmul_sparse got needed of shape {needed.shape} for x of shape {x.shape}: "
            "it must have one entry for each entry of x."
        )
    flat = math.prod(x.shape[:-1]), k
    rows, flags = x.reshape(flat), None if needed is None else needed.reshape(flat)
    if dispatch.forced() == "reference" or x.dtype not in (jnp.float32, jnp.float64):
        if flags is not None:
            rows = jnp.where(flags, rows, jax.lax.stop_gradient(rows))
        y = forward_reference(rows, *weights)
    else:
        y = _product(rows, weights.data, weights.pattern, flags)
    return y.reshape(*x.shape[:-1], n)


# Derivatives. x: (rows, k), data: (nnz,), dy: (rows, n), needed: (rows, k) or None.


@jax.custom_vjp
def _product(x, data, pattern, needed):
    del needed
    return _forward(x, data, pattern)


def _product_forward(x, data, pattern, needed):
    values = jax.tree.map(lambda leaf: leaf.value, (pattern, needed))
    kept = (x.value if data.perturbed else None, data.value if x.perturbed else None)
    return _forward(x.value, data.value, values[0]), (*kept, *values)


def _product_backward(kept, dy):
    x, data, pattern, needed = kept  # x (data) is None where that of data (x) is not asked for
    if isinstance(dy, SymbolicZero):
        return None, None, None, None
    dx = None
    if data is not None:
        if needed is None:
            needed = jnp.ones((dy.shape[0], pattern.shape[0]), bool)
        dx = _input_gradient(dy, data, pattern, needed)
    return dx, None if x is None else _weight_gradient(x, dy, pattern), None, None


_product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)


# Each of the three products, and how a batch axis folds into rows.


def _one_by_one(function, in_batched, *args):
    axes = jax.tree.map(lambda batched: 0 if batched else None, tuple(in_batched))
    return jax.vmap(sequential_vmap(function), axes)(*args), True


def _fold(a):
    return a.reshape(a.shape[0] * a.shape[1], a.shape[2])


def forward_reference(
    x: Float[Array, "rows k"], data: Float[Array, " nnz"], pattern: Pattern
) -> Float[Array, "rows n"]:
    """Computes x @ W in jax.numpy: a sum over the connections of each output."""
    sent = x[:, inputs_of(pattern)] * data
    return jax.ops.segment_sum(sent.T, pattern.indices, pattern.shape[1]).T


@custom_vmap
def _forward(x, data, pattern):
    return dispatch.run("spikes_sparse", "forward", forward_reference, x, data, pattern)


@_forward.def_vmap
def _forward_batch(size, in_batched, x, data, pattern):
    if not any(jax.tree.leaves(in_batched[1:])):
        y = _forward(_fold(x), data, pattern)
        return y.reshape(*x.shape[:-1], pattern.shape[1]), True
    return _one_by_one(_forward, in_batched, x, data, pattern)


def weight_gradient_reference(
    x: Float[Array, "rows k"], dy: Float[Array, "rows n"], pattern: Pattern
) -> Float[Array, " nnz"]:
    """Computes x.T @ dy at the connections."""
    return (x[:, inputs_of(pattern)] * dy[:, pattern.indices]).sum(0)


@custom_vmap
def _weight_gradient(x, dy, pattern):
    return dispatch.run(
        "spikes_sparse", "weight_gradient", weight_gradient_reference, x, dy, pattern
    )


@_weight_gradient.def_vmap
def _weight_gradient_batch(size, in_batched, *args):
    return _one_by_one(_weight_gradient, in_batched, *args)


def input_gradient_reference(
    dy: Float[Array, "rows n"],
    data: Float[Array, " nnz"],
    pattern: Pattern,
    needed: Bool[Array, "rows k"],
) -> Float[Array, "rows k"]:
    """Computes dy @ W.T where needed, 0 elsewhere."""
    back = dy[:, pattern.indices] * data
    dx = jax.ops.segment_sum(back.T, inputs_of(pattern), pattern.shape[0]).T
    return jnp.where(needed, dx, 0)


@custom_vmap
def _input_gradient(dy, data, pattern, needed):
    return dispatch.run(
        "spikes_sparse", "input_gradient", input_gradient_reference, dy, data, pattern, needed
    )


@_input_gradient.def_vmap
def _input_gradient_batch(size, in_batched, dy, data, pattern, needed):
    if any(jax.tree.leaves(in_batched[1:3])):
        return _one_by_one(_input_gradient, in_batched, dy, data, pattern, needed)
    dy, needed = (
        a if batched else jnp.broadcast_to(a, (size, *a.shape))
        for a, batched in ((dy, in_batched[0]), (needed, in_batched[3]))
    )
    return _input_gradient(_fold(dy), data, pattern, _fold(needed)).reshape(needed.shape), True
