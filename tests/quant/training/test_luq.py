"""LUQ: gradients right on average, operands on their grids, and the switch for whole networks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spikebit.quant import Logarithmic
from spikebit.quant.training import lognormal
from spikebit.quant.training import luq as L
from spikebit.quant.training.products import Maximum, Noise, quantize_products, with_noise

X = jnp.asarray(
    np.exp(2 * np.random.default_rng(0).normal(size=64))
    * np.random.default_rng(1).choice([-1, 1], 64),
    jnp.float32,
)


def noise(seed):
    return jax.random.key_data(jax.random.key(seed))


#: for tests that compile whole networks and compare within a tolerance
quickly = pytest.mark.usefixtures("compile_quickly")


def neighbours(x):
    """The two values about each |x|, by a loop over the seven magnitudes and zero."""
    top = np.abs(x).max()
    grid = np.array([0.0, *(top * 2.0**k for k in range(-6, 1))])
    place = np.clip(np.searchsorted(grid, np.abs(x), side="right"), 1, 7)
    return grid[place - 1], grid[place]


def test_gradients_are_unbiased_with_the_variance_of_two_neighbours():
    n = 200_000
    many = jnp.tile(X, (n // 50, 1))  # each row holds the largest magnitude
    quick = jax.jit(lambda m, k: L.quantize_gradient(m, L.LUQ(), k))
    keys = jax.random.split(jax.random.key(7), 50)
    sums = jax.lax.map(lambda k: _moments(quick(many, k)), keys)
    mean = np.asarray(sums[0], np.float64).sum(0) / n
    variance = np.asarray(sums[1], np.float64).sum(0) / n
    x = np.asarray(X, np.float64)
    low, high = neighbours(x)
    expected = (np.abs(x) - low) * (high - np.abs(x))
    moves = expected > 1e-6 * x**2
    z = (mean - x)[moves] / np.sqrt(expected[moves] / n)
    assert np.abs(z).max() < 4.5
    np.testing.assert_array_equal(mean[~moves].astype(np.float32), np.asarray(X)[~moves])
    np.testing.assert_allclose(variance[moves], expected[moves], rtol=0.05)


def _moments(q):
    return q.sum(0), ((q - X) ** 2).sum(0)


def test_levels_fit_in_four_bits_and_the_largest_goes_to_itself():
    q = np.asarray(L.quantize_gradient(X, L.LUQ(), jax.random.key(0)))
    top = np.abs(np.asarray(X)).argmax()
    assert q[top] == X[top]
    fmt = Logarithmic(4)
    assert len(fmt.values()) <= 2**4
    assert np.isin(q, fmt.values() * np.abs(np.asarray(X)).max()).all()
    negative = L.quantize_gradient(-jnp.abs(X), L.LUQ(), jax.random.key(0))  # max|delta|, not max
    assert float(jnp.min(negative)) == -float(jnp.abs(X).max())


@pytest.mark.parametrize("luq", [L.LUQ(), L.LUQ(power_of_two=True)], ids=["amax", "power"])
def test_gradients_of_the_smallest_numbers_keep_their_mean(luq):
    tiny = np.finfo(np.float32).tiny
    x = np.array([50.0, -20.0, 7.0, 3.0, 1.5, -1.1, 0.0], np.float32) * tiny  # all normal, but 0
    n = 4000
    keys = jax.random.split(jax.random.key(0), n)
    quick = jax.jit(jax.vmap(lambda k: L.quantize_gradient(jnp.asarray(x), luq, k)))
    q = np.asarray(quick(keys), np.float64) / tiny
    np.testing.assert_array_equal(np.abs(q[q != 0]) >= 1, True)  # no level that would vanish
    top = 64.0  # 2^6 times the smallest normal number: 7 magnitudes
    grid = np.array([0.0, *(2.0**k for k in range(7))])
    assert np.isin(np.abs(q), grid).all()
    assert grid[-1] == top
    exact = x.astype(np.float64) / tiny
    place = np.searchsorted(grid, np.abs(exact), side="right")
    variance = (np.abs(exact) - grid[place - 1]) * (grid[place] - np.abs(exact))
    assert (np.abs(q.mean(0) - exact) <= 4.5 * np.sqrt(variance / n)).all()


def test_what_is_not_finite_stays_and_harms_nothing_else():
    bad = jnp.array([1.0, jnp.nan, -jnp.inf, 0.3, -0.9])
    good, at = jnp.where(jnp.isfinite(bad), bad, 0), np.array([0, 3, 4])
    q = jax.jit(lambda x: L.quantize_gradient(x, L.LUQ(), jax.random.key(1)))(bad)
    np.testing.assert_array_equal(q[1:3], bad[1:3])
    assert (np.asarray(q)[at] != 0).all()
    for fmt in ("int4", "int4_asymmetric"):
        forward = jax.jit(lambda x, fmt=fmt: L.quantize_forward(x, fmt, L.LUQ()))
        np.testing.assert_array_equal(forward(bad)[1:3], bad[1:3])
        np.testing.assert_array_equal(forward(bad)[at], forward(good)[at])


def test_scaling_by_a_power_of_two_scales_the_result():
    one = L.quantize_gradient(X, L.LUQ(), jax.random.key(3))
    other = L.quantize_gradient(X * 2.0**-20, L.LUQ(), jax.random.key(3))
    np.testing.assert_array_equal(one, np.asarray(other) * 2.0**20)


def test_the_scale_can_be_a_power_of_two():
    luq = L.LUQ(power_of_two=True)
    for largest, top in ((5.0, 8.0), (4.0, 4.0), (0.3, 0.5), (3e38, 2.0**127), (1e-3, 2.0**-9)):
        x = jnp.asarray([largest, -largest / 3, largest / 200, 0.0], jnp.float32)
        keys = jax.random.split(jax.random.key(1), 4000)
        q = np.asarray(jax.vmap(lambda k, x=x: L.quantize_gradient(x, luq, k))(keys), np.float64)
        mantissas, exponents = np.frexp(np.abs(q[q != 0]))
        assert set(mantissas) == {0.5}
        assert {top / 2, top} >= set(np.abs(q[:, 0]))
        assert exponents.min() >= np.log2(top) + 1 - 6
        if top == 2.0**127:  # the largest power of two, so what lies above is cut
            continue
        z = (q.mean(0) - np.asarray(x, np.float64)) / np.maximum(q.std(0) / np.sqrt(4000), 1e-45)
        assert np.abs(z).max() < 4.5
    assert L.quantize_gradient(jnp.zeros(3), luq, jax.random.key(0)).tolist() == [0, 0, 0]


def test_nearest_loses_what_is_small_and_no_underflow_only_that():
    smallest = float(jnp.abs(X).max()) * 2.0**-6
    nearest = np.asarray(L.quantize_gradient(X, L.LUQ(rounding="nearest_even"), None))
    small = np.abs(np.asarray(X)) < smallest / 2
    assert small.any()
    assert not nearest[small].any()
    stochastic = [
        np.asarray(L.quantize_gradient(X, L.LUQ(rounding="no_underflow"), jax.random.key(s)))
        for s in range(20)
    ]
    assert not np.stack(stochastic)[:, small].any()
    inner = (np.abs(np.asarray(X)) > smallest) & (np.abs(np.asarray(X)) < 32 * smallest)
    assert (np.stack(stochastic)[:, inner].std(0) > 0).any()


@quickly
def test_the_gradients_of_a_product_are_right_on_average():
    rng = np.random.default_rng(2)
    a = jnp.asarray(np.abs(rng.normal(size=(6, 8))), jnp.float32)
    w = jnp.asarray(rng.normal(size=(8, 5)), jnp.float32)
    c = jnp.asarray(np.exp(rng.normal(size=(6, 5))), jnp.float32)  # the gradient that comes in

    def both(samples, key):
        def loss(a, w):
            y = L.luq_product(jnp.matmul, L.LUQ(samples=samples), a, w, jax.random.key_data(key))
            return (y * c).sum()

        return jax.grad(loss, (0, 1))(a, w)

    settings = L.LUQ()
    qa = np.asarray(L.quantize_forward(a, settings.activations, settings), np.float64)
    qw = np.asarray(L.quantize_forward(w, settings.weights, settings), np.float64)
    exact = np.asarray(c) @ qw.T, qa.T @ np.asarray(c)
    n, spread = 2000, {}
    for samples in (1, 4):
        keys = jax.random.split(jax.random.key(samples), n)
        found = jax.lax.map(lambda k, s=samples: both(s, k), keys)
        for got, wanted in zip(found, exact, strict=True):
            error = np.asarray(got, np.float64) - wanted
            deviation = error.std(0)
            assert (np.abs(error.mean(0)) < 4.5 * deviation / math.sqrt(n) + 1e-5).all()
        spread[samples] = np.asarray(found[1], np.float64).var(0).sum()
        spread[samples, "a"] = np.asarray(found[0], np.float64).var(0).sum()
    # the mean of 4 samples has a quarter of the variance, in the gradient of the weights alone;
    # the relative error of a variance is about sqrt(2 / n), here of a sum of many
    assert spread[1] / spread[4] == pytest.approx(4, rel=0.1)
    assert spread[1, "a"] / spread[4, "a"] == pytest.approx(1, rel=0.1)


def test_operands_are_rounded_to_nearest_within_the_clip():
    rng = np.random.default_rng(3)
    w = jnp.asarray(rng.normal(size=4000), jnp.float32)
    clip = float(L.sawb_clip(w, c1=12.1, c2=12.2))
    wide = np.asarray(w, np.float64)
    formula = 12.1 * math.sqrt((wide**2).mean()) - 12.2 * np.abs(wide).mean()
    assert clip == pytest.approx(formula, rel=1e-4)
    q = np.asarray(L.quantize_forward(w, "int4", L.LUQ()))
    step = clip / 7
    np.testing.assert_allclose(q, np.clip(np.rint(wide / step), -7, 7) * step, atol=2e-6)
    relu = jnp.maximum(w, 0)
    assert float(L.sawb_clip(relu, c1=12.1, c2=12.2)) == pytest.approx(clip, rel=0.05)
    levels = np.unique(np.asarray(L.quantize_forward(relu, "int4_asymmetric", L.LUQ())))
    assert len(levels) == 16  # all codes on the one side
    assert float(L.sawb_clip(jnp.full(9, 2.0), c1=12.1, c2=12.2)) == 2
    assert not np.asarray(L.quantize_forward(jnp.zeros(5), "int4", L.LUQ())).any()


@pytest.mark.parametrize("shape", [np.tanh, np.asarray], ids=["tanh", "gauss"])
def test_numbers_clipped_on_both_sides_do_not_hang_on_their_last_bit(shape):
    for seed in range(5):
        x = np.random.default_rng(seed).normal(size=(64, 32))
        x = jnp.asarray(shape(3 * x), jnp.float32)
        clip = L.sawb_clip(x, c1=12.1, c2=12.2)
        assert -x.min() > clip < x.max()
        q = np.asarray(L.quantize_forward(x, "int4_asymmetric", L.LUQ()))
        assert len(np.unique(q)) == 15
        np.testing.assert_array_equal(np.unique(q), -np.unique(q)[::-1])
        for other in (
            jax.jit(lambda x: L.quantize_forward(x, "int4_asymmetric", L.LUQ()))(x),
            L.quantize_forward(x * (1 + 2.0**-22), "int4_asymmetric", L.LUQ()),
        ):
            far = np.abs(np.asarray(other) - q) > 1e-5
            assert far.mean() < 1e-3  # but for a number that lies on a midpoint itself


def test_the_clip_and_the_fit_of_many_float16_numbers():
    x = np.random.default_rng(0).normal(size=(512, 256)).astype(np.float16)
    wide = L.sawb_clip(jnp.asarray(x, jnp.float32), c1=12.1, c2=12.2)
    narrow = L.sawb_clip(jnp.asarray(x), c1=12.1, c2=12.2)
    assert float(narrow) == pytest.approx(float(wide), rel=2.0**-11)
    assert np.isfinite(np.asarray(L.quantize_forward(jnp.asarray(x), "int4", L.LUQ()))).all()
    logs = np.log(np.abs(x[x != 0].astype(np.float64)))
    model = lognormal.fit(jnp.asarray(x))
    assert float(model.mu) == pytest.approx(logs.mean(), rel=1e-4)
    assert float(model.sigma) == pytest.approx(logs.std(), rel=1e-4)


def test_the_clip_is_near_the_best_one_of_bell_shapes():
    """The published constants, against a search for the least error over clips."""
    rng = np.random.default_rng(4)
    for draw in (rng.normal, rng.laplace, rng.logistic):
        x = draw(size=20_000)
        clip = float(L.sawb_clip(jnp.asarray(x, jnp.float32), c1=12.1, c2=12.2))
        errors = []
        grid = np.geomspace(0.3, 1, 60) * np.abs(x).max()
        for c in (*grid, clip):
            q = np.clip(np.rint(x / (c / 7)), -7, 7) * (c / 7)
            errors.append(((x - q) ** 2).mean())
        assert errors[-1] < 1.25 * min(errors[:-1])


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.middle = nnx.List([nnx.Conv(4, 4, (3, 3), rngs=rngs), nnx.Linear(4, 4, rngs=rngs)])
        self.last = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.first(x))
        for layer in self.middle:
            x = nnx.relu(layer(x))
        return self.last(x.mean((1, 2)))


IMAGES = jnp.asarray(np.random.default_rng(5).normal(size=(3, 5, 5, 1)), jnp.float32)


def kinds(network):
    layers = [network.first, *network.middle, network.last]
    return [
        type(getattr(m, "conv_general_dilated", None) or m.dot_general).__name__ for m in layers
    ]


def test_the_switch_leaves_the_first_and_the_last_layer():
    network = Net(nnx.Rngs(0))
    inner = ["function", "QuantizedProduct", "QuantizedProduct", "function"]
    assert kinds(quantize_products(network)) == inner
    assert kinds(quantize_products(network, first_and_last=True)) == ["QuantizedProduct"] * 4
    assert kinds(network) == ["function"] * 4  # it stays as it is
    one = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"Linear has 1 layers with a product.*first_and_last"):
        quantize_products(one)


def test_everything_off_is_the_plain_network_bit_for_bit():
    network = Net(nnx.Rngs(0))
    off = quantize_products(
        network, L.LUQ(weights=None, activations=None, gradients=None), first_and_last=True
    )
    np.testing.assert_array_equal(off(IMAGES), network(IMAGES))

    def gradient(network):
        graphdef, params, rest = nnx.split(network, nnx.Param, ...)
        return jax.grad(lambda p: (nnx.merge(graphdef, p, rest)(IMAGES) ** 2).sum())(params)

    for a, b in zip(
        jax.tree.leaves(gradient(off)), jax.tree.leaves(gradient(network)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@quickly
def test_noise_is_set_from_outside_and_differs_between_layers():
    network = quantize_products(Net(nnx.Rngs(0)), first_and_last=True)
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)

    @jax.jit
    def gradient(key):
        def loss(p):
            return (with_noise(nnx.merge(graphdef, p, rest), key)(IMAGES) ** 2).sum()

        return jax.grad(loss)(params)

    one, same, other = (
        np.concatenate([np.ravel(g) for g in jax.tree.leaves(gradient(jax.random.key(s)))])
        for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    state = nnx.state(with_noise(network, jax.random.key(4)), Noise)
    words = [tuple(np.asarray(w).tolist()) for w in jax.tree.leaves(state)]
    assert len(set(words)) == 4


@quickly
@pytest.mark.parametrize("kind", [nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell])
def test_recurrent_cells_of_flax_take_the_switch(kind):
    cell = kind(5, 6, rngs=nnx.Rngs(0))
    quantized = quantize_products(cell, first_and_last=True)
    carry = cell.initialize_carry((2, 5), nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(6).normal(size=(2, 5)), jnp.float32)
    y, q = cell(carry, x)[1], quantized(carry, x)[1]
    assert not np.array_equal(y, q)
    np.testing.assert_allclose(y, q, atol=0.3)  # four bits, not another function


@quickly
def test_the_maximum_in_hindsight():
    eta, m, expected = 0.3, jnp.float32(0), 0.0
    for seen in (2.0, 1.0, 4.0):
        m = L.in_hindsight(m, jnp.float32(seen), eta)
        expected = seen if expected == 0 else (1 - eta) * seen + eta * expected
        assert float(m) == pytest.approx(expected, rel=1e-6)
    a, w, c = jnp.ones((2, 3)), jnp.ones((3, 2)), jnp.asarray([[1.0, -5.0], [0.5, 0.25]])

    def loss(maximum):
        return (L.luq_product(jnp.matmul, L.LUQ(), a, w, noise(0), maximum) * c).sum()

    assert jax.grad(loss)(jnp.float32(0)) == 5  # what it saw takes the place of a gradient
    clipped = L.quantize_gradient(c, L.LUQ(), jax.random.key(0), jnp.float32(2))
    assert float(jnp.abs(clipped).max()) == 2
    layer = quantize_products(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), first_and_last=True)
    graphdef, maxima, rest = nnx.split(layer, Maximum, ...)
    grads = jax.grad(lambda m: (nnx.merge(graphdef, m, rest)(a) * c).sum())(maxima)
    assert jax.tree.leaves(grads) == [5]


@pytest.mark.parametrize("steps", [2, 7, 100])
def test_the_rate_of_fine_tuning_goes_up_and_back(steps):
    low, high = 1e-3, 0.1
    rate = L.fine_tuning_schedule(low, high, steps)
    half = steps // 2
    for t in range(steps + 1):
        up, down = low + (high - low) * t / half, high - (high - low) * (t - half) / (steps - half)
        assert float(rate(t)) == pytest.approx(up if t <= half else down, rel=1e-5)
    optax.sgd(rate)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L.LUQ(rounding="up"), "choose one of stochastic, nearest_even, no_underflow"),
        (lambda: L.LUQ(samples=0), "whole number of samples"),
        (lambda: L.LUQ(c1=math.nan), "c1=nan"),
        (lambda: L.LUQ(gradients="e2m1fn"), "e2m1fn has a unit of its own"),
        (lambda: L.LUQ(gradients="mxfp4"), "gradients are mxfp4.*use a format with one scale"),
        (lambda: L.LUQ(gradients="log44"), "bits must be from 2 to 8"),
        (lambda: L.LUQ(weights="in4"), "the nearest names are int4"),
        (lambda: L.fine_tuning_schedule(0.1, 1.0, 1), "in 2 or more"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
