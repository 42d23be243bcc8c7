r"""Stochastic rounding: to whole numbers of a scale, and to floats of fewer bits.

The idea that belongs here: a number between two neighbours goes up with the probability of its
distance from the lower one, decided by the word of its place (`noise`), so that any machine rounds
it to the same bits. This file has the reference in jax.numpy and the public functions;
`stochastic_cpu` and `stochastic_gpu` have the kernels. Formats and how a scale is found do not
belong here.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Float32, Int8, UInt, UInt32

from . import dispatch
from .matrix import check_above_0
from .noise import block, checked_stream


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SmallFloat:
    """A float type of at most 16 bits; without arrays, as an argument of kernels.

    Attributes:
        name: of its dtype.
        mantissa: bits behind the point.
        lowest: exponent of the smallest normal number.
        largest: the code of the largest finite number.
        nan: a code of NaN.
    """

    name: str
    mantissa: int
    lowest: int
    largest: int
    nan: int

    @property
    def code(self) -> type[np.unsignedinteger]:
        """The unsigned integers that hold its bits."""
        return np.uint16 if jnp.dtype(self.name).itemsize == 2 else np.uint8

    @property
    def sign(self) -> int:
        """The code of -0."""
        return 1 << 8 * jnp.dtype(self.name).itemsize - 1


FLOATS = {
    kind.name: kind
    for kind in (
        SmallFloat("bfloat16", 7, -126, 0x7F7F, 0x7FC0),
        SmallFloat("float16", 10, -14, 0x7BFF, 0x7E00),
        SmallFloat("float8_e4m3fn", 3, -6, 0x7E, 0x7F),
        SmallFloat("float8_e5m2", 2, -14, 0x7B, 0x7F),
    )
}


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Steps:
    """The largest code of integers; without arrays, as an argument of kernels."""

    top: int


def stochastic_round(
    x: ArrayLike, key: UInt32[Array, "2"], stream: UInt32[Array, ""] | int = 0, *, dtype: DTypeLike
) -> Float[Array, "*dims"]:
    r"""Rounds float32 numbers to a smaller float type so that the mean over keys is x.

    |x| between two neighbours $lo < hi$ goes to hi with probability $(|x| - lo) / (hi - lo)$, in
    steps of $2^{-32}$; a value of the type never moves. What lies beyond the largest finite number,
    infinities included, becomes that number, and NaN stays NaN. The element at the flat place i
    takes the word `noise.block(*key, i, stream)`, as `quantize` does for its key. The derivative is
    1 inside the range and 0 beyond it. Works under `jit`, `vmap` (every example draws from its own
    key or, where the key has no batch, the same words), `grad` and `jvp`.

    Args:
        x: numbers in float32, of any shape; at most 2^32 of them.
        key: two words, such as `jax.random.bits(key, (2,), jnp.uint32)`.
        stream: which of 2^32 independent sequences.
        dtype: bfloat16, float16, float8_e4m3fn or float8_e5m2.

    Raises:
        ValueError: for x of another dtype, another type to round to, or another stream.

    >>> x, key = jnp.full(1000, 1 + 2.0**-9), jnp.array([1, 2], jnp.uint32)  # neighbours 2^-7 apart
    >>> sorted(set(stochastic_round(x, key, dtype=jnp.bfloat16).tolist()))
    [1.0, 1.0078125]
    """
    who, x, name = "stochastic_round", jnp.asarray(x), jnp.dtype(dtype).name
    if name not in FLOATS:
        raise ValueError(f"{who}(dtype={name}): floats are rounded to {', '.join(FLOATS)}.")
    keys = _checked(who, x, key, stream)
    return _round(FLOATS[name], x.reshape(1, x.size), keys).reshape(x.shape)


def stochastic_codes(
    x: ArrayLike,
    scale: ArrayLike,
    key: UInt32[Array, "2"],
    stream: UInt32[Array, ""] | int = 0,
    *,
    bits: int = 8,
) -> Int8[Array, "*batch k"]:
    r"""Rounds x / scale to signed integers so that the mean over keys is x / scale.

    As `stochastic_round`, the neighbours being whole numbers; what lies beyond
    $\pm(2^{b-1} - 1)$ becomes that. NaN becomes 0. It has no derivative.

    Args:
        x: (*batch, k) numbers in float32; at most 2^32 of them.
        scale: a number, or (*batch, groups) with k a multiple of groups; finite and above 0 (under
            `jit` one that is not gives codes of 0).
        key: two words, such as `jax.random.bits(key, (2,), jnp.uint32)`.
        stream: which of 2^32 independent sequences.
        bits: of a code, 2 to 8.

    Raises:
        ValueError: says which argument does not fit, and what would.

    >>> key = jnp.array([1, 2], jnp.uint32)
    >>> stochastic_codes(jnp.array([3.0, -100.0]), 0.5, key, bits=4).tolist()
    [6, -7]
    """
    who, x, scale = "stochastic_codes", jnp.asarray(x), jnp.asarray(scale)
    if not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ValueError(f"{who}(bits={bits!r}): a code has 2 to 8 bits.")
    keys = _checked(who, x, key, stream)
    fits = scale.ndim == 0 or (
        scale.ndim == x.ndim > 0
        and scale.shape[:-1] == x.shape[:-1]
        and scale.shape[-1] > 0
        and x.shape[-1] % scale.shape[-1] == 0
    )
    if not fits or not jnp.issubdtype(scale.dtype, jnp.floating):
        raise ValueError(
            f"{who}: scale is {scale.dtype} of shape {scale.shape} for x of shape {x.shape}; it "
            "must be one float, or floats for equal parts of the last axis."
        )
    check_above_0(who, "scale", scale)
    if x.size == 0:
        return jnp.zeros(x.shape, jnp.int8)
    scales = scale.reshape(1, scale.size).astype(jnp.float32)
    scales = jnp.where(scales > 0, scales, jnp.inf)  # not known before: codes of 0
    return _codes(Steps((1 << bits - 1) - 1))(x.reshape(1, x.size), scales, keys).reshape(x.shape)


def _checked(who: str, x: Array, key: Array, stream: Array | int) -> UInt32[Array, "1 3"]:
    if x.dtype != jnp.float32:
        raise ValueError(f"{who}: x is {x.dtype}; numbers to be rounded are float32.")
    if key.shape != (2,) or key.dtype != jnp.uint32:
        raise ValueError(
            f"{who}: key is {key.dtype} of shape {key.shape}; it is two words, such as "
            "jax.random.bits(key, (2,), jnp.uint32)."
        )
    return jnp.append(key, checked_stream(who, stream, x.shape))[None]


# Rows of numbers, each with (key, stream) and places from 0 on: what `vmap` folds into.


def _words(keys: Array, size: int) -> UInt32[Array, "rows size"]:
    k0, k1, stream = (keys[:, i, None] for i in range(3))
    return block(k0, k1, jnp.arange(size, dtype=jnp.uint32)[None], stream)[0]


def _up(r: Array, words: Array) -> tuple[Array, Array]:
    """The integer below r >= 0, and 1 where the word says to go up."""
    low = jnp.floor(r)
    remainder = ((r - low) * np.float32(2.0**32)).astype(jnp.uint32)  # exact
    return low, (words > ~remainder).astype(jnp.float32)


def codes_reference(
    steps: Steps,
    x: Float32[Array, "rows size"],
    scale: Float32[Array, "rows groups"],
    keys: UInt32[Array, "rows 3"],
) -> Int8[Array, "rows size"]:
    """`stochastic_codes` in jax.numpy, for each row."""
    top, groups = np.float32(steps.top), scale.shape[1]
    parts = x.reshape(len(x), groups, x.shape[1] // groups)
    # the choice keeps XLA from multiplying by a reciprocal, which rounds otherwise
    units = parts / jnp.where(parts == 0, np.float32(1), scale[..., None])
    r = jnp.minimum(jnp.abs(units.reshape(x.shape)), top)
    low, up = _up(jnp.where(jnp.isnan(r), np.float32(0), r), _words(keys, x.shape[1]))
    return (jnp.sign(x) * (low + up)).astype(jnp.int8)


def floats_reference(
    kind: SmallFloat, x: Float32[Array, "rows size"], keys: UInt32[Array, "rows 3"]
) -> UInt[Array, "rows size"]:
    """`stochastic_round` in jax.numpy, for each row, as the bits of the type."""
    words, shift = _words(keys, x.shape[1]), 23 - kind.mantissa
    pattern = jax.lax.bitcast_convert_type(x, jnp.uint32)
    size = pattern & np.uint32(0x7FFFFFFF)
    # exponents count from another place, and the code of the smallest normal number is 2^mantissa
    offset = np.uint32(kind.lowest + 126 << kind.mantissa)
    code = (size + (words >> np.uint32(32 - shift)) >> np.uint32(shift)) - offset
    if kind.lowest > -126:
        magnitude = jnp.abs(x)
        small = magnitude < np.float32(2.0**kind.lowest)
        steps = jnp.where(small, magnitude, 0) * np.float32(2.0 ** (kind.mantissa - kind.lowest))
        low, up = _up(steps, words)
        code = jnp.where(small, (low + up).astype(jnp.uint32), code)
    code = jnp.minimum(code, np.uint32(kind.largest))
    code = jnp.where(size > np.uint32(0x7F800000), np.uint32(kind.nan), code)
    return (code | jnp.where(pattern > np.uint32(0x7FFFFFFF), np.uint32(kind.sign), 0)).astype(
        kind.code
    )


def _on_rows(operation, reference, settings):
    """The function of rows that an operation makes; a batch of them is more rows."""

    @custom_vmap
    def function(*arrays):
        if arrays[0].size == 0:  # there is nothing for a kernel to run on
            return reference(settings, *arrays)
        return dispatch.run("stochastic", operation, reference, settings, *arrays)

    @function.def_vmap
    def _(size, in_batched, *arrays):
        rows = [
            (a if batched else jnp.broadcast_to(a, (size, *a.shape)))
            for a, batched in zip(arrays, in_batched, strict=True)
        ]
        shape = rows[0].shape
        result = function(*(a.reshape(math.prod(a.shape[:2]), a.shape[2]) for a in rows))
        return result.reshape(shape), True

    return function


@functools.cache
def _codes(steps: Steps):
    return _on_rows("codes", codes_reference, steps)


@functools.cache
def _floats(kind: SmallFloat):
    return _on_rows("floats", floats_reference, kind)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _round(kind: SmallFloat, x: Array, keys: Array) -> Array:
    return jax.lax.bitcast_convert_type(_floats(kind)(x, keys), jnp.dtype(kind.name))


@_round.defjvp
def _round_jvp(kind, primals, tangents):
    x, keys = primals
    largest = jax.lax.bitcast_convert_type(kind.code(kind.largest), jnp.dtype(kind.name))
    inside = jnp.abs(x) <= largest.astype(jnp.float32)
    tangent = jnp.where(inside, tangents[0], np.float32(0)).astype(kind.name)
    return _round(kind, x, keys), tangent
