"""Sparse connectivity as raw arrays: compressed rows, one row for each presynaptic unit.

The idea that belongs here: which connections there are (`Pattern`), that it is in order, and how it
is made and read. What is computed with it stands in the families that take it (`spikes_sparse`,
`spikes_delayed`, `sparse_stdp`).
"""

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Int32, Shaped

Numbers = ArrayLike | Sequence  # lists too
_MOST = np.iinfo(np.int32).max  # connections and units are counted in int32


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("indptr", "indices"), meta_fields=("shape",)
)
@dataclasses.dataclass(frozen=True)
class Pattern:
    """Which of k inputs connects to which of n outputs; made by `csr` and its kin.

    A pytree, also of what stands for its arrays in `vmap`, `grad` and their like.

    Attributes:
        indptr: int32 (k + 1,); the connections of input i are from indptr[i] to indptr[i + 1].
        indices: int32 (nnz,), the output of each connection, ascending within an input.
        shape: (k, n).
    """

    indptr: Any
    indices: Any
    shape: tuple[int, int]


class Csr(NamedTuple):
    """A sparse matrix (k, n): one number for each connection of a pattern.

    >>> w = csr([0, 1, 3], [2, 0, 1], [5.0, 6.0, 7.0], (2, 3))
    >>> w._replace(data=2 * w.data).dense().tolist()
    [[0.0, 0.0, 10.0], [12.0, 14.0, 0.0]]
    """

    data: Shaped[Array, " nnz"]
    pattern: Pattern

    @property
    def shape(self) -> tuple[int, int]:
        """(k, n)."""
        return self.pattern.shape

    def dense(self) -> Shaped[Array, "k n"]:
        """The matrix with its zeros; has the derivative of a copy."""
        zero = jnp.zeros(self.shape, self.data.dtype)
        return zero.at[inputs_of(self.pattern), self.pattern.indices].set(self.data)


def checked_connections(who: str, weights: Csr) -> None:
    """Checks what can be seen of a sparse matrix without its numbers.

    Raises:
        ValueError: in the name of `who`.
    """
    pattern, data = weights.pattern, weights.data
    starts = (pattern.shape[0] + 1,)
    whole = pattern.indptr.dtype == pattern.indices.dtype == jnp.int32
    lengths = pattern.indices.ndim == 1 and data.shape == pattern.indices.shape
    if not whole or pattern.indptr.shape != starts or not lengths:
        raise ValueError(
            f"{who}: a pattern of shape {pattern.shape} with indptr {pattern.indptr.dtype} of "
            f"shape {pattern.indptr.shape}, indices {pattern.indices.dtype} of shape "
            f"{pattern.indices.shape} and data of shape {data.shape}; places are int32, indptr has "
            "one more than there are inputs, and data one number for each index: use `csr`."
        )


class Transposed(NamedTuple):
    """The same connections by output: those of output j are from indptr[j] up to indptr[j + 1]."""

    indptr: Int32[Array, " n1"]  # n + 1 places
    inputs: Int32[Array, " nnz"]  # ascending within an output
    places: Int32[Array, " nnz"]  # of the connection in the pattern


def csr(indptr: Numbers, indices: Numbers, data: Numbers, shape: tuple[int, int]) -> Csr:
    """Checks the parts of a sparse matrix and puts them together.

    Values are checked where they are known. Under `jit` they are not: a pattern that is out of
    order then gives numbers without a meaning, but nothing outside of the arrays is touched.

    Args:
        indptr: (k + 1,) whole numbers from 0 to nnz that never fall.
        indices: (nnz,) whole numbers below n, rising within each row.
        data: (nnz,), such as weights.
        shape: (k, n).

    Raises:
        ValueError: says which part does not fit, and what would.
    """
    k, n = _sizes("csr", shape)
    data = jnp.asarray(data)
    indptr, indices = _whole("csr", "indptr", indptr), _whole("csr", "indices", indices)
    nnz = len(indices)
    if indptr.shape != (k + 1,) or data.shape != (nnz,):
        raise ValueError(
            f"csr: indptr has shape {indptr.shape}, indices {indices.shape} and data {data.shape} "
            f"for a matrix of {(k, n)}; give {k + 1} places, and one index for each number."
        )
    if not isinstance(indptr, Tracer) and not isinstance(indices, Tracer):
        _check_order(np.asarray(indptr), np.asarray(indices), n)
    return Csr(
        data, Pattern(jnp.asarray(indptr, jnp.int32), jnp.asarray(indices, jnp.int32), (k, n))
    )


def csr_from_dense(w: Numbers, connected: Numbers | None = None) -> Csr:
    """The entries of a matrix that are not 0, or those that are `connected`. Not under `jit`.

    Args:
        w: (k, n).
        connected: (k, n), true for each connection, whatever its weight.

    Raises:
        ValueError: not a matrix, or `connected` of another shape.

    >>> csr_from_dense([[0.0, 5.0], [6.0, 0.0]]).pattern.indices.tolist()
    [1, 0]
    """
    w = np.asarray(w)
    kept = w != 0 if connected is None else np.asarray(connected) != 0
    if w.ndim != 2 or kept.shape != w.shape:
        raise ValueError(
            f"csr_from_dense: got weights of shape {w.shape} and connections of shape "
            f"{kept.shape}; both are matrices (k, n)."
        )
    pre, post = np.nonzero(kept)
    return csr_from_pairs(pre, post, w[pre, post], (w.shape[0], w.shape[1]))


