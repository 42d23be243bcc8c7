r"""Walsh-Hadamard transforms of the last axis, rotations of blocks, and the two with quantization.

The idea that belongs here: a rotation spreads outliers over a row before it is rounded, and has its
inverse where the weights are made. This file has the matrices, the references in jax.numpy, the
public functions and their derivatives; `hadamard_cpu` and `hadamard_gpu` have the kernels. How a
row is coded stands in `quantize_rows`; which rotation helps a model does not belong here.

The convention: $H_n = H_b \otimes H_{2^p}$ for n = 2^p b. Neighbours are added and subtracted
first; the factor $H_{2^p}$ is Sylvester's, $H_b$ of order 12, 20, 28 or 36 Paley's. Order 40 is
$H_{20} \otimes H_2$. Transforms are divided by $\sqrt{n}$: orthogonal matrices.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32, Int8

from . import dispatch
from .quantize_rows import Codes, QuantizedRows, checked_codes, rows_reference

#: Orders of the factor that is not a power of two. 40 is the power of two 2 times 20.
ORDERS = (1, 12, 20, 28, 36)
BLOCKS = (32, 64, 128)


def split_order(who: str, n: int) -> tuple[int, int]:
    """B and 2^p with n = 2^p b.

    Raises:
        ValueError: in the name of `who`, if there is no such transform.
    """
    for b in ORDERS:
        power, rest = divmod(n, b)
        if n > 0 and rest == 0 and power & (power - 1) == 0:
            return b, power
    raise ValueError(
        f"{who}: the last axis has {n} numbers; a Hadamard transform has 2^p times 1, 12, 20, 28, "
        "36 or 40: pad the axis, or rotate blocks of it by `rotate_blocks`."
    )


@functools.cache
def _paley(order: int) -> np.ndarray:
    """A Hadamard matrix from the squares of a prime field.

    With q = 3 mod 4 elements, Paley's first: order q + 1, 1 + S with S skew. With q = 1 mod 4, his
    second: order 2 (q + 1), C (x) H_2 and (1, -1; -1, -1) on the diagonal, with C symmetric.
    """
    q = order - 1 if order in (12, 20) else order // 2 - 1
    squares = {i * i % q for i in range(1, q)}
    difference = (np.arange(q)[:, None] - np.arange(q)) % q
    jacobsthal = np.where(difference == 0, 0, np.where(np.isin(difference, list(squares)), 1, -1))
    border = np.zeros((q + 1, q + 1), int)
    border[0, 1:], border[1:, 1:] = 1, jacobsthal
    if order == q + 1:
        border[1:, 0] = -1
        return border + np.eye(q + 1, dtype=int)
    border[1:, 0] = 1
    diagonal = np.kron(np.eye(q + 1, dtype=int), [[1, -1], [-1, -1]])
    return np.kron(border, [[1, 1], [1, -1]]) + diagonal


def hadamard_matrix(n: int) -> Int8[np.ndarray, "n n"]:
    r"""The matrix of `hadamard` times $\sqrt{n}$: entries 1 and -1, $H H^T = n$.

    Args:
        n: 2^p times 1, 12, 20, 28, 36 or 40.

    Raises:
        ValueError: for another order.

    >>> hadamard_matrix(2).tolist()
    [[1, 1], [1, -1]]
    """
    b, power = split_order("hadamard_matrix", n)
    matrix = np.ones((1, 1), int) if b == 1 else _paley(b)
    sylvester = np.array([[1, 1], [1, -1]])
    while power > 1:
        matrix, power = np.kron(matrix, sylvester), power // 2
    return matrix.astype(np.int8)


def hadamard(x: ArrayLike, *, transpose: bool = False) -> Float[Array, "*batch n"]:
    r"""Multiplies the last axis by $H_n / \sqrt{n}$, $y = H x / \sqrt{n}$ for each row x.

    The transposed transform is the inverse, and the gradient. Bits do not depend on the machine for
    n = 2^p. Works under `jit`, `vmap`, `grad` any number of times in reverse, and `scan`;
    forward-mode derivatives need SPIKEBIT_KERNELS=reference.

    Args:
        x: (*batch, n), n = 2^p times 1, 12, 20, 28, 36 or 40. Floats of fewer bits
            than float32 are transformed in float32.
        transpose: multiplies by the transposed matrix instead.

    Raises:
        ValueError: for another n, or x without floats.

    >>> hadamard(jnp.array([1.0, 0.0, 0.0, 0.0])).tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    x = _floats("hadamard", x)
    b, _ = split_order("hadamard", x.shape[-1])
    settings = Transform(b, transpose)
    if x.dtype == jnp.float64 or dispatch.forced() == "reference":
        return transform_reference(settings, x)
    return _transform(settings)(x.astype(jnp.float32)).astype(x.dtype)


