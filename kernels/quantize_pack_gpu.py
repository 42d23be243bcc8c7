"""Matrices of weights to codes on a GPU: a Triton kernel for a group of rows and some columns.

The reference and the equations stand in `quantize_pack`. Imported only where Triton is.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Array, Float32, UInt32

from . import noise_gpu, quantize_rows_gpu, stochastic_gpu, triton_bridge
from .quantize_pack import CODES, Method, matrix_reference

_block, _rounded, _nearest = noise_gpu.block, stochastic_gpu.rounded, quantize_rows_gpu.nearest
_NUMBERS = 4096  # of a program
WARPS = 8  # 16 numbers a lane: with more some would not stay in registers
_TINY = tl.constexpr(2.0**-126)
_INFINITY = tl.constexpr(float("inf"))
_MOST = tl.constexpr(131072.0)


def matrix(
    method: Method,
    w: Float32[Array, "k n"],
    scale: Float32[Array, "groups n"],
    zero: Float32[Array, "groups n"],
    keys: UInt32[Array, "1 3"],
) -> tuple[Array, Array, Array]:
    """As `quantize_pack.matrix_reference`, which also takes groups that are too long."""
    tile = constants(method, w.shape)
    if tile is None:
        return matrix_reference(method, w, scale, zero, keys)
    return triton_bridge.call(
        matrix_kernel,
        w,
        scale,
        zero,
        keys,
        *map(jnp.asarray, tables(method)),
        out=(
            jax.ShapeDtypeStruct(w.shape, jnp.uint8),
            jax.ShapeDtypeStruct(scale.shape, jnp.float32),
            jax.ShapeDtypeStruct(scale.shape, jnp.float32),
        ),
        grid=grid(tile),
        warps=WARPS,
        stages=1,
        **tile,
    )


def tables(method: Method) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Clip ratios; the values of the table, their codes, and from where on each is taken."""
    return method.ratios, *method.nearest()


