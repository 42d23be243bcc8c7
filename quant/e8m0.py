"""Scales that are powers of two: their format, how one is chosen, and exact products with them.

All by integer arithmetic on exponents: the logarithm of a float just below a power of two rounds
up, and compiled arithmetic takes the smallest scales for 0. Which numbers share a scale belongs to
`blocks`.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt

from .grid import Format
from .minifloat import _WIDE, _Layout, narrow, widen
from .rounding import rounds_up

SCALE_MODES = ("floor", "ceil", "even", "rceil")
_BIAS, _TOP, NAN = 127, 254, 255


@dataclasses.dataclass(frozen=True)
class E8M0(Format):
    r"""The scale format of OCP MX, `e8m0fnu`: values $2^{c - 127}$ for the codes 0 to 254.

    It has neither sign nor zero; code 255 is NaN. Halves go by `rounding` as in any format:
    ml_dtypes, which sends them up, is `nearest_away` with `spec`. What is zero or negative becomes
    NaN with `spec`, and the smallest value, 2^-127, with `saturate`; a positive number below that
    becomes it with either.

    References:
        OCP Microscaling Formats (MX) Specification, version 1.0.

    >>> E8M0().decode(jnp.array([126, 127, 130], jnp.uint8)).tolist()
    [0.5, 1.0, 8.0]
    """

    bits: int = dataclasses.field(default=8, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        """`e8m0fnu`."""
        return "e8m0fnu"

    @property
    def max(self) -> float:
        """2^127."""
        return 2.0**127

    @property
    def min(self) -> float:
        """The smallest value: there are no negative ones."""
        return self.smallest

    @property
    def smallest(self) -> float:
        """2^-127."""
        return 2.0**-127

    @property
    def has_nan(self) -> bool:
        """True."""
        return True

    def _encode(
        self, x: Float[Array, "*dims"], rounding: str, overflow: str, key: PRNGKeyArray | None
    ) -> UInt[Array, "*dims"]:
        x = widen(x)
        f = _WIDE[x.dtype]
        pattern = jax.lax.bitcast_convert_type(x, f.uint)
        magnitude = pattern & f.uint((1 << (f.width - 1)) - 1)
        code, remainder = _locate(magnitude, f)
        up = rounds_up((code & 1) == 1, remainder, rounding=rounding, key=key)
        code = jnp.maximum(code + up.astype(jnp.int32), 0)
        if overflow == "saturate":
            code = jnp.minimum(code, _TOP)
            code = jnp.where(pattern == magnitude, code, 0)
        else:
            inward = rounding in ("toward_zero", "down")
            stays = magnitude < f.uint(f.infinity if inward else 0)
            code = jnp.minimum(code, jnp.where(stays, _TOP, NAN))
            code = jnp.where((pattern == magnitude) & (pattern > f.uint(0)), code, NAN)
        return jnp.where(magnitude > f.uint(f.infinity), NAN, code).astype(jnp.uint32)

    def _decode(self, codes: UInt[Array, "*dims"], dtype: DTypeLike) -> Float[Array, "*dims"]:
        f = _WIDE[jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)]
        field = codes.astype(f.uint) + f.uint(f.bias - _BIAS)
        pattern = field << f.uint(f.mantissa)
        if f.bias == _BIAS:  # 2^-127 is subnormal there
            pattern = jnp.where(codes == 0, f.uint(1 << (f.mantissa - 1)), pattern)
        pattern = jnp.where(codes == NAN, f.uint(f.nan), pattern)
        return narrow(jax.lax.bitcast_convert_type(pattern, f.float), dtype)


def _locate(
    magnitude: UInt[Array, "*dims"], f: _Layout
) -> tuple[Int[Array, "*dims"], UInt[Array, "*dims"]]:
    """The code at or below a magnitude, negative where there is none, and the part of a step above.

    That part is in 2^-width of a step. A float32 below 2^-127 counts as that.
    """
    code = (magnitude >> f.uint(f.mantissa)).astype(jnp.int32) + (_BIAS - f.bias)
    remainder = magnitude << f.uint(f.width - f.mantissa)
    if f.bias == _BIAS:  # exponent field 0: the first bit of the fraction is worth 2^-127
        half = f.uint(1 << (f.width - 1))
        doubled = jnp.where(remainder >= half, remainder << f.uint(1), f.uint(0))
        remainder = jnp.where(code == 0, doubled, remainder)
    return code, remainder


def scale_codes(
    amax: Float[Array, "*scales"], mode: str, *, largest: float, mantissa_bits: int
) -> UInt[Array, "*scales"]:
    r"""The `e8m0fnu` code of the scale 2^c for numbers of which the largest magnitude is amax.

    With $e = \lfloor \log_2 largest \rfloor$ of the element format,

    - `floor`: $c = \lfloor \log_2 amax \rfloor - e$, the text of OCP; the largest numbers may
      saturate.
    - `ceil`: $c = \lceil \log_2 amax \rceil - e$.
    - `even`: as `floor`, of amax rounded to the mantissa of the element.
    - `rceil`: $c = \lceil \log_2 (amax / largest) \rceil$, the least c that does not saturate.

    c is clamped to -127 .. 127; amax = 0 gives -127, and Inf or NaN the code of NaN.

    Args:
        amax: float32 or float64, not negative.
        mode: one of `SCALE_MODES`.
        largest: largest value of the element format.
        mantissa_bits: of the element format.

    References:
        OCP Microscaling Formats (MX) Specification, version 1.0; Recipes for pre-training LLMs
        with MXFP8, arXiv:2506.08027 (`rceil`).
    """
    f = _WIDE[amax.dtype]
    magnitude = jax.lax.bitcast_convert_type(amax, f.uint)
    code, remainder = _locate(magnitude, f)
    significand, exponent = math.frexp(largest)  # the significand is in [1/2, 1)
    one = 1 << f.width
    if mode != "floor":  # from where in a binade the next power of two is taken
        first = {
            "ceil": 1,
            "even": one - (one >> (mantissa_bits + 1)),
            "rceil": int((2 * significand - 1) * one) + 1,
        }[mode]
        code = code + (remainder >= f.uint(first)).astype(jnp.int32)
    code = jnp.clip(code - (exponent - 1), 0, _TOP)
    return jnp.where(magnitude < f.uint(f.infinity), code, NAN).astype(jnp.uint8)


def times_power(x: Float[Array, "*dims"], exponent: Int[Array, "*#dims"]) -> Float[Array, "*dims"]:
    """The product x 2^exponent, subnormal or not; beyond the range of the dtype it saturates.

    Where x 2^exponent has more bits than a subnormal number holds, the last bit kept is 1 ("round
    to odd"): whatever it is rounded to next is the same as for all bits.

    Args:
        x: float32 or float64.
        exponent: integers from -2^16 to 2^16.
    """
    f = _WIDE[x.dtype]
    pattern = jax.lax.bitcast_convert_type(x, f.uint)
    magnitude = pattern & f.uint((1 << (f.width - 1)) - 1)
    field = (magnitude >> f.uint(f.mantissa)).astype(jnp.int32)
    hidden = f.uint(1 << f.mantissa)
    # subnormal numbers move up until their first bit stands where normal ones have it
    short = jax.lax.clz(magnitude).astype(jnp.int32) - (f.width - 1 - f.mantissa)
    short = jnp.clip(short, 0, f.mantissa)
    moved = magnitude << short.astype(f.uint)
    significand = jnp.where(field > 0, (magnitude & (hidden - f.uint(1))) | hidden, moved)
    place = jnp.maximum(field, 1) - short + exponent
    fine = jnp.clip(1 - place, 0, f.mantissa + 1).astype(f.uint)
    kept = significand >> fine
    kept = kept | ((kept << fine) != significand).astype(f.uint)
    # the hidden bit adds the last one to the exponent field; 0 has no such bit, and no field
    above = jnp.clip(place - 1, 0, f.infinity >> f.mantissa).astype(f.uint)
    y = ((above * (significand >> f.uint(f.mantissa))) << f.uint(f.mantissa)) + kept
    y = jnp.minimum(y, f.uint(f.infinity - 1))
    y = jnp.where(magnitude < f.uint(f.infinity), y, magnitude)
    return jax.lax.bitcast_convert_type(y | (pattern ^ magnitude), f.float)


def from_name(name: str) -> E8M0 | None:
    """The format that a name of this file means; None for any other name."""
    return E8M0() if name == "e8m0fnu" else None