def rotate_blocks(x: ArrayLike, matrix: ArrayLike) -> Float[Array, "*batch n"]:
    """Multiplies each block of g numbers of the last axis by a matrix, y = x R for each block x.

    Any rotation, DCT or the identity; with `hadamard_matrix(g) / sqrt(g)` the block-wise Hadamard
    transform. A product like any other, differentiable in both arguments.

    Args:
        x: (*batch, n), n a multiple of g.
        matrix: R (g, g), of the dtype of x.

    Raises:
        ValueError: if the shapes do not fit.
    """
    x, matrix = _floats("rotate_blocks", x), jnp.asarray(matrix)
    _check_rotation("rotate_blocks", x, matrix)
    blocks = x.reshape(*x.shape[:-1], x.shape[-1] // len(matrix), len(matrix))
    return jnp.matmul(blocks, matrix, precision=jax.lax.Precision.HIGHEST).reshape(x.shape)


def hadamard_quantize(x: ArrayLike, bits: int = 8, *, group: int | None = None) -> QuantizedRows:
    """`quantize_rows` of `hadamard(x)`, without a way through memory between the two.

    Args:
        x: (*batch, n) in float32, bfloat16 or float16; n = 2^p times 1, 12, 20, 28, 36 or 40.
        bits: of a code, 2 to 8.
        group: how many numbers share a scale; None: those of a row.

    Raises:
        ValueError: says which setting does not fit, and what would.

    >>> hadamard_quantize(jnp.array([1.0, 1.0, 0.0, 0.0])).codes.tolist()
    [127, 0, 127, 0]
    """
    x = jnp.asarray(x)
    codes = checked_codes("hadamard_quantize", x, bits, group)
    b, _ = split_order("hadamard_quantize", x.shape[-1])
    return QuantizedRows(*_transform_quantize(Transform(b, False), codes)(x.astype(jnp.float32)))


def rotate_quantize(
    x: ArrayLike, matrix: ArrayLike, bits: int = 8, *, group: int | None = None
) -> QuantizedRows:
    """`quantize_rows` of `rotate_blocks(x, matrix)`, without a way through memory between the two.

    Args:
        x: (*batch, n) in float32, bfloat16 or float16.
        matrix: (g, g), g = 32, 64 or 128 a divisor of n; taken in float32.
        bits: of a code, 2 to 8.
        group: how many numbers share a scale; None: those of a row.

    Raises:
        ValueError: says which setting does not fit, and what would.
    """
    x, matrix = jnp.asarray(x), jnp.asarray(matrix).astype(jnp.float32)
    codes = checked_codes("rotate_quantize", x, bits, group)
    _check_rotation("rotate_quantize", x, matrix)
    if len(matrix) not in BLOCKS:
        raise ValueError(
            f"rotate_quantize: matrix is of shape {matrix.shape}; blocks are of 32, 64 or 128."
        )
    return QuantizedRows(*_rotate_quantize(codes)(x.astype(jnp.float32), matrix))


def _floats(who, x):
    x = jnp.asarray(x)
    if x.ndim < 1 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{who}: x is {x.dtype} of shape {x.shape}; rows are floats.")
    return x


def _check_rotation(who, x, matrix):
    g = matrix.shape[0] if matrix.ndim == 2 else 0
    if g == 0 or matrix.shape != (g, g) or x.shape[-1] % g:
        raise ValueError(
            f"{who}: matrix is of shape {matrix.shape} for rows of {x.shape[-1]} numbers; it must "
            "be (g, g) with g a divisor of these."
        )


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Transform:
    """Which transform; without arrays, so that it may stand among the arguments of kernels.

    Attributes:
        b: the order of the factor that is not a power of two, 1 for none.
        transpose: whether the matrix is transposed.
    """

    b: int
    transpose: bool

    def signs(self) -> np.ndarray:
        """H_b, or its transpose, in float32."""
        matrix = hadamard_matrix(self.b).astype(np.float32)
        return np.ascontiguousarray(matrix.T if self.transpose else matrix)


def factor(n: int, dtype: np.dtype) -> np.ndarray:
    """1 / sqrt(n), rounded: what sums are multiplied by, last of all."""
    return np.array(n**-0.5, dtype)


def transform_reference(
    settings: Transform, x: Float[Array, "*batch n"]
) -> Float[Array, "*batch n"]:
    """The transform in jax.numpy, of float32 or float64 (others: in float32)."""
    n, dtype = x.shape[-1], x.dtype
    y = x if dtype == jnp.float64 else x.astype(jnp.float32)
    h = 1
    while h < n // settings.b:
        pairs = y.reshape(*x.shape[:-1], n // (2 * h), 2, h)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        y, h = jnp.stack([a + b, a - b], -2), 2 * h
    if settings.b > 1:
        signs = jnp.asarray(settings.signs(), y.dtype)
        y = y.reshape(*x.shape[:-1], settings.b, h)
        y = jnp.einsum("ij,...jk->...ik", signs, y, precision=jax.lax.Precision.HIGHEST)
    # last, since a sum that followed would be merged with the product, and rounded otherwise
    return (y * factor(n, y.dtype)).reshape(x.shape).astype(dtype)


def transform_quantize_reference(
    settings: Transform, codes: Codes, x: Float32[Array, "*batch n"]
) -> tuple[Array, Array, Array]:
    """Codes, scale and sums of the transform, in jax.numpy."""
    return rows_reference(codes, transform_reference(settings, x))


def rotate_quantize_reference(
    codes: Codes, x: Float32[Array, "*batch n"], matrix: Float32[Array, "g g"]
) -> tuple[Array, Array, Array]:
    """Codes, scale and sums of the rotation, in jax.numpy."""
    return rows_reference(codes, rotate_blocks(x, matrix))


# Derivatives, and leading axes, which are all rows.


@functools.cache
def _transform(settings: Transform) -> Callable[[Array], Array]:
    other = Transform(settings.b, not settings.transpose)

    @jax.custom_vjp
    def transform(x):
        return _rows(settings)(x)

    # through the function itself, so that derivatives have derivatives
    transform.defvjp(lambda x: (transform(x), None), lambda _, dy: (_transform(other)(dy),))
    return transform


def _on_rows(operation, reference, *settings):
    """The function of arrays of any leading axes that an operation on rows makes."""

    @custom_vmap
    def function(x, *others):
        if x.size == 0:
            return reference(*settings, x, *others)
        rows = x.reshape(-1, x.shape[-1])
        results = dispatch.run("hadamard", operation, reference, *settings, rows, *others)
        return jax.tree.map(lambda a: a.reshape(*x.shape[:-1], a.shape[-1]), results)

    @function.def_vmap
    def _(size, in_batched, x, *others):
        if any(in_batched[1:]):  # a matrix for each
            both = [jnp.broadcast_to(a, (size, *a.shape)) if not b else a
                    for a, b in zip((x, *others), in_batched, strict=True)]  # fmt: skip
            results = jax.lax.map(lambda each: function(*each), tuple(both))
        else:
            results = function(x, *others)
        return results, jax.tree.map(lambda _: True, results)

    return function


@functools.cache
def _rows(settings: Transform):
    return _on_rows("transform", transform_reference, settings)


@functools.cache
def _transform_quantize(settings: Transform, codes: Codes):
    return _on_rows("transform_quantize", transform_quantize_reference, settings, codes)


@functools.cache
def _rotate_quantize(codes: Codes):
    return _on_rows("rotate_quantize", rotate_quantize_reference, codes)
