"""Spikes x weights on a GPU: a Triton kernel that skips tiles of x without a spike.

References, gradient and batching stand in `spikes`. Tensor cores want dense tiles, so what is
saved here is the work for tiles that are silent altogether (neurons or moments without activity),
not for each zero. Imported only where Triton is; the tests run the kernel in Triton's interpreter
and compile it for GPUs that are not there.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Array, Bool, Float

from . import triton_bridge
from .spikes import input_gradient_reference

_TILE = {"ROWS": 64, "COLUMNS": 64, "INNER": 32}
_SPLIT = {"num_warps": 4, "num_stages": 3}


def forward(x: Float[Array, "rows k"], w: Float[Array, "k n"]) -> Float[Array, "rows n"]:
    """Computes x @ w."""
    return _product(x, w, x.shape[0], x.shape[1], (x.shape[1], 1))


def weight_gradient(x: Float[Array, "rows k"], dy: Float[Array, "rows n"]) -> Float[Array, "k n"]:
    """Computes x.T @ dy."""
    return _product(x, dy, x.shape[1], x.shape[0], (1, x.shape[1]))


def input_gradient(
    dy: Float[Array, "rows n"], w: Float[Array, "k n"], needed: Bool[Array, "rows k"]
) -> Float[Array, "rows k"]:
    """Computes dy @ w.T where needed, 0 elsewhere: the dense product, which dy asks for."""
    return input_gradient_reference(dy, w, needed)


def constants(m: int, k: int, n: int, strides: tuple[int, int], dtype: jnp.dtype) -> dict:
    """The constants the kernel is compiled with for a product of (m, k) and (k, n)."""
    compute, precision = (tl.float64, "ieee") if dtype == jnp.float64 else (tl.float32, "tf32x3")
    row, column = strides
    return dict(
        M=m, K=k, N=n, ROW=row, COLUMN=column, COMPUTE=compute, PRECISION=precision, **_TILE
    )


def grid(m: int, n: int) -> tuple[int, int]:
    """The number of tiles of the result, down and across."""
    return triton.cdiv(m, _TILE["ROWS"]), triton.cdiv(n, _TILE["COLUMNS"])


def _product(x, w, m, k, strides):
    n = w.shape[1]
    return triton_bridge.call(
        product_kernel,
        x,
        w,
        out=jax.ShapeDtypeStruct((m, n), x.dtype),
        grid=grid(m, n),
        warps=_SPLIT["num_warps"],
        stages=_SPLIT["num_stages"],
        **constants(m, k, n, strides, x.dtype),
    )


@no_type_check
@triton.jit
def product_kernel(
    x,  # M * K elements, (i, j) at i * ROW + j * COLUMN
    w,  # (K, N)
    y,  # (M, N), written
    M: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    ROW: tl.constexpr,
    COLUMN: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    """Computes a tile (ROWS, COLUMNS) of y = x @ w, INNER elements of the sum at a time."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    rows_64 = rows.to(tl.int64)[:, None]  # an offset can exceed 2^31
    total = tl.zeros((ROWS, COLUMNS), COMPUTE)
    for start in range(0, K, INNER):
        inner = start + tl.arange(0, INNER)
        in_x = (rows[:, None] < M) & (inner[None, :] < K)
        spikes = tl.load(x + rows_64 * ROW + inner[None, :].to(tl.int64) * COLUMN, in_x, 0.0)
        if tl.max(tl.max((spikes != 0.0).to(tl.int32), 1), 0) > 0:
            in_w = (inner[:, None] < K) & (columns[None, :] < N)
            weights = tl.load(w + inner[:, None].to(tl.int64) * N + columns[None, :], in_w, 0.0)
            total = tl.dot(
                spikes.to(COMPUTE), weights.to(COMPUTE), total, PRECISION, out_dtype=COMPUTE
            )
    in_y = (rows[:, None] < M) & (columns[None, :] < N)
    tl.store(y + rows_64 * N + columns[None, :], total.to(y.dtype.element_ty), in_y)
