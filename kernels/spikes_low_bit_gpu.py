"""Spikes x low-bit weights on a GPU: codes in tensor cores, tiles without an event skipped.

References and gradients stand in `spikes_low_bit`. Codes of 8 bits and spikes are exact in
float16, and sums of a group in the float32 of the tensor cores; the scale comes after them.
Imported only where Triton is; the tests run the kernel in Triton's interpreter and compile it for
GPUs that are not there.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Array, Float32

from . import triton_bridge
from .layouts import PackedMatrix
from .layouts_rows import COLUMNS
from .matrix import zero_points
from .spike_bits import WORD, SpikeBits

_TILE = {"ROWS": 64, "INNER": 32}
_WARPS, _STAGES = 4, 3
_HALF = tl.constexpr(COLUMNS // 2)
_WORD = tl.constexpr(WORD)


def forward(x: Array | SpikeBits, w: PackedMatrix) -> Float32[Array, "rows n"]:
    """Computes x @ w for rows of bool, of packed bits or of float32."""
    packed = isinstance(x, SpikeBits)
    inputs = x.words if packed else x
    graded = inputs.dtype == jnp.float32
    rows, n = inputs.shape[0], w.shape[1]
    return triton_bridge.call(
        forward_kernel,
        inputs if packed or graded else inputs.astype(jnp.uint8),
        w.words[0],
        w.scale,
        zero_points(w.scale, w.zero, w.bits),
        out=jax.ShapeDtypeStruct((rows, n), jnp.float32),
        grid=grid(rows, n),
        warps=_WARPS,
        stages=_STAGES,
        **constants(rows, w.shape, w.scale.shape[0], w.bits, packed, graded),
    )


def constants(
    m: int, shape: tuple[int, int], groups: int, bits: int, packed: bool, graded: bool
) -> dict:
    """The constants the kernel is compiled with for m rows and a matrix of a shape."""
    k, n = shape
    compute, precision = (tl.float32, "tf32x3") if graded else (tl.float16, "ieee")
    return dict(
        M=m, K=k, N=n, GROUPS=groups, BITS=bits, PACKED=packed, COMPUTE=compute,
        PRECISION=precision, **_TILE
    )  # fmt: skip


def grid(m: int, n: int) -> tuple[int, int]:
    """The number of tiles of the result, down and across."""
    return triton.cdiv(m, _TILE["ROWS"]), triton.cdiv(n, COLUMNS)


@no_type_check
@triton.jit
def _spikes(x, rows, inner, inside, M, K: tl.constexpr, PACKED: tl.constexpr):
    """A tile of the inputs, from words of bits or as it is."""
    at = (rows[:, None] < M) & inside[None, :]
    if PACKED:
        words = tl.load(
            x + rows.to(tl.int64)[:, None] * ((K + _WORD - 1) // _WORD) + inner[None, :] // _WORD,
            at,
            0,
        )
        return (words >> (inner[None, :] % _WORD).to(tl.uint32)) & 1
    return tl.load(x + rows.to(tl.int64)[:, None] * K + inner[None, :], at, 0)


@no_type_check
@triton.jit
def _codes(words, inner, inside, columns, WIDTH: tl.constexpr, BITS: tl.constexpr):
    """The codes of the first and of the second half of 64 columns; columns: of the first half."""
    if BITS == 8:
        at = words + inner.to(tl.int64)[:, None] * WIDTH + columns[None, :]
        first = tl.load(at, inside[:, None], 0)
        return first, tl.load(at + _HALF, inside[:, None], 0)
    at = words + inner.to(tl.int64)[:, None] * (WIDTH // 2) + columns[None, :]
    both = tl.load(at, inside[:, None], 0)
    return both & 15, both >> 4


@no_type_check
@triton.jit
def _finish(y, part, scale, zero, count, group, columns, N: tl.constexpr):
    """Adds the sums of a group, less the zero point of each event, times the scale."""
    at, in_n = group * N + columns, columns < N
    s, z = tl.load(scale + at, in_n, 0.0), tl.load(zero + at, in_n, 0.0)
    return y + s[None, :] * (part - count[:, None] * z[None, :])


@no_type_check
@triton.jit
def forward_kernel(
    x,  # (M, K), or (M, words) of bits
    words,  # codes in the layout `rows`
    scale,  # (GROUPS, N)
    zero,  # (GROUPS, N)
    y,  # (M, N), written
    M: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    GROUPS: tl.constexpr,
    BITS: tl.constexpr,
    PACKED: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
):
    """Computes a tile of ROWS x 64 of y, the two halves of its columns side by side."""
    width: tl.constexpr = (N + 2 * _HALF - 1) // (2 * _HALF) * 2 * _HALF
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    half = tl.arange(0, _HALF)
    first = tl.program_id(1) * 2 * _HALF + half
    byte = first if BITS == 8 else tl.program_id(1) * _HALF + half
    y_first, y_second = tl.zeros((ROWS, _HALF), tl.float32), tl.zeros((ROWS, _HALF), tl.float32)
    for group in range(0, GROUPS):
        count = tl.zeros((ROWS,), tl.float32)
        part_first = tl.zeros((ROWS, _HALF), tl.float32)
        part_second = tl.zeros((ROWS, _HALF), tl.float32)
        for start in range(0, K // GROUPS, INNER):
            inner = group * (K // GROUPS) + start + tl.arange(0, INNER)
            inside = start + tl.arange(0, INNER) < K // GROUPS
            spikes = _spikes(x, rows, inner, inside, M, K, PACKED).to(tl.float32)
            if tl.max(tl.max((spikes != 0.0).to(tl.int32), 1), 0) > 0:
                count += tl.sum(spikes, 1)
                a, b = _codes(words, inner, inside, byte, width, BITS)
                part_first = tl.dot(
                    spikes.to(COMPUTE), a.to(tl.float32).to(COMPUTE), part_first, PRECISION
                )
                part_second = tl.dot(
                    spikes.to(COMPUTE), b.to(tl.float32).to(COMPUTE), part_second, PRECISION
                )
        y_first = _finish(y_first, part_first, scale, zero, count, group, first, N)
        y_second = _finish(y_second, part_second, scale, zero, count, group, first + _HALF, N)
    at = y + rows.to(tl.int64)[:, None] * N + first[None, :]
    tl.store(at, y_first, (rows[:, None] < M) & (first[None, :] < N))
    tl.store(at + _HALF, y_second, (rows[:, None] < M) & (first[None, :] + _HALF < N))
