"""Training with 4-bit matrix products (LUQ): the three quantized products of a layer.

What belongs here: what is rounded to what in a product and its two gradients. How a network gets
such products is in `products`; the format of the gradients is `quant.logarithmic`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.dtypes import float0
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

from ..blocks import BlockFormat
from ..formats import parse
from ..integer import AsymmetricInteger, Integer
from ..minifloat import widen
from ..quantize import quantize
from ..scaling import absmax

GRADIENT_ROUNDINGS = ("stochastic", "nearest_even", "no_underflow")


@dataclasses.dataclass(frozen=True)
class LUQ:
    r"""What the products of a layer $z = a W$ are rounded to; None keeps float32.

    Forward, $z = Q_a(a)\, Q_w(W)$ with integers, rounded to nearest within the clip of `sawb_clip`.
    Backward, $\partial a = Q_g(\delta)\, Q_w(W)^T$ and $\partial W = Q_a(a)^T Q_g(\delta)$ with a
    logarithmic format: stochastic down to 0, so that both gradients are those of float products of
    the quantized operands on average. The roundings forward are differentiated as if they were not
    there.

    Args:
        weights: format of W, one scale a tensor.
        activations: format of a; an asymmetric integer spends no code on signs that do not occur.
        gradients: format of delta. `log4` has 7 magnitudes and zero; `log5_8` the 8 magnitudes of
            the published code, more than 4 bits hold.
        rounding: of delta: `stochastic`; `nearest_even`, which is biased and loses most of a
            gradient whose magnitudes are spread wide; `no_underflow`: stochastic, but to nearest
            below the smallest magnitude.
        samples: independent roundings of delta whose mean goes into the gradient of W (SMP); its
            variance falls with their number.
        power_of_two: the magnitude that goes to the largest value is rounded up to a power of two,
            so that all values are powers of two and a product needs no multiplication.
        c1: coefficient of the root mean square in `sawb_clip`.
        c2: coefficient of the mean magnitude.

    Raises:
        ValueError: for an unknown format or rounding, or no sample.

    References:
        Accurate neural training with 4-bit matrix multiplications at standard formats,
        arXiv:2112.10769. Accurate and efficient 2-bit quantized neural networks (SAWB), MLSys 2019.
    """

    weights: str | None = "int4"
    activations: str | None = "int4_asymmetric"
    gradients: str | None = "log4"
    rounding: str = "stochastic"
    samples: int = 1
    power_of_two: bool = False
    c1: float = 12.1
    c2: float = 12.2

    def __post_init__(self) -> None:
        for fmt in (self.weights, self.activations, self.gradients):
            if fmt is not None and parse(fmt).steps is None:
                raise ValueError(
                    f"LUQ: {parse(fmt).name} has a unit of its own, so numbers of another size "
                    "saturate: use formats that find a scale, such as int4 and log4."
                )
        if self.gradients is not None and isinstance(parse(self.gradients), BlockFormat):
            raise ValueError(
                f"LUQ: gradients are {self.gradients}, whose scales come from blocks, and here the "
                "largest magnitude of all decides: use a format with one scale, such as log4."
            )
        if self.rounding not in GRADIENT_ROUNDINGS:
            raise ValueError(
                f"LUQ(rounding={self.rounding!r}): choose one of {', '.join(GRADIENT_ROUNDINGS)}."
            )
        if not isinstance(self.samples, int) or self.samples < 1:
            raise ValueError(f"LUQ(samples={self.samples}): give a whole number of samples >= 1.")
        if not np.isfinite([self.c1, self.c2]).all():
            raise ValueError(f"LUQ(c1={self.c1}, c2={self.c2}): the coefficients must be numbers.")


def sawb_clip(x: Float[Array, "*dims"], *, c1: float, c2: float) -> Float[Array, ""]:
    r"""The clip $c_1 \sqrt{E x^2} - c_2 E|x|$ (SAWB) of the numbers that are not 0.

    It is the best clip for several bell-shaped densities if c1 and c2 are fitted to a bit width;
    12.1 and 12.2 are the published ones for 4 bits. Zeros are left out, so that what a relu made
    non-negative gets the clip of the symmetric numbers it came from; and all that is not finite.
    Between mean |x| and max |x|, where the fit would leave them (nearly constant numbers).
    """
    magnitude = jnp.abs(widen(_finite(x)))  # counts and squares are beyond a float16
    number = jnp.maximum(jnp.sum(magnitude > 0), 1).astype(magnitude.dtype)
    mean, square = magnitude.sum() / number, (magnitude**2).sum() / number
    clip = jnp.clip(c1 * jnp.sqrt(square) - c2 * mean, mean, absmax(magnitude))
    return clip.astype(x.dtype)


def quantize_forward(x: Float[Array, "*dims"], fmt: str | None, luq: LUQ) -> Float[Array, "*dims"]:
    """Weights or activations as they go into a product: clipped, then rounded to nearest.

    An asymmetric integer takes the symmetric grid of as many bits where both ends are clipped: its
    own would put 0 half-way between two codes, and the last bit of x would decide which. What is
    not finite stays as it is, so that a network which diverges is seen to.
    """
    if fmt is None:
        return x
    clip = sawb_clip(x, c1=luq.c1, c2=luq.c2)
    clipped, own = jnp.clip(_finite(x), -clip, clip), parse(fmt)
    q = quantize(clipped, own)
    if isinstance(own, AsymmetricInteger) and own.bits >= 2:
        both = (clipped.min() == -clip) & (clipped.max() == clip) & (clip > 0)
        q = jnp.where(both, quantize(clipped, Integer(own.bits)), q)
    return jnp.where(jnp.isfinite(x), q, x)


def quantize_gradient(
    delta: Float[Array, "*dims"],
    luq: LUQ,
    key: PRNGKeyArray | None,
    maximum: Float[Array, ""] | float = 0.0,
) -> Float[Array, "*dims"]:
    r"""A neural gradient in the format of `luq`, its largest magnitude going to itself.

    Where the smallest magnitude of the format would be a subnormal number, which compiled code
    takes for 0, the range is moved up until it is not: float32 and bfloat16 gradients below 2^-120
    (with 7 magnitudes) keep their mean, on fewer levels. Subnormal numbers count as 0. What is not
    finite stays as it is.

    Args:
        delta: the gradient.
        luq: the settings.
        key: random key; not read by `nearest_even`.
        maximum: the magnitude that goes to the largest value, from earlier steps (`in_hindsight`);
            0 takes max|delta|. Beyond it delta saturates, and is biased there.
    """
    if luq.gradients is None:
        return delta
    fmt = parse(luq.gradients)
    largest = absmax(delta)
    top = jnp.where(maximum > 0, maximum, largest).astype(delta.dtype)
    if luq.power_of_two:
        top = _power_of_two_above(top)
    lowest = jnp.finfo(widen(delta).dtype).tiny * (fmt.max / fmt.smallest)
    top = jnp.maximum(top, jnp.array(lowest, delta.dtype))
    # the largest magnitude decides the scale, so it is put beside the numbers where it is not there
    wide = jnp.concatenate([jnp.clip(_finite(delta), -top, top).reshape(-1), top[None]])
    if luq.rounding == "nearest_even":
        rounded = quantize(wide, fmt)
    else:
        rounded = quantize(wide, fmt, rounding="stochastic", key=key)
    if luq.rounding == "no_underflow":
        smallest = top * (fmt.smallest / fmt.max)
        rounded = jnp.where(jnp.abs(wide) < smallest, quantize(wide, fmt), rounded)
    return jnp.where(jnp.isfinite(delta), rounded[:-1].reshape(delta.shape), delta)


def _finite(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """The numbers, and 0 for what is not finite."""
    return jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x))


def _power_of_two_above(x: Float[Array, ""]) -> Float[Array, ""]:
    """The least power of two that is not smaller, or the largest there is."""
    significand, exponent = jnp.frexp(x)  # the significand is in [1/2, 1)
    exponent = jnp.minimum(exponent, jnp.finfo(x.dtype).maxexp - 1)
    return jnp.where(significand == 0.5, x, jnp.ldexp(jnp.sign(x), exponent))


def luq_product(
    product: Callable[[Array, Array], Array],
    luq: LUQ,
    a: Float[Array, "..."],
    w: Float[Array, "..."],
    noise: UInt32[Array, "words"],
    maximum: Float[Array, ""] | None = None,
) -> Float[Array, "..."]:
    """A product of activations and weights with quantized operands, forward and backward.

    Args:
        product: linear in both operands: a matrix product, a convolution.
        luq: what is rounded to what.
        a: activations.
        w: weights.
        noise: `jax.random.key_data` of the key of the rounding of the gradient.
        maximum: see `quantize_gradient`; its cotangent is max|delta| of this step, which a training
            loop reads in place of a gradient.
    """
    if maximum is None:
        maximum = jnp.zeros((), jnp.float32)
    return _product(product, luq, a, w, noise, maximum)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(
    product: Callable, luq: LUQ, a: Array, w: Array, noise: Array, maximum: Array
) -> Array:
    return product(quantize_forward(a, luq.activations, luq), quantize_forward(w, luq.weights, luq))


def _forward(product: Callable, luq: LUQ, a: Array, w: Array, noise: Array, maximum: Array) -> Any:
    a, w = quantize_forward(a, luq.activations, luq), quantize_forward(w, luq.weights, luq)
    return product(a, w), (a, w, noise, maximum)


def _backward(product: Callable, luq: LUQ, kept: Any, delta: Array) -> Any:
    a, w, noise, maximum = kept
    _, pull = jax.vjp(product, a, w)
    keys = jax.random.split(jax.random.wrap_key_data(noise), luq.samples)
    samples = [quantize_gradient(delta, luq, k, maximum) for k in keys]
    da = pull(samples[0])[0]
    dw = pull(sum(samples[1:], samples[0]) / luq.samples)[1]
    return da, dw, np.zeros(noise.shape, float0), absmax(delta).astype(maximum.dtype)


_product.defvjp(_forward, _backward)


def in_hindsight(
    maximum: Float[Array, ""], seen: Float[Array, ""], eta: float = 0.1
) -> Float[Array, ""]:
    r"""The maximum to use next: $m_{t+1} = (1 - \eta)\,\max|\delta_t| + \eta\, m_t$.

    With it the scale of a gradient is known before the gradient is, at the price of a small bias
    where the maximum grows; m = 0 stands for no maximum yet.
    """
    return jnp.where(maximum > 0, (1 - eta) * seen + eta * maximum, seen)


def fine_tuning_schedule(low: float, high: float, steps: int) -> optax.Schedule:
    """The learning rate of FNT: from low up to high in the first half of the steps, and back.

    Meant for a few steps after training, with `LUQ(activations=None, gradients=None)`: everything
    but the weights in high precision.

    Args:
        low: where training ended.
        high: where it began.
        steps: how many, at least 2.

    Raises:
        ValueError: fewer steps.
    """
    if steps < 2:
        raise ValueError(f"fine_tuning_schedule(steps={steps}): it goes up and down in 2 or more.")
    half = steps // 2
    up = optax.linear_schedule(low, high, half)
    down = optax.linear_schedule(high, low, steps - half)
    return optax.join_schedules([up, down], [half])
