"""How many pulses an update amounts to: rounding, and coincidences of random pulse trains.

Whole numbers come out, with the sign of the change. What a pulse does to a cell is its model's;
when weights are written is `memory.py`'s.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

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
    most_x, most_d = jnp.max(jnp.abs(x)), jnp.max(jnp.abs(d))
    any_ = (most_x > 0) & (most_d > 0)
    most_x, most_d = jnp.where(any_, most_x, 1), jnp.where(any_, most_d, 1)
    wanted = rate * most_x * most_d / step  # pulses for the largest product
    sent = jnp.float32(length) if fixed else jnp.clip(jnp.ceil(wanted), 1, length)
    gain = jnp.sqrt(rate / (step * sent))
    balance = jnp.sqrt(most_d / most_x)  # both lines near the same probability
    cut = jnp.sqrt(jnp.minimum(1, length / wanted))
    for_x, for_d = jax.random.split(key)
    on_time = jnp.arange(length, dtype=jnp.float32)[:, None] < sent

    def train(line: Array, probability: Array, own: PRNGKeyArray) -> Array:
        draws = jax.random.uniform(own, (length, line.size))
        return ((draws < probability) & on_time).astype(jnp.float32) * jnp.sign(line)

    trains_x = train(x, jnp.abs(x) * gain * balance * cut, for_x)
    trains_d = train(d, jnp.abs(d) * gain / balance * cut, for_d)
    return -jnp.matmul(trains_x.T, trains_d, precision="highest").astype(jnp.int32)


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

    A sample without any coincidence costs no more than its trains.

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

    # words of keys: a key would count as used by both branches of the condition under `vmap`
    words = jax.random.key_data(jax.random.split(key, (len(x), 2)))
    kind = jax.random.key_impl(key)

    def one(state: Any, sample: tuple[Array, Array, Array]) -> tuple[Any, None]:
        for_trains = jax.random.wrap_key_data(sample[2][0], impl=kind)
        counts = coincidences(
            sample[0], sample[1], for_trains, rate=rate, step=one_step, length=length, fixed=fixed
        )

        def pulse(state: Any) -> Any:
            return give(state, counts, jax.random.wrap_key_data(sample[2][1], impl=kind), t)

        return jax.lax.cond(jnp.any(counts != 0), pulse, lambda same: same, state), None

    return jax.lax.scan(one, state, (x, d, words))[0]
