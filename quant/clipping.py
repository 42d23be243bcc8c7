r"""Clips: the magnitude that goes to the largest value of a format, found from a block of numbers.

What lies beyond the clip saturates; the scale is clip / (steps of the format). Numbers that share a
scale stand along the last axis. Those that are not finite count for nothing. How a number in units
of its scale is rounded belongs to the formats.
"""

import difflib
import functools
import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .e8m0 import times_power
from .grid import Format
from .integer import FixedPoint, Integer
from .scaling import absmax, absmax_scale, in_units, to_units

_PERCENTILE = re.compile(r"percentile(\d+\.?\d*)")
#: What `mse` tries, times the largest magnitude: eight an octave, the largest magnitude first. With
#: a clip beyond twice that, half of the range would be empty.
_COARSE = 2.0 ** (np.array(sorted(range(-64, 9), key=abs)) / 8)
#: What it tries next, times the best of these.
_FINE = 2.0 ** (np.arange(-7, 8) / 64)
_DESCENTS = 4
#: Of the histograms of `kl`, and how many clips it compares.
_BINS, _THRESHOLDS = 2048, 128


def clip_of(x: Float[Array, "*scales k"], fmt: Format, rule: str) -> Float[Array, "*scales"]:
    r"""The clip of each block; 0 for a block that is empty or all 0.

    - `absmax`: the largest magnitude; nothing saturates.
    - `percentile<p>`, 0 < p <= 100: the percentile p of the magnitudes, between two of them
      linearly; the largest magnitude where that is 0.
    - `mse`: of the least squared error in the format, rounded to nearest. Clips from 2^-8 to 2
      times the largest magnitude in steps of 2^(1/8), then about the best in steps of 2^(1/64),
      then four times the scale that is best for the values rounded to.
    - `kl`, for 2 bits or more: of the least Kullback-Leibler divergence between the magnitudes, in
      a histogram of 2048 bins, and the same with the bins that round to one value evened out. 0 is
      left out: every scale holds it. Meant for thousands of numbers a block, such as activations.
    - `laplace`: $\alpha = b W(12 n^2)$, which makes
      $2 b^2 e^{-\alpha / b} + (\alpha / n)^2 / 12$ smallest: the errors expected from clipping and
      from rounding in steps of alpha / n, for numbers with the Laplace density. b is mean |x|.
    - `gaussian`: the same for the normal density; sigma is the root mean square.

    The last two are for integers and fixed point, whose values are evenly spaced, and are at most
    the largest magnitude. They take b and sigma about 0, not about the mean, because the grid is
    that of numbers spread about 0. Multiplied by a power of two, numbers get a clip that is
    multiplied by it exactly. It is meant as a constant under differentiation.

    Args:
        x: in float32 or float64.
        fmt: the format that the numbers will be rounded to, in units of the clip over its steps.
        rule: one of the above, by name.

    Raises:
        ValueError: for an unknown rule, a percentile out of range, or a format that the rule cannot
            take.

    References:
        Post training 4-bit quantization of convolutional networks for rapid-deployment (ACIQ),
        arXiv:1810.05723, with n = 2^(bits-1); 8-bit inference with TensorRT (2017), for `kl`.
    """
    if steps_of(fmt) <= 0:
        raise ValueError(
            f"scale is {rule!r}; {fmt.name} has no value above 0 for a clip to become: use a "
            "format with more bits."
        )
    find = _find(rule, fmt)
    amax = absmax(x, -1)
    if find is None or x.shape[-1] == 0:
        return amax
    finite = jnp.isfinite(x)
    _, exponent = jnp.frexp(amax)
    u = times_power(jnp.where(finite, x, jnp.zeros_like(x)), -exponent[..., None])
    return times_power(find(u, finite), exponent)


def steps_of(fmt: Format) -> float:
    """What a clip is divided by to give the scale."""
    return fmt.max if fmt.steps is None else fmt.steps


