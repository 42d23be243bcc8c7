"""Integer inputs x low-bit weights on a GPU: a Triton kernel for matrix instructions of 8 bits.

Reference, gradient and batching stand in `integer` and `float8`, how codes become operands in
`planes_gpu`. Weights of all widths and tables become int8 or e4m3 in registers, sums within a fold
are int32 (float32 for e4m3, whose products are exact), scales and zero points are applied to them
in float32; with one scale a column only once. Weights in two levels (`two_level_scales`) are best
multiplied out into 8 bits with one scale a column where there are many rows of inputs. Imported
only where Triton is.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Array, Float32, Int8

from . import low_bit_gpu, triton_bridge
from .integer import matmul_reference, parts
from .layouts import PackedMatrix
from .layouts_gpu import planes, spread
from .planes_gpu import plane_of_bytes
from .tuning import Tile, best_tile


def matmul(
    x_codes: Int8[Array, "rows k"], x_scale: Float32[Array, "rows 1"], w: PackedMatrix
) -> Float32[Array, "rows n"]:
    """Computes what `matmul_reference` does."""
    if w.layout != "planes" or not x_codes.size or not w.shape[1]:
        return matmul_reference(x_codes, x_scale, w)
    if planes(w.shape[0], w.bits, w.group).rows < 32:  # too few for an instruction of 8 bits
        x = x_codes.astype(jnp.bfloat16)  # exactly
        y = low_bit_gpu.product(x, w, jnp.dtype(jnp.float32)) * x_scale
        return y if w.table is None else y + 0 * parts(w).scale[:1]  # NaN as everywhere
    table = None if w.table is None else (parts(w).values - 128).astype(jnp.int8)
    scale = w.scale if w.table is None else parts(w).scale
    return product(x_codes, x_scale, w, scale, table)


def product(
    x: Array,
    x_scale: Float32[Array, "rows 1"],
    w: PackedMatrix,
    scale: Float32[Array, "groups n"],
    table: Int8[Array, " codes"] | None,
) -> Float32[Array, "rows n"]:
    """The product of int8 or e4m3 inputs with weights of the layout planes, in planes of 32 rows.

    Args:
        x: the inputs.
        x_scale: one for each row.
        w: the weights.
        scale: takes the place of that of w.
        table: what codes stand for, or the bits of that in e4m3; None: the code less
            2**(bits - 1).
    """
    m, n = x.shape[0], w.shape[1]
    operation = "integer" if x.dtype == jnp.int8 else "float8"
    tile = best_tile(operation, triton_bridge.capability(), m, w)
    assert tile is not None
    x, sums, entries = operands(x, w, table)
    zero = scale if w.zero is None else w.zero
    y = triton_bridge.call(
        product_kernel,
        *(x, x_scale, sums, w.words[0], w.words[-1], scale, zero, entries),
        out=jax.ShapeDtypeStruct((tile.split, m, n), jnp.float32),
        grid=low_bit_gpu.grid(m, n, tile),
        warps=tile.warps,
        stages=tile.stages,
        **constants(m, w, tile, table is not None, x.dtype == jnp.uint8),
    )
    return jnp.sum(y, axis=0)


def operands(x: Array, w: PackedMatrix, table: Array | None) -> tuple[Array, Array, Array]:
    """Inputs where the rows of the weights lie, their sums over folds, and the table."""
    p = planes(w.shape[0], w.bits, w.group)
    if p.group != w.group or p.tiles * p.tile != x.shape[1]:
        x = spread(x.T, w.group, p).T
    sums = w.scale
    if w.zero is not None:
        rows = p.tiles * p.tile if w.scale.shape[0] == 1 else p.fold * p.rows
        sums = x.astype(jnp.float32).reshape(x.shape[0], -1, rows).sum(2)
    if x.dtype != jnp.int8:
        x = jax.lax.bitcast_convert_type(x, jnp.uint8)
    if table is None:
        return x, sums, w.scale
    if w.bits == 4:
        table = jax.lax.bitcast_convert_type(table.reshape(4, 4), jnp.int32)
    return x, sums, table


def constants(m: int, w: PackedMatrix, tile: Tile, table: bool, float8: bool) -> dict:
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
        TABLE=table,
        FLOAT8=float8,
        ASM=True,
        SPLIT=tile.split,
        BM=tile.rows,
        BN=tile.columns,
    )


@no_type_check
@triton.jit
def product_kernel(
    x,  # (M, TILES * PLANES * ROWS) int8, or the bits of e4m3
    x_scale,  # (M, 1)
    sums,  # (M, TILES * FOLDS) float32, of the inputs of a fold, or of all; read where ZERO
    words,  # (N, TILES * ROWS) int32
    thirds,  # (N, ceil(TILES / 2) * ROWS) int32, of 3 bits the highest
    scale,  # (GROUPS, N)
    zero,  # (GROUPS, N), read where ZERO
    table,  # (2^BITS,) int8, read where TABLE; of 4 bits with ASM as words
    y,  # (SPLIT, M, N) float32, written
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
    FLOAT8: tl.constexpr,
    ASM: tl.constexpr,
    SPLIT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Computes a tile (BN, BM) of the transposed product, or a part of its sums."""
    PLANES: tl.constexpr = 32 // (2 if BITS == 3 else BITS)
    FOLDS: tl.constexpr = PLANES // FOLD
    PART: tl.constexpr = (TILES + SPLIT - 1) // SPLIT
    SUM: tl.constexpr = tl.float32 if FLOAT8 else tl.int32
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    split = tl.program_id(2).to(tl.int64)
    in_m, in_n = tl.minimum(m, M - 1), tl.minimum(n, N - 1)  # what is beyond is not stored
    row = tl.arange(0, ROWS)
    of_words = words + in_n.to(tl.int64)[:, None] * (TILES * ROWS) + row[None, :]
    of_thirds = thirds + in_n.to(tl.int64)[:, None] * ((TILES + 1) // 2 * ROWS) + row[None, :]
    of_x = x + in_m.to(tl.int64)[None, :] * (TILES * PLANES * ROWS) + row[:, None]
    low_bytes = 0, 0, 0, 0
    if TABLE and ASM and BITS == 4:
        low_bytes = tl.load(table), tl.load(table + 1), tl.load(table + 2), tl.load(table + 3)
    total = tl.zeros((BN, BM), tl.float32)
    whole = tl.zeros((BN, BM), SUM)
    first = tl.program_id(2) * PART
    for tile in range(first, tl.minimum(first + PART, TILES)):
        word = tl.load(of_words + tile * ROWS, eviction_policy="evict_first")
        third = word
        if BITS == 3:
            third = tl.load(of_thirds + tile // 2 * ROWS) >> (tile % 2 * 16)
        for f in tl.static_range(FOLDS):
            part = whole if GROUPS == 1 else tl.zeros((BN, BM), SUM)
            for i in tl.static_range(FOLD):
                j = f * FOLD + i
                w = plane_of_bytes(word, third, table, low_bytes, f * FOLD + i, BITS, TABLE, ASM)
                inputs = tl.load(of_x + (tile * PLANES + j) * ROWS, eviction_policy="evict_last")
                if FLOAT8:
                    w = w.to(tl.float8e4nv, bitcast=True)
                    inputs = inputs.to(tl.float8e4nv, bitcast=True)
                part = tl.dot(w, inputs, part, out_dtype=SUM)
            if GROUPS == 1:
                whole = part
            else:
                fold = tile * FOLDS + f
                group = tl.minimum(fold * (FOLD * ROWS) // GROUP, GROUPS - 1)  # inputs beyond are 0
                sum = part.to(tl.float32)
                if ZERO:
                    off = tl.load(zero + group * N + in_n) - (1 << (BITS - 1))
                    sum -= off[:, None] * tl.load(sums + in_m * (TILES * FOLDS) + fold)[None, :]
                total += tl.load(scale + group * N + in_n)[:, None] * sum
    if GROUPS == 1:
        total = whole.to(tl.float32)
        if ZERO:
            off = tl.load(zero + in_n) - (1 << (BITS - 1))
            total -= off[:, None] * tl.where(split == 0, tl.load(sums + in_m), 0.0)[None, :]
        total *= tl.load(scale + in_n)[:, None]
    total *= tl.load(x_scale + in_m)[None, :]
    at = y + (split * M + m.to(tl.int64)[None, :]) * N + n[:, None]
    tl.store(at, total, (m[None, :] < M) & (n[:, None] < N))
