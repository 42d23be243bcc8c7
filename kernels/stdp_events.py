"""Plastic synapses onto spiking neurons, simulated from spike to spike over long times.

One idea belongs here: pair STDP with presynaptic fatigue costs arithmetic only where a spike is.
This file has the reference in jax.numpy, the public function and the lists of events it takes;
`stdp_events_cpu` has the kernel. What the spikes mean, and rules with other settings than these,
do not belong here (`learning_rules.stdp`, `learning_rules.fatigue`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from . import dispatch


class EventState(NamedTuple):
    """All that changes, after the last step."""

    weights: Float[Array, "nin n"]  # W, in [0, w_max]
    fatigue: Float[Array, " nin"]  # F, in [0, 1)
    pre: Float[Array, " nin"]  # x, trace of input spikes
    membrane: Float[Array, " n"]  # V
    post: Float[Array, " n"]  # y, trace of output spikes


class EventSettings(NamedTuple):
    r"""Numbers, or arrays without axes to `vmap` over; decays are $e^{-dt/\tau}$ of a step."""

    threshold: float | Array  # theta
    decay_membrane: float | Array
    decay_pre: float | Array
    decay_post: float | Array
    decay_fatigue: float | Array
    use: float | Array  # U, 0: no fatigue
    a_plus: float | Array
    a_minus: float | Array
    w_max: float | Array
    coincident: float | Array = 1.0  # c, what an input spike counts for a neuron's in the same step


class Events(NamedTuple):
    """Spikes of inputs, step after step: those of step t are `inputs[first[t] : first[t + 1]]`."""

    inputs: Int32[Array | np.ndarray, " events"]  # what is beyond first[-1] is not read
    first: Int32[Array | np.ndarray, " steps1"]  # steps + 1 places


def pack_events(step: np.ndarray, source: np.ndarray, steps: int) -> Events:
    """Sorts spikes, given by their step and input; several of one input in a step become one.

    Those before step 0 or after the last are left out. The list is filled up with -1 to a power
    of two, so that lists of similar length share what is compiled for them. Runs outside of `jit`.

    Raises:
        ValueError: other than whole numbers, not as many steps as inputs, or an input below 0.

    >>> pack_events(np.array([2, 0, 2, 2]), np.array([1, 4, 0, 1]), 3)
    Events(inputs=array([ 4,  0,  1, -1], dtype=int32), first=array([0, 1, 1, 3], dtype=int32))
    """
    step, source = np.asarray(step), np.asarray(source)
    whole = all(a.dtype.kind in "iu" for a in (step, source) if a.size)
    if not whole or step.shape != source.shape or step.ndim != 1 or source.min(initial=0) < 0:
        raise ValueError(
            f"pack_events: got steps of {step.dtype}{list(step.shape)} and inputs of "
            f"{source.dtype}{list(source.shape)}, the least {source.min(initial=0)}; give one list "
            "of whole numbers each, of one length, with inputs from 0 on."
        )
    step, source = step.astype(np.int64), source.astype(np.int64)
    inside = (step >= 0) & (step < steps)
    width = int(source.max(initial=0)) + 1
    place = np.sort(step[inside] * width + source[inside])
    place = place[np.diff(place, prepend=-1) > 0]  # np.unique sorts far more slowly
    first = np.searchsorted(place, np.arange(steps + 1) * width)
    inputs = np.full(1 << (len(place) - 1).bit_length() if len(place) else 1, -1, np.int32)
    inputs[: len(place)] = place % width
    return Events(inputs, first.astype(np.int32))


def event_state(weights: Float[Array, "..."]) -> EventState:
    """Weights (nin, n) before any spike."""
    if weights.ndim != 2:
        raise ValueError(f"event_state: weights have shape {weights.shape}; give (nin, n).")
    nin, n = weights.shape
    inputs, units = jnp.zeros(nin, weights.dtype), jnp.zeros(n, weights.dtype)
    return EventState(weights, inputs, inputs, units, units)


def stdp_events(
    state: EventState, events: Events, settings: EventSettings
) -> tuple[EventState, Bool[Array, "steps n"]]:
    r"""Runs inputs through fatiguing synapses onto LIF neurons that learn by pair STDP.

    In each step everything decays; then, with the spikes $s_i$ of the inputs,

    $$V_j \leftarrow V_j + \sum_i s_i W_{ij} (1 - F_i), \quad p_j = [V_j > \theta], \quad
      W_{ij} \leftarrow clip(W_{ij} + A_+ (x_i + c s_i) p_j - A_- s_i y_j, 0, w_{max}),$$

    and last, $V_j = 0$ where $p_j$, $F_i \leftarrow F_i + U (1 - F_i) s_i$, $x_i \leftarrow x_i +
    s_i$, $y_j \leftarrow y_j + p_j$. So a spike meets the fatigue that earlier ones left. Here an
    input acts before the neuron in the same step, so by default such a pair potentiates, c = 1;
    with c = 0 it changes nothing. With U = 0 this is pair STDP.

    On CPUs the cost is that of the spikes: n for one of an input, nin for one of a neuron. Works
    under `jit` and `vmap` (one run after the other there). It has no derivative.

    Args:
        state: after an earlier call, or `event_state(weights)`; float32 or float64.
        events: of `pack_events`; places of inputs that are not there are skipped.
        settings: of the neurons and synapses.

    Returns:
        The state after the last step, and the spikes of the neurons.

    Raises:
        ValueError: arrays that do not fit, or another dtype.
    """
    _check(state, events)
    dtype = state.weights.dtype
    numbers = EventSettings(*(jnp.asarray(a, dtype) for a in settings))
    inputs, first = (jnp.asarray(a, jnp.int32) for a in events)
    flat = dispatch.run("stdp_events", "run", run_reference, *state, inputs, first, *numbers)
    return EventState(*flat[:5]), flat[5]


def run_reference(*arrays: Array) -> tuple[Array, ...]:
    """The same on flat arguments: the fields of the state, of events, of settings, in turn."""
    state, settings = EventState(*arrays[:5]), EventSettings(*arrays[7:])
    inputs, first = arrays[5:7]
    nin, steps = state.weights.shape[0], len(first) - 1
    place = jnp.arange(len(inputs), dtype=jnp.int32)
    step = jnp.searchsorted(first, place, side="right") - 1
    known = (inputs >= 0) & (inputs < nin) & (step >= 0) & (step < steps)
    raster = jnp.zeros((steps + 1, nin), state.weights.dtype)
    raster = raster.at[jnp.where(known, step, steps), jnp.where(known, inputs, 0)].set(1)

    def one(state, spikes):
        return step_reference(state, spikes, settings)

    state, posts = jax.lax.scan(one, state, raster[:steps])
    return *state, posts


def step_reference(
    state: EventState, spikes: Float[Array, " nin"], s: EventSettings
) -> tuple[EventState, Bool[Array, " n"]]:
    """One step of `stdp_events`, densely."""
    w = state.weights
    fatigue, x = s.decay_fatigue * state.fatigue, s.decay_pre * state.pre
    y = s.decay_post * state.post
    v = s.decay_membrane * state.membrane + (spikes * (1 - fatigue)) @ w
    fires = v > s.threshold
    p = fires.astype(w.dtype)
    up, down = (x + s.coincident * spikes)[:, None] * p, spikes[:, None] * y
    new = EventState(
        weights=jnp.clip(w + (s.a_plus * up - s.a_minus * down), 0, s.w_max),
        fatigue=fatigue + spikes * (s.use * (1 - fatigue)),
        pre=x + spikes,
        membrane=jnp.where(fires, 0, v),
        post=y + p,
    )
    return new, fires


def _check(state, events):
    nin, n = state.weights.shape
    found = tuple(a.shape for a in state[1:])
    if found != ((nin,), (nin,), (n,), (n,)):
        raise ValueError(
            f"stdp_events: weights of shape {(nin, n)} go with fatigue and pre of shape {(nin,)}, "
            f"membrane and post of shape {(n,)}, got {found}: begin with event_state(weights)."
        )
    dtypes = {str(a.dtype) for a in state}
    if dtypes not in ({"float32"}, {"float64"}):
        raise ValueError(
            f"stdp_events: the state has {', '.join(sorted(dtypes))}: make all of it float32 or "
            "all float64."
        )
    if events.first.ndim != 1 or len(events.first) < 2 or events.inputs.ndim != 1:
        raise ValueError(
            f"stdp_events: got inputs of shape {events.inputs.shape} and first of shape "
            f"{events.first.shape}, expected lists of events and of steps + 1 >= 2 places: see "
            "pack_events."
        )
