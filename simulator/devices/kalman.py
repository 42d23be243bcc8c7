r"""The likelihood of measured pulse traces under soft bounds: a scalar Kalman filter.

Soft bounds with additive noise, read with noise, are a linear-Gaussian model of one number for each
cell, so the density of its reads is exact. Which parameters are likely is found in `fit.py`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .many_pulses import after_pulses


class Trace(NamedTuple):
    """What was done to cells and what was seen; in a row first pulses, then a read."""

    numbers: Float[Any, " kinds"]  # of pulses, up where positive: all that occur
    kind: Int[Any, "rows cells"]  # which of them
    g: Float[Any, "rows cells"]  # over the place where steps are quoted; NaN: not measured
    fresh: Bool[Any, "rows cells"]  # the cell may be anywhere at this read


class SoftBounds(NamedTuple):
    """Cells that a pulse moves by `up (1 - g / high)` or `-down (1 - g / low)`."""

    up: Float[Any, "*sets cells"]  # size of a step where g is 0
    down: Float[Any, "*sets cells"]
    high: Float[Any, "*sets cells"]  # bounds, above and below 0
    low: Float[Any, "*sets cells"]
    pulse: Float[Any, "*sets cells"]  # noise of a pulse, as a share of the step at 0
    read: Float[Any, "*sets cells"]  # noise of a read, in the unit of g


class Filtered(NamedTuple):
    """Of each read before it is seen; NaN where there is none, and at the first of a fresh cell."""

    innovation: Float[Array, "rows *sets cells"]  # read minus prediction
    spread: Float[Array, "rows *sets cells"]  # standard deviation of that by the model


class Scored(NamedTuple):
    """Log likelihood of each cell, and its derivatives by the fields of `SoftBounds` in order."""

    log_likelihood: Float[Array, "*sets cells"]
    gradient: Float[Array, "6 *sets cells"]
    information: Float[Array, "6 6 *sets cells"]  # expected, given the reads before


class _Laws(NamedTuple):
    """A train of pulses as g <- kept g + moved, with a variance added."""

    kept: Float[Array, "kinds *sets cells"]
    moved: Float[Array, "kinds *sets cells"]
    added: Float[Array, "kinds *sets cells"]


def filtered(cells: SoftBounds, trace: Trace) -> Filtered:
    """Runs the filter along the traces; several sets of parameters are run side by side.

    The first read of a fresh cell tells where it is and has no density of its own: the limit of a
    prior without width.
    """
    laws = _laws(cells, trace.numbers)

    def row(state: tuple, x: tuple) -> tuple[tuple, Filtered]:
        mean, variance, known = state
        kind, y, fresh = x
        known = known & ~fresh
        law = _at(laws, kind)
        mean, variance, error, total = _step(mean, variance, law, cells.read, y, known)
        told = known & ~jnp.isnan(y)
        seen = Filtered(jnp.where(told, error, jnp.nan), jnp.where(told, jnp.sqrt(total), jnp.nan))
        return (mean, variance, known | ~jnp.isnan(y)), seen

    zero = jnp.zeros_like(cells.up)
    start = (zero, zero, jnp.zeros(trace.g.shape[1:], bool))
    return jax.lax.scan(row, start, (trace.kind, trace.g, trace.fresh))[1]


def log_likelihood(cells: SoftBounds, trace: Trace) -> Float[Array, "*sets cells"]:
    """The log density of the reads of each cell, after the first of each fresh one."""
    seen = filtered(cells, trace)
    density = -0.5 * (seen.innovation / seen.spread) ** 2 - jnp.log(seen.spread)
    told = ~jnp.isnan(seen.innovation)
    return jnp.where(told, density - 0.5 * jnp.log(2 * jnp.pi), 0.0).sum(0)


def scores(cells: SoftBounds, trace: Trace) -> Scored:
    r"""The log likelihood with its gradient and information, in one pass and without storing rows.

    With innovations e of variance S, the information is the sum over reads of
    $\partial e\,\partial e^\top / S + \partial S\,\partial S^\top / (2 S^2)$.
    """
    count, shape = len(SoftBounds._fields), cells.up.shape
    dtype = cells.up.dtype

    def direction(i: Array) -> SoftBounds:
        return SoftBounds._make(
            jnp.broadcast_to((i == k).astype(dtype), shape) for k in range(count)
        )

    each = jax.vmap(direction)(jnp.arange(count))
    laws = _laws(cells, trace.numbers)
    tilts = jax.vmap(lambda t: jax.jvp(lambda c: _laws(c, trace.numbers), (cells,), (t,))[1])(each)

    def row(state: tuple, x: tuple) -> tuple[tuple, None]:
        mean, variance, known, d_mean, d_variance, total_log, gradient, information = state
        kind, y, fresh = x
        known = known & ~fresh
        at = (mean, variance, _at(laws, kind), cells.read)

        def step(mean: Array, variance: Array, law: _Laws, read: Array) -> tuple[Array, ...]:
            return _step(mean, variance, law, read, y, known)

        def tilted(*tilt: Any) -> tuple[Any, Any]:
            return jax.jvp(step, at, tilt)

        (mean, variance, e, s), (d_mean, d_variance, d_e, d_s) = jax.vmap(
            tilted, out_axes=(None, 0)
        )(d_mean, d_variance, jax.vmap(_at, (0, None))(tilts, kind), each.read)
        told = known & ~jnp.isnan(y)
        weight = jnp.where(told, 1 / s, 0)
        share = e * weight
        log = -0.5 * (e * share + jnp.where(told, jnp.log(2 * jnp.pi * s), 0))
        gradient = gradient - share * d_e + 0.5 * (share**2 - weight) * d_s
        information = information + weight * d_e[:, None] * d_e
        information = information + 0.5 * weight**2 * d_s[:, None] * d_s
        known = known | ~jnp.isnan(y)
        return (
            mean, variance, known, d_mean, d_variance, total_log + log, gradient, information
        ), None  # fmt: skip

    zero, zeros = jnp.zeros(shape, dtype), jnp.zeros((count, *shape), dtype)
    start = (
        zero, zero, jnp.zeros(trace.g.shape[1:], bool), zeros, zeros, zero, zeros,
        jnp.zeros((count, count, *shape), dtype),
    )  # fmt: skip
    end = jax.lax.scan(row, start, (trace.kind, trace.g, trace.fresh))[0]
    return Scored(*end[5:])


def _laws(cells: SoftBounds, numbers: Array) -> _Laws:
    """What each number of pulses does to each cell."""
    n = numbers.reshape(-1, *(1,) * cells.up.ndim)
    step = jnp.where(n > 0, cells.up, -cells.down)
    slope = 1 / jnp.where(n > 0, cells.high, cells.low)
    law = after_pulses(jnp.zeros_like(step), step, slope, jnp.abs(n), 1.0, additive=True)
    return _Laws(1 - slope * law.mean, law.mean, cells.pulse**2 * law.variance)


def _at(laws: _Laws, kind: Array) -> _Laws:
    """The law of the kind of each cell."""

    def chosen(table: Array) -> Array:
        index = jnp.broadcast_to(kind, (1, *table.shape[1:]))
        return jnp.take_along_axis(table, index, 0)[0]

    return _Laws(*map(chosen, laws))


def _step(
    mean: Array, variance: Array, law: _Laws, read: Array, y: Array, known: Array
) -> tuple[Array, Array, Array, Array]:
    """Pulses, then a read: mean and variance after both, innovation and its variance before it."""
    mean, variance = law.kept * mean + law.moved, law.kept**2 * variance + law.added
    seen = ~jnp.isnan(y)
    noise = read**2
    total = variance + noise
    error = jnp.where(seen, y, 0.0) - mean
    gain = jnp.where(known, variance / jnp.where(known, total, 1.0), 1.0)
    after = jnp.where(seen, mean + gain * error, mean)
    return after, jnp.where(seen, gain * noise, variance), error, jnp.where(known, total, 1.0)
