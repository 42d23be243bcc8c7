"""Delay lines and dense kernels over lags: against sums written out, and against BPTT per leaf."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spikebit import learning_rules as rules
from spikebit.simulator import DelayedDense, DelayLine, LIFCell, Network, delays, simulate

N_IN, N, LAGS, STEPS, BATCH = 3, 4, 5, 24, 2
LOSS = rules.losses.squared_error

pytestmark = pytest.mark.usefixtures("compile_quickly")


def inputs(seed=0, n=N_IN, steps=STEPS):
    return jax.random.normal(jax.random.key(seed), (steps, BATCH, n))


def written_out(xs, kernel):
    """y_t = sum_d x_{t-d} K_d in float64, every index by hand."""
    xs, kernel = np.asarray(xs, np.float64), np.asarray(kernel, np.float64)
    ys = np.zeros((*xs.shape[:-1], kernel.shape[2]))
    for t in range(len(xs)):
        for d in range(min(len(kernel), t + 1)):
            ys[t] += xs[t - d] @ kernel[d]
    return ys


def gradient(rule, network, data, chunk=None):
    params = rules.parameters(network)
    return jax.jit(lambda p: rules.run_sequence(rule, p, *data, chunk=chunk).grads)(params)


def errors(grads, exact):
    """Relative error by leaf; refuses leaves that BPTT leaves at zero."""
    found = {}
    for (path, g), e in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(exact), strict=True
    ):
        name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        assert float(jnp.abs(e).max()) > 0, name
        found[name.removeprefix("layers.")] = rules.relative_error(g, e)
    return found


def test_lag_0_is_this_step_and_the_window_goes_back_in_time():
    xs = jnp.arange(1.0, 8.0)[:, None, None] * jnp.array([1.0, 10.0])  # x_t = (t, 10 t), t from 1
    got = simulate(Network([DelayLine(2, 3)]), xs, record=["0.window"])
    expected = [[t, 10 * t, t - 1, 10 * (t - 1), t - 2, 10 * (t - 2)] for t in range(1, 8)]
    np.testing.assert_array_equal(got.outputs[:, 0], np.maximum(expected, 0))  # 0 before the start
    np.testing.assert_array_equal(got.records["0.window"][-1, 0], [[7, 70], [6, 60], [5, 50]])


def test_streaming_is_the_convolution_is_the_sum_written_out():
    layer = DelayedDense(N_IN, N, LAGS, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(4.0)
    xs = inputs()
    streamed = simulate(Network([DelayLine(N_IN, LAGS), layer]), xs).outputs
    expected = written_out(xs, layer.kernel[...]) + np.arange(4)
    bound = 3e-6  # 15 products of size below 3, and a sum below 10, in float32
    np.testing.assert_allclose(streamed, expected, atol=bound)
    np.testing.assert_allclose(layer.convolve(xs), expected, atol=bound)
    np.testing.assert_allclose(layer.convolve(xs[:, 0]), expected[:, 0], atol=bound)
    short = layer.convolve(xs[:2])  # fewer steps than lags
    np.testing.assert_allclose(short, expected[:2], atol=bound)
    assert layer.convolve(xs[:0]).shape == (0, BATCH, N)
    assert layer.convolve(xs[:, :0]).shape == (STEPS, 0, N)
    for dtype in (bool, jnp.uint8, jnp.bfloat16):
        spikes = (xs > 0).astype(dtype)
        as_floats = layer.convolve(spikes.astype(jnp.float32))
        np.testing.assert_array_equal(layer.convolve(spikes), as_floats)


def test_a_stream_goes_on_across_chunks():
    network = Network([DelayLine(N_IN, LAGS), DelayedDense(N_IN, N, LAGS, rngs=nnx.Rngs(0))])
    xs = inputs()
    first = simulate(network, xs[:3])
    second = simulate(network, xs[3:], carry=first.carry)
    whole = simulate(network, xs).outputs
    np.testing.assert_array_equal(jnp.concatenate([first.outputs, second.outputs]), whole)


def test_nothing_leaks_from_the_future():
    layer = DelayedDense(N_IN, N, LAGS, rngs=nnx.Rngs(0))
    xs = inputs()
    jacobian = jax.jit(jax.jacobian(lambda xs: layer.convolve(xs)[:, 0, 0]))
    through = jacobian(xs)[:, :, 0]  # (t_out, t_in, n)
    back = np.arange(STEPS)[:, None] - np.arange(STEPS)
    reached = np.abs(np.asarray(through)).max(-1) > 0
    np.testing.assert_array_equal(reached, (back >= 0) & (back < LAGS))
    network = Network([DelayLine(N_IN, LAGS), layer])
    changed = xs.at[10:].set(7.0)
    for run in (layer.convolve, lambda xs: simulate(network, xs).outputs):
        np.testing.assert_array_equal(run(changed)[:10], run(xs)[:10])
        assert (run(changed)[10] != run(xs)[10]).all()


def test_below_a_convolution_it_makes_a_spatio_temporal_kernel():
    line, conv = DelayLine(2, 3), nnx.Conv(3 * 2, 4, (3,), rngs=nnx.Rngs(0))
    xs = jax.random.normal(jax.random.key(0), (6, BATCH, 7, 2))  # 7 pixels, 2 polarities
    got = simulate(Network([line, conv]), xs).outputs
    kernel, padded = conv.kernel[...], np.pad(xs, ((0, 0), (0, 0), (1, 1), (0, 0)))
    expected = np.zeros(got.shape)
    for t in range(6):
        for d in range(min(3, t + 1)):
            for dx in range(3):
                expected[t] += padded[t - d, :, dx : dx + 7] @ kernel[dx, 2 * d : 2 * d + 2]
    np.testing.assert_allclose(got, expected, atol=3e-6)


@pytest.mark.parametrize(("scope", "chunk"), [("full", 1), ("full", 6), ("no_h", 6)])
def test_ostl_is_exact_for_all_lags_of_a_dense_layer(scope, chunk):
    network, data, exact = of_a_dense_layer()
    found = errors(gradient(rules.ostl(network, LOSS, scope=scope), network, data, chunk), exact)
    assert found.keys() == {"1.kernel", "1.bias"}
    assert max(found.values()) <= 1e-6


@cache
def of_a_dense_layer():
    network = Network([DelayLine(N_IN, LAGS), DelayedDense(N_IN, N, LAGS, rngs=nnx.Rngs(0))])
    data = inputs(), inputs(1, N)
    return network, data, gradient(rules.bptt(network, LOSS), network, data)


def test_ostl_above_a_line_is_exact_in_float64():
    """A line has no parameters, whose dtype could be that of its trace."""
    with jax.enable_x64(True):
        weights = {"param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
        network = Network(
            [DelayLine(N_IN, LAGS), LIFCell(LAGS * N_IN, N, **weights), nnx.Linear(N, 2, **weights)]
        )
        data = 2 * inputs(), inputs(1, 2)
        exact = gradient(rules.bptt(network, LOSS), network, data)
        found = errors(gradient(rules.ostl(network, LOSS), network, data, 4), exact)
        assert max(found.values()) <= 1e-12


def cell_above(recurrent, seed=0):
    rngs = nnx.Rngs(seed)
    cell = LIFCell(LAGS * N_IN, N, recurrent=recurrent, train_decay=True, tau=5e-3, rngs=rngs)
    return Network([DelayLine(N_IN, LAGS), cell, nnx.Linear(N, 2, rngs=rngs)])


@cache
def of_a_cell_above(recurrent):
    network, data = cell_above(recurrent), (2 * inputs(), inputs(1, 2))
    return network, data, gradient(rules.bptt(network, LOSS), network, data)


@pytest.mark.parametrize(
    ("recurrent", "scope"), [(True, "full"), (False, "full"), (False, "no_h"), (True, "no_h")]
)
def test_ostl_of_a_cell_above_a_line_is_what_it_is_without_delays(recurrent, scope):
    network, data, exact = of_a_cell_above(recurrent)
    found = errors(gradient(rules.ostl(network, LOSS, scope=scope), network, data, 4), exact)
    if recurrent and scope == "no_h":
        assert min(found[k] for k in ("1.w", "1.h", "1.d")) > 1e-2
    else:
        assert max(found.values()) <= 1e-5


def test_a_trace_of_a_line_holds_nothing():
    network = cell_above(False)
    state = rules.ostl(network, LOSS).init(rules.parameters(network), inputs())
    assert sum(leaf.size for leaf in jax.tree.leaves(state.traces[0])) == 0
    assert state.traces[1].kernels.shape == (BATCH, 1, LAGS * N_IN, N)


def stopped(carry):
    """The carry of a line held constant from step to step."""
    return delays.DelayState(jax.lax.stop_gradient(carry.window))


@pytest.mark.parametrize("chunk", [1, 6])
def test_below_a_line_ostl_learns_from_lag_0_alone(chunk):
    rngs = nnx.Rngs(0)
    below, line = nnx.Linear(N_IN, 3, rngs=rngs), DelayLine(3, LAGS)
    above = DelayedDense(3, N, LAGS, rngs=rngs)
    network = Network([below, line, above])
    xs, targets = inputs(), inputs(1, N)
    graphdef, params = nnx.split(network)

    def loss(params):
        below, line, above = nnx.merge(graphdef, params).layers

        def step(carry, x):
            carry, y = line(stopped(carry), below(x))
            return carry, above(y)

        ys = jax.lax.scan(step, line.initialize_carry((BATCH, 3)), xs)[1]
        return jax.vmap(LOSS)(ys, targets).mean(1).sum()

    cut = jax.jit(jax.grad(loss))(params)
    spatial = gradient(rules.ostl(network, LOSS), network, (xs, targets), chunk)
    assert max(errors(spatial, cut).values()) <= 1e-6
    exact = gradient(rules.bptt(network, LOSS), network, (xs, targets))
    found = errors(spatial, exact)
    assert found["0.kernel"] > 0.1
    assert found["2.kernel"] <= 1e-6
    whole = rules.ostl(network, LOSS, cross_layer="chunk")
    assert max(errors(gradient(whole, network, (xs, targets)), exact).values()) <= 1e-6


def test_dense_below_a_cell_is_exact_as_one_cell_only():
    rngs = nnx.Rngs(0)
    dense, cell = DelayedDense(N_IN, N, LAGS, rngs=rngs), LIFCell(None, N, tau=5e-3)
    line, readout = DelayLine(N_IN, LAGS), nnx.Linear(N, 2, rngs=rngs)
    data = 2 * inputs(), inputs(1, 2)
    apart = Network([line, dense, cell, readout])
    exact = gradient(rules.bptt(apart, LOSS), apart, data)
    found = errors(gradient(rules.ostl(apart, LOSS), apart, data, 4), exact)
    assert found["1.kernel"] > 1e-2
    above = Network(
        [line, Network([dense, cell]), readout]
    )  # an inner network may change the width
    np.testing.assert_array_equal(
        simulate(above, data[0]).outputs, simulate(apart, data[0]).outputs
    )
    joined = Network([Network([line, dense, cell]), readout])
    exact = gradient(rules.bptt(joined, LOSS), joined, data)
    for scope in ("full", "no_h"):
        grads = gradient(rules.ostl(joined, LOSS, scope=scope), joined, data, 4)
        assert max(errors(grads, exact).values()) <= 1e-5


def test_pruning_keeps_the_largest_and_shortening_the_first_lags():
    kernel = jax.random.normal(jax.random.key(0), (LAGS, N_IN, N))
    sizes = np.sort(np.abs(np.asarray(kernel)).ravel())
    for keep in (0, 7, kernel.size):
        pruned = np.asarray(delays.prune(kernel, keep))
        assert (pruned != 0).sum() == keep
        np.testing.assert_array_equal(pruned[pruned != 0], np.asarray(kernel)[pruned != 0])
        np.testing.assert_array_equal(
            np.sort(np.abs(pruned[pruned != 0])), sizes[sizes.size - keep :]
        )
    assert delays.prune(jnp.ones((2, 2)), 3).tolist() == [[1, 1], [1, 0]]  # ties: the first ones
    xs, short = inputs(), delays.shorten(kernel, 2)
    zeroed = kernel.at[2:].set(0)
    layer = DelayedDense.of(short, jnp.zeros(N))
    np.testing.assert_allclose(layer.convolve(xs), written_out(xs, zeroed), atol=3e-6)
    assert (layer.in_features, layer.out_features) == (2 * N_IN, N)


def test_works_under_jit_and_vmap():
    network = Network([DelayLine(N_IN, LAGS), DelayedDense(N_IN, N, LAGS, rngs=nnx.Rngs(0))])
    xs = inputs()
    run = jax.jit(lambda xs: simulate(network, xs).outputs)
    np.testing.assert_allclose(jax.vmap(run, 1, 1)(xs[:, :, None])[:, :, 0], run(xs), atol=3e-6)


def test_what_does_not_fit_is_named():
    rngs = nnx.Rngs(0)
    with pytest.raises(ValueError, match=r"DelayLine needs a whole number lags >= 1; got 0"):
        DelayLine(3, 0)
    with pytest.raises(ValueError, match=r"DelayedDense needs a whole number n >= 1; got -2"):
        DelayedDense(3, -2, 4, rngs=rngs)
    with pytest.raises(ValueError, match=r"DelayLine takes 3 features .* shape \(2, 4\)"):
        simulate(Network([DelayLine(3, 2)]), inputs(n=4))
    line = DelayLine(3, 2)
    with pytest.raises(ValueError, match=r"\(5, 2, 3\) .* begin with initialize_carry\(\(2, 3\)\)"):
        line(line.initialize_carry((5, 3)), jnp.zeros((2, 3)))
    untyped = delays.causal_convolution.__wrapped__  # past the type check of the tests
    with pytest.raises(ValueError, match=r"inputs \(time, \*batch, 4\) .* got shape \(9, 3\)"):
        untyped(jnp.zeros((9, 3)), jnp.zeros((2, 4, 1)))
    with pytest.raises(ValueError, match=r"\(DelayLine\) gives 12 .*\(DelayedDense\) takes 15"):
        Network([DelayLine(3, 4), DelayedDense(3, 2, 5, rngs=rngs)])
    layer = DelayedDense(3, 2, 5, rngs=rngs)
    with pytest.raises(ValueError, match=r"5 lags of 3 inputs, 15 features; .*DelayLine\(3, 5\)"):
        layer(jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"convolve takes \(time, \*batch, 3\).*shape \(9, 15\)"):
        layer.convolve(jnp.zeros((9, 15)))
    with pytest.raises(ValueError, match=r"prune\(keep=5\): .*\(2, 2\) has 4 weights; keep 0 to 4"):
        delays.prune(jnp.ones((2, 2)), 5)
    with pytest.raises(ValueError, match=r"shorten\(lags=6\): the kernel has 5 lags"):
        delays.shorten(layer.kernel[...], 6)