def _find(rule: str, fmt: Format) -> Callable[[Array, Array], Array] | None:
    """The rule for a format, as a function of numbers and where they are finite; None: absmax."""
    if rule == "absmax":
        return None
    if found := _PERCENTILE.fullmatch(str(rule)):
        p = float(found[1])
        if not 0 < p <= 100:
            raise ValueError(
                f"scale is {rule!r}; a percentile is above 0 and at most 100, as in percentile99.9."
            )
        return functools.partial(_percentile, p=p)
    rules = {
        "mse": _least_squares,
        "kl": _least_divergence,
        "gaussian": _gaussian,
        "laplace": _laplace,
    }
    if rule not in rules:
        known = ("absmax", "percentile99.9", *rules)
        near = difflib.get_close_matches(str(rule).lower(), known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"scale is {rule!r}; the nearest rule is {near!r}: choose absmax, percentile<p>, mse, "
            "kl, gaussian or laplace."
        )
    if rule in ("gaussian", "laplace") and not isinstance(fmt, Integer | FixedPoint):
        raise ValueError(
            f"scale is {rule!r}, which needs evenly spaced values, and those of {fmt.name} are "
            "not: use 'mse', or a percentile such as 'percentile99.9'."
        )
    if rule == "kl" and fmt.bits == 1:
        raise ValueError(
            f"scale is 'kl', which compares values with each other, and {fmt.name} has but one "
            "magnitude: use 'mse'."
        )
    return functools.partial(rules[rule], fmt=fmt)


# Below, the largest magnitude of a block is in [1/2, 1): squares neither overflow nor vanish.


def _percentile(
    x: Float[Array, "*scales k"], finite: Bool[Array, "*scales k"], p: float
) -> Float[Array, "*scales"]:
    magnitude = jnp.where(finite, jnp.abs(x), jnp.array(jnp.nan, x.dtype))
    clip = jnp.nanpercentile(magnitude, jnp.array(p, x.dtype), axis=-1)
    return jnp.where(clip > 0, clip, absmax(x, -1))  # no finite number: NaN


def _gaussian(
    x: Float[Array, "*scales k"], finite: Bool[Array, "*scales k"], fmt: Format
) -> Float[Array, "*scales"]:
    sigma = jnp.sqrt(_mean(x * x, finite))
    return jnp.minimum(sigma * gaussian_clip(steps_of(fmt) / fmt.smallest), absmax(x, -1))


def _laplace(
    x: Float[Array, "*scales k"], finite: Bool[Array, "*scales k"], fmt: Format
) -> Float[Array, "*scales"]:
    b = _mean(jnp.abs(x), finite)
    return jnp.minimum(b * laplace_clip(steps_of(fmt) / fmt.smallest), absmax(x, -1))


def _mean(x: Array, counted: Array) -> Array:
    return x.sum(-1) / jnp.maximum(counted.sum(-1), 1).astype(x.dtype)


def laplace_clip(n: float) -> float:
    r"""The alpha / b of `clip_of` for n steps: $w e^w = 12 n^2$.

    >>> round(laplace_clip(8.0), 2)  # 4 bits
    5.03
    """
    target = math.log(12 * n * n)
    w = max(target, 1.0)
    for _ in range(20):  # Newton on w + log w, which is concave: from above 1 it stays above 0
        w -= (w + math.log(w) - target) / (1 + 1 / w)
    return w


def gaussian_clip(n: float) -> float:
    r"""The a = alpha / sigma of `clip_of` for n steps: $\phi(a) - a Q(a) = a / (24 n^2)$.

    phi is the normal density and Q its integral from a on. This is where the expected squared error
    $2 [(1 + a^2) Q(a) - a \phi(a)] + (a / n)^2 / 12$ has its minimum.

    >>> round(gaussian_clip(8.0), 2)  # 4 bits
    2.56
    """
    low, high = 0.0, 40.0  # the left side falls and the right one grows
    for _ in range(100):
        a = (low + high) / 2
        density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
        beyond = math.erfc(a / math.sqrt(2)) / 2
        low, high = (a, high) if density - a * beyond > a / (24 * n * n) else (low, a)
    return low


def _least_squares(
    x: Float[Array, "*scales k"], finite: Bool[Array, "*scales k"], fmt: Format
) -> Float[Array, "*scales"]:
    def rounded(clip: Array) -> Array:
        scale = absmax_scale(clip, steps_of(fmt))[..., None]
        y = in_units(fmt._round(to_units(x, scale), "nearest_even", "saturate", None), scale)
        return jnp.where(finite, y, jnp.zeros_like(y))

    def error_at(clip: Array) -> Array:
        return jnp.square(x - rounded(clip)).sum(-1)

    def better(best: tuple[Array, Array], clip: Array) -> tuple[Array, Array]:
        error = error_at(clip)
        return jnp.where(error < best[1], clip, best[0]), jnp.minimum(error, best[1])

    def search(best: tuple[Array, Array], factors: np.ndarray) -> tuple[Array, Array]:
        start = best[0]
        steps = jnp.asarray(factors, x.dtype)
        return jax.lax.scan(lambda b, f: (better(b, start * f), None), best, steps)[0]

    def descend(_, best: tuple[Array, Array]) -> tuple[Array, Array]:
        y = rounded(best[0])
        norm = jnp.square(y).sum(-1)
        ratio = (x * y).sum(-1) / jnp.where(norm > 0, norm, jnp.ones_like(norm))
        return better(best, jnp.where(ratio > 0, best[0] * ratio, best[0]))

    amax = absmax(x, -1)
    best = search((amax, jnp.full_like(amax, jnp.inf)), _COARSE)
    best = search(best, _FINE)
    return jax.lax.fori_loop(0, _DESCENTS, descend, best)[0]


