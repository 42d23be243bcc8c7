"""Rows of numbers as small integers with a scale each: what a low-bit product takes as inputs.

The idea that belongs here: the largest magnitude of a row (a token), or of each group within it,
becomes the largest code. This file has the reference in jax.numpy and the public function;
`quantize_rows_cpu` and `quantize_rows_gpu` have the kernels. Weights, which have zero points and
tables, belong to `quantize_pack`; what is done to a row before belongs to `hadamard`.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike
from jaxtyping import Array, Float32, Int8, Int32

from . import dispatch
from .largest import largest_magnitude

FLOATS = (jnp.float32, jnp.bfloat16, jnp.float16)


class QuantizedRows(NamedTuple):
    """Rows as codes times scales, and the sums of codes that a zero point of weights needs."""

    codes: Int8[Array, "*batch k"]
    scale: Float32[Array, "*batch groups"]
    sums: Int32[Array, "*batch groups"]  # of the codes of a group


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Codes:
    """How rows are coded; without arrays, so that it may stand among the arguments of kernels.

    Attributes:
        bits: of a code.
        groups: of a row, each with a scale.
    """

    bits: int
    groups: int

    @property
    def steps(self) -> int:
        """The largest code."""
        return (1 << self.bits - 1) - 1


def checked_codes(who: str, x: Array, bits: int, group: int | None) -> Codes:
    """The settings of `quantize_rows`.

    Raises:
        ValueError: in the name of `who`, if x cannot be coded like this.
    """
    if x.ndim < 1 or x.dtype not in FLOATS:
        raise ValueError(
            f"{who}: x is {x.dtype} of shape {x.shape}; rows are float32, bfloat16 or float16 "
            "along the last axis."
        )
    if not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ValueError(f"{who}(bits={bits!r}): a code has 2 to 8 bits.")
    k = x.shape[-1]
    if group is None:
        return Codes(bits, 1)
    if not isinstance(group, int) or group < 1 or k % group:
        raise ValueError(
            f"{who}(group={group!r}): a row has {k} numbers, which must be a multiple of the "
            "group; None is one scale a row."
        )
    return Codes(bits, k // group)


def quantize_rows(x: ArrayLike, bits: int = 8, *, group: int | None = None) -> QuantizedRows:
    r"""Codes $q = \mathrm{round}(x / s)$, ties to even, with $s = \max|x| / (2^{b-1} - 1)$.

    s is 1 where all x are 0 or so small that s would be subnormal. A row (group) with a NaN or an
    infinity has codes 0 and the scale NaN: it stays visible in what is computed from it. Works
    under `jit`, `vmap` and `scan`; it has no derivative.

    Args:
        x: (*batch, k), rows in float32, bfloat16 or float16.
        bits: of a code, 2 to 8; codes of fewer than 8 bits stand in a byte each as well.
        group: how many numbers share a scale; None: those of a row.

    Raises:
        ValueError: says which setting does not fit, and what would.

    >>> quantize_rows(jnp.array([[127.0, -1.4], [0.0, 0.0]])).codes.tolist()
    [[127, -1], [0, 0]]
    """
    x = jnp.asarray(x)
    settings = checked_codes("quantize_rows", x, bits, group)
    return QuantizedRows(*_quantize(settings)(x.astype(jnp.float32)))


def rows_reference(settings: Codes, x: Float32[Array, "*batch k"]) -> tuple[Array, Array, Array]:
    """The same in jax.numpy: codes, scale, sums."""
    parts = x.reshape(*x.shape[:-1], settings.groups, x.shape[-1] // settings.groups)
    amax, steps = largest_magnitude(parts), np.float32(settings.steps)
    # the choices around divisors keep XLA from multiplying by reciprocals, which round otherwise
    scale = amax / jnp.where(amax > 0, steps, np.float32(jnp.inf))
    scale = jnp.where(scale >= np.finfo(np.float32).tiny, scale, np.float32(1))
    scale = jnp.where(jnp.isfinite(amax), scale, np.float32(jnp.nan))
    units = parts / jnp.where(parts == 0, np.float32(1), scale[..., None])
    codes = jnp.where(jnp.isnan(scale[..., None]), np.float32(0), jnp.round(units))
    codes = codes.astype(jnp.int32)
    return codes.astype(jnp.int8).reshape(x.shape), scale, codes.sum(-1, dtype=jnp.int32)


@functools.cache
def _quantize(settings: Codes):
    @custom_vmap
    def quantize(x):
        if x.size == 0:
            return rows_reference(settings, x)
        rows = x.reshape(-1, x.shape[-1])
        parts = dispatch.run("quantize_rows", "rows", rows_reference, settings, rows)
        return tuple(part.reshape(*x.shape[:-1], part.shape[-1]) for part in parts)

    @quantize.def_vmap
    def _(size, in_batched, x):
        return quantize(x), (True, True, True)

    return quantize
