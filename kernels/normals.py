r"""Standard normal numbers from the words of a counter: the same numbers wherever they are drawn.

The idea that belongs here: each of the two words of a counter (`noise.block`) is the quantile of a
Gaussian, so an element has two independent normal numbers for one block, and an array of them costs
a quarter of `jax.random.normal` on a CPU. The generator stands in `noise`; what the numbers are
added to does not belong here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, UInt32

from .noise import block, checked_stream, places


def normal_of_word(word: UInt32[Array, "*dims"]) -> Float32[Array, "*dims"]:
    r"""The normal quantile $\sqrt{2}\,\mathrm{erf}^{-1}(u)$ of a uniform word.

    u is the middle of one of $2^{23}$ equal parts of (-1, 1), from the upper bits of the word: odd
    in sign, never 0, and at most 5.3 standard deviations away.
    """
    odd = ((word >> np.uint32(9)) * np.uint32(2) + np.uint32(1)).astype(jnp.int32)
    u = (odd - np.int32(1 << 23)).astype(jnp.float32) * np.float32(2.0**-23)  # exact
    return np.float32(np.sqrt(2.0)) * jax.lax.erf_inv(u)


def random_normals(
    key: UInt32[Array, "2"], stream: UInt32[Array, ""] | int, shape: tuple[int, ...]
) -> tuple[Float32[Array, "*shape"], Float32[Array, "*shape"]]:
    """Two independent arrays of independent standard normal numbers.

    The numbers at the flat (row-major) place i are those of `block(*key, i, stream)`: they do not
    depend on the shape, nor on how the arrays are sharded. One that is not used is not computed.

    Args:
        key: two words, such as `jax.random.bits(key, (2,), jnp.uint32)`.
        stream: which of 2^32 independent sequences.
        shape: of each result; at most 2^32 elements.

    Raises:
        ValueError: for another stream, or more elements than a stream has words.
    """
    return _random_normals(key, checked_stream("random_normals", stream, shape), shape)


@functools.partial(jax.jit, static_argnames=("shape",), inline=True)
def _random_normals(key: Array, stream: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    first, second = block(key[0], key[1], places(shape), stream)
    return normal_of_word(first), normal_of_word(second)
