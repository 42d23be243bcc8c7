"""Floating-point formats of any exponent and mantissa width, exact to the last bit.

The magnitude part of a code, read as an integer, grows by one from each value to the next: rounding
to the format is rounding to an integer. Codes are found by integer arithmetic on the bits of x,
since compiled float arithmetic flushes subnormals to zero, folds `(x + c) - c`, and
`lax.reduce_precision` knows no subnormals of the target.
"""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt

from .grid import Format, check_whole
from .rounding import DIRECTED, round_to_integer, rounds_up

SPECIALS = ("ieee", "fn", "fnuz", "none")
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Minifloat(Format):
    r"""Sign, E exponent bits e, M mantissa bits m, bias b.

    Values are $\pm (1 + m 2^{-M}) 2^{e - b}$ for e > 0 and $\pm m 2^{1 - b - M}$ for e = 0. What
    the other codes mean is `specials`:

    - `ieee`: the largest exponent holds Inf (m = 0) and NaN.
    - `fn`: no Inf; the code of all ones, with either sign, is NaN.
    - `fnuz`: no Inf and no -0, whose code is the only NaN.
    - `none`: every code is a number.

    A NaN loses its payload and keeps its sign (in `fnuz` the one NaN reads as negative).

    Args:
        exponent_bits: E >= 1.
        mantissa_bits: M >= 0.
        bias: b; usually $2^{E-1} - 1$, or $2^{E-1}$ with `fnuz`.
        specials: one of the four above.

    Raises:
        ValueError: for a format that is impossible, has more than 16 bits (float32 itself aside),
            or values that float32 cannot hold.

    References:
        FP8 formats for deep learning, arXiv:2209.05433. Names and meanings as in ml_dtypes.

    >>> Minifloat(4, 3, 7, "fn").max
    448.0
    """

    exponent_bits: int
    mantissa_bits: int
    bias: int
    specials: str = "ieee"
    bits: int = dataclasses.field(init=False, repr=False, compare=False)

    #: Names that are not formed by the rule of `name`.
    NAMES: ClassVar[dict[tuple[int, int, int, str], str]] = {
        (8, 23, 127, "ieee"): "float32",
        (5, 10, 15, "ieee"): "float16",
        (8, 7, 127, "ieee"): "bfloat16",
        (3, 2, 3, "none"): "e3m2fn",
        (2, 3, 1, "none"): "e2m3fn",
        (2, 1, 1, "none"): "e2m1fn",
    }

    def __post_init__(self) -> None:
        e, m = self.exponent_bits, self.mantissa_bits
        who = f"Minifloat({e}, {m}, {self.bias}, {self.specials!r})"
        check_whole(who, exponent_bits=e, mantissa_bits=m, bias=self.bias)
        if self.specials not in SPECIALS:
            raise ValueError(f"{who}: specials must be one of {', '.join(SPECIALS)}.")
        if e < 1 or m < 0:
            raise ValueError(f"{who}: needs exponent_bits >= 1 and mantissa_bits >= 0.")
        if e + m > 15 and self.NAMES.get(self._key) != "float32":
            raise ValueError(
                f"{who}: a code would take {1 + e + m} bits; exponent_bits + mantissa_bits must be "
                "at most 15 (float32 itself aside)."
            )
        object.__setattr__(self, "bits", 1 + e + m)
        if self._top < 1:
            raise ValueError(
                f"{who}: no code is left for a number beside 0; use more bits or fewer specials."
            )
        if self._low < -126 or self._low - m < -149 or (self._top >> m) - self.bias > 127:
            raise ValueError(
                f"{who}: exponents would run from {self._low} to {(self._top >> m) - self.bias}, "
                "those of float32 from -126 to 127; choose a bias that keeps them there."
            )

    @property
    def _key(self) -> tuple[int, int, int, str]:
        return self.exponent_bits, self.mantissa_bits, self.bias, self.specials

    @property
    def _low(self) -> int:
        """Exponent of the smallest normal number and of the subnormals."""
        return 1 - self.bias

    @property
    def _top(self) -> int:
        """Code of the largest finite value."""
        ones = 2 ** (self.exponent_bits + self.mantissa_bits) - 1
        reserved = {"ieee": 2**self.mantissa_bits, "fn": 1}
        return ones - reserved.get(self.specials, 0)

    @property
    def _nan(self) -> int:
        """Code of NaN (without its sign, but in fnuz); 0 in a format that has none."""
        m = self.mantissa_bits
        quiet = self._top + 1 + 2**m // 2 if m else 0  # with m = 0 the top exponent is Inf alone
        return {"ieee": quiet, "fn": self._top + 1, "fnuz": self._top + 1, "none": 0}[self.specials]

    @property
    def has_nan(self) -> bool:
        """Whether NaN has a code."""
        return self._nan > 0

    @property
    def name(self) -> str:
        """`e<E>m<M>`, `b<bias>` unless it is the usual one, and the specials unless `ieee`."""
        if self._key in self.NAMES:
            return self.NAMES[self._key]
        plain = f"e{self.exponent_bits}m{self.mantissa_bits}"
        suffix = "" if self.specials == "ieee" else self.specials
        usual = self.bias == usual_bias(self.exponent_bits, self.specials)
        if usual and plain + suffix not in self.NAMES.values():
            return plain + suffix
        return f"{plain}b{self.bias}{suffix}"

    def _value(self, code: int) -> float:
        exponent, fraction = divmod(code, 2**self.mantissa_bits)
        significand = fraction + (exponent > 0) * 2**self.mantissa_bits
        return math.ldexp(significand, max(exponent, 1) - self.bias - self.mantissa_bits)

    @property
    def max(self) -> float:
        """Largest finite value."""
        return self._value(self._top)

    @property
    def min(self) -> float:
        """Most negative finite value."""
        return -self.max

    @property
    def smallest(self) -> float:
        """Smallest subnormal."""
        return self._value(1)

    def _encode(
        self, x: Float[Array, "*dims"], rounding: str, overflow: str, key: PRNGKeyArray | None
    ) -> UInt[Array, "*dims"]:
        x = widen(x)
        f = _WIDE[x.dtype]
        pattern = jax.lax.bitcast_convert_type(x, f.uint)
        magnitude = pattern & f.uint((1 << (f.width - 1)) - 1)
        negative = pattern != magnitude
        code, remainder, lost = self._locate(magnitude, f)
        if rounding in DIRECTED:
            remainder = jnp.maximum(remainder, lost.astype(f.uint))
        odd = (code & f.uint(1)) == 1
        up = rounds_up(odd, remainder, rounding=rounding, negative=negative, key=key)
        code = code + up.astype(f.uint)
        if overflow == "saturate" or self.specials == "none":
            code = jnp.minimum(code, f.uint(self._top))
        else:  # Inf is the code behind the largest value, where it is not NaN
            inward = {"toward_zero": True, "up": negative, "down": ~negative}.get(rounding, False)
            stays = inward & (magnitude < f.uint(f.infinity))  # rounding does not go beyond the end
            code = jnp.minimum(code, jnp.where(stays, f.uint(self._top), f.uint(self._top + 1)))
        code = jnp.where(magnitude > f.uint(f.infinity), f.uint(self._nan), code)
        sign = (pattern >> f.uint(f.width - self.bits)) & f.uint(2 ** (self.bits - 1))
        if self.specials == "fnuz":
            sign = jnp.where((code == 0) | (code == f.uint(self._nan)), f.uint(0), sign)
        return (code | sign).astype(jnp.uint32)

    def _locate(
        self, magnitude: UInt[Array, "*dims"], f: "_Layout"
    ) -> tuple[UInt[Array, "*dims"], UInt[Array, "*dims"], Bool[Array, "*dims"]]:
        """The code at or below a magnitude, how far above in 2^-width of a step, and if by less."""
        first = self._low + f.bias  # exponent field of the smallest normal number
        field = (magnitude >> f.uint(f.mantissa)).astype(jnp.int32)
        hidden = f.uint(1 << f.mantissa)
        significand = jnp.where(field > 0, (magnitude & (hidden - f.uint(1))) | hidden, magnitude)
        # so many bits of the significand are finer than a step; more of them among the subnormals
        finer = f.mantissa - self.mantissa_bits + jnp.maximum(first - jnp.maximum(field, 1), 0)
        code = (jnp.maximum(field, first) - first).astype(f.uint) << f.uint(self.mantissa_bits)
        code = code + _shift_left(significand, -finer)
        remainder = _shift_left(significand, f.width - finer)
        return code, remainder, (finer > f.width) & (significand > f.uint(0))

    def _round(
        self, x: Float[Array, "*dims"], rounding: str, overflow: str, key: PRNGKeyArray | None
    ) -> Float[Array, "*dims"]:
        # Float arithmetic, some three times faster, where nothing it needs is subnormal: float32 in
        # steps above 2^-90 (what is flushed then is below 2^-32 of a step). With M = 0 the integers
        # below are 1 and 2 for every exponent, and the parity of the code is not theirs.
        m, f = self.mantissa_bits, _WIDE[jnp.dtype(jnp.float32)]
        # What a directed rounding does to the smallest numbers and beyond the range is said above.
        by_code = rounding == "toward_zero" or rounding in DIRECTED
        if x.dtype != jnp.float32 or self._low - m < -90 or m == 0 or by_code:
            return super()._round(x, rounding, overflow, key)
        pattern = jax.lax.bitcast_convert_type(x, f.uint)
        magnitude = pattern & f.uint((1 << (f.width - 1)) - 1)
        is_nan = magnitude > f.uint(f.infinity)
        # magnitudes compare as their patterns do, in one instruction: floats need some for NaN
        magnitude = jnp.minimum(magnitude, _pattern(min(2 * self.max, _FLOAT32_MAX)))
        binade = magnitude & f.uint(f.infinity)
        magnitude = jax.lax.bitcast_convert_type(magnitude, f.float)
        binade = jnp.maximum(binade, f.uint((self._low + f.bias) << f.mantissa))
        step = jax.lax.bitcast_convert_type(binade - f.uint(m << f.mantissa), f.float)
        inverse = jax.lax.bitcast_convert_type(f.uint((254 + m) << f.mantissa) - binade, f.float)
        y = round_to_integer(magnitude * inverse, rounding=rounding, key=key) * step
        if overflow == "saturate" or self.specials == "none":
            y = jnp.minimum(jax.lax.bitcast_convert_type(y, f.uint), _pattern(self.max))
        else:
            beyond = f.float(np.inf if self.specials == "ieee" else np.nan)
            y = jnp.where(y > f.float(self.max), beyond, y)
            y = jax.lax.bitcast_convert_type(y, f.uint)
        y = jnp.where(is_nan, f.uint(f.nan if self.has_nan else 0), y)
        sign = pattern & f.uint(1 << (f.width - 1))
        if self.specials == "fnuz":
            sign = jnp.where(y == f.uint(f.nan), f.uint(1 << (f.width - 1)), sign)
            sign = jnp.where(y == 0, f.uint(0), sign)
        return jax.lax.bitcast_convert_type(y | sign, f.float)

    def _decode(self, codes: UInt[Array, "*dims"], dtype: DTypeLike) -> Float[Array, "*dims"]:
        f = _WIDE[jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)]
        codes = codes.astype(f.uint)
        code = codes & f.uint(2 ** (self.bits - 1) - 1)
        m = self.mantissa_bits
        # normal numbers: the code, shifted to the place of exponent and mantissa, and a new bias
        normal = (code << f.uint(f.mantissa - m)) + f.uint((self._low + f.bias - 1) << f.mantissa)
        # subnormals, code * 2^lowest: a shift where they are subnormal in the wide type too, else
        # float(code) with the power of two added to its exponent
        lowest = self._low - m
        shift = min(lowest - (1 - f.bias - f.mantissa), f.mantissa)
        tiny = jax.lax.bitcast_convert_type(code.astype(f.float), f.uint)
        tiny = tiny + f.uint((lowest << f.mantissa) % (1 << f.width))
        tiny = jnp.where(code < f.uint(1 << (f.mantissa - shift)), code << f.uint(shift), tiny)
        pattern = jnp.where(code < f.uint(1 << m), tiny, normal)
        if self.specials == "ieee":
            pattern = jnp.where(code > f.uint(self._top), f.uint(f.infinity), pattern)
            pattern = jnp.where(code > f.uint(self._top + 1), f.uint(f.nan), pattern)
        elif self.specials != "none":
            is_nan = (codes if self.specials == "fnuz" else code) == f.uint(self._nan)
            pattern = jnp.where(is_nan, f.uint(f.nan), pattern)
        sign = codes >> f.uint(self.bits - 1) << f.uint(f.width - 1)
        return narrow(jax.lax.bitcast_convert_type(pattern | sign, f.float), dtype)


