"""Walsh-Hadamard transforms on a GPU: Triton kernels that hold whole rows in registers.

The references stand in `hadamard`. Butterflies are shuffles between the lanes; the factor that is
not a power of two, and rotations of blocks, are products of float32 in three parts on tensor cores.
Imported only where Triton is.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Array, Float32

from . import quantize_rows_gpu, triton_bridge
from .hadamard import (
    Transform,
    factor,
    rotate_blocks,
    transform_quantize_reference,
    transform_reference,
)
from .quantize_rows import Codes
from .quantize_rows_gpu import quantized, warps

LONGEST = 1 << 14  # numbers of a row, with padding: 64 KB of registers
_ROWS = 16  # blocks that a program rotates: the fewest rows of a matrix product


def transform(settings: Transform, x: Float32[Array, "rows n"]) -> Float32[Array, "rows n"]:
    """As `hadamard.transform_reference`, which also takes rows that are too long."""
    tile = constants(settings, None, x.shape)
    if tile is None:
        return transform_reference(settings, x)
    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    (y,) = _run(tile, settings, x, (out,))
    return y


def transform_quantize(
    settings: Transform, codes: Codes, x: Float32[Array, "rows n"]
) -> tuple[Array, Array, Array]:
    """As `hadamard.transform_quantize_reference`, in two steps where groups do not fit tiles."""
    tile = constants(settings, codes, x.shape)
    if tile is None:
        if constants(settings, None, x.shape) is None:
            return transform_quantize_reference(settings, codes, x)
        return quantize_rows_gpu.rows(codes, transform(settings, x))
    return _run(tile, settings, x, quantize_rows_gpu.results(codes, x.shape))


def rotate_quantize(
    codes: Codes, x: Float32[Array, "rows n"], matrix: Float32[Array, "g g"]
) -> tuple[Array, Array, Array]:
    """As `hadamard.rotate_quantize_reference`; in one step where a group lies within a block."""
    m, n = x.shape
    group, g = n // codes.groups, len(matrix)
    if g % group or group & (group - 1):
        return quantize_rows_gpu.rows(codes, rotate_blocks(x, matrix))
    tile = rotation_constants(codes, (m, n), g)
    return triton_bridge.call(
        rotate_kernel,
        x,
        matrix,
        out=quantize_rows_gpu.results(codes, x.shape),
        grid=(triton.cdiv(tile["BLOCKS"], _ROWS),),
        warps=4,
        stages=1,
        **tile,
    )


def _run(tile, settings, x, out):
    return triton_bridge.call(
        transform_kernel if len(out) == 1 else transform_quantize_kernel,
        x,
        jnp.asarray(settings.signs()),
        out=out,
        grid=grid(tile),
        warps=warps(tile["B2"] * tile["POWER"] * tile["ROWS"]),
        stages=1,
        **tile,
    )


def constants(
    settings: Transform, codes: Codes | None, shape: tuple[int, ...]
) -> dict[str, float | int] | None:
    """What a kernel is compiled for; None where it cannot take these rows or groups."""
    (m, n), b = shape, settings.b
    power, b2 = n // b, triton.next_power_of_2(b)
    b2 = b2 if b == 1 else max(16, b2)
    if b2 * power > LONGEST:
        return None
    rows = max(1, 1024 // n) if b == 1 else 1
    tile = dict(
        M=m, B=b, B2=b2, POWER=power, STAGES=power.bit_length() - 1, ROWS=rows,
        FACTOR=float(factor(n, jnp.dtype("float32"))),
    )  # fmt: skip
    if codes is None:
        return tile
    group = n // codes.groups
    if b > 1 and group != n and (group & (group - 1) or group > power):
        return None
    return dict(**tile, GROUP=b2 * power if group == n else group, STEPS=codes.steps)


def rotation_constants(codes: Codes, shape: tuple[int, int], g: int) -> dict[str, int]:
    """What the kernel of rotations is compiled for."""
    m, n = shape
    return dict(BLOCKS=m * (n // g), SIZE=g, ROWS=_ROWS, GROUP=n // codes.groups, STEPS=codes.steps)


def grid(tile: dict) -> tuple[int]:
    """The number of programs."""
    return (triton.cdiv(tile["M"], tile["ROWS"]),)


@no_type_check
@triton.jit
def _places(
    M: tl.constexpr, B: tl.constexpr, B2: tl.constexpr, POWER: tl.constexpr, ROWS: tl.constexpr
):
    """Where the numbers of a program's tile (ROWS * B2, POWER) lie, and which of them there are."""
    line = tl.arange(0, ROWS * B2)
    row = tl.program_id(0).to(tl.int64) * ROWS + line // B2
    there = (line % B2 < B) & (row < M)
    at = (row * B + line % B2)[:, None] * POWER + tl.arange(0, POWER)[None, :]
    return at, tl.broadcast_to(there[:, None], at.shape)


