"""The unit of formats that have none of their own: how a scale is found from the numbers."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..kernels import largest_magnitude


def absmax(x: Float[Array, "*dims"], axis: int | None = None) -> Float[Array, "..."]:
    """The largest finite |x| of a tensor, or along one axis; 0 for an empty one."""
    rows = x.ravel() if axis is None else jnp.moveaxis(x, axis, -1)
    return largest_magnitude(rows, finite=True)


def absmax_scale(amax: Float[Array, "*dims"], steps: float) -> Float[Array, "*dims"]:
    r"""The scale $s = amax / steps$, divided in the float type of amax; 1 where amax = 0.

    Also 1 where s would be subnormal, since compiled code may take that for zero. The two choices
    below keep the bits the same under `jit`, where XLA would replace a division by a constant by a
    multiplication with its reciprocal, and x / (a / b) by x * b / a.

    >>> float(absmax_scale(jnp.float32(254), 127.0))
    2.0
    """
    divisor = jnp.where(amax > 0, jnp.array(steps, amax.dtype), jnp.array(jnp.inf, amax.dtype))
    scale = amax / divisor
    return jnp.where(scale >= jnp.finfo(amax.dtype).tiny, scale, jnp.ones_like(scale))


def to_units(x: Float[Array, "*dims"], scale: Float[Array, "..."]) -> Float[Array, "*dims"]:
    """The quotient x / scale, rounded by itself.

    The choice around the divisor keeps XLA from multiplying by the reciprocal of a scale that many
    numbers share, whose last bit would be another one.
    """
    return x / jnp.where(x == 0, jnp.ones((), x.dtype), scale)


def in_units(k: Float[Array, "*dims"], scale: Float[Array, "..."]) -> Float[Array, "*dims"]:
    """The product k * scale, rounded by itself.

    The choice around it keeps a compiler from merging it with an addition that follows into one
    fused multiply-add, whose last bit would be another one.
    """
    return jnp.where(k == 0, jnp.zeros_like(k), k * scale)
