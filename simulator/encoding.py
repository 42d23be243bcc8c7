"""Encoders: numbers into spike trains or currents, time first.

One idea belongs here: how a value is told over time. What the values are (images, sounds) is known
to `data`. All encoders take concrete or traced arrays; a value out of range raises a ValueError
where it can be seen, that is for concrete arrays.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

ArrayIn = Array | np.ndarray


def direct(x: Float[ArrayIn, "*dims"], steps: int) -> Float[Array, "time *dims"]:
    """Direct current: x itself at every step. A NaN stays a NaN.

    Args:
        x: values, e.g. (batch, *features).
        steps: T.

    Raises:
        ValueError: if `steps` is not a whole number >= 1.
    """
    _check_steps("direct", steps)
    return jnp.broadcast_to(x, (steps, *x.shape))


def poisson(
    x: Float[ArrayIn, "*dims"],
    steps: int,
    key: PRNGKeyArray,
    max_rate: float | int = 200.0,
    dt: float | int = 1e-3,
) -> Float[Array, "time *dims"]:
    """Rate code: at each step a spike with probability x max_rate dt, independently.

    This is a Poisson process seen in bins of dt, but for at most one spike a bin. A NaN never
    spikes.

    Args:
        x: intensities in [0, 1].
        steps: T.
        key: where the spikes are drawn from.
        max_rate: rate of intensity 1 [Hz].
        dt: time step [s].

    Raises:
        ValueError: if an intensity is outside [0, 1], `max_rate` < 0, or max_rate dt > 1: more than
            a spike a step.
    """
    _check_steps("poisson", steps)
    _check_intensities("poisson", x)
    if not (dt > 0 and 0 <= max_rate * dt <= 1):
        raise ValueError(
            f"poisson needs 0 <= max_rate * dt <= 1, a spike a step at most; got max_rate="
            f"{max_rate} Hz and dt={dt} s."
        )
    x = jnp.asarray(x)
    spikes = jax.random.bernoulli(key, x * (max_rate * dt), (steps, *x.shape))
    return spikes.astype(x.dtype)


def latency(
    x: Float[ArrayIn, "*dims"],
    steps: int,
    tau: float | int | None = None,
    threshold: float | int = 0.01,
    dt: float | int = 1e-3,
) -> Float[Array, "time *dims"]:
    r"""Time to first spike: at most one spike, the earlier the larger x. A NaN never spikes.

    Linear (`tau` is None): at step round((1 - x) (T - 1)); intensity 0 never spikes.

    Logarithmic: at step $\lfloor \tau \ln(x / (x - \theta)) / dt \rfloor$, when a leaky membrane
    with time constant tau, driven by the current x, reaches the threshold θ; an intensity at or
    below θ, or one that would spike after the last step, never does.

    Args:
        x: intensities in [0, 1].
        steps: T.
        tau: time constant [s]; None: the linear form.
        threshold: θ, in (0, 1); of the logarithmic form.
        dt: time step [s]; of the logarithmic form.

    Raises:
        ValueError: if an intensity is outside [0, 1], or a setting out of range.
    """
    _check_steps("latency", steps)
    _check_intensities("latency", x)
    x = jnp.asarray(x)
    if tau is None:
        fires = x > 0
        step = jnp.round((1 - x) * (steps - 1))
    else:
        if not (tau > 0 and dt > 0 and 0 < threshold < 1):
            raise ValueError(
                f"latency needs tau > 0, dt > 0 and 0 < threshold < 1; got tau={tau}, dt={dt}, "
                f"threshold={threshold}."
            )
        fires = x > threshold
        charged = -jnp.log1p(-threshold / jnp.where(fires, x, 1))
        step = jnp.floor(tau / dt * charged)
    clock = jnp.arange(steps, dtype=x.dtype).reshape(steps, *[1] * x.ndim)
    return (fires & (step == clock)).astype(x.dtype)


def rows(x: Float[ArrayIn, "*batch pixels"], steps: int) -> Float[Array, "time *batch portion"]:
    """An image as a sequence: its pixels in `steps` equal portions, the first ones first.

    Row by row where `steps` is the height of the image, and pixel by pixel where it is the number
    of pixels.

    Args:
        x: vectors of pixels, row after row.
        steps: T.

    Raises:
        ValueError: if `steps` is not a whole number >= 1 that divides the number of pixels.
    """
    _check_steps("rows", steps)
    if x.shape[-1] % steps:
        raise ValueError(
            f"rows(steps={steps}) cannot cut the {x.shape[-1]} pixels of an image into equal "
            "portions: choose the height of the image, 28 for 28 x 28 pixels."
        )
    return jnp.moveaxis(jnp.asarray(x).reshape(*x.shape[:-1], steps, -1), -2, 0)


def delta(
    xs: Float[ArrayIn, "time *dims features"], threshold: float | int = 0.1, signed: bool = False
) -> Float[Array, "time *dims channels"]:
    r"""Delta modulation: an event when the signal has moved by the threshold θ since the last.

    A reference starts at the first frame. Where a frame is at least θ above (below) it there is an
    on (off) event, and the reference moves by θ, once a step. So the first frame has no events, and
    $x_0 + \theta \sum_{s \le t} (on_s - off_s)$ is within θ of x_t as long as the signal changes by
    no more than θ a step; a faster one is followed with a lag. After a NaN a feature is silent,
    until the NaN ends.

    Args:
        xs: sequence, time first; a single signal is (time, 1).
        threshold: θ, in the units of xs.
        signed: events in one channel, on = 1 and off = -1; else twice the features, all on channels
            before all off channels.

    Raises:
        ValueError: if the threshold is not above 0.
    """
    if not 0 < threshold < math.inf:
        raise ValueError(f"delta needs a threshold > 0, in the units of xs; got {threshold}.")
    xs = jnp.asarray(xs)

    def step(reference, x):
        on = (x - reference >= threshold).astype(x.dtype)
        off = (reference - x >= threshold).astype(x.dtype)
        return reference + threshold * (on - off), (on, off)

    _, (on, off) = jax.lax.scan(step, xs[0], xs)
    return on - off if signed else jnp.concatenate([on, off], axis=-1)


def _check_steps(encoder, steps):
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"{encoder} needs a whole number of steps >= 1; got {steps!r}.")


def _check_intensities(encoder, x):
    try:
        values = np.asarray(x)
    except jax.errors.TracerArrayConversionError:
        return
    if np.any((values < 0) | (values > 1)):
        raise ValueError(
            f"{encoder} takes intensities in [0, 1]; got values from {np.nanmin(values):g} to "
            f"{np.nanmax(values):g}: divide by the largest possible value, e.g. 255 for bytes."
        )
