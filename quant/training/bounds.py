r"""How close to the minimum SGD surely comes when its numbers live in formats.

The floor of the suboptimality for any format and rounding, from three constants of the problem and
the errors that rounding makes. Numbers in, numbers out: nothing here trains.

**Setting.** f is quasi-convex (its sublevel sets are convex) and attains its minimum f* on the set
X*, with $f(x) - f^* \le L\,\mathrm{dist}(x, X^*)^p$ (Hölder). An iteration is

$$x^+ = x - v\,(g + r) + s,$$

with g the unit normal of the sublevel set at x (of a smooth f: the gradient over its norm), v the
step, r the error of the gradient and s that of storing the new x. Each error is the sum of a biased
part, of norm at most R (S), and of a part that has no mean given all that came before, of mean
square at most $\sigma_r^2$ ($\sigma_s^2$). Deterministic rounding makes the first kind,
stochastic rounding and the choice of samples the second.

**Derivation.** Let $\delta_k = ((f(x_k) - f^*) / L)^{1/p}$ and x* in X*. All points that are
closer than $\delta_k$ to x* lie in the sublevel set of $x_k$, $x^* + \delta g_k$ for each
$\delta < \delta_k$ too; hence $\langle g_k, x_k - x^* \rangle \ge \delta_k$. Expand
$\|x_{k+1} - x^*\|^2$: errors without a mean vanish from its middle term, and in its last term the
norm of a sum is at most the sum of the norms. With $\|x_k - x^*\| \le d$,

$$E\|x_{k+1} - x^*\|^2 \le E\|x_k - x^*\|^2 - 2 v E\delta_k + 2 (v R + S) d
  + \big(v \sqrt{1 + \sigma_r^2} + v R + S\big)^2 + \sigma_s^2.$$

The sum over k < K telescopes; the smallest $E\delta_k$ is at most the mean of all:

$$\min_k E\delta_k \le \Big(R + \frac{S}{v}\Big) d
  + \frac{v}{2} \Big[\Big(\sqrt{1 + \sigma_r^2} + R + \frac{S}{v}\Big)^2
  + \frac{\sigma_s^2}{v^2}\Big] + \frac{\|x_0 - x^*\|^2}{2 v K}.$$

Biased rounding pays S d / v: small steps are as bad as large ones, and the best is near
$\sqrt{2 S d}$. For stochastic rounding that term is gone. Where a format saturates, it projects on
a box; if x* lies in it, no distance grows, and the bound stays as it is.

The setting (inexact gradient and update, quasi-convex f, both kinds of rounding) is that of the
first reference. The bound in this form, with both kinds of error at once, and the constants of the
formats are derived here and are not quoted from it.

References:
    On the convergence of stochastic gradient descent in low-precision number formats,
    arXiv:2301.01651. Accuracy and stability of numerical algorithms (Higham), chapter 3, for
    `dot_error`.
"""

import math
from typing import NamedTuple

import numpy as np

from ..formats import parse
from ..grid import Format
from ..integer import FixedPoint
from ..logarithmic import Logarithmic
from ..minifloat import Minifloat
from ..rounding import ROUNDINGS
from ..storage import check_has_zero


class Spacing(NamedTuple):
    """Neighbours about y are at most max(relative |y|, absolute) apart."""

    relative: float
    absolute: float


class Errors(NamedTuple):
    """Bounds of the two parts of an error; sums of errors have the sums of both."""

    bias: float | int  # of the norm of the biased part: R or S
    variance: float | int  # of the mean square of the part without a mean


EXACT = Errors(0.0, 0.0)


def spacing(fmt: Format | str) -> Spacing:
    r"""How far apart the values of a format are, up to its largest.

    Fixed point: (0, step). Minifloat with M mantissa bits: (2^-M, smallest subnormal). Of another
    format that can be listed, the least numbers for which the sentence of `Spacing` is true, the
    absolute one being the larger gap about 0.

    Raises:
        ValueError: a format whose unit is a scale given at use, one without 0, or one of more than
            16 bits that is neither of the two.

    >>> spacing("fixed8.4"), spacing("e4m3fn")
    (Spacing(relative=0.0, absolute=0.0625), Spacing(relative=0.125, absolute=0.001953125))
    """
    fmt = parse(fmt)
    if fmt.steps is not None:
        raise ValueError(
            f"spacing({fmt.name}): its unit is a scale found from the numbers, so its steps are "
            "not known beforehand: give a format with a unit of its own, such as fixed8.4 or e4m3fn"
        )
    check_has_zero("spacing", fmt)
    if isinstance(fmt, FixedPoint):
        return Spacing(0.0, fmt.smallest)
    if isinstance(fmt, Minifloat):
        return Spacing(2.0**-fmt.mantissa_bits, fmt.smallest)
    values = fmt.values().astype(np.float64)
    gaps = np.diff(values)
    inner = np.minimum(np.abs(values[:-1]), np.abs(values[1:]))  # the end of a gap nearer to 0
    about_zero = (inner == 0) | (values[:-1] * values[1:] < 0)
    absolute = float(gaps[about_zero].max(initial=0))
    others = ~about_zero & (gaps > absolute)
    return Spacing(float((gaps[others] / inner[others]).max(initial=0)), absolute)


