r"""Resistive memory for inference: how far cells are from their targets, and how that goes on.

Three sets of measurements, each said by the spread of many cells: at a time or at a few, so a cell
is drawn its place in that spread when it is written, and keeps it. What happens under single pulses
is `pulsed.py`'s.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .device import Cells, Device, Key, check_known, check_targets, check_time, polynomial

SOONEST = 1.0  # the first measurement after a write [s]; what is read before is taken to be that
DAY, YEAR = 86_400.0, 365.25 * 86_400.0

#: Standard deviation [uS] in powers of g / 40 uS, lowest first, at each time that was measured.
_WAN = {
    1.0: (0.348, 16.030, -43.853, 45.393, -16.815),
    DAY: (0.701, 22.086, -50.773, 47.095, -16.458),
    2 * DAY: (0.782, 20.274, -43.507, 37.062, -11.934),
}
#: Standard deviation of programming [uS] in powers of the target [uS], for each acceptance.
_CMO = {0.002: (0.00081107, 0.00106879), 0.02: (0.0112185391, 0.01129027418)}
_MILO = (4.782321, -0.009107)  # the same, of one measurement


class Written(NamedTuple):
    """Cells, where they should be, and by what each is beside it."""

    target: Float[Array, "*cells"]  # [uS]
    missed: Float[Array, "*cells"]  # by programming, in units of its spread
    moved: Float[Array, "*cells"]  # by relaxation, in units of its spread
    written: Float[Array, "*cells"]  # time of the last write [s]


def reram_wan() -> Device:
    r"""ReRAM of a compute-in-memory chip: $g = \max(0, g_T + \sigma(g_T, t) \xi)$, up to 40 uS.

    The spread was measured after 1 s, 1 d and 2 d. Between these times it is taken to change
    linearly with ln t, which nobody measured; after 2 d nothing is known, see `Device.until`. Noise
    of single reads is not in the data, so that reads have none.

    References:
        Wan et al., A compute-in-memory chip based on resistive random-access memory, Nature 608
        (2022).
    """
    times = tuple(_WAN)

    def spread(target: Cells, elapsed: Cells) -> Cells:
        at = [polynomial(c, target / 40.0) for c in _WAN.values()]
        total = at[0]
        for i in range(1, len(times)):
            part = jnp.log(elapsed / times[i - 1]) / math.log(times[i] / times[i - 1])
            total = total + jnp.clip(part, 0, 1) * (at[i] - at[i - 1])
        return total

    def held(state: Written, elapsed: Cells) -> Cells:
        return jnp.maximum(state.target + spread(state.target, elapsed) * state.missed, 0)

    return _device("reram_wan", 0.0, 40.0, times[-1], held)


def reram_cmo(acceptance: float = 0.002) -> Device:
    r"""ReRAM of a conductive metal oxide on HfOx, 9 to 88.2 uS.

    Write and verify ends within `acceptance` of the target; then cells relax, all alike,
    $g = g_P - 0.089 \ln t + (0.042 \ln t + 0.412) \xi$ [uS], t in seconds; reads have 1/f noise.
    What a read sees is cut to the range, which moves the mean of cells at its ends inwards: of
    those written to 88.2 uS by 0.19 uS after a second. The authors go up to ten years with it.

    A weight is held by a pair of such cells here; the authors hold it in one, with the smallest
    weight at the lowest conductance.

    Args:
        acceptance: 0.002 or 0.02 of the target.

    Raises:
        ValueError: another acceptance.

    References:
        Falcone et al., All-in-one analog AI hardware: on-chip training and inference with
        conductive-metal-oxide/HfOx ReRAM devices, arXiv:2502.04524.
    """
    if acceptance not in _CMO:
        raise ValueError(
            f"reram_cmo: acceptance is {acceptance}; measured were "
            f"{' and '.join(str(a) for a in _CMO)} of the target."
        )
    low, high, t_read = 9.0, 88.2, 1e-6

    def relaxed(state: Written, elapsed: Cells) -> Cells:
        at_first = state.target + polynomial(_CMO[acceptance], state.target) * state.missed
        log = jnp.log(elapsed)
        return at_first - 0.08900206 * log + (0.04201137 * log + 0.41183342) * state.moved

    def held(state: Written, elapsed: Cells) -> Cells:
        return jnp.clip(relaxed(state, elapsed), low, high)

    def read(state: Written, elapsed: Cells, key: Key) -> Cells:
        drawn = jax.random.normal(key, state.target.shape, state.target.dtype)
        return jnp.clip(relaxed(state, elapsed) + noise(state, elapsed) * drawn, low, high)

    def noise(state: Written, elapsed: Cells) -> Cells:
        scale = jnp.sqrt(jnp.log((elapsed + t_read) / (2 * t_read)))
        return 0.0277316483 * jnp.log10(held(state, elapsed)) * scale

    return _device("reram_cmo", low, high, 10 * YEAR, held, read, noise)


def reram_milo() -> Device:
    """HfO2 ReRAM written by optimised algorithms, 50 to 225 uS: the error of programming alone.

    Nothing was measured of what time does, so cells stay as they were written.

    References:
        Milo et al., Optimized programming algorithms for multilevel RRAM in hardware neural
        networks, IRPS 2021.
    """

    def held(state: Written, elapsed: Cells) -> Cells:
        del elapsed
        return state.target + polynomial(_MILO, state.target) * state.missed

    return _device("reram_milo", 50.0, 225.0, math.inf, held)


def _device(
    name: str,
    g_min: float,
    g_max: float,
    until: float,
    held: Any,
    noisy: Any = None,
    noise: Any = None,
) -> Device:
    """The device of what its cells hold.

    Args:
        name: of the device.
        g_min: lowest conductance [uS].
        g_max: highest [uS].
        until: the last time after a write that is known [s].
        held: (state, elapsed) -> conductances without the noise of a read.
        noisy: (state, elapsed, key) -> what a read sees.
        noise: (state, elapsed) -> standard deviation of its noise.
    """

    def init(shape: tuple[int, ...], key: Key | None = None, t: Any = 0.0) -> Written:
        del key
        zero = jnp.zeros(shape, jnp.float32)
        return Written(zero + g_min, zero, zero, zero + jnp.asarray(t, jnp.float32))

    def program(state: Written, target: Cells, key: Key, t: Any) -> Written:
        check_targets(name, target, g_min, g_max)
        check_time(name, "program", t, state.written)
        missed, moved = (jax.random.normal(k, target.shape) for k in jax.random.split(key))
        new = Written(target, missed, moved, jnp.full_like(missed, t))
        return jax.tree.map(lambda new, old: jnp.where(jnp.isnan(target), old, new), new, state)

    def elapsed(state: Written, t: Any) -> Cells:
        """Since the write [s]; NaN where nobody knows, if that is seen under `jit` only."""
        check_time(name, "read", t, state.written)
        check_known(name, t, state.written, until)
        since = t - state.written
        return jnp.where(since <= until, jnp.maximum(since, SOONEST), jnp.nan)

    def read(state: Written, key: Key | None, t: Any) -> Cells:
        since = elapsed(state, t)
        return held(state, since) if key is None or noisy is None else noisy(state, since, key)

    return Device(
        name,
        g_min,
        g_max,
        init,
        read,
        program,
        spread=None if noise is None else lambda state, t: noise(state, elapsed(state, t)),
        until=until,
    )
