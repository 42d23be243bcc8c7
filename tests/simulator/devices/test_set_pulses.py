"""Cells under SET pulses: moments against the recursion, RESET, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.simulator.devices.set_pulses import (
    SetPCMParameters,
    SetPCMState,
    set_pcm,
    unbounded_moments,
)

pytestmark = pytest.mark.usefixtures("compile_quickly")
N = 100_000
FREE = SetPCMParameters(g_min=-1e9, g_max=1e9)


def test_pulses_meet_the_moments_of_the_recursion():
    device = set_pcm(FREE)
    flat = jnp.full(N, 0.1)
    state = SetPCMState(flat, jnp.ones(N), jnp.zeros(N))
    one = jax.jit(lambda s, k: device.pulse(s, jnp.ones(N, int), k, 1.0))
    for i, (mean, variance) in enumerate(unbounded_moments(FREE, 0.1, 12)):
        state = one(state, jax.random.key(i))
        g = np.asarray(state.g, float)
        assert abs(g.mean() - mean) < 4 * np.sqrt(variance / N)
        assert abs(g.var() - variance) < 4 * variance * np.sqrt(2 / N)
    first, second = unbounded_moments(FREE, 0.1, 2)
    p = np.exp(-1 / 2.6)  # the history decays before the first pulse
    assert first[0] == pytest.approx(0.1 - 0.0084 + 0.880 + 1.40 * p)
    assert first[1] == pytest.approx((0.260 + 0.0091 + 2.15 * p) ** 2)
    assert second[0] == pytest.approx(0.916 * first[0] + 0.880 + 1.40 * p * p)


def test_a_train_is_its_pulses_one_by_one_in_law():
    device = set_pcm()
    state = device.init((N,), jax.random.key(0), 0.0)
    at_once = device.pulse(state, jnp.full(N, 5), jax.random.key(1), 1.0)
    one_by_one = state
    for i in range(5):
        one_by_one = device.pulse(one_by_one, jnp.ones(N, int), jax.random.key(10 + i), 1.0)
    a, b = np.asarray(at_once.g, float), np.asarray(one_by_one.g, float)
    assert abs(a.mean() - b.mean()) < 4 * np.hypot(a.std(), b.std()) / np.sqrt(N)
    np.testing.assert_allclose(at_once.p, np.exp(-5 / 2.6), rtol=1e-6)
    np.testing.assert_allclose(one_by_one.p, at_once.p, rtol=1e-6)


def test_a_reset_clears_conductance_and_history_where_it_is_given():
    device = set_pcm()
    state = device.init((3,), jax.random.key(0), 0.0)
    state = device.pulse(state, jnp.array([4, 4, 0]), jax.random.key(1), 5.0)
    assert (np.asarray(state.g[:2]) > 0.3).all()
    new = device.pulse(state, jnp.array([-1, 0, 0]), jax.random.key(2), 9.0)
    assert new.g[0] < 0.2
    assert new.p[0] == 1
    assert (np.asarray(new.g[1:]) == np.asarray(state.g[1:])).all()
    assert np.asarray(new.written).tolist() == [9.0, 5.0, 0.0]


def test_reads_drift_from_the_last_pulse_on():
    device = set_pcm(noise=0)
    state = device.init((2,), jax.random.key(0), 0.0)
    state = device.pulse(state, jnp.array([3, 3]), jax.random.key(1), 100.0)
    np.testing.assert_array_equal(device.read(state, None, 100.0), state.g)
    later = device.read(state, None, 100.0 + 38.6 * (2.0**25 - 1))
    np.testing.assert_allclose(later, state.g / 2, rtol=1e-5)  # 2^25 to the power of -0.04
    reads = np.asarray(
        jax.vmap(lambda k: set_pcm().read(state, k, 100.0))(
            jax.random.split(jax.random.key(3), 20_000)
        )
    )
    expected = 0.13 + 0.03 * float(state.g[0])
    assert reads.std(0)[0] == pytest.approx(expected, rel=4 / np.sqrt(2 * 20_000))


def test_what_is_refused():
    device = set_pcm()
    state = device.init((2,), jax.random.key(0), 0.0)
    with pytest.raises(ValueError, match=r"counts are float32; a pulse count is an integer"):
        device.pulse(state, jnp.array([1.0, 0.5]), jax.random.key(1), 1.0)
    state = device.pulse(state, jnp.array([1, 1]), jax.random.key(1), 5.0)
    with pytest.raises(ValueError, match=r"t = 1 s, but a cell was written at 5 s"):
        device.pulse(state, jnp.array([1, 1]), jax.random.key(1), 1.0)