@no_type_check
@triton.jit
def _transformed(
    x,
    signs,
    at,
    inside,
    B: tl.constexpr,
    B2: tl.constexpr,
    POWER: tl.constexpr,
    STAGES: tl.constexpr,
    ROWS: tl.constexpr,
    FACTOR: tl.constexpr,
):
    SIZE: tl.constexpr = ROWS * B2 * POWER
    if B > 1:  # both factors may come first; this one reads each line of the only row once
        tile = tl.zeros((B2, POWER), tl.float32)
        start = tl.program_id(0).to(tl.int64) * (B * POWER)
        i, place = tl.arange(0, B2)[:, None], tl.arange(0, POWER)[None, :]
        for first in range(0, B2, 16):
            j = first + tl.arange(0, 16)
            line = tl.broadcast_to((j < B)[:, None], (16, POWER))
            lines = tl.load(x + start + j[:, None] * POWER + place, line, 0.0)
            columns = tl.load(signs + i * B + j[None, :], (i < B) & (j[None, :] < B), 0.0)
            tile = tl.dot(columns, lines, tile, input_precision="tf32x3")
    else:
        tile = tl.load(x + at, inside, 0.0)
    for stage in tl.static_range(STAGES):
        pairs = tl.permute(tl.reshape(tile, (SIZE >> (stage + 1), 2, 1 << stage)), (0, 2, 1))
        a, b = tl.split(pairs)
        tile = tl.permute(tl.join(a + b, a - b), (0, 2, 1))
    return tl.reshape(tile, (ROWS * B2, POWER)) * FACTOR


@no_type_check
@triton.jit
def transform_kernel(
    x,  # (M, B * POWER)
    signs,  # (B, B)
    y,
    M: tl.constexpr,
    B: tl.constexpr,
    B2: tl.constexpr,
    POWER: tl.constexpr,
    STAGES: tl.constexpr,
    ROWS: tl.constexpr,
    FACTOR: tl.constexpr,
):
    """ROWS rows, as ROWS * B2 lines of POWER numbers of which B each are there."""
    at, inside = _places(M, B, B2, POWER, ROWS)
    tile = _transformed(x, signs, at, inside, B, B2, POWER, STAGES, ROWS, FACTOR)
    tl.store(y + at, tile, inside)


@no_type_check
@triton.jit
def transform_quantize_kernel(
    x,  # (M, B * POWER)
    signs,  # (B, B)
    codes,
    scale,  # (M, groups)
    sums,
    M: tl.constexpr,
    B: tl.constexpr,
    B2: tl.constexpr,
    POWER: tl.constexpr,
    STAGES: tl.constexpr,
    ROWS: tl.constexpr,
    FACTOR: tl.constexpr,
    GROUP: tl.constexpr,  # places in the tile, with those of which there is nothing
    STEPS: tl.constexpr,
):
    """As `transform_kernel`, then codes of groups of the tile."""
    at, inside = _places(M, B, B2, POWER, ROWS)
    tile = _transformed(x, signs, at, inside, B, B2, POWER, STAGES, ROWS, FACTOR)
    PARTS: tl.constexpr = ROWS * B2 * POWER // GROUP
    q, s, total = quantized(tl.reshape(tile, (PARTS, GROUP)), STEPS)
    tl.store(codes + at, tl.reshape(q, (ROWS * B2, POWER)).to(tl.int8), inside)
    WITHIN: tl.constexpr = B2 * POWER // GROUP  # groups of a row, and how many of them there are
    THERE: tl.constexpr = max(1, B * POWER // GROUP)
    part = tl.arange(0, PARTS)
    row = tl.program_id(0).to(tl.int64) * ROWS + part // WITHIN
    known = (row < M) & (part % WITHIN < THERE)
    tl.store(scale + row * THERE + part % WITHIN, s, known)
    tl.store(sums + row * THERE + part % WITHIN, total, known)


@no_type_check
@triton.jit
def rotate_kernel(
    x,  # (BLOCKS, SIZE)
    matrix,  # (SIZE, SIZE)
    codes,
    scale,  # (BLOCKS * SIZE / GROUP,)
    sums,
    BLOCKS: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    STEPS: tl.constexpr,
):
    """ROWS blocks times the matrix, then codes of groups within a block."""
    block = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    place = tl.arange(0, SIZE)
    at = block[:, None] * SIZE + place[None, :]
    inside = tl.broadcast_to((block < BLOCKS)[:, None], at.shape)
    tile = tl.zeros((ROWS, SIZE), tl.float32)
    for first in range(0, SIZE, 32):
        inner = first + tl.arange(0, 32)
        there = tl.broadcast_to((block < BLOCKS)[:, None], (ROWS, 32))
        part = tl.load(x + block[:, None] * SIZE + inner[None, :], there, 0.0)
        rotation = tl.load(matrix + inner[:, None] * SIZE + place[None, :])
        tile = tl.dot(part, rotation, tile, input_precision="tf32x3")
    PARTS: tl.constexpr = ROWS * SIZE // GROUP
    q, s, total = quantized(tl.reshape(tile, (PARTS, GROUP)), STEPS)
    tl.store(codes + at, tl.reshape(q, (ROWS, SIZE)).to(tl.int8), inside)
    part = tl.program_id(0).to(tl.int64) * PARTS + tl.arange(0, PARTS)
    known = part < BLOCKS * (SIZE // GROUP)
    tl.store(scale + part, s, known)
    tl.store(sums + part, total, known)
