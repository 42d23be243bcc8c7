"""Numbers rounded to a format and kept as floats, with a derivative for training through it."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .formats import parse
from .grid import Format, check_input
from .minifloat import narrow, widen
from .scaling import absmax, absmax_scale, in_units


@jax.custom_jvp
def straight_through(
    x: Float[Array, "*dims"], y: Float[Array, "*dims"], inside: Bool[Array, "*dims"]
) -> Float[Array, "*dims"]:
    """Gives y, to the last bit; its derivative is that of x where `inside`, and 0 elsewhere."""
    return y


@straight_through.defjvp
def _straight_through_jvp(primals, tangents):
    x, y, inside = primals
    return straight_through(x, y, inside), jnp.where(inside, tangents[0], jnp.zeros_like(x))


def quantize(
    x: Float[Array, "*dims"],
    fmt: Format | str,
    *,
    rounding: str = "nearest_even",
    overflow: str = "saturate",
    key: PRNGKeyArray | None = None,
) -> Float[Array, "*dims"]:
    """Rounds x to the values of a format; keeps its dtype, and each x is rounded only once.

    `nearest_even` gives the nearest value, of two equally near ones that with the even code.
    `stochastic` gives the value above with probability (|x| - lo) / (hi - lo), so that the mean is
    x, and never moves a value of the format. The derivative is 1 inside the range of the format and
    0 outside, where it saturates (straight-through); 1 everywhere with `overflow="wrap"`.

    An integer format takes its scale, one for the whole tensor, from the largest finite |x|; the
    scale counts as constant under differentiation. A value that the dtype of x cannot hold, such as
    65504 in bfloat16, is rounded to that dtype.

    Args:
        x: numbers in float32, float64, float16 or bfloat16.
        fmt: the format or its name, see `parse`.
        rounding: `nearest_even` or `stochastic`.
        overflow: `saturate` or `spec`, see `Format.encode`; fixed point also `wrap`.
        key: random key of stochastic rounding; under `vmap` over x alone, all rows share it.

    Raises:
        ValueError: for an unknown name or setting, a missing key, another dtype, or a NaN that the
            format cannot hold. Under `jit` such a NaN cannot be seen, and becomes 0.

    >>> quantize(jnp.array([0.3, -1000.0]), "e4m3fn").tolist()
    [0.3125, -448.0]
    """
    fmt, x = parse(fmt), jnp.asarray(x)
    check_input("quantize", x, fmt, rounding, overflow, key)
    return _quantize(x, fmt, rounding, overflow, key)


@functools.partial(jax.jit, static_argnames=("fmt", "rounding", "overflow"))
def _quantize(x: Array, fmt: Format, rounding: str, overflow: str, key: Array | None) -> Array:
    wide = widen(jax.lax.stop_gradient(x))
    if fmt.steps is None:
        y, inside = fmt._round(wide, rounding, overflow, key), fmt.inside(wide)
    else:
        scale = absmax_scale(absmax(wide), fmt.steps)
        r = wide / scale
        y, inside = in_units(fmt._round(r, rounding, overflow, key), scale), fmt.inside(r)
    if overflow == "wrap":
        inside = jnp.isfinite(wide)
    return straight_through(x, narrow(y, x.dtype, overflow), inside)
