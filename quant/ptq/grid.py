"""Grids: a format, and how the range of each group of weights is found.

The idea that belongs here: groups stand along the last axis, a grid is fitted to each, and any
number then rounds to its nearest value. In which order weights are rounded, and who pays for the
errors, is said by the solvers (`gptq`).
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt

from ..blocks import BlockFormat
from ..formats import parse
from ..grid import Format
from ..scaled import Scale, decode_blocks, encode_blocks, find_scale

SEARCH = "search"


@dataclass(frozen=True)
class Grid:
    """A format and a rule for the range.

    Attributes:
        fmt: a format.
        clip: absmax (the whole range), search (below), or a rule of `quantize(scale=...)`.
        ratios: of the range, that search tries; the first is best where none is better.
        power: of the errors whose sum search makes smallest.

    References:
        The search is that of GPTQ's implementations: 80 ratios down to a fifth, errors to the 2.4.
    """

    fmt: Format
    clip: str = "absmax"
    ratios: tuple[float, ...] = tuple((1 - np.arange(80) / 100).tolist())
    power: float = 2.4

    @classmethod
    def of(cls, fmt: Format | str, clip: str = "absmax") -> "Grid":
        """The grid of a format, given or by name.

        Raises:
            ValueError: an unknown format.
        """
        return cls(parse(fmt), clip)

    def fit(self, w: Float[Array, "*groups k"]) -> Scale:
        """The scale of each group.

        Raises:
            ValueError: a rule that the format cannot take.
        """
        if self.clip != SEARCH:
            return find_scale(w, self.fmt, self.clip)
        if isinstance(self.fmt, BlockFormat):
            raise ValueError(
                f"Grid({self.fmt.name}, 'search'): its scales are codes themselves; use absmax."
            )
        return _searched(w, self)

    def codes(self, w: Float[Array, "*groups"], scale: Scale) -> UInt[Array, "*groups"]:
        """The code nearest to each number; one number a scale, or shapes that broadcast."""
        return encode_blocks(
            w, self.fmt, scale, rounding="nearest_even", overflow="saturate", key=None
        )

    def values(self, codes: UInt[Array, "*groups"], scale: Scale) -> Float[Array, "*groups"]:
        """What codes stand for, in float32."""
        return decode_blocks(codes, self.fmt, scale, jnp.float32)


@functools.partial(jax.jit, static_argnames="grid")
def _searched(w: Float[Array, "*groups k"], grid: Grid) -> Scale:
    """Of all ratios the scale with the least error, group by group."""

    def at(ratio: Array) -> Scale:
        whole = find_scale(w * ratio, grid.fmt, "absmax")
        return whole._replace(divisor=None)

    def one(best: tuple, ratio: Array) -> tuple[tuple, None]:
        least, kept = best
        scale = at(ratio)
        each = jax.tree.map(lambda s: s[..., None], scale)
        error = jnp.abs(grid.values(grid.codes(w, each), each) - w) ** grid.power
        error = error.sum(-1)
        better = error < least
        kept = jax.tree.map(lambda new, old: jnp.where(better, new, old), scale, kept)
        return (jnp.where(better, error, least), kept), None

    start = (jnp.full(w.shape[:-1], jnp.inf, w.dtype), at(jnp.ones((), w.dtype)))
    return jax.lax.scan(one, start, jnp.asarray(grid.ratios, w.dtype))[0][1]
