"""Learned delays: the kernel against float64, its derivatives, the schedule, and BPTT per leaf."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spikebit import learning_rules as rules
from spikebit.simulator import (
    DelayLine,
    LearnedDelays,
    LIFCell,
    Network,
    delay_updates,
    sigma_schedule,
    simulate,
)
from spikebit.simulator.delay_learning import delay_kernel, rounded_kernel

N_IN, N, LAGS, STEPS, BATCH = 3, 4, 7, 24, 2
LOSS = rules.losses.squared_error

pytestmark = pytest.mark.usefixtures("compile_quickly")


def inputs(seed=0, n=N_IN):
    return jax.random.normal(jax.random.key(seed), (STEPS, BATCH, n))


def written_out(w, p, sigma, lags):
    """The kernel of the paper in float64."""
    d = np.arange(lags)[:, None, None]
    bump = np.exp(-(((d - np.asarray(p, np.float64)) / sigma) ** 2) / 2)
    return np.asarray(w, np.float64) * bump / bump.sum(0)


def drawn(seed=0):
    """Weights, and positions at both edges, on a lag and between lags."""
    w = jax.random.normal(jax.random.key(seed), (2, 3))
    return w, jnp.array([[0.0, 6.0, 3.0], [0.4, 5.7, 2.25]])


@pytest.mark.parametrize("sigma", [0.23, 1.0, 3.5])
def test_kernel_is_the_gaussian_normalised_over_the_lags_there_are(sigma):
    w, p = drawn()
    kernel = delay_kernel(w, p, jnp.float32(sigma), LAGS)
    # exponents up to (6 / 0.23)^2 / 2 = 340 carry a relative error of 2^-23 each
    np.testing.assert_allclose(kernel, written_out(w, p, sigma, LAGS), rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(kernel.sum(0), w, rtol=1e-6)  # at the edges too


def test_whole_positions_and_no_width_are_shifts():
    w, p = drawn()
    whole = jnp.round(p)
    exact = np.zeros((LAGS, 2, 3))
    for i in range(2):
        for j in range(3):
            exact[int(whole[i, j]), i, j] = w[i, j]
    np.testing.assert_array_equal(delay_kernel(w, whole, jnp.float32(0.01), LAGS), exact)
    np.testing.assert_array_equal(rounded_kernel(w, p, LAGS), exact)
    outside = p.at[0, 0].set(-0.7).at[0, 1].set(6.9)
    np.testing.assert_array_equal(rounded_kernel(w, outside, LAGS), exact)

    def narrow(p):
        return delay_kernel(w, p, jnp.float32(1e-25), LAGS)

    np.testing.assert_array_equal(jax.jit(narrow)(p), rounded_kernel(w, p, LAGS))
    assert np.isfinite(jax.jit(jax.jacobian(narrow))(p)).all()


def test_every_synapse_has_one_weight_in_few_bits_too():
    """Above 256 bfloat16 has every second number only."""
    p = jnp.linspace(0, 299, 60, dtype=jnp.bfloat16).reshape(6, 10)
    w = jnp.ones((6, 10), jnp.bfloat16)
    nearest = np.minimum(np.round(np.asarray(p, np.float64)), 299)
    for kernel in (rounded_kernel(w, p, 300), delay_kernel(w, p, jnp.bfloat16(1e-3), 300)):
        assert kernel.dtype == jnp.bfloat16
        kernel = np.asarray(kernel, np.float64)
        np.testing.assert_array_equal(kernel.sum(0), 1)
        whole = np.asarray(p, np.float64) % 1 != 0.5  # between two lags either will do
        np.testing.assert_array_equal(kernel.argmax(0)[whole], nearest[whole])


@pytest.mark.parametrize("sigma", [0.23, 1.0, 3.5])
def test_derivatives_to_weight_and_position_are_finite_differences(sigma):
    w, p = drawn()
    tangent = jax.random.normal(jax.random.key(1), (LAGS, 2, 3))

    def value(w, p):
        return (delay_kernel(w, p, jnp.float32(sigma), LAGS) * tangent).sum()

    dw, dp = jax.grad(value, (0, 1))(w, p)
    step, t = 1e-5, np.asarray(tangent, np.float64)
    for i in range(2):
        for j in range(3):
            bump = np.zeros((2, 3))
            bump[i, j] = step
            w64, p64 = np.asarray(w, np.float64), np.asarray(p, np.float64)
            for got, ends in (
                (dw, [(w64 + s * bump, p64) for s in (1, -1)]),
                (dp, [(w64, p64 + s * bump) for s in (1, -1)]),
            ):
                up, down = ((written_out(*end, sigma, LAGS) * t).sum() for end in ends)
                assert got[i, j] == pytest.approx((up - down) / (2 * step), rel=1e-3, abs=1e-5)


def test_streaming_is_the_convolution_and_rounding_gives_exact_delays():
    layer = LearnedDelays(N_IN, N, LAGS, sigma=1.3, rngs=nnx.Rngs(0))
    xs, line = inputs(), DelayLine(N_IN, LAGS)
    streamed = simulate(Network([line, layer]), xs).outputs
    np.testing.assert_allclose(streamed, layer.convolve(xs), atol=3e-6)
    got = simulate(Network([line, layer.rounded()]), xs).outputs
    expected = np.zeros(got.shape)
    for i in range(N_IN):
        for j in range(N):
            d = round(float(layer.position[...][i, j]))
            expected[d:, :, j] += float(layer.weight[...][i, j]) * np.asarray(xs)[: STEPS - d, :, i]
    np.testing.assert_allclose(got, expected, atol=3e-6)


def test_positions_start_among_the_lags():
    position = LearnedDelays(40, 40, LAGS, rngs=nnx.Rngs(0)).position[...]
    assert 0 <= float(position.min()) < 0.1
    assert LAGS - 1.1 < float(position.max()) <= LAGS - 1


def gradient(rule, network, data, chunk=None):
    params = rules.parameters(network)
    return jax.jit(lambda p: rules.run_sequence(rule, p, *data, chunk=chunk).grads)(params)


def errors(grads, exact):
    """Relative error by leaf; only sigma may have no gradient, and must have none."""
    found = {}
    for (path, g), e in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(exact), strict=True
    ):
        name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        if name.endswith("sigma"):
            assert float(g) == float(e) == 0
            continue
        assert float(jnp.abs(e).max()) > 0, name
        found[name.removeprefix("layers.").replace("layers.", "")] = rules.relative_error(g, e)
    return found


def test_bptt_is_the_gradient_of_the_whole_sequence_as_a_convolution():
    layer = LearnedDelays(N_IN, N, LAGS, sigma=1.0, rngs=nnx.Rngs(0))
    network, (xs, targets) = Network([DelayLine(N_IN, LAGS), layer]), (inputs(), inputs(1, N))
    graphdef, params = nnx.split(layer)

    def loss(params):
        ys = nnx.merge(graphdef, params).convolve(xs)
        return jax.vmap(LOSS)(ys, targets).mean(1).sum()

    offline = jax.jit(jax.grad(loss))(params)
    found = gradient(rules.bptt(network, LOSS), network, (xs, targets))
    for name in ("weight", "position", "bias"):
        assert rules.relative_error(found["layers"][1][name][...], offline[name][...]) <= 1e-6
    assert float(jnp.abs(offline["position"][...]).min()) > 0


@cache
def below_no_state():
    """A network, inputs and targets, and the gradient by BPTT."""
    rngs = nnx.Rngs(0)
    layer = LearnedDelays(N_IN, N, LAGS, sigma=1.0, rngs=rngs)
    network = Network([DelayLine(N_IN, LAGS), layer, jnp.tanh, nnx.Linear(N, 2, rngs=rngs)])
    data = inputs(), inputs(1, 2)
    return network, data, gradient(rules.bptt(network, LOSS), network, data)


@pytest.mark.parametrize(("scope", "chunk"), [("full", 1), ("full", 6), ("no_h", 6)])
def test_ostl_is_exact_for_weights_and_positions_below_no_state(scope, chunk):
    network, data, exact = below_no_state()
    found = errors(gradient(rules.ostl(network, LOSS, scope=scope), network, data, chunk), exact)
    assert found.keys() == {f"1.{k}" for k in ("weight", "position", "bias")} | {
        "3.kernel",
        "3.bias",
    }
    assert max(found.values()) <= 1e-6


def below_a_cell(joined, recurrent):
    rngs = nnx.Rngs(0)
    layers = [
        DelayLine(N_IN, LAGS),
        LearnedDelays(N_IN, N, LAGS, sigma=1.0, rngs=rngs),
        LIFCell(None, N, tau=5e-3, recurrent=recurrent, rngs=rngs),
    ]
    return Network([*([Network(layers)] if joined else layers), nnx.Linear(N, 2, rngs=rngs)])


@cache
def as_one_cell(recurrent):
    network, data = below_a_cell(True, recurrent), (2 * inputs(), inputs(1, 2))
    return network, data, gradient(rules.bptt(network, LOSS), network, data)


@pytest.mark.parametrize(("recurrent", "scope"), [(False, "no_h"), (True, "full"), (True, "no_h")])
def test_below_a_cell_ostl_is_exact_as_one_cell(recurrent, scope):
    network, data, exact = as_one_cell(recurrent)
    found = errors(gradient(rules.ostl(network, LOSS, scope=scope), network, data, 4), exact)
    if recurrent and scope == "no_h":
        assert min(found["0.1.weight"], found["0.1.position"]) > 1e-2
    else:
        assert max(found.values()) <= 1e-5


def test_below_a_cell_ostl_holds_the_states_above_constant():
    network, (xs, targets) = below_a_cell(False, False), (2 * inputs(), inputs(1, 2))
    graphdef, params = nnx.split(network)

    def loss(params):
        net = nnx.merge(graphdef, params)

        def step(carry, x):
            line, dense, lif, readout = carry
            return net((line, dense, jax.lax.stop_gradient(lif), readout), x)

        ys = jax.lax.scan(step, net.initialize_carry(xs.shape[1:]), xs)[1]
        return jax.vmap(LOSS)(ys, targets).mean(1).sum()

    cut = jax.jit(jax.grad(loss))(params)
    exact = gradient(rules.bptt(network, LOSS), network, (xs, targets))
    grads = gradient(rules.ostl(network, LOSS), network, (xs, targets), 4)
    assert max(errors(grads, cut).values()) <= 1e-6
    assert min(errors(grads, exact)[f"1.{k}"] for k in ("weight", "position")) > 1e-2


def test_sigma_falls_in_equal_ratios_and_stays():
    sigma = sigma_schedule(25, 10)
    values = np.array([sigma(i) for i in range(13)])
    np.testing.assert_allclose(values[1:11] / values[:10], (0.23 / 12.5) ** 0.1, rtol=1e-5)
    assert values[0] == 12.5
    np.testing.assert_allclose(values[10:], 0.23, rtol=1e-6)
    assert jax.jit(sigma_schedule(25, 10, start=3, end=3.0))(jnp.int32(4)) == 3


def test_updates_move_positions_faster_keep_them_among_the_lags_and_narrow_sigma():
    network = Network(
        [DelayLine(N_IN, LAGS), LearnedDelays(N_IN, N, LAGS, rngs=nnx.Rngs(0)), jnp.tanh]
    )
    params = rules.parameters(network)
    start = params["layers"][1]["position"][...]
    grads = jax.tree.map(jnp.ones_like, params)
    sigma = sigma_schedule(LAGS, 4)
    optimizer = optax.chain(optax.sgd(0.01), delay_updates(LAGS, sigma, position_rate=100.0))
    state = optimizer.init(params)
    assert params["layers"][1]["sigma"][...] == sigma(0)
    for i in range(1, 9):
        updates, state = jax.jit(optimizer.update)(grads, state, params)
        weight = params["layers"][1]["weight"][...]
        params = optax.apply_updates(params, updates)
        layer = params["layers"][1]
        np.testing.assert_allclose(layer["weight"][...], weight - 0.01, rtol=1e-6)
        expected = np.maximum(np.asarray(start) - i, 0)  # 100 times 0.01 a step
        np.testing.assert_allclose(layer["position"][...], expected, atol=1e-5)
        assert layer["sigma"][...] == pytest.approx(float(sigma(i)), rel=1e-6)
    up = jax.tree.map(lambda g: -g, grads)
    for _ in range(9):
        updates, state = optimizer.update(up, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["layers"][1]["position"][...], LAGS - 1, rtol=1e-6)


def test_what_does_not_fit_is_named():
    rngs = nnx.Rngs(0)
    with pytest.raises(ValueError, match=r"LearnedDelays needs a whole number lags >= 1; got 0"):
        LearnedDelays(2, 2, 0, rngs=rngs)
    with pytest.raises(ValueError, match=r"LearnedDelays needs sigma > 0; got 0"):
        LearnedDelays(2, 2, 3, sigma=0, rngs=rngs)
    with pytest.raises(ValueError, match=r"sigma_schedule needs .* > 0; got steps=0, start=12.5"):
        sigma_schedule(25, 0)
    optimizer = delay_updates(5, sigma_schedule(5, 10))
    with pytest.raises(ValueError, match=r"no parameter named 'position', only w"):
        optimizer.init({"w": jnp.ones(2)})
    params = {"position": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"call update\(grads, state, params\)"):
        optimizer.update(params, optimizer.init(params))
