"""Numbers rounded to a format and kept as floats, with a derivative for training through it."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .formats import parse
from .gradients import straight_through
from .granularity import Granularity
from .grid import Format, check_input
from .minifloat import narrow, widen
from .qtensor import sharing
from .scaled import find_scale, round_blocks, spread
from .selftest import require_exact_backend


def quantize(
    x: Float[Array, "*dims"],
    fmt: Format | str,
    *,
    rounding: str = "nearest_even",
    overflow: str = "saturate",
    key: PRNGKeyArray | None = None,
    axis: int | tuple[int, ...] | None = None,
    block: int | tuple[int, ...] | None = None,
    scale: str = "absmax",
) -> Float[Array, "*dims"]:
    """Rounds x to the values of a format; keeps its dtype, and each x is rounded only once.

    `nearest_even` gives the nearest value, of two equally near ones that with the even code.
    `stochastic` gives the value above with probability (|x| - lo) / (hi - lo), so that the mean is
    x, and never moves a value of the format. The derivative is 1 inside the range of the format and
    0 outside, where it saturates (straight-through); 1 everywhere with `overflow="wrap"`.

    Integers, tables and logarithmic formats take their unit from the numbers, one scale for those
    that share it: all of the tensor, or those along `axis`, or `block` of them. Block formats such
    as `mxfp4` bring their block, along the last axis unless `axis` names another. A format with a
    unit of its own gets a scale as well, max|x| going to its largest value, where an axis or a
    block is given. Scales count as constants under differentiation. A value that the dtype of x
    cannot hold, such as 65504 in bfloat16, is rounded to that dtype.

    Sharded arrays give the same bits, but where a scale is made of a sum (`binary`, `ternary`,
    `mse`, `gaussian`, `laplace`): its last bits depend on the order in which devices add. On a mesh
    with explicit axes no block may be cut by them.

    Args:
        x: numbers in float32, float64, float16 or bfloat16.
        fmt: the format or its name, see `parse`.
        rounding: one of `ROUNDINGS`, see `rounds_up`.
        overflow: `saturate` or `spec`, see `Format.encode`; fixed point also `wrap`.
        key: random key of stochastic rounding; under `vmap` over x alone, all rows share it.
        axis: the axis, or axes, along which numbers share a scale; None: all of them.
        block: how many of them do; None: all. With several axes one number for each.
        scale: how a scale is chosen: `absmax`, `percentile<p>`, `mse`, `kl`, `gaussian`, `laplace`
            (see `clip_of`), or the rule of a format of one or two bits.

    Raises:
        ValueError: for an unknown name or setting, a missing key, another dtype, a block that does
            not divide its axis, or a NaN that the format cannot hold. Under `jit` such a NaN cannot
            be seen, and becomes 0.
        RuntimeError: on a backend that does not compute exactly.

    >>> quantize(jnp.array([0.3, -1000.0]), "e4m3fn").tolist()
    [0.3125, -448.0]
    """
    fmt, x = parse(fmt), jnp.asarray(x)
    check_input("quantize", x, fmt, rounding, overflow, key)
    shared = sharing("quantize", fmt, x.shape, axis, block, scale)
    require_exact_backend()
    return _quantize(x, fmt, shared, rounding, overflow, key, scale)


@functools.partial(
    jax.jit, static_argnames=("fmt", "granularity", "rounding", "overflow", "method")
)
def _quantize(
    x: Array,
    fmt: Format,
    granularity: Granularity | None,
    rounding: str,
    overflow: str,
    key: Array | None,
    method: str,
) -> Array:
    wide = widen(jax.lax.stop_gradient(x))
    if granularity is None:
        y, inside = fmt._round(wide, rounding, overflow, key), fmt.inside(wide)
    else:
        found = spread(find_scale(granularity.split(wide), fmt, method), granularity, x.shape)
        y, inside = round_blocks(wide, fmt, found, rounding=rounding, overflow=overflow, key=key)
    if overflow == "wrap":
        inside = jnp.isfinite(wide)
    return straight_through(x, narrow(y, x.dtype, overflow), inside)