def constants(method: Method, shape: tuple[int, ...]) -> dict[str, float | int] | None:
    """What the kernel is compiled for; None for groups that are too long."""
    k, n = shape
    rows = k // method.groups
    if rows > _NUMBERS // 4:
        return None
    places = triton.next_power_of_2(rows)
    return dict(
        ROWS=rows,
        N=n,
        PLACES=places,
        COLUMNS=min(128, _NUMBERS // places),
        GROUPS=method.groups,
        STEPS=method.steps,
        MIDDLE=1 << method.bits - 1,
        TOP=(1 << method.bits) - 1,
        ZEROS=method.zeros,
        TABLE=CODES if method.table is not None else 0,
        CLIPS=method.clips,
        GIVEN=method.given,
        STOCHASTIC=method.stochastic,
    )


def grid(tile: dict) -> tuple[int, int]:
    """The number of programs down and across."""
    return tile["GROUPS"], triton.cdiv(tile["N"], tile["COLUMNS"])


@no_type_check
@triton.jit
def _clipped(
    low,
    high,
    finite,
    ratio,
    STEPS: tl.constexpr,
    MIDDLE: tl.constexpr,
    TOP: tl.constexpr,
    ZEROS: tl.constexpr,
):
    """Scales and zero points of a clip."""
    span = high - low if ZEROS else tl.maximum(high, -low)
    scale = tl.div_rn(span * ratio, tl.full(span.shape, STEPS, tl.float32))
    scale = tl.where(scale >= _TINY, scale, 1.0)
    if ZEROS:
        zero = _nearest(tl.div_rn(-(low * ratio), scale))
        zero = tl.minimum(tl.maximum(zero, 0.0), TOP * 1.0)
    else:
        zero = tl.full(span.shape, MIDDLE * 1.0, tl.float32)
    return tl.where(finite, scale, float("nan")), zero


@no_type_check
@triton.jit
def _coded(
    w, scale, zero, words, values, codes, starts,
    TOP: tl.constexpr, TABLE: tl.constexpr, DRAWN: tl.constexpr,
):  # fmt: skip
    """The codes of a tile, and what they stand for."""
    units = tl.div_rn(w, tl.broadcast_to(scale[None, :], w.shape))
    units = tl.where(units == units, units, 0.0)
    if TABLE > 0:
        code = tl.zeros(w.shape, tl.int32) + tl.load(codes)
        value = tl.zeros(w.shape, tl.float32) + tl.load(values)
        for t in tl.static_range(1, TABLE):
            beyond = units >= tl.load(starts + t)
            code = tl.where(beyond, tl.load(codes + t), code)
            value = tl.where(beyond, tl.load(values + t), value)
        return code, value * scale[None, :]
    whole = tl.floor(zero)[None, :]
    units = tl.minimum(tl.maximum(units, -_MOST), _MOST) + (zero[None, :] - whole)
    if DRAWN:
        near = _rounded(tl.abs(units), words)
        code = tl.where(units < 0, -near, near) + whole
    else:
        code = _nearest(units) + whole
    code = tl.minimum(tl.maximum(code, 0.0), TOP * 1.0)
    return code.to(tl.int32), (code - zero[None, :]) * scale[None, :]


@no_type_check
@triton.jit
def matrix_kernel(
    w,  # (GROUPS * ROWS, N)
    given_scale,  # (GROUPS, N)
    given_zero,
    keys,
    ratios,
    values,
    table_codes,
    starts,
    out,
    out_scale,
    out_zero,
    ROWS: tl.constexpr,
    N: tl.constexpr,
    PLACES: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUPS: tl.constexpr,
    STEPS: tl.constexpr,
    MIDDLE: tl.constexpr,
    TOP: tl.constexpr,
    ZEROS: tl.constexpr,
    TABLE: tl.constexpr,
    CLIPS: tl.constexpr,
    GIVEN: tl.constexpr,
    STOCHASTIC: tl.constexpr,
):
    """ROWS rows of a group in PLACES places, and COLUMNS columns."""
    group = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    place = tl.arange(0, PLACES)
    at = (group * ROWS + place)[:, None] * N + column[None, :]
    inside = (place < ROWS)[:, None] & (column < N)[None, :]
    number = tl.load(w + at, inside, 0.0)
    at_group = group * N + column
    if GIVEN:
        scale = tl.load(given_scale + at_group, column < N, 1.0)
        zero = tl.load(given_zero + at_group, column < N, 0.0)
    else:
        finite = tl.min((tl.abs(number) < _INFINITY).to(tl.int32), 0) > 0
        low = tl.minimum(tl.min(number, 0), 0.0)
        high = tl.maximum(tl.max(number, 0), 0.0)
        scale, zero = _clipped(low, high, finite, 1.0, STEPS, MIDDLE, TOP, ZEROS)
        if CLIPS > 1:
            best = tl.full((COLUMNS,), _INFINITY, tl.float32)
            for i in range(CLIPS):
                ratio = tl.load(ratios + i)
                s, z = _clipped(low, high, finite, ratio, STEPS, MIDDLE, TOP, ZEROS)
                _, back = _coded(
                    number, s, z, 0, values, table_codes, starts, TOP, TABLE, False
                )  # fmt: skip
                error = tl.sum(tl.where(inside, (number - back) * (number - back), 0.0), 0)
                better = error < best
                scale, zero = tl.where(better, s, scale), tl.where(better, z, zero)
                best = tl.where(better, error, best)
    if STOCHASTIC:
        words, _ = _block(tl.load(keys), tl.load(keys + 1), at.to(tl.uint32), tl.load(keys + 2))
    else:
        words = 0
    code, _ = _coded(
        number, scale, zero, words, values, table_codes, starts, TOP, TABLE, STOCHASTIC
    )  # fmt: skip
    tl.store(out + at, code.to(tl.uint8), inside)
    tl.store(out_scale + at_group, scale, column < N)
    tl.store(out_zero + at_group, zero, column < N)
