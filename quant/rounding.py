"""The one place where a number between two grid points goes to one of them.

A format finds the grid point below |x| and how far above it |x| lies; the choice between the two
neighbours is made here, for all formats alike. What the neighbours are, and what lies beyond the
last of them, belongs to the formats.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt

ROUNDINGS = ("nearest_even", "stochastic")


def check_rounding(who: str, rounding: str, key: PRNGKeyArray | None) -> None:
    """Refuses an unknown rounding, and stochastic rounding without a key, in the name of `who`."""
    if rounding not in ROUNDINGS:
        raise ValueError(f"{who}: rounding is {rounding!r}; choose one of {', '.join(ROUNDINGS)}.")
    if rounding == "stochastic" and key is None:
        raise ValueError(
            f"{who}: rounding='stochastic' draws random numbers and found key=None; "
            "pass key=jax.random.key(seed), a new one for each call."
        )


def random_bits(
    key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike
) -> UInt[Array, "*shape"]:
    """Independent uniform unsigned integers: the only source of randomness of `rounds_up`."""
    return jax.random.bits(key, shape, jnp.dtype(dtype))


def rounds_up(
    odd: Bool[Array, "*dims"],
    remainder: UInt[Array, "*dims"],
    *,
    rounding: str = "nearest_even",
    key: PRNGKeyArray | None = None,
) -> Bool[Array, "*dims"]:
    r"""Whether a magnitude between two grid points goes to the upper one.

    `nearest_even`: to the nearer one; half-way, to the one with the even code.
    `stochastic`: up with probability $r / 2^w$ exactly, so that the mean over keys is the value
    itself and a value on the grid (r = 0) never moves. Its variance is (|x| - lo)(hi - |x|).

    Args:
        odd: whether the code of the lower point is odd.
        remainder: $r = \lfloor 2^w (|x| - lo) / (hi - lo) \rfloor$, w bits of an unsigned integer.
        rounding: one of `ROUNDINGS`.
        key: random key, read by `stochastic` alone.

    Raises:
        ValueError: for an unknown rounding, or a stochastic one without a key.
    """
    check_rounding("rounds_up", rounding, key)
    if key is not None and rounding == "stochastic":
        # r + u >= 2^w, asked without the overflow
        return random_bits(key, remainder.shape, remainder.dtype) > ~remainder
    half = jnp.array(1 << (8 * remainder.dtype.itemsize - 1), remainder.dtype)
    return (remainder > half) | ((remainder == half) & odd)


def round_to_integer(
    r: Float[Array, "*dims"], *, rounding: str = "nearest_even", key: PRNGKeyArray | None = None
) -> Float[Array, "*dims"]:
    """Rounds r >= 0, in float32 or float64, to an integer by the rules of `rounds_up`.

    Exact: the part of r behind the point is a float again, and 2^32 (2^64) times it an integer or
    below the last bit drawn. The sum r + noise would itself be rounded.
    """
    check_rounding("round_to_integer", rounding, key)
    if rounding == "nearest_even":
        return jnp.round(r)
    width = 8 * r.dtype.itemsize
    low = jnp.floor(r)
    remainder = ((r - low) * jnp.array(2.0**width, r.dtype)).astype(f"uint{width}")
    odd = jnp.zeros(r.shape, bool)  # stochastic rounding knows no ties
    return low + rounds_up(odd, remainder, rounding=rounding, key=key).astype(r.dtype)
