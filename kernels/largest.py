"""The largest magnitude of each block of numbers, from which its scale is made.

The idea that belongs here: a maximum that the compiler puts into vectors. What a scale is, and
which numbers share one, does not belong here.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_VECTOR = 32  # the longest row of integers whose maximum XLA puts into vectors on CPUs


def largest_magnitude(
    x: Float[Array, "*blocks k"], *, finite: bool = False
) -> Float[Array, "*blocks"]:
    """The largest |x| along the last axis; 0 where k = 0.

    NaN where there is a NaN, else Inf where there is an infinity; with `finite`, neither counts.
    Its derivative is 0. Works under `jit`, `vmap` and sharding.

    >>> largest_magnitude(jnp.array([[1.0, -3.0], [jnp.inf, 2.0]]), finite=True).tolist()
    [3.0, 2.0]
    """
    # Integers in the order of the magnitudes, NaN last: a maximum of floats is not put into vectors
    integer = np.dtype(f"int{8 * x.dtype.itemsize}")
    pattern = jax.lax.bitcast_convert_type(x, integer) & np.array(np.iinfo(integer).max, integer)
    if finite:
        infinity = np.array(np.inf, x.dtype).view(integer)
        pattern = jnp.where(pattern < infinity, pattern, jnp.zeros_like(pattern))
    k = x.shape[-1]
    part = math.gcd(k, _VECTOR)
    if k > part > 1:
        parts = jnp.max(pattern.reshape(*x.shape[:-1], k // part, part), -1)
        pattern = jax.lax.optimization_barrier(parts)  # else XLA makes one slow maximum of two
    return jax.lax.bitcast_convert_type(jnp.max(pattern, -1, initial=0), x.dtype)
