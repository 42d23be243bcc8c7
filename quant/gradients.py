"""Derivatives through rounding: what stands in for the derivative of a function made of steps.

Every one of them is a value that is kept to the last bit and a slope for each thing it was made of.
Rounding itself belongs to the formats.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from .blocks import BlockFormat
from .formats import parse
from .grid import Format, check_input
from .minifloat import narrow, widen
from .scaling import absmax_scale, in_units, to_units
from .selftest import require_exact_backend


def straight_through(
    x: Float[Array, "*dims"],
    y: Float[Array, "*dims"],
    slope: Bool[Array, "*dims"] | Float[Array, "*dims"],
) -> Float[Array, "*dims"]:
    """Gives y, to the last bit; its derivative is that of x times the slope, whatever y is.

    A boolean slope is 1 where True: `jnp.ones_like(x)` passes all of the derivative, and where x
    lies in the range of a format (`Format.inside`), that part of it ("clipped").

    >>> x = jnp.array([0.4, 1.7])
    >>> jax.grad(lambda x: straight_through(x, jnp.sign(x), jnp.abs(x) <= 1).sum())(x).tolist()
    [1.0, 0.0]
    """
    return _with_slopes(y, (x,), (slope,))


def rounding_pair(
    forward: Callable[[Float[Array, "*dims"]], Float[Array, "*dims"]],
    backward: Callable[[Float[Array, "*dims"]], Bool[Array, "*dims"] | Float[Array, "*dims"]],
) -> Callable[[Float[Array, "*dims"]], Float[Array, "*dims"]]:
    r"""The function with the values of one and, element by element, the derivative of another.

    Args:
        forward: F, any function that keeps shape and dtype; it is never differentiated.
        backward: B', the derivative of the function B that stands in for F, as a function of x. A
            boolean one is 1 where True. It is differentiated in turn for second derivatives.

    References:
        Understanding neural network binarization with forward and backward proximal quantizers,
        NeurIPS 2023.

    >>> binarize = rounding_pair(jnp.sign, lambda x: 1 - jnp.tanh(x) ** 2)
    >>> jax.value_and_grad(binarize)(0.0)
    (Array(0., dtype=float32, weak_type=True), Array(1., dtype=float32, weak_type=True))
    """

    def pair(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        x = jnp.asarray(x)
        return straight_through(x, forward(jax.lax.stop_gradient(x)), backward(x))

    return pair


def lsq(
    x: Float[Array, "*dims"], step: Float[Array, "*#dims"], fmt: Format | str
) -> Float[Array, "*dims"]:
    r"""Rounds x to multiples of a step that is learned (LSQ): $y = s\,Q(v)$ with $v = x / s$.

    Q rounds to nearest and saturates at the ends of the format. The derivatives are

    - of y to x: 1 where min < v < max, else 0;
    - of y to s: $g (Q(v) - v)$ there, and $g\,Q(v)$, an end of the format, elsewhere,

    with $g = 1 / \sqrt{N\,max}$ for N numbers a step, so that steps learn as fast as weights.

    Args:
        x: numbers in float32, float64, float16 or bfloat16.
        step: s > 0, one number, or of a shape that broadcasts to that of x; in float32 or float64.
        fmt: a format whose unit is a scale, or its name: `int4_full` for weights as in LSQ, its
            `int4_asymmetric` (0 to 15, the zero point is 0) for activations that are not negative.

    Raises:
        ValueError: for a format with a unit or scales of its own, a step that is not positive
            (under `jit` it cannot be seen), and as `quantize`.

    References:
        Learned step size quantization, arXiv:1902.08153.

    >>> lsq(jnp.array([0.3, -9.0]), jnp.array(0.25), "int4").tolist()
    [0.25, -1.75]
    """
    fmt, x, step = parse(fmt), jnp.asarray(x), jnp.asarray(step)
    top = _top(fmt, "lsq")
    check_input("lsq", x, fmt, "nearest_even", "saturate", None)
    if not isinstance(step, Tracer) and not (np.asarray(step) > 0).all():
        raise ValueError(
            f"lsq({fmt.name}): step of shape {step.shape} holds numbers that are not above 0; "
            "start from lsq_init, and keep steps positive or learn their logarithm."
        )
    require_exact_backend()
    wide = widen(jax.lax.stop_gradient(x))
    s = jnp.broadcast_to(step, x.shape)
    unit = jax.lax.stop_gradient(s).astype(wide.dtype)
    v = to_units(wide, unit)
    q = fmt._round(v, "nearest_even", "saturate", None)
    inside = (v > fmt.min) & (v < fmt.max)
    g = (step.size / max(x.size, 1) / top) ** 0.5
    slope = g * jnp.where(inside, q - v, q)
    y = narrow(in_units(q, unit), x.dtype)
    return _with_slopes(y, (x, s), (inside, slope))


def lsq_init(x: Float[Array, "*dims"], fmt: Format | str) -> Float[Array, ""]:
    r"""The step to begin with: $2\,\mathrm{mean}|x| / \sqrt{max}$, in the dtype of x; 1 if x is 0.

    One step for all of x; `jax.vmap` gives one for each channel.

    Raises:
        ValueError: for a format with a unit or scales of its own.

    References:
        Learned step size quantization, arXiv:1902.08153.

    >>> lsq_init(jnp.array([1.0, -3.0, 2.0, 0.0]), "ternary").item()
    3.0
    """
    fmt = parse(fmt)
    return absmax_scale(2 * jnp.abs(x).mean(), _top(fmt, "lsq_init") ** 0.5)


def _top(fmt: Format, who: str) -> float:
    """The largest value, in steps."""
    if fmt.steps is None or isinstance(fmt, BlockFormat) or fmt.max <= 0:
        raise ValueError(
            f"{who}({fmt.name}): a step can be learned for a format whose unit is a scale and that "
            "has values above 0, such as int4, nf4 or log4."
        )
    return fmt.max


@jax.custom_jvp
def _with_slopes(
    y: Float[Array, "*dims"], parts: tuple[Array, ...], slopes: tuple[Array, ...]
) -> Float[Array, "*dims"]:
    """Gives y; its derivative is the sum of those of the parts, each times its slope."""
    return y


@_with_slopes.defjvp
def _with_slopes_jvp(primals, tangents):
    y, parts, slopes = primals
    terms = []
    for slope, tangent in zip(slopes, tangents[1], strict=True):
        if slope.dtype == bool:  # where it is False, not even a NaN passes
            term = jnp.where(slope, tangent, jnp.zeros_like(tangent))
        else:  # in the type of the slope: the sum over all numbers of a step needs its digits
            term = slope * tangent.astype(slope.dtype)
        terms.append(term.astype(y.dtype))
    return _with_slopes(y, parts, slopes), functools.reduce(jnp.add, terms)
