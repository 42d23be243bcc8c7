r"""Cells that take pulses up and down: ReRAM, ECRAM, capacitors, and idealised ones.

A pulse moves a cell by its own step, which may depend on where the cell is; cells differ in their
steps and bounds, and no two pulses are alike. Here are the shapes of the step and what cells are
drawn from; published settings are in `presets.py`. These cells hold a signed weight without a unit
and stay where they are between pulses.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...kernels import pulse_trains
from ...kernels.normals import random_normals
from .device import Cells, Counts, Device, Key, check_counts, check_time
from .many_pulses import after_pulses

_LEAST = 0.05  # of a bound is left to the cells at the end of its spread


class PulsedState(NamedTuple):
    """Cells and what makes each of them different."""

    w: Float[Array, "*cells"]  # hidden weight, reference included
    shown: Float[Array, "*cells"]  # what a read sees: w with the noise of the last write
    high: Float[Array, "*cells"]  # bounds of w
    low: Float[Array, "*cells"]
    up: Float[Array, "*cells"]  # step of one pulse, at the place where the shape is 1
    down: Float[Array, "*cells"]
    slope_up: Float[Array, "*cells"]  # of the linear shape, relative to the step
    slope_down: Float[Array, "*cells"]
    reference: Float[Array, "*cells"]  # taken off w by a read
    written: Float[Array, "*cells"]  # time of the last pulse [s]


Up = Bool[Array, "*cells"]
Shape = Callable[[PulsedState, Cells, Up], Cells]
"""`shape(state, w, up)`: the size of the step at w as a share of the cell's step; up is a bool."""


class Variation(NamedTuple):
    """How cells differ from each other (drawn once) and a pulse from the next; relative spreads.

    Attributes:
        step: of the step, cell to cell.
        high: of the upper bound, cell to cell.
        low: of the lower bound, cell to cell.
        asymmetry: of the difference between up and down, cell to cell, in steps.
        slope: of the slope of a linear shape, cell to cell.
        pulse: of the step, pulse to pulse.
        write: of what a read sees after a write, in steps.
        log_normal: whether steps are drawn log-normal, so that none is negative.
    """

    step: float = 0.3
    high: float = 0.3
    low: float = 0.3
    asymmetry: float = 0.01
    slope: float = 0.0
    pulse: float = 0.3
    write: float = 0.0
    log_normal: bool = False


