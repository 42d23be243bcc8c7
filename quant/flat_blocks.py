"""Arrays of any shape in a block format.

An array is flattened and filled up with zeros to whole blocks, each with a scale of its own that
is found anew at every write. What weight memories do with it stands in `memory`, what optimizers do
with the leaves of a tree in `training`; a block along an axis of the array is `quantize`'s.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from .blocks import BlockFormat
from .grid import Format
from .qtensor import QTensor, decode, encode
from .quantize import quantize
from .scaled import Scale, decode_blocks, encode_blocks, find_scale
from .storage import where_lost


class Stored(NamedTuple):
    """An array that was just stored."""

    codes: Shaped[Array, "*dims"]
    scale: Any  # what the codes are in units of; None: of the format's own
    lost: dict[str, Bool[Array, "*dims"]]  # where it saturated, underflowed, or was NaN


def fill_up(x: Shaped[Array, "*dims"], block: int) -> Shaped[Array, "n"]:
    """The array as a vector, with zeros behind it up to a whole number of blocks."""
    return jnp.pad(x.reshape(-1), (0, -x.size % block))


def cut_to(filled: Shaped[Array, "..."], shape: tuple[int, ...]) -> Shaped[Array, "..."]:
    """The array of a shape, back from what `fill_up` made of it; one of that shape as it is."""
    if filled.shape == shape:
        return filled
    return filled.reshape(-1)[: math.prod(shape)].reshape(shape)


def quantize_leaf(x: Float[Array, "*dims"], fmt: Format, **settings: Any) -> Float[Array, "*dims"]:
    """`quantize` of an array of any shape: where blocks do not divide its last axis, filled up.

    Where they do, blocks along the last axis are those of the flattened array. `settings` are those
    of `quantize`.
    """
    return cut_to(quantize(_filled(x, fmt), fmt, **settings), x.shape)


def encode_leaf(x: Float[Array, "*dims"], fmt: Format, **settings: Any) -> QTensor:
    """`encode` in the same way; `decode_leaf` gives the array back."""
    return encode(_filled(x, fmt), fmt, **settings)


def decode_leaf(q: QTensor, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """The array of a shape that `encode_leaf` was given."""
    return cut_to(decode(q), shape)


def _filled(x: Array, fmt: Format) -> Array:
    """The array itself, unless it is one that blocks along its last axis do not fit."""
    if isinstance(fmt, BlockFormat) and (not x.ndim or x.shape[-1] % fmt.block):
        return fill_up(x, fmt.block)
    return x


def in_flat_blocks(fmt: BlockFormat, rounding: str) -> tuple[Callable, Callable, Callable]:
    """Load, store and keep, as a weight memory needs them."""

    def split(x: Array) -> Array:
        return fill_up(x, fmt.block).reshape(-1, fmt.block)

    def each(scale: Scale) -> Scale:
        return jax.tree.map(lambda s: s[:, None] if s.ndim else s, scale)

    def load(codes: Array, scale: Scale, dtype: np.dtype) -> Array:
        wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
        values = decode_blocks(split(codes.astype(jnp.uint32)), fmt, each(scale), wide)
        return cut_to(values, codes.shape)

    def store(x: Array, scale: Any, key: PRNGKeyArray | None) -> Stored:
        blocked = split(x)
        found = find_scale(blocked, fmt, "absmax")
        codes = encode_blocks(
            blocked, fmt, each(found), rounding=rounding, overflow="saturate", key=key
        ).astype(fmt.code_dtype)
        inside = fmt.inside(fmt.to_units(blocked, each(found).unit, found.tensor))
        values = fmt.decode(codes)
        lost = where_lost(x, cut_to(inside, x.shape), cut_to(values, x.shape))
        return Stored(cut_to(codes, x.shape), found, lost)

    def keep(old: Array, scale: Scale, new: Stored, written: Array) -> tuple[Array, Scale]:
        if scale.tensor is not None:  # all blocks share it
            touched = jnp.any(written)
            unit = jnp.where(touched, new.scale.unit, scale.unit)
            tensor = jnp.where(touched, new.scale.tensor, scale.tensor)
            return jnp.where(touched, new.codes, old), Scale(unit, tensor=tensor)
        touched = jnp.any(split(written), 1)
        unit = jnp.where(touched, new.scale.unit, scale.unit)
        everywhere = cut_to(
            jnp.broadcast_to(touched[:, None], (len(touched), fmt.block)), old.shape
        )
        return jnp.where(everywhere, new.codes, old), Scale(unit)

    return load, store, keep
