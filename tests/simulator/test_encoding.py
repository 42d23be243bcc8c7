"""Encoders: their statistics, their closed forms, and what they refuse."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.simulator import encoding


def test_direct_repeats_the_values():
    x = jnp.arange(6.0).reshape(2, 3)
    xs = encoding.direct(x, 4)
    assert xs.shape == (4, 2, 3)
    assert (xs == x).all()


def test_rows_are_the_pixels_in_their_order():
    images = np.arange(2 * 6.0, dtype=np.float32).reshape(2, 6)
    np.testing.assert_array_equal(
        encoding.rows(images, 3), [[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]]
    )
    assert encoding.rows(images, 6).shape == (6, 2, 1)
    with pytest.raises(ValueError, match=r"rows\(steps=4\) cannot cut the 6 pixels"):
        encoding.rows(images, 4)


def test_poisson_counts_follow_the_binomial_law():
    x = jnp.linspace(0, 1, 11)
    steps, rate, dt = 20_000, 400.0, 1e-3
    spikes = encoding.poisson(x, steps, jax.random.key(3), rate, dt)
    assert spikes.shape == (steps, 11)
    assert spikes.dtype == x.dtype
    assert set(np.unique(spikes)) == {0.0, 1.0}
    p = np.asarray(x) * rate * dt
    sigma = np.sqrt(steps * p * (1 - p))
    assert (np.abs(spikes.sum(0) - steps * p) <= 4.5 * sigma).all()
    assert abs(spikes.sum() - steps * p.sum()) <= 4.5 * np.sqrt((sigma**2).sum())
    # independent steps: neighbours coincide with probability p^2
    pairs = (spikes[1:] * spikes[:-1]).sum(0)
    # variance of the pair count of a Bernoulli train: n p^2 (1 - p^2) + 2 n p^3 (1 - p)
    sigma = np.sqrt(steps * (p**2 * (1 - p**2) + 2 * p**3 * (1 - p)))
    assert (np.abs(pairs - steps * p**2) <= 4.5 * sigma).all()


def test_poisson_at_its_ends_and_with_equal_keys():
    x = jnp.array([0.0, 1.0, jnp.nan])
    spikes = encoding.poisson(x, 50, jax.random.key(0), max_rate=1000, dt=1e-3)
    assert spikes.sum(0).tolist() == [0, 50, 0]
    half = jnp.full((5, 7), 0.5)
    one, same, other = (encoding.poisson(half, 9, jax.random.key(k)) for k in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


def test_linear_latency_is_its_closed_form():
    x = np.array([[1.0, 0.75, 0.5], [0.25, 1e-6, 0.0]], np.float32)
    spikes = encoding.latency(x, 9)
    expected = np.zeros((9, 2, 3))
    for index, step in {(0, 0): 0, (0, 1): 2, (0, 2): 4, (1, 0): 6, (1, 1): 8}.items():
        expected[(step, *index)] = 1
    np.testing.assert_array_equal(spikes, expected)
    assert not encoding.latency(jnp.array([jnp.nan]), 9).any()


def test_logarithmic_latency_is_when_a_leaky_membrane_crosses():
    tau, threshold, dt, steps = 20e-3, 0.2, 1e-3, 40
    x = np.array([1.0, 0.7, 0.45, 0.3, 0.25, 0.2, 0.1, 0.0])
    spikes = np.asarray(encoding.latency(jnp.array(x, jnp.float32), steps, tau, threshold, dt))
    expected = np.zeros((steps, len(x)))
    for i, current in enumerate(x):
        for k in range(steps):  # v(t) = x (1 - exp(-t / tau)) crosses within step k
            before, after = (current * (1 - math.exp(-t * dt / tau)) for t in (k, k + 1))
            expected[k, i] = before <= threshold < after
    assert expected.sum(0).tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    np.testing.assert_array_equal(spikes, expected)
    short = encoding.latency(jnp.array([0.25]), 10, tau, threshold, dt)  # it would spike at step 32
    assert not short.any()


def slow_signal(steps=200, seed=5, largest_change=0.09):
    change = np.random.default_rng(seed).uniform(-largest_change, largest_change, (steps, 3))
    return np.cumsum(change, axis=0).astype(np.float32) + np.float32(0.7)


def test_delta_events_rebuild_a_slow_signal_within_the_threshold():
    xs, threshold = slow_signal(), 0.1
    events = np.asarray(encoding.delta(xs, threshold))
    on, off = events[..., :3], events[..., 3:]
    assert on.any()
    assert off.any()
    assert not (on * off).any()
    assert not events[0].any()
    rebuilt = xs[0] + threshold * np.cumsum(on - off, axis=0)
    # 200 float32 additions of numbers below 8: 200 half ulps of 8
    assert (np.abs(rebuilt - xs) <= threshold + 200 * 2.4e-7).all()
    signed = encoding.delta(xs, threshold, signed=True)
    np.testing.assert_array_equal(signed, on - off)


def test_delta_of_a_ramp_and_of_a_step():
    ramp = np.arange(9, dtype=np.float32)[:, None] / 4  # 0.25 a step, threshold 0.5
    assert encoding.delta(ramp, 0.5)[:, 0].tolist() == [0, 0, 1, 0, 1, 0, 1, 0, 1]
    jump = np.array([0, -1, -1, -1], np.float32)[:, None]  # caught up with one event a step
    assert encoding.delta(jump, 0.5, signed=True)[:, 0].tolist() == [0, -1, -1, 0]


def test_encoders_run_under_jit_where_values_cannot_be_checked():
    x = jnp.array([[0.2, 0.9]])
    drawn = [
        jax.jit(lambda x, key: encoding.poisson(x, 8, key))(x, jax.random.key(4)),
        encoding.poisson(x, 8, jax.random.key(4)),
    ]
    np.testing.assert_array_equal(*drawn)
    np.testing.assert_array_equal(
        jax.jit(lambda x: encoding.latency(x, 8))(x), encoding.latency(x, 8)
    )
    xs = jnp.array(slow_signal(20))
    np.testing.assert_array_equal(jax.jit(encoding.delta)(xs), encoding.delta(xs))


@pytest.mark.parametrize("x", [[0.5, 1.2], [-0.1, 0.5], [np.nan, 255.0]])
def test_intensities_out_of_range_are_refused(x):
    with pytest.raises(ValueError, match=r"poisson takes intensities in \[0, 1\]; got values from"):
        encoding.poisson(jnp.array(x), 3, jax.random.key(0))
    with pytest.raises(ValueError, match="latency takes intensities"):
        encoding.latency(np.array(x), 3)


def test_settings_out_of_range_are_refused():
    x, key = jnp.array([0.5]), jax.random.key(0)
    with pytest.raises(ValueError, match=r"poisson needs .* max_rate=2000"):
        encoding.poisson(x, 3, key, max_rate=2000, dt=1e-3)
    with pytest.raises(ValueError, match="poisson needs"):
        encoding.poisson(x, 3, key, max_rate=-1)
    with pytest.raises(ValueError, match=r"direct needs a whole number of steps >= 1; got 0"):
        encoding.direct(x, 0)
    with pytest.raises(ValueError, match="latency needs tau > 0"):
        encoding.latency(x, 3, tau=-1e-3)
    with pytest.raises(ValueError, match=r"0 < threshold < 1; got .*threshold=1"):
        encoding.latency(x, 3, tau=1e-3, threshold=1)
    with pytest.raises(ValueError, match="delta needs a threshold > 0"):
        encoding.delta(x[:, None], threshold=0)
