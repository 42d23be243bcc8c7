"""How many pulses an update amounts to: rounding, and coincidences of random pulse trains.

Whole numbers come out, with the sign of the change. What a pulse does to a cell is its model's;
when weights are written is `memory.py`'s.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...kernels import pulse_trains
from ...kernels.noise import block, places
from ...kernels.pulse_trains import Trains
from .device import Device

LENGTH = 31  # pulses of a train at most, in the specification of Gokmen and Vlasov


def rounded(
    change: Float[Array, "*weights"],
    step: float | Float[Array, ""],
    key: PRNGKeyArray | None,
    length: int | None = None,
) -> Int[Array, "*weights"]:
    """The change in steps of one pulse: without bias with a key, to the nearest without one.

    Both signs round alike: the opposite change gives the opposite numbers.

    Args:
        change: of each weight.
        step: what one pulse adds, in the same unit.
        key: for stochastic rounding.
        length: the most pulses one weight gets; more are cut off.
    """
    size = jnp.abs(change) / step
    draw = 0.5 if key is None else jax.random.uniform(key, size.shape, size.dtype)
    whole = jnp.floor(size + draw)
    if length is not None:
        whole = jnp.minimum(whole, length)
    return (jnp.sign(change) * whole).astype(jnp.int32)


def coincidences(
    x: Float[Array, " inputs"],
    d: Float[Array, " outputs"],
    key: PRNGKeyArray,
    *,
    rate: float | Float[Array, ""],
    step: float,
    length: int = LENGTH,
    fixed: bool = False,
) -> Int[Array, "inputs outputs"]:
    r"""Pulses where a random train on the input line meets one on the output line.

    On average $-\eta\, x_j d_i$ over the step, as long as no probability is cut off at 1 and
    $\eta \max|x| \max|d|$ is at most `length` steps; beyond that all are cut down alike. Numbers
    of one line are correlated: its train is one.

    Args:
        x: inputs.
        d: derivatives of the loss by the outputs.
        key: a train each for the lines.
        rate: learning rate $\eta$.
        step: what one pulse adds.
        length: of the trains, at most; shorter ones are sent where they suffice.
        fixed: all trains of full length.

    References:
        Gokmen and Vlasov, Acceleration of deep neural network training with resistive cross-point
        devices, Frontiers in Neuroscience 10:333 (2016).
    """
    both = _trains(x[None], d[None], key, rate=rate, step=step, length=length, fixed=fixed)
    return pulse_trains.coincidences(*both)[0]


def _trains(
    x: Array, d: Array, key: PRNGKeyArray, *, rate: Any, step: float, length: int, fixed: bool
) -> tuple[Trains, Trains]:
    """The trains of a batch on its input lines and on its output lines, by `coincidences`."""
    most_x, most_d = (jnp.max(jnp.abs(line), -1, keepdims=True) for line in (x, d))
    any_ = (most_x > 0) & (most_d > 0)
    most_x, most_d = jnp.where(any_, most_x, 1), jnp.where(any_, most_d, 1)
    wanted = rate * most_x * most_d / step  # pulses for the largest product
    full = jnp.full_like(wanted, length)
    sent = full if fixed else jnp.clip(jnp.ceil(wanted), 1, length)
    gain = jnp.sqrt(rate / (step * sent))
    balance = jnp.sqrt(most_d / most_x)  # both lines near the same probability
    cut = jnp.sqrt(jnp.minimum(1, length / wanted))
    for_x, for_d = jax.random.split(key)
    trains_x = _bits(jnp.abs(x) * gain * balance * cut, sent, for_x, length)
    trains_d = _bits(jnp.abs(d) * gain / balance * cut, sent, for_d, length)
    return Trains(trains_x, -jnp.sign(x)), Trains(trains_d, jnp.sign(d))


def _bits(probability: Array, sent: Array, key: PRNGKeyArray, length: int) -> Array:
    """Pulses (batch, words, lines) as bits: `sent` slots of each train, all with its probability.

    The words of the longest train of the batch are drawn, and no more.
    """
    k0, k1 = jax.random.bits(key, (2,), jnp.uint32)
    place, sent = places(probability.shape), sent.astype(jnp.int32)
    certain = probability >= 1
    limit = (jnp.minimum(probability, 1 - 2.0**-24) * 2.0**32).astype(jnp.uint32)

    def pair(q: Array, bits: Array) -> Array:
        """Slots 2q and 2q + 1, from the two words of a block."""
        for slot, word in enumerate(block(k0, k1, place, q.astype(jnp.uint32))):
            at = 2 * q + slot
            fires = ((word < limit) | certain) & (at < sent)
            bits = bits | (fires.astype(jnp.uint32) << (at % 32).astype(jnp.uint32))
        return bits

    words, pairs = [], (jnp.max(sent, initial=0) + 1) // 2
    for first in range(0, length, 32):
        begin, end = first // 2, first // 2 + 16
        none = jnp.zeros(probability.shape, jnp.uint32)
        words.append(jax.lax.fori_loop(begin, jnp.clip(pairs, begin, end), pair, none))
    return jnp.stack(words, -2)


def update_by_trains(
    device: Device,
    state: Any,
    x: Float[Array, "batch inputs"],
    d: Float[Array, "batch outputs"],
    key: PRNGKeyArray,
    t: Any,
    *,
    rate: float | Float[Array, ""],
    step: float | None = None,
    length: int = LENGTH,
    fixed: bool = False,
) -> Any:
    """The cells (inputs, outputs) after the trains of a batch, sample after sample.

    A sample without any coincidence costs no more than its trains; with cells that take trains
    themselves (`Device.trains`), no sample costs much more than its coincidences.

    Args:
        device: one that takes pulses up and down.
        state: its cells.
        x: inputs, a sample a row.
        d: derivatives of the loss by the outputs.
        key: for trains and pulses.
        t: the time of all of them [s].
        rate: learning rate.
        step: what one pulse adds; None: the step of the device.
        length: as in `coincidences`.
        fixed: as there.

    Raises:
        ValueError: a device without pulses down.
    """
    if device.pulse is None or device.resets:
        raise ValueError(
            f"update_by_trains({device.name}): trains move cells up and down, and this device "
            "does not; take one with gradual pulses of both signs."
        )
    give, one_step = device.pulse, step or device.step or 1.0
    for_trains, for_pulses = jax.random.split(key)
    both = _trains(x, d, for_trains, rate=rate, step=one_step, length=length, fixed=fixed)
    if device.trains is not None:
        return device.trains(state, *both, for_pulses, t)

    # words of keys: a key would count as used by both branches of the condition under `vmap`
    words = jax.random.key_data(jax.random.split(for_pulses, len(x)))
    kind = jax.random.key_impl(key)

    def one(state: Any, sample: tuple[Trains, Trains, Array]) -> tuple[Any, None]:
        counts = pulse_trains.coincidences(*sample[:2])

        def pulse(state: Any) -> Any:
            return give(state, counts, jax.random.wrap_key_data(sample[2], impl=kind), t)

        return jax.lax.cond(jnp.any(counts != 0), pulse, lambda same: same, state), None

    return jax.lax.scan(one, state, (*both, words))[0]
