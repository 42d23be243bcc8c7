r"""Neural gradients as lognormal numbers: pruned without bias, and the bits that fit them best.

Their magnitudes are nearly lognormal, $\ln |\delta| \sim N(\mu, \sigma^2)$. What follows from that
alone stands here; training with gradients in few bits is `luq`'s.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from ..integer import FixedPoint
from ..minifloat import Minifloat, widen
from ..quantize import quantize

_BISECTIONS = 60  # of an interval of 60 sigma or so: below the last bit of a float32
_TERNARY = FixedPoint(2, 0, symmetric=True)  # -1, 0 and 1
PEAK = 5.0  # sigma above the mean: the largest magnitude of some four million numbers


class Lognormal(NamedTuple):
    """Mean and standard deviation of ln |x|, of the numbers that are not 0."""

    mu: Float[Array, "*#dims"]
    sigma: Float[Array, "*#dims"]


def fit(x: Float[Array, "*dims"]) -> Lognormal:
    """The lognormal of |x|; zeros, such as a relu makes, say nothing about it and are left out.

    With no other number mu and sigma are 0.

    References:
        Neural gradients are near-lognormal: improved quantized and sparse training,
        arXiv:2006.08173.
    """
    wide = widen(x)  # a count is beyond a float16
    seen = (wide != 0) & jnp.isfinite(wide)
    logs = jnp.log(jnp.where(seen, jnp.abs(wide), jnp.ones_like(wide)))
    number = jnp.maximum(seen.sum(), 1).astype(wide.dtype)
    mu = jnp.sum(logs) / number
    deviation = jnp.where(seen, logs - mu, jnp.zeros_like(wide))
    return Lognormal(mu, jnp.sqrt(jnp.sum(deviation**2) / number))


def sparsity(threshold: Float[Array, "*dims"], model: Lognormal) -> Float[Array, "*dims"]:
    r"""The share of zeros that `prune` makes of lognormal numbers.

    $S(a) = \Phi(z) - \frac{e^{\mu + \sigma^2 / 2}}{a} \Phi(z - \sigma)$ with
    $z = (\ln a - \mu) / \sigma$: those below the threshold a, less those of them that chance lifts
    to it.
    """
    z = (jnp.log(threshold) - model.mu) / model.sigma
    lifted = jnp.exp(model.mu + model.sigma**2 / 2 - jnp.log(threshold))
    normal = jax.scipy.stats.norm.cdf
    return normal(z) - lifted * normal(z - model.sigma)


def threshold_for(
    share: float | int | Float[Array, "*dims"], model: Lognormal
) -> Float[Array, "*dims"]:
    """The threshold at which `prune` makes this share of the non-zero numbers zero.

    Found by bisection in its logarithm; the share grows with it.

    Args:
        share: in (0, 1); above 0.999 float32 cannot tell thresholds apart.
        model: see `fit`; sigma > 0.

    Raises:
        ValueError: a share beyond these, where it is a number.
    """
    if not isinstance(share, Array) and not 0 < share < 1:
        raise ValueError(f"threshold_for(share={share}): the share must be between 0 and 1.")
    middle = model.mu + model.sigma**2 / 2  # of what the threshold weighs

    def halve(ends: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        low, high = ends
        half = (low + high) / 2
        below = sparsity(jnp.exp(half), model) < share
        return (jnp.where(below, half, low), jnp.where(below, high, half)), None

    width = 30 * model.sigma + jnp.ones_like(model.sigma)
    ends = (middle - width, middle + width)
    return jnp.exp(jax.lax.scan(halve, ends, None, length=_BISECTIONS)[0][0])


def prune(
    x: Float[Array, "*dims"], threshold: Float[Array, "*#dims"], key: PRNGKeyArray
) -> Float[Array, "*dims"]:
    r"""Stochastic pruning: unbiased, and exact for magnitudes from the threshold on.

    Below it x becomes sign(x) times the threshold with probability |x| / threshold, else 0: the
    stochastic rounding to the ternary values of the threshold.

    Args:
        x: gradients.
        threshold: a > 0, see `threshold_for`.
        key: random key.

    Raises:
        ValueError: a threshold that is not above 0, where it is no value under `jit`.

    References:
        Neural gradients are near-lognormal, arXiv:2006.08173.
    """
    if not isinstance(threshold, Tracer) and not np.all(np.asarray(threshold) > 0):
        raise ValueError(
            f"prune: the threshold must be above 0, and its least value is {np.min(threshold)}; "
            "threshold_for gives the one of a share of zeros."
        )
    wide = jnp.broadcast_to(threshold, x.shape).astype(x.dtype)
    ternary = quantize(x / wide, _TERNARY, rounding="stochastic", key=key)
    return jnp.where(jnp.abs(x) < wide, ternary * wide, x)


def relative_error(fmt: Minifloat, sigma: float, peak: float = PEAK) -> float:
    r"""The mean of |Q(x) / x - 1| for lognormal x whose largest magnitudes go to the largest value.

    The mean is found by quadrature over 8 sigma to both sides.

    Args:
        fmt: a format of any range: only how its values lie to each other counts.
        sigma: standard deviation of ln |x|.
        peak: the largest magnitude, in sigma above the mean of ln |x|.
    """
    t = np.linspace(-8, 8, 40_001)
    weight = np.exp(-(t**2) / 2)
    log2 = sigma * (t - peak) / np.log(2)
    x = (2.0 ** np.clip(log2, -120, 0)).astype(np.float32)
    largest = np.float32(fmt.max)
    q = np.asarray(quantize(jnp.asarray(x * largest), fmt)) / largest
    return float(np.sum(weight * np.abs(q / x - 1)) / weight.sum())


@functools.cache
def best_split(bits: int, sigma: float, peak: float = PEAK) -> tuple[int, int]:
    """Exponent and mantissa bits, beside the sign, with the least mean relative error.

    Args:
        bits: all of them, 3 to 12.
        sigma: standard deviation of ln |x|.
        peak: see `relative_error`.

    Raises:
        ValueError: for other numbers of bits, or a sigma that is not above 0.

    References:
        Neural gradients are near-lognormal, arXiv:2006.08173.
    """
    if not 3 <= bits <= 12:
        raise ValueError(f"best_split(bits={bits}): bits must be from 3 to 12.")
    if not sigma > 0:
        raise ValueError(f"best_split(sigma={sigma}): sigma must be above 0.")
    splits = [(e, bits - 1 - e) for e in range(1, min(bits - 1, 7) + 1)]
    errors = {(e, m): relative_error(_float(e, m), sigma, peak) for e, m in splits}
    return min(errors, key=errors.__getitem__)


def _float(e: int, m: int) -> Minifloat:
    return Minifloat(e, m, 2 ** (e - 1), "none")
