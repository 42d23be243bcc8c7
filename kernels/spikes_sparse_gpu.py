"""Spikes x sparse weights on a GPU: Triton kernels that visit the connections of active inputs.

References, gradient and batching stand in `spikes_sparse`. Every element of a result is written by
one program in the order of the CPU's sums, without atomics, so results are the same from run to
run. Imported only where Triton is; the tests run the kernels in Triton's interpreter and compile
them for GPUs that are not there.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Array, Bool, Float

from . import triton_bridge
from .sparse import Pattern

BLOCK = 128  # connections that a program looks at together
SPLIT = {"warps": 1, "stages": 1}  # a program waits for memory, not for its arithmetic


def forward(
    x: Float[Array, "rows k"], data: Float[Array, " nnz"], pattern: Pattern
) -> Float[Array, "rows n"]:
    """Computes x @ W."""
    out = jax.ShapeDtypeStruct((x.shape[0], pattern.shape[1]), x.dtype)
    if 0 in (*out.shape, *pattern.shape, data.size):
        return jnp.zeros(out.shape, out.dtype)
    grid, constants = forward_plan(x.shape[0], *pattern.shape, data.size)
    arrays = x, data, pattern.indptr, pattern.indices
    return triton_bridge.call(forward_kernel, *arrays, out=out, grid=grid, **SPLIT, **constants)


def weight_gradient(
    x: Float[Array, "rows k"], dy: Float[Array, "rows n"], pattern: Pattern
) -> Float[Array, " nnz"]:
    """Computes x.T @ dy at the connections."""
    (rows, k), n, nnz = x.shape, dy.shape[1], len(pattern.indices)
    out = jax.ShapeDtypeStruct((nnz,), x.dtype)
    if 0 in (rows, k, n, nnz):
        return jnp.zeros(out.shape, out.dtype)
    constants = weight_gradient_constants(rows, k, n, nnz)
    arrays = x, dy, pattern.indptr, pattern.indices
    return triton_bridge.call(
        weight_gradient_kernel, *arrays, out=out, grid=(k,), **SPLIT, **constants
    )


def input_gradient(
    dy: Float[Array, "rows n"],
    data: Float[Array, " nnz"],
    pattern: Pattern,
    needed: Bool[Array, "rows k"],
) -> Float[Array, "rows k"]:
    """Computes dy @ W.T where needed, 0 elsewhere."""
    (rows, k), n, nnz = needed.shape, dy.shape[1], data.size
    out = jax.ShapeDtypeStruct(needed.shape, dy.dtype)
    if 0 in (rows, k, n, nnz):
        return jnp.zeros(out.shape, out.dtype)
    arrays = dy, data, pattern.indptr, pattern.indices, needed.astype(jnp.int8)
    return triton_bridge.call(
        input_gradient_kernel,
        *arrays,
        out=out,
        grid=(rows * k,),
        **SPLIT,
        **input_gradient_constants(k, n, nnz),
    )


def forward_plan(rows: int, k: int, n: int, nnz: int) -> tuple[tuple[int, int], dict[str, int]]:
    """The programs of the forward product, and the constants it is compiled with."""
    columns = 256 if rows < 64 else 1024  # few samples: more programs for each
    constants = dict(K=k, N=n, NNZ=nnz, COLUMNS=columns, INNER=32, BLOCK=BLOCK)
    return (rows, -(-n // columns)), constants


def weight_gradient_constants(rows: int, k: int, n: int, nnz: int) -> dict[str, int]:
    """The constants that the gradient of the weights is compiled with."""
    return dict(ROWS=rows, K=k, N=n, NNZ=nnz, BLOCK=BLOCK)


def input_gradient_constants(k: int, n: int, nnz: int) -> dict[str, int]:
    """The constants that the gradient of the inputs is compiled with."""
    return dict(K=k, N=n, NNZ=nnz, BLOCK=BLOCK)


@no_type_check
@triton.jit
def forward_kernel(
    x,  # (rows, K)
    data,  # (NNZ,)
    indptr,  # (K + 1,) int32
    indices,  # (NNZ,) int32
    y,  # (rows, N), written
    K: tl.constexpr,
    N: tl.constexpr,
    NNZ: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Computes COLUMNS elements of a row of y, which are added up where they will be read.

    The connections of one input lead to different outputs, so that they can be added together;
    between inputs the program waits for itself.
    """
    row = tl.program_id(0).to(tl.int64)
    low = tl.program_id(1) * COLUMNS
    high = tl.minimum(low + COLUMNS, N)
    x += row * K
    y += row * N
    mine = low + tl.arange(0, COLUMNS)
    tl.store(y + mine, tl.zeros((COLUMNS,), y.dtype.element_ty), mine < N)
    tl.debug_barrier()
    for start in range(0, K, INNER):
        inner = start + tl.arange(0, INNER)
        spikes = tl.load(x + inner, inner < K, 0.0)
        if tl.max((spikes != 0.0).to(tl.int32), 0) > 0:
            i = start
            while i < tl.minimum(start + INNER, K):
                value = tl.load(x + i)
                if value != 0.0:
                    first = tl.maximum(tl.load(indptr + i), 0)
                    end = tl.minimum(tl.load(indptr + i + 1), NNZ)
                    stop = end
                    while first < stop:  # to the first connection to an output from `low` on
                        middle = first + (stop - first) // 2
                        before = tl.load(indices + middle) < low
                        first = tl.where(before, middle + 1, first)
                        stop = tl.where(before, stop, middle)
                    while first < end:
                        place = first + tl.arange(0, BLOCK)
                        j = tl.load(indices + place, place < end, N)
                        here = (j >= low) & (j < high)
                        w = tl.load(data + place, here, 0.0)
                        total = tl.load(y + j, here, 0.0)
                        tl.store(y + j, total + value * w, here)
                        beyond = tl.max((j >= high).to(tl.int32), 0) > 0
                        first = tl.where(beyond, end, first + BLOCK)
                    tl.debug_barrier()
                i += 1


