"""Losses by their definitions, and the comparison of rules by what it must report."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spikebit import learning_rules as rules
from spikebit.simulator import Network, SoftSNUCell


def test_losses_are_their_definitions():
    y = jax.random.normal(jax.random.key(0), (4, 3))
    labels = jnp.array([0, 2, 1, 1])
    bits = jnp.array([[0.0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 0]])
    z = np.asarray(y, np.float64)
    softmax = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    nll = -np.log(softmax[np.arange(4), labels])
    np.testing.assert_allclose(rules.losses.cross_entropy(y, labels), nll, rtol=1e-5)
    p = 1 / (1 + np.exp(-z))
    binary = -(bits * np.log(p) + (1 - bits) * np.log(1 - p)).sum(1)
    np.testing.assert_allclose(rules.losses.sigmoid_cross_entropy(y, bits), binary, rtol=1e-5)
    half = 0.5 * ((z - bits) ** 2).sum(1)
    np.testing.assert_allclose(rules.losses.squared_error(y, bits), half, rtol=1e-5)


def test_distances_of_trees():
    a = {"x": jnp.array([3.0, 0.0]), "y": jnp.array([4.0])}
    b = {"x": jnp.array([0.0, 0.0]), "y": jnp.array([4.0])}
    assert rules.relative_error(a, b) == pytest.approx(3 / 4)
    assert rules.cosine(a, b) == pytest.approx(4 / 5)
    assert rules.relative_error(a, a) == 0
    lost = {"x": jnp.array([jnp.nan, 0.0]), "y": jnp.array([4.0])}
    assert np.isnan(rules.relative_error(lost, a))


def test_compare_tells_exact_from_approximate_and_flat_from_growing():
    rngs = nnx.Rngs(0)
    network = Network([SoftSNUCell(4, 6, recurrent=True, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)])
    loss = rules.losses.squared_error
    table = {
        "bptt": rules.bptt(network, loss),
        "full": rules.ostl(network, loss),
        "no_h": rules.ostl(network, loss, scope="no_h"),
    }

    def rows(steps):
        xs = jax.random.normal(jax.random.key(1), (steps, 2, 4))
        got = rules.compare(network, loss, xs, jnp.ones((steps, 2, 3)), table, repeats=1)
        return {row["rule"]: row for row in got}

    short, long = rows(20), rows(200)
    assert list(short) == ["bptt", "full", "no_h"]
    assert short["bptt"]["relative_error"] == 0
    assert short["full"]["relative_error"] <= 1e-5 < 1e-3 < short["no_h"]["relative_error"]
    assert short["full"]["cosine"] > 1 - 1e-9 > short["no_h"]["cosine"] > 0
    assert all(row["step_ms"] > 0 for row in short.values())
    grown = {name: long[name]["peak_bytes"] / short[name]["peak_bytes"] for name in table}
    assert grown["bptt"] > 4 > 1.2 > grown["full"]
    assert grown["no_h"] < 1.2
