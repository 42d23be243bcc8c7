"""GRAPES with other rules than BPTT and OSTL, and with three optimizers, against numpy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spikebit import learning_rules as rules
from spikebit.learning_rules import bptt, grapes, losses, parameters, run_sequence
from spikebit.simulator import LIFCell, Network

pytestmark = pytest.mark.usefixtures("compile_quickly")
LOSS = losses.cross_entropy


def data(steps=1):
    xs = jnp.asarray(2 * np.random.default_rng(0).normal(size=(steps, 4, 5)), jnp.float32)
    return xs, jnp.asarray(np.random.default_rng(1).integers(0, 3, (steps, 4)))


def pure(tree):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(tree))["layers"]


def numpy_factor(kernel):
    total = np.abs(np.asarray(kernel, np.float64)).sum(0)
    return np.clip(2 * total / total.max(), 1, 2)


@pytest.mark.parametrize(("name", "factor"), [("eprop", "grapes"), ("osttp", "mean")])
def test_errors_that_are_broadcast_are_modulated_once(name, factor):
    """Direct feedback in spiking recurrent layers: a unit's own trace times m, no factors above."""
    cell = partial(LIFCell, tau=3e-3, recurrent=True)
    layers = [cell(5, 6, rngs=nnx.Rngs(0)), cell(6, 6, rngs=nnx.Rngs(1))]
    network = Network([*layers, nnx.Linear(6, 3, rngs=nnx.Rngs(2))])
    xs, targets = data(steps=6)
    weights = rules.broadcast_weights(network, jax.random.key(2))

    def make(network, loss):
        if name == "osttp":
            return rules.osttp(network, loss, weights, scope="no_h")
        return rules.eprop(network, loss, feedback=weights)

    def gradient(make):
        rule = make(network, LOSS)
        run = jax.jit(lambda p: run_sequence(rule, p, xs, targets, chunk=2).grads)
        return pure(run(parameters(network)))

    plain = gradient(make)
    got = gradient(grapes(make, factor=factor))
    for i in (0, 1):
        m = numpy_factor(network.layers[i].w[...])
        m = m if factor == "grapes" else np.full_like(m, m.mean())
        for k, g in plain[i].items():
            assert np.abs(g).max() > 0
            np.testing.assert_allclose(got[i][k], m * g, rtol=1e-4, atol=1e-7)
    jax.tree.map(np.testing.assert_array_equal, got[2], plain[2])


def numpy_gradients(layers, x, target):
    """Backpropagation of a ReLU net with softmax cross-entropy, with the factors of its weights."""
    acts = [x]
    for layer in layers:
        a = acts[-1] @ layer["kernel"] + layer["bias"]
        acts.append(a if layer is layers[-1] else np.maximum(a, 0))
    e = np.exp(acts[-1])
    delta = (e / e.sum(-1, keepdims=True) - np.eye(3)[target]) / len(target)
    grads = []
    for i in (2, 1, 0):
        grads.insert(0, {"kernel": acts[i].T @ delta, "bias": delta.sum(0)})
        if i:
            error = delta @ layers[i]["kernel"].T
            delta = numpy_factor(layers[i - 1]["kernel"]) * error * (acts[i] > 0)
    return grads


def numpy_optimizer(name):
    """The update of each step from its gradient, for one array."""
    m, v, t = 0.0, 0.0, 0

    def step(g):
        nonlocal m, v, t
        t += 1
        if name == "sgd":
            return -0.1 * g
        if name == "momentum":
            m = g + 0.9 * m
            return -0.1 * m
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        return -0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)

    return step


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_every_step_has_the_factors_of_its_own_weights(name):
    """Three steps of training against numpy, from the gradient to the weights."""
    biases = nnx.initializers.normal(0.3)
    first, second, last = (
        nnx.Linear(n_in, n, bias_init=biases, rngs=nnx.Rngs(n))
        for n_in, n in ((5, 8), (8, 9), (9, 3))
    )
    network, (xs, targets) = Network([first, jax.nn.relu, second, jax.nn.relu, last]), data()
    rates = {"sgd": optax.sgd(0.1), "momentum": optax.sgd(0.1, 0.9), "adam": optax.adam(0.01)}
    params, tx = parameters(network), rates[name]
    ours = [layer for _, layer in sorted(pure(params).items())]
    ours = [{k: w.astype(np.float64) for k, w in layer.items()} for layer in ours]
    theirs = [{k: numpy_optimizer(name) for k in layer} for layer in ours]
    rule = grapes(bptt)(network, LOSS)

    @jax.jit
    def train(params, state):
        grads = run_sequence(rule, params, xs, targets).grads
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):
        state = tx.init(params)
        for _ in range(3):
            params, state = train(params, state)
            grads = numpy_gradients(ours, np.asarray(xs[0]), np.asarray(targets[0]))
            for layer, rule_of, g in zip(ours, theirs, grads, strict=True):
                for k in layer:
                    layer[k] = layer[k] + rule_of[k](g[k])
    for (_, layer), w in zip(sorted(pure(params).items()), ours, strict=True):
        for k in layer:
            np.testing.assert_allclose(layer[k], w[k], rtol=1e-4, atol=1e-5)
