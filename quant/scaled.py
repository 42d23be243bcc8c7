"""Numbers in units of a scale: found for each block, then rounded, coded and read back.

A scale is found in the blocked layout of `granularity`: shape of the scales, then the k numbers
that share each. It is used in the shape of the array, each scale standing where its numbers do
(`spread`): XLA does not put a loop over the shape of the blocks into vectors. Which rule finds a
clip stands in `clipping`, how a number in units is rounded in the formats.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped, UInt

from .blocks import BlockFormat
from .clipping import clip_of, steps_of
from .few import RULES
from .granularity import Granularity
from .grid import Format
from .integer import AsymmetricInteger
from .rounding import DIRECTED, kept_above_zero
from .scaling import absmax_scale, in_units, to_units
from .tables import Table


class Scale(NamedTuple):
    """What turns numbers into units of their format, one entry a block."""

    unit: Shaped[Array, "*scales"]  # the scale; in a block format its code
    zero: Float[Array, "*scales"] | None = None  # the code of 0, of asymmetric integers
    tensor: Float[Array, ""] | None = None  # a second scale, of the whole array
    #: what rounding divides by, where it is not the unit; reading the codes does not need it
    divisor: Float[Array, "*scales"] | None = None


def find_scale(x: Float[Array, "*scales k"], fmt: Format, method: str) -> Scale:
    """The scale of each block.

    Args:
        x: in float32 or float64.
        fmt: the format; one without a unit given at use gets the scale clip / max.
        method: a rule of `clipping`, or "absmax" for the format's own.

    Raises:
        ValueError: for a method that the format cannot take.
    """
    if isinstance(fmt, BlockFormat | AsymmetricInteger) and method != "absmax":
        raise ValueError(
            f"scale is {method!r}; {fmt.name} finds its scales by its own definition: leave scale "
            "at 'absmax', or clip the numbers before."
        )
    if isinstance(fmt, BlockFormat):
        unit, tensor = fmt.block_scales(x)
        return Scale(unit, tensor=tensor)
    if isinstance(fmt, AsymmetricInteger):
        finite = jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x))
        low, high = jnp.min(finite, -1, initial=0), jnp.max(finite, -1, initial=0)
        span = jnp.minimum(high - low, jnp.array(jnp.finfo(x.dtype).max, x.dtype))
        unit = absmax_scale(span, fmt.steps)
        return Scale(unit, zero=jnp.clip(jnp.round(to_units(-low, unit)), 0, fmt.max))
    rule = fmt.scale_rule if method == "absmax" else method
    if rule in RULES:
        unit, divisor = RULES[rule](x)
        return Scale(unit, divisor=divisor)
    return Scale(absmax_scale(clip_of(x, fmt, rule), steps_of(fmt)))


def spread(scale: Scale, granularity: Granularity, shape: tuple[int, ...]) -> Scale:
    """The scale of each number of an array of a shape."""
    return jax.tree.map(lambda s: granularity.spread(s, shape) if s.ndim else s, scale)


def unit_sizes(scale: Scale, fmt: Format) -> Float[Array, "*scales"]:
    """What one unit of the format is in each block, in float32."""
    return _from_units(jnp.ones(scale.unit.shape, jnp.float32), fmt, scale)


def encode_blocks(
    x: Float[Array, "*dims"],
    fmt: Format,
    scale: Scale,
    *,
    rounding: str,
    overflow: str,
    key: PRNGKeyArray | None,
) -> UInt[Array, "*dims"]:
    """Codes, as uint32."""
    r = _to_units(x, fmt, scale, rounding)
    if isinstance(fmt, AsymmetricInteger):
        return fmt.encode_around(r, _zero(scale, r), rounding, key)
    return fmt._encode(r, rounding, overflow, key)


def decode_blocks(
    codes: UInt[Array, "*dims"], fmt: Format, scale: Scale, dtype: DTypeLike
) -> Float[Array, "*dims"]:
    """The numbers of uint32 codes, in float32 or float64."""
    values = fmt._decode(codes, dtype)
    if isinstance(fmt, AsymmetricInteger):
        values = values - _zero(scale, values)
    return _from_units(values, fmt, scale)


def round_blocks(
    x: Float[Array, "*dims"],
    fmt: Format,
    scale: Scale,
    *,
    rounding: str,
    overflow: str,
    key: PRNGKeyArray | None,
) -> tuple[Float[Array, "*dims"], Bool[Array, "*dims"]]:
    """The numbers that the codes stand for, and where x lies in the range of the format."""
    r = _to_units(x, fmt, scale, rounding)
    if isinstance(fmt, AsymmetricInteger):
        zero = _zero(scale, r)
        codes = fmt.encode_around(r, zero, rounding, key)
        inside = (r >= -zero - 0.5) & (r <= fmt.max - zero + 0.5)
        return decode_blocks(codes, fmt, scale, x.dtype), inside
    return _from_units(fmt._round(r, rounding, overflow, key), fmt, scale), fmt.inside(r)


def _to_units(x: Array, fmt: Format, scale: Scale, rounding: str) -> Array:
    if isinstance(fmt, BlockFormat):
        return fmt.to_units(x, scale.unit, scale.tensor)
    divisor = scale.unit if scale.divisor is None else scale.divisor
    r = to_units(x, divisor)
    asks_for_sign = rounding in DIRECTED or isinstance(fmt, Table)
    if not asks_for_sign or fmt.smallest < 2.0**-50:
        return r
    # a subnormal x keeps its sign, whether the quotient of compiled code is 0 or not
    magnitude = kept_above_zero(r, x, DIRECTED[0])
    return jnp.where(jnp.isnan(x), x, jnp.where(jnp.signbit(x), -magnitude, magnitude))


def _from_units(values: Array, fmt: Format, scale: Scale) -> Array:
    if isinstance(fmt, BlockFormat):
        return fmt.from_units(values, scale.unit, scale.tensor)
    return in_units(values, scale.unit)


def _zero(scale: Scale, like: Array) -> Array:
    assert scale.zero is not None
    return scale.zero.astype(like.dtype)
