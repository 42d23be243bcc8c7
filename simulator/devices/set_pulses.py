r"""Phase-change memory under SET pulses: each crystallises a little more, and only RESET undoes it.

The step of a pulse depends on the conductance and on how many pulses there were since the RESET,
in its mean and in its spread. Here are the model and the moments of an unbounded cell. Programming
to a target, with read noise and drift over years, is `pcm.py`'s.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .device import Cells, Counts, Device, Key, check_counts, check_time
from .pcm import drifted


class SetPCMParameters(NamedTuple):
    r"""The step $\Delta G \sim N(a_0 + a_1 G + a_2 P, (b_0 + b_1 G + b_2 P)^2)$ of one pulse.

    P is 1 after a RESET and decays by $e^{-1 / p_0}$ with each pulse, before it acts.
    """

    mean: tuple[float, float, float] = (0.880, -0.084, 1.40)  # a [uS, 1, uS]
    std: tuple[float, float, float] = (0.260, 0.091, 2.15)  # b
    history: float = 2.6  # p0, pulses
    g_min: float = 0.1  # [uS]
    g_max: float = 12.0  # [uS]; 20 gives the staircases of the paper
    t0: float = 38.6  # of the drift after a pulse [s]
    nu: float = 0.04  # drift exponent
    read: tuple[float, float] = (0.13, 0.03)  # spread of a read, c_0 + c_1 G [uS]
    reset: tuple[float, float] = (0.1, 0.01)  # mean and spread after a RESET [uS]


class SetPCMState(NamedTuple):
    """Cells under SET pulses."""

    g: Float[Array, "*cells"]  # after the last pulse [uS]
    p: Float[Array, "*cells"]  # what is left of the history since the RESET, 1 then
    written: Float[Array, "*cells"]  # time of the last pulse [s]


_DEFAULT = SetPCMParameters()


def set_pcm(parameters: SetPCMParameters = _DEFAULT, *, noise: float | int = 1.0) -> Device:
    """Phase-change cells whose conductance grows by SET pulses and falls by RESET only.

    A positive count is that many SET pulses; any negative one is a RESET. New cells are RESET.

    Args:
        parameters: of the step, the drift and the read.
        noise: multiplies the spread of steps, of RESET and of reads.

    Raises:
        ValueError: a negative noise.

    References:
        Nandakumar et al., A phase-change memory model for neuromorphic computing, Journal of
        Applied Physics 124:152135 (2018).
    """
    if not noise >= 0:
        raise ValueError(f"set_pcm(noise={noise}): give a factor of at least 0.")
    c = parameters

    def init(shape: tuple[int, ...], key: Key, t: Any = 0.0) -> SetPCMState:
        g = _after_reset(c, noise, jax.random.normal(key, shape, jnp.float32))
        return SetPCMState(g, jnp.ones_like(g), jnp.full_like(g, t))

    def pulse(state: SetPCMState, counts: Counts, key: Key, t: Any) -> SetPCMState:
        check_counts("set_pcm", counts)
        check_time("set_pcm", "pulse", t, state.written)
        for_reset, for_steps = jax.random.split(key)
        reset = counts < 0
        cleared = _after_reset(c, noise, jax.random.normal(for_reset, counts.shape, jnp.float32))
        g = jnp.where(reset, cleared, state.g)
        p = jnp.where(reset, 1.0, state.p)

        def one(i: Array, cells: tuple[Cells, Cells]) -> tuple[Cells, Cells]:
            xi = jax.random.normal(jax.random.fold_in(for_steps, i), counts.shape, jnp.float32)
            stepped = set_step(c, *cells, noise * xi)
            return jax.tree.map(lambda new, old: jnp.where(i < counts, new, old), stepped, cells)

        g, p = jax.lax.fori_loop(0, jnp.max(counts, initial=0), one, (g, p))
        return SetPCMState(g, p, jnp.where(counts == 0, state.written, t))

    def read(state: SetPCMState, key: Key | None, t: Any) -> Cells:
        check_time("set_pcm", "read", t, state.written)
        g = drifted(state.g, jnp.full_like(state.g, c.nu), t - state.written, c.t0)
        if key is None:
            return g
        return jnp.maximum(g + spread(state, t) * jax.random.normal(key, g.shape, g.dtype), 0)

    def spread(state: SetPCMState, t: Any) -> Cells:
        return noise * (c.read[0] + c.read[1] * read(state, None, t))

    stairs = np.array([c.reset[0], *(mean for mean, _ in unbounded_moments(c, c.reset[0], 64))])
    borders = jnp.asarray((stairs[1:] + stairs[:-1]) / 2, jnp.float32)

    def climb(g: Cells) -> Counts:
        return jnp.searchsorted(borders, g).astype(jnp.int32)

    step = c.mean[0] + c.mean[1] * (c.g_min + c.g_max) / 2
    return Device(
        *("set_pcm", c.g_min, c.g_max, init, read, None, pulse, step),
        resets=True,
        spread=spread,
        climb=climb,
    )


def set_step(c: SetPCMParameters, g: Cells, p: Cells, xi: Cells) -> tuple[Cells, Cells]:
    """The conductance and the history after one SET pulse, xi standard normal."""
    p = p * math.exp(-1 / c.history)
    mean = c.mean[0] + c.mean[1] * g + c.mean[2] * p
    std = c.std[0] + c.std[1] * g + c.std[2] * p
    return jnp.clip(g + mean + std * xi, c.g_min, c.g_max), p


def unbounded_moments(
    c: SetPCMParameters, g: float, pulses: int, variance: float = 0.0
) -> list[tuple[float, float]]:
    """Mean [uS] and variance [uS^2] after each of a number of pulses since a RESET.

    Exact for a cell without the bounds `g_min` and `g_max`, whose spread is linear in g.

    Args:
        c: the parameters.
        g: mean after the RESET [uS].
        pulses: how many.
        variance: after the RESET [uS^2].
    """
    moments, mean = [], g
    for i in range(1, pulses + 1):
        p = math.exp(-i / c.history)
        std = c.std[0] + c.std[1] * mean + c.std[2] * p
        variance = (1 + c.mean[1]) ** 2 * variance + c.std[1] ** 2 * variance + std**2
        mean = (1 + c.mean[1]) * mean + c.mean[0] + c.mean[2] * p
        moments.append((mean, variance))
    return moments


def _after_reset(c: SetPCMParameters, noise: float | int, xi: Cells) -> Cells:
    return jnp.clip(c.reset[0] + noise * c.reset[1] * xi, c.reset[0] / 10, c.g_max)
