"""Weights of which two of four are zero: their format, their check and the product with them.

The idea that belongs here: of each aligned four rows of a column at most two are not zero, so that
two numbers and four bits that say where they stand are enough. This file has the format
(`compress24` for any array, `pack24` for quantized matrices), the reference and the public
function; `sparse24_gpu` has the kernel. Which weights become zero is decided elsewhere.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.custom_batching import custom_vmap, sequential_vmap
from jaxtyping import Array, Bool, Float, Shaped, UInt8

from . import dispatch
from .layouts import PackedMatrix, pack, unpack
from .matrix import QuantizedMatrix, dequantize

FLOATS = (jnp.float32, jnp.bfloat16, jnp.float16)


class Compressed24(NamedTuple):
    """An array (k, n) with at most two of four not zero; made by `compress24`.

    Attributes:
        first: (k / 4, n), the upper one of the two numbers that are kept of four rows.
        second: (k / 4, n), the lower one.
        places: (k / 4, n) uint8, bit i set where row i of the four is kept; two of four are.
    """

    first: Shaped[Array, "quads n"]
    second: Shaped[Array, "quads n"]
    places: UInt8[Array, "quads n"]


def fits24(w: Shaped[Array, "k n"], *, transposable: bool = False) -> Bool[Array, ""]:
    """Whether at most two are not zero in each aligned four of a column, and of a row as well.

    A transposable array has the format in both directions: also its transpose, by which gradients
    are multiplied, can be compressed.

    >>> w = jnp.array([[1, 0], [2, 0], [0, 3], [0, 0]])
    >>> bool(fits24(w)), bool(fits24(w.T)), bool(fits24(w, transposable=True))
    (True, False, False)
    """
    k, n = w.shape
    if k % 4 or (transposable and n % 4):
        return jnp.array(False)
    fits = jnp.all(jnp.sum(w.reshape(k // 4, 4, n) != 0, axis=1) <= 2)
    return fits & fits24(w.T) if transposable else fits


def compress24(w: Shaped[Array, "k n"]) -> Compressed24:
    """Keeps two of each four rows: those that are not zero, and the uppermost for what is missing.

    Raises:
        ValueError: if rows are no multiple of four or more than two of four are not zero. Under
            `jit`, where that is not known, the uppermost two are kept.

    >>> compress24(jnp.array([[0.0], [3.0], [0.0], [5.0]])).places.tolist()
    [[10]]
    """
    if w.ndim != 2 or w.shape[0] % 4:
        raise ValueError(
            f"compress24(w) got w of shape {w.shape}: it has two axes, and rows in fours."
        )
    if not isinstance(w, Tracer) and not fits24(w):
        quads = np.count_nonzero(np.asarray(w).reshape(w.shape[0] // 4, 4, -1), axis=1)
        quad, column = np.argwhere(quads > 2)[0]
        raise ValueError(
            f"compress24(w): {quads[quad, column]} of the rows {4 * quad} to {4 * quad + 3} of "
            f"column {column} are not zero, but at most two of four may be "
            f"({np.count_nonzero(quads > 2)} such of {quads.size})."
        )
    quads = w.reshape(w.shape[0] // 4, 4, w.shape[1])
    order = jnp.argsort(quads == 0, axis=1, stable=True)[:, :2]  # those not zero come first
    order = jnp.sort(order, axis=1)
    kept = jnp.take_along_axis(quads, order, axis=1)
    places = jnp.sum(jnp.uint8(1) << order.astype(jnp.uint8), axis=1, dtype=jnp.uint8)
    return Compressed24(kept[:, 0], kept[:, 1], places)


def expand24(c: Compressed24, zero: Any = 0) -> Shaped[Array, "k n"]:
    """The array that `compress24` was given; `zero` stands where nothing is kept."""
    bits = c.places[:, None] >> jnp.arange(4, dtype=jnp.uint8)[None, :, None] & 1
    before = jnp.cumsum(bits, axis=1, dtype=jnp.uint8) - bits  # kept ones above
    numbers = jnp.where(before == 0, c.first[:, None], c.second[:, None])
    numbers = jnp.where(bits == 1, numbers, jnp.asarray(zero, c.first.dtype))
    return numbers.reshape(4 * c.first.shape[0], c.first.shape[1])


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("first", "second", "places", "scale", "table"),
    meta_fields=("bits", "shape"),
)
@dataclasses.dataclass(frozen=True)
class Packed24:
    """A quantized matrix with at most two of four not zero, in the layout `planes`; see `pack24`.

    A pytree, also of what stands for its arrays in `vmap`, `grad` and their like.

    Attributes:
        first: arrays of words of the codes that are the upper ones of the two kept.
        second: words of the lower ones.
        places: words of 4 bits, which say where they stand.
        scale: float32 (groups, n), as in `QuantizedMatrix`.
        table: float32 (2**bits,) or None.
        bits: of a code.
        shape: (k, n) of the matrix.
    """

    first: Any
    second: Any
    places: Any
    scale: Any
    table: Any
    bits: int
    shape: tuple[int, int]

    @property
    def group(self) -> int:
        """The number of rows that share a scale."""
        return self.shape[0] // max(1, self.scale.shape[0])


def pack24(w: QuantizedMatrix) -> Packed24:
    """Packs a quantized matrix of which two of four weights are zero: 3/4 of the bits for 4 bits.

    Zero is the code 2**(bits - 1), or each one for which the table has a zero.

    Raises:
        ValueError: if more than two of four are not zero (see `compress24`), there is a zero point,
            or groups are no multiple of four rows.
    """
    if w.zero is not None or w.group % 4:
        raise ValueError(
            f"pack24(w) got {'a zero point' if w.zero is not None else f'groups of {w.group} rows'}"
            ": weights that are left out are those of symmetric codes or a table, and groups are "
            "multiples of four rows."
        )
    numbers = w.codes.astype(jnp.int32) - (1 << w.bits - 1)
    if w.table is not None:
        numbers = (w.table != 0)[w.codes.astype(jnp.int32)].astype(jnp.int32)
    places = compress24(numbers).places
    order = jnp.argsort((places[:, None] >> jnp.arange(4, dtype=jnp.uint8)[:, None] & 1) == 0, 1)
    kept = jnp.take_along_axis(
        w.codes.reshape(w.shape[0] // 4, 4, w.shape[1]), order[:, :2], axis=1
    )
    first, second, where = (
        pack(QuantizedMatrix(codes, w.scale, bits=bits), "planes").words
        for codes, bits in ((kept[:, 0], w.bits), (kept[:, 1], w.bits), (places, 4))
    )
    return Packed24(first, second, where, w.scale, w.table, w.bits, w.shape)


def unpack24(w: Packed24) -> QuantizedMatrix:
    """The matrix that `pack24` was given, with one and the same code for all zeros left out."""
    shape = w.shape[0] // 4, w.shape[1]
    first, second, places = (
        unpack(PackedMatrix(words, w.scale, None, None, bits, "planes", shape)).codes
        for words, bits in ((w.first, w.bits), (w.second, w.bits), (w.places, 4))
    )
    zero = 1 << w.bits - 1 if w.table is None else jnp.argmin(jnp.abs(w.table))
    codes = expand24(Compressed24(first, second, places), zero)
    return QuantizedMatrix(codes, w.scale, None, w.table, w.bits)


def matmul_reference(x: Float[Array, "rows k"], w: Packed24) -> Float[Array, "rows n"]:
    """Computes x @ dequantize(unpack24(w)) in float32, rounded to the dtype of x at the end."""
    weights = dequantize(unpack24(w))
    return jnp.dot(x.astype(jnp.float32), weights, precision="highest").astype(x.dtype)


def sparse24_matmul(x: Float[Array, "*batch k"], w: Packed24) -> Float[Array, "*batch n"]:
    r"""Computes $y_n = \sum_k x_k w_{kn}$ with weights of which two of four are zero.

    On GPUs codes of 4 bits are read as they are packed, 3 bits a weight, which pays for few rows of
    inputs; all else makes the weights floats first. Sums are in float32. Works under `jit`, `scan`,
    `vmap` and `grad`; differentiable in x and in scale and table of w.

    Args:
        x: float32, bfloat16 or float16.
        w: (k, n) weights, made by `pack24`.

    Raises:
        ValueError: if dtype or shapes do not fit, or SPIKEBIT_KERNELS asks for what there is not.

    >>> from spikebit.kernels.matrix import quantized_matrix
    >>> codes = jnp.array([[8], [15], [8], [0]], jnp.uint8)
    >>> w = pack24(quantized_matrix(codes, jnp.array([0.5])))
    >>> sparse24_matmul(jnp.array([[1.0, 1.0, 1.0, 1.0]]), w).tolist()
    [[-0.5]]
    """
    if not isinstance(w, Packed24):
        raise ValueError(f"sparse24_matmul(x, w) got a {type(w).__name__}: make it by `pack24`.")
    if x.dtype not in FLOATS or x.ndim < 1 or x.shape[-1] != w.shape[0]:
        raise ValueError(
            f"sparse24_matmul(x, w) got x of shape {x.shape} and {x.dtype} for weights of shape "
            f"{w.shape}: x is float32, bfloat16 or float16, and its last axis as long as the first "
            "of the two of w."
        )
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    if dispatch.forced() == "reference":
        y = matmul_reference(rows, w)
    else:
        y = _product(rows, (w.scale, w.table), w)
    return y.reshape(*x.shape[:-1], w.shape[1])


def _with_floats(w, floats):
    return dataclasses.replace(w, scale=floats[0], table=floats[1])


@jax.custom_vjp
def _product(x, floats, w):
    return _forward(x, _with_floats(w, floats))


def _product_forward(x, floats, w):
    return _product(x, floats, w), (x, floats, w)


def _product_backward(kept, dy):
    x, floats, w = kept
    _, pull = jax.vjp(lambda x, floats: matmul_reference(x, _with_floats(w, floats)), x, floats)
    return *pull(dy), None


_product.defvjp(_product_forward, _product_backward)


@custom_vmap
def _forward(x, w):
    return dispatch.run("sparse24", "matmul", matmul_reference, x, w)


@_forward.def_vmap
def _forward_batch(size, in_batched, x, w):
    if in_batched[0] and not any(jax.tree.leaves(in_batched[1])):
        y = _forward(x.reshape(size * x.shape[1], x.shape[2]), w)
        return y.reshape(size, x.shape[1], w.shape[1]), True
    axes = jax.tree.map(lambda batched: 0 if batched else None, tuple(in_batched))
    return jax.vmap(sequential_vmap(_forward), axes)(x, w), True
