"""Float inputs x low-bit weights on a GPU: a Triton kernel that reads codes in the layout `planes`.

Reference, gradient and batching stand in `low_bit`, how codes become operands in `planes_gpu`.
Weights are the left operand: they go from registers to the matrix instruction however few rows of
inputs there are. Scales and zero points are applied to float32 sums. With many rows the weights
are better made floats once, for the product of two dense matrices. Imported only where Triton is;
the tests run the kernel in Triton's interpreter and compile it for GPUs that are not there.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Array, BFloat16, Float, Float32

from . import triton_bridge
from .layouts import PackedMatrix, unpack
from .layouts_gpu import planes, spread
from .low_bit import matmul_reference
from .matrix import dequantize
from .planes_gpu import entries, halves, look_up, plane
from .tuning import Tile, best_tile

_COMPUTE = {"float32": tl.float32, "bfloat16": tl.bfloat16, "float16": tl.float16}


def matmul(x: Float[Array, "rows k"], w: PackedMatrix) -> Float[Array, "rows n"]:
    """Computes x @ dequantize(w), sums in float32, rounded to the dtype of x at the end."""
    if w.layout != "planes" or not x.size or not w.shape[1]:
        return matmul_reference(x, w)
    return product(x, w, x.dtype)


def product(x: Float[Array, "rows k"], w: PackedMatrix, dtype: jnp.dtype) -> Float[Array, "rows n"]:
    """Computes x @ dequantize(w), of the layout planes, rounded to a dtype of its own."""
    rows = in_thirds(x) if x.dtype == jnp.float32 and w.table is None else x
    tile = best_tile("low_bit", triton_bridge.capability(), rows.shape[0], w)
    many_registers = x.dtype == jnp.float32 and w.table is not None and w.bits < 4
    if tile is None or many_registers:
        return _dense(x, w).astype(dtype)
    several = tile.split > 1 or rows is not x
    y = _partial_sums(rows, w, tile, jnp.float32 if several else dtype)
    # in a fixed order: the same numbers each time, unlike those of atomic additions
    return jnp.sum(y.reshape(-1, x.shape[0], w.shape[1]), axis=0).astype(dtype)


def _dense(x, w):  # float weights take one rounding more than the kernel's, to the dtype of x
    weights = dequantize(unpack(w)).astype(x.dtype)
    precision = "highest" if x.dtype == jnp.float32 else None
    return jnp.dot(x, weights, precision=precision, preferred_element_type=jnp.float32)


def in_thirds(x: Float32[Array, "rows k"]) -> BFloat16[Array, "rows3 k"]:
    """Three blocks of rows that add up to x: whole codes times these are exact in float32."""
    thirds = []
    for _ in range(3):
        third = jax.lax.reduce_precision(x, 8, 7)  # a cast there and back could be optimized away
        thirds.append(third.astype(jnp.bfloat16))
        x = jnp.where(jnp.isfinite(third), x - third, 0)
    return jnp.concatenate(thirds)


def _partial_sums(x, w, tile, dtype):
    m, n = x.shape[0], w.shape[1]
    x, sums, table = operands(x, w)
    zero = w.scale if w.zero is None else w.zero
    return triton_bridge.call(
        product_kernel,
        *(x, sums, w.words[0], w.words[-1], w.scale, zero, table),
        out=jax.ShapeDtypeStruct((tile.split, m, n), dtype),
        grid=grid(m, n, tile),
        warps=tile.warps,
        stages=tile.stages,
        **constants(m, w, tile, x.dtype),
    )


def operands(x: Array, w: PackedMatrix) -> tuple[Array, Array, Array]:
    """Inputs where the rows of the weights lie, their sums over folds, and the table."""
    p = planes(x.shape[1], w.bits, w.group)
    if p.group != w.group or p.tiles * p.tile != x.shape[1]:
        x = spread(x.T, w.group, p).T
    sums = w.scale
    if w.zero is not None:
        sums = x.astype(jnp.float32).reshape(x.shape[0], -1, p.fold * p.rows).sum(2)
    table = w.scale
    if w.table is not None:
        table = w.table.astype(x.dtype)
        if by_instructions(w, x.dtype):
            both = jax.lax.bitcast_convert_type(table, jnp.uint8)  # (16, 2): low bytes, high ones
            table = jax.lax.bitcast_convert_type(both.T.reshape(8, 4), jnp.int32)
    return x, sums, table


def by_instructions(w: PackedMatrix, dtype: jnp.dtype) -> bool:
    """Whether there are instructions for two of these numbers at once."""
    return dtype != jnp.float32 and (w.table is None or w.bits == 4)


def constants(m: int, w: PackedMatrix, tile: Tile, dtype: jnp.dtype) -> dict:
    """The constants the kernel is compiled with for m rows of inputs."""
    (k, n), p = w.shape, planes(w.shape[0], w.bits, w.group)
    return dict(
        M=m,
        N=n,
        GROUPS=k // w.group,
        GROUP=p.group,
        TILES=p.tiles,
        ROWS=p.rows,
        FOLD=p.fold,
        BITS=w.bits,
        ZERO=w.zero is not None,
        TABLE=w.table is not None,
        ASM=by_instructions(w, dtype),
        COMPUTE=_COMPUTE[jnp.dtype(dtype).name],
        PRECISION="tf32x3" if dtype == jnp.float32 else "ieee",
        SPLIT=tile.split,
        BM=tile.rows,
        BN=tile.columns,
    )


def grid(m: int, n: int, tile: Tile) -> tuple[int, int, int]:
    """Tiles of the result down, across, and parts of its sums; neighbours share weights."""
    return triton.cdiv(m, tile.rows), triton.cdiv(n, tile.columns), tile.split


@no_type_check
@triton.jit
def product_kernel(
    x,  # (M, TILES * PLANES * ROWS)
    sums,  # (M, TILES * FOLDS) float32, of the inputs of a fold; read where ZERO
    words,  # (N, TILES * ROWS) int32
    thirds,  # (N, ceil(TILES / 2) * ROWS) int32, of 3 bits the highest
    scale,  # (GROUPS, N)
    zero,  # (GROUPS, N), read where ZERO
    table,  # (2^BITS,), read where TABLE; with ASM its bytes, the low ones first
    y,  # (SPLIT, M, N), written
    M: tl.constexpr,
    N: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    TILES: tl.constexpr,
    ROWS: tl.constexpr,
    FOLD: tl.constexpr,
    BITS: tl.constexpr,
    ZERO: tl.constexpr,
    TABLE: tl.constexpr,
    ASM: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Computes a tile (BN, BM) of the transposed product, or a part of its sums."""
    PLANES: tl.constexpr = 32 // (2 if BITS == 3 else BITS)
    FOLDS: tl.constexpr = PLANES // FOLD
    PART: tl.constexpr = (TILES + SPLIT - 1) // SPLIT
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    split = tl.program_id(2).to(tl.int64)
    in_m, in_n = tl.minimum(m, M - 1), tl.minimum(n, N - 1)  # what is beyond is not stored
    row = tl.arange(0, ROWS)
    of_words = words + in_n.to(tl.int64)[:, None] * (TILES * ROWS) + row[None, :]
    of_thirds = thirds + in_n.to(tl.int64)[:, None] * ((TILES + 1) // 2 * ROWS) + row[None, :]
    of_x = x + in_m.to(tl.int64)[None, :] * (TILES * PLANES * ROWS) + row[:, None]
    if TABLE and ASM:
        low_bytes, high_bytes = entries(table)
    total = tl.zeros((BN, BM), tl.float32)
    first = tl.program_id(2) * PART
    for tile in range(first, tl.minimum(first + PART, TILES)):
        word = tl.load(of_words + tile * ROWS, eviction_policy="evict_first")
        low, high = halves(word)
        third = low
        if BITS == 3:
            third = (tl.load(of_thirds + tile // 2 * ROWS) >> (tile % 2 * 16)).to(tl.int16)
        for f in tl.static_range(FOLDS):
            part = tl.zeros((BN, BM), tl.float32)
            for i in tl.static_range(FOLD):
                if TABLE and ASM:
                    if (f * FOLD + i) % 4 == 0:
                        half = low if f * FOLD + i < 4 else high
                        four = look_up(half, low_bytes, high_bytes)
                    w = four[(f * FOLD + i) % 4].to(COMPUTE, bitcast=True)
                else:
                    w = plane(low, high, third, table, f * FOLD + i, BITS, TABLE, COMPUTE, ASM)
                inputs = tl.load(
                    of_x + (tile * PLANES + f * FOLD + i) * ROWS, eviction_policy="evict_last"
                )
                part = tl.dot(w, inputs.to(COMPUTE), part, PRECISION)
            fold = tile * FOLDS + f
            group = tl.minimum(fold * (FOLD * ROWS) // GROUP, GROUPS - 1)  # inputs beyond are 0
            if ZERO:
                off = tl.load(zero + group * N + in_n) - (1 << (BITS - 1))
                part -= off[:, None] * tl.load(sums + in_m * (TILES * FOLDS) + fold)[None, :]
            total += tl.load(scale + group * N + in_n)[:, None] * part
    at = y + (split * M + m.to(tl.int64)[None, :]) * N + n[:, None]
    tl.store(at, total.to(y.dtype.element_ty), (m[None, :] < M) & (n[:, None] < N))
