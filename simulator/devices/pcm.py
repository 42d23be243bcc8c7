r"""Phase-change memory for inference: programming noise, drift and 1/f read noise, statistically.

A target $g_T$ is met up to a Gaussian, $g_P = \max(0, g_T + \sigma_P(g_T) \xi)$; from then on the
cell drifts, $g_D(t) = g_P ((t + t_0) / t_0)^{-\nu}$ with an exponent of its own; a read adds 1/f
noise that grows with time. Here are the model, its two published sets of parameters and the moments
of what is read, in closed form. Cells under trains of SET pulses are `set_pulses.py`'s.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from ...kernels.normals import random_normals
from .device import Cells, Device, Key, check_targets, check_time, polynomial

Elapsed = Float[Array, "*#cells"]
_SMALLEST = 1e-7  # of g / g_max, in logarithms


@dataclass(frozen=True)
class PCMParameters:
    """What a set of measurements says of a cell; r stands for g / g_max.

    Attributes:
        g_max: largest conductance [uS].
        t0: the time between programming and the first read [s].
        t_read: duration of a read [s].
        programming: spread of g_P at a target: coefficients in r, lowest power first [uS].
        drift_mean: mean of the Gaussian whose magnitude is the exponent, at r.
        drift_std: its standard deviation, at r.
        read_scale: Q of the 1/f noise, at r of the programmed conductance.
    """

    g_max: float
    t0: float
    t_read: float
    programming: tuple[float, ...]
    drift_mean: Callable[[Cells], Cells]
    drift_std: Callable[[Cells], Cells]
    read_scale: Callable[[Cells], Cells]


def _line(slope: float, at_one: float, low: float, high: float) -> Callable[[Cells], Cells]:
    """A line in ln r between two bounds."""

    def at(r: Cells) -> Cells:
        return jnp.clip(slope * jnp.log(jnp.maximum(r, _SMALLEST)) + at_one, low, high)

    return at


def _pieces(
    border: float, low: Callable[[Cells], Cells], high: tuple[float, ...]
) -> Callable[[Cells], Cells]:
    """`low` below a border of r, a polynomial from there on."""
    return lambda r: jnp.where(r < border, low(r), polynomial(high, r))


def _read_scale(r: Cells) -> Cells:
    # exp and log are vector instructions on a CPU, a power is not
    shrunk = jnp.exp(0.65 * jnp.log(jnp.maximum(r, _SMALLEST)))  # below it Q is at its bound
    return jnp.minimum(0.0088 / jnp.maximum(shrunk, 1e-3), 0.2)


MILLION_CELLS = PCMParameters(
    g_max=25.0,
    t0=20.0,
    t_read=250e-9,
    programming=(0.26348, 1.9650, -1.1731),
    drift_mean=_line(-0.0155, 0.0244, 0.049, 0.1),
    drift_std=_line(-0.0125, -0.0059, 0.008, 0.045),
    read_scale=_read_scale,
)
"""A chip of a million cells: Joshi et al., Accurate deep neural network inference using
computational phase-change memory, Nature Communications 11:2473 (2020)."""

HERMES = PCMParameters(
    g_max=10.35,
    t0=200.0,
    t_read=512e-9,
    programming=(0.15781817, 2.32443916, -2.16310839, 0.68841818),
    drift_mean=_pieces(0.0945, _line(-0.0387, -0.0182, 0.0720, 0.13), (0.0736, -0.0126, -0.0436)),
    drift_std=_pieces(0.3039, _line(-0.0120, -0.0023, 0.0124, 0.04), (0.0104, 0.0116, -0.0165)),
    read_scale=_pieces(
        0.1591, _line(-0.0078, 0.0038, 0.0179, 0.04), (0.0088, 0.0768, -0.1352, 0.0664)
    ),
)
"""The HERMES chip with one device for each conductance."""

SETS = {"million_cells": MILLION_CELLS, "hermes": HERMES}


class PCMState(NamedTuple):
    """Cells that were programmed once or more."""

    g: Float[Array, "*cells"]  # as programmed [uS]
    nu: Float[Array, "*cells"]  # drift exponent, drawn at each programming
    written: Float[Array, "*cells"]  # time of the last write [s]


def pcm(
    parameters: PCMParameters | str = "million_cells",
    *,
    programming_noise: float | int = 1.0,
    drift: float | int = 1.0,
    read_noise: float | int = 1.0,
) -> Device:
    r"""Phase-change cells with programming noise, drift and 1/f read noise.

    Args:
        parameters: a set of measurements or the name of one of `SETS`.
        programming_noise: multiplies the spread of programming; 0 for exact writes.
        drift: multiplies the exponents; 0 for cells that stay.
        read_noise: multiplies the read noise.

    Raises:
        ValueError: an unknown set, or a negative factor.

    References:
        Nandakumar et al., Phase-change memory models for deep learning training and inference,
        ICECS 2019.
    """
    if isinstance(parameters, str):
        if parameters not in SETS:
            raise ValueError(f"pcm({parameters!r}): known sets are {', '.join(SETS)}.")
        parameters = SETS[parameters]
    p = parameters
    for name, factor in (
        ("programming_noise", programming_noise),
        ("drift", drift),
        ("read_noise", read_noise),
    ):
        if not factor >= 0:
            raise ValueError(f"pcm({name}={factor}): give a factor of at least 0.")

    def init(shape: tuple[int, ...], key: Key | None = None, t: Any = 0.0) -> PCMState:
        del key
        zero = jnp.zeros(shape, jnp.float32)
        return PCMState(zero, zero, jnp.full(shape, t, jnp.float32))

    def program(state: PCMState, target: Cells, key: Key, t: Any) -> PCMState:
        check_targets("pcm", target, 0.0, p.g_max)
        check_time("pcm", "program", t, state.written)
        write, r = ~jnp.isnan(target), target / p.g_max
        spread = programming_noise * polynomial(p.programming, r)
        for_g, for_nu = _normals(key, target)
        g = jnp.maximum(target + spread * for_g, 0)
        nu = jnp.abs(p.drift_mean(r) + p.drift_std(r) * for_nu)
        new = PCMState(g, drift * nu, jnp.full_like(g, t))
        return jax.tree.map(lambda new, old: jnp.where(write, new, old), new, state)

    def read(state: PCMState, key: Key | None, t: Any) -> Cells:
        check_time("pcm", "read", t, state.written)
        elapsed = t - state.written
        g = drifted(state.g, state.nu, elapsed, p.t0)
        if key is None or read_noise == 0:
            return g
        return jnp.maximum(g + spread(state, t) * _normals(key, g)[0], 0)

    def spread(state: PCMState, t: Any) -> Cells:
        elapsed = t - state.written
        scale = read_noise * noise_scale(p, state.g, elapsed)
        return drifted(state.g, state.nu, elapsed, p.t0) * scale

    return Device("pcm", 0.0, p.g_max, init, read, program, spread=spread)


def drifted(g: Cells, nu: Cells, elapsed: Elapsed, t0: float) -> Cells:
    r"""The conductance $g ((t + t_0) / t_0)^{-\nu}$ [uS] at t = elapsed [s] after a write."""
    return g * jnp.exp(-nu * jnp.log1p(elapsed / t0))


def noise_scale(p: PCMParameters, g: Cells, elapsed: Elapsed) -> Cells:
    r"""The relative spread $Q \sqrt{\ln((t + t_0 + t_r) / 2 t_r)}$ of a read of cells written to g.

    The spectrum 1/f, summed from the inverse of the time since programming to that of a read.
    """
    span = (elapsed + p.t0 + p.t_read) / (2 * p.t_read)
    return p.read_scale(g / p.g_max) * jnp.sqrt(jnp.log(span))


def _normals(key: Key, like: Cells) -> tuple[Cells, Cells]:
    """Two standard normal numbers for each cell."""
    return random_normals(jax.random.bits(key, (2,), jnp.uint32), 0, like.shape)


def censored_moments(mean: Any, std: Any) -> tuple[Any, Any]:
    """Mean and mean square of max(0, N(mean, std))."""
    mean, std = np.asarray(mean, float), np.asarray(std, float)
    z = mean / std
    up, density = np.asarray(norm.cdf(z), float), np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return mean * up + std * density, (mean**2 + std**2) * up + mean * std * density


def expected_read(
    p: PCMParameters, target: float, elapsed: float, points: int = 4001
) -> tuple[float, float]:
    """Mean and standard deviation of what a read sees [uS], over cells and reads, by quadrature.

    Args:
        p: the parameters.
        target: what the cells were programmed to [uS].
        elapsed: since then [s].
        points: of the programmed conductance.
    """
    spread = float(polynomial(p.programming, jnp.asarray(target / p.g_max)))
    xi = np.linspace(-8, 8, points)
    weight = np.exp(-xi * xi / 2)
    weight /= weight.sum()
    g = np.maximum(target + spread * xi, 0)
    noise = np.asarray(noise_scale(p, jnp.asarray(g), jnp.asarray(elapsed)), float)
    first, second = censored_moments(1.0, noise)
    r = jnp.asarray(target / p.g_max)
    decay = [_decay_moment(k, p, r, elapsed) for k in (1, 2)]
    mean = float(weight @ (g * first)) * decay[0]
    square = float(weight @ (g * g * second)) * decay[1]
    return mean, math.sqrt(square - mean * mean)


def _decay_moment(power: int, p: PCMParameters, r: Array, elapsed: float) -> float:
    r"""The mean of $\tau^{-k \nu}$ with $\nu$ the magnitude of a Gaussian."""
    m, s = float(p.drift_mean(r)), float(p.drift_std(r))
    a = power * math.log1p(elapsed / p.t0)
    return sum(
        math.exp(-a * mu + (a * s) ** 2 / 2) * float(norm.cdf((mu - a * s * s) / s))
        for mu in (m, -m)
    )
