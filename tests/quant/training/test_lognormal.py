"""Lognormal gradients: fit, pruning and formats against sampling, quadrature and exact values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.quant.training.lognormal import (
    Lognormal,
    best_split,
    fit,
    prune,
    sparsity,
    threshold_for,
)

pytestmark = pytest.mark.usefixtures("compile_quickly")


def sample(mu, sigma, n, seed=0):
    rng = np.random.default_rng(seed)
    x = np.exp(mu + sigma * rng.normal(size=n)) * rng.choice([-1, 1], n)
    return x.astype(np.float32)


@pytest.mark.parametrize(("mu", "sigma"), [(-7.0, 1.0), (-2.0, 2.5)])
def test_fit_finds_the_density_whatever_the_zeros(mu, sigma):
    n = 40_000
    x = sample(mu, sigma, n)
    found = fit(jnp.asarray(np.concatenate([x, np.zeros(3 * n, np.float32)])))
    logs = np.log(np.abs(x.astype(np.float64)))
    assert found.mu == pytest.approx(logs.mean(), rel=1e-4)
    assert found.sigma == pytest.approx(logs.std(), rel=1e-4)
    assert abs(found.mu - mu) < 4.5 * sigma / math.sqrt(n)
    assert abs(found.sigma - sigma) < 4.5 * sigma / math.sqrt(2 * n)
    assert [float(v) for v in fit(jnp.zeros(5))] == [0, 0]


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_sparsity_is_the_integral_and_the_threshold_its_inverse(sigma, share):
    mu = -4.0
    model = Lognormal(jnp.float32(mu), jnp.float32(sigma))
    a = float(threshold_for(share, model))
    t = np.linspace(-12, 12, 400_001)
    density = np.exp(-(t**2) / 2) / math.sqrt(2 * math.pi) * (t[1] - t[0])
    x = np.exp(mu + sigma * t)
    exact = float(((x < a) * (1 - x / a) * density).sum())  # zero with probability 1 - |x| / a
    assert exact == pytest.approx(share, abs=5e-5)
    assert float(sparsity(jnp.float32(a), model)) == pytest.approx(exact, abs=5e-5)
    jitted = jax.jit(lambda s: threshold_for(s, model))(jnp.float32(share))
    assert float(jitted) == pytest.approx(a, rel=1e-5)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_pruning_reaches_its_share_and_is_unbiased(share):
    n = 200_000
    x = sample(-6.0, 1.5, n, seed=2)
    a = threshold_for(share, fit(jnp.asarray(x)))
    pruned = np.asarray(jax.jit(prune)(jnp.asarray(x), a, jax.random.key(0)))
    zeros = (pruned == 0).mean()
    # of the draws; the fit of mu and sigma moves the share by less than that again
    assert abs(zeros - share) < 2 * 4.5 * math.sqrt(share * (1 - share) / n)
    large = np.abs(x) >= float(a)
    np.testing.assert_array_equal(pruned[large], x[large])
    assert set(np.unique(np.abs(pruned[~large]))) == {0, np.float32(a)}
    m = 20_000
    for value in (0.1, 0.5, 0.93):
        one = jnp.full(m, value, jnp.float32) * a
        mean = float(jnp.mean(prune(one, a, jax.random.key(1))) / a)
        assert abs(mean - value) < 4.5 * math.sqrt(value * (1 - value) / m)


def test_best_splits_are_those_of_a_search_by_sampling():
    """Independent of the code: nearest values from a list, errors from samples."""
    sigmas, rng = (1.0, 3.0, 5.0), np.random.default_rng(0)
    z = rng.normal(size=20_000)
    for bits in (4, 6, 8):
        for sigma in sigmas:
            x = np.exp(sigma * (z - 5.0))
            errors = {}
            for e in range(1, bits):
                m = bits - 1 - e
                codes = np.arange(2 ** (e + m))
                fields, fractions = codes >> m, codes % 2**m
                values = np.where(
                    fields > 0, (2**m + fractions) * 2.0 ** (fields - 1), fractions * 1.0
                )
                values /= values[-1]
                place = np.clip(np.searchsorted(values, x), 1, len(values) - 1)
                low, high = values[place - 1], values[place]
                q = np.where(x - low < high - x, low, high)
                errors[e, m] = np.abs(q / x - 1).mean()
            found, best = best_split(bits, sigma), min(errors, key=errors.get)
            assert errors[found] < errors[best] + 2e-3, (bits, sigma, found, best)


def test_published_ranges_of_the_splits():
    assert [best_split(4, s) for s in (1.0, 5.0)] == [(3, 0), (3, 0)]
    assert [best_split(8, s) for s in (1.0, 2.0, 3.0, 4.0)] == [(4, 3), (5, 2), (5, 2), (6, 1)]


def test_what_is_refused():
    model = Lognormal(jnp.float32(0), jnp.float32(1))
    with pytest.raises(ValueError, match="the share must be between 0 and 1"):
        threshold_for(1.0, model)
    with pytest.raises(ValueError, match="the share must be between 0 and 1"):
        threshold_for(1, model)
    for threshold in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"above 0, and its least value is {threshold}"):
            prune(jnp.ones(3), jnp.full(3, threshold).at[0].set(1.0), jax.random.key(0))
    with pytest.raises(ValueError, match="sigma must be above 0"):
        best_split(4, 0.0)
    with pytest.raises(ValueError, match="bits must be from 3 to 12"):
        best_split(2, 1.0)
