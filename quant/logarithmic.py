"""Power-of-two formats: a sign and an exponent, without a mantissa.

Zero is the neighbour of the smallest magnitude, and rounding between the two is rounding like
everywhere else: the stochastic one is unbiased down to zero. What training makes of it (LUQ)
belongs to `training`.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, UInt

from .grid import Format
from .minifloat import _WIDE, Minifloat, widen

MIDPOINTS = ("arithmetic", "geometric")
_NAME = re.compile(r"log(\d+)(?:_(\d+))?(?:_from(-?\d+))?(_geometric)?")


@dataclasses.dataclass(frozen=True)
class Logarithmic(Format):
    r"""Values 0 and $\pm 2^l, \pm 2^{l+1}, ..., \pm 2^{l+L-1}$, with the codes 0 and 1 to L.

    The sign is the highest bit of a code; a code behind L reads as L. Without `lowest` the unit is
    given at use, and the largest magnitude is 1 of it: with the scale max|x|, that maps to itself.
    `log4` is the [1,3,0] format of LUQ, seven magnitudes and zero. The published code of LUQ has
    eight magnitudes, which 4 bits cannot hold: `Logarithmic(5, magnitudes=8)`.

    Nearest rounding (`midpoint`) goes to the upper one of 2^k and 2^(k+1)

    - `arithmetic`: from 1.5 2^k on, which has the least squared error; with `nearest_away` it is
      $2^{\lfloor \log_2(4 |x| / 3) \rfloor}$.
    - `geometric`: from sqrt(2) 2^k on, the nearest in the logarithm; to zero below
      2^l / sqrt(2).

    Args:
        bits: of a code, 2 to 8.
        magnitudes: L; None: all that the bits hold, 2^(bits-1) - 1.
        lowest: l, the exponent of the smallest magnitude; None: 1 - L, in units of the scale.
        midpoint: one of the two.

    Raises:
        ValueError: for another setting, or exponents that float32 does not have.

    References:
        Accurate neural training with 4-bit matrix multiplications at standard formats,
        arXiv:2112.10769.

    >>> Logarithmic(3).values().tolist()
    [-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]
    """

    bits: int
    magnitudes: int | None = None
    lowest: int | None = None
    midpoint: str = "arithmetic"

    def __post_init__(self) -> None:
        who = f"Logarithmic({self.bits}, {self.magnitudes}, {self.lowest}, {self.midpoint!r})"
        if not 2 <= self.bits <= 8:
            raise ValueError(f"{who}: bits must be from 2 to 8.")
        if self.midpoint not in MIDPOINTS:
            raise ValueError(f"{who}: midpoint must be one of {', '.join(MIDPOINTS)}.")
        most = 2 ** (self.bits - 1) - 1
        if self.magnitudes is None:
            object.__setattr__(self, "magnitudes", most)
        if not 1 <= self._count <= most:
            raise ValueError(f"{who}: {self.bits} bits hold from 1 to {most} magnitudes.")
        highest = 128 - most
        if not -126 <= self._lowest <= highest:
            raise ValueError(f"{who}: lowest must be from -126 to {highest}.")

    @property
    def _count(self) -> int:
        return self.magnitudes or 0

    @property
    def _lowest(self) -> int:
        return 1 - self._count if self.lowest is None else self.lowest

    @property
    def _grid(self) -> Minifloat:
        """The format with the same codes, which may go on behind the largest magnitude."""
        return Minifloat(self.bits - 1, 0, 1 - self._lowest, "none")

    @property
    def name(self) -> str:
        """`log<bits>[_<magnitudes>][_from<lowest>][_geometric]`."""
        few = "" if self._count == 2 ** (self.bits - 1) - 1 else f"_{self._count}"
        fixed = "" if self.lowest is None else f"_from{self.lowest}"
        return f"log{self.bits}{few}{fixed}" + "_geometric" * (self.midpoint == "geometric")

    @property
    def max(self) -> float:
        """Largest value."""
        return 2.0 ** (self._lowest + self._count - 1)

    @property
    def min(self) -> float:
        """Most negative value."""
        return -self.max

    @property
    def smallest(self) -> float:
        """Smallest magnitude above zero."""
        return 2.0**self._lowest

    @property
    def steps(self) -> float | None:
        """1, so that the scale is max|x|; None with fixed exponents."""
        return 1.0 if self.lowest is None else None

    def _encode(
        self, x: Float[Array, "*dims"], rounding: str, overflow: str, key: PRNGKeyArray | None
    ) -> UInt[Array, "*dims"]:
        x = widen(x)
        if self.midpoint == "geometric" and rounding in ("nearest_even", "nearest_away"):
            x, rounding = _lift(x), "toward_zero"
        code = self._grid._encode(x, rounding, "saturate", key)
        sign = code & jnp.uint32(2 ** (self.bits - 1))
        return jnp.minimum(code ^ sign, jnp.uint32(self._count)) | sign

    def _decode(self, codes: UInt[Array, "*dims"], dtype: DTypeLike) -> Float[Array, "*dims"]:
        sign = codes & jnp.uint32(2 ** (self.bits - 1))
        code = jnp.minimum(codes ^ sign, jnp.uint32(self._count)) | sign
        return self._grid._decode(code, dtype)


def _lift(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """Moves magnitudes from sqrt(2) 2^k on, and those alone, to 2^(k+1) or a little beyond.

    A float is its exponent and its fraction in one integer: what is added to the fraction carries
    into the exponent from the first fraction above sqrt(2) on.
    """
    f = _WIDE[x.dtype]
    pattern = jax.lax.bitcast_convert_type(x, f.uint)
    magnitude = pattern & f.uint((1 << (f.width - 1)) - 1)
    # integers: the square root of 2 is none, so that the first fraction above it is the next one
    to_next = (2 << f.mantissa) - (math.isqrt(2 << (2 * f.mantissa)) + 1)
    among_subnormals = (1 << f.mantissa) - (math.isqrt(2 << (2 * f.mantissa - 2)) + 1)
    normal = magnitude >= f.uint(1 << f.mantissa)
    lifted = magnitude + jnp.where(normal, f.uint(to_next), f.uint(among_subnormals))
    lifted = jnp.minimum(lifted, f.uint(f.infinity - 1))
    lifted = jnp.where(magnitude < f.uint(f.infinity), lifted, magnitude)
    return jax.lax.bitcast_convert_type(lifted | (pattern ^ magnitude), f.float)


def from_name(name: str) -> Logarithmic | None:
    """The format that a name of this file means; None for any other name."""
    found = _NAME.fullmatch(name)
    if not found:
        return None
    bits, magnitudes, lowest, geometric = found.groups()
    return Logarithmic(
        int(bits),
        None if magnitudes is None else int(magnitudes),
        None if lowest is None else int(lowest),
        "geometric" if geometric else "arithmetic",
    )
