"""Feedback alignment, also direct, against its equations in numpy and backpropagation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spikebit.learning_rules import (
    bptt,
    direct_feedback_alignment,
    feedback_alignment,
    feedback_weights,
    local_grapes,
    losses,
    parameters,
    relative_error,
    run_sequence,
)
from spikebit.simulator import LIFCell, Network

pytestmark = pytest.mark.usefixtures("compile_quickly")
LOSS = losses.squared_error
SIZES = (5, 8, 7, 6, 3)


def network(sizes=SIZES, seed=0):
    layers = []
    for i, (n_in, n) in enumerate(itertools.pairwise(sizes)):
        bias = nnx.initializers.normal(0.3)
        layers += [nnx.Linear(n_in, n, bias_init=bias, rngs=nnx.Rngs(seed + i)), jnp.tanh]
    return Network(layers[:-1])


def data(steps=2, batch=4):
    rng = np.random.default_rng(0)
    shapes = (steps, batch, SIZES[0]), (steps, batch, SIZES[-1])
    xs, targets = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    return xs, targets


def gradients(rule, net):
    out = jax.jit(lambda p: run_sequence(rule, p, *data()).grads)(parameters(net))
    return [
        layer for _, layer in sorted(jax.tree.map(np.asarray, out).to_pure_dict()["layers"].items())
    ]


def kernels(net):
    return [layer.kernel[...] for layer in net.layers if isinstance(layer, nnx.Linear)]


def numpy_factor(weight, factor):
    """2 I / max I, without a floor, and its controls; 1 without a factor."""
    m = 2 * weight / weight.max()
    return {None: 1.0, "grapes": m, "mean": m.mean(), "two": 2.0}[factor]


def by_hand(net, feedback, *, direct, factor):
    """Both rules in float64, steps and samples as one batch; errors times their factors."""
    xs, targets = (np.asarray(a, np.float64).reshape(8, -1) for a in data())
    layers = [layer for layer in net.layers if isinstance(layer, nnx.Linear)]
    ws = [np.asarray(layer.kernel[...], np.float64) for layer in layers]
    acts = [xs]
    for i, (layer, w) in enumerate(zip(layers, ws, strict=True)):
        a = acts[-1] @ w + np.asarray(layer.bias[...])
        acts.append(np.tanh(a) if i + 1 < len(layers) else a)
    error = (acts[-1] - targets) / 4  # summed over time, mean over the batch
    delta, grads = error, []
    for i in reversed(range(len(ws))):
        grads.insert(0, {"kernel": acts[i].T @ delta, "bias": delta.sum(0)})
        if i:
            b = np.asarray(feedback[i - 1], np.float64)
            e = error @ b if direct else delta @ b.T
            weight = np.abs(ws[i]).sum(1) if direct else np.abs(ws[i - 1]).sum(0)
            delta = e * numpy_factor(weight, factor) * (1 - acts[i] ** 2)
    return grads


@pytest.mark.parametrize("factor", [None, "grapes", "mean", "two"])
@pytest.mark.parametrize("direct", [False, True])
def test_gradients_are_the_equations(direct, factor):
    """Factors are those of the parameters given, not of the network that the rule was made for."""
    net, earlier = network(), network(seed=9)
    feedback = feedback_weights(net, jax.random.key(3), direct=direct)
    make = direct_feedback_alignment if direct else feedback_alignment
    got = gradients(make(earlier, LOSS, feedback, factor=factor), net)
    for g, w in zip(got, by_hand(net, feedback, direct=direct, factor=factor), strict=True):
        for name in ("kernel", "bias"):
            np.testing.assert_allclose(g[name], w[name], rtol=1e-4, atol=1e-5)


def test_with_the_weights_themselves_as_feedback_it_is_backpropagation():
    net = network()
    exact = gradients(bptt(net, LOSS), net)
    assert (
        relative_error(gradients(feedback_alignment(net, LOSS, kernels(net)[1:]), net), exact)
        < 1e-5
    )
    _, *middle, last = kernels(net)
    direct = [last.T]  # through the layers between as if they were linear, so exact for the highest
    for w in reversed(middle):
        direct.insert(0, direct[0] @ w.T)
    got = gradients(direct_feedback_alignment(net, LOSS, direct), net)
    assert relative_error(got[-2:], exact[-2:]) < 1e-5
    assert relative_error(got[0], exact[0]) > 1e-2


def test_random_feedback_is_exact_for_the_highest_layer_only():
    net = network()
    exact = gradients(bptt(net, LOSS), net)
    for direct, make in ((False, feedback_alignment), (True, direct_feedback_alignment)):
        feedback = feedback_weights(net, jax.random.key(3), direct=direct)
        got = gradients(make(net, LOSS, feedback), net)
        assert relative_error(got[-1], exact[-1]) < 1e-6
        assert all(relative_error(g, e) > 0.1 for g, e in zip(got[:-1], exact[:-1], strict=True))


@pytest.mark.parametrize("direct", [False, True])
def test_permuted_factors_are_those_of_the_layer_shuffled(direct):
    net = network((5, 8, 3))
    feedback = feedback_weights(net, jax.random.key(3), direct=direct)
    make = direct_feedback_alignment if direct else feedback_alignment
    plain = gradients(make(net, LOSS, feedback), net)
    got = gradients(make(net, LOSS, feedback, factor="perm", key=jax.random.key(5)), net)
    first, last = (np.abs(np.asarray(k)) for k in kernels(net))
    m = numpy_factor(last.sum(1) if direct else first.sum(0), "grapes")
    ratio = got[0]["bias"] / plain[0]["bias"]
    np.testing.assert_allclose(np.sort(ratio), np.sort(m), rtol=1e-4)
    assert np.abs(ratio - m).max() > 0.01
    assert relative_error(got[0]["kernel"], ratio * plain[0]["kernel"]) < 1e-5
    np.testing.assert_array_equal(got[1]["kernel"], plain[1]["kernel"])


def test_local_factors_change_the_update_of_a_unit_and_nothing_below():
    net = network()
    feedback = feedback_weights(net, jax.random.key(3))
    rule = feedback_alignment(net, LOSS, feedback)
    params = parameters(net)
    grads = jax.jit(lambda p: run_sequence(rule, p, *data()).grads)(params)
    local = local_grapes(net, floor=0).update(grads, optax.EmptyState(), params)[0]
    got = [g for _, g in sorted(jax.tree.map(np.asarray, local).to_pure_dict()["layers"].items())]
    wanted = by_hand(net, feedback, direct=False, factor=None)
    for i, (g, w) in enumerate(zip(got, wanted, strict=True)):
        m = numpy_factor(np.abs(np.asarray(kernels(net)[i])).sum(0), "grapes" if i < 3 else None)
        for name in ("kernel", "bias"):
            np.testing.assert_allclose(g[name], m * w[name], rtol=1e-4, atol=1e-5)


def convolve(kernel, x, stride):
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, "SAME", dimension_numbers=names)


def as_matrix(kernel, shape, stride):
    """The matrix (inputs, outputs) of a convolution: what it makes of each single input."""
    one = jnp.eye(np.prod(shape), dtype=jnp.float32).reshape(-1, *shape)
    return np.asarray(convolve(kernel, one, stride), np.float64).reshape(len(one), -1)


@pytest.mark.parametrize("factor", ["grapes", "mean"])
@pytest.mark.parametrize("direct", [False, True])
def test_convolutions_are_matrices(direct, factor):
    """Both rules in numpy on the matrices of two convolutions, with a factor for each channel."""
    r, bias = nnx.Rngs(3), nnx.initializers.normal(0.3)
    convs = [
        nnx.Conv(2, 3, (2, 2), bias_init=bias, rngs=r),
        nnx.Conv(3, 4, (3, 3), strides=2, bias_init=bias, rngs=r),
    ]
    out = nnx.Linear(16, 3, rngs=r)
    flat = [jnp.tanh, lambda x: x.reshape(len(x), -1)]
    net = Network([convs[0], jnp.tanh, convs[1], *flat, out])
    feedback = feedback_weights(net, jax.random.key(3), direct=direct, input_shape=(4, 4, 2))
    rng = np.random.default_rng(1)
    xs = jnp.asarray(rng.normal(size=(2, 3, 4, 4, 2)), jnp.float32)
    targets = jnp.asarray(rng.normal(size=(2, 3, 3)), jnp.float32)
    make = direct_feedback_alignment if direct else feedback_alignment
    rule = make(net, LOSS, feedback, factor=factor)
    grads = jax.jit(lambda p: run_sequence(rule, p, xs, targets).grads)(parameters(net))
    got = jax.tree.map(np.asarray, grads).to_pure_dict()["layers"]

    shapes, strides = [(4, 4, 2), (4, 4, 3)], (1, 2)
    ws = [c.kernel[...] for c in convs]
    biases = [np.tile(np.asarray(c.bias[...]), n) for c, n in zip(convs, (16, 4), strict=True)]
    a = [np.asarray(xs, np.float64).reshape(6, -1)]
    for w, b, shape, stride in zip(ws, biases, shapes, strides, strict=True):
        a.append(np.tanh(a[-1] @ as_matrix(w, shape, stride) + b))
    error = (a[-1] @ np.asarray(out.kernel[...]) + np.asarray(out.bias[...])
             - np.asarray(targets).reshape(6, 3)) / 3  # fmt: skip
    first, second, last = (np.abs(np.asarray(w)) for w in (*ws, out.kernel[...]))
    if direct:
        weight = [second.sum((0, 1, 3)), last.sum(1).reshape(4, 4).sum(0)]
        e2, e1 = (error @ np.asarray(b).reshape(3, -1) for b in reversed(feedback))
    else:
        weight = [first.sum((0, 1, 2)), second.sum((0, 1, 2))]
        e2 = error @ np.asarray(feedback[1]).T
    m1, m2 = (np.tile(numpy_factor(w, factor) * np.ones(len(w)), n)
              for w, n in zip(weight, (16, 4), strict=True))  # fmt: skip
    delta2 = m2 * e2 * (1 - a[2] ** 2)
    if not direct:
        e1 = delta2 @ as_matrix(feedback[0], shapes[1], 2).T
    delta1 = m1 * e1 * (1 - a[1] ** 2)
    np.testing.assert_allclose(got[5]["kernel"], a[2].T @ error, rtol=1e-4, atol=1e-5)
    for i, (x, delta) in enumerate([(a[0], delta1), (a[1], delta2)]):
        one = jnp.eye(ws[i].size, dtype=jnp.float32).reshape(-1, *ws[i].shape)
        x = jnp.asarray(x, jnp.float32).reshape(6, *shapes[i])
        ys = jax.vmap(lambda k, x=x, s=strides[i]: convolve(k, x, s))(one)
        wanted = np.einsum("kno,no->k", np.asarray(ys).reshape(len(one), 6, -1), delta)
        np.testing.assert_allclose(got[2 * i]["kernel"].ravel(), wanted, rtol=1e-4, atol=1e-5)
        bias = delta.reshape(-1, len(convs[i].bias[...])).sum(0)
        np.testing.assert_allclose(got[2 * i]["bias"], bias, rtol=1e-4, atol=1e-5)


def test_direct_feedback_to_layers_whose_output_is_averaged_and_cut():
    """Linear layers on 7 places of 5 features, the mean over places, and the first 3 of 4."""
    r = nnx.Rngs(4)
    first, last = nnx.Linear(5, 6, rngs=r), nnx.Linear(6, 4, rngs=r)
    net = Network([first, jnp.tanh, last, lambda x: x.mean(1)[..., :3]])
    (b,) = feedback_weights(net, jax.random.key(3), direct=True, input_shape=(7, 5))
    assert b.shape == (3, 7, 6)
    rng = np.random.default_rng(2)
    x, target = rng.normal(size=(1, 2, 7, 5)), rng.normal(size=(1, 2, 3))
    rule, params = direct_feedback_alignment(net, LOSS, [b]), parameters(net)
    xs, targets = jnp.asarray(x, jnp.float32), jnp.asarray(target, jnp.float32)
    got = jax.jit(lambda p: run_sequence(rule, p, xs, targets).grads)(params)["layers"]
    h = np.tanh(x[0] @ np.asarray(first.kernel[...]))
    error = ((h @ np.asarray(last.kernel[...])).mean(1)[:, :3] - target[0]) / 2
    delta = np.einsum("so,opf->spf", error, b) * (1 - h**2)
    wanted = np.einsum("spi,spf->if", x[0], delta)
    np.testing.assert_allclose(got[0]["kernel"][...], wanted, rtol=1e-4, atol=1e-5)
    for shape in ((4, 7, 6), (3, 6)):
        rule = direct_feedback_alignment(net, LOSS, [jnp.zeros(shape)])
        with pytest.raises(ValueError, match=r"input of shape \(7, 6\) and an output of .*\(3,\)"):
            rule.step(params, (), xs, targets)


def test_what_is_refused():
    net, key = network(), jax.random.key(0)
    feedback = feedback_weights(net, key)
    (xs, targets), params = data(), parameters(net)
    for rule in (feedback_alignment(net, LOSS, feedback), bptt(net, LOSS)):
        state = rule.init(params, xs)
        with pytest.raises(ValueError, match=r"targets has shape \(2, 1, 3\)"):
            rule.step(params, state, xs, targets[:, :1])
        for none in (xs[:0], xs[:, :0]):
            with pytest.raises(ValueError, match=r"one time step and one sample; got shape"):
                rule.step(params, state, none, targets)
    with pytest.raises(ValueError, match=r"direct_feedback_alignment got .*\(8, 7\).*direct=True"):
        direct_feedback_alignment(net, LOSS, feedback)
    with pytest.raises(ValueError, match=r"needs \[\(8, 7\), \(7, 6\), \(6, 3\)\]"):
        feedback_alignment(net, LOSS, feedback[1:])
    with pytest.raises(ValueError, match=r"needs two layers with weights.*has 1"):
        feedback_weights(network((5, 3)), jax.random.key(1))
    cell = LIFCell(5, 5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"Layer 0 \(LIFCell\) is neither .*`eprop`"):
        feedback_alignment(Network([cell, *net.layers]), LOSS, feedback)
    with pytest.raises(ValueError, match="factor='max'"):
        feedback_alignment(net, LOSS, feedback, factor="max")
    r = nnx.Rngs(0)
    convs = [nnx.Conv(2, 2, (3,), rngs=r) for _ in range(2)]
    layers = [*convs, lambda x: x.reshape(len(x), -1), nnx.Linear(8, 3, rngs=r)]
    with pytest.raises(ValueError, match=r"give input_shape"):
        feedback_weights(Network(layers), jax.random.key(2), direct=True)
    fits = jax.random.key(3)
    other = feedback_weights(Network(layers), fits, direct=True, input_shape=(4, 2))
    wider = [jnp.zeros((3, 5, 2)), other[1]]
    rule = direct_feedback_alignment(Network(layers), LOSS, wider)
    xs = jnp.zeros((1, 1, 4, 2))
    with pytest.raises(ValueError, match=r"\(3, 5, 2\) for an input of shape \(4, 2\)"):
        rule.step(parameters(Network(layers)), (), xs, jnp.zeros((1, 1, 3)))
    odd = [
        nnx.Linear(2, 3, rngs=nnx.Rngs(0)),
        lambda x: x[..., :2],
        nnx.Linear(2, 3, rngs=nnx.Rngs(1)),
    ]
    rule = direct_feedback_alignment(Network(odd), LOSS, [jnp.zeros((3, 2))], factor="grapes")
    with pytest.raises(ValueError, match="a layer takes 2 inputs from 3 units"):
        rule.step(parameters(Network(odd)), (), jnp.zeros((1, 1, 2)), jnp.zeros((1, 1, 3)))
    grouped = nnx.Conv(2, 2, (3,), feature_group_count=2, rngs=r)
    with pytest.raises(ValueError, match=r"Layer 0 \(Conv\) has 2 groups"):
        feedback_weights(Network([grouped, *layers[1:]]), jax.random.key(4))
