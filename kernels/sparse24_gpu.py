"""Weights of which two of four are zero, on a GPU: a Triton kernel that expands them in registers.

Reference, gradient and batching stand in `sparse24`. The two numbers kept of four rows lie in two
arrays of the layout `planes`, where they stand in a third, so that one plane of each gives four
operands: row 4 i + p of the weights, for p from 0 to 3, which are multiplied by the inputs of
these rows. Imported only where Triton is.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Array, Float

from . import low_bit_gpu, triton_bridge
from .layouts import PackedMatrix
from .layouts_gpu import planes, spread
from .matrix import dequantize
from .planes_gpu import halves, plane
from .sparse24 import Packed24, matmul_reference, unpack24
from .tuning import Tile, best_tile

_FEW = 16  # rows of inputs for which reading fewer bytes pays, and sums fit into registers


def matmul(x: Float[Array, "rows k"], w: Packed24) -> Float[Array, "rows n"]:
    """Computes x @ dequantize(unpack24(w)), rounded to the dtype of x at the end."""
    if not x.size or not w.shape[1] or x.dtype == jnp.float32:
        return matmul_reference(x, w)
    if w.bits != 4 or x.shape[0] > _FEW:
        weights = dequantize(unpack24(w)).astype(x.dtype)
        return jnp.dot(x, weights, preferred_element_type=jnp.float32).astype(x.dtype)
    m, n = x.shape[0], w.shape[1]
    tile = best_tile("sparse24", triton_bridge.capability(), m, quads(w))
    assert tile is not None
    inputs, table = operands(x, w)
    y = triton_bridge.call(
        product_kernel,
        *(inputs, w.first[0], w.second[0], w.places[0], w.scale, table),
        out=jax.ShapeDtypeStruct((tile.split, m, n), jnp.float32),
        grid=low_bit_gpu.grid(m, n, tile),
        warps=tile.warps,
        stages=tile.stages,
        **constants(m, w, tile, x.dtype),
    )
    return jnp.sum(y, axis=0).astype(x.dtype)


def quads(w: Packed24) -> PackedMatrix:
    """What is kept of the weights as a matrix of a quarter of the rows, for its shape alone."""
    k, n = w.shape
    return PackedMatrix(w.first, w.scale, None, w.table, w.bits, "planes", (k // 4, n))


def operands(x: Array, w: Packed24) -> tuple[Array, Array]:
    """Inputs of the rows 4 i + p as (4, rows, ...) where quads lie, and the table."""
    p = planes(w.shape[0] // 4, w.bits, w.group // 4)
    by_place = x.reshape(x.shape[0], -1, 4).transpose(1, 2, 0)  # (quads, 4, rows)
    x = spread(by_place, w.group // 4, p).transpose(1, 2, 0)
    return x, w.scale if w.table is None else w.table.astype(x.dtype)


def constants(m: int, w: Packed24, tile: Tile, dtype: jnp.dtype) -> dict:
    """The constants the kernel is compiled with for m rows of inputs."""
    own = low_bit_gpu.constants(m, quads(w), tile, dtype) | {"ASM": dtype != jnp.float32}
    return {name: own[name] for name in own if name not in ("ZERO", "BITS", "PRECISION")}


@no_type_check
@triton.jit
def _at_place(first, second, places, J: tl.constexpr, P: tl.constexpr, ASM: tl.constexpr):
    """What stands in row P of four: the upper or the lower number that is kept, or 0."""
    if not ASM:
        bits = places.to(tl.int32) >> (4 * (J % 4))
        above = (bits & ((1 << P) - 1)) != 0
        kept = ((bits >> P) & 1) != 0
        return tl.where(kept, tl.where(above, second, first), 0.0)
    # Bits of the places of two columns, each moved to the highest of 16, become masks of 16 bits.
    # Row 0 has the upper number, row 3 the lower; row 1 has the lower one if row 0 is kept, row 2
    # the upper one if row 3 is.
    mask: tl.constexpr = f"shl.b32 m, $3, {15 - 4 * (J % 4) - P}; prmt.b32 m, m, 0, 0xBB99;"
    other: tl.constexpr = f"""shl.b32 o, $3, {15 - 4 * (J % 4) - (0 if P < 2 else 3)};
        prmt.b32 o, o, 0, 0xBB99;"""
    if P == 0 or P == 3:
        only: tl.constexpr = f"{{ .reg .b32 m; {mask} and.b32 $0, m, ${1 if P == 0 else 2}; }}"
        bits = tl.inline_asm_elementwise(
            only, "=r,r,r,r", [_as_bits(first), _as_bits(second), places], tl.int16, True, 2
        )
    else:
        # 0xD8: the second operand where the other place is kept, else the first
        a: tl.constexpr = "$1, $2" if P == 1 else "$2, $1"
        either: tl.constexpr = f"""{{ .reg .b32 m, o, v; {mask} {other}
            lop3.b32 v, {a}, o, 0xD8; and.b32 $0, v, m; }}"""
        bits = tl.inline_asm_elementwise(
            either, "=r,r,r,r", [_as_bits(first), _as_bits(second), places], tl.int16, True, 2
        )
    return bits.to(first.dtype, bitcast=True)


@no_type_check
@triton.jit
def _as_bits(numbers):
    return numbers.to(tl.int16, bitcast=True)


@no_type_check
@triton.jit
def product_kernel(
    x,  # (4, M, TILES * 8 * ROWS)
    first,  # (N, TILES * ROWS) int32
    second,  # (N, TILES * ROWS) int32
    places,  # (N, TILES * ROWS) int32
    scale,  # (GROUPS, N)
    table,  # (16,), read where TABLE
    y,  # (SPLIT, M, N), written
    M: tl.constexpr,
    N: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    TILES: tl.constexpr,
    ROWS: tl.constexpr,
    FOLD: tl.constexpr,
    TABLE: tl.constexpr,
    ASM: tl.constexpr,
    COMPUTE: tl.constexpr,
    SPLIT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Computes a tile (BN, BM) of the transposed product, or a part of its sums."""
    PART: tl.constexpr = (TILES + SPLIT - 1) // SPLIT
    QUADS: tl.constexpr = TILES * 8 * ROWS
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    split = tl.program_id(2).to(tl.int64)
    in_m, in_n = tl.minimum(m, M - 1), tl.minimum(n, N - 1)  # what is beyond is not stored
    row = tl.arange(0, ROWS)
    of_words = in_n.to(tl.int64)[:, None] * (TILES * ROWS) + row[None, :]
    of_x = x + in_m.to(tl.int64)[None, :] * QUADS + row[:, None]
    total = tl.zeros((BN, BM), tl.float32)
    start = tl.program_id(2) * PART
    for tile in range(start, tl.minimum(start + PART, TILES)):
        at = of_words + tile * ROWS
        a0, a1 = halves(tl.load(first + at, eviction_policy="evict_first"))
        b0, b1 = halves(tl.load(second + at, eviction_policy="evict_first"))
        c0, c1 = halves(tl.load(places + at, eviction_policy="evict_first"))
        for f in tl.static_range(8 // FOLD):
            part = tl.zeros((BN, BM), tl.float32)
            for i in tl.static_range(FOLD):
                j = f * FOLD + i
                a = plane(a0, a1, a0, table, f * FOLD + i, 4, TABLE, COMPUTE, ASM)
                b = plane(b0, b1, b0, table, f * FOLD + i, 4, TABLE, COMPUTE, ASM)
                for p in tl.static_range(4):
                    c = c0 if f * FOLD + i < 4 else c1
                    w = _at_place(a, b, c, f * FOLD + i, p, ASM)
                    inputs = tl.load(of_x + p * M * QUADS + (tile * 8 + j) * ROWS)
                    part = tl.dot(w, inputs.to(COMPUTE), part, "ieee")
            group = tl.minimum((tile * 8 + f * FOLD) * ROWS // GROUP, GROUPS - 1)
            total += tl.load(scale + group * N + in_n)[:, None] * part
    of_y = y + (split * M + m.to(tl.int64)[None, :]) * N + n[:, None]
    tl.store(of_y, total, (m[None, :] < M) & (n[:, None] < N))
