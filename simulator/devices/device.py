"""The contract of a memristive device model: what every kind of cell answers to.

A model is a record of pure functions over arrays of cells; no model stands here. Conductances are
in microsiemens [uS], times in seconds [s] on one clock that the caller keeps: each call is told the
time, and drift goes on from the last write to each read.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

SIEMENS_AT_MOST = 1e-2  # uS; a largest target below this is a number of siemens by its size


class Device(NamedTuple):
    """A kind of memory cell.

    `init(shape, key, t) -> state`: cells at their lowest conductance, their own parameters drawn.
    `program(state, target, key, t) -> state`: written to conductances near the target, by write
    and verify. `pulse(state, counts, key, t) -> state`: given |counts| pulses, up where positive.
    `read(state, key, t) -> g`: what one read sees; a read changes nothing.

    All of state are arrays of the shape of the cells. A cell whose target is NaN, or whose count is
    0, is not written. The noise of a cell depends on the key and its place (row-major), not on how
    many follow it. Functions work under `jit`, `vmap` (over instances: states and keys) and with
    sharded arrays.
    """

    name: str
    g_min: float  # [uS]
    g_max: float  # [uS]
    init: Callable[..., Any]
    read: Callable[..., Float[Array, "*cells"]]
    program: Callable[..., Any] | None = None
    pulse: Callable[..., Any] | None = None
    step: float | None = None  # mean change by one up pulse at mid range [uS], for `pulse`
    resets: bool = False  # a negative count is a RESET, whatever its size
    #: spread(state, t) -> standard deviation of a read of each cell [uS]; None: reads have no noise
    spread: Callable[..., Float[Array, "*cells"]] | None = None
    #: the last time after a write that the model knows [s]; reads after it are refused, or NaN
    #: under `jit`
    until: float = math.inf
    #: climb(g) -> how many pulses up bring a cell that was RESET nearest to g on average; None:
    #: as many as steps of `step` fit in
    climb: Callable[..., Any] | None = None
    #: trains(state, rows, columns, key, t) -> state: a matrix of cells is given trains on its lines
    #: (`kernels.pulse_trains.Trains`, a batch), sample after sample; None: only by their counts
    trains: Callable[..., Any] | None = None


def check_targets(who: str, target: Any, g_min: float, g_max: float) -> None:
    """Refuses targets that a device cannot be written to; under `jit` values are not seen.

    Raises:
        ValueError: beyond the range, or by their size in siemens instead of microsiemens.
    """
    if isinstance(target, Tracer):
        return
    known = np.asarray(target)[~np.isnan(np.asarray(target))]
    if known.size == 0:
        return
    low, high = float(known.min()), float(known.max())
    slack = 1e-5 * g_max  # what rounding to float32 may add
    if 0 < high < SIEMENS_AT_MOST and g_max >= 1:
        raise ValueError(
            f"{who}.program: the largest target is {high:g} uS where the range is {g_min:g} to "
            f"{g_max:g} uS; it looks like siemens: multiply by 1e6."
        )
    if low < g_min - slack or high > g_max + slack:
        raise ValueError(
            f"{who}.program: targets from {low:g} to {high:g} uS, but the model holds for "
            f"{g_min:g} to {g_max:g} uS: scale the weights to that range."
        )


def check_time(who: str, what: str, t: Any, written: Any) -> None:
    """Refuses a time before the last write; under `jit` values are not seen.

    Raises:
        ValueError: naming both times.
    """
    if isinstance(t, Tracer) or isinstance(written, Tracer):
        return
    now = float(np.min(np.asarray(t)))  # not np.min of an array of JAX, which `jit` would trace
    last = float(np.max(np.asarray(written))) if np.size(written) else -np.inf
    if not now >= last:
        raise ValueError(
            f"{who}.{what}: t = {now:g} s, but a cell was written at {last:g} s: time goes on."
        )


def check_known(who: str, t: Any, written: Any, until: float) -> None:
    """Refuses a time that a model says nothing of; under `jit` values are not seen.

    Raises:
        ValueError: naming the time since the write, and the last one that is known.
    """
    if isinstance(t, Tracer) or isinstance(written, Tracer) or not np.size(written):
        return
    longest = float(np.max(np.asarray(t) - np.asarray(written)))
    if longest > until:
        raise ValueError(
            f"{who}.read: {longest:g} s after the write of a cell, but measurements end at "
            f"{until:g} s: read earlier, or write anew."
        )


def check_counts(who: str, counts: Any) -> None:
    """Refuses pulse counts that are no integers.

    Raises:
        ValueError: naming their dtype.
    """
    if not jnp.issubdtype(jnp.asarray(counts).dtype, jnp.integer):
        raise ValueError(
            f"{who}.pulse: counts are {jnp.asarray(counts).dtype}; a pulse count is an integer: "
            "round them (stochastically, if the mean matters)."
        )


def polynomial(coefficients: tuple[float, ...], x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """The sum of c_k x^k, lowest power first."""
    total = jnp.zeros_like(x)
    for c in reversed(coefficients):
        total = total * x + c
    return total


Key = PRNGKeyArray
Cells = Float[Array, "*cells"]
Counts = Shaped[Array, "*cells"]  # of integers, which `check_counts` says in words
