"""Homeostasis, normalised weights and lateral inhibition: fixed points and exact identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.learning_rules import (
    SynapticScaling,
    apply_update,
    lateral_inhibition,
    normalised,
    threshold_change,
    winner_takes_all,
)

EPS = float(np.finfo(np.float32).eps)


def test_scaling_follows_the_averaged_rate_and_keeps_ratios():
    """r after k spikes in a row is target l^k + (1 - l^k) / dt, per unit and batch mean."""
    rule = SynapticScaling(target=0.01, rate=0.3, tau=20.0, dt=2.0)
    weights = jnp.array([[0.2, 0.4], [0.1, 0.8]])
    post = jnp.array([[1.0, 0.0], [0.0, 0.0]])  # unit 0 fires in one of two samples
    rates = rule.init((2, 2))
    for k in (1, 2, 3):
        rates, delta = rule.step(rates, weights, post)
        left = np.exp(-k * 2 / 20)
        busy, quiet = 0.01 * left + (1 - left) / 2, 0.01 * left
        error = 0.01 - np.array([(busy + quiet) / 2, quiet])
        np.testing.assert_allclose(rates, [[busy, quiet], [quiet, quiet]], rtol=20 * EPS)
        # 0.01 - r cancels: absolute, in roundings of r
        expected = 0.3 * 2 * np.asarray(weights) * error
        np.testing.assert_allclose(delta, expected, atol=0.6 * 0.8 * 20 * EPS * busy)
        assert (delta[:, 0] < 0).all()
        assert (delta[:, 1] > 0).all()


def test_at_the_target_nothing_moves():
    rule = SynapticScaling(target=0.25)
    rates, delta = rule.step(rule.init((1,)), jnp.ones((3, 1)), jnp.array([0.25]))
    np.testing.assert_array_equal(delta, 0)
    np.testing.assert_array_equal(rates, 0.25)


def test_scaling_brings_a_unit_to_its_target():
    """A unit whose rate is its summed weight ends at the target, from either side."""
    rule = SynapticScaling(target=0.3, rate=0.05, tau=5.0)

    def step(carry, _):
        rates, weights = carry
        rates, delta = rule.step(rates, weights, weights.sum(0))
        return (rates, apply_update(rule, weights, delta)), None

    weights = jnp.array([[0.2, 0.01], [0.6, 0.03]])
    start = rule.init((2,)), weights
    (rates, ended), _ = jax.jit(lambda s: jax.lax.scan(step, s, length=2000))(start)
    np.testing.assert_allclose(ended.sum(0), 0.3, rtol=1e-4)
    np.testing.assert_allclose(rates, 0.3, rtol=1e-4)
    np.testing.assert_allclose(ended[1] / ended[0], 3.0, rtol=1e-4)


def test_thresholds_hold_the_mean_rate_whatever_the_drive():
    """sum(s) / T - p* is the change of the threshold over alpha T, exactly, so the rates agree."""
    steps, p, alpha = 3000, 0.1, 0.05
    drive = jax.random.uniform(jax.random.key(0), (steps, 4)) * jnp.array([0.5, 1.0, 3.0, 9.0])

    def step(threshold, x):
        spikes = (x > threshold).astype(jnp.float32)
        return threshold + threshold_change(spikes, p, alpha), spikes

    start = jnp.zeros(4)
    threshold, spikes = jax.jit(lambda t: jax.lax.scan(step, t, drive))(start)
    counts = np.asarray(spikes, np.float64).sum(0)
    # a threshold of up to 9 rounds at each of the steps
    np.testing.assert_allclose(threshold, alpha * (counts - steps * p), atol=steps * 9 * EPS)
    np.testing.assert_allclose(counts / steps, p, atol=9.1 / (alpha * steps))
    batch = threshold_change(spikes[:6].reshape(2, 3, 4), p, alpha)
    np.testing.assert_allclose(batch, alpha * (np.asarray(spikes)[:6].mean(0) - p), atol=4 * EPS)


@pytest.mark.parametrize("order", [1, 2])
def test_normalised_columns_have_the_norm_and_the_direction(order):
    weights = jax.random.normal(jax.random.key(1), (50, 4)) * jnp.array([1e-30, 1.0, 1e30, 0.0])
    got = np.asarray(normalised(weights, 3.0, order=order), np.float64)
    norm = np.linalg.norm(got, order, axis=0)
    np.testing.assert_allclose(norm, [3, 3, 3, 0], rtol=50 * EPS)
    before = np.asarray(weights, np.float64)[:, :3]
    cosine = (got[:, :3] * before).sum(0) / np.linalg.norm(before, axis=0)
    np.testing.assert_allclose(cosine / np.linalg.norm(got[:, :3], axis=0), 1, rtol=50 * EPS)
    slope = jax.grad(lambda w: normalised(w, 3.0, order=order)[0].sum())(weights[:, 1::2])
    assert np.isfinite(slope).all()  # also of the column of zeros


def test_inhibition_comes_from_the_others():
    spikes = (jax.random.uniform(jax.random.key(2), (3, 5)) < 0.5).astype(jnp.float32)
    expected = np.asarray(spikes) @ (0.5 * (1 - np.eye(5)))
    np.testing.assert_array_equal(lateral_inhibition(spikes, 0.5), expected)


def test_only_the_winner_spikes():
    spikes = jnp.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    potential = jnp.array([[1.0, 2.0, 3.0], [9.0, 1.0, 1.0], [5.0, -2.0, -2.0]])
    won = [[0, 1, 0], [0, 0, 0], [0, 1, 0]]
    np.testing.assert_array_equal(winner_takes_all(spikes, potential), won)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"SynapticScaling: target is 0\.0; it must be a positive"):
        SynapticScaling(target=0.0)
    rule = SynapticScaling(target=0.1)
    for post, w in (((2,), (3, 1)), ((0, 1), (3, 1))):
        with pytest.raises(ValueError, match=r"SynapticScaling\.step: .*init\(post\.shape\)"):
            rule.step(rule.init(post), jnp.ones(w), jnp.zeros(post))
    with pytest.raises(ValueError, match=r"spikes of shape \(0, 3\) have no mean"):
        threshold_change(jnp.zeros((0, 3)), 0.1, 0.1)
    with pytest.raises(ValueError, match=r"order is 3 and total 1\.0; the order must be 1 or 2"):
        normalised(jnp.ones((2, 2)), 1.0, order=3)
    with pytest.raises(ValueError, match="total a positive number"):
        normalised(jnp.ones((2, 2)), 0.0)
