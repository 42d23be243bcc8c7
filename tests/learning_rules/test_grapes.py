"""GRAPES against its equations in numpy, against BPTT and OSTL with the errors changed by hand."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spikebit import learning_rules as rules
from spikebit.learning_rules import (
    bptt,
    grapes,
    importance,
    local_grapes,
    losses,
    modulate,
    modulation_factor,
    ostl,
    parameters,
    relative_error,
    run_sequence,
)
from spikebit.learning_rules.rule import run_with_state
from spikebit.quant.training import LUQ, quantize_products
from spikebit.simulator import LIFCell, Network, SNUCell
from spikebit.simulator.snu import SoftSNUCell

pytestmark = pytest.mark.usefixtures("compile_quickly")
LOSS = losses.cross_entropy


def rng(seed):
    return np.random.default_rng(seed)


def dense(*sizes):
    layers = []
    for i, (n_in, n) in enumerate(itertools.pairwise(sizes)):
        bias = nnx.initializers.normal(0.3)
        layers += [nnx.Linear(n_in, n, bias_init=bias, rngs=nnx.Rngs(i)), jax.nn.relu]
    return Network(layers[:-1])


def data(steps=1, batch=4, n_in=5, classes=3):
    xs = jnp.asarray(2 * rng(0).normal(size=(steps, batch, n_in)), jnp.float32)
    return xs, jnp.asarray(rng(1).integers(0, classes, (steps, batch)))


def gradient(make_rule, network, xs, targets, chunk=None):
    rule = make_rule(network, LOSS)
    run = jax.jit(lambda p: run_sequence(rule, p, xs, targets, chunk=chunk))
    return run(parameters(network)).grads


def pure(tree):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(tree))["layers"]


def numpy_factor(*kernels, gates=1):
    """The published equation with loops: 2 I / max I, at least 1."""
    n = kernels[0].shape[-1] // gates
    total = np.zeros(n)
    for kernel in kernels:
        for row in np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1]):
            for j, weight in enumerate(row):
                total[j % n] += abs(weight)
    return np.clip(2 * total / total.max(), 1, 2)


# backpropagation


def numpy_gradients(layers, x, target, factors):
    """Backpropagation of a ReLU net with softmax cross-entropy, the errors times their factors."""
    acts, pre = [np.asarray(x, np.float64)], []
    for i, layer in enumerate(layers):
        pre.append(acts[-1] @ layer["kernel"].astype(np.float64) + layer["bias"])
        acts.append(np.maximum(pre[-1], 0) if i + 1 < len(layers) else pre[-1])
    e = np.exp(pre[-1] - pre[-1].max(-1, keepdims=True))
    delta = (e / e.sum(-1, keepdims=True) - np.eye(e.shape[-1])[target]) / len(target)
    grads = []
    for i in reversed(range(len(layers))):
        grads.insert(0, {"kernel": acts[i].T @ delta, "bias": delta.sum(0)})
        if i:
            delta = factors[i - 1] * (delta @ layers[i]["kernel"].T) * (pre[i - 1] > 0)
    return grads


@pytest.mark.parametrize("factor", ["grapes", "mean", "two"])
def test_propagating_is_the_published_equation(factor):
    network, (xs, targets) = dense(5, 8, 9, 7, 3), data()
    layers = [layer for _, layer in sorted(pure(parameters(network)).items())]
    factors = [numpy_factor(layer["kernel"]) for layer in layers[:-1]]
    if factor != "grapes":
        factors = [np.full_like(m, m.mean() if factor == "mean" else 2) for m in factors]
    wanted = numpy_gradients(layers, xs[0], np.asarray(targets[0]), factors)
    got = pure(gradient(grapes(bptt, factor=factor), network, xs, targets))
    for (_, layer), w in zip(sorted(got.items()), wanted, strict=True):
        for name in ("kernel", "bias"):
            np.testing.assert_allclose(layer[name], w[name], rtol=2e-5, atol=1e-6)


def test_a_permuted_factor_belongs_to_its_layer_and_stays_the_same():
    network, (xs, targets) = dense(5, 8, 9, 3), data()
    make = grapes(bptt, factor="perm", key=jax.random.key(7))
    got, again = (pure(gradient(make, network, xs, targets)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, got, again)
    plain = pure(gradient(bptt, network, xs, targets))
    used = np.abs(plain[2]["bias"]) > 1e-6  # units that were on
    ratio = got[2]["bias"][used] / plain[2]["bias"][used]
    factors = numpy_factor(np.asarray(network.layers[2].kernel[...]))
    assert np.abs(ratio - factors[used]).max() > 1e-2  # shuffled
    assert np.abs(ratio[:, None] - factors).min(1).max() < 1e-5  # but each is one of them


STACKS = {
    "dense": lambda: dense(5, 8, 9, 3),
    "snu": lambda: stack(SNUCell, SNUCell),
    "recurrent lif": lambda: stack(*[partial(LIFCell, tau=3e-3, recurrent=True)] * 2),
    "gru on snu": lambda: stack(SNUCell, nnx.GRUCell),
    "conv": lambda: convolutions(nnx.Rngs(4)),
}


def convolutions(r):
    first, second = nnx.Conv(1, 4, (2,), rngs=r), nnx.Conv(4, 6, (3,), rngs=r)
    mean = [jnp.tanh, lambda x: x.mean(-2), nnx.Linear(6, 3, rngs=r)]
    return Network([lambda x: x[..., None], first, jnp.tanh, second, *mean])


def stack(*cells, n_in=5, n=6, classes=3):
    sizes = [n_in] + [n] * len(cells)
    layers = [c(k, n, rngs=nnx.Rngs(i)) for i, (c, k) in enumerate(zip(cells, sizes, strict=False))]
    return Network([*layers, nnx.Linear(n, classes, rngs=nnx.Rngs(9))])


@pytest.mark.parametrize(
    ("name", "make"),
    [("dense", bptt), ("recurrent lif", bptt), ("gru on snu", ostl)],
)
def test_equal_columns_double_the_error_once_a_hidden_layer(name, make):
    """Powers of two do not round, so to the bit; also says that nothing is doubled over time."""
    network, (xs, targets) = STACKS[name](), data(steps=6)

    def equal(path, p):
        here = jax.tree_util.keystr(path)
        if p.ndim < 2 or "'h'" in here or "dense_h" in here:
            return p
        return jnp.where(p < 0, -0.4, 0.4).astype(p.dtype)

    nnx.update(network, jax.tree_util.tree_map_with_path(equal, parameters(network)))
    plain = pure(gradient(make, network, xs, targets, chunk=3))
    got = pure(gradient(grapes(make), network, xs, targets, chunk=3))
    with_weights = sorted(plain)
    for depth, i in enumerate(reversed(with_weights)):  # 0 is the output layer
        scaled = jax.tree.map(lambda g, d=depth: g * 2.0**d, plain[i])
        jax.tree.map(np.testing.assert_array_equal, got[i], scaled)
        assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(got[i]))


def test_layers_keep_their_places_in_a_deep_network():
    """More than ten layers with parameters, all of one shape: an order by name would show."""
    network, (xs, targets) = dense(5, *[5] * 12, 3), data()
    layers = [layer for _, layer in sorted(pure(parameters(network)).items())]
    factors = [numpy_factor(layer["kernel"]) for layer in layers[:-1]]
    wanted = numpy_gradients(layers, xs[0], np.asarray(targets[0]), factors)
    got = pure(gradient(grapes(bptt), network, xs, targets))
    for (_, layer), w in zip(sorted(got.items()), wanted, strict=True):
        scale = np.abs(w["kernel"]).max()
        np.testing.assert_allclose(layer["kernel"], w["kernel"], rtol=1e-4, atol=1e-5 * scale)


def test_convolutions_and_what_stands_between():
    """Against the chain rule by hand, one layer at a time."""
    r = nnx.Rngs(3)
    first, second = nnx.Conv(2, 3, (2, 2), rngs=r), nnx.Conv(3, 4, (3, 3), strides=2, rngs=r)
    network = Network([first, jnp.tanh, second, lambda x: x.mean((1, 2)), nnx.Linear(4, 3, rngs=r)])
    xs = jnp.asarray(rng(5).normal(size=(1, 3, 6, 6, 2)), jnp.float32)
    targets = jnp.array([[0, 2, 1]])
    ms = [jnp.asarray(numpy_factor(c.kernel[...]), jnp.float32) for c in (first, second)]

    @jax.jit
    def by_hand(first, second):
        a, pull_a = jax.vjp(lambda m: m(xs[0]), first)
        b, pull_b = jax.vjp(lambda m, a: m(jnp.tanh(a)), second, a)
        db = jax.grad(lambda b: LOSS(network.layers[4](b.mean((1, 2))), targets[0]).mean())(b)
        dsecond, da = pull_b(db * ms[1])
        return pull_a(da * ms[0])[0], dsecond

    dfirst, dsecond = by_hand(first, second)
    got = pure(gradient(grapes(bptt), network, xs, targets))
    for i, wanted in ((0, dfirst), (2, dsecond)):
        np.testing.assert_allclose(got[i]["kernel"], wanted.kernel[...], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(got[i]["bias"], wanted.bias[...], rtol=1e-4, atol=1e-6)


# time


def oracle(network, xs, targets, factors, *, online):
    """jax.grad through a scan whose layers hand up a modulated output and keep their carry.

    With `online` the gradient of each layer takes the carries of the layers above as constants:
    what OSTL computes with a recurrence within layers, chunk 1.
    """
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)
    start = network.initialize_carry(xs.shape[1:])

    def total(params, learning):
        layers = nnx.merge(graphdef, params, rest).layers

        def step(carry, inputs):
            x, target = inputs
            new = []
            for i, (layer, c) in enumerate(zip(layers, carry, strict=True)):
                if online and i > learning:
                    c = jax.lax.stop_gradient(c)
                if isinstance(layer, nnx.RNNCellBase):
                    c, x = layer(c, x)
                else:
                    x = layer(x)
                x = modulate(x, factors[i]) if i in factors else x
                new.append(c)
            return tuple(new), LOSS(x, target).mean()

        return jax.lax.scan(step, start, (xs, targets))[1].sum()

    @jax.jit
    def gradients(params):
        if not online:
            return [jax.grad(total)(params, -1)] * len(network.layers)
        return [jax.grad(total)(params, i) for i in range(len(network.layers))]

    return {i: pure(g)[i] for i, g in enumerate(gradients(params)) if i in pure(params)}


RECURRENT = {
    "lif": (partial(LIFCell, tau=3e-3, recurrent=True), lambda c: [c.w]),
    "optimized lstm": (nnx.OptimizedLSTMCell, lambda c: [c.dense_i.kernel]),
}
GATES = {"optimized lstm": 4}


@pytest.mark.parametrize("online", [False, True], ids=["bptt", "ostl"])
@pytest.mark.parametrize("name", RECURRENT)
def test_in_time_the_learning_signal_is_modulated_and_the_carry_is_not(name, online):
    cell, kernels = RECURRENT[name]
    network, (xs, targets) = stack(cell, cell), data(steps=6)
    factors = {
        i: jnp.asarray(
            numpy_factor(*(k[...] for k in kernels(network.layers[i])), gates=GATES.get(name, 1)),
            jnp.float32,
        )
        for i in (0, 1)
    }
    wanted = oracle(network, xs, targets, factors, online=online)
    make = grapes(ostl if online else bptt)
    got = pure(gradient(make, network, xs, targets, chunk=1 if online else None))
    for i, layer in got.items():
        for g, w in zip(jax.tree.leaves(layer), jax.tree.leaves(wanted[i]), strict=True):
            assert relative_error(g, w) < 1e-5, (i, g.shape)


@pytest.mark.parametrize(
    "cells",
    [
        (partial(SNUCell, recurrent=True), nnx.GRUCell),
        (partial(LIFCell, recurrent=True), nnx.Linear),
    ],
    ids=["gru on snu", "linear on lif"],
)
def test_the_forward_pass_and_the_traces_of_ostl_are_the_same_to_the_bit(cells):
    network, (xs, targets) = stack(*cells), data(steps=6)
    (state, plain), (modulated, got) = (
        jax.jit(lambda p, m=make: run_with_state(m(network, LOSS), p, xs, targets, chunk=3))(
            parameters(network)
        )
        for make in (ostl, grapes(ostl))
    )
    np.testing.assert_array_equal(got.outputs, plain.outputs)
    assert got.loss == plain.loss
    assert jax.tree.structure(got.grads) == jax.tree.structure(plain.grads)
    assert relative_error(got.grads, plain.grads) > 1e-3
    for a, b in zip(*map(jax.tree.leaves, (state.traces, modulated.traces)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.abs(a).max() > 0


def test_recurrent_weights_count_where_they_are_asked_for():
    lstm = ("ii", "if_", "ig", "io", "hi", "hf", "hg", "ho")
    for cell, kernels, gates in [
        (nnx.LSTMCell, lambda c: [getattr(c, k).kernel[...] for k in lstm], 1),
        (partial(SNUCell, recurrent=True), lambda c: (c.w[...], c.h[...]), 1),
        (nnx.OptimizedLSTMCell, lambda c: (c.dense_i.kernel[...], c.dense_h.kernel[...]), 4),
    ]:
        network = stack(cell)
        both = numpy_factor(*kernels(network.layers[0]), gates=gates)
        tx = local_grapes(network, importance_from="input+recurrent")
        ones = jax.tree.map(jnp.ones_like, parameters(network))
        scaled, _ = tx.update(ones, optax.EmptyState(), parameters(network))
        for leaf in jax.tree.leaves(pure(scaled)[0]):
            wide = np.tile(both, leaf.shape[-1] // len(both))
            np.testing.assert_allclose(leaf, np.broadcast_to(wide, leaf.shape), rtol=1e-6)


def test_a_cell_without_input_weights_belongs_to_the_layer_below():
    r = nnx.Rngs(0)
    neurons = SoftSNUCell(None, 6, recurrent=True, rngs=r)
    network = Network([nnx.Linear(5, 6, rngs=r), neurons, nnx.Linear(6, 3, rngs=r)])
    xs, targets = data(steps=5)
    m = jnp.asarray(numpy_factor(network.layers[0].kernel[...]), jnp.float32)
    wanted = oracle(network, xs, targets, {1: m}, online=False)
    got = pure(gradient(grapes(bptt), network, xs, targets))
    for i in got:
        assert relative_error(got[i], wanted[i]) < 1e-5


def test_quantized_products_and_their_noise_go_along():
    off = LUQ(weights=None, activations=None, gradients=None)
    network, (xs, targets) = stack(SNUCell, nnx.LSTMCell), data(steps=4)
    quantized = quantize_products(network, off, first_and_last=True)
    wanted = gradient(grapes(bptt), network, xs, targets)
    rule = rules.with_new_noise(grapes(bptt))(quantized, LOSS)
    run = jax.jit(lambda p, key: run_sequence(rule, p, xs, targets, key=key).grads)
    got = run(parameters(quantized), jax.random.key(7))
    assert relative_error(got, wanted) < 1e-6


# local


@pytest.mark.parametrize("name", ["dense", "conv", "snu"])
def test_local_is_the_gradient_times_the_factors_and_at_the_top_the_same_as_propagating(name):
    network, (xs, targets) = STACKS[name](), data(steps=6 if name == "snu" else 1)
    params = parameters(network)
    grads = gradient(bptt, network, xs, targets)
    plain = pure(grads)
    local = pure(local_grapes(network).update(grads, optax.EmptyState(), params)[0])
    below, output = sorted(plain)[:-1], max(plain)
    jax.tree.map(np.testing.assert_array_equal, local[output], plain[output])
    for i in below:
        kernel = "w" if name == "snu" else "kernel"
        m = np.asarray(modulation_factor(importance(getattr(network.layers[i], kernel)[...])))
        for k, g in plain[i].items():
            np.testing.assert_array_equal(local[i][k], m * g)
        np.testing.assert_allclose(m, numpy_factor(pure(params)[i][kernel]), rtol=1e-6)
    propagating = pure(gradient(grapes(bptt), network, xs, targets))
    assert relative_error(propagating[below[-1]], local[below[-1]]) < 1e-6
    assert relative_error(propagating[below[0]], local[below[0]]) > 0.1


def test_adam_takes_local_factors_out_again_and_momentum_does_not():
    network, (xs, targets) = dense(5, 8, 9, 3), data()
    params, grads = parameters(network), gradient(bptt, network, xs, targets)

    @partial(jax.jit, static_argnums=0)
    def updates(tx):
        state = tx.init(params)
        for scale in (1.0, -0.5, 2.0):  # the weights stay, so the factors do
            out, state = tx.update(jax.tree.map(lambda g, s=scale: g * s, grads), state, params)
        return out

    with jax.numpy_dtype_promotion("standard"):
        adam = optax.adam(1e-3, eps=1e-30)
        local = updates(optax.chain(local_grapes(network), adam))
        assert relative_error(local, updates(adam)) < 1e-5
        sgd = optax.sgd(0.1, momentum=0.9)
        local = updates(optax.chain(local_grapes(network), sgd))
        scaled = local_grapes(network).update(updates(sgd), optax.EmptyState(), params)[0]
        assert relative_error(local, scaled) < 1e-6


# what is refused


def test_bad_input_is_told_what_would_work():
    network = dense(5, 8, 3)
    for make in (lambda **s: grapes(bptt, **s), lambda **s: local_grapes(network, **s)):
        with pytest.raises(ValueError, match=r"grapes\(factor='max'\): known are 'grapes'"):
            make(factor="max")
        with pytest.raises(ValueError, match="importance_from='output'"):
            make(importance_from="output")
        with pytest.raises(ValueError, match=r"floor=3\.0"):
            make(floor=3.0)
        with pytest.raises(ValueError, match=r"give key=jax\.random\.key"):
            make(factor="perm")
    with pytest.raises(ValueError, match="1 layers with input weights: it needs two"):
        grapes(bptt)(dense(5, 3), LOSS)
    with pytest.raises(ValueError, match=r"rtrl takes .* one cell.* for GRAPES another rule"):
        grapes(rules.rtrl)(network, LOSS)
    with pytest.raises(ValueError, match="0 layers with input weights"):
        grapes(bptt)(Network([SNUCell(None, 3)]), LOSS)
    with pytest.raises(ValueError, match=r"Layer 0 \(Embed\) has weights"):
        local_grapes(Network([nnx.Embed(4, 5, rngs=nnx.Rngs(0)), *network.layers]))
    with pytest.raises(ValueError, match=r"update\(grads, state, params\)"):
        local_grapes(network).update(parameters(network), optax.EmptyState())
    with pytest.raises(ValueError, match="parameters"):
        grapes(bptt)(network, LOSS).init(parameters(dense(5, 8, 9, 3)), data()[0])
