"""Matrices over several tiles, calibrated input ranges, and what wires take, to first order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.simulator.devices import ir_drop, pcm, tile, tiled
from spikebit.simulator.devices.tile import Converter, Tile

pytestmark = pytest.mark.usefixtures("compile_quickly")
EXACT = pcm(programming_noise=0, drift=0, read_noise=0)
PLAIN = Tile(EXACT, dac=None, adc=None)
RNG = np.random.default_rng(0)
W = jnp.asarray(RNG.normal(size=(50, 21)), jnp.float32)
X = jnp.asarray(RNG.normal(size=(6, 50)), jnp.float32)


def key(seed=0):
    return jax.random.key(seed)


def written(built, w, seed=0, **settings):
    return jax.jit(lambda w, k: tiled.program(built, w, k, **settings))(w, key(seed))


def product(built, held, x, key=None, t=0.0, **settings):
    def at_once(held, x, key):
        return tiled.matmul(built, tiled.aged(built, held, t, **settings), x, key)

    return jax.jit(at_once)(held, x, key)


@pytest.mark.parametrize(("n", "most"), [(1, 9), (50, 50), (50, 49), (784, 512), (7, 2), (6, 1)])
def test_parts_hold_each_line_once_and_are_as_few_and_as_even_as_can_be(n, most):
    parts = tiled.parts(n, most)
    lines = [i for part in parts for i in range(part.start, part.stop)]
    assert lines == list(range(n))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) <= most
    assert len(sizes) == int(np.ceil(n / most))
    assert max(sizes) - min(sizes) <= 1


def test_exact_tiles_are_the_product_however_it_is_split():
    for rows, columns in ((512, 256), (20, 11)):
        y = product(PLAIN, written(PLAIN, W, rows=rows, columns=columns), X[None])
        np.testing.assert_allclose(y, (X @ W)[None], rtol=1e-4, atol=1e-4)


def test_each_tile_has_its_own_scale_converters_noise_and_compensation():
    built = Tile(pcm(), dac=Converter(1.0, 30), adc=Converter(4.0, 60))
    uneven = W.at[:25].multiply(10)
    held = written(built, uneven, rows=25, columns=11)
    assert [float(p.largest) for row in held.parts for p in row] == [
        float(jnp.abs(uneven[r, c]).max()) for r in tiled.parts(50, 25) for c in tiled.parts(21, 11)
    ]

    @jax.jit
    def by_hand(held, key):
        keys = jax.random.split(key, (2, 2))
        return sum(
            jnp.concatenate(
                [
                    tile.matmul(built, part, X[:, r], k, 3.15e7, compensate=True)
                    for part, k in zip(held.parts[i], keys[i], strict=True)
                ],
                -1,
            )
            for i, r in enumerate(tiled.parts(50, 25))
        )

    y = product(built, held, X, key(5), 3.15e7, compensate=True)
    np.testing.assert_allclose(y, by_hand(held, key(5)), rtol=1e-5, atol=1e-4)
    rate = jax.jit(lambda part: tile.compensation(built, part, 3.15e7))
    assert len({float(rate(p)) for row in held.parts for p in row}) == 4


def test_a_calibrated_range_is_used_by_the_converters_and_clips_what_is_beyond():
    built = Tile(EXACT, dac=Converter(1.0, 16), adc=None)
    held = written(built, W, rows=25)
    for settings in ({"quantile": 0.9}, {"stds": 1.5}):
        ranged = tiled.calibrated(held, X, **settings)
        expected = 0
        for i, r in enumerate(tiled.parts(50, 25)):
            own = np.asarray(X[:, r], float)
            most = np.quantile(np.abs(own), 0.9) if "quantile" in settings else 1.5 * own.std()
            np.testing.assert_allclose(ranged.reach[i], most, rtol=1e-5)
            given = np.clip(np.round(own / most * 8) / 8, -1, 1) * most
            expected = expected + given @ np.asarray(W[r], float)
        y = product(built, ranged, X)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    whole = tiled.calibrated(held, X, quantile=1.0)
    one = product(built, whole, X[:1])  # of a vector nothing but its own inputs matters
    np.testing.assert_allclose(one, product(built, whole, X)[:1], rtol=1e-6)
    slope = jax.jit(jax.grad(lambda x: product(built, whole, x).sum()))(3 * X)
    beyond = np.abs(3 * np.asarray(X)) > np.repeat(np.asarray(whole.reach), 25)
    np.testing.assert_array_equal(np.asarray(slope)[beyond], 0)


def test_wires_take_what_the_equation_says():
    x, w = np.asarray(X, float) / 3, np.clip(np.asarray(W, float), -1, 1)
    lost = np.zeros((6, 21))
    for b in range(6):
        for i in range(21):
            a = 50 / 2000.0 * sum(abs(w[j, i]) * abs(x[b, j]) for j in range(50))
            drop = sum(w[j, i] * x[b, j] * (1 - (1 - j / 50) ** 2) for j in range(50))
            lost[b, i] = a * (0.05 * a**2 - 0.2 * a + 0.5) * drop
    found = ir_drop.lost(jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32), 2000.0)
    np.testing.assert_allclose(found, lost, rtol=1e-4, atol=1e-6)


def test_wires_of_no_resistance_take_nothing_and_others_attenuate():
    x, w = jnp.abs(X) / 3, jnp.clip(jnp.abs(W), 0, 1)
    np.testing.assert_allclose(ir_drop.lost(x, w, 1e30), 0, atol=1e-20)
    y = x @ w
    before = jnp.zeros_like(y)
    for gamma in (1e6, 1e5, 1e4):
        lost = ir_drop.lost(x, w, gamma)
        assert bool((lost > before).all())
        assert bool((lost < y).all())
        before = lost
    far, near = (ir_drop.lost(jnp.eye(50)[i], w, 1e4) for i in (1, 49))
    assert bool((near / w[49] ** 2 > far / w[1] ** 2).all())
    held = written(PLAIN, W)
    y0, y1, y2 = (
        product(built, held, X)
        for built in (PLAIN, PLAIN._replace(ir_drop=1.0), PLAIN._replace(ir_drop=2.0))
    )
    np.testing.assert_allclose(y2 - y0, 2 * (y1 - y0), rtol=1e-2, atol=1e-5)  # linear in it
    most, largest = jnp.abs(W).max(), jnp.abs(X).max(-1, keepdims=True)
    expected = ir_drop.lost(X / largest, W / most) * most * largest
    np.testing.assert_allclose(y0 - y1, expected, rtol=0.05, atol=2e-5)


def test_compensation_restores_the_decisions_of_a_classifier():
    """A layer with thresholds: drift moves all outputs towards 0 and decisions with them."""
    n, t = 4000, 3.15e7
    w = W[:, :10] / jnp.sqrt(50.0)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(n, 50)), jnp.float32)
    fires = x @ w > 1.0  # one in six
    device = pcm(programming_noise=0, read_noise=0)
    built = PLAIN._replace(device=device)
    held = written(built, w, rows=25)
    even = held._replace(
        parts=tuple(
            tuple(p._replace(state=p.state._replace(nu=jnp.full_like(p.state.nu, 0.06))) for p in r)
            for r in held.parts
        )
    )

    def wrong(built, held, key=None, **settings):
        y = product(built, held, x, key, t, **settings)
        return float(((y > 1.0) != fires).mean())

    assert wrong(built, even, compensate=True) < 1e-4  # one exponent for all: nothing is lost
    left = (t / 20 + 1) ** -0.06  # of each output
    expected = float(jnp.mean((x @ w > 1.0) & (x @ w < 1 / left)))
    assert wrong(built, even) == pytest.approx(expected, abs=1e-4)
    noisy = PLAIN._replace(device=pcm())
    held = written(noisy, w, 3, rows=25)
    assert wrong(noisy, held, key(4), compensate=True) < 0.4 * wrong(noisy, held, key(5))


def test_what_is_refused():
    held = written(PLAIN, W, rows=25)
    with pytest.raises(ValueError, match="a tile of 0 lines holds nothing"):
        tiled.program(PLAIN, W, key(), rows=0)
    with pytest.raises(ValueError, match="inputs of 49 lines, and the tiles have 50"):
        product(PLAIN, held, X[:, 1:])
    with pytest.raises(ValueError, match=r"quantile = None, stds = None; give one"):
        tiled.calibrated(held, X)
    with pytest.raises(ValueError, match=r"quantile is 1.5; it is above 0, at most 1"):
        tiled.calibrated(held, X, quantile=1.5)
    with pytest.raises(ValueError, match=r"stds is 0.0; it must be above 0"):
        tiled.calibrated(held, X, stds=0.0)
    with pytest.raises(ValueError, match="these tiles have a time already"):
        tiled.aged(PLAIN, tiled.aged(PLAIN, held, 0.0), 0.0)
    with pytest.raises(ValueError, match="gamma is 0; a ratio of conductances is above 0"):
        ir_drop.lost(X, W, 0)
