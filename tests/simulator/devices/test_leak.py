"""Cells that leak: against the closed forms of an exponential decay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.simulator.devices import memristive, pcm, pulsed, with_leak
from spikebit.simulator.devices.pulsed import NONE

pytestmark = pytest.mark.usefixtures("compile_quickly")
STEADY = pulsed(step=0.01, reference=0.0, variation=NONE)
DEVICE = with_leak(STEADY, 5.0)


def test_a_charge_decays_whether_or_not_the_cell_is_looked_at():
    state = DEVICE.init((2,), jax.random.key(0), 0.0)
    state = DEVICE.pulse(state, jnp.array([30, -20]), jax.random.key(1), 1.0)
    for i in range(3):  # calls without pulses change nothing
        state = DEVICE.pulse(state, jnp.zeros(2, int), jax.random.key(2), 2.0 + i)
    wanted = np.array([0.3, -0.2]) * np.exp(-(9 - 1) / 5)
    np.testing.assert_allclose(DEVICE.read(state, None, 9.0), wanted, rtol=1e-6)
    with pytest.raises(ValueError, match=r"a cell was written at 4 s: time goes on"):
        DEVICE.read(state, None, 3.0)


def test_pulses_and_leak_come_to_a_balance():
    """With n pulses a second the sum is a geometric series, here cut after its first 20 terms."""
    memory = memristive(DEVICE, writing="pulses", granularity=0.01, dt=1.0)
    state = memory.init({"w": jnp.ones(1)}, jax.random.key(0))
    start = float(DEVICE.read(state.cells["w"], None, 0.0)[0, 0])
    update = jax.jit(memory.update)
    for i in range(20):
        state = update(state, {"w": jnp.full(1, -0.05)}, jax.random.key(i))
    share = np.exp(-1 / 5)
    wanted = start * share**20 - 0.05 * (1 - share**20) / (1 - share)
    np.testing.assert_allclose(memory.read(state)["w"], wanted, atol=1e-5)


def test_what_cannot_leak_is_refused():
    with pytest.raises(ValueError, match=r"lifetime is 0 s; it must be above 0"):
        with_leak(STEADY, 0)
    with pytest.raises(ValueError, match=r"only pulsed cells hold a charge that leaks"):
        with_leak(pcm(), 1.0).init((2,), jax.random.key(0), 0.0)