def csr_from_pairs(pre: Numbers, post: Numbers, data: Numbers, shape: tuple[int, int]) -> Csr:
    """A matrix from pairs of input and output in any order, and a number for each. Not under `jit`.

    Args:
        pre: (nnz,) inputs, whole numbers below k.
        post: (nnz,) outputs, whole numbers below n.
        data: (nnz,).
        shape: (k, n).

    Raises:
        ValueError: lists of other lengths, units that are not there, or a pair given twice.

    >>> csr_from_pairs([1, 0, 1], [2, 0, 0], [5.0, 6.0, 7.0], (2, 3)).dense().tolist()
    [[6.0, 0.0, 0.0], [7.0, 0.0, 5.0]]
    """
    who = "csr_from_pairs"
    k, n = _sizes(who, shape)
    pre, post = (np.asarray(_whole(who, *a), np.int64) for a in (("pre", pre), ("post", post)))
    data = np.asarray(data)
    if not pre.shape == post.shape == data.shape:
        raise ValueError(
            f"{who}: got {len(pre)} inputs, {len(post)} outputs and data of shape {data.shape}; "
            "give one of each for a connection."
        )
    for name, units, size in (("pre", pre, k), ("post", post, n)):
        if len(units) and not 0 <= units.min() <= units.max() < size:
            raise ValueError(
                f"{who}: {name} goes from {units.min()} to {units.max()}; there are units 0 to "
                f"{size - 1}."
            )
    order = np.argsort(pre * n + post, kind="stable")
    pre, post = pre[order], post[order]
    twice = np.flatnonzero((np.diff(pre) == 0) & (np.diff(post) == 0))
    if len(twice):
        pair = int(pre[twice[0]]), int(post[twice[0]])
        raise ValueError(f"{who}: the pair {pair} is given more than once; add up its numbers.")
    indptr = np.searchsorted(pre, np.arange(k + 1))
    return csr(indptr, post, data[order], (k, n))


def inputs_of(pattern: Pattern) -> Int32[Array, " nnz"]:
    """The input of each connection."""
    place = jnp.arange(len(pattern.indices), dtype=jnp.int32)
    return jnp.searchsorted(pattern.indptr, place, side="right").astype(jnp.int32) - 1


def transposed(pattern: Pattern) -> Transposed:
    """The connections by output, for what a spike of an output changes. Not under `jit`: once.

    >>> w = csr([0, 2, 3], [0, 1, 0], [5.0, 6.0, 7.0], (2, 2))
    >>> jax.tree.map(lambda a: a.tolist(), transposed(w.pattern))
    Transposed(indptr=[0, 2, 3], inputs=[0, 1, 0], places=[0, 2, 1])
    """
    indptr, indices = np.asarray(pattern.indptr), np.asarray(pattern.indices)
    places = np.argsort(indices, kind="stable")
    inputs = np.repeat(np.arange(pattern.shape[0]), np.diff(indptr))[places]
    first = np.searchsorted(indices[places], np.arange(pattern.shape[1] + 1))
    return Transposed(*(jnp.asarray(a, jnp.int32) for a in (first, inputs, places)))


def _sizes(who, shape):
    try:
        k, n = map(operator.index, shape)
    except (TypeError, ValueError):
        k, n = -1, -1
    if not (0 <= k < _MOST and 0 <= n < _MOST):
        raise ValueError(f"{who}: the shape is {shape!r}; give two whole numbers (k, n).")
    return k, n


def _whole(who, name, values):
    """A list of whole numbers that fit int32."""
    array = values if isinstance(values, Tracer) else np.asarray(values)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(
            f"{who}: {name} is {array.dtype}{list(array.shape)}; give one list of whole numbers."
        )
    if array.size > _MOST:
        raise ValueError(f"{who}: {name} has {array.size} entries; at most {_MOST} are possible.")
    return array


def _check_order(indptr, indices, n):
    nnz = len(indices)
    if indptr[0] != 0 or indptr[-1] != nnz or (np.diff(indptr) < 0).any():
        raise ValueError(
            f"csr: indptr goes from {indptr[0]} to {indptr[-1]}"
            f"{' and falls in between' if (np.diff(indptr) < 0).any() else ''}; it must rise from "
            f"0 to the number of indices, {nnz}."
        )
    if nnz and not 0 <= indices.min() <= indices.max() < n:
        raise ValueError(
            f"csr: indices go from {indices.min()} to {indices.max()}; there are outputs 0 to "
            f"{n - 1}."
        )
    falls = np.flatnonzero(np.diff(indices.astype(np.int64)) <= 0) + 1
    falls = falls[~np.isin(falls, indptr)]  # a new row may begin anywhere
    if len(falls):
        e = int(falls[0])
        raise ValueError(
            f"csr: index {indices[e]} follows {indices[e - 1]} within a row, at place {e}; the "
            "outputs of an input must rise and none be there twice: csr_from_pairs sorts them."
        )
