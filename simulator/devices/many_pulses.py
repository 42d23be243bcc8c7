"""Many pulses in one draw, for cells whose step is linear in the weight.

The moments of a train of pulses in closed form. What the step of a kind of cell is stands in
`pulsed.py`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class Moments(NamedTuple):
    """Of the weight after the pulses."""

    mean: Float[Array, "..."]
    variance: Float[Array, "..."]


def after_pulses(
    w: Float[Array, "..."],
    step: Float[Array, "..."],
    slope: Float[Array, "..."],
    pulses: Float[Array, "..."],
    noise: float,
    *,
    additive: bool,
) -> Moments:
    r"""Moments after n pulses $w \leftarrow w + s(1 - c w) + s\sigma\xi\,(1 - c w)$, unclipped.

    The law is a Gaussian where the noise is additive, or c is 0, or there is one pulse; else it is
    near one as long as $s c \sigma$ is small. A step beyond what is left (s c > 1) ends there.

    Args:
        w: before the pulses.
        step: s, with the sign of the direction.
        slope: c; the inverse of the bound for soft bounds, 0 for constant steps.
        pulses: n, whole numbers of at least 0.
        noise: sigma, spread of a pulse relative to its size.
        additive: the noise does not shrink with the step: $s\sigma\xi$.
    """
    share = jnp.minimum(step * slope, 1)
    first = step * (1 - slope * w)
    mean = w + first * _geometric(pulses, share)
    if additive:
        return Moments(mean, (noise * step) ** 2 * _geometric(pulses, share * (2 - share)))
    spread = (noise * share) ** 2
    second = (1 - share) ** 2 + spread  # by which the mean square of what is left shrinks
    safe = jnp.where(second > 0, second, 1)
    powers = jnp.exp((pulses - 1) * jnp.log(safe)) * _geometric(pulses, spread / safe)
    powers = jnp.where(second > 0, powers, (pulses == 1).astype(safe.dtype))
    return Moments(mean, (noise * first) ** 2 * powers)


def _geometric(n: Array, u: Array) -> Array:
    """1 + (1 - u) + ... + (1 - u)^(n - 1), exact for small u."""
    some = jnp.abs(u) > jnp.finfo(u.dtype).tiny
    safe = jnp.where(some, u, 0.5)
    total = -jnp.expm1(n * jnp.log1p(-safe)) / safe
    return jnp.where(n > 0, jnp.where(some, total, n), 0)
