"""The one place where a number between two grid points goes to one of them.

A format finds the grid point below |x| and how far above it |x| lies; the choice between the two
neighbours is made here, for all formats alike. What the neighbours are, and what lies beyond the
last of them, belongs to the formats.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt

from ..kernels import random_words

ROUNDINGS = ("nearest_even", "nearest_away", "toward_zero", "up", "down", "stochastic")
DIRECTED = ("up", "down")  # those that ask for the sign, and move any number off the grid


def check_rounding(who: str, rounding: str, key: PRNGKeyArray | None) -> None:
    """Refuses an unknown rounding, and stochastic rounding without a key, in the name of `who`."""
    if rounding not in ROUNDINGS:
        raise ValueError(f"{who}: rounding is {rounding!r}; choose one of {', '.join(ROUNDINGS)}.")
    if rounding == "stochastic" and key is None:
        raise ValueError(
            f"{who}: rounding='stochastic' draws random numbers and found key=None; "
            "pass key=jax.random.key(seed), a new one for each call."
        )
    if rounding == "stochastic" and not hasattr(key, "dtype"):
        raise ValueError(f"{who}: key={key!r} is no random key; pass key=jax.random.key(seed).")


def random_bits(
    key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike
) -> UInt[Array, "*shape"]:
    """Independent uniform unsigned integers: the only source of randomness of `rounds_up`.

    They count through the generator of `kernels`, which a kernel can draw from as well: the word of
    an element is a function of two words drawn from the key and of its flat place in x.
    """
    words = jax.random.bits(key, (2,), jnp.uint32)
    return random_words(words, 0, shape, jnp.dtype(dtype))


def rounds_up(
    odd: Bool[Array, "*dims"],
    remainder: UInt[Array, "*dims"],
    *,
    rounding: str = "nearest_even",
    negative: Bool[Array, "*dims"] | None = None,
    key: PRNGKeyArray | None = None,
) -> Bool[Array, "*dims"]:
    r"""Whether a magnitude between two grid points goes to the upper one.

    - `nearest_even`: to the nearer one; half-way, to the one with the even code.
    - `nearest_away`: to the nearer one; half-way, to the upper one.
    - `toward_zero`: never.
    - `up`, `down`: towards plus or minus infinity, whatever the distance.
    - `stochastic`: up with probability $r / 2^w$ exactly, so that the mean over keys is the value
      itself and a value on the grid (r = 0) never moves. Its variance is (|x| - lo)(hi - |x|).

    Args:
        odd: whether the code of the lower point is odd.
        remainder: $r = \lfloor 2^w (|x| - lo) / (hi - lo) \rfloor$, w bits of an unsigned integer;
            for `up` and `down` at least 1 wherever |x| > lo.
        rounding: one of `ROUNDINGS`.
        negative: whether x < 0, read by `up` and `down` alone; None: nowhere.
        key: random key, read by `stochastic` alone.

    Raises:
        ValueError: for an unknown rounding, or a stochastic one without a key.
    """
    check_rounding("rounds_up", rounding, key)
    if key is not None and rounding == "stochastic":
        # r + u >= 2^w, asked without the overflow
        return random_bits(key, remainder.shape, remainder.dtype) > ~remainder
    if rounding == "toward_zero":
        return jnp.zeros(remainder.shape, bool)
    if rounding in DIRECTED:
        below = jnp.zeros(remainder.shape, bool) if negative is None else negative
        return (remainder > 0) & (below if rounding == "down" else ~below)
    half = jnp.array(1 << (8 * remainder.dtype.itemsize - 1), remainder.dtype)
    if rounding == "nearest_away":
        return remainder >= half
    return (remainder > half) | ((remainder == half) & odd)


def round_to_integer(
    r: Float[Array, "*dims"],
    *,
    rounding: str = "nearest_even",
    negative: Bool[Array, "*dims"] | None = None,
    key: PRNGKeyArray | None = None,
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
    if rounding in DIRECTED:
        remainder = jnp.maximum(remainder, (r > low).astype(remainder.dtype))
    odd = jnp.zeros(r.shape, bool)  # only ties to even would ask
    up = rounds_up(odd, remainder, rounding=rounding, negative=negative, key=key)
    return jnp.where(up, low + 1, low)


def kept_above_zero(
    r: Float[Array, "*dims"], x: Float[Array, "*dims"], rounding: str
) -> Float[Array, "*dims"]:
    """The magnitude |r| of x in some unit, not 0 where x is not, if the rounding is directed.

    Compiled arithmetic takes subnormal numbers for 0, but `up` and `down` move them by a step.
    """
    r = jnp.abs(r)
    if rounding not in DIRECTED:
        return r
    pattern = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
    # counted, not compared: a comparison of the bits with 0 is compiled to one of the numbers,
    # which takes subnormals for 0
    count = jnp.where(jnp.isnan(x), jnp.zeros((), r.dtype), (pattern << 1).astype(r.dtype))
    return jnp.maximum(r, jnp.minimum(count, 1) * jnp.array(2.0**-60, r.dtype))
