"""Float inputs x low-bit weights: the product with weights that are packed codes, and its gradient.

The idea that belongs here: inputs stay floats, weights are read as codes, and the product is the
one with the weights they stand for. This file has the reference, the public function and its
derivatives; `low_bit_cpu` and `low_bit_gpu` have the kernels, `dispatch` decides between them.
Products of integer inputs stand in `integer`, what is packed how in `layouts`.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap, sequential_vmap
from jaxtyping import Array, Float

from . import dispatch
from .layouts import PackedMatrix, checked_packed, unpack
from .matrix import dequantize

FLOATS = (jnp.float32, jnp.bfloat16, jnp.float16)


def matmul_reference(x: Float[Array, "rows k"], w: PackedMatrix) -> Float[Array, "rows n"]:
    """Computes x @ dequantize(w) in float32, rounded to the dtype of x at the end."""
    weights = dequantize(unpack(w))
    return jnp.dot(x.astype(jnp.float32), weights, precision="highest").astype(x.dtype)


def low_bit_matmul(x: Float[Array, "*batch k"], w: PackedMatrix) -> Float[Array, "*batch n"]:
    r"""Computes $y_n = \sum_k x_k (q_{kn} - z_{gn}) s_{gn}$, or with $T[q_{kn}]$ for $q - z$.

    The weights are never there as floats: what is read from memory are their codes. Sums are in
    float32 and rounded once, to the dtype of x. On CPUs the kernel adds single products of x and
    exact weights.

    Works under `jit`, `scan`, `grad` and `vmap`. The gradient in x is that of the product; w has
    gradients in its scale, zero and table, which are formed with the weights as floats. Batches
    are best given as leading axes. Forward-mode and second derivatives need
    SPIKEBIT_KERNELS=reference.

    Args:
        x: float32, bfloat16 or float16.
        w: (k, n) weights, made by `pack`; a layout that the kernel of the platform does not read
            takes the reference.

    Raises:
        ValueError: if dtype or shapes do not fit, or SPIKEBIT_KERNELS asks for what there is not.

    >>> from spikebit.kernels.layouts import pack
    >>> from spikebit.kernels.matrix import quantized_matrix
    >>> codes = jnp.array([[0, 9], [15, 8]], jnp.uint8)
    >>> w = pack(quantized_matrix(codes, jnp.array([0.5, 2.0])))
    >>> low_bit_matmul(jnp.array([[1.0, 0.0], [1.0, 1.0]]), w).tolist()
    [[-4.0, 2.0], [-0.5, 2.0]]
    """
    w = checked_packed("low_bit_matmul(x, w)", w)
    if x.dtype not in FLOATS or x.ndim < 1 or x.shape[-1] != w.shape[0]:
        raise ValueError(
            f"low_bit_matmul(x, w) got x of shape {x.shape} and {x.dtype} for weights of shape "
            f"{w.shape}: x is float32, bfloat16 or float16, and its last axis as long as the "
            "first of the two axes of w."
        )
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    if dispatch.forced() == "reference":
        y = matmul_reference(rows, w)
    else:
        y = _product(rows, (w.scale, w.zero, w.table), w)
    return y.reshape(*x.shape[:-1], w.shape[1])


# Derivatives. x: (rows, k), floats: (scale, zero, table) of w, which has the codes.


def _with_floats(w, floats):
    return dataclasses.replace(w, scale=floats[0], zero=floats[1], table=floats[2])


@jax.custom_vjp
def _product(x, floats, w):
    return _forward(x, _with_floats(w, floats))


def _product_forward(x, floats, w):
    w = jax.tree.map(lambda leaf: leaf.value, w)
    wanted = any(leaf.perturbed for leaf in jax.tree.leaves(floats))
    return _forward(x.value, w), (x.value if wanted else None, x.value[:0], w)


def _product_backward(kept, dy):
    x, empty, w = kept  # x is None where no gradient of w is asked for
    if isinstance(dy, jax.custom_derivatives.SymbolicZero):
        return None, None, None
    if x is None:
        dx = jnp.dot(dy.astype(jnp.float32), dequantize(unpack(w)).T, precision="highest")
        return dx.astype(empty.dtype), None, None
    floats = (w.scale, w.zero, w.table)
    _, pull = jax.vjp(lambda x, floats: matmul_reference(x, _with_floats(w, floats)), x, floats)
    return *pull(dy), None


_product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)


# Batches: rows fold into rows, weights come one by one.


@custom_vmap
def _forward(x, w):
    return dispatch.run("low_bit", "matmul", matmul_reference, x, w)


@_forward.def_vmap
def _forward_batch(size, in_batched, x, w):
    if not any(jax.tree.leaves(in_batched[1])):
        y = _forward(x.reshape(size * x.shape[1], x.shape[2]), w)
        return y.reshape(*x.shape[:-1], w.shape[1]), True
    axes = jax.tree.map(lambda batched: 0 if batched else None, tuple(in_batched))
    return jax.vmap(sequential_vmap(_forward), axes)(x, w), True
