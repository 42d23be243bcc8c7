"""Coloured noise: its covariance, its rank, its derivative, on weights and in a network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spikebit.learning_rules import bptt, losses, parameters, with_new_noise
from spikebit.quant.training import (
    ActivationNoise,
    add_noise,
    coloured_noise,
    noisy_weights,
    weight_noise,
    with_noise,
)
from spikebit.quant.training.coloured_noise import ColouredNoise, covariance
from spikebit.simulator.network import Network

pytestmark = pytest.mark.usefixtures("compile_quickly")
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 3)), jnp.float32)
NOISE = ColouredNoise(
    jnp.asarray(RNG.uniform(-0.5, 0.5, (2, 3)), jnp.float32),
    jnp.asarray(RNG.normal(size=(2, 3, 2)), jnp.float32),
)


def key(seed=0):
    return jax.random.key(seed)


def draws(noise, n=40_000, **settings):
    """Noise of n draws, (n, 6): samples of a batch draw their own."""
    batch = jnp.broadcast_to(X, (n, *X.shape))
    noisy = jax.jit(lambda noise: add_noise(noise, batch, key(1), **settings) - batch)(noise)
    return np.asarray(noisy, float).reshape(n, -1)


@pytest.mark.parametrize("unit", ["variance", "std", "one"])
def test_mean_and_covariance_are_those_of_the_formula(unit):
    n = 40_000
    scale = {"variance": np.var(X), "std": np.std(X), "one": 1}[unit]
    factors = np.asarray(NOISE.factors, float).reshape(6, 2)
    exact = np.diag(np.abs(np.asarray(NOISE.diagonal)).ravel() * scale) + factors @ factors.T
    np.testing.assert_allclose(covariance(NOISE, X, unit), exact, rtol=1e-5, atol=1e-6)
    z = draws(NOISE, n, unit=unit)
    assert (np.abs(z.mean(0)) < 4.5 * np.sqrt(np.diag(exact) / n)).all()
    error = np.sqrt((np.outer(np.diag(exact), np.diag(exact)) + exact**2) / n)
    assert (np.abs(z.T @ z / n - exact) < 4.5 * error).all()


def test_without_its_diagonal_the_noise_has_the_rank_of_its_factors():
    z = draws(NOISE._replace(diagonal=jnp.zeros(())), 200)
    assert np.linalg.matrix_rank(z, tol=1e-4) == 2
    assert np.linalg.matrix_rank(draws(NOISE, 200), tol=1e-4) == 6
    white = coloured_noise((2, 3), rank=0, diagonal=0.5**2)  # a share of 0.5 of the deviation
    assert (white.diagonal.shape, white.factors.size) == ((), 0)
    np.testing.assert_allclose(covariance(white, X), 0.25 * np.var(X) * np.eye(6), rtol=1e-5)


def test_samples_draw_their_own_noise_or_share_one():
    batch = jnp.stack([X, 2 * X, X])
    own = np.asarray(add_noise(NOISE, batch, key()) - batch)
    assert np.abs(own[0] - own[2]).min() > 1e-4
    one = np.asarray(add_noise(NOISE, batch, key(), shared=True, unit="one") - batch)
    np.testing.assert_allclose(one[0], one[1], atol=1e-5)
    alone = add_noise(NOISE, jnp.stack([X, 9 * X, 0 * X]), key())  # others of the batch differ
    np.testing.assert_allclose(alone[0], own[0] + X, rtol=1e-5, atol=1e-6)


def test_derivatives_are_those_of_the_equation_and_finite_at_zero():
    def total(noise, x):
        return (W * add_noise(noise, x, key(2))).sum()

    W = jnp.asarray(RNG.normal(size=(2, 3)), jnp.float32)
    slopes, total = jax.jit(jax.grad(total, (0, 1))), jax.jit(total)
    by_noise, by_x = slopes(NOISE, X)
    h = 1e-3
    for name in ("diagonal", "factors"):
        direction = jnp.asarray(RNG.normal(size=getattr(NOISE, name).shape), jnp.float32)
        ends = [
            float(total(NOISE._replace(**{name: getattr(NOISE, name) + s * direction}), X))
            for s in (h, -h)
        ]
        slope = float((getattr(by_noise, name) * direction).sum())
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(slope, rel=0.01, abs=5e-3)
    step = 1e-2 * W
    difference = float(total(NOISE, X + step) - total(NOISE, X - step)) / 2
    assert difference == pytest.approx(float((by_x * step).sum()), rel=1e-2)
    still = slopes(NOISE._replace(diagonal=jnp.zeros((2, 3))), jnp.ones((2, 3)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(still))


def test_matrices_of_a_tree_get_noise_and_other_leaves_none():
    params = {"w": X, "b": jnp.ones(3)}
    noises = weight_noise(params, 2, factors=0.5)
    assert noises["b"] is None
    assert noises["w"].factors.shape == (2, 3, 2)
    noisy = noisy_weights(noises, params, key())
    np.testing.assert_array_equal(noisy["b"], params["b"])
    n = 20_000
    z = jax.vmap(lambda k: noisy_weights(noises, params, k)["w"])(jax.random.split(key(), n)) - X
    z, exact = np.asarray(z, float).reshape(n, 6), np.asarray(covariance(noises["w"], X), float)
    error = np.sqrt((np.outer(np.diag(exact), np.diag(exact)) + exact**2) / n)
    assert (np.abs(z.T @ z / n - exact) < 4.5 * error).all()


def test_a_layer_of_noise_learns_inside_a_network():
    rngs = nnx.Rngs(0)
    layers = [nnx.Linear(4, 3, rngs=rngs), ActivationNoise((3,), 2), nnx.Linear(3, 2, rngs=rngs)]
    network = Network(layers)
    x = jnp.asarray(RNG.normal(size=(1, 5, 4)), jnp.float32)
    targets = jnp.zeros((1, 5), int)
    rule = with_new_noise(bptt)(network, losses.cross_entropy)
    params = parameters(network)
    state = rule.init(params, x, key=key())
    grads = jax.jit(rule.step)(params, state, x, targets)[1].grads

    own = jax.random.split(jax.random.clone(state.key))[0]  # as the rule does

    def by_hand(params):
        graphdef, _, rest = nnx.split(with_noise(network, own), nnx.Param, ...)
        first, noise, last = nnx.merge(graphdef, params, rest).layers
        noise = (
            ColouredNoise(noise.diagonal[...], noise.factors[...]),
            jax.random.wrap_key_data(noise.noise[...]),
        )
        y = last(add_noise(noise[0], first(x[0]), noise[1]))
        return losses.cross_entropy(y, targets[0]).mean()

    expected = jax.jit(jax.grad(by_hand))(params)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        assert np.abs(b).max() > 1e-4  # all of them learn, noise too


def test_what_is_refused():
    with pytest.raises(ValueError, match="rank is -1; it must be at least 0"):
        coloured_noise((3,), -1)
    with pytest.raises(ValueError, match=r"a diagonal of shape \(2,\) does not fit .* \(3,\)"):
        coloured_noise((3,), diagonal=jnp.ones(2))
    with pytest.raises(ValueError, match=r"x has shape \(2, 4\), and the noise is .* \(2, 3\)"):
        add_noise(NOISE, jnp.ones((2, 4)), key())
    with pytest.raises(ValueError, match="unit is 'volt'; choose one of variance, std, one"):
        add_noise(NOISE, X, key(), unit="volt")
    with pytest.raises(ValueError, match=r"x has shape \(5, 2, 3\), the noise \(2, 3\); give one"):
        covariance(NOISE, jnp.ones((5, 2, 3)))
