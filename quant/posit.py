"""Posits: a regime of varying length, two exponent bits, and what is left for the fraction."""

import dataclasses
import functools
import re
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt

from .grid import Format, check_whole
from .tables import Table

_NAME = re.compile(r"posit(\d+)")
EXPONENT_BITS = 2


@dataclasses.dataclass(frozen=True)
class Posit(Table):
    r"""Posit<n, 2>: $(1 + f)\, 2^{4k + e}$, its code in two's complement.

    After the sign bit stands the regime: a run of r equal bits that ends with the other one, or
    with the code; k = r - 1 for ones and -r for zeros. Then come two bits of e and the fraction f;
    bits beyond the end of the code count as 0. 100..0 is NaR (not a real): NaN, and infinities with
    `overflow="spec"`. There is no -0.

    Rounding to nearest goes by codes: the border between two neighbours is the posit of one more
    bit between them, ties go to the even code, and a number that is not 0 never becomes 0. The
    other roundings go by the distance in value.

    Args:
        bits: n, 3 to 16.

    Raises:
        ValueError: for another width.

    References:
        Standard for posit arithmetic (2022), posit working group.

    >>> Posit(8).max == 2.0**24, Posit(8).smallest == 2.0**-24
    (True, True)
    """

    bits: int

    def __post_init__(self) -> None:
        check_whole(f"Posit({self.bits!r})", bits=self.bits)
        if not 3 <= self.bits <= 16:
            raise ValueError(f"Posit({self.bits}): bits must be from 3 to 16.")

    @property
    def name(self) -> str:
        """`posit<n>`."""
        return f"posit{self.bits}"

    @property
    def has_nan(self) -> bool:
        """NaR is NaN."""
        return True

    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The values by their codes, and the posits of one more bit between them."""
        return _entries(self.bits)

    def _encode(
        self, x: Float[Array, "*dims"], rounding: str, overflow: str, key: PRNGKeyArray | None
    ) -> UInt[Array, "*dims"]:
        codes = super()._encode(x, rounding, overflow, key)
        bad = jnp.isnan(x) | (jnp.isinf(x) if overflow == "spec" else False)
        return jnp.where(bad, jnp.uint32(1 << (self.bits - 1)), codes)


@functools.cache
def _entries(bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    half = 2 ** (bits - 1)
    positive = np.array([float(value_of(c, bits)) for c in range(1, half)])
    borders = np.array([float(value_of(2 * c + 1, bits + 1)) for c in range(1, half - 1)])
    # nothing but 0 itself goes to 0: its border is below every number that `Table` tells from 0
    borders = np.concatenate([[2.0**-70], borders])
    values = np.concatenate([-positive[::-1], [0.0], positive])
    codes = np.arange(1 - half, half) % (2 * half)
    return values, codes, np.concatenate([-borders[::-1], borders])


def value_of(code: int, bits: int) -> Fraction:
    """The value of a positive posit code, exactly, by the definition."""
    digits = format(code, f"0{bits}b")[1:]
    run = len(digits) - len(digits.lstrip(digits[0]))
    k = run - 1 if digits[0] == "1" else -run
    rest = digits[run + 1 :]
    exponent = int((rest[:EXPONENT_BITS]).ljust(EXPONENT_BITS, "0"), 2)
    fraction = rest[EXPONENT_BITS:]
    f = Fraction(int(fraction, 2), 2 ** len(fraction)) if fraction else Fraction(0)
    return (1 + f) * Fraction(2) ** (2**EXPONENT_BITS * k + exponent)


def from_name(name: str) -> Format | None:
    """The format that has this name; None for a name of another family."""
    found = _NAME.fullmatch(name)
    return Posit(int(found[1])) if found else None
