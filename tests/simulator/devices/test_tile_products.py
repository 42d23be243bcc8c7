"""Products of a tile: a dense reference in numpy, batches, times, noise as that of all cells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.kernels.normals import random_normals
from spikebit.simulator.devices import pcm
from spikebit.simulator.devices.tile import Converter, Tile, aged, compensation, matmul, program

pytestmark = pytest.mark.usefixtures("compile_quickly")
RNG = np.random.default_rng(0)
W = jnp.asarray(RNG.normal(size=(30, 12)).clip(-2, 2) / 2, jnp.float32)
# vectors that need no halving, one, and several: all of one sign drive the ADC to its bound
X = jnp.asarray(np.concatenate([RNG.normal(size=(4, 30)), np.abs(RNG.normal(size=(3, 30)))]))
X = X.astype(jnp.float32)
NOISY = Tile(pcm(), dac=Converter(1.0, 254), adc=Converter(2.0, 254), output_noise=0.04)
HOUR = 3600.0


@pytest.fixture(scope="module")
def held():
    return program(NOISY, W.at[:, 0].set(jnp.abs(W[:, 0])), jax.random.key(0))


@jax.jit
def at_an_hour(held, x, key):
    return matmul(NOISY, held, x, key, HOUR)


def converted(x, bound, levels):
    step = 2 * bound / levels
    return np.clip(np.round(x / step) * step, -bound, bound)


def by_numpy(held, x, key, t):
    """One vector after the other in float64, from the cells: the tile as its docstring has it."""
    t0, t_read, g_max = 20.0, 250e-9, 25.0
    g, nu = np.asarray(held.state.g, float), np.asarray(held.state.nu, float)
    drifted = g * ((t + t0) / t0) ** -nu
    q = np.minimum(0.0088 / np.maximum((g / g_max) ** 0.65, 1e-3), 0.2)
    spread = drifted * q * np.sqrt(np.log((t + t0 + t_read) / (2 * t_read)))
    unit = float(held.largest)
    scale = float(held.scale) / unit
    w = scale * (drifted[..., 0] - drifted[..., 1])
    variance = scale**2 * (spread**2).sum(-1)
    words = jax.random.bits(key, (2,), jnp.uint32)
    xi = np.asarray(random_normals(words, 0, (len(x), w.shape[1]))[0], float)
    rows, shares = [], []
    for vector, noise in zip(np.asarray(x, float), xi, strict=True):
        largest, share = np.abs(vector).max(), 1.0
        while True:
            given = converted(vector / largest * share, 1.0, 254)
            y = given @ w + np.sqrt(given**2 @ variance + 0.04**2) * noise
            if np.abs(y).max() < 2.0 or share <= 2.0**-10:
                break
            share /= 2
        rows.append(converted(y, 2.0, 254) / share * largest * unit)
        shares.append(share)
    return np.stack(rows), np.array(shares)


def test_a_batch_is_its_vectors_one_after_the_other_in_plain_numpy(held):
    y = at_an_hour(held, X, jax.random.key(1))
    exact, shares = by_numpy(held, X, jax.random.key(1), HOUR)
    assert len(set(shares)) >= 3
    step = np.abs(X).max(-1) / shares * 4 / 254  # of the ADC, where a rounding may fall otherwise
    off = np.abs(np.asarray(y) - exact)
    assert (off <= 1.01 * step[:, None]).all()
    assert np.mean(off < 1e-4) > 0.97
    np.testing.assert_allclose(
        at_an_hour(held, X.reshape(7, 1, 30), jax.random.key(1))[:, 0], y, atol=1e-5
    )


def test_a_vector_does_not_see_what_else_is_in_the_batch(held):
    y = at_an_hour(held, X, jax.random.key(2))
    for others in (X.at[:4].multiply(-3.0), X.at[5:].set(0.0), X[:5]):
        z = at_an_hour(held, others, jax.random.key(2))
        np.testing.assert_allclose(z[4], y[4], atol=1e-5)
    moved = at_an_hour(held, jnp.roll(X, 1, 0), jax.random.key(2))[5]
    assert not np.allclose(moved, y[4])  # another place, other noise


def test_a_tile_that_was_aged_is_the_tile_at_that_time(held):
    for compensate in (True, False):

        @jax.jit
        def both(held, keys, compensate=compensate):
            once = aged(NOISY, held, HOUR, compensate=compensate)
            own = matmul(NOISY, held, X, keys[0], HOUR, compensate=compensate)
            return once, matmul(NOISY, once, X, keys[1]), own

        once, same, own = both(held, (jax.random.key(3), jax.random.key(3)))
        np.testing.assert_allclose(same, own, rtol=1e-6)
        later = jax.jit(lambda k, once=once: matmul(NOISY, once, X, k))(jax.random.key(3))
        np.testing.assert_allclose(later, own, rtol=1e-5, atol=1e-5)
    factor = jax.jit(lambda h: aged(NOISY, h, HOUR, compensate=True).unit)(held) / once.unit
    known = jax.jit(lambda h: compensation(NOISY, h, HOUR))(held)
    np.testing.assert_allclose(factor, known, rtol=1e-5)
    for tile, t, options in (
        (once, HOUR, {}),
        (held, None, {}),
        (once, None, {"compensate": True}),
    ):
        with pytest.raises(ValueError, match="give the time and the compensation once"):
            matmul(NOISY, tile, X, None, t, **options)


def test_the_derivative_is_that_of_the_product_where_no_converter_cuts_off(held):
    once = jax.jit(lambda held: aged(NOISY, held, HOUR))(held)
    weights = np.asarray(once.w * once.unit)
    x = X.at[:, 0].set(4.0)  # the largest, so that the scale of a vector stays
    up = jnp.asarray(np.random.default_rng(5).normal(size=(7, 12)), jnp.float32)

    def product(x):
        return matmul(NOISY, once, x, jax.random.key(6))

    pulled = jax.jit(jax.grad(lambda x: jnp.sum(up * product(x))))(x)
    np.testing.assert_allclose(pulled[:, 1:], (up @ weights.T)[:, 1:], rtol=1e-4, atol=1e-5)
    others = jnp.ones_like(x).at[:, 0].set(0.0)
    turned = jax.jit(lambda x, v: jax.jvp(product, (x,), (v,))[1])(x, others)
    np.testing.assert_allclose(turned, np.tile(weights[1:].sum(0), (7, 1)), rtol=1e-4, atol=1e-5)


def test_one_gaussian_an_output_has_the_covariance_of_a_read_of_every_cell():
    """Exactly: the sum over cells of x^2 sigma^2 on the diagonal, and nothing beside it."""
    device, n, x = pcm(), 3000, X[4]
    tile = Tile(device, dac=None, adc=None, output_noise=0.05)
    held = program(tile, W, jax.random.key(7))
    spread = np.asarray(device.spread(held.state, HOUR), float) * float(held.scale)
    unit = float(jnp.abs(x).max() * held.largest)
    diagonal = np.asarray(x, float) ** 2 @ (spread**2).sum(-1) + (0.05 * unit) ** 2
    exact = matmul(tile, held, x, None, HOUR)
    y = matmul(tile, held, jnp.broadcast_to(x, (n, 30)), jax.random.key(8), HOUR) - exact
    y = np.asarray(y, float)
    size = np.sqrt(np.outer(diagonal, diagonal))
    found = (y.T @ y / n - np.diag(diagonal)) / size  # standard errors sqrt(2 / n), sqrt(1 / n)
    assert (np.abs(found) < np.where(np.eye(12), 4 * np.sqrt(2), 4) / np.sqrt(n)).all()
    assert (np.abs(y.mean(0)) < 4 * np.sqrt(diagonal / n)).all()
    fourth = (y**4).mean(0) / diagonal**2  # 3, with a variance of 96 / n
    assert (np.abs(fourth - 3) < 4.5 * np.sqrt(96 / n)).all()