def _pattern(x: float) -> np.uint32:
    return np.float32(x).view(np.uint32)


def usual_bias(exponent_bits: int, specials: str = "ieee") -> int:
    """The bias that a name leaves out."""
    return 2**exponent_bits // 2 - (specials != "fnuz")


FLOAT32 = Minifloat(8, 23, 127)
FLOAT16 = Minifloat(5, 10, 15)
BFLOAT16 = Minifloat(8, 7, 127)
_SHORT = {jnp.dtype(jnp.float16): FLOAT16, jnp.dtype(jnp.bfloat16): BFLOAT16}


def widen(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """16-bit floats as float32, exactly; float32 and float64 as they are.

    By the bits of x: a compiled program may leave out the rounding of a 16-bit value that it
    computed in 32 bits and converts straight back ("excess precision").
    """
    fmt = _SHORT.get(x.dtype)
    if fmt is None:
        return x
    codes = jax.lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.uint32)
    return fmt._decode(codes, jnp.float32)


def narrow(
    x: Float[Array, "*dims"], dtype: DTypeLike, overflow: str = "spec"
) -> Float[Array, "*dims"]:
    """Float32 or float64 as another float; a 16-bit one by rounding once, to nearest even."""
    fmt = _SHORT.get(jnp.dtype(dtype))
    if fmt is None:
        return x.astype(dtype)
    codes = fmt._encode(x, "nearest_even", overflow, None).astype(jnp.uint16)
    return jax.lax.bitcast_convert_type(codes, dtype)


