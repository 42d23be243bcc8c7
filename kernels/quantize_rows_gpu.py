"""Rows as small integers on a GPU: a Triton kernel with the bits of `quantize_rows.rows_reference`.

A program takes some groups of numbers, whole. Imported only where Triton is.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Array, Float32

from . import triton_bridge
from .quantize_rows import Codes, rows_reference

LONGEST = 1 << 13  # numbers of a group: with more, some would not stay in registers
_MAGIC = tl.constexpr(1.5 * 2**23)  # added and taken away it leaves the nearest integer
_TINY = tl.constexpr(2.0**-126)
_INFINITY = tl.constexpr(float("inf"))
_NAN = tl.constexpr(float("nan"))


def rows(settings: Codes, x: Float32[Array, "rows k"]) -> tuple[Array, Array, Array]:
    """As `quantize_rows.rows_reference`, which also takes groups that are too long."""
    m, k = x.shape
    group = k // settings.groups
    if triton.next_power_of_2(group) > LONGEST:
        return rows_reference(settings, x)
    tile = constants(settings, m, group)
    return triton_bridge.call(
        rows_kernel,
        x,
        out=results(settings, x.shape),
        grid=grid(tile),
        warps=warps(tile["PARTS"] * tile["PLACES"]),
        stages=1,
        **tile,
    )


def results(settings: Codes, shape: tuple[int, ...]) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The shapes of codes, scale and sums."""
    groups = shape[0], settings.groups
    return (
        jax.ShapeDtypeStruct(shape, jnp.int8),
        jax.ShapeDtypeStruct(groups, jnp.float32),
        jax.ShapeDtypeStruct(groups, jnp.int32),
    )


def constants(settings: Codes, m: int, group: int) -> dict[str, int]:
    """What the kernel is compiled for: groups of a program, places of a group."""
    places = triton.next_power_of_2(group)
    return dict(
        GROUPS=m * settings.groups,
        GROUP=group,
        STEPS=settings.steps,
        PARTS=max(1, 1024 // places),
        PLACES=places,
    )


def grid(tile: dict[str, int]) -> tuple[int]:
    """The number of programs."""
    return (triton.cdiv(tile["GROUPS"], tile["PARTS"]),)


def warps(numbers: int) -> int:
    """As many as leave a lane at most 32 numbers, from 4 to 16."""
    return min(16, max(4, numbers // 1024))


@no_type_check
@triton.jit
def nearest(x):
    """The nearest integer, of two the even one, as a float; |x| is below 2^22."""
    return (x + _MAGIC) - _MAGIC


@no_type_check
@triton.jit
def quantized(parts, STEPS: tl.constexpr):
    """The codes, scale and sum of each row of a tile (parts, places)."""
    amax = tl.max(tl.where(parts == parts, tl.abs(parts), _INFINITY), 1)
    finite = amax < _INFINITY
    scale = tl.div_rn(tl.where(finite, amax, 0.0), tl.full(amax.shape, STEPS, tl.float32))
    scale = tl.where(scale >= _TINY, scale, 1.0)
    bounded = tl.where(finite[:, None], parts, 0.0)
    units = tl.div_rn(bounded, tl.broadcast_to(scale[:, None], bounded.shape))
    codes = nearest(units).to(tl.int32)
    return codes, tl.where(finite, scale, _NAN), tl.sum(codes, 1)


@no_type_check
@triton.jit
def rows_kernel(
    x,  # GROUPS * GROUP numbers
    codes,
    scale,
    sums,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    STEPS: tl.constexpr,
    PARTS: tl.constexpr,
    PLACES: tl.constexpr,
):
    """PARTS groups, each in PLACES places."""
    part = tl.program_id(0).to(tl.int64) * PARTS + tl.arange(0, PARTS)
    place = tl.arange(0, PLACES)
    at = part[:, None] * GROUP + place[None, :]
    inside = (part[:, None] < GROUPS) & (place[None, :] < GROUP)
    q, s, total = quantized(tl.load(x + at, inside, 0.0), STEPS)
    tl.store(codes + at, q.to(tl.int8), inside)
    tl.store(scale + part, s, part < GROUPS)
    tl.store(sums + part, total, part < GROUPS)
