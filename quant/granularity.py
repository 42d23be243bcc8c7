"""Which numbers of an array share a scale: the tensor, a channel, a token, a group, a block.

The one idea here is the blocked layout: the numbers that share a scale stand along the last axis.
How a scale is found from them belongs to `scaling` and `clipping`, what it means to the formats.
"""

import dataclasses
import difflib
import math
import re
from typing import cast

import jax.numpy as jnp
from jaxtyping import Array, Shaped

_NAMED = re.compile(r"group(\d+)|block(\d+)x(\d+)")
_Axes = tuple[int, ...]  # what `axis` and `block` are once a Granularity is made
NAMES = "tensor, channel, token, group<k> or block<r>x<c>"


@dataclasses.dataclass(frozen=True)
class Granularity:
    """Numbers share a scale along `axis`, so many of them as `block` says.

    Args:
        axis: one or more axes; None: all of them.
        block: numbers along each axis that share a scale; None: all of them. It must divide the
            axis.

    Raises:
        ValueError: for a block that is not positive, or as many blocks as there are not axes.

    >>> Granularity(-1, 32).scale_shape((8, 96))
    (8, 3)
    """

    axis: tuple[int, ...] | int | None = None
    block: tuple[int, ...] | int | None = None

    def __post_init__(self) -> None:
        for name, given in (("axis", self.axis), ("block", self.block)):
            numbers = given if isinstance(given, tuple) else (given,)
            if given is not None and not all(isinstance(n, int) for n in numbers):
                raise ValueError(
                    f"Granularity: {name} is {given!r}; it must be a whole number, a tuple of "
                    "them, or None."
                )
        axis = (self.axis,) if isinstance(self.axis, int) else self.axis
        block = self.block
        if isinstance(block, int):
            block = (block,) * (1 if axis is None else len(axis))
        who = f"Granularity(axis={self.axis}, block={self.block})"
        if block is not None and axis is None:
            if len(block) != 1:
                raise ValueError(f"{who}: say with axis=... along which axes the blocks run.")
            axis = (-1,)
        if axis is not None and not axis:
            raise ValueError(f"{who}: name at least one axis, or None for all of them.")
        if block is not None and (len(block) != len(axis or ()) or min(block) < 1):
            raise ValueError(f"{who}: needs one block >= 1 for each axis.")
        object.__setattr__(self, "axis", axis)
        object.__setattr__(self, "block", block)

    @classmethod
    def parse(cls, name: "str | Granularity", ndim: int) -> "Granularity":
        """The granularity of a name for an array with `ndim` axes.

        Weights are (out, in), activations (token, feature).

        - `tensor`: one scale.
        - `channel`: one for each index of the first axis.
        - `token`: one for each index of all axes but the last.
        - `group<k>`: one for k numbers along the last axis.
        - `block<r>x<c>`: one for r x c numbers of the last two axes.

        Raises:
            ValueError: for another name.
        """
        if isinstance(name, Granularity):
            return name
        if name == "tensor":
            return cls()
        if name == "channel":
            return cls(tuple(range(1, ndim)) or None)
        if name == "token":
            return cls(-1)
        if isinstance(name, str) and (found := _NAMED.fullmatch(name)):
            group, rows, columns = found.groups()
            return cls(-1, int(group)) if group else cls((-2, -1), (int(rows), int(columns)))
        known = ("tensor", "channel", "token", "group32", "block16x16")
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"granularity is {name!r}; the nearest is {near!r}: choose {NAMES}, or give a "
            "Granularity."
        )

    def blocks(self, shape: tuple[int, ...]) -> dict[int, int]:
        """The axes of an array of this shape along which numbers share a scale, and how many do.

        Raises:
            ValueError: for an axis that is not there, or a block that does not divide it.
        """
        n = len(shape)
        if self.axis is None:
            return dict(enumerate(shape))
        axes, given = cast("_Axes", self.axis), cast("_Axes | None", self.block)
        if not n:
            raise ValueError(
                f"axis={_plain(axes)} does not fit a single number, which has no axes: give an "
                "array of one or more."
            )
        if any(not -n <= a < n for a in axes) or len({a % n for a in axes}) < len(axes):
            raise ValueError(
                f"axis={_plain(axes)} does not fit an array of shape {shape}: name different axes "
                f"from {-n} to {n - 1}, or None for all of them."
            )
        sizes = [shape[a] for a in axes] if given is None else given
        for axis, size in zip(axes, sizes, strict=True):
            if given is not None and shape[axis] % size:
                raise ValueError(
                    f"block={_plain(given)} does not divide axis {axis} of an array of shape "
                    f"{shape}: choose a block that divides {shape[axis]}, or pad the axis with "
                    f"{-shape[axis] % size} zeros."
                )
        return {a % n: size for a, size in zip(axes, sizes, strict=True)}

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales: that of the array, with each axis divided by its block."""
        blocks = self.blocks(shape)
        return tuple(
            n // blocks[a] if blocks.get(a) else (1 if a in blocks else n)
            for a, n in enumerate(shape)
        )

    def split(self, x: Shaped[Array, "*dims"]) -> Shaped[Array, "*scales k"]:
        """The blocked layout: the shape of the scales, then the k numbers that share each."""
        folded, order = self._folded(x.shape)
        shared = math.prod(self.blocks(x.shape).values())
        moved = jnp.transpose(x.reshape(folded), order)
        return moved.reshape(*self.scale_shape(x.shape), shared)

    def join(
        self, blocked: Shaped[Array, "*scales k"], shape: tuple[int, ...]
    ) -> Shaped[Array, "*dims"]:
        """The array of a shape, back from the blocked layout."""
        folded, order = self._folded(shape)
        moved = blocked.reshape([folded[a] for a in order])
        return jnp.transpose(moved, [order.index(a) for a in range(len(order))]).reshape(shape)

    def spread(
        self, scales: Shaped[Array, "*scales"], shape: tuple[int, ...]
    ) -> Shaped[Array, "..."]:
        """The scale of each number of an array of a shape; axes with a single scale stay short."""
        for axis, size in self.blocks(shape).items():
            if scales.shape[axis] > 1:
                scales = jnp.repeat(scales, size, axis)
        return scales

    def _folded(self, shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
        """The shape with each axis in two, blocks and numbers in a block, and the blocks first."""
        blocks, scales = self.blocks(shape), self.scale_shape(shape)
        folded = [n for a in range(len(shape)) for n in (scales[a], blocks.get(a, 1))]
        return folded, [*range(0, len(folded), 2), *range(1, len(folded), 2)]


def _plain(values: tuple[int, ...]) -> str:
    return str(values[0]) if len(values) == 1 else str(values)