def narrow_finite(x: Float[Array, "*dims"], dtype: DTypeLike) -> Float[Array, "*dims"]:
    """As `narrow`, but finite numbers stay finite: they saturate."""
    return jnp.where(jnp.isinf(x), narrow(x, dtype), narrow(x, dtype, "saturate"))


class _Layout(NamedTuple):
    """The bits of a wide float type."""

    float: type
    uint: type
    width: int
    mantissa: int  # bits of the mantissa
    bias: int  # of the exponent
    infinity: int  # its pattern; those above it are NaN
    nan: int  # the pattern of the quiet NaN


_WIDE = {
    jnp.dtype(jnp.float32): _Layout(np.float32, np.uint32, 32, 23, 127, 0xFF << 23, 0x1FF << 22),
    jnp.dtype(jnp.float64): _Layout(np.float64, np.uint64, 64, 52, 1023, 0x7FF << 52, 0xFFF << 51),
}


def _shift_left(x: UInt[Array, "*dims"], bits: Int[Array, "*dims"]) -> UInt[Array, "*dims"]:
    """X 2^bits without what falls off either end; XLA leaves shifts beyond the width open."""
    last = 8 * x.dtype.itemsize - 1
    left = x << jnp.clip(bits, 0, last).astype(x.dtype)
    right = x >> jnp.clip(-bits, 0, last).astype(x.dtype)
    moved = jnp.where(bits < 0, right, left)
    return jnp.where(jnp.abs(bits) > last, jnp.zeros_like(x), moved)
