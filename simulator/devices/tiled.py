"""A matrix on several tiles: rows and columns split, partial sums added digitally.

Each tile has its own converters, scale, compensation and, where it is calibrated, input range. What
one tile does is `tile.py`'s.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import tile
from .device import Key
from .tile import Aged, Programmed, Tile


class Tiled(NamedTuple):
    """A matrix in tiles, either as they were written or as they are at a time."""

    parts: tuple[tuple[Programmed | Aged, ...], ...]  # by rows, then columns
    #: for each part of the rows, the |x| that its converters take for the largest; None: of each
    #: vector its own
    reach: tuple[Float[Array, ""], ...] | None = None


def parts(n: int, most: int) -> list[slice]:
    """Lines 0 to n in as few parts of at most so many as there can be, all of about one size.

    Raises:
        ValueError: parts of less than one line.
    """
    if most < 1:
        raise ValueError(f"tiled.parts: a tile of {most} lines holds nothing; give at least 1.")
    number = -(-n // most)
    edges = [n * i // number for i in range(number + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def program(
    built: Tile,
    w: Float[Array, "n_in n_out"],
    key: Key,
    t: float = 0.0,
    *,
    rows: int = 512,
    columns: int = 256,
) -> Tiled:
    """Writes weights into tiles.

    Args:
        built: how each tile is built.
        w: the weights.
        key: of the noise of programming.
        t: the time [s].
        rows: the most inputs of a tile.
        columns: the most outputs of a tile.

    Raises:
        ValueError: as `tile.program`, and for tiles that hold nothing.
    """
    across, down = parts(w.shape[1], columns), parts(w.shape[0], rows)
    keys = jax.random.split(key, (len(down), len(across)))
    return Tiled(
        tuple(
            tuple(tile.program(built, w[r, c], keys[i, j], t) for j, c in enumerate(across))
            for i, r in enumerate(down)
        )
    )


def calibrated(
    held: Tiled,
    x: Float[Array, "batch n_in"],
    *,
    quantile: float | None = None,
    stds: float | None = None,
) -> Tiled:
    """The tiles with input ranges of their own, from a batch of inputs; what is beyond is clipped.

    Args:
        held: as `program` gave it.
        x: inputs of the matrix, as many as the range should be judged by.
        quantile: the range is this quantile of |x| over the inputs of a tile.
        stds: it is so many standard deviations of x.

    Raises:
        ValueError: both, neither, or a value out of range.
    """
    if (quantile is None) == (stds is None):
        raise ValueError(
            f"tiled.calibrated: quantile = {quantile}, stds = {stds}; give one of both."
        )
    if quantile is not None and not 0 < quantile <= 1:
        raise ValueError(f"tiled.calibrated: quantile is {quantile}; it is above 0, at most 1.")
    if stds is not None and not stds > 0:
        raise ValueError(f"tiled.calibrated: stds is {stds}; it must be above 0.")

    def reach(own: Array) -> Array:
        return jnp.quantile(jnp.abs(own), quantile) if quantile else (stds or 0) * jnp.std(own)

    return held._replace(reach=tuple(reach(own) for own in _inputs(held, x)))


def aged(built: Tile, held: Tiled, t: Any, *, compensate: bool = False) -> Tiled:
    """The tiles at a time, for any number of products, see `tile.aged`.

    Args:
        built: how each tile is built.
        held: as `program` or `calibrated` gave it.
        t: the time [s].
        compensate: for the mean drift, each tile by its own.
    """

    def at(part: Programmed | Aged) -> Aged:
        if isinstance(part, Aged):
            raise ValueError("tiled.aged: these tiles have a time already; give programmed ones.")
        return tile.aged(built, part, t, compensate=compensate)

    return held._replace(parts=tuple(tuple(at(p) for p in row) for row in held.parts))


def matmul(
    built: Tile, held: Tiled, x: Float[Array, "*batch n_in"], key: Key | None
) -> Float[Array, "*batch n_out"]:
    """The product x @ w as the tiles give it: differentiable in x.

    Args:
        built: how each tile is built.
        held: at a time, by `aged`.
        x: inputs.
        key: of the noise of reads and outputs, that of each tile its own; None: none.
    """
    inputs = _inputs(held, x)
    reach = held.reach or (None,) * len(inputs)
    keys = None if key is None else jax.random.split(key, (len(inputs), len(held.parts[0])))
    outputs = []
    for i, (row, own, most) in enumerate(zip(held.parts, inputs, reach, strict=True)):
        of_row = [
            tile.matmul(built, part, own, None if keys is None else keys[i, j], reach=most)
            for j, part in enumerate(row)
        ]
        outputs.append(jnp.concatenate(of_row, -1))
    return jnp.sum(jnp.stack(outputs), 0)


def _inputs(held: Tiled, x: Array) -> list[Array]:
    """The inputs of each part of the rows."""
    sizes = [jax.tree.leaves(row[0])[0].shape[0] for row in held.parts]
    edges = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    if x.shape[-1] != edges[-1]:
        raise ValueError(f"tiled: inputs of {x.shape[-1]} lines, and the tiles have {edges[-1]}.")
    return [x[..., a:b] for a, b in itertools.pairwise(edges)]
