"""Formats with evenly spaced values: signed integers with a scale, and fixed point.

Codes are two's complement in the low bits. The scale of an integer format is found in `scaling`
and applied by whoever uses the format.
"""

import dataclasses
from abc import abstractmethod

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt

from .grid import Format, check_whole
from .minifloat import narrow, widen
from .rounding import kept_above_zero, round_to_integer

RANGES = ("narrow", "full", "half")


class _TwosComplement(Format):
    """Integers k from `_low` to `_top` in units of 2^`_exponent`; no NaN, no Inf, no -0."""

    @property
    def _exponent(self) -> int:
        return 0

    @property
    @abstractmethod
    def _low(self) -> int: ...

    @property
    @abstractmethod
    def _top(self) -> int: ...

    @property
    def max(self) -> float:
        """Largest value."""
        return self._top * 2.0**self._exponent

    @property
    def min(self) -> float:
        """Most negative value."""
        return self._low * 2.0**self._exponent

    @property
    def smallest(self) -> float:
        """The step."""
        return 2.0**self._exponent

    def _encode(
        self, x: Float[Array, "*dims"], rounding: str, overflow: str, key: PRNGKeyArray | None
    ) -> UInt[Array, "*dims"]:
        x = widen(x)
        r = x * jnp.array(2.0**-self._exponent, x.dtype)
        negative = jnp.signbit(x)
        if overflow == "wrap":  # infinities, and multiples of all the range, leave the rest 0
            r = jnp.where(jnp.isfinite(r), r, jnp.zeros_like(r))
        else:
            r = jnp.where(
                jnp.isnan(r), jnp.zeros_like(r), jnp.clip(r, self._low - 1, self._top + 1)
            )
        magnitude = kept_above_zero(r, x, rounding)
        k = round_to_integer(magnitude, rounding=rounding, negative=negative, key=key)
        k = jnp.where(negative, -k, k)
        if overflow == "wrap":
            k = jnp.fmod(k, jnp.array(2.0**self.bits, k.dtype))  # the mask below does the rest
        else:
            k = jnp.clip(k, self._low, self._top)
        return k.astype(jnp.int32).astype(jnp.uint32) & jnp.uint32(2**self.bits - 1)

    def _decode(self, codes: UInt[Array, "*dims"], dtype: DTypeLike) -> Float[Array, "*dims"]:
        wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
        sign = jnp.int32(1 << (self.bits - 1))
        k = (codes.astype(jnp.int32) ^ sign) - sign
        return narrow(k.astype(wide) * jnp.array(2.0**self._exponent, wide), dtype)