def rounding_errors(fmt: Format | str, rounding: str, size: int, norm: float | int) -> Errors:
    r"""What rounding a vector to a format does to it.

    With gaps $\Delta_i \le \max(\rho |y_i|, \eta)$ (`spacing`), to nearest each entry moves by at
    most $\Delta_i / 2$ and the vector by $\frac12 \sqrt{\rho^2 \|y\|^2 + n \eta^2}$: S of fixed
    point is $\sqrt n D / 2$, of a float $u \|y\|$ and a little, u = 2^-(M+1). Directed rounding
    moves twice as far, and powers of two to the nearest in the logarithm $\sqrt 2$ times as far (a
    number just below the smallest over $\sqrt 2$ goes to 0). Stochastic rounding has no mean error
    and the variance
    $(|y| - lo)(hi - |y|) \le \Delta_i^2 / 4$.

    Args:
        fmt: the format or its name.
        rounding: one of `ROUNDINGS`.
        size: n, entries of the vector.
        norm: a bound of the Euclidean norm of the vector y that is rounded.

    Raises:
        ValueError: see `spacing`; another rounding; a size or norm that is negative.
    """
    fmt = parse(fmt)
    if rounding not in ROUNDINGS:
        raise ValueError(
            f"rounding_errors({fmt.name}): rounding is {rounding!r}; choose one of "
            f"{', '.join(ROUNDINGS)}."
        )
    if size < 1 or not norm >= 0:
        raise ValueError(
            f"rounding_errors({fmt.name}): size is {size} and norm {norm}; a vector has at least "
            "one entry and a norm >= 0."
        )
    relative, absolute = spacing(fmt)
    gap = math.hypot(relative * norm, math.sqrt(size) * absolute)
    if rounding == "stochastic":
        return Errors(0.0, gap**2 / 4)
    if not rounding.startswith("nearest"):
        return Errors(gap, 0.0)
    in_logarithm = isinstance(fmt, Logarithmic) and fmt.midpoint == "geometric"
    return Errors(gap * (math.sqrt(0.5) if in_logarithm else 0.5), 0.0)


def dot_error(fmt: Format | str, length: int) -> float:
    r"""Relative error $\gamma_n = n u / (1 - n u)$ of a dot product of float numbers to nearest.

    $|\mathrm{fl}(a \cdot b) - a \cdot b| \le \gamma_n |a| \cdot |b|$, in any order of summation, if
    every product and every sum is rounded to the format and nothing under- or overflows.

    Args:
        fmt: a minifloat, the format of products and sums.
        length: n, terms of the sum.

    Raises:
        ValueError: a format that is no minifloat, n below 1, or so large that n u >= 1.
    """
    fmt = parse(fmt)
    if not isinstance(fmt, Minifloat):
        raise ValueError(
            f"dot_error({fmt.name}): relative errors are known of minifloats only, such as e4m3fn; "
            "fixed point sums exactly until it saturates."
        )
    if length < 1:
        raise ValueError(f"dot_error({fmt.name}): length is {length}; a sum has at least one term.")
    nu = length * 2.0 ** -(fmt.mantissa_bits + 1)
    if nu >= 1:
        raise ValueError(
            f"dot_error({fmt.name}): a sum of {length} terms can lose all of its value in it; keep "
            f"length below 2^{fmt.mantissa_bits + 1}, or sum in chunks."
        )
    return nu / (1 - nu)


def distance_floor(
    step: float | int,
    *,
    distance: float | int,
    gradient: Errors = EXACT,
    update: Errors = EXACT,
    start: float | int = 0.0,
    steps: float | int = math.inf,
) -> float:
    """The bound of min_k E delta_k above: how far from X*, in the measure of f, SGD may stay.

    Args:
        step: v > 0; lr * ||grad|| where the gradient is not normalised.
        distance: d, a bound of ||x_k - x*||; not read where nothing is biased.
        gradient: errors of the gradient, in units of its norm: R and the variance, that of the
            samples included.
        update: errors of storing x.
        start: ||x_0 - x*||.
        steps: K, iterations; without end, the bound of the limit inferior.

    Raises:
        ValueError: a step, distance, start, error or number of steps that is out of range.
    """
    _check_errors("distance_floor", gradient=gradient, update=update)
    if not (step > 0 and distance >= 0 and start >= 0 and steps >= 1):
        raise ValueError(
            f"distance_floor: needs step > 0, distance >= 0, start >= 0 and steps >= 1; got "
            f"step={step}, distance={distance}, start={start}, steps={steps}."
        )
    biased = gradient.bias + update.bias / step
    square = (math.sqrt(1 + gradient.variance) + biased) ** 2 + update.variance / step**2
    return biased * distance + step / 2 * square + start**2 / (2 * step * steps)


def suboptimality_floor(delta: float | int, *, constant: float | int, power: float | int) -> float:
    r"""The floor of f - f* that a `distance_floor` makes: $L \delta^p$.

    Args:
        delta: as `distance_floor` gives it.
        constant: L.
        power: p > 0.

    Raises:
        ValueError: a number below 0.
    """
    if not (delta >= 0 and constant >= 0 and power > 0):
        raise ValueError(
            "suboptimality_floor: needs delta >= 0, constant >= 0 and power > 0; got "
            f"delta={delta}, constant={constant}, power={power}."
        )
    return constant * delta**power


def best_step(update: Errors, *, distance: float | int) -> float:
    r"""The step v with the lowest floor for an exact gradient.

    Biased: $\sqrt{S^2 + 2 S d}$, unbiased: $\sigma_s$; with both,
    $\sqrt{S^2 + 2 S d + \sigma_s^2}$, where the derivative of the floor by v is 0.

    Raises:
        ValueError: an error or a distance below 0.
    """
    _check_errors("best_step", update=update)
    if not distance >= 0:
        raise ValueError(f"best_step: needs distance >= 0; got {distance}.")
    return math.sqrt(update.bias**2 + 2 * update.bias * distance + update.variance)


def _check_errors(who: str, **errors: Errors) -> None:
    for name, (bias, variance) in errors.items():
        if not (bias >= 0 and variance >= 0):
            raise ValueError(
                f"{who}: {name} is {Errors(bias, variance)}; a bound of an error is at least 0."
            )
