"""Spikes x low-bit weights: rows of codes, added where there is an event.

The idea that belongs here: a binary input needs no multiplication, so codes are added up as whole
numbers and scaled once a group; nothing of a row without an event is read. This file has the
reference, the public function and its derivatives; `spikes_low_bit_cpu` and `spikes_low_bit_gpu`
have the kernels. Float weights stand in `spikes`, dense inputs in `low_bit`.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap, sequential_vmap
from jaxtyping import Array, Bool, Float, Float32

from . import dispatch
from .layouts import PackedMatrix, checked_packed, unpack
from .matrix import dequantize
from .spike_bits import SpikeBits, checked_bits, unpack_spikes


def spike_matmul_low_bit_reference(
    x: Float32[Array, "*batch k"], w: PackedMatrix
) -> Float32[Array, "*batch n"]:
    """Computes x @ w in jax.numpy; differentiable in x and in scales, zero points and table."""
    return jnp.dot(x, dequantize(unpack(w)))


def spike_matmul_low_bit(
    x: Bool[Array, "*batch k"] | Float[Array, "*batch k"] | SpikeBits, w: PackedMatrix
) -> Float32[Array, "*batch n"]:
    r"""Computes $y_n = \sum_k x_k (q_{kn} - z_{gn}) s_{gn}$ at a cost that falls with the events.

    Binary inputs (bool or packed bits) add codes as whole numbers, exactly; graded ones multiply
    in float32. On CPUs only the rows of events are read, 1 byte a weight or half of one. Other
    layouts than `rows`, and codes with a table, take the reference.

    Works under `jit`, `scan`, `grad` and `vmap` (over inputs: give batches as leading axes where
    you can). The gradient of x is $\partial y\, W^T$, dense; scales, zero points and tables have
    theirs too, codes have none. Forward-mode derivatives need SPIKEBIT_KERNELS=reference.

    Args:
        x: spikes; floats where graded or where a gradient is wanted.
        w: packed, best with `pack(matrix, "rows")`.

    Raises:
        ValueError: if the shapes do not fit, or SPIKEBIT_KERNELS asks for what there is not.

    >>> from spikebit.kernels import pack, quantized_matrix
    >>> w = pack(quantized_matrix(jnp.array([[9], [1]], jnp.uint8), jnp.array([0.5])), "rows")
    >>> spike_matmul_low_bit(jnp.array([[True, False], [True, True]]), w).tolist()
    [[0.5], [-3.0]]
    """
    w = checked_packed("spike_matmul_low_bit(x, w)", w)
    if isinstance(x, SpikeBits):
        x = checked_bits("spike_matmul_low_bit(x, w)", x)
    shape = x.shape
    if len(shape) < 1 or shape[-1] != w.shape[0]:
        raise ValueError(
            f"spike_matmul_low_bit(x, w) got x of shape {shape} and w of shape {w.shape}: the last "
            "axis of x must be as long as the first of the two axes of w."
        )
    rows, other = _rows(x), w.layout != "rows" or w.table is not None
    if dispatch.forced() == "reference" or other or 0 in (*shape, *w.shape):
        y = spike_matmul_low_bit_reference(_numbers(rows), w)
    else:
        y = _product(rows, (w.scale, w.zero), w)
    return y.reshape(*shape[:-1], w.shape[1])


def _rows(x):
    count = math.prod(x.shape[:-1])
    if isinstance(x, SpikeBits):
        return SpikeBits(x.words.reshape(count, x.words.shape[-1]), x.size)
    rows = x.reshape(count, x.shape[-1])
    return rows if x.dtype == jnp.bool_ else rows.astype(jnp.float32)


def _numbers(rows: Array | SpikeBits) -> Float32[Array, "rows k"]:
    spikes = unpack_spikes(rows) if isinstance(rows, SpikeBits) else rows
    return spikes.astype(jnp.float32)


# Derivatives. x: (rows, k), floats: (scale, zero) of w, which has the codes.


def _with_floats(w, floats):
    return dataclasses.replace(w, scale=floats[0], zero=floats[1])


@jax.custom_vjp
def _product(x, floats, w):
    return _forward(x, _with_floats(w, floats))


def _product_forward(x, floats, w):
    return _product(x, floats, w), (x, floats, w)


def _product_backward(kept, dy):
    x, floats, w = kept
    _, pull = jax.vjp(
        lambda x, floats: spike_matmul_low_bit_reference(x, _with_floats(w, floats)),
        _numbers(x),
        floats,
    )
    dx, dfloats = pull(dy)
    graded = not isinstance(x, SpikeBits) and x.dtype != jnp.bool_
    return dx if graded else None, dfloats, None


_product.defvjp(_product_forward, _product_backward)


# Batches: rows fold into rows, weights come one by one.


def _reference(x, w):
    return spike_matmul_low_bit_reference(_numbers(x), w)


@custom_vmap
def _forward(x, w):
    return dispatch.run("spikes_low_bit", "forward", _reference, x, w)


@_forward.def_vmap
def _forward_batch(size, in_batched, x, w):
    if not any(jax.tree.leaves(in_batched[1])):
        folded = jax.tree.map(lambda a: a.reshape(size * a.shape[1], a.shape[2]), x)
        return _forward(folded, w).reshape(size, x.shape[1], w.shape[1]), True
    axes = jax.tree.map(lambda batched: 0 if batched else None, tuple(in_batched))
    return jax.vmap(sequential_vmap(_forward), axes)(x, w), True
