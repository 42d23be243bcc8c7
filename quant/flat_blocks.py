"""A stored array of any shape in a block format.

The array is flattened and filled up with zeros to whole blocks, each with a scale of its own that
is found anew at every write. What weight memories do with it stands in `memory`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PRNGKeyArray, Shaped

from .blocks import BlockFormat
from .scaled import Scale, decode_blocks, encode_blocks, find_scale
from .storage import where_lost


class Stored(NamedTuple):
    """An array that was just stored."""

    codes: Shaped[Array, "*dims"]
    scale: Any  # what the codes are in units of; None: of the format's own
    lost: dict[str, Bool[Array, "*dims"]]  # where it saturated, underflowed, or was NaN


def in_flat_blocks(fmt: BlockFormat, rounding: str) -> tuple[Callable, Callable, Callable]:
    """Load, store and keep, as a weight memory needs them."""

    def split(x: Array) -> Array:
        return jnp.pad(x.reshape(-1), (0, -x.size % fmt.block)).reshape(-1, fmt.block)

    def join(blocked: Array, shape: tuple[int, ...]) -> Array:
        return blocked.reshape(-1)[: int(np.prod(shape))].reshape(shape)

    def each(scale: Scale) -> Scale:
        return jax.tree.map(lambda s: s[:, None] if s.ndim else s, scale)

    def load(codes: Array, scale: Scale, dtype: np.dtype) -> Array:
        wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
        values = decode_blocks(split(codes.astype(jnp.uint32)), fmt, each(scale), wide)
        return join(values, codes.shape)

    def store(x: Array, scale: Any, key: PRNGKeyArray | None) -> Stored:
        blocked = split(x)
        found = find_scale(blocked, fmt, "absmax")
        codes = encode_blocks(
            blocked, fmt, each(found), rounding=rounding, overflow="saturate", key=key
        ).astype(fmt.code_dtype)
        inside = fmt.inside(fmt.to_units(blocked, each(found).unit, found.tensor))
        values = fmt.decode(codes)
        lost = where_lost(x, join(inside, x.shape), join(values, x.shape))
        return Stored(join(codes, x.shape), found, lost)

    def keep(old: Array, scale: Scale, new: Stored, written: Array) -> tuple[Array, Scale]:
        if scale.tensor is not None:  # all blocks share it
            touched = jnp.any(written)
            unit = jnp.where(touched, new.scale.unit, scale.unit)
            tensor = jnp.where(touched, new.scale.tensor, scale.tensor)
            return jnp.where(touched, new.codes, old), Scale(unit, tensor=tensor)
        touched = jnp.any(split(written), 1)
        unit = jnp.where(touched, new.scale.unit, scale.unit)
        everywhere = join(jnp.broadcast_to(touched[:, None], (len(touched), fmt.block)), old.shape)
        return jnp.where(everywhere, new.codes, old), Scale(unit)

    return load, store, keep