@no_type_check
@triton.jit
def weight_gradient_kernel(
    x,  # (ROWS, K)
    dy,  # (ROWS, N)
    indptr,  # (K + 1,) int32
    indices,  # (NNZ,) int32
    dw,  # (NNZ,), written
    ROWS: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    NNZ: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Computes the gradient of the connections of one input: a sum over samples where it spikes."""
    i = tl.program_id(0)
    first = tl.maximum(tl.load(indptr + i), 0)
    end = tl.minimum(tl.load(indptr + i + 1), NNZ)
    while first < end:
        place = first + tl.arange(0, BLOCK)
        j = tl.load(indices + place, place < end, -1)
        here = (j >= 0) & (j < N)
        total = tl.zeros((BLOCK,), dw.dtype.element_ty)
        for row in range(0, ROWS):
            value = tl.load(x + tl.cast(row, tl.int64) * K + i)
            if value != 0.0:
                total += value * tl.load(dy + tl.cast(row, tl.int64) * N + j, here, 0.0)
        tl.store(dw + place, total, place < end)
        first += BLOCK


@no_type_check
@triton.jit
def input_gradient_kernel(
    dy,  # (rows, N)
    data,  # (NNZ,)
    indptr,  # (K + 1,) int32
    indices,  # (NNZ,) int32
    needed,  # (rows, K) int8
    dx,  # (rows, K), written
    K: tl.constexpr,
    N: tl.constexpr,
    NNZ: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Computes one element of dx: a sum over the connections of an input, where it is needed."""
    at = tl.program_id(0)
    i = at % K
    dy += (at // K).to(tl.int64) * N
    total = tl.zeros((BLOCK,), dx.dtype.element_ty)
    if tl.load(needed + at) != 0:
        first = tl.maximum(tl.load(indptr + i), 0)
        end = tl.minimum(tl.load(indptr + i + 1), NNZ)
        while first < end:
            place = first + tl.arange(0, BLOCK)
            j = tl.load(indices + place, place < end, -1)
            here = (j >= 0) & (j < N)
            w = tl.load(data + place, here, 0.0)
            total += w * tl.load(dy + j, here, 0.0)
            first += BLOCK
    tl.store(dx + at, tl.sum(total, 0))