SPREAD = Variation()
"""Cells as the first specification for training has them."""
NONE = Variation(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""All cells and all pulses alike."""


class Affine(NamedTuple):
    """A step that is linear in w: 1 - c w, with c by cell and direction.

    Attributes:
        slope: `slope(state, up) -> c`.
    """

    slope: Callable[[PulsedState, Up], Cells]

    def __call__(self, state: PulsedState, w: Cells, up: Up) -> Cells:
        """The size of the step at w as a share of the cell's step."""
        return 1 - self.slope(state, up) * w


constant = Affine(lambda state, up: jnp.zeros(up.shape, state.w.dtype))
"""The same step everywhere."""
linear = Affine(lambda state, up: jnp.where(up, state.slope_up, -state.slope_down))
"""A step that changes linearly with w, by its own slope up and down; may turn round."""
soft_bounds = Affine(lambda state, up: 1 / jnp.where(up, state.high, state.low))
"""A step that shrinks in proportion to the distance from the bound it heads for."""


def exponential(
    a: float, b: float, gamma: tuple[float, float], amplitude: tuple[float, float]
) -> Shape:
    """Steps 1 - A exp(±gamma z) of z = 2 a w / (high - low) + b, no less than 0; (up, down)."""

    def at(state: PulsedState, w: Cells, up: Up) -> Cells:
        z = 2 * w * a / (state.high - state.low) + b
        rise = 1 - amplitude[0] * jnp.exp(gamma[0] * z)
        fall = 1 - amplitude[1] * jnp.exp(-gamma[1] * z)
        return jnp.maximum(jnp.where(up, rise, fall), 0)

    return at


def power(gamma: float) -> Shape:
    """The share of the range that is left, to a power."""

    def at(state: PulsedState, w: Cells, up: Up) -> Cells:
        left = (state.high - w) / (state.high - state.low)
        return jnp.where(up, left, 1 - left) ** gamma

    return at


def piecewise(up_nodes: Array, down_nodes: Array) -> Shape:
    """Values at equidistant nodes from the lower bound to the upper, linear between them."""

    def at(state: PulsedState, w: Cells, up: Up) -> Cells:
        place = (w - state.low) / (state.high - state.low)

        def between(nodes: Array) -> Cells:
            return jnp.interp(place, jnp.linspace(0, 1, len(nodes)), nodes)

        return jnp.where(up, between(jnp.asarray(up_nodes)), between(jnp.asarray(down_nodes)))

    return at


def pulsed(
    shape: Shape = constant,
    *,
    step: float | int = 0.002,
    low: float | int = -1.0,
    high: float | int = 1.0,
    asymmetry: float | int = 0.0,
    slopes: tuple[float, float] = (0.0, 0.0),
    reference: float | int | None = None,
    reference_std: float | int = 0.0,
    additive: bool = False,
    spread: Shape | None = None,
    variation: Variation = SPREAD,
    name: str = "pulsed",
) -> Device:
    r"""Cells that a pulse moves by $\pm \Delta f(w) (1 + \sigma \xi)$, kept within their bounds.

    Where f is linear in w (`constant`, `linear`, `soft_bounds`), the pulses of a call are one draw
    with the moments of the train (`many_pulses.py`), which meets the bounds at its end; for other
    shapes, and with a `spread` of its own, the pulses come one after the other.

    Args:
        shape: f, how the step depends on the weight.
        step: mean step of the cells.
        low: mean lower bound of w.
        high: mean upper bound of w.
        asymmetry: how much larger steps up are than steps down, relative; negative: smaller.
        slopes: of the linear shape, up and down, relative to the range up to each bound.
        reference: what a read takes off w: a number; None for each cell's own symmetry point, where
            a step up and one down are of one size.
        reference_std: spread of the reference, cell to cell.
        additive: the noise of a pulse is one of the whole step; else of its size at w.
        spread: the standard deviation of a pulse, as f is its size; None: `variation.pulse`.
        variation: how cells and pulses differ.
        name: for messages.

    Raises:
        ValueError: a step or bounds that are no range.

    References:
        Gokmen and Vlasov, Acceleration of deep neural network training with resistive cross-point
        devices, Frontiers in Neuroscience 10:333 (2016).
    """
    if not (step > 0 and low < high):
        raise ValueError(
            f"{name}(step={step}, low={low}, high={high}): needs a step above 0 and low < high."
        )
    v, in_one_draw = variation, isinstance(shape, Affine) and spread is None

    def init(shape_: tuple[int, ...], key: Key, t: Any = 0.0) -> PulsedState:
        draws = jax.random.normal(key, (7, *shape_), jnp.float32)
        gain = jnp.exp(v.step * draws[0]) if v.log_normal else 1 + v.step * draws[0]
        skew = v.asymmetry * draws[1]
        up = jnp.abs(min(asymmetry, 0) + gain + skew) * step
        down = jnp.abs(-max(asymmetry, 0) + gain - skew) * step
        top = high * jnp.maximum(1 + v.high * draws[2], _LEAST)
        bottom = low * jnp.maximum(1 + v.low * draws[3], _LEAST)
        zero = jnp.zeros_like(up)
        state = PulsedState(
            w=zero,
            shown=zero,
            high=top,
            low=bottom,
            up=up,
            down=down,
            slope_up=jnp.abs(slopes[0] + v.slope * draws[4]) / (abs(high) or 1),
            slope_down=jnp.abs(slopes[1] + v.slope * draws[5]) / (abs(low) or 1),
            reference=zero,
            written=jnp.full_like(zero, t),
        )
        middle = symmetry_point(state) if reference is None else jnp.full_like(zero, reference)
        middle = middle + reference_std * draws[6]
        # cells begin where a read sees 0, if they can be there
        start = jnp.clip(middle, bottom, top)
        return state._replace(w=start, shown=start, reference=middle)

    def pulse(state: PulsedState, counts: Counts, key: Key, t: Any) -> PulsedState:
        check_counts(name, counts)
        check_time(name, "pulse", t, state.written)
        words, up = jax.random.bits(key, (2,), jnp.uint32), counts > 0
        n = jnp.abs(counts)
        step_ = jnp.where(up, state.up, -state.down)
        xi, for_write = random_normals(words, 0, state.w.shape)

        def one(i: Array, w: Cells) -> Cells:
            xi = random_normals(words, i.astype(jnp.uint32), w.shape)[0]
            move = step_ * shape(state, w, up)
            size = v.pulse * (step_ if additive else move)
            if spread is not None:
                size = step_ * spread(state, w, up)
            move = move + xi * size
            return jnp.where(i < n, jnp.clip(w + move, state.low, state.high), w)

        if in_one_draw:
            assert isinstance(shape, Affine)
            slope = shape.slope(state, up)
            law = after_pulses(
                state.w, step_, slope, n.astype(step_.dtype), v.pulse, additive=additive
            )
            moved = jnp.clip(law.mean + jnp.sqrt(law.variance) * xi, state.low, state.high)
            w = jnp.where(n > 0, moved, state.w)
        else:
            w = jax.lax.fori_loop(0, jnp.max(n, initial=0), one, state.w)
        touched = counts != 0
        seen = w
        if v.write:
            seen = w + v.write * step * for_write
        return state._replace(
            w=w,
            shown=jnp.where(touched, seen, state.shown),
            written=jnp.where(touched, t, state.written),
        )

    def trains(state: PulsedState, rows: Any, columns: Any, key: Key, t: Any) -> PulsedState:
        assert isinstance(shape, Affine)
        check_time(name, "trains", t, state.written)
        up = jnp.ones(state.w.shape, bool)
        cells = pulse_trains.LinearCells(
            *(state.w, state.shown, state.low, state.high, state.up, state.down),
            slope_up=jnp.broadcast_to(shape.slope(state, up), up.shape),
            slope_down=jnp.broadcast_to(shape.slope(state, ~up), up.shape),
        )
        words = jax.random.bits(key, (2,), jnp.uint32)
        noise = pulse_trains.Noise(v.pulse, v.write * step, additive)
        w, shown, touched = pulse_trains.pulse_trains(cells, rows, columns, words, noise)
        return state._replace(w=w, shown=shown, written=jnp.where(touched, t, state.written))

    def read(state: PulsedState, key: Key | None, t: Any) -> Cells:
        del key
        check_time(name, "read", t, state.written)
        return state.shown - state.reference

    taken = float(reference or 0)  # cells with references of their own have their middle near 0
    return Device(
        *(name, low - taken, high - taken, init, read, None, pulse, float(step)),
        trains=trains if in_one_draw else None,
    )


def symmetry_point(state: PulsedState) -> Cells:
    """Where a step up and a step down of soft bounds are of one size."""
    return (state.up - state.down) / (state.up / state.high - state.down / state.low)
