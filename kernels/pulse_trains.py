r"""Pulses where a random train on a row meets one on a column of a matrix of memory cells.

One idea belongs here: an update by trains costs arithmetic only where pulses coincide. Cells whose
step is linear in the weight take the n pulses of a sample as one Gaussian draw. This file has the
reference in jax.numpy and the public functions; `pulse_trains_cpu` has the kernel. How often a line
sends a pulse, and what cells there are, do not belong here.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, UInt32

from . import dispatch
from .normals import random_normals


class Trains(NamedTuple):
    """A train for each line of each sample: pulse t is bit t mod 32 of word t div 32."""

    bits: UInt32[Array, "*batch words lines"]
    signs: Float32[Array, "*batch lines"]  # of the pulses


class LinearCells(NamedTuple):
    """Cells (rows, columns) whose pulse moves w by s (1 - c w), within bounds."""

    w: Float32[Array, "n m"]
    shown: Float32[Array, "n m"]  # w with the noise of the last write
    low: Float32[Array, "n m"]
    high: Float32[Array, "n m"]
    up: Float32[Array, "n m"]  # s of a pulse up
    down: Float32[Array, "n m"]  # -s of a pulse down
    slope_up: Float32[Array, "n m"]  # c
    slope_down: Float32[Array, "n m"]


class Noise(NamedTuple):
    """Numbers, or arrays without axes to `vmap` over."""

    pulse: float | Array  # sigma, spread of a pulse relative to its size
    write: float | Array  # of what a read sees after pulses
    additive: bool | Array  # sigma is relative to s, not to s (1 - c w)


def coincidences(rows: Trains, columns: Trains) -> Int32[Array, "*batch n m"]:
    """How many pulses meet, with the sign of the product of both."""
    both = rows.bits[..., :, None] & columns.bits[..., None, :]
    number = jax.lax.population_count(both).sum(-3, dtype=jnp.uint32).astype(jnp.int32)
    signs = rows.signs[..., :, None] * columns.signs[..., None, :]
    return number * signs.astype(jnp.int32)


def pulse_trains(
    cells: LinearCells,
    rows: Trains,
    columns: Trains,
    key: UInt32[Array, "2"],
    noise: Noise,
) -> tuple[Float32[Array, "n m"], Float32[Array, "n m"], Bool[Array, "n m"]]:
    r"""Gives the cells the pulses of a batch of samples, one sample after the other.

    The n pulses of a cell in a sample are one Gaussian draw with the moments of the train,

    $$m \leftarrow m + s (1 - c m), \quad
      v \leftarrow (1 - s c)^2 v + (\sigma s)^2 ((1 - c m)^2 + c^2 v),$$

    additive: $(\sigma s)^2$ alone in the last term; cut at the bounds at its end. Where s c > 1 the
    mean stays where the first pulse puts it, and s c is 1 in the variance. The draw of a cell in
    sample b is that of its place in stream b (`normals.random_normals`); the second number is that
    of the write.

    On CPUs the cost is that of the coincidences. Works under `jit` and `vmap` (one run after the
    other there). It has no derivative.

    Args:
        cells: the matrix.
        rows: trains of its rows, a sample each; signs times those of the columns are directions.
        columns: trains of its columns.
        key: two words, such as `jax.random.bits(key, (2,), jnp.uint32)`.
        noise: of pulses and writes.

    Returns:
        w and shown after the last sample, and which cells got pulses.
    """
    numbers = jnp.stack([jnp.asarray(a, jnp.float32) for a in noise])
    return dispatch.run(
        "pulse_trains", "run", run_reference, *cells, *rows, *columns, key, numbers
    )  # fmt: skip


def run_reference(*arrays: Array) -> tuple[Array, Array, Array]:
    """The same on flat arguments: the fields of cells, of rows, of columns, key, noise."""
    cells, rows, columns = LinearCells(*arrays[:8]), Trains(*arrays[8:10]), Trains(*arrays[10:12])
    key, (sigma, write, additive) = arrays[12], arrays[13]

    def one(state, sample):
        w, shown, touched = state
        b, rows, columns = sample
        counts = coincidences(rows, columns)
        n, up = jnp.abs(counts), counts > 0
        step = jnp.where(up, cells.up, -cells.down)
        slope = jnp.where(up, cells.slope_up, cells.slope_down)
        share = jnp.minimum(step * slope, 1)
        keep = 1 - share
        shrink = keep**2 + jnp.where(additive > 0, 0, (sigma * share) ** 2)

        def pulse(k, law):
            mean, variance, move = law
            more = (sigma * jnp.where(additive > 0, step, move)) ** 2
            on = k < n
            return (
                jnp.where(on, mean + move, mean),
                jnp.where(on, shrink * variance + more, variance),
                move * keep,
            )

        start = w, jnp.zeros_like(w), step * (1 - slope * w)
        mean, variance, _ = jax.lax.fori_loop(0, jnp.max(n, initial=0), pulse, start)
        for_pulses, for_write = random_normals(key, b, w.shape)
        moved = jnp.clip(mean + jnp.sqrt(variance) * for_pulses, cells.low, cells.high)
        on = n > 0
        return (
            jnp.where(on, moved, w),
            jnp.where(on, moved + write * for_write, shown),
            touched | on,
        ), None

    start = cells.w, cells.shown, jnp.zeros(cells.w.shape, bool)
    samples = jnp.arange(len(rows.signs), dtype=jnp.uint32), rows, columns
    return jax.lax.scan(one, start, samples)[0]
