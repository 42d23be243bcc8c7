"""What every number format offers: its size, its range, its values, and codes in and out.

A family of formats (minifloats, integers, ...) is a frozen dataclass that says how a code is found
and read back; this file holds what they share. Names of formats belong to `formats`, scales to
`scaling`, the choice between two neighbours to `rounding`.
"""

import functools
from abc import ABC, abstractmethod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt

from .rounding import check_rounding

FLOATS = ("float32", "float64", "float16", "bfloat16")


class Format(ABC):
    """A set of numbers, each with a code of `bits` bits.

    A format is immutable and hashable: it can be a static argument of `jax.jit` and a key of a
    dictionary. `encode` and `decode` work under `jit`, `vmap` and `scan`; they have no derivative
    (`quantize` has one).
    """

    #: Bits of one code.
    bits: int

    @property
    @abstractmethod
    def name(self) -> str:
        """The name that `parse` reads back."""

    @property
    @abstractmethod
    def max(self) -> float:
        """Largest finite value."""

    @property
    @abstractmethod
    def min(self) -> float:
        """Most negative finite value."""

    @property
    @abstractmethod
    def smallest(self) -> float:
        """Smallest magnitude above zero."""

    @property
    def steps(self) -> float | None:
        """In a format whose unit is a scale given at use, max|x| / scale; else None."""
        return None

    @property
    def scale_rule(self) -> str:
        """How the scale is found from the numbers that share it, if nothing else is asked for."""
        return "absmax"

    @property
    def has_nan(self) -> bool:
        """Whether NaN has a code."""
        return False

    @property
    def overflows(self) -> tuple[str, ...]:
        """The ways to treat what lies beyond the range, see `encode`."""
        return ("saturate", "spec")

    @property
    def code_dtype(self) -> np.dtype:
        """The smallest of uint8, uint16 and uint32 that holds a code."""
        return np.dtype(np.uint8 if self.bits <= 8 else np.uint16 if self.bits <= 16 else np.uint32)

    @abstractmethod
    def _encode(
        self, x: Float[Array, "*dims"], rounding: str, overflow: str, key: PRNGKeyArray | None
    ) -> UInt[Array, "*dims"]:
        """Codes of x, in any of `FLOATS`, as uint32; NaN without a code gives the code of 0."""

    @abstractmethod
    def _decode(self, codes: UInt[Array, "*dims"], dtype: DTypeLike) -> Float[Array, "*dims"]:
        """Values, in any of `FLOATS`, of uint32 codes whose bits beyond `bits` are 0."""

    def _round(
        self, x: Float[Array, "*dims"], rounding: str, overflow: str, key: PRNGKeyArray | None
    ) -> Float[Array, "*dims"]:
        """The values of `_encode`; a family may know a faster way to the same bits."""
        return self._decode(self._encode(x, rounding, overflow, key), x.dtype)

    def values(self) -> np.ndarray:
        """All finite values, ascending, in float32 (-0 is not listed beside 0).

        Raises:
            ValueError: for formats of more than 16 bits.
        """
        if self.bits > 16:
            raise ValueError(
                f"{self.name}.values() would list 2^{self.bits} numbers; only formats of up to 16 "
                "bits can be listed, use max and smallest instead."
            )
        v = np.asarray(self.decode(jnp.arange(2**self.bits).astype(self.code_dtype)))
        return np.unique(v[(v >= self.min) & (v <= self.max)] + np.float32(0))

    def inside(self, x: Float[Array, "*dims"]) -> Bool[Array, "*dims"]:
        """Where x lies between `min` and `max`, ends included; False for NaN."""
        return (x >= self.min) & (x <= self.max)

    def encode(
        self,
        x: Float[Array, "*dims"],
        *,
        rounding: str = "nearest_even",
        overflow: str = "saturate",
        key: PRNGKeyArray | None = None,
    ) -> UInt[Array, "*dims"]:
        """Rounds x to the format and gives the codes, in `code_dtype`.

        Args:
            x: numbers in the unit of the format; float32, float64, float16 or bfloat16, each
                rounded once, from its own value.
            rounding: one of `ROUNDINGS`, see `rounds_up`.
            overflow: `saturate` (all that lies beyond the range, infinities included, becomes the
                end of it; NaN stays NaN where the format has one), or `spec` (as the definition of
                the format says: Inf, else NaN, else the end of the range; a finite number that is
                rounded towards zero there stays at the end, as in IEEE 754). Fixed point also has
                `wrap`.
            key: random key of stochastic rounding.

        Raises:
            ValueError: for a wrong setting or dtype, a missing key, or a NaN that has no code.
                Under `jit` such a NaN cannot be seen, and becomes 0.
        """
        x = jnp.asarray(x)
        check_input("encode", x, self, rounding, overflow, key)
        return _encode(x, self, rounding, overflow, key)

    def decode(
        self, codes: UInt[Array, "*dims"], dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "*dims"]:
        """The values of codes, exact in float32 and float64, else rounded to nearest even.

        Bits of a code beyond `bits` are ignored.
        """
        return _decode(codes, self, jnp.dtype(dtype))


@functools.partial(jax.jit, static_argnames=("fmt", "rounding", "overflow"))
def _encode(x: Array, fmt: Format, rounding: str, overflow: str, key: Array | None) -> Array:
    return fmt._encode(x, rounding, overflow, key).astype(fmt.code_dtype)


@functools.partial(jax.jit, static_argnames=("fmt", "dtype"))
def _decode(codes: Array, fmt: Format, dtype: np.dtype) -> Array:
    return fmt._decode(codes.astype(jnp.uint32) & jnp.uint32(2**fmt.bits - 1), dtype)


def check_whole(who: str, **numbers: Any) -> None:
    """Refuses settings of a format that are not whole numbers, in the name of `who`."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{who}: {name} must be a whole number; got {value!r}.")


def check_input(
    who: str, x: Any, fmt: Format, rounding: str, overflow: str, key: PRNGKeyArray | None
) -> None:
    """Refuses settings and numbers that cannot be rounded to fmt, in the name of `who`."""
    who = f"{who}({fmt.name})"
    check_rounding(who, rounding, key)
    if overflow not in fmt.overflows:
        raise ValueError(
            f"{who}: overflow is {overflow!r}; {fmt.name} knows {', '.join(fmt.overflows)}."
        )
    if str(x.dtype) not in FLOATS:
        raise ValueError(
            f"{who}: x of shape {x.shape} has dtype {x.dtype}; convert it to one of "
            f"{', '.join(FLOATS)}."
        )
    if fmt.has_nan or isinstance(x, Tracer):
        return
    with jax.ensure_compile_time_eval():  # x may be a constant inside of a transformation
        nans = int(jnp.isnan(x).sum())
    if nans:
        raise ValueError(
            f"{who}: x of shape {x.shape} holds {nans} NaN, for which {fmt.name} has no code; "
            "find where they come from, replace them (jnp.nan_to_num), or use a format with NaN "
            "such as e4m3fn."
        )
