"""Feedback alignment, also direct, against its equations in numpy and backpropagation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spikebit.learning_rules import (
    bptt,
    direct_feedback_alignment,
    feedback_alignment,
    feedback_weights,
    losses,
    parameters,
    relative_error,
    run_sequence,
)
from spikebit.simulator import LIFCell, Network

pytestmark = pytest.mark.usefixtures("compile_quickly")
LOSS = losses.squared_error
SIZES = (5, 8, 7, 6, 3)


def network(sizes=SIZES):
    layers = []
    for i, (n_in, n) in enumerate(itertools.pairwise(sizes)):
        bias = nnx.initializers.normal(0.3)
        layers += [nnx.Linear(n_in, n, bias_init=bias, rngs=nnx.Rngs(i)), jnp.tanh]
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


def by_hand(net, feedback, *, direct, grapes):
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
            if grapes:
                weight = np.abs(ws[i]).sum(1) if direct else np.abs(ws[i - 1]).sum(0)
                e = e * 2 * weight / weight.max()
            delta = e * (1 - acts[i] ** 2)
    return grads


@pytest.mark.parametrize("grapes", [False, True])
@pytest.mark.parametrize("direct", [False, True])
def test_gradients_are_the_equations(direct, grapes):
    net = network()
    feedback = feedback_weights(net, jax.random.key(3), direct=direct)
    make = direct_feedback_alignment if direct else feedback_alignment
    got = gradients(make(net, LOSS, feedback, factor="grapes" if grapes else None), net)
    for g, w in zip(got, by_hand(net, feedback, direct=direct, grapes=grapes), strict=True):
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


@pytest.mark.parametrize(("factor", "scale"), [("two", 2.0), ("mean", None)], ids=["two", "mean"])
def test_controls_scale_the_errors_of_each_layer(factor, scale):
    net = network((5, 8, 3))
    feedback = feedback_weights(net, jax.random.key(3))
    plain = gradients(feedback_alignment(net, LOSS, feedback), net)
    got = gradients(feedback_alignment(net, LOSS, feedback, factor=factor), net)
    if scale is None:
        weight = np.abs(np.asarray(kernels(net)[0])).sum(0)
        scale = (2 * weight / weight.max()).mean()
    wanted = jax.tree.map(lambda g: scale * g, plain[0])
    assert relative_error(got[0], wanted) < 1e-6
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(got[1][name], plain[1][name])


def test_what_is_refused():
    net, key = network(), jax.random.key(0)
    feedback = feedback_weights(net, key)
    with pytest.raises(ValueError, match=r"direct_feedback_alignment got .*\(8, 7\).*direct=True"):
        direct_feedback_alignment(net, LOSS, feedback)
    with pytest.raises(ValueError, match=r"needs \[\(8, 7\), \(7, 6\), \(6, 3\)\]"):
        feedback_alignment(net, LOSS, feedback[1:])
    with pytest.raises(ValueError, match=r"needs two dense layers.*has 1"):
        feedback_weights(network((5, 3)), jax.random.key(1))
    cell = LIFCell(5, 5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"Layer 0 \(LIFCell\) is neither nnx\.Linear"):
        feedback_alignment(Network([cell, *net.layers]), LOSS, feedback)
    with pytest.raises(ValueError, match="factor='max'"):
        feedback_alignment(net, LOSS, feedback, factor="max")
