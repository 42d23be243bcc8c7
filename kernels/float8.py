"""Inputs of 8-bit floats x low-bit weights: the product with scales for each row and each group.

The idea that belongs here: whole codes of 4 bits are exact in e4m3, so that instructions for 8-bit
floats multiply them with inputs of 8 bits, and scales come after the sums. This file has the
reference, the public function and its derivatives; `float8_cpu` and `float8_gpu` have the
kernels. Products of integer inputs stand in `integer`.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap, sequential_vmap
from jaxtyping import Array, Float8e4m3fn, Float32

from . import dispatch, low_bit
from .layouts import PackedMatrix, checked_packed


def matmul_reference(
    x_codes: Float8e4m3fn[Array, "rows k"], x_scale: Float32[Array, "rows 1"], w: PackedMatrix
) -> Float32[Array, "rows n"]:
    """Computes x_scale * (x_codes @ dequantize(w)) in float32."""
    return low_bit.matmul_reference(x_codes.astype(jnp.float32), w) * x_scale


def float8_matmul(
    x_codes: Float8e4m3fn[Array, "*batch k"], x_scale: Float32[Array, "*batch 1"], w: PackedMatrix
) -> Float32[Array, "*batch n"]:
    r"""Computes $y_{mn} = x_m \sum_k c_{mk} (q_{kn} - z_{gn}) s_{gn}$, c being x_codes.

    With a table, $T[q_{kn}]$ takes the place of $q_{kn} - z_{gn}$. Sums and scales are in
    float32. Codes of 4 bits without a table take the instructions of GPUs for 8-bit floats, of
    which some keep no more than 14 bits of a sum within a group; others, and tables, those for
    bfloat16. Works under `jit`, `scan`, `vmap` and `grad`; differentiable in x_scale and in scale,
    zero and table of w. Batches are leading axes.

    Args:
        x_codes: float8_e4m3fn.
        x_scale: one number a row.
        w: (k, n) weights, made by `pack`.

    Raises:
        ValueError: if dtypes or shapes do not fit, or SPIKEBIT_KERNELS asks for what there is not.

    References:
        FireQ: Fast INT4-FP8 Kernel and RoPE-aware Quantization for LLM Inference Acceleration,
        arXiv:2505.20839.

    >>> from spikebit.kernels.layouts import pack
    >>> from spikebit.kernels.matrix import quantized_matrix
    >>> w = pack(quantized_matrix(jnp.array([[0], [15]], jnp.uint8), jnp.array([0.5])))
    >>> x = jnp.array([[1.5, 0.0], [16.0, 16.0]], jnp.float8_e4m3fn)
    >>> float8_matmul(x, jnp.array([[1.0], [0.5]]), w).tolist()
    [[-6.0], [-4.0]]
    """
    who = "float8_matmul(x_codes, x_scale, w)"
    w = checked_packed(who, w)
    fits = x_codes.ndim >= 1 and x_codes.shape[-1] == w.shape[0]
    if x_codes.dtype != jnp.float8_e4m3fn or not fits:
        raise ValueError(
            f"{who} got x_codes of shape {x_codes.shape} and {x_codes.dtype} for weights of shape "
            f"{w.shape}: they are float8_e4m3fn, and the last axis as long as the first of the two "
            "of w."
        )
    if x_scale.dtype != jnp.float32 or x_scale.shape != (*x_codes.shape[:-1], 1):
        raise ValueError(
            f"{who} got x_scale of shape {x_scale.shape} and {x_scale.dtype} for x_codes of shape "
            f"{x_codes.shape}: it is float32, and its last axis has one number."
        )
    rows = math.prod(x_codes.shape[:-1])
    x, s = x_codes.reshape(rows, x_codes.shape[-1]), x_scale.reshape(rows, 1)
    if dispatch.forced() == "reference":
        y = matmul_reference(x, s, w)
    else:
        y = _product((s, w.scale, w.zero, w.table), jax.lax.stop_gradient(x), w)
    return y.reshape(*x_codes.shape[:-1], w.shape[1])


def _with_floats(w, floats):
    return dataclasses.replace(w, scale=floats[1], zero=floats[2], table=floats[3])


@jax.custom_vjp
def _product(floats, x, w):
    return _forward(x, floats[0], _with_floats(w, floats))


def _product_forward(floats, x, w):
    return _product(floats, x, w), (floats, x, w)


def _product_backward(kept, dy):
    floats, x, w = kept
    _, pull = jax.vjp(lambda f: matmul_reference(x, f[0], _with_floats(w, f)), floats)
    return *pull(dy), None, None


_product.defvjp(_product_forward, _product_backward)


# Batches: rows fold into rows, all else goes one by one.


@custom_vmap
def _forward(x, scale, w):
    return dispatch.run("float8", "matmul", matmul_reference, x, scale, w)


@_forward.def_vmap
def _forward_batch(size, in_batched, x, scale, w):
    if in_batched[0] and in_batched[1] and not any(jax.tree.leaves(in_batched[2])):
        rows = size * x.shape[1]
        y = _forward(x.reshape(rows, x.shape[2]), scale.reshape(rows, 1), w)
        return y.reshape(size, x.shape[1], w.shape[1]), True
    axes = jax.tree.map(lambda batched: 0 if batched else None, tuple(in_batched))
    return jax.vmap(sequential_vmap(_forward), axes)(x, scale, w), True
