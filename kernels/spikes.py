"""Spikes x weights: the product of a mostly-zero array with a weight matrix, and its gradient.

The idea that belongs here: do work only where there is an event. This file has the reference, the
public function and its derivatives; `spikes_cpu` and `spikes_gpu` have the kernels, `dispatch`
decides between them. What a spike or a weight means (cells, formats) does not belong here.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float

from . import dispatch

_SMALL = 1 << 17  # multiplications below which looking for events costs more than it can save


def spike_matmul_reference(
    x: Float[Array, "*batch k"],
    w: Float[Array, "k n"],
    needed: Bool[Array, "*batch k"] | None = None,
) -> Float[Array, "*batch n"]:
    """Computes x @ w in jax.numpy: what `spike_matmul` equals up to summation order.

    Differentiable any number of times, forward and reverse; x has a derivative only where `needed`.
    """
    if needed is not None:
        x = jnp.where(needed, x, jax.lax.stop_gradient(x))
    return jnp.dot(x, w)


def spike_matmul(
    x: Float[Array, "*batch k"],
    w: Float[Array, "k n"],
    *,
    needed: Bool[Array, "*batch k"] | None = None,
) -> Float[Array, "*batch n"]:
    r"""Computes $y = x w$ for an x that is mostly zero, at a cost that falls with its density.

    The values of x are free: spikes (0 and 1) and graded inputs are both exact. On CPUs the
    product adds rows of w where x is non-zero, unless a sample of x shows so many non-zeros
    that the dense product is faster; the gradient $\partial w = x^T \partial y$ likewise. The
    gradient $\partial x = \partial y\, w^T$ is dense, or computed only where `needed`.

    Works under `jit`, `scan`, `checkpoint`, `grad`, `jacrev` and `vmap`. Give batches as leading
    axes where you can: with `vmap` over examples, the gradient of w is formed for each example.
    Forward-mode and second derivatives need SPIKEBIT_KERNELS=reference (arrays so small that
    events cannot pay take the reference anyway). A weight that is infinite or NaN reaches an
    output only through a non-zero of x on the event-driven path, always on the dense one.

    Args:
        x: inputs or spikes; float32 and float64 are fast, other floats take the dense product.
        w: weights, of the dtype of x; row i holds what input i sends to each of the n outputs.
        needed: where the gradient of x is wanted, for instance where the surrogate derivative
            of the neuron that made x is non-zero; elsewhere it is exactly 0. None: everywhere.

    Raises:
        ValueError: if the shapes do not fit, or SPIKEBIT_KERNELS asks for what there is not.

    >>> x = jnp.array([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    >>> spike_matmul(x, jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])).tolist()
    [[3.0, 4.0], [0.0, 0.0]]
    """
    if x.ndim < 1 or w.ndim != 2 or x.shape[-1] != w.shape[0]:
        raise ValueError(
            f"spike_matmul(x, w) got x of shape {x.shape} and w of shape {w.shape}: "
            "the last axis of x must be as long as the first of the two axes of w."
        )
    if needed is not None and needed.shape != x.shape:
        raise ValueError(
            f"spike_matmul got needed of shape {needed.shape} for x of shape {x.shape}: "
            "it must have one entry for each entry of x."
        )
    forced = dispatch.forced()
    fast = x.dtype == w.dtype and x.dtype in (jnp.float32, jnp.float64)
    if forced == "reference" or not fast or _size(x, w) < _SMALL:
        return spike_matmul_reference(x, w, needed)
    rows = None if needed is None else needed.reshape(-1, x.shape[-1])
    y = _product(x.reshape(-1, x.shape[-1]), w, rows)
    return y.reshape(*x.shape[:-1], w.shape[1])


def _size(x, w):
    return math.prod(x.shape) * w.shape[1]


# Derivatives. x: (rows, k), w: (k, n), dy: (rows, n), needed: (rows, k) or None.


@jax.custom_vjp
def _product(x, w, needed):
    del needed
    return _forward(x, w)


def _product_forward(x, w, needed):
    kept = (x.value if w.perturbed else None, w.value if x.perturbed else None)
    return _forward(x.value, w.value), (*kept, None if needed is None else needed.value)


def _product_backward(kept, dy):
    x, w, needed = kept  # x (w) is None where the gradient of w (x) is not asked for
    if isinstance(dy, SymbolicZero):
        return None, None, None
    if w is None:
        dx = None
    else:
        dx = jnp.dot(dy, w.T) if needed is None else _input_gradient(dy, w, needed)
    return dx, None if x is None else _weight_gradient(x, dy), None


_product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)


# Each of the three products, and how a batch axis folds into rows or columns.


def _one_by_one(function: Callable, in_batched, *args):
    def one(batched):
        rest = iter(batched)
        return function(*(next(rest) if b else a for a, b in zip(args, in_batched, strict=True)))

    return jax.lax.map(one, [a for a, b in zip(args, in_batched, strict=True) if b]), True


def _fold_columns(a):  # (batch, rows, n) -> (rows, batch * n)
    return jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1)


def _unfold_columns(a, batch):
    return jnp.moveaxis(a.reshape(a.shape[0], batch, -1), 1, 0)


def forward_reference(x: Float[Array, "rows k"], w: Float[Array, "k n"]) -> Float[Array, "rows n"]:
    """Computes x @ w."""
    return jnp.dot(x, w)


@custom_vmap
def _forward(x, w):
    return dispatch.run("spikes", "forward", forward_reference, x, w)


@_forward.def_vmap
def _forward_batch(size, in_batched, x, w):
    if in_batched == [True, False]:
        y = _forward(x.reshape(-1, x.shape[-1]), w)
        return y.reshape(*x.shape[:-1], w.shape[1]), True
    if in_batched == [False, True]:
        return _unfold_columns(_forward(x, _fold_columns(w)), size), True
    return _one_by_one(_forward, in_batched, x, w)


def weight_gradient_reference(
    x: Float[Array, "rows k"], dy: Float[Array, "rows n"]
) -> Float[Array, "k n"]:
    """Computes x.T @ dy."""
    return jnp.dot(x.T, dy)


@custom_vmap
def _weight_gradient(x, dy):
    return dispatch.run("spikes", "weight_gradient", weight_gradient_reference, x, dy)


@_weight_gradient.def_vmap
def _weight_gradient_batch(size, in_batched, x, dy):
    if in_batched == [False, True]:
        return _unfold_columns(_weight_gradient(x, _fold_columns(dy)), size), True
    return _one_by_one(_weight_gradient, in_batched, x, dy)


def input_gradient_reference(
    dy: Float[Array, "rows n"], w: Float[Array, "k n"], needed: Bool[Array, "rows k"]
) -> Float[Array, "rows k"]:
    """Computes dy @ w.T where needed, 0 elsewhere."""
    return jnp.where(needed, jnp.dot(dy, w.T), 0)


@custom_vmap
def _input_gradient(dy, w, needed):
    return dispatch.run("spikes", "input_gradient", input_gradient_reference, dy, w, needed)


@_input_gradient.def_vmap
def _input_gradient_batch(size, in_batched, dy, w, needed):
    if in_batched[1]:
        return _one_by_one(_input_gradient, in_batched, dy, w, needed)
    dy, needed = (
        a if batched else jnp.broadcast_to(a, (size, *a.shape))
        for a, batched in ((dy, in_batched[0]), (needed, in_batched[2]))
    )
    dx = _input_gradient(dy.reshape(-1, dy.shape[-1]), w, needed.reshape(-1, needed.shape[-1]))
    return dx.reshape(needed.shape), True