@dataclasses.dataclass(frozen=True)
class Integer(_TwosComplement):
    r"""Signed integers of b bits whose unit, the scale s, is given at use: values k s.

    `quantize` finds one scale for the tensor, $s = \max|x| / n$ (1 for an all-zero tensor), and
    gives $s\,\mathrm{clip}(\mathrm{round}(x / s))$. `max`, `values()`, `encode` and `decode` are
    in units of the scale.

    | range | n | codes k |
    | --- | --- | --- |
    | `narrow` | 2^(b-1) - 1 | -n .. n |
    | `half` | 2^(b-1) - 1/2 | -2^(b-1) .. 2^(b-1) - 1 |
    | `full` | 2^(b-1) | -2^(b-1) .. 2^(b-1) - 1 (a positive max abs loses half a step or more) |

    Args:
        bits: b, 2 to 16; `full` has 1 as well.
        range: one of the three.

    Raises:
        ValueError: for another width or range.

    >>> Integer(4).values().tolist()[-3:]
    [5.0, 6.0, 7.0]
    """

    bits: int
    range: str = "narrow"

    def __post_init__(self) -> None:
        if self.range not in RANGES:
            raise ValueError(
                f"Integer({self.bits}, {self.range!r}): range must be one of {', '.join(RANGES)}."
            )
        check_whole(f"Integer({self.bits!r})", bits=self.bits)
        least = 1 if self.range == "full" else 2
        if not least <= self.bits <= 16:
            raise ValueError(
                f"Integer({self.bits}, {self.range!r}): bits must be from {least} to 16; of one "
                "bit there are int1_full, with -1 and 0, and binary, with -1 and 1."
            )

    @property
    def name(self) -> str:
        """`int<b>`, with `_half` or `_full` for those ranges."""
        return f"int{self.bits}" + ("" if self.range == "narrow" else f"_{self.range}")

    @property
    def steps(self) -> float:
        """Steps of max|x|: n of the table above."""
        return 2 ** (self.bits - 1) - {"narrow": 1.0, "half": 0.5, "full": 0.0}[self.range]

    @property
    def _low(self) -> int:
        return -(2 ** (self.bits - 1)) + (self.range == "narrow")

    @property
    def _top(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def inside(self, x: Float[Array, "*dims"]) -> Bool[Array, "*dims"]:
        """Where x lies in the range; the two roundings in x / (max|x| / n) do not put it out."""
        slack = 1 + 2 * float(jnp.finfo(x.dtype).eps)
        return (x >= self.min * slack) & (x <= self.max * slack)


@dataclasses.dataclass(frozen=True)
class FixedPoint(_TwosComplement):
    r"""Fixed point: values $k 2^{-fl}$ with k a signed integer of wl bits.

    Saturates, or, with `overflow="wrap"`, keeps the low wl bits of k as an adder would (Inf then
    becomes 0).

    Args:
        word_length: wl, 1 to 16.
        fraction_length: fl, -64 to 64; may be negative, or larger than wl.
        symmetric: without the most negative code (then wl >= 2 and there is no `wrap`).

    Raises:
        ValueError: for a length outside of these.

    >>> FixedPoint(8, 4).min, FixedPoint(8, 4).max
    (-8.0, 7.9375)
    """

    word_length: int
    fraction_length: int
    symmetric: bool = False
    bits: int = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_whole(
            f"FixedPoint({self.word_length!r}, {self.fraction_length!r})",
            word_length=self.word_length,
            fraction_length=self.fraction_length,
        )
        least = 2 if self.symmetric else 1
        if not (least <= self.word_length <= 16 and abs(self.fraction_length) <= 64):
            raise ValueError(
                f"FixedPoint({self.word_length}, {self.fraction_length}, {self.symmetric}): "
                f"word_length must be from {least} to 16 and fraction_length from -64 to 64."
            )
        object.__setattr__(self, "bits", self.word_length)

    @property
    def name(self) -> str:
        """`fixed<wl>.<fl>`, with `_symmetric` for that."""
        tail = "_symmetric" if self.symmetric else ""
        return f"fixed{self.word_length}.{self.fraction_length}{tail}"

    @property
    def overflows(self) -> tuple[str, ...]:
        """With `wrap` where all codes are in use."""
        return ("saturate", "spec") if self.symmetric else ("saturate", "spec", "wrap")

    @property
    def _exponent(self) -> int:
        return -self.fraction_length

    @property
    def _low(self) -> int:
        return -(2 ** (self.bits - 1)) + self.symmetric

    @property
    def _top(self) -> int:
        return 2 ** (self.bits - 1) - 1


@dataclasses.dataclass(frozen=True)
class AsymmetricInteger(Format):
    r"""Codes q from 0 to 2^b - 1 with a scale s and a zero point z: values $(q - z) s$.

    Where the scale is found, $lo = \min(x, 0)$ and $hi = \max(x, 0)$ of the numbers that share it,
    $s = (hi - lo) / (2^b - 1)$ and $z = \mathrm{round}(-lo / s)$, so that 0 is exact;
    $q = \mathrm{clip}(\mathrm{round}(x / s) + z, 0, 2^b - 1)$. `max`, `values()`, `encode` and
    `decode` are in units of the scale, for z = 0.

    Args:
        bits: b, 1 to 16.

    Raises:
        ValueError: for another width.

    >>> AsymmetricInteger(2).values().tolist()
    [0.0, 1.0, 2.0, 3.0]
    """

    bits: int

    def __post_init__(self) -> None:
        check_whole(f"AsymmetricInteger({self.bits!r})", bits=self.bits)
        if not 1 <= self.bits <= 16:
            raise ValueError(f"AsymmetricInteger({self.bits}): bits must be from 1 to 16.")

    @property
    def name(self) -> str:
        """`int<b>_asymmetric`."""
        return f"int{self.bits}_asymmetric"

    @property
    def max(self) -> float:
        """Largest code."""
        return 2.0**self.bits - 1

    @property
    def min(self) -> float:
        """0."""
        return 0.0

    @property
    def smallest(self) -> float:
        """The step."""
        return 1.0

    @property
    def steps(self) -> float:
        """Steps between the ends of the range."""
        return self.max

    def _encode(
        self, x: Float[Array, "*dims"], rounding: str, overflow: str, key: PRNGKeyArray | None
    ) -> UInt[Array, "*dims"]:
        x = widen(x)
        return self.encode_around(x, jnp.zeros_like(x), rounding, key)

    def encode_around(
        self,
        r: Float[Array, "*dims"],
        zero: Float[Array, "*#dims"],
        rounding: str,
        key: PRNGKeyArray | None,
    ) -> UInt[Array, "*dims"]:
        """Codes, as uint32, of numbers r in units of the scale about a zero point; NaN gives it."""
        low, high = -zero, self.max - zero
        inside = jnp.where(jnp.isnan(r), jnp.zeros_like(r), jnp.clip(r, low - 1, high + 1))
        negative = jnp.signbit(r)
        magnitude = kept_above_zero(inside, r, rounding)
        k = round_to_integer(magnitude, rounding=rounding, negative=negative, key=key)
        k = jnp.clip(jnp.where(negative, -k, k), low, high)
        return (k + zero).astype(jnp.uint32)

    def _decode(self, codes: UInt[Array, "*dims"], dtype: DTypeLike) -> Float[Array, "*dims"]:
        wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
        return narrow(codes.astype(wide), dtype)
