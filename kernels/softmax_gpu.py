"""Softmax with inputs of few bits on a GPU: a Triton kernel that holds whole rows in registers.

The reference and the equations stand in `softmax`. Imported only where Triton is.
"""

from typing import no_type_check

import jax
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Array, Bool, Float32

from . import quantize_rows_gpu, triton_bridge
from .softmax import NO_RANGE, Levels, softmax_reference

_nearest = quantize_rows_gpu.nearest
LONGEST = 1 << 13  # inputs of a row: with more, some would not stay in registers
_INFINITY = tl.constexpr(float("inf"))
_NO_RANGE = tl.constexpr(float(NO_RANGE))


def softmax(
    levels: Levels,
    x: Float32[Array, "rows k"],
    clip: Float32[Array, "rows 1"],
    where: Bool[Array, "rows k"] | None = None,
) -> Float32[Array, "rows k"]:
    """As `softmax.softmax_reference`, which also takes rows that are too long."""
    tile = constants(levels, x.shape, where is not None)
    if tile["PLACES"] > LONGEST:
        return softmax_reference(levels, x, clip, where)
    return triton_bridge.call(
        softmax_kernel,
        x,
        clip,
        x if where is None else where.astype("uint8"),
        out=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=grid(tile),
        warps=warps(tile["PLACES"]),
        stages=1,
        **tile,
    )


def constants(levels: Levels, shape: tuple[int, ...], masks: bool) -> dict[str, int]:
    """What the kernel is compiled for."""
    places = triton.next_power_of_2(shape[1])
    return dict(
        M=shape[0], K=shape[1], LAST=levels.last, MASKS=masks,
        PLACES=places, ROWS=max(1, min(4, 1024 // places)),
    )  # fmt: skip


def grid(tile: dict[str, int]) -> tuple[int]:
    """The number of programs."""
    return (triton.cdiv(tile["M"], tile["ROWS"]),)


def warps(places: int) -> int:
    """As many as leave a lane at most 16 inputs, from 4 to 16."""
    return min(16, max(4, places // 512))


@no_type_check
@triton.jit
def softmax_kernel(
    x,  # (M, K)
    clip,  # (M,)
    mask,  # (M, K) bytes, read if MASKS
    y,
    M: tl.constexpr,
    K: tl.constexpr,
    LAST: tl.constexpr,
    MASKS: tl.constexpr,
    PLACES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """ROWS rows in PLACES places each."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    place = tl.arange(0, PLACES)
    at = row[:, None] * K + place[None, :]
    inside = (row < M)[:, None] & (place < K)[None, :]
    number = tl.load(x + at, inside, -_INFINITY)
    visible = inside & (number != -_INFINITY)
    if MASKS:
        visible = visible & (tl.load(mask + at, inside, 0) != 0)
    strange = visible & ((number != number) | (number == _INFINITY))
    limit = tl.load(clip + row, row < M, -1.0)
    bad = (tl.max(strange.to(tl.int32), 1) > 0) | ~(limit < 0)
    some = tl.max(visible.to(tl.int32), 1) > 0
    known = visible & ~strange
    most = tl.max(tl.where(known, number, -_INFINITY), 1)
    least = tl.min(tl.where(known, number, _INFINITY), 1)
    most, least = tl.where(some, most, 0.0), tl.where(some, least, 0.0)
    low = tl.maximum(tl.where(limit < 0, limit, -1.0), least - most)
    low = tl.where(low > -_INFINITY, low, -1.0)  # of a row that is strange anyway
    last = tl.full(low.shape, LAST, tl.float32)
    some = low < _NO_RANGE
    per_step = tl.where(some, tl.div_rn(last, tl.where(some, -low, 1.0)), 0.0)
    units = tl.where(known, most[:, None] - number, 0.0) * per_step[:, None]
    code = _nearest(tl.minimum(units, LAST * 1.0)).to(tl.int32)
    step = tl.div_rn(low, last)
    total = tl.zeros((ROWS,), tl.float32)
    for i in tl.static_range(LAST + 1):  # the smallest first
        count = tl.sum((known & (code == LAST - i)).to(tl.int32), 1)
        total += count.to(tl.float32) * tl.exp((LAST - i) * step)
    share = tl.div_rn(tl.full(total.shape, 1.0, tl.float32), tl.where(total > 0, total, 1.0))
    p = tl.where(known, tl.exp(code.to(tl.float32) * step[:, None]) * share[:, None], 0.0)
    p = tl.where((bad & (some | (total > 0)))[:, None], float("nan"), p)
    tl.store(y + at, p, inside)
