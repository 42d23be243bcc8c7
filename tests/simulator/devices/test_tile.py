"""A tile: converters, noise at the outputs against noise in the cells, bounds, compensation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.simulator.devices import ReferenceColumn, pcm, set_pcm
from spikebit.simulator.devices.tile import (
    Converter,
    Tile,
    compensation,
    matmul,
    program,
    weights,
)

pytestmark = pytest.mark.usefixtures("compile_quickly")
EXACT = pcm(programming_noise=0, drift=0, read_noise=0)
PLAIN = Tile(EXACT, dac=None, adc=None)
W = jnp.asarray(np.random.default_rng(0).normal(size=(40, 20)).clip(-2, 2), jnp.float32)
X = jnp.asarray(np.random.default_rng(1).normal(size=(7, 40)), jnp.float32)


product = jax.jit(matmul, static_argnums=0, static_argnames="compensate")
written = jax.jit(program, static_argnums=0)


def key(seed=0):
    return jax.random.key(seed)


def test_a_converter_is_a_grid_that_is_odd_and_exact_at_its_bounds():
    convert = Converter(bound=2.0, levels=16)
    step = 0.25
    x = jnp.linspace(-3, 3, 4001)
    y = np.asarray(convert(x), float)
    np.testing.assert_array_equal(convert(convert(x)), y)
    np.testing.assert_array_equal(convert(-x), -y)
    assert (np.diff(y) >= 0).all()
    inside = np.abs(np.asarray(x)) <= 2
    assert np.abs(y - np.asarray(x))[inside].max() <= step / 2 + 1e-6
    np.testing.assert_array_equal(convert(jnp.array([2.0, -2.0, 9.0])), [2, -2, 2])
    np.testing.assert_array_equal(convert(jnp.array([0.125, 0.375])), [0.0, 0.5])  # half to even
    slope = jax.vmap(jax.grad(convert))(jnp.array([0.3, 5.0]))
    np.testing.assert_array_equal(slope, [1, 0])
    at_bounds = jax.vmap(jax.grad(convert))(jnp.array([2.0, -2.0]))
    np.testing.assert_array_equal(at_bounds, 1)
    for settings in ({"levels": 0}, {"levels": 3}, {"bound": -1.0}):
        with pytest.raises(ValueError, match=r"an even number of levels, so that 0 is on the gri"):
            Converter(**settings)


def test_the_derivative_is_that_of_the_product_at_the_largest_inputs_too():
    """Spikes are all of the largest size, on the bound of the DAC."""
    tile = Tile(EXACT)
    held, spikes = written(tile, W, key()), (X > 0).astype(jnp.float32)
    pulled = jax.jit(jax.grad(lambda x: matmul(tile, held, x, None, 0.0).sum()))(spikes)
    np.testing.assert_allclose(pulled, jnp.broadcast_to(W.sum(1), X.shape), rtol=1e-4, atol=1e-4)


def test_a_tile_without_errors_is_a_matrix_product():
    held = written(PLAIN, W, key())
    np.testing.assert_allclose(product(PLAIN, held, X, None, 0.0), X @ W, rtol=2e-5, atol=2e-5)
    pulled = jax.jit(jax.grad(lambda x: matmul(PLAIN, held, x, None, 0.0).sum()))(X)
    np.testing.assert_allclose(pulled, jnp.broadcast_to(W.sum(1), X.shape), rtol=1e-4, atol=1e-4)
    zero = written(PLAIN, jnp.zeros((3, 2)), key())
    np.testing.assert_array_equal(product(PLAIN, zero, jnp.ones((1, 3)), None, 0.0), 0)


def test_noise_at_the_outputs_is_that_of_all_cells_read_for_the_vector():
    device = pcm(programming_noise=0, drift=0)
    tile = Tile(device, dac=None, adc=None)
    held, n = written(tile, W, key()), 4000
    y = product(tile, held, jnp.broadcast_to(X[0], (n, 40)), key(1), 100.0)

    def by_cells(k):
        g = device.read(held.state, k, 100.0)
        return X[0] @ (held.scale * (g[..., 0] - g[..., 1]))

    z = jax.jit(jax.vmap(by_cells))(jax.random.split(key(2), n))
    exact = X[0] @ W
    std = np.asarray(z).std(0)
    for sample in (y, z):
        assert (np.abs(np.asarray(sample).mean(0) - exact) < 4.5 * std / np.sqrt(n)).all()
    np.testing.assert_allclose(np.asarray(y).std(0), std, rtol=4.5 / np.sqrt(n))


def test_outputs_share_the_noise_of_a_reference_column():
    """Covariance of the outputs of one vector, against reads of all cells."""
    layout, device, n = ReferenceColumn(), pcm(programming_noise=0, drift=0), 8000
    tile = Tile(device, layout, dac=None, adc=None)
    held = written(tile, W[:, :3], key())
    y = np.asarray(product(tile, held, jnp.broadcast_to(X[0], (n, 40)), key(1), 100.0))

    def by_cells(k):
        return X[0] @ (held.scale * layout.read(device, held.state, k, 100.0))

    z = np.asarray(jax.jit(jax.vmap(by_cells))(jax.random.split(key(2), n)))
    found, wanted = np.cov(y.T), np.cov(z.T)
    size = np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
    # each of two covariances is off by at most its variances' sqrt(2 / n)
    np.testing.assert_array_less(np.abs(found - wanted) / size, 4 * np.sqrt(2) * np.sqrt(2 / n))
    assert (wanted / size > 0.3).all()


def test_bounds_are_managed_for_each_vector_by_itself():
    tile = Tile(EXACT, dac=None, adc=Converter(3.0, 600))
    held = written(tile, jnp.ones((40, 2)), key())
    loud, quiet = jnp.ones(40), jnp.zeros(40).at[0].set(1.0)
    alone = product(tile, held, quiet[None], None, 0.0)
    both = product(tile, held, jnp.stack([quiet, loud]), None, 0.0)
    np.testing.assert_array_equal(alone[0], both[0])
    np.testing.assert_allclose(both[1], 40.0, atol=0.01 / 2 * 16)  # of a sixteenth of the input
    bounded = product(tile._replace(manage_bounds=False), held, loud[None], None, 0.0)
    np.testing.assert_allclose(bounded, 3.0, rtol=1e-6)


def test_converters_take_their_share_of_the_error():
    tile = Tile(EXACT, dac=Converter(1.0, 14), adc=None)
    held = written(tile, W, key())
    largest = jnp.abs(X).max(-1, keepdims=True)
    expected = (jnp.round(X / largest * 7) / 7 * largest) @ W
    np.testing.assert_allclose(product(tile, held, X, None, 0.0), expected, rtol=1e-4, atol=1e-4)


def test_compensation_undoes_the_drift_that_cells_have_in_common():
    device = pcm(programming_noise=0, read_noise=0)
    tile = Tile(device, dac=None, adc=None)
    held = written(tile, W, key())
    common = held._replace(state=held.state._replace(nu=jnp.full_like(held.state.nu, 0.06)))
    year = product(tile, common, X, None, 3.15e7, compensate=True)
    np.testing.assert_allclose(year, X @ W, rtol=1e-4, atol=1e-4)
    assert float(compensation(tile, common, 3.15e7)) == pytest.approx(
        (3.15e7 / 20 + 1) ** 0.06, rel=1e-4
    )
    noisy = Tile(pcm(), dac=None, adc=None)
    held = written(noisy, W, key(3))
    error = {}
    for on in (True, False):
        y = product(noisy, held, X, key(4), 3.15e7, compensate=on)
        error[on] = float(jnp.linalg.norm(y - X @ W) / jnp.linalg.norm(X @ W))
    assert error[True] < 0.4 * error[False]
    drifted = np.asarray(weights(noisy, held, 3.15e7))
    assert np.abs(drifted).mean() < np.abs(np.asarray(W)).mean()


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"set_pcm takes pulses only"):
        program(Tile(set_pcm()), W, key())
    with pytest.raises(ValueError, match=r"weights of shape \(3,\); a tile holds a matrix"):
        program(PLAIN, jnp.ones(3), key())
    with pytest.raises(ValueError, match=r"2 weights are NaN; a cell cannot hold that"):
        program(PLAIN, W.at[3, :2].set(jnp.nan), key())
    with pytest.raises(ValueError, match=r"output_noise is -1.0 and ir_drop 0.0; give 0 or more"):
        program(Tile(EXACT, output_noise=-1.0), W, key())
    held = program(PLAIN, W, key())
    with pytest.raises(ValueError, match=r"inputs of shape \(7, 5\) for a tile of 40 lines"):
        matmul(PLAIN, held, X[:, :5], None, 0.0)
