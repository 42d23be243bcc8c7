r"""Softmax with inputs of few bits: exponentials from a table, sums from counts of codes.

The idea that belongs here: below the largest input of a row only $2^b$ distances are told apart, so
that a row needs as many exponentials, and its sum is that of a histogram. This file has the
reference in jax.numpy, the public functions, the rules for the clip and the derivative;
`softmax_cpu` and `softmax_gpu` have the kernels. Attention does not belong here.

References:
    EXAQ: Exponent aware quantization for LLMs acceleration, arXiv:2410.03185.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Float32

from . import dispatch

FLOATS = (jnp.float32, jnp.bfloat16, jnp.float16)
#: bits: (a, b) of the clip $-a \sigma - b$, the fit of the paper for sigma around 1.
LINEAR = {2: (1.66, 1.85), 3: (1.75, 2.06), 4: (1.83, 2.27)}

NO_RANGE = np.float32(-1e-37)  # a range nearer to 0 has no step that float32 can divide by


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Levels:
    """How many distances there are; without arrays, as an argument of kernels."""

    bits: int

    @property
    def last(self) -> int:
        """The code of the clip; 0 is that of the largest input."""
        return (1 << self.bits) - 1


def linear_clip(
    sigma: ArrayLike, bits: int, constants: tuple[float, float] | None = None
) -> Float32[Array, "*dims"]:
    r"""The clip $C = -a \sigma - b$ of EXAQ for inputs with the standard deviation sigma.

    Args:
        sigma: of the inputs that are not masked.
        bits: 2, 3 or 4.
        constants: a and b; None: those of `LINEAR`.

    >>> round(float(linear_clip(1.0, 2)), 2)
    -3.51
    """
    Levels(_checked_bits("linear_clip", bits))
    a, b = LINEAR[bits] if constants is None else constants
    return jnp.asarray(sigma, jnp.float32) * np.float32(-a) - np.float32(b)


def best_clip(sigma: float, bits: int, largest: float = 3.0) -> float:
    r"""The clip that makes the expected squared error of the exponentials smallest.

    $$\frac{\Delta^2}{12} \int_C^0 e^{2t} f\,dt + \int_{-\infty}^C (e^t - e^C)^2 f\,dt, \quad
      \Delta = \frac{-C}{2^b - 1}$$

    with f the normal density of the standard deviation sigma and the mean $-largest \cdot \sigma$:
    inputs less the largest of them. For numbers, not arrays.

    Args:
        sigma: of the inputs that are not masked, above 0.
        bits: 2, 3 or 4.
        largest: by how many sigma the largest input of a row exceeds their mean; 3 is that of about
            500 normal numbers.

    Raises:
        ValueError: for another width or sigma.

    >>> round(best_clip(2.0, 2), 1)
    -4.3
    """
    last = (1 << _checked_bits("best_clip", bits)) - 1
    if not 0 < sigma < 100:
        raise ValueError(f"best_clip(sigma={sigma}): a standard deviation from 0 to 100.")
    # integrals of f, e^t f and e^2t f from far below up to each of many points
    t = np.linspace(-(largest + 8) * sigma, 0, 20001)
    density = np.exp(-(((t / sigma + largest) ** 2) - largest**2) / 2)  # up to a factor
    powers = np.exp(np.outer([0, 1, 2], t)) * density
    upto = np.cumsum((powers[:, 1:] + powers[:, :-1]) / 2 * (t[1] - t[0]), 1)
    upto = np.pad(upto, ((0, 0), (1, 0)))

    def error(clip: float) -> float:
        zeroth, first, second = (np.interp(clip, t, row) for row in upto)
        tail = second - 2 * math.exp(clip) * first + math.exp(2 * clip) * zeroth
        return float((clip / last) ** 2 / 12 * (upto[2, -1] - second) + tail)

    candidates = np.linspace(-30.0, -1e-3, 601)
    best = int(np.argmin([error(c) for c in candidates]))
    low, high = candidates[max(best - 1, 0)], candidates[min(best + 1, 600)]
    for _ in range(40):  # by thirds
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, b) if error(a) < error(b) else (a, high)
    return float(low + high) / 2


def low_bit_softmax(
    x: ArrayLike, bits: int = 4, *, clip: ArrayLike | None = None, where: ArrayLike | None = None
) -> Float[Array, "*batch k"]:
    r"""Softmax along the last axis with the inputs rounded to $2^b$ values.

    With m the largest input of a row, $C = \max(clip, \min x - m)$ and
    $\Delta = -C / (2^b - 1)$: $c = \min(\mathrm{round}((m - x) / \Delta), 2^b - 1)$, and

    $$p = \frac{e^{-c \Delta}}{\sum_c n_c e^{-c \Delta}}$$

    with $n_c$ the number of inputs of code c, a whole number: the sum does not depend on their
    order. Masked inputs, and those that are -Inf, are not counted and get 0, as does all of a row
    of such. A row with NaN or Inf, or with a clip that is not below 0,
    becomes NaN.

    The derivative is that of the softmax of the clipped input, at the values of p (straight-through
    rounding): $\partial x = p (\partial p - \sum p\,\partial p)$ where $x - m \ge C$, 0 below; m
    and C are constants. Works under `jit`, `vmap`, `grad` and `jvp`.

    Args:
        x: (*batch, k) in float32, bfloat16 or float16.
        bits: 2, 3 or 4.
        clip: C < 0, a number or one for each row, of a shape that broadcasts with (*batch, 1).
            None: `linear_clip` of the standard deviation of the row. Better measured beforehand, as
            a mean over batches, by `linear_clip` or `best_clip`.
        where: booleans that broadcast with x; False: masked.

    Raises:
        ValueError: says which argument does not fit, and what would.

    >>> low_bit_softmax(jnp.array([0.0, 0.0, -jnp.inf]), 2, clip=-3.0).tolist()
    [0.5, 0.5, 0.0]
    """
    who, x = "low_bit_softmax", jnp.asarray(x)
    levels = Levels(_checked_bits(who, bits))
    if x.ndim < 1 or x.dtype not in FLOATS:
        raise ValueError(
            f"{who}: x is {x.dtype} of shape {x.shape}; rows are float32, bfloat16 or float16."
        )
    if where is not None:
        where = jnp.asarray(where)
        if where.dtype != bool or not _broadcasts(where.shape, x.shape):
            raise ValueError(
                f"{who}: where is {where.dtype} of shape {where.shape}; it must be booleans that "
                f"broadcast to {x.shape}."
            )
        where = jnp.broadcast_to(where, x.shape)
    wide, rows = x.astype(jnp.float32), (*x.shape[:-1], 1)
    if clip is None:
        clips = linear_clip(_deviation(jax.lax.stop_gradient(wide), where), bits)
    else:
        clips = jnp.asarray(clip)
        if not _broadcasts(clips.shape, rows) or not jnp.issubdtype(clips.dtype, jnp.floating):
            raise ValueError(
                f"{who}: clip is {clips.dtype} of shape {clips.shape}; it must be floats that "
                f"broadcast to {rows}."
            )
        if not isinstance(clips, Tracer) and not bool((clips < 0).all()):
            raise ValueError(f"{who}: clip is {clips}; it must be below 0.")
        clips = jnp.broadcast_to(clips.astype(jnp.float32), rows)
    return _softmax(levels)(wide, jax.lax.stop_gradient(clips), where).astype(x.dtype)


def _checked_bits(who, bits):
    if bits not in LINEAR:
        raise ValueError(f"{who}(bits={bits!r}): inputs have 2, 3 or 4 bits.")
    return bits


def _broadcasts(shape, to):
    try:
        return np.broadcast_shapes(shape, to) == tuple(to)
    except ValueError:
        return False


def _visible(x, where):
    visible = x != -jnp.inf
    return visible if where is None else visible & where


def _deviation(x, where):
    visible = _visible(x, where)
    count = jnp.maximum(visible.sum(-1, keepdims=True), 1).astype(jnp.float32)
    mean = jnp.where(visible, x, np.float32(0)).sum(-1, keepdims=True) / count
    square = jnp.where(visible, jnp.square(x - mean), np.float32(0))
    return jnp.sqrt(square.sum(-1, keepdims=True) / count)


def _range(x: Array, clip: Array, visible: Array) -> tuple[Array, Array]:
    """The largest input of each row, and C."""
    most = jnp.max(x, -1, keepdims=True, where=visible, initial=-jnp.inf)
    least = jnp.min(x, -1, keepdims=True, where=visible, initial=jnp.inf)
    return most, jnp.maximum(clip, least - most)


def softmax_reference(
    levels: Levels,
    x: Float32[Array, "*batch k"],
    clip: Float32[Array, "*batch 1"],
    where: Bool[Array, "*batch k"] | None = None,
) -> Float32[Array, "*batch k"]:
    """The same in jax.numpy."""
    visible, last = _visible(x, where), np.float32(levels.last)
    most, low = _range(x, clip, visible)
    # a row of equal inputs has no step, and one without inputs no range
    some = visible.any(-1, keepdims=True)
    bad = some & ~((jnp.abs(most) < jnp.inf) & (clip < 0))
    per_step = jnp.where((low < NO_RANGE) & some, last / -low, np.float32(0))
    code = jnp.minimum(jnp.round((most - x) * per_step), last)
    number = jnp.arange(levels.last + 1, dtype=jnp.float32)
    table = jnp.exp(number * (jnp.where(some, low, np.float32(0)) / last))
    values, total = jnp.zeros_like(x), jnp.zeros_like(low)
    for c in reversed(range(levels.last + 1)):  # the smallest first
        here = visible & (code == np.float32(c))
        value = table[..., c : c + 1]
        total = total + here.sum(-1, keepdims=True).astype(jnp.float32) * value
        values = jnp.where(here, value, values)
    p = values / jnp.where(total > 0, total, np.float32(1))
    return jnp.where(bad, np.float32(jnp.nan), p)


@functools.cache
def _softmax(levels: Levels):
    """With the derivative, of rows of any leading axes."""

    @jax.custom_jvp
    def softmax(x, clip, where):
        return _rows(levels)(x, clip) if where is None else _rows(levels)(x, clip, where)

    @softmax.defjvp
    def _(primals, tangents):
        x, clip, where = primals
        p = softmax(x, clip, where)
        most, low = _range(x, clip, _visible(x, where))
        dx = jnp.where(x - most >= low, tangents[0], np.float32(0))
        return p, p * (dx - (p * dx).sum(-1, keepdims=True))

    return softmax


@functools.cache
def _rows(levels: Levels):
    """Without a derivative: all leading axes are rows."""

    @custom_vmap
    def rows(*arrays):
        x = arrays[0]
        if x.size == 0:
            return softmax_reference(levels, *arrays)
        flat = (a.reshape(-1, a.shape[-1]) for a in arrays)
        p = dispatch.run("softmax", "softmax", softmax_reference, levels, *flat)
        return p.reshape(x.shape)

    @rows.def_vmap
    def _(size, in_batched, *arrays):
        full = (
            a if batched else jnp.broadcast_to(a, (size, *a.shape))
            for a, batched in zip(arrays, in_batched, strict=True)
        )
        return rows(*full), True

    return rows