def _least_divergence(
    x: Float[Array, "*scales k"], finite: Bool[Array, "*scales k"], fmt: Format
) -> Float[Array, "*scales"]:
    amax = absmax(x, -1)
    place = jnp.floor(to_units(jnp.abs(x), amax[..., None]) * _BINS)
    place = jnp.clip(place, 0, _BINS - 1).astype(jnp.int32)
    place = jnp.where(finite & (x != 0), place, _BINS)  # dropped by the histogram
    thresholds = _thresholds(fmt)
    lows, highs = jax.lax.map(functools.partial(_merged, fmt, x.dtype), thresholds)

    def bins_kept(places: Int[Array, "k"]) -> Int[Array, ""]:
        counts = jnp.zeros(_BINS, jnp.int32).at[places].add(1, mode="drop")
        divergence = functools.partial(_divergence, counts, x.dtype)
        kl = jax.lax.map(lambda each: divergence(*each), (thresholds, lows, highs))
        return thresholds[jnp.argmin(kl)]

    kept = jax.lax.map(bins_kept, place.reshape(-1, x.shape[-1]), batch_size=64)
    return amax * (kept.reshape(amax.shape).astype(x.dtype) / _BINS)


def _thresholds(fmt: Format) -> Int[Array, "thresholds"]:
    """How many bins lie below a clip, for all clips that are compared; the most first.

    With fewer bins than the format has magnitudes, rounding would seem to lose nothing.
    """
    least = min(2 ** (fmt.bits - 1), _BINS)
    each = np.unique(np.linspace(least, _BINS, _THRESHOLDS).round().astype(np.int32))
    return jnp.asarray(each[::-1])


def _merged(
    fmt: Format, dtype: np.dtype, threshold: Int[Array, ""]
) -> tuple[Int[Array, "bins"], Int[Array, "bins"]]:
    """The first bin, and one past the last, of those that round to the value that a bin does."""
    bins = jnp.arange(_BINS, dtype=jnp.int32)
    middle = (bins.astype(dtype) + 0.5) / threshold.astype(dtype) * steps_of(fmt)
    value = fmt._round(middle, "nearest_even", "saturate", None)
    first = jnp.concatenate([jnp.array([True]), value[1:] != value[:-1]])
    last = jnp.concatenate([first[1:], jnp.array([True])])
    low = jax.lax.cummax(jnp.where(first, bins, 0))
    high = jax.lax.cummin(jnp.where(last, bins + 1, _BINS), reverse=True)
    return low, jnp.minimum(high, threshold)


def _divergence(
    counts: Int[Array, "bins"],
    dtype: np.dtype,
    threshold: Int[Array, ""],
    low: Int[Array, "bins"],
    high: Int[Array, "bins"],
) -> Float[Array, ""]:
    """Between the counts with all beyond the threshold in the last bin below it, and the others.

    These are the counts below the threshold alone, evened out over the bins of each value that are
    not empty in the former. Infinite where a value of the former has none of the latter.
    """
    bins = jnp.arange(_BINS, dtype=jnp.int32)
    below = jnp.where(bins < threshold, counts, 0)
    clipped = counts.sum() - below.sum()
    p = below + jnp.where(bins == threshold - 1, clipped, 0)
    mass = _sums(below, low, high).astype(dtype)
    filled = _sums((p > 0).astype(jnp.int32), low, high).astype(dtype)
    q = mass / jnp.maximum(filled, 1) / jnp.maximum(below.sum(), 1).astype(dtype)
    p = p.astype(dtype) / jnp.maximum(counts.sum(), 1).astype(dtype)
    return jnp.where(p > 0, p * jnp.log(p / q), jnp.zeros_like(p)).sum()


def _sums(x: Int[Array, "bins"], low: Int[Array, "bins"], high: Int[Array, "bins"]) -> Array:
    """The sum from `low` to just before `high`, for each bin: integers, so that it is exact."""
    total = jnp.concatenate([jnp.zeros(1, x.dtype), jnp.cumsum(x)])
    return total[high] - total[low]
