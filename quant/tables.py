"""Formats given by a table of values: any look-up table, and NF4.

How a number between any two values goes to one of them is worked out here once; `few` and `posit`
bring tables of their own.
"""

import dataclasses
import functools
import statistics
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, auto_axes
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, UInt

from .grid import Format
from .minifloat import narrow, widen
from .rounding import DIRECTED, kept_above_zero, rounds_up

_SMALL = 64  # values up to which comparing with all of them is faster than a binary search


class Grid(NamedTuple):
    """A table worked out for one float type; arrays of n values, and n - 1 gaps between them."""

    values: np.ndarray  # ascending
    codes: np.ndarray  # uint32
    middle: np.ndarray  # of each gap: the first number not below it
    tie: np.ndarray  # whether that number is the middle itself


class Table(Format):
    """A format whose finite values are listed; what a family says is `entries`."""

    @abstractmethod
    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The values, ascending, their codes, and the middles of the gaps, in float64."""

    @property
    def max(self) -> float:
        """Largest value."""
        return float(self.entries()[0][-1])

    @property
    def min(self) -> float:
        """Most negative value."""
        return float(self.entries()[0][0])

    @property
    def smallest(self) -> float:
        """Smallest magnitude above zero."""
        magnitudes = np.abs(self.entries()[0])
        return float(magnitudes[magnitudes > 0].min())

    def values(self) -> np.ndarray:
        """All finite values, ascending, in float32."""
        return self.entries()[0].astype(np.float32)

    def _encode(
        self, x: Float[Array, "*dims"], rounding: str, overflow: str, key: PRNGKeyArray | None
    ) -> UInt[Array, "*dims"]:
        x = widen(x)
        codes = jnp.asarray(_grid(self, str(x.dtype)).codes)
        return _on_any_mesh(lambda x, key: codes[self._index(x, rounding, key)], x, key)

    def _round(
        self, x: Float[Array, "*dims"], rounding: str, overflow: str, key: PRNGKeyArray | None
    ) -> Float[Array, "*dims"]:
        if self.has_nan or x.dtype not in (jnp.float32, jnp.float64):
            return super()._round(x, rounding, overflow, key)
        values = jnp.asarray(_grid(self, str(x.dtype)).values)
        return _on_any_mesh(lambda x, key: values[self._index(x, rounding, key)], x, key)

    def _index(self, x: Array, rounding: str, key: PRNGKeyArray | None) -> Array:
        """The place in the table that x is rounded to; NaN goes to that of the nearest to 0."""
        grid = _grid(self, str(x.dtype))
        values, last = jnp.asarray(grid.values), len(grid.values) - 1
        negative = jnp.signbit(x)
        magnitude = kept_above_zero(x, x, DIRECTED[0])
        x = jnp.where(jnp.isnan(x), jnp.zeros_like(x), jnp.where(negative, -magnitude, magnitude))
        x = jnp.clip(x, values[0], values[last])
        method = "compare_all" if last < _SMALL else "scan_unrolled"
        low = jnp.searchsorted(values[1:-1], x, side="right", method=method).astype(jnp.int32)
        # `near` is the neighbour with the smaller magnitude, where rounding towards zero goes; if 0
        # lies between the two without being a value there is none
        below, above = values[low], values[low + 1]
        flip = above <= 0
        straddles = (below < 0) & (above > 0)
        near = jnp.where(flip, low + 1, low)
        odd = jnp.asarray(grid.codes)[near] & 1 == 1
        if rounding == "stochastic":
            distance = jnp.abs(x - values[near]) / (above - below)
            width = 8 * x.dtype.itemsize
            top = jnp.array(1 - 2.0 ** -(24 if width == 32 else 53), x.dtype)
            remainder = jnp.minimum(distance, top) * jnp.array(2.0**width, x.dtype)
            remainder = remainder.astype(f"uint{width}")
            remainder = jnp.where(distance >= 1, ~jnp.zeros_like(remainder), remainder)
        else:
            middle, tie = jnp.asarray(grid.middle)[low], jnp.asarray(grid.tie)[low]
            upper = (x > middle) | ((x == middle) & ~tie)
            half, tied = jnp.uint32(1 << 31), (x == middle) & tie
            beyond = jnp.where(flip, ~upper & ~tied, upper)
            remainder = jnp.where(beyond, half + half // 2, half // 2)
            remainder = jnp.where(tied, half, remainder)
            remainder = jnp.where(x == values[near], jnp.uint32(0), remainder)
        up = rounds_up(odd, remainder, rounding=rounding, negative=negative, key=key)
        if rounding == "toward_zero":
            up = up | (straddles & rounds_up(odd, remainder))
        if rounding in DIRECTED:  # there the gap lies on both sides of zero, and x may be negative
            up = jnp.where(straddles, (remainder > 0) & (rounding == "up"), up)
        up = up | (x == jnp.where(flip, below, above))
        return jnp.where(up, jnp.where(flip, low, low + 1), near)

    def _decode(self, codes: UInt[Array, "*dims"], dtype: DTypeLike) -> Float[Array, "*dims"]:
        wide = np.float64 if dtype == jnp.float64 else np.float32
        values, known, _ = self.entries()
        table = np.full(2**self.bits, np.nan if self.has_nan else 0, wide)
        table[known] = values.astype(wide)
        return narrow(_on_any_mesh(lambda codes: jnp.asarray(table)[codes], codes), dtype)


def _on_any_mesh(f: Callable[..., Array], x: Array, *others: Any) -> Array:
    """The array f(x, ...), one element for each: on explicit axes JAX asks how it is sharded."""
    sharding = jax.typeof(x).sharding
    if AxisType.Explicit in sharding.mesh.axis_types:
        f = cast("Callable[..., Array]", auto_axes(f, out_sharding=sharding))
    return f(x, *others)


@functools.lru_cache(maxsize=256)
def _grid(table: Table, dtype: str) -> Grid:
    values, codes, middles = table.entries()
    middle = middles.astype(dtype)
    middle = np.where(middle < middles, np.nextafter(middle, np.inf, dtype=dtype), middle)
    return Grid(values.astype(dtype), codes.astype(np.uint32), middle, middle == middles)


@dataclasses.dataclass(frozen=True)
class LookUp(Table):
    """Any values, in units of a scale given at use; the code of a value is its place in the table.

    Rounding to nearest compares with the exact middle of two values, and of two equally near ones
    takes that with the even code. Stochastic rounding goes to the upper one with probability
    (x - lo) / (hi - lo), up to 2^-24 of it in float32.

    Args:
        title: the name, one of your own.
        table: at least two different values that float32 holds, ascending; at most 2^16.

    Raises:
        ValueError: for another table.

    >>> LookUp("thirds", (-1.0, -0.375, 0.0, 0.375, 1.0)).bits
    3
    """

    title: str
    table: tuple[float, ...]

    def __post_init__(self) -> None:
        found = np.asarray(self.table, np.float64)
        ascending = found.ndim == 1 and (np.diff(found) > 0).all()
        if not (2 <= found.size <= 2**16 and ascending and np.isfinite(found).all()):
            raise ValueError(
                f"LookUp({self.title!r}): table holds {found.size} values; it must be 2 to 65536 "
                "finite numbers in ascending order, none of them twice."
            )
        if (np.abs(found[found != 0]) < 2.0**-50).any():
            raise ValueError(
                f"LookUp({self.title!r}): values other than 0 must be at least 2^-50 in magnitude; "
                "multiply the table by a power of two, the scale takes it back."
            )
        if (found.astype(np.float32) != found).any():
            raise ValueError(
                f"LookUp({self.title!r}): float32 cannot hold all values of the table; give "
                "them as numpy.float32 numbers."
            )

    @property
    def name(self) -> str:
        """The title; `parse` knows that of NF4 alone."""
        return self.title

    @property
    def bits(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Bits of a place in the table."""
        return (len(self.table) - 1).bit_length()

    @property
    def steps(self) -> float:
        """Largest magnitude: max|x| goes to it."""
        return max(self.max, -self.min)

    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The table, places as codes, and the middles."""
        values = np.asarray(self.table, np.float64)
        return values, np.arange(len(values)), (values[1:] + values[:-1]) / 2


def normal_float(bits: int) -> tuple[float, ...]:
    r"""The values of a normal float: quantiles of N(0, 1) that are equally likely, scaled to 1.

    $2^{b-1}$ negative and $2^{b-1} + 1$ positive ones meet at 0; the outermost stands for the
    probability 1 - (1/32 + 1/30) / 2, as published for b = 4.

    References:
        QLoRA: efficient finetuning of quantized LLMs, arXiv:2305.14314.
    """
    half, normal = 2 ** (bits - 1), statistics.NormalDist()
    edge = 1 - (1 / (2 * half * 2) + 1 / (2 * (2 * half - 1))) / 2
    up = [normal.inv_cdf(p) for p in np.linspace(0.5, edge, half + 1)]
    down = [-normal.inv_cdf(p) for p in np.linspace(0.5, edge, half)]
    values = np.array(sorted({0.0, *up[1:], *down[1:]}))
    return tuple((values / values.max()).astype(np.float32).tolist())


NF4 = LookUp("nf4", normal_float(4))


def from_name(name: str) -> Format | None:
    """The format that has this name; None for a name of another family."""
    return NF4 if name == "nf4" else None
