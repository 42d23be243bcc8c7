"""Integer inputs x low-bit weights: int8 products with scales for each row and each group.

The idea that belongs here: a product of two quantized matrices is a sum of whole numbers, and
scales come after it. This file has the reference, the public function and its derivatives;
`integer_cpu` and `integer_gpu` have the kernels, `dispatch` decides between them. Inputs come
from `quantize_rows`; products of float inputs stand in `low_bit`.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.custom_batching import custom_vmap, sequential_vmap
from jaxtyping import Array, Float32, Int8, Int32

from . import dispatch
from .layouts import PackedMatrix, checked_packed, unpack
from .matrix import check_finite

_ROWS = 1 << 16  # of a group: 2**16 * 128 * 255 is below 2**31


def two_level_scales(
    scale: Float32[Array, "groups n"], reach: int
) -> tuple[Int8[Array, "groups n"], Float32[Array, " n"]]:
    r"""Splits scales into whole multipliers and one scale a column: $s_{gn} \approx m_{gn} c_n$.

    A product may then multiply codes by m in int8 and add up all groups as integers, since
    $m_{gn} |q - z| \le 127$. Multipliers are rounded to nearest, at least 1 for scales that are
    not 0, so that scales below $c_n / 2$ grow; a column of zeros has c = 1.

    Args:
        scale: of a quantized matrix.
        reach: the largest |q - z| of its codes, 8 for symmetric codes of 4 bits; 1 to 127.

    Raises:
        ValueError: another reach, scales of another shape, or ones that are not finite where they
            are known.

    References:
        Dual Grained Quantization, arXiv:2310.04836.

    >>> multiplier, column = two_level_scales(jnp.array([[0.5], [3.75]]), 8)
    >>> multiplier.tolist(), column.tolist()
    ([[2], [15]], [0.25])
    """
    if not 1 <= reach <= 127:
        raise ValueError(f"two_level_scales(reach={reach}): a difference of codes is 1 to 127.")
    if scale.ndim != 2 or 0 in scale.shape:
        raise ValueError(
            f"two_level_scales: scale is of shape {scale.shape}; it is (groups, n), not empty."
        )
    check_finite("two_level_scales", "scale", scale)
    steps = 127 // reach
    column = jnp.max(jnp.abs(scale), axis=0) / steps
    column = jnp.where(column < jnp.finfo(jnp.float32).tiny, 1, column)
    ratio = scale / column
    multiplier = jnp.sign(ratio) * jnp.clip(jnp.round(jnp.abs(ratio)), 1, steps)
    return multiplier.astype(jnp.int8), column


class Parts(NamedTuple):
    """Weights as whole numbers with what is left for the floats: $(v - z - f) s$.

    Attributes:
        values: v, for each code one that fits uint8.
        zero: z, whole numbers from 0 to 255: v - z is exact, and a sum of 2**16 fits int32.
        rest: f, what z misses of the zero point; None: nothing.
        scale: s.
    """

    values: Int32[Array, " codes"]
    zero: Int32[Array, "groups n"]
    rest: Float32[Array, "groups n"] | None
    scale: Float32[Array, "groups n"]


def parts(w: PackedMatrix) -> Parts:
    """What kernels multiply by; a table that is not in halves makes all scales NaN."""
    if w.table is not None:
        doubled = jnp.round(2 * w.table)
        whole = jnp.all((doubled == 2 * w.table) & (jnp.abs(doubled) <= 127))
        scale = w.scale * jnp.where(whole, jnp.float32(0.5), jnp.float32(jnp.nan))
        values = jnp.where(whole, doubled, 0).astype(jnp.int32) + 128
        return Parts(values, jnp.full(w.scale.shape, 128, jnp.int32), None, scale)
    values = jnp.arange(1 << w.bits, dtype=jnp.int32)
    if w.zero is None:
        zero = jnp.full(w.scale.shape, 1 << w.bits - 1, jnp.int32)
        return Parts(values, zero, None, w.scale)
    nearest = jnp.clip(jnp.round(jax.lax.stop_gradient(w.zero)), 0, (1 << w.bits) - 1)
    return Parts(values, nearest.astype(jnp.int32), w.zero - nearest, w.scale)


def matmul_reference(
    x_codes: Int8[Array, "rows k"], x_scale: Float32[Array, "rows 1"], w: PackedMatrix
) -> Float32[Array, "rows n"]:
    r"""Computes $x_m \sum_g s_{gn} (\sum_k q_{mk} (v_{kn} - z_{gn}) - f_{gn} \sum_k q_{mk})$.

    The two sums over the k of a group are exact, in int32; the rest is in float32.
    """
    values, zero, rest, scale = parts(w)
    rows, (groups, n) = x_codes.shape[0], scale.shape
    x = jnp.moveaxis(x_codes.astype(jnp.int32).reshape(rows, groups, w.group), 1, 0)
    codes = unpack(w).codes.reshape(groups, w.group, n)

    def add_group(total, group):
        x, codes, zero, rest, scale = group
        exact = jnp.dot(x, values[codes.astype(jnp.int32)] - zero)
        part = exact.astype(jnp.float32)
        if rest is not None:
            part -= jnp.sum(x, axis=1, keepdims=True).astype(jnp.float32) * rest
        return total + part * scale, None

    start = jnp.zeros((rows, n), jnp.float32)
    total, _ = jax.lax.scan(add_group, start, (x, codes, zero, rest, scale))
    return total * x_scale


def integer_matmul(
    x_codes: Int8[Array, "*batch k"], x_scale: Float32[Array, "*batch 1"], w: PackedMatrix
) -> Float32[Array, "*batch n"]:
    r"""Computes $y_{mn} = x_m \sum_g s_{gn} \sum_{k \in g} q_{mk} (q_{kn} - z_{gn})$, in integers.

    Sums within a group are exact, whatever the width of the codes; scales are applied in
    float32. Zero points need not be whole. A table must be in halves (that of E2M1, as in MXFP4
    and NVFP4, is): T[q] takes the place of q - z.

    Works under `jit`, `scan`, `grad` and `vmap`; differentiable in x_scale and in the scale and
    the zero of w. Batches are best given as leading axes.

    Args:
        x_codes: int8, all 256 values allowed; `quantize_rows` makes codes and scales.
        x_scale: one number a row; a NaN makes its row of the result NaN.
        w: (k, n) weights, made by `pack`; a layout that the kernel of the platform does not read
            takes the reference.

    Raises:
        ValueError: if dtypes or shapes do not fit, a table is not in halves of at most 63.5, a
            group has more than 65,536 rows, or SPIKEBIT_KERNELS asks for what there is not. Under
            `jit`, where the numbers of a table are not known, the result is NaN instead.

    >>> from spikebit.kernels.layouts import pack
    >>> from spikebit.kernels.matrix import quantized_matrix
    >>> w = pack(quantized_matrix(jnp.array([[0], [15]], jnp.uint8), jnp.array([0.5])))
    >>> x = jnp.array([[127, 0], [100, 100]], jnp.int8)
    >>> integer_matmul(x, jnp.array([[1.0], [0.01]]), w).tolist()
    [[-508.0], [-0.5]]
    """
    who = "integer_matmul(x_codes, x_scale, w)"
    w = checked_packed(who, w)
    if x_codes.dtype != jnp.int8 or x_codes.ndim < 1 or x_codes.shape[-1] != w.shape[0]:
        raise ValueError(
            f"{who} got x_codes of shape {x_codes.shape} and {x_codes.dtype} for weights of shape "
            f"{w.shape}: they are int8, and the last axis as long as the first of the two of w."
        )
    if x_scale.dtype != jnp.float32 or x_scale.shape != (*x_codes.shape[:-1], 1):
        raise ValueError(
            f"{who} got x_scale of shape {x_scale.shape} and {x_scale.dtype} for x_codes of shape "
            f"{x_codes.shape}: it is float32, and its last axis has one number."
        )
    if w.group > _ROWS:
        raise ValueError(
            f"{who} got a group of {w.group} rows: sums of more than {_ROWS} can leave int32; "
            "give w more groups."
        )
    if w.table is not None and not isinstance(w.table, Tracer):
        doubled = 2 * np.asarray(w.table)
        if not ((doubled == np.round(doubled)) & (abs(doubled) <= 127)).all():
            raise ValueError(
                f"{who} got the table {np.asarray(w.table).tolist()}: integer products are for "
                "tables in halves, of at most 63.5; low_bit_matmul takes any."
            )
    rows = math.prod(x_codes.shape[:-1])
    x, s = x_codes.reshape(rows, x_codes.shape[-1]), x_scale.reshape(rows, 1)
    if dispatch.forced() == "reference":
        y = matmul_reference(x, s, w)
    else:
        y = _product((s, w.scale, w.zero), x, w)
    return y.reshape(*x_codes.shape[:-1], w.shape[1])


# Derivatives. floats: (x_scale, scale, zero), the latter two of w, which has codes and table.


def _reference_of_floats(floats, x, w):
    return matmul_reference(x, floats[0], dataclasses.replace(w, scale=floats[1], zero=floats[2]))


@jax.custom_vjp
def _product(floats, x, w):
    return _forward(x, floats[0], dataclasses.replace(w, scale=floats[1], zero=floats[2]))


def _product_forward(floats, x, w):
    return _product(floats, x, w), (floats, x, w)


def _product_backward(kept, dy):
    floats, x, w = kept
    _, pull = jax.vjp(lambda floats: _reference_of_floats(floats, x, w), floats)
    return *pull(dy), None, None


_product.defvjp(_product_forward, _product_backward)


# Batches: rows fold into rows, weights come one by one.


@custom_vmap
def _forward(x_codes, x_scale, w):
    return dispatch.run("integer", "matmul", matmul_reference, x_codes, x_scale, w)


@_forward.def_vmap
def _forward_batch(size, in_batched, x_codes, x_scale, w):
    if in_batched[0] and in_batched[1] and not any(jax.tree.leaves(in_batched[2])):
        rows, k = size * x_codes.shape[1], x_codes.shape[2]
        y = _forward(x_codes.reshape(rows, k), x_scale.reshape(rows, 1), w)
        return y.reshape(*x_codes.shape[:-1], w.shape[1]), True
    axes = jax.tree.map(lambda batched: 0 if batched else None, tuple(in_batched))
    return jax.vmap(sequential_vmap(_forward), axes)(x_codes, x_scale, w), True
